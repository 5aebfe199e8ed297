"""`python sample.py`: draws synthetic patches from runs, as a patch folder and as PNG, NIfTI and DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import lesiongan  # noqa: F401  first: it ends with one line where another's package has the name of one of these
from data.command import command_parser, run_command
from gan.commands import sample_into, sample_verify
from gan.commands.sample_request import drawing_of, models_of, refuse_beside, spec_of, warn_of_licence
from gan.commands.sample_writing import draw_all, processes_of
from gan.commands.shared import version

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from data.patches import PatchSpec

FORMATS = ("png", "nifti", "dicom", "seg")

DESCRIPTION = """Draw synthetic lesion patches from a trained run: one patch a seed.
A sample depends on the model, its seed and what it is asked for only, so it can be drawn again at any time.

  python sample.py --run run --out synthetic --seeds 0-255 --format png,nifti,dicom
  python sample.py --run run --out three --seeds 7,19,42 --format dicom,seg
  python sample.py --run run --out rare --class ground_glass --diameter 6-12 --seeds 0-99     of a model that can be asked
  python sample.py --run run --out alike --match patches --seeds 0-999       classes and diameters as real training lesions have them
  python sample.py --run run --out filled --match patches --fill 500         so many that each class has 500, real and synthetic
  python sample.py --run run --out fine --trunc 1.5 --quality 0.8 --dissimilar-to patches     the likeliest, best, and no near-copies
  python sample.py --run context --backgrounds patches --out composites      lesions drawn into lesion-free patches
  python sample.py --run A --run B --shares 2,1 --out both                   two runs, or several checkpoints of one (--step 500,1000)
  python sample.py --run run --verify synthetic                              draws some of them again and compares bytes
  python sample.py --run run --out moving --pictures true                    also strips from seed to seed, and an animation that loops
  python sample.py --run run --export model.onnx                             for machines without torch
  python sample.py --run context-3d --into SERIES --count 3 --class solid --diameter 6-12 --seeds 0-9 --out scans    into a whole scan

Where a diameter is asked for, or matched, it is measured in the sample, and a sample that misses it is drawn again (with --into it is
measured only), as is a lesion that cannot be seen in the anatomy it was drawn into: what was turned down is counted. In the output: a patch folder (dataset.json, patches.csv, shards) that `python -m evaluate` reads, samples.csv (what each
was drawn for and what was measured), sampling.json (models, settings, what was turned down), preview.png, and a folder for each format:
  png    16-bit gray, level = HU + 2048       nifti  with spacing       dicom  CT images marked as synthetic       seg  their lesions

--into sets lesions into a CT series: a series of DICOM for each seed, every voxel outside the lesions as it was, with annotations.csv
(as LUNA16's; the scan's own are not in it), a segmentation of each lesion and lesions.csv. It takes a run of train.py --context.on true on cubes (prepare --dims 3).

