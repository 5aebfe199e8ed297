"""`python sample.py`: draws synthetic patches from runs, as a patch folder and as PNG, NIfTI and DICOM."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lesiongan  # noqa: F401  first: it ends with one line where another's package has the name of one of these
from data.command import command_parser, progress, run_command

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import Namespace

    from data.implanting import Draw
    from data.patches import PatchFolder, PatchSpec
    from data.placing import Order, Placed, Scan
    from data.synthetic import Part
    from gan.context import Backgrounds
    from gan.drawing import Check, Drawing
    from gan.orders import Likeness, Orders
    from gan.processes import Processes
    from gan.sampling import Model
    from gan.selection import Tally

MOST_SEEDS = 10_000_000
FORMATS = ("png", "nifti", "dicom", "seg")
VERIFIED = 16
"""Samples that --verify draws again."""
RECIPE = 2
"""To be raised whenever the same command draws or writes something else: parts of before are then not used."""
TRIES_INTO = 50
"""Of a lesion in a scan, until one can be seen."""
MANY = 20_000
"""Files from which on several processes write them."""

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

Where a diameter is asked for, or matched, it is measured in the sample, and a sample that misses it is drawn again, as is a lesion that
cannot be seen in the anatomy it was drawn into: what was turned down is counted. In the output: a patch folder (dataset.json, patches.csv, shards) that `python -m evaluate` reads, samples.csv (what each
was drawn for and what was measured), sampling.json (models, settings, what was turned down), preview.png, and a folder for each format:
  png    16-bit gray, level = HU + 2048       nifti  with spacing       dicom  CT images marked as synthetic       seg  their lesions

--into sets lesions into a CT series: a series of DICOM for each seed, every voxel outside the lesions as it was, with annotations.csv
(as LUNA16's), a segmentation of each lesion and lesions.csv. It takes a run of train.py --context.on true on cubes (prepare --dims 3).

Interrupted, the same command goes on where it stopped, but with --into, which leaves nothing. Exit codes: 0 done, 1 --verify found a difference, 2 bad input,
130 or 143 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Reads the command line; draws and writes, verifies or exports."""
    options = _options(arguments)
    _check_into(options)
    if options.trunc is not None and not options.trunc > 0:
        raise ValueError(f"--trunc {options.trunc:g}: want a number of standard deviations above 0, such as 1.5")
    if options.verify:
        return _verify(options)
    if options.export:
        return _export(options)
    if not options.out:
        raise ValueError("--out is missing: the folder to make")
    if options.into:
        return _into(options)
    formats = _formats(options.format)
    processes = _processes(options)  # before models are placed: each process has a GPU of its own
    try:
        drawing, spec = _drawing(options)
        _check_formats(formats, spec)
        _draw_all(options, drawing, spec, formats, processes)
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
        help="checkpoint to use, or several with commas; best: nearest to validation patients, or the newest where none was compared; newest",
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
    options.seeds = options.seeds or ("0" if options.into else "0-255")
    options.format = options.format or ("dicom,seg" if options.into else "png")
    return options


def _models(options: Namespace, critic: bool = False) -> list[Model]:
    """Of each run at each step. Raises ValueError when they do not draw the same kind of patches."""
    from gan.sampling import load_model

    models = []
    for run in options.run:
        for step in options.step.split(","):
            if step not in ("best", "newest") and not step.isdecimal():
                raise ValueError(f"--step {step}: want a number, best or newest")
            which: Any = None if step == "newest" else step if step == "best" else int(step)
            models.append(
                load_model(
                    Path(run), which, average=options.average, critic=critic, device=options.device,
                    warn=lambda line: print(f"warning: {line}", file=sys.stderr),
                )
            )  # fmt: skip
    first = _spec(options.run[0], models[0])
    for model in models[1:]:
        if replace(_spec("a run", model), licence=first.licence) != first or model.conditions != models[0].conditions:
            raise ValueError("the runs draw patches of different sizes, spacings, windows or classes; draw them one by one")
    return models


