"""`python sample.py`: draws synthetic patches from a run, as a patch folder and as PNG, NIfTI and DICOM."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from data.command import command_parser, progress, run_command

MOST_SEEDS = 10_000_000

DESCRIPTION = """Draw synthetic lesion patches from a trained run: one patch a seed.
Sample k depends on the model and seed k only, so a seed can be drawn again at any time.

  python sample.py --run run --out synthetic --seeds 0-255 --format png,nifti,dicom
  python sample.py --run run --out three --seeds 7,19,42 --format dicom
  python sample.py --run run --out rare --class ground-glass --diameter 6-12 --seeds 0-99     of a model that can be asked

In the output: a patch folder (dataset.json, patches.csv, shards) that `python -m evaluate` reads, preview.png,
sampling.json (model hash and settings), and a folder for each format:
  png    16-bit gray, level = HU + 2048       nifti  with spacing       dicom  CT images marked as synthetic

Exit codes: 0 done, 2 bad input, 130 or 143 interrupted, nothing left behind."""


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, draws, writes."""
    parser = command_parser("python sample.py", DESCRIPTION)
    parser.add_argument("--run", type=str, required=True, help="run folder of train.py")
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--seeds", type=str, default="0-255", help="such as 0-255 or 7,19,100-120")
    parser.add_argument("--format", type=str, default="png", help="png, nifti, dicom, with commas, or none")
    parser.add_argument(
        "--class",
        type=str,
        default="natural",
        help="class to draw; natural: as often as in training (of a private run, unknown: equally often), balanced: equally often",
    )
    parser.add_argument("--diameter", type=str, default="natural", help="mm, such as 8 or 6-12; natural: as in training")
    parser.add_argument(
        "--step",
        type=int | Literal["best", "newest"],
        default="best",
        help="checkpoint to use; best: nearest to validation patients, or the newest where none was compared",
    )
    parser.add_argument("--average", type=bool, default=True, help="false: the last weights, not their moving average")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to compute")
    options = parser.parse_args(list(arguments))

    from data.export import PNG_OFFSET, write_folder_preview
    from data.files import new_folder
    from data.patches import PatchWriter
    from gan.sampling import load_model, sample

    seeds = _seeds(options.seeds)
    formats = _formats(options.format)
    model = load_model(
        Path(options.run), None if options.step == "newest" else options.step, average=options.average, device=options.device,
        warn=lambda line: print(f"warning: {line}", file=sys.stderr),
    )  # fmt: skip
    spec = _spec(options.run, model.trained_on, bool(model.conditions.classes))
    labels, diameters = _asked_for(model, seeds, options["class"], options.diameter, spec.classes)
    condition = model.conditions.encode(labels, diameters) if model.conditions.size else None
    if "dicom" in formats and spec.unit != "HU":
        raise ValueError("dicom needs HU, and this model was trained on gray levels; import its pictures with --window")
    if {"dicom", "nifti"} & set(formats) and spec.spacing_mm is None:
        print("note: the patches' spacing was never stated; 1 mm is written to dicom and nifti")
    if "png" in formats and len(spec.shape) == 3:
        raise ValueError("png holds 2-D patches only, and this model draws 3-D ones; use --format nifti,dicom")
    manifest = {
        "model_sha256": model.model_hash, "step": model.step, "average": options.average, "seeds": options.seeds, "samples": len(seeds), "class": options["class"], "diameter": options.diameter, "trained_on_sha256": model.trained_on.get("content_sha256"),
        "png_level": f"HU + {PNG_OFFSET}", "privacy": model.guarantee or "no guarantee: trained without differential privacy", "version": _version(),
    }  # fmt: skip
    with new_folder(options.out) as folder:
        writer = PatchWriter(folder, spec)
        for name in formats:
            (folder / name).mkdir()
        _write_all(folder, writer, formats, model, seeds, sample(model, seeds, condition), labels, diameters)
        writer.finish()
        write_folder_preview(folder)
        (folder / "sampling.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(f"{len(seeds)} synthetic patches in {options.out}, as {', '.join(['patch folder', *formats])}; look at {options.out}/preview.png")
    print(f"next: python -m evaluate REAL_PATCHES {options.out} --out report")


def _spec(run, trained_on, classes_known):
    """What the synthetic patches share, from what the model was trained on. Raises ValueError when that is incomplete."""
    from data.patches import PatchSpec

    try:
        classes, spacing, window = trained_on["classes"], trained_on["spacing_mm"], trained_on["window"]
        return PatchSpec(
            shape=tuple(trained_on["shape"]), spacing_mm=None if spacing is None else tuple(spacing), window=(window[0], window[1]),
            classes=tuple(classes) if classes_known or len(classes) == 1 else ("lesion",), unit=trained_on["unit"], origin="synthetic",
        )  # fmt: skip
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{run}: its checkpoint does not say what it was trained on ({error!r}); it is damaged or foreign") from None


def _asked_for(model, seeds, wanted: str, diameter: str, classes):
    """(labels, diameters in mm): what each seed is drawn for; NaN where the diameter does not matter.

    Raises ValueError for what the model cannot be asked for.
    """
    import numpy as np

    known, counts = model.conditions.classes, model.trained_on.get("class_counts", {})
    if wanted not in ("natural", "balanced", *known):
        raise ValueError(f"--class {wanted}: this model can be asked for {', '.join(known) or 'no class'}")
    if wanted in known or not known:
        labels = [wanted if known else classes[0]] * len(seeds)
    else:
        chances = np.array([counts.get(name, 0) if counts and wanted == "natural" else 1 for name in known], float)
        labels = [known[int(np.random.default_rng([seed, 1]).choice(len(known), p=chances / chances.sum()))] for seed in seeds]
    ends = re.fullmatch(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", diameter)
    if diameter != "natural" and not (model.conditions.diameter and ends and float(ends[1]) <= float(ends[2] or ends[1])):
        cannot = "" if model.conditions.diameter else "; this model cannot be asked for a diameter"
        raise ValueError(f"--diameter {diameter}: want mm, such as 8 or 6-12{cannot}")
    if not model.conditions.diameter:
        return labels, np.full(len(seeds), np.nan)
    between = model.trained_on.get("diameter_deciles_mm") or [5.0, 20.0]
    if ends:
        between = [float(ends[1]), float(ends[2] or ends[1])]
    places = [np.random.default_rng([seed, 2]).random() for seed in seeds]
    return labels, np.interp(places, np.linspace(0, 1, len(between)), between)


def _write_all(folder, writer, formats, model, seeds, batches, labels, diameters) -> None:
    """Writes every sample, in its shard and in every format."""
    from data.dicom_writing import Subject
    from data.export import write_patch_dicom, write_patch_nifti, write_png16
    from data.patches import Patch
    from data.preprocess import from_unit

    spec = writer.spec
    spacing = spec.spacing_mm or (1.0,) * len(spec.shape)
    drawn = (hu for batch in batches for hu in from_unit(batch[:, 0], spec.window))
    for seed, label, mm, hu in zip(seeds, labels, diameters, progress(drawn, "samples", len(seeds)), strict=True):
        name = f"seed-{seed:08d}"
        patient = f"synthetic-{seed:08d}"
        writer.add(Patch(hu, patient, name, label, None if math.isnan(mm) else float(mm), split="synthetic", id=name))
        if "png" in formats:
            write_png16(hu, folder / "png" / f"{name}.png")
        if "nifti" in formats:
            write_patch_nifti(hu, spacing, folder / "nifti" / f"{name}.nii.gz")
        if "dicom" in formats:
            subject = Subject(
                key=f"{model.model_hash} {seed}", name=f"SYNTHETIC^{seed:08d}", patient_id=patient.upper(),
                description=f"synthetic {label} patch", model=model.model_hash, version=_version(), window=spec.window,
            )  # fmt: skip
            write_patch_dicom(hu, spacing, subject, folder / "dicom" / name)


def _seeds(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]. Raises ValueError for anything else, doubles included."""
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if sum(max(one.stop - one.start, 0) for one in ranges) > MOST_SEEDS:
        raise ValueError(f"--seeds {text}: at most {MOST_SEEDS} at a time")
    seeds = [seed for one in ranges for seed in one]
    if None in parts or not all(ranges) or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text!r}: want whole numbers and ranges, each seed once, such as 0-255 or 7,19,100-120")
    return seeds


def _formats(text: str) -> list[str]:
    from data.export import FORMATS

    formats = [] if text == "none" else text.split(",")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or len(set(formats)) < len(formats):
        raise ValueError(f"--format {text!r}: want {', '.join(FORMATS)}, with commas, or none")
    return formats


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lesiongan")
    except PackageNotFoundError:
        return "source"


if __name__ == "__main__":
    run_command(main)
