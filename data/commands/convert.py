"""Writes one series as NIfTI."""

from __future__ import annotations

import sys

from data.commands.shared import counted

DESCRIPTION = """Write one CT series as an int16 HU NIfTI file with its geometry.

SRC is a folder or zip archive with one DICOM series, an enhanced multi-frame file, or a NIfTI or MetaImage file.
Refused, with the file and the cause: gaps, tilts, mixed sizes, missing positions or rescale, damaged files.
Files that are no CT slices are left out and told; --strict makes that an error.

  python -m data convert scans/patient-7 patient-7.nii.gz"""


def add_arguments(parser) -> None:
    """Its arguments and options."""
    parser.add_argument("src", type=str, help="one series: folder, zip archive or file")
    parser.add_argument("dst", type=str, help="NIfTI file to write, .nii or .nii.gz")
    parser.add_argument("--series", type=str | None, default=None, help="SeriesInstanceUID, or file name without suffix, of the one meant")
    parser.add_argument("--strict", action="store_true", help="leave nothing out: a file that is no CT slice is an error")


def run(options) -> None:
    """Writes the series and prints its size, spacing and HU range. Raises ValueError or OSError for what a user can mend."""
    from data.cohort import find_volumes
    from data.cutting import read_volume
    from data.files import new_file
    from data.nifti import write_nifti

    if not options.dst.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{options.dst}: want a name that ends in .nii or .nii.gz")
    series, skipped = find_volumes([options.src])
    if options.series is not None:
        series = [one for one in series if one.uid == options.series]
        if not series:
            raise ValueError(f"{options.src}: no series {options.series} in it")
    if len(series) > 1:
        named = ", ".join(f"{one.uid} ({counted(len(one.files), 'file')})" for one in series[:5])
        raise ValueError(f"{options.src}: holds {len(series)} series; name one by --series: {named}{', ...' if len(series) > 5 else ''}")
    for what in skipped:
        print(f"skipped {what.file}: {what.reason}", file=sys.stderr)
    volume = read_volume(series[0])
    for note in volume.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.strict and (skipped or volume.notes):
        raise ValueError(f"{options.src}: --strict: {len(skipped)} files left out, {len(volume.notes)} slices stored twice")
    with new_file(options.dst) as file:
        write_nifti(volume.hu, volume.affine, file)
    spacing = " x ".join(f"{mm:g}" for mm in reversed(volume.spacing_mm))
    print(
        f"{options.dst}: {' x '.join(map(str, reversed(volume.hu.shape)))} voxels of {spacing} mm, {volume.hu.min()} to {volume.hu.max()} HU"
    )
    thickness = volume.acquisition.slice_thickness_mm if volume.acquisition else None
    if thickness and abs(thickness - volume.spacing_mm[0]) > 0.1:
        print(f"  note: slices are {thickness:g} mm thick (SliceThickness), {volume.spacing_mm[0]:g} mm apart")
