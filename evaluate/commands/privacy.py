"""Trains a copy of a run with canaries, and attacks it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from data.command import time_left
from gan.commands.shared import training_set

if TYPE_CHECKING:
    import numpy as np

    from data.patches import PatchFolder
    from evaluate.privacy_report import PrivacyReport
    from gan.canaries import Canaries
    from gan.conditions import Conditions
    from gan.trainer import Trainer, TrainingSet

DESCRIPTION = """Attack a run: does it keep what differential privacy promises, and what does a run without it give away?

  python -m evaluate privacy run patches --out audit
  python -m evaluate privacy run patches --out audit --critic-steps 500            shorter, and against the epsilon of 500 steps
  python -m evaluate privacy run patches --out audit --canaries 1000               slower, and able to show more
  python -m evaluate privacy run patches --out audit --canary-kind held-out        real patients instead of crafted ones

RUN is a run folder of train.py and PATCHES the patch folder that it was trained on; neither is changed. A copy of the run is
trained, with the same settings and secrets of its own, on the training patients and on canaries: patients whom a fair coin puts in
or leaves out. Three attacks then try to tell who was in: by the critic's gradients (white box), by its scores, and by synthetic patches
alone (black box). How well they do proves a lower bound of epsilon, which must stay below what the accountant says of the steps
that are done; a bound of 0 means that nothing was shown, not that nothing leaks. In the folder --out:
  audit.html   to read: the verdict, the attacks, how it was done
  audit.json   the same numbers, at eight moments of the run
  bounds.png   the bounds under the accountant's epsilon, over the steps

A copy takes two to three times as long as the run did, and says how long after some seconds. An audit is outside the guarantee: its numbers
depend on training patients, so it stays where they do.

