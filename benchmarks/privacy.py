"""What privacy costs: in time, beside the plain step, and in quality, beside the plain run.

  python benchmarks/privacy.py --part cost                       a few minutes
  python benchmarks/privacy.py --part quality --cohort luna --picture p.png        about an hour of CPU time: 5 runs, 3 seeds
  python benchmarks/privacy.py --part quality --cohort phantoms --seeds 1          as long, and half an hour to make the cohort: 4 runs
  python benchmarks/privacy.py --quick --json privacy.json       about two minutes; of quality it shows only that it works

cost: one critic step with Adam on 64 pairs, 32 patients with 2 each, all pairs with penalty; in turns in one process, after one untimed turn.
Before anything is timed, the two private forms are compared in float64.

  plain                  lesiongan's step
  private                the same passes, each patient's gradient clipped; noise
  oracle                 the same by torch.func, which the tests compare it with
  no penalty             a critic loss without penalty, by autograd on a plain network
  Opacus, no penalty     the same with Opacus' per-sample gradients and noise: it cannot do the penalty, and it protects patches, not patients

memory: the peak of what one step of each form takes beyond what was there before, each in a process of its own.

quality: 32 x 32. luna: real nodules of luna16-patches, training split; a "patient" is one of its 275 training groups. phantoms: 3,000 procedural
patients with six lesions each. Privacy as train.py has it with epsilon 10, 3 and 1 and delta 1e-5; on luna also epsilon 10 started from
the phantoms' lesions (which are nobody's); and none, trained for as many CPU seconds as epsilon 10 took. 1,000 samples of each are compared with
the lesions of the validation patients as quality.py does, by which nothing was chosen. The floor is what the training lesions themselves score.
TSTR ("train on synthetic, test on real") is the AUROC on validation patients of a detector whose lesions are those samples, and whose lesion-free
patches are the training patients' own (outside the guarantee, and the same for all); beside it, the same with as many real lesions.

Ratios are times over the plain step's of the same loss, the most over the sizes; below 1.5 (private) and 2.5 (oracle) was aimed for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.few_cases import draw, pretrained
from benchmarks.quality import FAMILIES, QUICK, Point, Reference, Sizes, fixed_latents, luna_patches, samples, training_nodules
from benchmarks.step import PENALTY, Clock, Draws, LeakyReLU, Size, networks, plain_networks, processor, resident
from data.command import run_command
from data.lesion_list import BACKGROUND
from data.parallel import map_processes
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from data.phantom import chest
from data.phantom_lesions import CLASSES
from data.preprocess import cut, lung_mask
from evaluate.detector import CLASSIC, DetectorSet, run_detector
from evaluate.scores import area_under_roc
from gan.checkpoint import Checkpoint
from gan.conditions import Conditions
from gan.config import NetworkConfig, PrivacyConfig, TrainingConfig
from gan.losses import critic_gradients
from gan.privacy import gaussian, plan_for
from gan.private_step import clipped_sum, clipped_sum_by_autograd
from gan.private_trainer import PrivateTrainer
from gan.trainer import Trainer, TrainingSet
from gan.training import in_memory
from gan.transfer import start_from
from train import demo_patches

SIZES = tuple(map(Size.parse, ("32x32:32:64", "64x64:32:64", "32x32x32:16:32")))
EACH = 2
"""Patches of a patient."""
PRIVATE = {"private": clipped_sum, "oracle": clipped_sum_by_autograd}
ROUNDS, QUICK_ROUNDS = 15, 3
RUNS: Mapping[str, tuple[float, bool]] = {
    "epsilon 10": (10.0, False), "epsilon 3": (3.0, False), "epsilon 1": (1.0, False), "epsilon 10, from phantoms": (10.0, True),
    "no privacy": (0.0, False),
}  # fmt: skip
"""Name -> the budget, 0 for no privacy, and whether it starts from the phantoms' weights."""
PHANTOM_PATIENTS = 3000
PHANTOM_MM = 1.5


