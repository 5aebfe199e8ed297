"""What privacy costs: in time, beside the plain step, and in quality, beside the plain run.

  python benchmarks/privacy.py --part cost                       a few minutes
  python benchmarks/privacy.py --part quality --picture p.png    about an hour of CPU time: 5 runs, 3 seeds
  python benchmarks/privacy.py --quick --json privacy.json       under a minute; of quality it shows only that it works

cost: one critic step with Adam on 64 pairs, 32 patients with 2 each, all pairs with penalty; in turns in one process, after one untimed turn.
Before anything is timed, the two private forms are compared in float64.

  plain                  lesiongan's step
  private                the same passes, each patient's gradient clipped; noise
  oracle                 the same by torch.func, which the tests compare it with
  no penalty             a critic loss without penalty, by autograd on a plain network
  Opacus, no penalty     the same with Opacus' per-sample gradients and noise: it cannot do the penalty, and it protects patches, not patients

quality: real nodules of luna16-patches, 32 x 32, training split; a "patient" is one of its 275 training groups. Privacy as train.py has it with epsilon
10, 3 and 1 and delta 1e-5; epsilon 10 started from the procedural phantom's lesions (which are nobody's); and none, trained for as many CPU
seconds as epsilon 10 took. 1,000 samples of each are compared with the nodules of the validation patients as quality.py does, by which
nothing was chosen. The floor is what the training nodules themselves score.

Ratios are times over the plain step's of the same loss, the most over the sizes; below 1.5 (private) and 2.5 (oracle) was aimed for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.few_cases import draw, pretrained
from benchmarks.quality import FAMILIES, QUICK, Point, Reference, Sizes, fixed_latents, luna_patches, samples, training_nodules
from benchmarks.step import PENALTY, Clock, Draws, LeakyReLU, Size, networks, plain_networks, processor
from data.command import run_command
from data.patches import PatchFolder
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
    "none": (0.0, False),
}  # fmt: skip
"""Name -> the budget, 0 for no privacy, and whether it starts from the phantoms' weights."""


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


def cost(sizes: Sequence[Size], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Ratios and conditions; prints a table. Raises ValueError where the private forms differ."""
    clock, ratios, details = Clock(torch.device("cpu")), dict[str, float](), dict[str, Any]()
    for size in sizes:
        difference = apart(size)
        if not difference < 1e-9:
            raise ValueError(f"{size}: the private gradients differ by {difference:.1e}, so times say nothing")
        forms: dict[str, Callable[[], None]] = {"plain": Pairs(size).plain}
        forms |= {name: partial(Pairs(size).private, way) for name, way in PRIVATE.items()}
        forms |= {"no penalty": no_penalty(size, False), "Opacus, no penalty": no_penalty(size, True)}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for n in range(rounds + 1):
            for name, form in forms.items():
                seconds = clock.seconds(form)
                if n:
                    times[name].append(seconds)
        middle = {name: statistics.median(seconds) for name, seconds in times.items()}
        over = {name: middle[name] / middle["no penalty" if "no penalty" in name else "plain"] for name in forms}
        print(
            f"\n{size}, {size.batch // EACH} patients: ms a critic step ({clock.name}), over the plain step of the same loss; apart by {difference:.0e}"
        )
        for name in forms:
            print(f"{name:<24}{1000 * middle[name]:>10.1f}{over[name]:>8.2f}")
        for name, key in (("private", "private_step_cost"), ("oracle", "oracle_step_cost"), ("Opacus, no penalty", "opacus_step_cost")):
            ratios[key] = max(ratios.get(key, 0.0), round(over[name], 3))
        details[str(size)] = {"seconds": times, "over": over, "apart": difference}
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


def quality(place: Path, critic_steps: int, seeds: int, sizes: Sizes) -> tuple[dict[str, dict[int, Run]], Reference]:
    folder = luna_patches(place)
    reference, latents = Reference(folder, "validation", sizes.encoder_steps), fixed_latents(sizes.samples)
    patches = training_nodules(folder)
    data = TrainingSet(patches, patients=folder.rows.names("patient", patches.indices))
    with redirect_stdout(sys.stderr):
        phantoms = PatchFolder.open(demo_patches(place / "demo"))
    rows = phantoms.select(splits=["train"], classes=phantoms.lesion_classes)
    start, _ = pretrained(phantoms, rows, NetworkConfig(), TrainingConfig(device="cpu"), critic_steps / 33)
    runs: dict[str, dict[int, Run]] = {name: {} for name in RUNS}
    for seed in range(seeds):
        for name, (epsilon, from_phantoms) in RUNS.items():
            as_long = runs["epsilon 10"][seed].points[-1]["seconds"] if name == "none" else None
            runs[name][seed] = one_run(
                folder, data, epsilon, critic_steps, seed, start if from_phantoms else None, as_long, reference, latents
            )
            ends = ", ".join(f"{family} {runs[name][seed].points[-1][family]:.2f}" for family in FAMILIES)
            print(f"{name}, seed {seed}: {ends}", file=sys.stderr, flush=True)
    return runs, reference


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


def quality_table(runs: Mapping[str, Mapping[int, Run]], reference: Reference) -> Iterator[str]:
    yield "\nsquared Fréchet distance to validation nodules, median over seeds (lowest, highest at the end)"
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


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/privacy.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("cost", "quality", "both"), default="both")
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
        with tempfile.TemporaryDirectory() as place:
            runs, reference = quality(Path(place), steps, seeds, QUICK if options.quick else Sizes())
        for line in quality_table(runs, reference):
            print(line)
        conditions["quality"] = {
            "floor": reference.floor, "runs": {name: [run.points for run in by.values()] for name, by in runs.items()},
            "privacy": asdict(PrivacyConfig()),
        }  # fmt: skip
        if options.picture:
            draw(options.picture, {name: by[0].samples for name, by in runs.items()}, None)
    print()
    for name, ratio in ratios.items():
        print(f"{name:<32}{ratio:>8.3f}")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
