"""Makes the procedural chest-CT cohort."""

from __future__ import annotations

from shlex import quote

from data.command import progress

DESCRIPTION = """Write a cohort of procedural chest CTs as DICOM series, with a lesion list.

One series a patient, and annotations.csv in LUNA16's format with the lesions' true centres, diameters and classes
(solid, ground_glass, cystic).
The images say that they are synthetic, and are free for any use (CC0).
Same seed, same bytes; patient n does not depend on --patients.

  python -m data phantom --out phantom --patients 8 --seed 0"""

LICENCE = "CC0-1.0: procedural phantoms, nobody's data"
"""What `prepare --licence` says of a phantom cohort."""


def add_arguments(parser) -> None:
    """Its arguments and options."""
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lesions", type=int, default=12, help="lesions a patient")
    parser.add_argument("--matrix", type=int, default=256, help="pixels along a side of a slice")
    parser.add_argument("--slice-mm", type=float, default=5.0, help="distance of slices in mm")
    parser.add_argument("--processes", type=int, default=0, help="0: one a core")


def run(options) -> None:
    """Writes the cohort and prints where it is. Raises ValueError or OSError for what a user can mend."""
    from data.files import new_folder
    from data.phantom import write_cohort

    if options.patients < 1 or options.lesions < 1 or options.seed < 0 or options.matrix < 64 or not 0.5 <= options.slice_mm <= 20:
        raise ValueError("want --patients >= 1, --lesions >= 1, --seed >= 0, --matrix >= 64 and --slice-mm from 0.5 to 20")
    with new_folder(options.out) as folder:
        patients = write_cohort(
            folder, options.seed, options.patients, lesions=options.lesions, matrix=options.matrix,
            slice_mm=options.slice_mm, processes=options.processes,
        )  # fmt: skip
        for _ in progress(patients, "phantom patients", options.patients):
            pass
    print(f"{options.patients} patients written to {options.out}, lesions in {options.out}/annotations.csv")
    options_of_prepare = f'--lesions {quote(options.out + "/annotations.csv")} --out patches --size 32 --spacing 1.25 --licence "{LICENCE}"'
    print(f"next: python -m data prepare {quote(options.out)} {options_of_prepare}")