class Pairs:
    """What every form of a step is given, and its critic."""

    def __init__(self, size: Size, dtype: torch.dtype = torch.float32):
        draws = Draws(size, torch.device("cpu"))
        self.real, self.synthetic, self.mix = (one.to(dtype) for one in (draws.real, draws.patches(), draws.mix(size.batch)))
        self.critic = networks(size, torch.device("cpu"))[1].to(dtype)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=1e-4, betas=(0.0, 0.9), fused=True)

    def plain(self) -> None:
        self.step(critic_gradients(self.critic, self.real, self.synthetic, self.mix, PENALTY)[0])

    def private(self, way: Callable[..., dict[torch.nn.Parameter, Tensor]]) -> None:
        found = self.clipped(way)
        noise = gaussian(sum(p.numel() for p in found)).split([p.numel() for p in found])
        self.step(
            {p: (g.double() + some.view(g.shape)).to(g.dtype) / len(self.real) for (p, g), some in zip(found.items(), noise, strict=True)}
        )

    def clipped(self, way: Callable[..., dict[torch.nn.Parameter, Tensor]]) -> dict[torch.nn.Parameter, Tensor]:
        real, synthetic, mix = (one.unflatten(0, (-1, EACH)) for one in (self.real, self.synthetic, self.mix))
        return way(self.critic, real, synthetic, mix, real.new_ones(real.shape[:2]), PENALTY, 1.0)

    def step(self, found: Mapping[torch.nn.Parameter, Tensor]) -> None:
        for parameter, gradient in found.items():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        self.optimizer.step()


def no_penalty(size: Size, opacus: bool) -> Callable[[], None]:
    """A step on the critic loss without penalty, plain or with Opacus' clipping and noise for each patch."""
    pairs, critic = Pairs(size), plain_networks(size, torch.device("cpu"), True, LeakyReLU)[1]
    rows = torch.cat([pairs.real, pairs.synthetic])
    signs = torch.ones(len(rows), 1)
    signs[: size.batch] = -1
    if not opacus:
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9), fused=True)

        def step() -> None:
            optimizer.zero_grad()
            (critic(rows) * signs).mean().backward()
            optimizer.step()

        return step
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(critic)
    private = DPOptimizer(
        torch.optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9)),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(rows),
    )

    def private_step() -> None:
        private.zero_grad()
        (wrapped(rows) * signs).mean().backward()
        private.step()

    return private_step


def apart(size: Size) -> float:
    """How far the two private forms' worst gradients are from one another in float64, relative to its norm."""
    one, other = (Pairs(size, torch.float64).clipped(way) for way in PRIVATE.values())
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one.values(), other.values(), strict=True))


def forms_of(size: Size) -> dict[str, Callable[[], None]]:
    """Name -> one critic step."""
    forms: dict[str, Callable[[], None]] = {"plain": Pairs(size).plain}
    forms |= {name: partial(Pairs(size).private, way) for name, way in PRIVATE.items()}
    return forms | {"no penalty": no_penalty(size, False), "Opacus, no penalty": no_penalty(size, True)}


def memory(which: tuple[Size, str]) -> float:
    """MiB that three steps of a form take at their peak beyond what the process held before. On Linux only; elsewhere NaN."""
    size, name = which
    torch.set_num_threads(1)
    form, reset = forms_of(size)[name], Path("/proc/self/clear_refs")
    before = resident("VmRSS")
    if before is None or not reset.exists():
        return float("nan")
    reset.write_text("5")  # the peak so far is forgotten: building the other forms is no part of this
    for _ in range(3):
        form()
    return (resident("VmHWM") or before) - before


