"""How good, how new and how useful are the synthetic patches?

Three sets are compared: training patients (what the GAN saw), held-out patients, and synthetic.
`features.py` turns patches in HU into vectors, in several families (`families.py`, `simclr.py`); `distances.py` compares two
sets of vectors; `intervals.py` says how far a distance can be trusted, and what two real sets differ by.
`attributes.py` compares lesions as a radiologist would, `artefacts.py` (with `gray_levels.py` and `halvings.py`) looks for
what only a machine leaves.
Where lesions were drawn into real patches, `seams.py` looks for the edge (`edges.py`), and `told_apart.py` trains a network to.
`memorisation.py` looks for copies of training patients (`copies.py`) and for what gives them away (`membership.py`).
`usefulness.py` asks what it is all for: does a detector (`detector.py`) get better on patients it never saw?
`audit.py` runs these over the three sets into one `Report` (`report.py`); `verdict.py` says what it comes to, `page.py` and
`report_text.py` write it down, and `python -m evaluate REAL SYNTHETIC --out REPORT` is the way in.
`froc.py` stands beside them: it judges a detector of the user's own on whole scans.
"""
