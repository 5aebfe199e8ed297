"""Trains a small generator that draws what a trained run draws."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from data.command import program, progress

if TYPE_CHECKING:
    import numpy as np

    from gan.distillation import Distance
    from gan.sampling import Model

DESCRIPTION = """Train a small generator that draws what a trained run draws, for machines without a GPU.
The student draws, for the same latents and conditions, nearly what the run's averaged generator, the teacher, draws. Half the channels
are a quarter of the arithmetic. It takes minutes on a CPU and reads the teacher only, never a patient's patch.

  python -m gan distil run --channels 8 --out small
  python sample.py --run small --out synthetic --seeds 0-255     draws from it as from any run

The step it is taught from is the one nearest to validation patients, or the newest where none was compared, as in sample.py.
In the new folder: the student's checkpoint, model_card.md, preview.png (rows of the teacher's samples, and below them the student's for
the same latents) and distillation.json: what a sample of each costs, measured on this machine's CPU, and how far the student is from
its teacher. A guarantee of differential privacy is passed on: what is computed from a private model alone is as private.

Same seed, same command, same CPU: the same bytes of the checkpoint. Try more --steps where the distance is too far from its floor,
and more --channels where that no longer helps. Audit the student as any other run: python -m evaluate.

Exit codes: 0 done, 2 bad input, 130 or 143 interrupted, nothing left behind."""

COMPARED = 1000
"""Samples of each in a comparison; fewer of large patches."""
COMPARED_PIXELS = 1 << 25
_COMPARE = 10
SECONDS_A_LINE = 5


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=str, help="run folder of the teacher")
    parser.add_argument("--channels", type=int, required=True, help="of the student; fewer than the run's networks.channels")
    parser.add_argument("--out", type=str, required=True, help="run folder to make")
    parser.add_argument("--steps", type=int, default=4000, help="updates of the student")
    parser.add_argument("--seed", type=int, default=0, help="all randomness follows from it")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to train; costs are measured on the CPU")


def run(options: Namespace) -> None:
    """Trains the student, measures both, writes its run folder and says what came out."""
    if options.steps < 1 or options.seed < 0:
        raise ValueError(f"want --steps of 1 or more and a --seed of 0 or more, got {options.steps} and {options.seed}")

    import torch

    from data.export import write_preview
    from data.files import new_folder
    from data.preprocess import from_unit
    from gan import distillation
    from gan.checkpoint import load_checkpoint
    from gan.sampling import load_model

    run, started = Path(options.run), time.monotonic()
    checkpoint = load_checkpoint(run, "best", warn=lambda line: print(f"warning: {line}", file=sys.stderr))
    spacing_mm, window, unit = _described(run, checkpoint.trained_on)
    teacher = load_model(run, checkpoint.step, device=options.device)
    distillation.check_channels(teacher, options.channels)
    with new_folder(options.out) as folder:
        before = checkpoint.config["networks"]["channels"]
        print(f"{run}, step {checkpoint.step}: from {before} channels to {options.channels}, {options.steps} steps", flush=True)
        scale = (window[1] - window[0]) / 2
        student = distillation.distil(teacher, options.channels, options.steps, options.seed, _progress(options.steps, scale, unit))
        distillation.save_student(folder, checkpoint, student, options.channels, options.steps, options.seed)
        seconds = time.monotonic() - started
        print(f"{_clock(seconds)} so far; measuring teacher and student ...", flush=True)
        models = load_model(run, checkpoint.step), load_model(folder)
        distance = _distance(*models, spacing_mm, window, unit, options.seed)
        of_teacher, of_student = distillation.costs(*models)
        where = f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}, {distillation.TILE} samples at a time"
        x, labels = _pairs(*models)
        write_preview(from_unit(x[:, 0], window), window, folder / "preview.png", spacing_mm, labels)
        distillation.write_card(folder, of_teacher, of_student, distance, where)
        told = {
            "format": "lesiongan distillation", "version": 1, "teacher": asdict(of_teacher), "student": asdict(of_student), "measured_on": where,
            "distance": asdict(distance), "steps": options.steps, "samples": student.samples, "seed": options.seed,
        }  # fmt: skip
        (folder / "distillation.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{options.out}: distilled in {_clock(seconds)} from {student.samples:,} samples of {run}; costs measured on {where}")
    print("\n".join([distillation.table(of_teacher, of_student), *distance.lines()]))
    print(checkpoint.privacy_spent["sentence"] if checkpoint.privacy_spent else "privacy: no guarantee, for the teacher has none")
    print(f"look at {options.out}/preview.png; next: {program('sample')} --run {quote(options.out)} --out synthetic --seeds 0-255")


def _described(run: Path, trained_on: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, float], str]:
    """Spacing in mm, window and unit of the patches. Raises ValueError for a checkpoint that does not tell, or of impossible patches."""
    from gan.networks import strides

    try:
        spacing, (low, high) = trained_on["spacing_mm"], trained_on["window"]
        strides([int(side) for side in trained_on["shape"]])
        return spacing and tuple(spacing), (float(low), float(high)), str(trained_on["unit"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{run}: its checkpoint does not say what it was trained on ({error!r}); it is damaged or foreign") from None


def _progress(steps: int, scale: float, unit: str) -> Callable[[int, float], None]:
    """Prints a line of progress every few seconds. scale: of one in [-1, 1], in the patches' unit."""
    started = said = time.monotonic()

    def log(step: int, apart: float) -> None:
        nonlocal said
        now = time.monotonic()
        if step == steps or now - said > SECONDS_A_LINE:
            left = (now - started) / step * (steps - step)
            print(f"step {step}/{steps}  {apart * scale:.1f} {unit} from the teacher  {_clock(left)} left", flush=True)
            said = now

    return log


