"""Writes one series as NIfTI."""

from __future__ import annotations

import sys

DESCRIPTION = """Write one CT series as an int16 HU NIfTI file with its geometry as stored.
SRC is a folder of DICOM slices holding one series, or a NIfTI or MetaImage file.
Refused, with the file and the cause: gaps, tilts, mixed sizes, missing positions or rescale.

  python -m data convert scans/patient-7 patient-7.nii.gz"""


def add_arguments(parser) -> None:
    parser.add_argument("src", type=str, help="one series: folder or file")
    parser.add_argument("dst", type=str, help="NIfTI file to write, .nii or .nii.gz")


def run(options) -> None:
    from data.cohort import find_volumes, read_volume
    from data.files import new_file
    from data.nifti import write_nifti

    if not options.dst.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{options.dst}: want a name that ends in .nii or .nii.gz")
    series, skipped = find_volumes([options.src])
    if len(series) > 1:
        raise ValueError(f"{options.src}: holds {len(series)} series; name the folder or file of one")
    for what in skipped:
        print(f"skipped {what.file}: {what.reason}", file=sys.stderr)
    volume = read_volume(series[0])
    with new_file(options.dst) as file:
        write_nifti(volume.hu, volume.affine, file)
    spacing = " x ".join(f"{mm:g}" for mm in reversed(volume.spacing_mm))
    print(
        f"{options.dst}: {' x '.join(map(str, reversed(volume.hu.shape)))} voxels of {spacing} mm, {volume.hu.min()} to {volume.hu.max()} HU"
    )
