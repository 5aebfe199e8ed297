"""`python -m data`: the commands that make, convert, cut and import CT data."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.command import command_parser, progress, run_command

DESCRIPTION = """Turn CT into patches of HU that a GAN can train on.

  phantom   make a procedural chest-CT cohort: real DICOM series and a lesion list
  prepare   cut lesion patches out of DICOM, NIfTI or MetaImage scans
  import    make patches from an npz file or from folders of PNG or JPEG pictures
  convert   write one series as HU NIfTI, with its true geometry

A worked example, from nothing to patches:
  python -m data phantom --out phantom --patients 8 --seed 0
  python -m data prepare phantom --lesions phantom/annotations.csv --out patches --size 32 --spacing 1.25

Exit codes: 0 done, 2 bad input (one line says which file and why), 130 or 143 interrupted, nothing left behind."""

PHANTOM = """Write a cohort of procedural chest CTs: one DICOM series a patient, and annotations.csv in
LUNA16's format with the lesions' true centres, diameters and classes (solid, ground_glass, cystic).
The images say that they are synthetic. Same seed, same bytes; patient n does not depend on --patients.

  python -m data phantom --out phantom --patients 8 --seed 0"""

CONVERT = """Write one CT series as an int16 HU NIfTI file with its geometry as stored.
SRC is a folder of DICOM slices holding one series, or a NIfTI or MetaImage file.
Refused, with the file and the cause: gaps, tilts, mixed sizes, missing positions or rescale.

  python -m data convert scans/patient-7 patient-7.nii.gz"""

PREPARE = """Cut patches around the lesions of a list out of a cohort, and lesion-free ones from inside the lung.

SRC: folders or files, any depth: DICOM series, NIfTI, MetaImage.
--lesions: LUNA16's annotations.csv: seriesuid,coordX,coordY,coordZ,diameter_mm in LPS millimetres, with an
optional column class. seriesuid is the SeriesInstanceUID, or the file's stem for NIfTI and MetaImage.
Patients get pseudonyms by a keyed hash and are split by patient into train, validation and test.

  python -m data prepare scans --lesions annotations.csv --out patches --size 64 --spacing 1.0"""

IMPORT = """Make patches from gray pictures: SRC is a MedMNIST-style npz (train_images, train_labels, optional val_*, test_*,
and *_groups as patients) or a folder with one folder of PNG or JPEG files a class.

--window says which HU black and white stand for. Without it the gray levels are kept, marked as not HU.

  python -m data import luna16_patches.npz --out patches --window -1000,400 \\
         --classes non-nodule,nodule --background non-nodule --size 32"""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line and runs one of the four commands."""
    parser = command_parser("python -m data", DESCRIPTION)
    commands = parser.add_subcommands(dest="command", title="commands", metavar="COMMAND")

    phantom = command_parser("python -m data phantom", PHANTOM)
    phantom.add_argument("--out", type=str, required=True, help="folder to make")
    phantom.add_argument("--patients", type=int, default=8)
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--lesions", type=int, default=12, help="lesions a patient")
    phantom.add_argument("--matrix", type=int, default=256, help="pixels along a side of a slice")
    phantom.add_argument("--slice-mm", type=float, default=5.0, help="distance of slices in mm")
    phantom.add_argument("--processes", type=int, default=0, help="0: one a core")

    convert = command_parser("python -m data convert", CONVERT)
    convert.add_argument("src", type=str, help="one series: folder or file")
    convert.add_argument("dst", type=str, help="NIfTI file to write, .nii or .nii.gz")

    prepare = command_parser("python -m data prepare", PREPARE)
    prepare.add_argument("src", type=str, nargs="+", help="folders or files with CT series")
    prepare.add_argument("--lesions", type=str, required=True, help="lesion list (CSV)")
    _patch_arguments(prepare, size=64)
    prepare.add_argument("--spacing", type=float, default=1.0, help="mm between a patch's pixels")
    prepare.add_argument("--dims", type=int, default=2, help="2 for axial patches, 3 for cubes")
    prepare.add_argument("--window", type=str, default="-1000,400", help="HU range shown to networks, low,high")
    prepare.add_argument("--slices", type=int, default=1, help="axial patches a lesion, within the middle half of it")
    prepare.add_argument("--background", type=int, default=1, help="lesion-free patches for each lesion; 0 for none")
    prepare.add_argument("--processes", type=int, default=0, help="0: one a core")

    importing = command_parser("python -m data import", IMPORT)
    importing.add_argument("src", type=str, help="npz file, or folder of class folders")
    _patch_arguments(importing, size=0)
    importing.add_argument("--window", type=str | None, default=None, help="HU of black and white, low,high")
    importing.add_argument("--spacing", type=float | None, default=None, help="mm between pixels after --size, if known")
    importing.add_argument("--classes", type=str | None, default=None, help="names of an npz file's labels 0,1,..., with commas")
    importing.add_argument("--background", type=str | None, default=None, help="the class that is lesion-free")
    importing.add_argument("--separator", type=str | None, default=None, help="a file name's part before it is the patient")

    for name, command in (("phantom", phantom), ("convert", convert), ("prepare", prepare), ("import", importing)):
        commands.add_subcommand(name, command, help=(command.description or "").splitlines()[0].rstrip("."))
    options = parser.parse_args(list(arguments))
    run = {"phantom": _phantom, "convert": _convert, "prepare": _prepare, "import": _import}[options.command]
    run(options[options.command])


