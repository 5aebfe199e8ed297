"""Cuts patches out of a cohort of scans."""

from __future__ import annotations

import os
import sys
from collections import Counter
from functools import partial
from shlex import quote

from data.command import program, progress
from data.commands.shared import counted, patch_arguments, print_table, read_pseudonyms, read_window

DESCRIPTION = """Cut patches of lesions, and of lesion-free lung, out of a cohort of scans.

SRC: folders, files or zip archives, any depth: DICOM series (also enhanced multi-frame), NIfTI, MetaImage.
What cannot be trusted is left out, told, counted, and listed in skipped.csv; --strict makes that an error.

--lesions, told apart by what is in it:
  a CSV             seriesuid,coordX,coordY,coordZ,diameter_mm[,class], as LUNA16's annotations.csv, or its candidates.csv;
                    seriesuid is the SeriesInstanceUID, or the file's name without suffix for NIfTI and MetaImage.
                    Also series or image, x,y,z, diameter, label, patient_id. LPS mm unless --coordinates says otherwise.
  a CSV with masks  a column mask beside image: files relative to the CSV's folder; a lesion is a connected component
  a folder          of masks named as the scans, of DICOM-SEG objects, or of LIDC-IDRI XML files (or one such file)
A row of class background is a lesion-free place.

Patients get pseudonyms by a keyed hash and are split by patient into train, validation and test. A DICOM study
without PatientID, or a NIfTI or MetaImage file, counts as a patient unless the CSV's patient_id says whose it is;
--patients each says that it is one.

Stopped or killed, the same command goes on where it was. Any number of --processes gives the same bytes.

  python -m data prepare scans --lesions annotations.csv --out patches --size 64 --spacing 1.0
  python -m data prepare images --lesions nodules.csv --out patches --dims 3 --size 32 \\
         --class-from texture --classes 1=ground_glass,2=part_solid,3=part_solid,4=solid,5=solid"""


def add_arguments(parser) -> None:
    """Its arguments and options."""
    parser.add_argument("src", type=str, nargs="+", help="folders, files or zip archives with CT series")
    parser.add_argument("--lesions", type=str, required=True, help="lesion list: CSV, XML, masks, DICOM-SEG (see above)")
    patch_arguments(parser, size=64)
    parser.add_argument("--spacing", type=float, default=1.0, help="mm between a patch's pixels")
    parser.add_argument("--dims", type=int, default=2, help="2 for axial patches, 3 for cubes")
    parser.add_argument("--window", type=str, default="-1000,400", help="HU range shown to networks, low,high")
    parser.add_argument("--slices", type=int, default=1, help="axial patches a lesion, within the middle half of it")
    parser.add_argument("--background", type=int, default=1, help="lesion-free patches for each lesion; 0 for none")
    parser.add_argument(
        "--coordinates",
        type=str,
        default="lps",
        help="of a CSV: lps or ras in mm, or voxel: column, row, slice from 0, the lowest along the normal (mostly the feet), as in `convert`'s NIfTI",
    )
    parser.add_argument("--class-from", type=str | None, default=None, help="column, or LIDC characteristic, that holds the class")
    parser.add_argument("--classes", type=str | None, default=None, help="names for its values, or for a mask's: 1=solid,2=cystic")
    parser.add_argument("--readers", type=int, default=3, help="LIDC: readers who must have marked a nodule")
    parser.add_argument("--strict", action="store_true", help="leave nothing out: whatever cannot be used is an error")
    parser.add_argument("--processes", type=int, default=0, help="0: one a core")
    parser.add_argument("--scheduler", type=str | None, default=None, help="of a Dask cluster that sees the same files: tcp://head:8786")


def run(options) -> None:
    """Makes the patch folder and prints what was cut, what was left out and why. Raises ValueError or OSError for what a user can mend."""
    from data.cohort import Workers, prepare
    from data.cutting import CutConfig
    from data.export import write_folder_preview
    from data.files import resumable_folder
    from data.lesion_list import ListConfig
    from data.lesions import read_lesions
    from data.patches import check_licence

    for name, least in (("size", 8), ("slices", 1), ("background", 0), ("processes", 0)):
        if options[name] < least:
            raise ValueError(f"--{name} {options[name]}: want {least} or more")
    if options.dims not in (2, 3) or not 0 < options.spacing < 100:
        raise ValueError(f"--dims {options.dims} --spacing {options.spacing:g}: want 2 or 3 dimensions, and a spacing above 0 mm")
    config = CutConfig(
        shape=(options.size,) * options.dims, spacing_mm=options.spacing, window=read_window(options.window), slices=options.slices,
        background=options.background, seed=options.seed, validation=options.validation, test=options.test,
    )  # fmt: skip
    licence = check_licence(options.licence)
    src, listed, out = options.src, options.lesions, options.out
    if options.scheduler:  # whose workers are in folders of their own
        *src, listed, out = (place and os.path.abspath(place) for place in (*src, listed, out))
    lesions = read_lesions(listed, ListConfig(options.coordinates, options.class_from, _classes(options.classes), options.readers))
    pseudonyms = read_pseudonyms(options.key)
    workers = Workers(options.processes, options.scheduler)
    with resumable_folder(out) as (folder, parts):
        outcome = prepare(
            src, lesions, folder, parts, config, pseudonyms, licence=licence, one_each=options.patients == "each",
            workers=workers, strict=options.strict, warn=partial(print, file=sys.stderr), track=progress,
        )  # fmt: skip
        write_folder_preview(folder)
    print(
        f"{options.out}: {counted(outcome.patches.total(), 'patch')} of {counted(outcome.patients, 'patient')}, {outcome.series} series; "
        f"look at {options.out}/preview.png"
    )
    print_table(outcome.patches)
    for what, count in outcome.notes.items():
        print(f"  note: {what}" if what[0].isdigit() else f"  note: {count} x {what}")
    left_out: Counter[str] = Counter()
    for skip in outcome.skips:
        left_out[f"{skip.kind}: {skip.reason}"] += skip.count
    for what, count in left_out.items():
        print(f"  left out: {count} x {what}")
    if left_out:
        print(f"  each of them: {options.out}/skipped.csv")
    out = quote(options.out)
    print(f"next: python -m data report {out}\nthen: {program('train')} --data {out} --out run")


def _classes(text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    for value, sign, _ in pairs:
        if not sign or not value.strip():
            raise ValueError(f"--classes {text}: want value=name pairs with commas, such as 1=solid,2=cystic")
    return tuple((value.strip(), name.strip()) for value, _, name in pairs)