Interrupted, the same command goes on where it stopped, but with --into, which leaves nothing. Exit codes: 0 done, 1 --verify found a difference, 2 bad input,
130 or 143 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Reads the command line; draws and writes, verifies or exports."""
    options = _options(arguments)
    formats = _formats(options.format)
    sample_into.check(options, formats)
    if options.trunc is not None and not options.trunc > 0:
        raise ValueError(f"--trunc {options.trunc:g}: want a number of standard deviations above 0, such as 1.5")
    if options.verify:
        return sample_verify.run(options)
    if options.export:
        return _export(options)
    if not options.out:
        raise ValueError("--out is missing: the folder to make")
    if options.into:
        return sample_into.run(options)
    processes = processes_of(options)  # before models are placed: each process has a GPU of its own
    try:
        drawing, spec = drawing_of(options)
        if not processes or processes.first:
            warn_of_licence(drawing.models)
        _check_formats(formats, spec)
        draw_all(options, drawing, spec, formats, processes)
    finally:
        if processes:
            processes.close()
    return 0


def _options(arguments: Sequence[str]) -> Namespace:
    parser = command_parser("python sample.py", DESCRIPTION)
    parser.add_argument(
        "--run",
        "--model",
        type=str,
        action="append",
        required=True,
        help="run folder of train.py; several may be given (torchrun needs --model)",
    )
    parser.add_argument("--out", type=str | None, default=None, help="folder to make")
    parser.add_argument(
        "--seeds",
        type=str | None,
        default=None,
        help="such as 7,19,100-120; 0-255 where none are given, with --into 0; with --fill the first seed",
    )
    parser.add_argument(
        "--format",
        type=str | None,
        default=None,
        help="png (where none is given), nifti, dicom, seg (with dicom), with commas, or none; with --into dicom and seg, and nifti if named",
    )
    parser.add_argument(
        "--class",
        type=str,
        default="natural",
        help="class to draw; natural: as often as in training (of a private run, unknown: equally often), balanced: equally often",
    )
    parser.add_argument(
        "--diameter",
        type=str,
        default="natural",
        help="mm, such as 8 (within a fifth or a voxel) or 6-12, as measured in the sample; natural: any",
    )
    parser.add_argument(
        "--match", type=str | None, default=None, help="patch folder: classes and measured diameters as its training lesions have them"
    )
    parser.add_argument("--fill", type=int | None, default=None, help="with --match: so many samples that each class has this many lesions")
    parser.add_argument("--reject", type=bool, default=True, help="false: keep samples whose measured diameter misses")
    parser.add_argument("--trunc", type=float | None, default=None, help="keep latents within this many standard deviations, such as 1.5")
    parser.add_argument(
        "--quality", type=float | None, default=None, help="keep this share of samples, the best by the critic, such as 0.8"
    )
    parser.add_argument(
        "--backgrounds",
        type=str | None,
        default=None,
        help="patch folder, for a model that draws lesions into lesion-free patches (train.py --context.on true): into those of its training "
        "patients",
    )
    parser.add_argument(
        "--dissimilar-to",
        type=str | None,
        default=None,
        help="patch folder: turn down what is nearer to a training lesion of it than 99 of 100 of its validation patients' lesions are",
    )
    parser.add_argument(
        "--anatomy",
        type=Literal["cohort", "public", "phantom", "unknown"],
        default="unknown",
        help="whose anatomy lesions are drawn into, to be stated with the samples: patients of the cohort trained on, of public data, or phantoms",
    )
    parser.add_argument(
        "--step",
        type=str,
        default="best",
        help="checkpoint to use, or several with commas, of those that the run keeps, its best and its newest; best: nearest to validation "
        "patients, or the newest where none was compared; newest",
    )
    parser.add_argument(
        "--shares", type=str | None, default=None, help="of the models (runs, and their steps), such as 2,1; default: equal"
    )
    parser.add_argument("--average", type=bool, default=True, help="false: the last weights, not their moving average")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to compute")
    parser.add_argument("--devices", type=int, default=1, help="processes that draw, one a GPU; or start them by torchrun")
    parser.add_argument("--processes", type=int, default=0, help="that write files; 0: one a core where there are many files")
    parser.add_argument("--pictures", type=bool, default=False, help="true: also strips.png, walk.gif and growth.png")
    parser.add_argument("--verify", type=str | None, default=None, help="folder of samples to compare with what the run draws now")
    parser.add_argument("--export", type=str | None, default=None, help="ONNX file to make")
    parser.add_argument("--into", type=str | None, default=None, help="folder, zip archive or file with one CT series to set lesions into")
    parser.add_argument("--count", type=int, default=1, help="with --into: lesions for each seed")
    parser.add_argument(
        "--lesions",
        type=str | None,
        default=None,
        help="with --into: list of the lesions there, as data prepare reads it, to stay away from",
    )
    options = parser.parse_args(list(arguments))
    for job in ("verify", "export"):
        if options[job]:
            refuse_beside(job, options, dict.fromkeys(("out", "seeds", "format", "match", "fill", "trunc", "quality", "dissimilar_to")))
    options.seeds = options.seeds or ("0" if options.into else "0-255")
    options.format = options.format or ("dicom,seg" if options.into else "png")
    return options


def _export(options: Namespace) -> int:
    """Writes the model as ONNX and checks that it draws the same."""
    from data.files import new_file
    from gan.onnx_export import check_onnx, export_onnx

    if not options.export.endswith(".onnx"):
        raise ValueError(f"--export {options.export}: want a file that ends in .onnx")
    models = models_of(options)
    if any(model.context for model in models):
        raise ValueError("--export: a model that draws lesions into anatomy cannot be exported; export one of whole patches")
    if len(models) > 1:
        raise ValueError("--export takes one model; export them one by one")
    (model,) = models
    window = spec_of(options.run[0], model).window
    with new_file(options.export) as file:
        export_onnx(model, window, file, {"version": version(), "licence": model.trained_on.get("licence") or "not stated"})
        agreed = check_onnx(model, file, window)
    print(
        f"{options.export}: ONNX Runtime draws the same {agreed.samples} samples, {agreed.equal_share:.3%} of pixels equal, "
        f"none further apart than {agreed.largest_hu} HU"
    )
    print("its inputs, and how z follows from a seed, stand in its metadata; docs/sampling.md has an example without torch")
    return 0


def _formats(text: str) -> list[str]:
    formats = [] if text == "none" else text.split(",")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or len(set(formats)) < len(formats) or ("seg" in formats and "dicom" not in formats):
        raise ValueError(f"--format {text!r}: want {', '.join(FORMATS)} (seg beside dicom), with commas, or none")
    return formats


def _check_formats(formats: Sequence[str], spec: PatchSpec) -> None:
    if "dicom" in formats and spec.unit != "HU":
        raise ValueError("dicom needs HU, and this model was trained on gray levels; import its pictures with --window")
    if {"dicom", "nifti"} & set(formats) and spec.spacing_mm is None:
        print("note: the patches' spacing was never stated; 1 mm is written to dicom and nifti")
    if "png" in formats and len(spec.shape) == 3:
        raise ValueError("png holds 2-D patches only, and this model draws 3-D ones; use --format nifti,dicom")


if __name__ == "__main__":
    run_command(main)
