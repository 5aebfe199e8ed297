"""A Wasserstein GAN with gradient penalty (Gulrajani et al. 2017), from patches to samples.

`networks` has the generator and the critic, 2-D and 3-D, with or without `conditions`; the critic is piecewise
linear and free of normalisation, so that `losses` gets the exact gradient of the penalty from first-order passes
alone, by the book-keeping of `rows`. `trainer` is one step, on this process's share of a batch (`processes`);
its randomness follows from (seed, step), so a resumed run equals an uninterrupted one. `training` is the loop
around it, `run_folder` and `checkpoint` what it leaves on disk (loading never executes code), `tracker` its
metrics, `curves` their picture and what they warn of. `transfer` starts a run from another one's weights,
`encoder` adds a feature-matching loss. `sampling` turns seeds into patches: sample k depends on the model, what
was asked for and seed k only; `orders` says what that is, `selection` draws again what misses, `drawing` is both
for several models. `interpolation` walks from seed to seed, `mixing` trains detectors on real and synthetic patches,
`onnx_export` and `distillation` are for machines without torch or GPU. `privacy`, `private_step` and `private_trainer` protect
patients, `canaries` attack that. `config` holds the settings and imports nothing heavy. What composes
all this with patch folders and files of CT is in `commands`, and in `train.py` and `sample.py`.
Patches are float32 (N, 1, H, W) or (N, 1, D, H, W) in [-1, 1]; but for ONNX files and
`commands`, nothing here knows of HU or files of CT.
"""
