"""A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017), from patches to samples.

`networks` has the generator and the critic, 2-D and 3-D; the critic is piecewise linear and free of
normalisation, so that `losses` gets the exact gradient of the penalty from first-order passes alone.
`training` is one step and the loop around it; its randomness follows from (seed, step), so a
resumed run equals an uninterrupted one. `checkpoint` keeps tensors and readable JSON, and loading
never executes code. `sampling` turns seeds into patches: sample k depends on the model and seed k
only. `tracker` writes the metrics. `config` holds the settings and imports nothing heavy.
Patches are float32 (N, 1, H, W) or (N, 1, D, H, W) in [-1, 1]; nothing here knows of HU or files of CT.
"""
