"""How good, how new and how useful are the synthetic patches?

Three sets are compared: training patients (what the GAN saw), held-out patients, and synthetic.
`features.py` turns patches in HU into vectors; `distances.py` compares two sets of vectors;
`intervals.py` says how far a distance can be trusted, and what two real sets differ by.
`attributes.py` compares lesions as a radiologist would: size, density, edge.
`memorisation.py` looks for copies of training patients.
`detector.py` asks what it is all for: does a detector get better on patients it never saw?
`audit.py` runs these over the three sets into one `Report`; `report.py` writes it down,
and `python -m evaluate REAL SYNTHETIC --out REPORT` is the way in.
"""
