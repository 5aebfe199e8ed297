"""Cuts patches out of a cohort of scans."""

from __future__ import annotations

import sys
from functools import partial

from data.command import progress
from data.commands.shared import patch_arguments, print_table, read_pseudonyms, read_window

DESCRIPTION = """Cut patches around the lesions of a list out of a cohort, and lesion-free ones from inside the lung.

SRC: folders or files, any depth: DICOM series, NIfTI, MetaImage.
--lesions: LUNA16's annotations.csv: seriesuid,coordX,coordY,coordZ,diameter_mm in LPS millimetres, with an
optional column class. seriesuid is the SeriesInstanceUID, or the file's stem for NIfTI and MetaImage.
Patients get pseudonyms by a keyed hash and are split by patient into train, validation and test.

  python -m data prepare scans --lesions annotations.csv --out patches --size 64 --spacing 1.0"""


def add_arguments(parser) -> None:
    parser.add_argument("src", type=str, nargs="+", help="folders or files with CT series")
    parser.add_argument("--lesions", type=str, required=True, help="lesion list (CSV)")
    patch_arguments(parser, size=64)
    parser.add_argument("--spacing", type=float, default=1.0, help="mm between a patch's pixels")
    parser.add_argument("--dims", type=int, default=2, help="2 for axial patches, 3 for cubes")
    parser.add_argument("--window", type=str, default="-1000,400", help="HU range shown to networks, low,high")
    parser.add_argument("--slices", type=int, default=1, help="axial patches a lesion, within the middle half of it")
    parser.add_argument("--background", type=int, default=1, help="lesion-free patches for each lesion; 0 for none")
    parser.add_argument("--processes", type=int, default=0, help="0: one a core")


def run(options) -> None:
    from data.cohort import CutConfig, prepare
    from data.export import write_folder_preview
    from data.files import new_folder
    from data.lesions import read_annotations

    if options.dims not in (2, 3) or options.size < 8 or options.spacing <= 0 or options.slices < 1 or options.background < 0:
        raise ValueError("want --dims 2 or 3, --size >= 8, --spacing > 0, --slices >= 1 and --background >= 0")
    config = CutConfig(
        shape=(options.size,) * options.dims, spacing_mm=options.spacing, window=read_window(options.window), slices=options.slices,
        background=options.background, seed=options.seed, validation=options.validation, test=options.test,
    )  # fmt: skip
    lesions = read_annotations(options.lesions)
    pseudonyms = read_pseudonyms(options.key)
    with new_folder(options.out) as folder:
        outcome = prepare(
            options.src, lesions, folder, config, pseudonyms, processes=options.processes,
            warn=partial(print, file=sys.stderr), track=lambda items, total: progress(items, "series", total),
        )  # fmt: skip
        write_folder_preview(folder)
    print(
        f"{options.out}: {outcome.patches.total()} patches of {len(outcome.patients)} patients, {outcome.series} series; look at {options.out}/preview.png"
    )
    print_table(outcome.patches)
    for what, count in outcome.notes.items():
        print(f"  note: {count} x {what}")
    print(f"next: python train.py --data {options.out} --out run")
