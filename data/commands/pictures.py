"""Makes patches from gray pictures."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from data.command import program, progress
from data.commands.shared import patch_arguments, print_table, read_pseudonyms, read_window

DESCRIPTION = """Make patches from gray pictures: npz, PNG, JPEG.

SRC is a MedMNIST-style npz (train_images, train_labels, optional val_*, test_*, and *_groups as patients) or a folder
with one folder of PNG or JPEG files a class.

Whose a picture is, *_groups or --separator say; --patients each says that every other one is another patient's.
Without, the patients are not known: splits may share some, and no private run takes the folder.

--window says which HU black and white (255, or 65535 of 16 bits) stand for. Without it the gray levels are kept, marked as not HU.
Pictures are numbered in the order of their names as text (1, 10, 2), class by class; that number, from 0, is a patch's id.

  python -m data import luna16_patches.npz --out patches --window -1000,400 \\
         --classes non-nodule,nodule --background non-nodule --size 32
  python -m data import pictures-of-another-generator --out synthetic --window -1000,400 --synthetic true"""


def add_arguments(parser) -> None:
    """Its arguments and options."""
    parser.add_argument("src", type=str, help="npz file, or folder of class folders")
    patch_arguments(parser, size=0)
    parser.add_argument("--window", type=str | None, default=None, help="HU of black and white, low,high")
    parser.add_argument("--spacing", type=float | None, default=None, help="mm between pixels after --size, if known")
    parser.add_argument("--classes", type=str | None, default=None, help="names of an npz file's labels 0,1,..., with commas")
    parser.add_argument("--background", type=str | None, default=None, help="the class that is lesion-free")
    parser.add_argument("--separator", type=str | None, default=None, help="a file name's part before it is the patient")
    parser.add_argument("--synthetic", type=bool, default=False, help="true: a generator made them; for python -m evaluate PATCHES OUT")


def run(options) -> None:
    """Makes the patch folder and prints what is in it. Raises ValueError or OSError for what a user can mend."""
    from data.export import write_folder_preview
    from data.files import new_folder
    from data.patches import check_licence
    from data.pictures import ImportConfig, import_pictures

    if (options.size and options.size < 8) or (options.spacing is not None and options.spacing <= 0):
        raise ValueError("want --size >= 8, or 0 to keep the pictures', and --spacing > 0")
    config = ImportConfig(
        window=None if options.window is None else read_window(options.window), size=options.size or None, spacing_mm=options.spacing,
        classes=None if options.classes is None else tuple(name.strip() for name in options.classes.split(",")),
        background=options.background, separator=options.separator, seed=options.seed,
        validation=options.validation, test=options.test, one_each=options.patients == "each", licence=check_licence(options.licence),
        synthetic=options.synthetic,
    )  # fmt: skip
    pseudonyms = read_pseudonyms(options.key)
    with new_folder(options.out) as folder:
        writer = import_pictures(Path(options.src), folder, config, pseudonyms, lambda items, total: progress(items, "pictures", total))
        write_folder_preview(folder)
    patches, patients = writer.patches.total(), len(writer.patients)
    made = f"{patches} synthetic patches" if options.synthetic else f"{patches} patches of {patients} patients"
    print(f"{options.out}: {made}; look at {options.out}/preview.png")
    if not options.synthetic:
        print_table(writer.patches)
    if not writer.spec.patients_known:
        print("  note: patients are not known, each picture counts as one; give *_groups or --separator, or --patients each if that is so")
    if config.window is None:
        print("  note: the HU window is unknown, so these are gray levels, not HU; give --window to change that")
    print(
        f"next: python -m evaluate REAL_PATCHES {quote(options.out)} --out report"
        if options.synthetic
        else f"next: python -m data report {quote(options.out)}\nthen: {program('train')} --data {quote(options.out)} --out run"
    )
