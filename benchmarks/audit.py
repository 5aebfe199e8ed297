"""Does private training keep its promise? Attacks on honest mechanisms, and on two that cheat, beside what the accountant says.

  python benchmarks/audit.py --json audit.json        about ten minutes on one CPU core
  python benchmarks/audit.py --quick                  under a minute; shows that it works
  python benchmarks/audit.py --critic-steps 200 --canaries 500

Trained on the real nodules of luna16-patches (in $LESIONGAN_DATA; the README says where they come from), 32 x 32, training split, a
group of scans standing for a patient; networks are small, and half of the canaries, patients with one crafted picture in several
patches each, are put in by a fair coin. The mechanisms:

  no privacy             the plain critic step, twenty times as many of them
  epsilon 10, epsilon 1  PrivateTrainer, noise solved for that epsilon
  clipped per patch      claims epsilon 1: each patch of a patient is shortened to the clip norm, instead of the patient's gradient; a
                         patient with k patches then moves the sum by up to k clip norms
  noise left out         claims epsilon 1, and clips, but adds nothing

Three attacks, as `python -m evaluate privacy` does them, give lower bounds of epsilon that hold together at 95 %; random scores stand
beside them for a fourth. Every bound of an honest mechanism must be below the accountant's epsilon, and a cheat must be caught by one that
is above. A bound cannot pass the cap, which depends on the number of canaries only: no attack can catch a cheat that claims epsilon 10
with so few. Ratios are the best bound over the accountant's epsilon: below 1 where the promise is kept, above 1 where a cheat is caught.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import luna_patches
from data.command import run_command
from data.patches import PatchFolder, WindowedPatches
from evaluate.commands.privacy import attack
from evaluate.privacy_audit import ERROR, AttackResult, attack_result
from evaluate.privacy_report import ATTACKS
from gan.canaries import WatchedTrainer, coins, crafted, crafted_pictures, look_every
from gan.conditions import Conditions
from gan.config import NetworkConfig, PrivacyConfig, TrainingConfig
from gan.privacy import plan_for
from gan.private_trainer import PrivateTrainer
from gan.trainer import Trainer, TrainingSet

NETWORKS = NetworkConfig(channels=16, latent=32)
LEARNING_RATE = 1e-4
"""Of the private mechanisms: with 1e-3 and so much noise the critic drifts to where all gradients are alike, and a cheat is harder to see."""
PLAIN = 20
"""Critic steps without privacy, for each with it."""
DELTA = 1e-5


class ClippedPerPatch(PrivateTrainer):
    """Takes each patch for a patient of its own: the commonest mistake, and the accountant does not notice."""

    def _clipped_sum(self, data: TrainingSet, patients: Sequence[np.ndarray]) -> dict[nn.Parameter, Tensor]:
        plan = self.plan
        self.plan = replace(plan, patches=1)
        try:
            return super()._clipped_sum(
                data, [positions[n : n + 1] for positions in patients for n in range(min(len(positions), plan.patches))]
            )
        finally:
            self.plan = plan


class WatchedPerPatch(WatchedTrainer, ClippedPerPatch):
    """The same, watched."""


class WithoutNoise(WatchedTrainer):
    """Clips, and adds nothing."""

    def _private_critic_step(self, data: TrainingSet) -> float:
        with patch("gan.private_trainer.gaussian", lambda count: torch.zeros(count, dtype=torch.float64)):
            return super()._private_critic_step(data)


MECHANISMS: dict[str, tuple[type[WatchedTrainer] | None, float]] = {
    "no privacy": (None, float("inf")),
    "epsilon 10": (WatchedTrainer, 10.0),
    "epsilon 1": (WatchedTrainer, 1.0),
    "clipped per patch": (WatchedPerPatch, 1.0),
    "noise left out": (WithoutNoise, 1.0),
}
"""Name -> (trainer, the epsilon that it claims)."""


@dataclass(frozen=True)
class Sizes:
    """canaries, and how many patches each has; critic_steps with privacy; joining: patients expected in a critic step."""

    canaries: int = 200
    patches: int = 16
    critic_steps: int = 100
    joining: int = 64


QUICK = Sizes(60, 8, 8)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/audit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few canaries and steps unless told otherwise")
    parser.add_argument("--canaries", type=int, help=f"default {Sizes().canaries}")
    parser.add_argument("--critic-steps", type=int, help=f"of the private mechanisms; default {Sizes().critic_steps}")
    parser.add_argument("--patches", type=int, help=f"of a patient in a critic step; default {Sizes().patches}")
    parser.add_argument(
        "--mechanisms", nargs="+", choices=list(MECHANISMS), default=list(MECHANISMS), metavar="NAME", help="which; default all"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--json", type=Path, help="file to write ratios, bounds and conditions to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    given = {name: getattr(options, name) for name in ("canaries", "critic_steps", "patches") if getattr(options, name) is not None}
    sizes = replace(QUICK if options.quick else Sizes(), **given)
    with tempfile.TemporaryDirectory() as place:
        folder = luna_patches(Path(place))
        found = {}
        for name in options.mechanisms:
            started = time.process_time()
            found[name] = audited(folder, *MECHANISMS[name], sizes)
            print(f"{name}: {time.process_time() - started:.0f} s", file=sys.stderr, flush=True)
    print_table(found)
    if options.json:
        ratios = {
            f"{name.replace(' ', '_')}_bound_over_accountant": round(
                max(one.epsilon for one in attacks if one.name != "chance") / epsilon, 3
            )
            for name, (epsilon, attacks) in found.items()
            if np.isfinite(epsilon)
        }
        results = {
            name: {one.name: [one.epsilon, one.auroc, one.auroc_interval.low, one.auroc_interval.high] for one in attacks}
            for name, (_, attacks) in found.items()
        }
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
            "cores": os.cpu_count(), "threads": options.threads, **vars(sizes), "channels": NETWORKS.channels, "learning_rate": LEARNING_RATE,
            "delta": DELTA, "cap": next(iter(found.values()))[1][0].cap, "bound_auroc_low_high": results,
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


def audited(
    folder: PatchFolder, mechanism: type[WatchedTrainer] | None, epsilon: float, sizes: Sizes
) -> tuple[float, tuple[AttackResult, ...]]:
    """What the accountant says, and the attacks at the end, with random scores for the last one."""
    indices, rng = folder.select(splits=["train"], classes=folder.lesion_classes), np.random.default_rng()
    data = TrainingSet(WindowedPatches(folder, indices), patients=folder.rows.names("patient", indices))
    config = TrainingConfig(steps=PLAIN * sizes.critic_steps, device="cpu", seed=int(rng.integers(2**31)))
    trainer: Trainer
    if mechanism is None:
        trainer, copies = Trainer(folder.shape, NETWORKS, config), 2
    else:
        privacy = PrivacyConfig(
            epsilon=epsilon, delta=DELTA, patients=sizes.joining, patches=sizes.patches, critic_steps=sizes.critic_steps, adaptive=False
        )
        plan, copies = plan_for(privacy, len(set(data.patients))), sizes.patches  # type: ignore[arg-type]
        trainer = mechanism(folder.shape, NETWORKS, replace(config, learning_rate=LEARNING_RATE), privacy, plan, Conditions())
    canaries = crafted(sizes.canaries, copies, folder.shape, Conditions(), rng)
    every = look_every(trainer, canaries) if mechanism is None else 1
    included, reference = coins(len(canaries)), crafted_pictures(1000, folder.shape, rng)
    report = attack(trainer, data, canaries, reference, included, every, {"delta": DELTA}, rng, moments=1)
    (last,) = report.moments
    chance = attack_result("chance", rng.random(len(canaries)), included, DELTA, rng, ERROR / len(ATTACKS))
    return last.accountant, (*last.attacks, chance)


def print_table(found: dict[str, tuple[float, tuple[AttackResult, ...]]], say: Callable[[str], None] = print) -> None:
    """A row a mechanism: the accountant's epsilon, each attack's bound and AUROC, TPR of the best, and whether the promise holds."""
    first = next(iter(found.values()))[1]
    say(
        f"{first[0].canaries} canaries, which can show an epsilon of {first[0].cap:.2f} at most; bound (AUROC) of each attack, together at 95 %\n"
    )
    say(f"{'mechanism':<20}{'accountant':>11}" + "".join(f"{one.name:>15}" for one in first) + f"{'TPR at 1 % FPR':>16}   verdict")
    for name, (epsilon, attacks) in found.items():
        best = max(attacks[:-1], key=lambda one: (one.epsilon, one.auroc))
        cells = "".join(f"{f'{one.epsilon:.2f} ({one.auroc:.2f})':>15}" for one in attacks)
        tpr = "-" if best.tpr_interval is None else f"{best.tpr_at_1_percent_fpr:.0%}"
        verdict = "no promise" if np.isinf(epsilon) else "BROKEN" if best.epsilon > epsilon else "not refuted"
        say(f"{name:<20}{epsilon:>11.2f}{cells}{tpr:>16}   {verdict}")


if __name__ == "__main__":
    run_command(main)