def _drawing(options: Namespace) -> tuple[Drawing, PatchSpec]:
    """What is asked for. Raises ValueError for what cannot be."""
    from data.patches import PatchFolder
    from gan.drawing import Drawing
    from gan.orders import Request, check_request, missing

    models = _models(options, critic=options.quality is not None)
    spec, private = _spec(options.run[0], models[0]), any(model.guarantee for model in models)
    backgrounds = _backgrounds(options, models, spec)
    if options.quality is not None and not 0 < options.quality <= 1:
        raise ValueError(f"--quality {options.quality:g}: want a share above 0 and at most 1, such as 0.8")
    for name, reason in (("quality", "by its critic"), ("dissimilar_to", "by its training patients")):
        if private and getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} chooses samples {reason}, which the guarantee of a private run does not cover; leave it out"
            )
    shares = [float(share) for share in _numbers(options.shares, "--shares")] if options.shares else [1.0] * len(models)
    if len(shares) != len(models) or not all(0 < share < math.inf for share in shares):
        raise ValueError(f"--shares {options.shares}: want a number above 0 for each of {len(models)} models")
    between = _between(options.diameter)
    if between and models[0].conditions.size and not models[0].conditions.diameter:
        print("note: this model cannot be asked for a diameter; samples of others are turned down", file=sys.stderr)
    if (between or options.match) and spec.spacing_mm is None:
        raise ValueError(
            "--diameter and --match measure in mm, and the spacing of the patches that this model was trained on was never stated"
        )
    if options.fill is not None and options.match is None:
        raise ValueError("--fill counts the lesions of a patch folder; name it with --match")
    if options.match and between:
        raise ValueError("--diameter and --match both say how large lesions are to be; give one of them")
    if options.fill is not None and options["class"] != "natural":
        raise ValueError("--fill decides on the classes; leave --class out")
    like = None
    if options.match:
        folder = PatchFolder.open(options.match)
        _check_fits(folder, spec, "--match")
        like = _likeness(folder, known=backgrounds is not None)
    fill = None if options.fill is None or like is None else missing(like, options.fill, models[0].conditions)
    request = Request(options["class"], between, like, fill)
    check_request(request, models[0].conditions)
    seeds = _seeds(options.seeds)
    if request.fill is not None:
        if len(seeds) > 1 and options.seeds != "0-255":
            raise ValueError(f"--seeds {options.seeds}: with --fill want the first seed only")
        seeds = range(seeds[0], seeds[0] + sum(request.fill.values()))
    if options.pictures and len(seeds) < 2:
        raise ValueError("--pictures goes from seed to seed; want 2 --seeds or more")
    checks: dict[str, Check] = {"diameter_mm": _diameter_check(spec, options.reject)} if between or like else {}
    if options.dissimilar_to:
        others = PatchFolder.open(options.dissimilar_to)
        _check_fits(others, spec, "--dissimilar-to")
        checks["closeness"] = _closeness_check(others)
    _warn_of_licence(models)
    return Drawing(models, shares, request, seeds, spec.spacing_mm, options.trunc, options.quality, checks, backgrounds), spec


def _warn_of_licence(models: Sequence[Model]) -> None:
    if {m.trained_on.get("licence", "") for m in models} & {""}:
        print(
            "warning: the model card names no licence or terms of the training data; find out before you give samples away", file=sys.stderr
        )


def _backgrounds(options: Namespace, models: Sequence[Model], spec: PatchSpec) -> Backgrounds | None:
    """What lesions are drawn into; None for models of whole patches. Raises ValueError where one is given and not wanted, or the other way round."""
    from data.patches import PatchFolder, WindowedPatches
    from gan.context import Backgrounds

    context = [model.context is not None for model in models]
    if any(context) != all(context):
        raise ValueError("some of the runs draw whole patches and others lesions into lesion-free ones; draw from them one by one")
    if all(context) != bool(options.backgrounds):
        raise ValueError(
            "this model draws lesions into lesion-free anatomy: name a patch folder with --backgrounds, or a scan with --into"
            if all(context)
            else "--backgrounds is for a model that draws lesions into lesion-free patches (train.py --context.on true)"
        )
    if not options.backgrounds:
        return None
    for name in ("quality", "pictures"):
        if getattr(options, name):
            raise ValueError(f"--{name} is for a model that draws whole patches; leave it out")
    folder = PatchFolder.open(options.backgrounds)
    _check_fits(folder, spec, "--backgrounds")
    cohort = options.anatomy == "cohort" or folder.content_hash in [model.trained_on.get("content_sha256") for model in models]
    rows = folder.select(splits=["train"], classes=[folder.background] if folder.background else [])  # others may be held out to judge by
    if not len(rows):
        raise ValueError(f"--backgrounds {folder.path}: no lesion-free patch of a training patient in it")
    return Backgrounds(WindowedPatches(folder, rows), spec.spacing_mm, spec.shape, "cohort" if cohort else options.anatomy)