def _clock(seconds: float) -> str:
    return "{} min {:02d} s".format(*divmod(round(seconds), 60))


def _distance(
    teacher: Model, student: Model, spacing_mm: tuple[float, ...] | None, window: tuple[float, float], unit: str, seed: int
) -> Distance:
    """Of the student's samples, for latents that it was not trained on."""
    import math

    import numpy as np

    from data.preprocess import from_unit
    from evaluate.distances import frechet_distance, standardise
    from evaluate.features import radiomics
    from gan.distillation import Distance, draw
    from gan.sampling import TILE, generate

    shape = teacher.trained_on["shape"]
    count = min(COMPARED, max(2 * TILE, COMPARED_PIXELS // math.prod(shape)))

    def drawn(model: Model, n: int) -> np.ndarray:
        latents = draw(model, count, np.random.default_rng([seed, _COMPARE, n]))
        return from_unit(np.concatenate(list(generate(model, *latents)))[:, 0], window)

    one, other, alike, unseen = drawn(teacher, 0), drawn(teacher, 1), drawn(student, 0), drawn(student, 2)
    features = radiomics(spacing_mm or (1.0,) * len(shape), window).compute
    of_one, *others = (features(hu) for hu in progress([one, other, unseen], "measuring sets of samples", 3))
    reference, of_other, of_student = standardise(of_one, of_one, *others)
    apart, by_chance = (float(np.abs(one - x.astype(np.float64)).mean()) for x in (alike, other))
    return Distance(count, unit, apart, by_chance, frechet_distance(reference, of_student), frechet_distance(reference, of_other))


def _pairs(teacher: Model, student: Model) -> tuple[np.ndarray, list[str]]:
    """Samples (N, 1, *S) of both for the latents of the first seeds, and a label for each: class by class, the teacher's and the student's."""
    import numpy as np

    from gan.sampling import generate
    from gan.trainer import latents

    seeds, x, labels = range(8), [], []
    z = latents(seeds, teacher.generator.latent)
    for name in teacher.conditions.classes or ("",):
        asked = teacher.conditions.encode([name] * len(seeds), np.geomspace(5, 20, len(seeds))) if teacher.conditions.size else None
        for who, model in (("teacher", teacher), ("student", student)):
            x += list(generate(model, z, asked))
            labels += [f"{name}, {who}" if name else who] * len(seeds)
    return np.concatenate(x), labels