def cost(sizes: Sequence[Size], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Ratios and conditions; prints a table. Raises ValueError where the private forms differ."""
    clock, ratios, details = Clock(torch.device("cpu")), dict[str, float](), dict[str, Any]()
    for size in sizes:
        difference = apart(size)
        if not difference < 1e-9:
            raise ValueError(f"{size}: the private gradients differ by {difference:.1e}, so times say nothing")
        forms = forms_of(size)
        times: dict[str, list[float]] = {name: [] for name in forms}
        for n in range(rounds + 1):
            for name, form in forms.items():
                seconds = clock.seconds(form)
                if n:
                    times[name].append(seconds)
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = dict(zip(forms, pool.map(memory, [(size, name) for name in forms], chunksize=1), strict=True))
        middle = {name: statistics.median(seconds) for name, seconds in times.items()}
        over = {name: middle[name] / middle["no penalty" if "no penalty" in name else "plain"] for name in forms}
        print(
            f"\n{size}, {size.batch // EACH} patients: a critic step ({clock.name}), over the plain step of the same loss; apart by {difference:.0e}"
        )
        print(f"{'':<24}{'ms':>10}{'over':>8}{'MiB':>8}")
        for name in forms:
            print(f"{name:<24}{1000 * middle[name]:>10.1f}{over[name]:>8.2f}{peaks[name]:>8.0f}")
        for name, key in (("private", "private_step_cost"), ("oracle", "oracle_step_cost"), ("Opacus, no penalty", "opacus_step_cost")):
            ratios[key] = max(ratios.get(key, 0.0), round(over[name], 3))
        details[str(size)] = {"seconds": times, "over": over, "apart": difference, "peak_mib": peaks}
    return ratios, details


@dataclass
class Run:
    """points: distances after each fifth of a run, and what was spent. samples: int16 HU, the last ones."""

    points: list[Point]
    samples: np.ndarray


def train(trainer: Trainer, data: TrainingSet, seconds: float | None, look: Callable[[Trainer], Point]) -> list[Point]:
    """Until the trainer is done or the CPU seconds are spent; a look after each fifth."""
    data, spent, points = in_memory(data, trainer), 0.0, list[Point]()

    def done() -> float:
        return trainer.progress if seconds is None else spent / seconds

    while len(points) < 5:
        started = time.process_time()
        trainer.update(data)
        spent += time.process_time() - started
        while len(points) < 5 and done() >= (len(points) + 1) / 5:
            trainer.settle(data)
            points.append({"seconds": spent, "updates": trainer.step, **look(trainer)})
    return points


def quality(
    cohort: str, place: Path, critic_steps: int, seeds: int, sizes: Sizes, patients: int
) -> tuple[dict[str, dict[int, Run]], Judge]:
    """The runs of each kind by seed, and what they were compared with."""
    folder = luna_patches(place) if cohort == "luna" else phantom_patches(place, patients)
    judge, latents = Judge(folder, sizes), fixed_latents(sizes.samples)
    patches = training_nodules(folder)
    data = TrainingSet(patches, patients=folder.rows.names("patient", patches.indices))
    names = [name for name, (_, from_phantoms) in RUNS.items() if cohort == "luna" or not from_phantoms]
    start = start_on_phantoms(place, critic_steps) if cohort == "luna" else None
    runs: dict[str, dict[int, Run]] = {name: {} for name in names}
    for seed in range(seeds):
        for name in names:
            epsilon, from_phantoms = RUNS[name]
            as_long = runs["epsilon 10"][seed].points[-1]["seconds"] if not epsilon else None
            runs[name][seed] = one = one_run(
                folder, data, epsilon, critic_steps, seed, start if from_phantoms else None, as_long, judge.reference, latents
            )
            one.points[-1]["TSTR"] = judge.detection(one.samples, seed)
            ends = ", ".join(f"{what} {one.points[-1][what]:.2f}" for what in (*FAMILIES, "TSTR"))
            print(f"{name}, seed {seed}: {ends}", file=sys.stderr, flush=True)
    return runs, judge


class Judge:
    """What samples are compared with: the validation patients' lesions by distance, and all their patches by a detector."""

    def __init__(self, folder: PatchFolder, sizes: Sizes):
        def side(split: str) -> DetectorSet:
            indices = folder.select(splits=[split])
            lesion = np.isin(folder.rows.names("label", indices), folder.lesion_classes)
            return DetectorSet(folder.hu(indices), lesion, np.asarray(folder.rows.names("patient", indices)))

        self.reference = Reference(folder, "validation", sizes.encoder_steps)
        self.window, self.samples, self.steps = folder.window, sizes.samples, sizes.encoder_steps // 2
        self.train, self.held_out = side("train"), side("validation")
        self.real = [self.detection(self.real_lesions(seed), seed) for seed in range(3)]

    def real_lesions(self, seed: int) -> np.ndarray:
        lesions = self.train.hu[self.train.lesion]
        return lesions[np.random.default_rng(seed).permutation(len(lesions))[: self.samples]]

    def detection(self, lesions: np.ndarray, seed: int) -> float:
        """AUROC on the held-out patches of a detector trained, classically augmented, on these lesions and real lesion-free patches."""
        free = self.train.hu[~self.train.lesion]
        hu = np.concatenate([lesions, free])
        train = DetectorSet(hu, np.arange(len(hu)) < len(lesions), np.full(len(hu), "training"))
        (run,) = run_detector(train, None, self.held_out, lesions[:0], self.window, seeds=1, steps=self.steps, arms=(CLASSIC,))
        return area_under_roc(run.scores, self.held_out.lesion)


def start_on_phantoms(place: Path, critic_steps: int) -> Checkpoint:
    """A run without privacy on the demo's procedural lesions."""
    with redirect_stdout(sys.stderr):
        phantoms = PatchFolder.open(demo_patches(place / "demo"))
    rows = phantoms.select(splits=["train"], classes=phantoms.lesion_classes)
    return pretrained(phantoms, rows, NetworkConfig(), TrainingConfig(device="cpu"), critic_steps / 33)[0]


def phantom_patches(place: Path, patients: int) -> PatchFolder:
    """A patch folder of that many procedural training patients and a tenth as many to validate with, six lesions each; made on first use."""
    path = place / f"phantoms-{patients}"
    if not path.exists():
        spec = PatchSpec((32, 32), (PHANTOM_MM,) * 2, (-1000.0, 400.0), (*CLASSES, BACKGROUND), background=BACKGROUND)
        held_out, begun = max(patients // 10, 2), Path(f"{path}.begun")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        writer = PatchWriter(begun, spec)
        for n, found in enumerate(map_processes(phantom_patient, range(patients + held_out), 1 if patients < 100 else 0)):
            for label, hu in found:
                writer.add(Patch(hu, f"{n}", f"{n}", label, split="train" if n < patients else "validation"))
            if n % 100 == 99:
                print(f"phantoms: {n + 1} of {patients + held_out}", file=sys.stderr, flush=True)
        writer.finish()
        begun.rename(path)
    return PatchFolder.open(path)


def phantom_patient(n: int) -> list[tuple[str, np.ndarray]]:
    """Class and int16 HU (32, 32) of six lesions of procedural patient n, and of as many places in the lungs away from them."""
    rng = np.random.default_rng([7, n])
    volume, lesions = chest(rng, "", matrix=160, slice_mm=5.0, lesions=6)
    found = [(lesion.label, lesion.center_mm) for lesion in lesions]
    coarse = volume.thinned(4.0)
    for voxel in rng.permutation(np.argwhere(lung_mask(coarse))):
        point = coarse.point_at(voxel)
        if all(np.abs(np.subtract(point, lesion.center_mm)).max() > 16 * PHANTOM_MM + lesion.radius_mm for lesion in lesions):
            found.append((BACKGROUND, point))
        if len(found) == 2 * len(lesions):
            break
    return [(label, cut(volume, centre, (32, 32), PHANTOM_MM)) for label, centre in found]


def one_run(
    folder: PatchFolder, data: TrainingSet, epsilon: float, critic_steps: int, seed: int, start: Checkpoint | None, seconds: float | None,
    reference: Reference, latents: Tensor,
) -> Run:  # fmt: skip
    shown: list[np.ndarray] = []
    config = TrainingConfig(seed=seed, device="cpu")
    if epsilon:
        privacy = PrivacyConfig(epsilon=epsilon, critic_steps=critic_steps)
        plan = plan_for(privacy, len(set(data.patients)))  # type: ignore[arg-type]
        trainer: Trainer = PrivateTrainer(folder.shape, NetworkConfig(), config, privacy, plan, Conditions())
    else:
        trainer = Trainer(folder.shape, NetworkConfig(), config)
    if start:
        start_from(trainer, Conditions(), start)

    def look(trainer: Trainer) -> Point:
        shown[:] = [samples(trainer.average, latents)]
        n_critic = trainer.n_critic if isinstance(trainer, PrivateTrainer) else config.n_critic
        return {"n_critic": n_critic, **reference.distances(shown[0])}

    return Run(train(trainer, data, seconds, look), shown[0])


def quality_table(runs: Mapping[str, Mapping[int, Run]], judge: Judge) -> Iterator[str]:
    reference = judge.reference
    yield "\nsquared Fréchet distance to validation lesions, median over seeds (lowest, highest at the end)"
    for family in FAMILIES:
        yield (
            f"\n{f'{family}, floor {reference.floor[family]:.2f}':<28}"
            + "".join(f"{n}/5".rjust(9) for n in range(1, 6))
            + "   updates  n_critic"
        )
        for name, by_seed in runs.items():
            middles = [statistics.median(run.points[n][family] for run in by_seed.values()) for n in range(5)]
            ends = [run.points[-1][family] for run in by_seed.values()]
            last = next(iter(by_seed.values())).points[-1]
            yield (
                f"{name:<28}" + "".join(f"{d:>9.2f}" for d in middles)
                + f"{last['updates']:>10.0f}{last['n_critic']:>10.0f}   ({min(ends):.2f}, {max(ends):.2f})"
            )  # fmt: skip
    yield f"\n{'TSTR':<28}" + "median, lowest and highest AUROC".rjust(40)
    detections = {"as many real lesions": judge.real} | {name: [run.points[-1]["TSTR"] for run in by.values()] for name, by in runs.items()}
    for name, found in detections.items():
        yield f"{name:<28}{statistics.median(found):>9.3f}   ({min(found):.3f}, {max(found):.3f})"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/privacy.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("cost", "quality", "both"), default="both")
    parser.add_argument("--cohort", choices=("luna", "phantoms", "both"), default="both", help="whose lesions quality is measured on")
    parser.add_argument("--phantoms", type=int, help=f"procedural training patients; default {PHANTOM_PATIENTS:,}")
    parser.add_argument("--work", type=Path, help="folder that keeps the phantoms from one call to the next")
    parser.add_argument("--quick", action="store_true", help="two sizes and 3 rounds; 30 critic steps and one seed unless told otherwise")
    parser.add_argument("--critic-steps", type=int, help="of each private run; default 2000")
    parser.add_argument("--seeds", type=int, help="runs of each kind; default 3")
    parser.add_argument("--json", type=Path, help="file to write ratios, curves and conditions to")
    parser.add_argument("--picture", type=Path, help="file to draw samples of each run into, such as privacy.png")
    options = parser.parse_args(arguments)
    steps, seeds = options.critic_steps or (30 if options.quick else 2000), options.seeds or (1 if options.quick else 3)
    if min(steps, seeds) < 1:
        raise ValueError("want --critic-steps and --seeds of 1 or more")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="opacus")
    ratios: dict[str, float] = {}
    conditions: dict[str, Any] = {
        "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__,
        "processor": processor(torch.device("cpu")), "cores": os.cpu_count(), "threads": 1, "critic_steps": steps, "seeds": seeds,
    }  # fmt: skip
    if options.part != "quality":
        ratios, conditions["cost"] = cost(SIZES[:1] if options.quick else SIZES, QUICK_ROUNDS if options.quick else ROUNDS)
    if options.part != "cost":
        patients, sizes = options.phantoms or (20 if options.quick else PHANTOM_PATIENTS), QUICK if options.quick else Sizes()
        for cohort in ("luna", "phantoms") if options.cohort == "both" else (options.cohort,):
            with tempfile.TemporaryDirectory() as place:
                runs, judge = quality(cohort, options.work or Path(place), steps, seeds, sizes, patients)
            print(f"\n{cohort}")
            for line in quality_table(runs, judge):
                print(line)
            conditions[f"quality, {cohort}"] = {
                "floor": judge.reference.floor, "as many real lesions": judge.real, "privacy": asdict(PrivacyConfig()),
                "runs": {name: [run.points for run in by.values()] for name, by in runs.items()},
            }  # fmt: skip
            if options.picture:
                file = options.picture.with_stem(f"{options.picture.stem}-{cohort}")
                draw(file, {name: by[0].samples for name, by in runs.items()}, None)
    print()
    for name, ratio in ratios.items():
        print(f"{name:<32}{ratio:>8.3f}")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
