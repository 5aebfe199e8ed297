"""What sample.py is asked for: models, orders, checks, and what lesions are drawn into."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan.commands.shared import lesion_diameters_mm, measured_mm, training_backgrounds

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import Namespace

    from data.patches import PatchFolder, PatchSpec
    from gan.context import Backgrounds
    from gan.drawing import Check, Drawing
    from gan.orders import Likeness, Orders
    from gan.sampling import Model

MOST_SEEDS = 10_000_000


def refuse_beside(job: str, options: Namespace, usual: Mapping[str, object]) -> None:
    """Raises ValueError for the first option that is not as usual, and has no meaning beside --JOB."""
    for name, value in usual.items():
        if options[name] != value:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --{job}; leave one of them out")


def drawing_of(options: Namespace) -> tuple[Drawing, PatchSpec]:
    """What is asked for. Raises ValueError for what cannot be."""
    from data.patches import PatchFolder
    from gan.drawing import Drawing
    from gan.orders import Request, check_request, missing

    models = models_of(options, critic=options.quality is not None)
    spec, private = spec_of(options.run[0], models[0]), any(model.guarantee for model in models)
    backgrounds = backgrounds_of(options, models, spec)
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
    between = between_of(options.diameter)
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
    seeds = seeds_of(options.seeds)
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
    return Drawing(models, shares, request, seeds, spec.spacing_mm, options.trunc, options.quality, checks, backgrounds), spec


def models_of(options: Namespace, critic: bool = False) -> list[Model]:
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
    first = spec_of(options.run[0], models[0])
    for model in models[1:]:
        if replace(spec_of("a run", model), licence=first.licence) != first or model.conditions != models[0].conditions:
            raise ValueError(
                "the runs draw patches of different sizes, spacings, windows or classes, or can be asked for other things (networks.condition); draw them "
                "one by one"
            )
    return models


def spec_of(run: str, model: Model) -> PatchSpec:
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


def backgrounds_of(options: Namespace, models: Sequence[Model], spec: PatchSpec) -> Backgrounds | None:
    """What lesions are drawn into; None for models of whole patches. Raises ValueError where one is given and not wanted, or the other way round."""
    from data.patches import PatchFolder

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
    return training_backgrounds(folder, "cohort" if cohort else options.anatomy)


def _likeness(folder: PatchFolder, known: bool) -> Likeness:
    """The training lesions of a patch folder, as those to imitate. known: where no diameter is listed, what is measured stands for it."""
    from gan.orders import Likeness

    rows = folder.select(splits=["train"], classes=folder.lesion_classes)
    if not len(rows):
        raise ValueError(f"--match {folder.path}: it has no lesion of a training patient")
    listed = lesion_diameters_mm(folder, rows) if known else folder.rows.diameter_mm[rows]
    return Likeness(folder.rows.names("label", rows), listed, measured_mm(folder, rows))


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


def warn_of_licence(models: Sequence[Model]) -> None:
    if {m.trained_on.get("licence", "") for m in models} & {""}:
        print(
            "warning: nobody stated the licence or terms of the training data; find out before you give samples away "
            "(python -m data prepare --licence states them)",
            file=sys.stderr,
        )


def between_of(text: str) -> tuple[float, float] | None:
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


def seeds_of(text: str) -> Sequence[int]:
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