def _spec(run: str, model: Model) -> PatchSpec:
    """What the synthetic patches share, from what the model was trained on. Raises ValueError when that is incomplete."""
    from data.patches import PatchSpec

    trained_on = model.trained_on
    try:
        classes, spacing, window = trained_on["classes"], trained_on["spacing_mm"], trained_on["window"]
        return PatchSpec(
            shape=tuple(trained_on["shape"]), spacing_mm=None if spacing is None else tuple(spacing), window=(window[0], window[1]),
            classes=tuple(classes) if model.conditions.classes or len(classes) == 1 else ("lesion",), unit=trained_on["unit"], origin="synthetic",
            licence=str(trained_on.get("licence", "")),
        )  # fmt: skip
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{run}: its checkpoint does not say what it was trained on ({error!r}); it is damaged or foreign") from None


def _check_fits(folder: PatchFolder, spec: PatchSpec, option: str) -> None:
    if name := folder.spec.misfit(spec):
        theirs, ours = getattr(folder, name), getattr(spec, name)
        raise ValueError(f"{option} {folder.path}: its {name} is {theirs}, and the model draws {ours}; they do not fit")


def _likeness(folder: PatchFolder, known: bool) -> Likeness:
    """The training lesions of a patch folder, as those to imitate. known: where no diameter is listed, what is measured stands for it."""
    import numpy as np

    from evaluate.attributes import lesion_attributes
    from gan.context import UNKNOWN_MM
    from gan.orders import Likeness

    rows = folder.select(splits=["train"], classes=folder.lesion_classes)
    if not len(rows):
        raise ValueError(f"--match {folder.path}: it has no lesion of a training patient")
    assert folder.spacing_mm is not None
    parts = [folder.hu(some) for some in np.array_split(rows, math.ceil(len(rows) / 1024))]
    measured = np.concatenate([lesion_attributes(hu, folder.spacing_mm, folder.window)["diameter_mm"] for hu in parts])
    listed = folder.rows.diameter_mm[rows]
    if known:
        listed = np.where(np.isfinite(listed), listed, np.where(np.isfinite(measured), measured, UNKNOWN_MM))
    return Likeness(folder.rows.names("label", rows), listed, measured)