def _patch_arguments(parser, size: int) -> None:
    parser.add_argument("--out", type=str, required=True, help="patch folder to make")
    parser.add_argument(
        "--size", type=int, default=size, help="pixels along a side of a patch" + ("" if size else "; 0 keeps the pictures'")
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the background patches")
    parser.add_argument("--validation", type=float, default=0.15, help="share of the patients held out to choose by")
    parser.add_argument("--test", type=float, default=0.25, help="share of the patients held out to report on")
    parser.add_argument(
        "--key",
        type=str | None,
        default=None,
        help="file with the pseudonym key, made if absent; default $LESIONGAN_KEY or ~/.config/lesiongan/pseudonym.key",
    )


def _phantom(options) -> None:
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
    print(f"next: python -m data prepare {options.out} --lesions {options.out}/annotations.csv --out patches --size 32 --spacing 1.25")


def _convert(options) -> None:
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


def _prepare(options) -> None:
    from data.cohort import CutConfig, prepare
    from data.export import write_folder_preview
    from data.files import new_folder
    from data.lesions import read_annotations

    if options.dims not in (2, 3) or options.size < 8 or options.spacing <= 0 or options.slices < 1 or options.background < 0:
        raise ValueError("want --dims 2 or 3, --size >= 8, --spacing > 0, --slices >= 1 and --background >= 0")
    config = CutConfig(
        shape=(options.size,) * options.dims, spacing_mm=options.spacing, window=_window(options.window), slices=options.slices,
        background=options.background, seed=options.seed, validation=options.validation, test=options.test,
    )  # fmt: skip
    lesions = read_annotations(options.lesions)
    pseudonyms = _pseudonyms(options.key)
    with new_folder(options.out) as folder:
        outcome = prepare(
            options.src, lesions, folder, config, pseudonyms, processes=options.processes,
            warn=partial(print, file=sys.stderr), track=lambda items, total: progress(items, "series", total),
        )  # fmt: skip
        write_folder_preview(folder)
    print(
        f"{options.out}: {outcome.patches.total()} patches of {len(outcome.patients)} patients, {outcome.series} series; look at {options.out}/preview.png"
    )
    _print_table(outcome.patches)
    for what, count in outcome.notes.items():
        print(f"  note: {count} x {what}")
    print(f"next: python train.py --data {options.out} --out run")


def _import(options) -> None:
    from data.export import write_folder_preview
    from data.files import new_folder
    from data.pictures import ImportConfig, import_pictures

    if (options.size and options.size < 8) or (options.spacing is not None and options.spacing <= 0):
        raise ValueError("want --size >= 8, or 0 to keep the pictures', and --spacing > 0")
    config = ImportConfig(
        window=None if options.window is None else _window(options.window), size=options.size or None, spacing_mm=options.spacing,
        classes=None if options.classes is None else tuple(name.strip() for name in options.classes.split(",")),
        background=options.background, separator=options.separator, seed=options.seed,
        validation=options.validation, test=options.test,
    )  # fmt: skip
    pseudonyms = _pseudonyms(options.key)
    with new_folder(options.out) as folder:
        writer = import_pictures(Path(options.src), folder, config, pseudonyms, lambda items, total: progress(items, "pictures", total))
        patients = {row.patient for row in writer.rows}
        write_folder_preview(folder)
        table = Counter((row.split, row.label) for row in writer.rows)
    print(f"{options.out}: {table.total()} patches of {len(patients)} patients; look at {options.out}/preview.png")
    _print_table(table)
    if len(patients) == table.total():
        print("  note: every picture counts as its own patient; give *_groups or --separator where patients have several")
    if config.window is None:
        print("  note: the HU window is unknown, so these are gray levels, not HU; give --window to change that")
    print(f"next: python train.py --data {options.out} --out run")


def _window(text: str) -> tuple[float, float]:
    from data.preprocess import check_window

    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"window {text!r}: want low,high in HU, such as -1000,400") from None
    return check_window((low, high))


def _pseudonyms(key: str | None):
    from data.pseudonyms import Pseudonyms, default_key_file, read_or_make_key

    return Pseudonyms(read_or_make_key(Path(key) if key else default_key_file()))


def _print_table(patches: Counter[tuple[str, str]]) -> None:
    labels = sorted({label for _, label in patches})
    for split in ("train", "validation", "test"):
        counts = ", ".join(f"{patches[split, label]} {label}" for label in labels if patches[split, label])
        print(f"  {split + ':':<12}{counts or 'none'}")


if __name__ == "__main__":
    run_command(main)