Exit codes: 0 done, 1 the guarantee is broken, 2 bad input, 130 or 143 interrupted, nothing left behind."""


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=str, help="run folder of train.py")
    parser.add_argument("patches", type=str, help="patch folder that it was trained on")
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--canaries", type=int, default=100, help="patients to put in or leave out, 20 or more")
    parser.add_argument(
        "--canary-kind",
        type=Literal["crafted", "held-out"],
        default="crafted",
        help="crafted: pictures easy to remember; held-out: three quarters of the validation and test patients, at most",
    )
    parser.add_argument("--critic-steps", type=int | None, default=None, help="how many to train; without, as many as the run has done")
    parser.add_argument(
        "--look-every",
        type=int | None,
        default=None,
        help="critic steps from one look at gradients to the next; without, so that looking takes as long as training. 1 shows the most",
    )
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to compute")
    parser.add_argument(
        "--seed", type=int | None, default=None, help="for tests: coins and canaries follow from it; without, nobody can know them"
    )


def run(options: Namespace) -> int:
    """Reads a run and its patches, trains a copy with canaries and attacks it; 1 when its guarantee is broken."""
    import numpy as np

    from data.files import new_folder
    from data.patches import PatchFolder
    from evaluate.privacy_report import bounds_picture, to_html, to_text
    from evaluate.privacy_report import to_json as audit_json
    from gan.canaries import coins, critic_steps_of, look_every, untrained_copy
    from gan.checkpoint import load_checkpoint
    from gan.conditions import Conditions
    from gan.networks import device_of
    from gan.private_trainer import PrivateTrainer

    run, folder = Path(options.run), PatchFolder.open(options.patches)
    checkpoint = load_checkpoint(run, warn=lambda line: print(f"warning: {line}", file=sys.stderr))
    if "training" not in checkpoint.config:
        raise ValueError(f"{run}: distilled from another run and never trained on patients; audit the run that it was distilled from")
    if "context" in checkpoint.config:
        raise ValueError(f"{run}: draws lesions into anatomy, which this attack does not know how to do")
    _check_trained_on(run, checkpoint.trained_on, folder)
    done = critic_steps_of(checkpoint)
    steps = done if options.critic_steps is None else options.critic_steps
    if not 1 <= steps <= done:
        raise ValueError(f"--critic-steps is {steps}, want 1 to {done}, as many as {run} has done")
    if options.look_every is not None and options.look_every < 1:
        raise ValueError(f"--look-every is {options.look_every}, want 1 or more")
    device_of(options.device)
    conditions = Conditions.of(checkpoint.config.get("conditions", {}))
    balance = checkpoint.config["training"]["balance"]
    data, held_out = (
        training_set(folder, folder.select(splits=[split], classes=folder.lesion_classes), conditions, balance)
        for split in ("train", "validation")
    )
    patients = len(set(data.patients if data.patients is not None else ()))
    attacker = np.random.default_rng(options.seed)
    with new_folder(options.out) as out:
        trainer = untrained_copy(run, checkpoint, steps, int(attacker.integers(2**31)), options.device)
        plan = trainer.plan if isinstance(trainer, PrivateTrainer) else None
        copies = plan.patches if plan else round(len(data.patches) / patients)  # as many as others have
        canaries, reference = _canaries(folder, options.canary_kind, options.canaries, copies, conditions, attacker)
        every = options.look_every or look_every(trainer, canaries)
        settings = {
            "canaries": len(canaries), "canary_kind": options.canary_kind, "patches_of_a_canary": copies if canaries.copies > 1 else None,
            "critic_steps": steps, "look_every": every, "training_patients": patients, "delta": plan.delta if plan else 1e-5,
            "sample_rate": plan and plan.sample_rate, "noise_multiplier": plan and plan.noise_multiplier, "clip_norm": plan and plan.clip_norm,
            "model_sha256": checkpoint.model_hash, "seed": options.seed,
        }  # fmt: skip
        print(
            f"training a copy of {run}: {steps:,} critic steps on {patients} patients and {len(canaries)} canaries, of whom a "
            f"coin leaves out half; gradients are looked at every {every} steps",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        included = coins(len(canaries), options.seed)
        validation = held_out if len(held_out.patches) else None
        report = attack(trainer, data, canaries, reference, included, every, settings, attacker, validation, time_left())
        (out / "audit.json").write_text(audit_json(report), encoding="utf-8")
        picture = bounds_picture(report)
        (out / "bounds.png").write_bytes(picture)
        (out / "audit.html").write_text(to_html(report, picture), encoding="utf-8")
    print(f"{to_text(report)}\n\n{options.out}/audit.html\n{options.out}/audit.json\n{options.out}/bounds.png")
    return int(bool(report.broken))


def attack(
    trainer: Trainer, data: TrainingSet, canaries: Canaries, reference: np.ndarray, included: np.ndarray, every: int,
    settings: Mapping[str, Any], rng: np.random.Generator, held_out: TrainingSet | None = None,
    tell: Callable[[float, float], None] = lambda progress, seconds: None, moments: int = 8,
) -> PrivacyReport:  # fmt: skip
    """Trains with the canaries that are in, and attacks at so many moments. settings: told in the report; delta is among them.

    reference: float32 (N, 1, *S), real patches of nobody who was trained on, or crafted ones of no canary.
    """
    from evaluate.privacy_report import PrivacyReport, audited_moment, nearest_scores
    from gan.canaries import attacked

    patches, found = [canaries.patches[positions, 0] for positions in canaries.of_each()], []
    for moment in attacked(trainer, data, canaries, included, every, moments, rng, held_out, tell):
        nearest = nearest_scores(patches, moment.synthetic[:, 0], reference[:, 0])
        scores = {"gradients": moment.gradient_scores, "critic": moment.critic_scores, "nearest": nearest}
        found.append(audited_moment(moment.critic_steps, moment.epsilon, scores, included, settings["delta"], rng))
    return PrivacyReport(tuple(found), settings)


def _check_trained_on(run: Path, trained_on: Mapping[str, Any], folder: PatchFolder) -> None:
    """Raises ValueError when the run was trained on other patches, as far as it says which."""
    indices = folder.select(splits=["train"], classes=folder.lesion_classes)
    here = {
        "shape": list(folder.shape), "spacing_mm": folder.spacing_mm and list(folder.spacing_mm), "window": list(folder.window),
        "unit": folder.unit, "classes": list(folder.lesion_classes), "patients": len(set(folder.rows.names("patient", indices).tolist())),
        "content_sha256": folder.content_hash,
    }  # fmt: skip
    for name, value in here.items():
        if trained_on.get(name, value) != value:
            raise ValueError(
                f"{run} was trained on other patches than {folder.path}: {name} {trained_on[name]}, here {value}; give the folder of its --data"
            )


def _canaries(
    folder: PatchFolder, kind: str, most: int, copies: int, conditions: Conditions, rng: np.random.Generator
) -> tuple[Canaries, np.ndarray]:
    """The canaries, and patches of others, float32 (N, 1, *S), to compare with. Raises ValueError for fewer than 20."""
    import numpy as np

    from evaluate.privacy_audit import LEAST
    from gan.canaries import Canaries, crafted, crafted_pictures

    if most < LEAST:
        raise ValueError(f"--canaries is {most}, want {LEAST} or more: fewer show next to nothing")
    if kind == "crafted":
        return crafted(most, copies, folder.shape, conditions, rng), crafted_pictures(1000, folder.shape, rng)
    indices = folder.select(splits=["validation", "test"], classes=folder.lesion_classes)
    names, patients = np.unique(folder.rows.names("patient", indices), return_inverse=True)
    order, count = rng.permutation(len(names))[patients], min(most, 3 * len(names) // 4)
    if count < LEAST:
        raise ValueError(
            f"{folder.path} has {len(names)} validation and test patients, and three quarters of them are fewer than {LEAST} canaries; prepare more, "
            "or use crafted ones (--canary-kind crafted)"
        )
    rows = np.argsort(order, kind="stable")
    mine, others = rows[order[rows] < count], rows[order[rows] >= count]
    found = training_set(folder, indices[mine], conditions)
    everything = np.arange(len(mine))
    reference = training_set(folder, indices[others[:1000]], conditions).patches
    return Canaries(np.asarray(found.patches[everything]), order[mine], found.condition), np.asarray(reference[np.arange(len(reference))])
