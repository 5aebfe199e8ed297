"""Adds changed copies of the training patches."""

from __future__ import annotations

from shlex import quote

from data.augment import AugmentConfig
from data.command import program, progress
from data.commands.shared import print_table, read_range

DESCRIPTION = """Add changed copies of the training patches to a patch folder's.

OUT holds PATCHES as they were, and of each training patch --factor - 1 copies, moved (flip, turn, zoom, crop) and seen
as another scanner would (kernel, noise, HU scale).

Validation and test patches are never changed: patients held out must stay as they were scanned.
augmentation.csv says how each copy was made; look at augmentation.png, sources left, copies beside them.
Same seed, same copies, whatever --factor and --processes are. 0 turns a change off.

  python -m data augment patches --factor 3 --out augmented --classes nodule
  python -m data augment patches --factor 3 --out moved --noise-hu 0 --blur-mm 0 --sharpen 0 --hu-shift 0 --hu-scale 0"""

DEFAULTS = AugmentConfig()


def add_arguments(parser) -> None:
    """Its arguments and options."""
    parser.add_argument("patches", type=str, help="patch folder")
    parser.add_argument("--out", type=str, required=True, help="patch folder to make")
    parser.add_argument("--factor", type=int, default=3, help="each training patch once as it was, the other times changed")
    parser.add_argument("--classes", type=str | None, default=None, help="the classes to copy, with commas; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-flip", action="store_true", help="do not mirror")
    parser.add_argument("--no-turn", action="store_true", help="do not turn by quarters of a circle")
    parser.add_argument("--rotate-deg", type=float, default=DEFAULTS.rotate_deg, help="turn by up to this angle either way")
    parser.add_argument("--zoom", type=str, default="{:g},{:g}".format(*DEFAULTS.zoom), help="magnification, low,high; 1,1 for none")
    parser.add_argument("--crop", type=float, default=DEFAULTS.crop, help="leave out up to this share of the side, resize the rest back")
    parser.add_argument("--noise-hu", type=float, default=DEFAULTS.noise_hu, help="noise of up to this standard deviation")
    parser.add_argument("--blur-mm", type=float, default=DEFAULTS.blur_mm, help="softer kernel: blur of up to this standard deviation")
    parser.add_argument("--sharpen", type=float, default=DEFAULTS.sharpen, help="sharper kernel: detail added with up to this weight")
    parser.add_argument("--hu-shift", type=float, default=DEFAULTS.hu_shift, help="HU added, up to this either way")
    parser.add_argument("--hu-scale", type=float, default=DEFAULTS.hu_scale, help="HU stretched by up to this share either way")
    parser.add_argument("--processes", type=int, default=1, help="more pay for cubes, and for very many patches; 0: one a core")


def run(options) -> None:
    """Copies a patch folder, adds changed copies, and prints what was added. Raises ValueError or OSError for what a user can mend."""
    from data.augment_folder import augment_folder
    from data.files import new_folder
    from data.patches import PatchFolder

    if options.seed < 0 or options.processes < 0:
        raise ValueError("want --seed >= 0 and --processes >= 0")
    config = AugmentConfig(
        flip=not options.no_flip, turn=not options.no_turn, rotate_deg=options.rotate_deg, zoom=read_range("zoom", options.zoom, ", such as 0.95,1.05"), crop=options.crop,
        noise_hu=options.noise_hu, blur_mm=options.blur_mm, sharpen=options.sharpen,
        hu_shift=options.hu_shift, hu_scale=options.hu_scale,
    )  # fmt: skip
    classes = None if options.classes is None else [name.strip() for name in options.classes.split(",")]
    source = PatchFolder.open(options.patches)
    source.verify()
    with new_folder(options.out) as folder:
        patches = augment_folder(
            source, folder, config, options.factor, options.seed, classes, options.processes,
            lambda items, total: progress(items, "patches", total),
        )  # fmt: skip
    changed = patches.total() - len(source)
    print(f"{options.out}: {len(source)} patches as they were and {changed} changed copies; look at {options.out}/augmentation.png")
    print_table(patches)
    print(f"next: {program('train')} --data {quote(options.out)} --out run")