def _diameter_check(spec: PatchSpec, reject: bool) -> Check:
    """The measured diameter lies where the orders want it; reject: whether it has to."""
    import numpy as np

    from data.preprocess import from_unit
    from evaluate.attributes import lesion_attributes

    assert spec.spacing_mm is not None
    spacing, window = spec.spacing_mm, spec.window

    def check(patches: np.ndarray, asked: Orders, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mm = lesion_attributes(from_unit(patches[:, 0], window), spacing, window)["diameter_mm"]
        low, high = asked.low_mm[rows], asked.high_mm[rows]
        return mm, np.isneginf(low) | ((mm >= low) & (mm <= high)) | (not reject)

    return check


def _closeness_check(folder: PatchFolder) -> Check:
    """No near-copies of the folder's training lesions; its validation patients' lesions say what is near."""
    from data.preprocess import from_unit
    from evaluate.memorisation import near_copy_test

    rows, others = (folder.select(splits=[split], classes=folder.lesion_classes) for split in ("train", "validation"))
    if len(rows) < 2:
        raise ValueError(f"--dissimilar-to {folder.path}: it has fewer than 2 lesions of training patients")
    test = near_copy_test(folder.hu(rows), folder.rows.names("patient", rows), folder.hu(others), folder.window, folder.spacing_mm)
    return lambda patches, asked, rows: test(from_unit(patches[:, 0], folder.window))


def _draw_all(options: Namespace, drawing: Drawing, spec: PatchSpec, formats: Sequence[str], processes: Processes | None) -> None:
    """Draws and writes the parts that are not there yet, this process its share of them; the first one puts them together."""
    from data.files import resumable_folder

    manifest = _manifest(options, drawing, formats)
    job = hashlib.sha256(json.dumps([RECIPE, manifest], sort_keys=True).encode()).hexdigest()[:16]
    out = Path(options.out)
    if processes and not processes.first:
        _together(processes)
        _write_parts(drawing, spec, formats, out.parent / f".{out.name}.parts" / "parts" / job, options, processes)
        _together(processes)
        return
    with resumable_folder(out) as (folder, parts):
        (parts / job).mkdir(exist_ok=True)
        _together(processes)
        try:
            written = _write_parts(drawing, spec, formats, parts / job, options, processes)
            _together(processes)
            if options.pictures:
                _write_pictures(folder, drawing, spec)
            tally = _finish(folder, drawing, spec, formats, written, manifest)
        finally:
            for left in parts.glob("*/.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            for empty in parts.iterdir():
                if not any(empty.iterdir()):
                    empty.rmdir()
    if tally.rejected.total():
        print(tally.words())
    if drawing.truncation is not None:
        print(
            f"--trunc {drawing.truncation:g}: samples lie {manifest['truncation']['diversity']:.0%} as far from one another as without it"
        )
    print(f"{len(drawing.seeds)} synthetic patches in {out}, as {', '.join(['patch folder', *formats])}; look at {out}/preview.png")
    print(f"next: python -m evaluate REAL_PATCHES {out} --out report")


def _manifest(options: Namespace, drawing: Drawing, formats: Sequence[str]) -> dict[str, Any]:
    """What sampling.json says, but for what was turned down. No path is in it."""
    from data.export import PNG_OFFSET
    from gan.context import privacy_of_composites

    models, known = drawing.models, [m.trained_on.get("content_sha256") for m in drawing.models]
    anatomy = drawing.backgrounds and drawing.backgrounds.origin
    guarantees = list(dict.fromkeys(privacy_of_composites(m.guarantee, anatomy) if anatomy else m.privacy for m in models))
    if any(m.guarantee for m in models) and drawing.request.like is not None:
        guarantees.append(
            "Classes and diameters were drawn as in a given patch folder; if it is the training patients', that is outside the guarantee."
        )
    return {
        "model_sha256": models[0].model_hash, "step": models[0].step, "trained_on_sha256": known[0],
        "models": [
            {"model_sha256": m.model_hash, "step": m.step, "share": share / sum(drawing.shares), "trained_on_sha256": sha}
            for m, share, sha in zip(models, drawing.shares, known, strict=True)
        ],
        "average": options.average, "device": options.device, "seeds": options.seeds, "samples": len(drawing.seeds), "class": options["class"],
        "diameter": options.diameter, "match": _content(options.match), "fill": drawing.request.fill, "reject": options.reject,
        "truncation": None if drawing.truncation is None else {"limit": drawing.truncation, "diversity": round(drawing.diversity(), 4)},
        "anatomy": anatomy, "backgrounds": _content(options.backgrounds),
        "quality": drawing.quality, "dissimilar_to": _content(options.dissimilar_to),
        "formats": list(formats), "png_level": f"{drawing.models[0].trained_on['unit']} + {PNG_OFFSET}", "privacy": " ".join(guarantees),
        "licence": " / ".join(dict.fromkeys(m.trained_on.get("licence", "") for m in models)) or None, "version": _version(),
    }  # fmt: skip


def _content(path: str | None) -> str | None:
    from data.patches import PatchFolder

    return None if path is None else PatchFolder.open(path).content_hash


def _write_parts(
    drawing: Drawing, spec: PatchSpec, formats: Sequence[str], parts: Path, options: Namespace, processes: Processes | None
) -> list[Path]:
    """Every part's folder, in order, of which this process has drawn its share of those that were not there."""
    from data.parallel import work_ahead
    from data.synthetic import write_part
    from gan.sampling import TILE

    total = len(drawing.seeds)
    size = max(TILE, min(1024, (1 << 22) // math.prod(spec.shape) // TILE * TILE))
    folders = [parts / f"{n:06d}" for n in range(math.ceil(total / size))]
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    mine = [n for n in range(rank, len(folders), count) if not folders[n].exists()]
    before = sum(folder.exists() for folder in folders)
    if before and rank == 0:
        print(f"{before} of {len(folders)} parts were drawn by an earlier run", file=sys.stderr)
    writers = options.processes or (len(os.sched_getaffinity(0)) if len(formats) * total >= MANY else 1)

    def made() -> Iterator[Part]:
        for n in mine:
            yield _part(drawing, spec, formats, folders[n], n * size, min(size, total - n * size))

    for _ in progress(work_ahead(write_part, made(), writers), "parts of samples", len(mine)):
        pass
    return folders


def _part(drawing: Drawing, spec: PatchSpec, formats: Sequence[str], folder: Path, first: int, count: int) -> Part:
    """Some of the samples, drawn, with what is told of them."""
    from data.dicom_writing import in_words
    from data.preprocess import from_unit
    from data.synthetic import Part, Sample

    taken, asked, model_of, tally = drawing.part(first, count)
    hu = from_unit(taken.patches[:, 0], spec.window)
    samples = [
        Sample(
            seed, int(taken.attempts[n]), drawing.models[model_of[n]].model_hash, str(asked.labels[n]) or spec.classes[0],
            float(asked.asked_mm[n]),
            {name: float(taken.measured[name][n]) for name in drawing.measured},
        ) for n, seed in enumerate(drawing.seeds[first : first + count])
    ]  # fmt: skip
    into = in_words(drawing.backgrounds.origin) if drawing.backgrounds else ""
    masks = _masks(hu, taken.patches, taken.anatomy, asked.asked_mm, spec) if "seg" in formats else None
    return Part(folder, hu, samples, spec, formats, _version(), tally.facts(), masks, into)


def _masks(hu: np.ndarray, patches: np.ndarray, anatomy: np.ndarray | None, asked_mm: np.ndarray, spec: PatchSpec) -> np.ndarray:
    """bool (N, *S): the lesions of patches (N, 1, *S) in [-1, 1], which are hu (N, *S); by what was changed, where they were drawn into anatomy."""
    spacing = spec.spacing_mm or (1.0,) * len(spec.shape)
    if anatomy is not None:
        from gan.context import lesion_masks, scene_of

        return lesion_masks(patches, scene_of(anatomy, spacing, asked_mm))
    from evaluate.attributes import central_component

    return central_component(hu, spacing, spec.window)


def _finish(
    folder: Path, drawing: Drawing, spec: PatchSpec, formats: Sequence[str], parts: Sequence[Path], manifest: dict[str, Any]
) -> Tally:
    """One patch folder of all parts, its preview and sampling.json; what was turned down."""
    from data.export import write_folder_preview
    from data.synthetic import assemble
    from gan.selection import Tally

    tally = Tally()
    for facts in assemble(folder, spec, formats, parts, drawing.measured):
        tally.add(**facts)
    write_folder_preview(folder)
    (folder / "sampling.json").write_text(json.dumps({**manifest, "selection": tally.summary()}, indent=1) + "\n", encoding="utf-8")
    return tally


def _together(processes: Processes | None) -> None:
    """Waits until all processes are here."""
    if processes:
        import torch

        processes.sum([torch.zeros(1, device=processes.device)])


def _processes(options: Namespace) -> Processes | None:
    """The processes that draw, where there are several. Started here, or by torchrun."""
    if options.devices == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    if options.devices < 1:
        raise ValueError(f"--devices {options.devices}: want 1 or more")
    from gan.config import TrainingConfig
    from gan.processes import Processes

    return Processes(TrainingConfig(device=options.device, devices=options.devices))


def _verify(options: Namespace) -> int:
    """Draws some of a folder's samples again and compares pixels and files, byte by byte; 1 where they differ."""
    import numpy as np

    from data.dicom_writing import in_words
    from data.patches import PatchFolder
    from data.preprocess import from_unit
    from data.synthetic import Part, other_files, read_samples
    from gan.drawing import draw
    from gan.sampling import load_model

    folder = PatchFolder.open(options.verify)
    folder.verify()
    try:
        said = json.loads((folder.path / "sampling.json").read_text(encoding="utf-8"))
        formats, limit = list(said["formats"]), (said["truncation"] or {}).get("limit")
        average, steps = bool(said["average"]), {int(one["step"]) for one in said["models"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder.path}/sampling.json: not as sample.py wrote it ({type(error).__name__}: {error})") from None
    models = {}
    for run, step in product(options.run, sorted(steps)):
        with suppress(FileNotFoundError):  # the other runs have other steps
            one = load_model(Path(run), step, average=average, device=options.device)
            models[one.model_hash] = one
    samples = read_samples(folder.path)
    if [one.name for one in samples] != folder.rows.names("id").tolist():
        raise ValueError(f"{folder.path}/samples.csv: lists other samples than patches.csv; it was edited or is another folder's")
    places = np.unique(np.linspace(0, len(samples) - 1, VERIFIED).astype(int))
    chosen = [samples[n] for n in places]
    missing = {one.model for one in chosen} - set(models)
    if missing:
        raise ValueError(f"{folder.path}: drawn from the model {missing.pop()[:16]}..., which is in no --run given")
    options.anatomy = said.get("anatomy") or options.anatomy
    backgrounds = _backgrounds(options, list(models.values()), folder.spec) if chosen else None
    if backgrounds and _content(options.backgrounds) != said.get("backgrounds"):
        raise ValueError(
            f"--backgrounds {options.backgrounds}: the samples were drawn into another folder's patches (content hashes differ)"
        )
    drawn = []
    for one in chosen:
        model = models[one.model]
        condition = model.conditions.encode([one.label], [one.asked_mm]) if model.conditions.size else None
        drawn.append(draw(model, [one.seed], one.attempt, np.array([one.asked_mm]), condition, limit, backgrounds))
    patches, anatomy = np.concatenate([one for one, _ in drawn]), np.concatenate([free for _, free in drawn]) if backgrounds else None
    hu, asked_mm = from_unit(patches[:, 0], folder.window), np.array([one.asked_mm for one in chosen])
    masks = _masks(hu, patches, anatomy, asked_mm, folder.spec) if "seg" in formats else None
    into = in_words(str(said.get("anatomy"))) if backgrounds else ""
    part = Part(folder.path, hu, chosen, folder.spec, formats, str(said.get("version")), {}, masks, into)
    differ = other_files(part)
    for one, stored, drawn_now in zip(chosen, folder.hu(places), hu, strict=True):
        if one.name in differ or not np.array_equal(stored, drawn_now):
            print(f"{one.name}: differs from what the model draws")
            differ |= {one.name}
    print(
        f"{len(chosen) - len(differ)} of {len(chosen)} samples drawn again are the same, byte by byte, as patches{''.join(f', {f}' for f in formats)}"
    )
    if differ:
        print(
            f"note: kernels of another kind of processor or another version of torch round differently; these were drawn on {said.get('device')}"
        )
    return int(bool(differ))


def _export(options: Namespace) -> int:
    """Writes the model as ONNX and checks that it draws the same."""
    from data.files import new_file
    from gan.onnx_export import check_onnx, export_onnx

    if not options.export.endswith(".onnx"):
        raise ValueError(f"--export {options.export}: want a file that ends in .onnx")
    models = _models(options)
    if len(models) > 1:
        raise ValueError("--export takes one model; export them one by one")
    (model,) = models
    window = _spec(options.run[0], model).window
    with new_file(options.export) as file:
        export_onnx(model, window, file, {"version": _version(), "licence": model.trained_on.get("licence") or "not stated"})
        agreed = check_onnx(model, file, window)
    print(
        f"{options.export}: ONNX Runtime draws the same {agreed.samples} samples, {agreed.equal_share:.3%} of pixels equal, "
        f"none further apart than {agreed.largest_hu} HU"
    )
    print("its inputs, and how z follows from a seed, stand in its metadata; docs/sampling.md has an example without torch")
    return 0


def _check_into(options: Namespace) -> None:
    """Raises ValueError for what does not go with --into, or not without it."""
    if not options.into:
        for name, usual in (("count", 1), ("lesions", None)):
            if options[name] != usual:
                raise ValueError(f"--{name} belongs to --into, which names the scan to set lesions into")
        if options.anatomy != "unknown" and not options.backgrounds:
            raise ValueError("--anatomy says whose scan --into names, or whose patches --backgrounds does; give one of them")
        return
    given = [
        name
        for name in ("backgrounds", "match", "fill", "quality", "dissimilar_to", "shares", "verify", "export")
        if options[name] is not None
    ]
    given += [name for name, usual in (("pictures", False), ("reject", True), ("devices", 1)) if options[name] != usual]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} does not go with --into; leave one of them out")
    if len(options.run) > 1 or "," in options.step:
        raise ValueError("--into takes one model; name one --run and one --step")
    if "png" in _formats(options.format):
        raise ValueError("--format png holds 2-D patches only; with --into dicom and seg are written, and nifti if named")
    if options.count < 1:
        raise ValueError(f"--count {options.count}: want 1 or more lesions for each seed")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("--into is the work of one process; start it without torchrun")


def _into(options: Namespace) -> int:
    """Sets lesions into a whole scan, a series for each seed."""
    from data.files import new_folder
    from data.implanting import drawn
    from data.placing import place_lesions, read_scan
    from data.scan_writing import Composer, facts, write_composites
    from gan.context import privacy_of_composites
    from gan.selection import Tally

    (model,) = _models(options)
    spec = _spec(options.run[0], model)
    if len(spec.shape) != 3:
        raise ValueError(
            f"{options.run[0]}: draws 2-D patches, and --into needs cubes: data prepare --dims 3, then train.py --context.on true"
        )
    if not model.context:
        raise ValueError(f"{options.run[0]}: cannot draw into given surroundings; train one that can: python train.py --context.on true")
    if spec.unit != "HU" or spec.spacing_mm is None:
        raise ValueError(f"{options.run[0]}: --into needs a model of HU whose spacing was stated")
    with new_folder(options.out) as folder:
        scan = read_scan(options.into, options.lesions, lambda line: print(f"warning: {line}", file=sys.stderr))
        if not scan.listed:
            print(
                "note: no --lesions given; what lesions the scan has are not stayed away from, nor listed in annotations.csv",
                file=sys.stderr,
            )
        _warn_of_licence([model])
        placed = place_lesions(scan, _lesion_orders(options, model, spec, scan))
        composer = Composer(scan, model.model_hash, _version(), spec.window, spec.spacing_mm, options.anatomy, "nifti" in options.format)
        tally = Tally()
        lesions = drawn(scan, placed, spec.shape, spec.spacing_mm, _drawn_into(model, spec, options.trunc, tally))
        series = len({one.seed for one in placed})
        done = list(progress(write_composites(folder, composer, lesions), "series", series))
        manifest = {
            "model_sha256": model.model_hash, "step": model.step, "trained_on_sha256": model.trained_on.get("content_sha256"),
            "average": options.average, "device": options.device, "seeds": options.seeds, "count": options.count,
            "class": options["class"], "diameter": options.diameter, "truncation": options.trunc, "selection": tally.summary(),
            "formats": ["dicom", "seg", *(["nifti"] if composer.nifti else [])], **facts(composer, done),
            "privacy": privacy_of_composites(model.guarantee, options.anatomy), "licence": model.trained_on.get("licence") or None, "version": _version(),
        }  # fmt: skip
        (folder / "sampling.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if tally.rejected.total():
        print(tally.words())
    print(f"{series} series with {len(placed)} synthetic lesions in {options.out}; look at {options.out}/preview.png")
    print(f"next: python -m data prepare {options.out}/dicom --lesions {options.out}/annotations.csv --out patches")
    return 0


def _lesion_orders(options: Namespace, model: Model, spec: PatchSpec, scan: Scan) -> list[Order]:
    """Class and diameter of every lesion of every seed. Raises ValueError for what the model or the scan's spacing cannot show."""
    import numpy as np

    from data.placing import Order, check_diameter
    from gan.context import largest_mm
    from gan.orders import Request, check_request, diameters_of, orders, seed_of

    assert spec.spacing_mm is not None
    most_mm = largest_mm(spec.shape, spec.spacing_mm)
    request = Request(options["class"], _between(options.diameter))
    check_request(request, model.conditions)
    usual_mm = np.clip(model.trained_on.get("diameter_deciles_mm") or (6.0, 12.0), scan.least_mm, most_mm).tolist()
    between_mm = request.between_mm or usual_mm
    for mm in (between_mm[0], between_mm[-1]):
        check_diameter(scan, mm, most_mm)
    wanted = [(seed, n) for seed in _seeds(options.seeds) for n in range(1, options.count + 1)]
    streams = [seed_of(*one) for one in wanted]
    labels = orders(request, model.conditions, model.trained_on, spec.spacing_mm, streams).labels
    return [
        Order(seed, n, stream, str(label) or spec.classes[0], float(mm))
        for (seed, n), stream, label, mm in zip(wanted, streams, labels, diameters_of(streams, between_mm), strict=True)
    ]


def _drawn_into(model: Model, spec: PatchSpec, truncation: float | None, tally: Tally) -> Draw:
    """What draws lesions into cubes of HU: of each the first try that can be seen."""
    import numpy as np

    from data.preprocess import to_unit
    from gan.context import CONTRAST, seen_in
    from gan.sampling import candidates, implant
    from gan.selection import select

    def draw(cubes: np.ndarray, placed: Sequence[Placed]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert spec.spacing_mm is not None
        streams = np.array([one.stream for one in placed], dtype=object)
        backgrounds, mm = to_unit(cubes, spec.window)[:, None], np.array([one.diameter_mm for one in placed])
        condition = model.conditions.encode([one.label for one in placed], mm) if model.conditions.size else None
        masks = np.zeros(cubes.shape, bool)

        def candidate(rows: np.ndarray, attempt: int) -> np.ndarray:
            z = candidates(streams[rows].tolist(), attempt, model.generator.latent, truncation)
            drawn = list(implant(model, backgrounds[rows], mm[rows], z, None if condition is None else condition[rows]))
            masks[rows] = np.concatenate([mask for _, mask in drawn])
            return np.concatenate([patches for patches, _ in drawn])

        def told(row: int) -> str:
            return f"seed {placed[row].seed}, lesion {placed[row].number}"

        tests = {CONTRAST: seen_in(backgrounds, spec.spacing_mm, mm)}
        taken = select(len(placed), candidate, tests, tally, told, TRIES_INTO)
        for patch, background, cube, mask in zip(taken.patches, backgrounds, cubes, masks, strict=True):
            yield cube + (patch - background)[0] * ((spec.window[1] - spec.window[0]) / 2), mask

    return draw


def _write_pictures(folder: Path, drawing: Drawing, spec: PatchSpec) -> None:
    """strips.png, from seed to seed; walk.gif, around four seeds at a time; growth.png, where the model can be asked for a diameter."""
    import numpy as np

    from data.animation import write_animation, write_strips
    from data.preprocess import from_unit
    from gan.interpolation import growth, strips, walk
    from gan.sampling import generate

    model, limit, steps, between = drawing.models[0], drawing.truncation, 8, 14
    seeds = list(drawing.seeds[:16])
    condition = drawing.asked(seeds).condition(model.conditions, np.arange(len(seeds)))

    def drawn(path: tuple[Any, np.ndarray | None]) -> np.ndarray:
        return from_unit(np.concatenate(list(generate(model, *path)))[:, 0], spec.window)

    def rows(which: slice) -> np.ndarray | None:
        return None if condition is None else condition[which]

    strip = drawn(strips(model, seeds[:9], steps, rows(slice(9)), limit))
    write_strips(strip.reshape(-1, steps, *spec.shape), spec.window, folder / "strips.png", spec.spacing_mm)
    groups = [slice(n, n + 4) for n in range(0, len(seeds) - 3, 4)] or [slice(0, 4)]
    walks = np.stack([drawn(walk(model, seeds[group], between, rows(group), limit)) for group in groups], axis=1)
    write_animation(walks, spec.window, folder / "walk.gif", spec.spacing_mm)
    if model.conditions.diameter:
        names = [name for name in model.conditions.classes or ("",) for _ in range(3)]
        grown = np.stack(
            [drawn(growth(model, [seeds[n % min(3, len(seeds))]], steps, name, truncation=limit)) for n, name in enumerate(names)]
        )
        write_strips(grown, spec.window, folder / "growth.png", spec.spacing_mm, names if any(names) else None)


def _between(text: str) -> tuple[float, float] | None:
    """ "6-12" -> (6, 12), "8" -> (8, 8), "natural" -> None. Raises ValueError for anything else."""
    if text == "natural":
        return None
    ends = re.fullmatch(r"(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", text)
    if not ends or not 0 < float(ends[1]) <= float(ends[2] or ends[1]):
        raise ValueError(f"--diameter {text}: want mm, such as 8 or 6-12")
    return float(ends[1]), float(ends[2] or ends[1])


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: want numbers with commas") from None


def _seeds(text: str) -> Sequence[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]. Raises ValueError for anything else, doubles included."""
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if max((one.stop for one in ranges), default=0) > 2**62:
        raise ValueError(f"--seeds {text}: want numbers below 2 to the power of 62")
    if sum(max(one.stop - one.start, 0) for one in ranges) > MOST_SEEDS:
        raise ValueError(f"--seeds {text}: at most {MOST_SEEDS} at a time")
    if None not in parts and len(ranges) == 1 and ranges[0]:
        return ranges[0]
    seeds = [seed for one in ranges for seed in one]
    if None in parts or not all(ranges) or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {text!r}: want whole numbers and ranges, each seed once, such as 0-255 or 7,19,100-120")
    return seeds


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


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lesiongan")
    except PackageNotFoundError:
        return "source"


if __name__ == "__main__":
    run_command(main)
