"""From a trained generator, the teacher, to a small one that draws what it draws, the student: for machines without a GPU.

All that the student learns from are the teacher's samples, for latents and conditions drawn here. No patient's patch is read, so what
differential privacy promises of the teacher it promises of the student too (Dwork and Roth 2014, Proposition 2.1, post-processing).

A student that only regresses its teacher's pixels blurs what it has no room for. So a critic of its own learns with it, to tell its
samples from the teacher's as a WGAN-GP's critic does, and makes it draw sharply what the regression keeps near.

Shapes: N patches, 1 channel, *S = (H, W) or (D, H, W), float32 in [-1, 1]. Conditions are (N, K), see conditions.py.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from gan.conditions import Conditions
from gan.config import TrainingConfig
from gan.losses import critic_gradients, generator_loss
from gan.networks import BatchNorm, Critic, Generator, place
from gan.run_folder import NO_GUARANTEE, NOT_COVERED, NOT_KNOWN, licence_of
from gan.sampling import TILE, Model, generate, of_whole_patches

RATE = 2.0
"""The student's learning rate at its highest, over that of a run of this shape, which is also its critic's: its task stands still."""
NEARNESS = 0.6
"""What the distance from the teacher's sample pulls at most, over the critic's slope, which the penalty holds near 1."""
SHOWN = 4
"""Times that each of the teacher's samples is shown: drawing one costs as much as learning from it a few times."""
LOG_EVERY = 10

PASSED_ON = "What the teacher remembers of them, this model may have learned from its samples."
PASSED_ON_PRIVATE = "what was promised of the teacher holds for this model too, which saw nothing but the teacher's samples:"

_INIT, _DRAW, _STEP, _STATISTICS = range(4)
_ROUND_PIXELS, _BATCH_PIXELS = 1 << 23, 1 << 16
_WARM_UP = 100
_SETTLED_ON = 16


@dataclass(frozen=True)
class Student:
    """A distilled generator: its last weights, their moving average, its critic; and on how many of the teacher's samples it was trained."""

    generator: Generator
    average: Generator
    critic: Critic
    samples: int


@dataclass(frozen=True)
class Cost:
    """What it takes to draw one sample. ms: measured, see `costs`."""

    model_sha256: str
    channels: int
    parameters: int
    multiply_adds: int
    ms: float


@dataclass(frozen=True)
class Distance:
    """How far the student is from its teacher, on so many samples of each.

    apart: the mean absolute difference at equal latents, and apart_by_chance that of two unrelated samples of the teacher, both in `unit`.
    frechet: the squared Fréchet distance of radiomic features between the student's samples and others of the teacher; floor: between
    two sets of the teacher's.
    """

    samples: int
    unit: str
    apart: float
    apart_by_chance: float
    frechet: float
    floor: float

    def lines(self) -> list[str]:
        """In words."""
        return [
            f"at equal latents {self.apart:.1f} {self.unit} from the teacher's sample (mean absolute difference); two unrelated ones of the "
            f"teacher are {self.apart_by_chance:.1f} {self.unit} apart",
            f"squared Fréchet distance to the teacher's samples {self.frechet:.2f} (radiomic features, {self.samples:,} samples of each); "
            f"between two sets of the teacher's {self.floor:.2f}",
        ]


def check_channels(teacher: Model, channels: int) -> None:
    """Raises ValueError for a student that would not be smaller than its teacher."""
    most = _channels(of_whole_patches(teacher)) - 1
    if not 1 <= channels <= most:
        raise ValueError(
            f"--channels {channels}: the run's generator has {most + 1}, " + (f"want 1 to {most}" if most else "and none is smaller")
        )


def draw(model: Model, count: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray | None]:
    """Latents (count, latent), and for a model that takes any, conditions (count, K): every class equally often, diameters evenly on a
    log scale."""
    z = torch.from_numpy(rng.standard_normal((count, model.generator.latent), dtype=np.float32))
    return z, model.conditions.evenly(count, rng)[0]


def distil(
    teacher: Model, channels: int, steps: int, seed: int = 0, log: Callable[[int, float], None] = lambda step, apart: None
) -> Student:
    """A generator of so many channels that draws nearly what the teacher draws for the same latents and conditions.

    log: told the steps done, and how far student and teacher were apart in the last of them: the mean absolute difference of their pixels.
    Raises ValueError when a weight is not finite any more.
    """
    shape = tuple(teacher.trained_on["shape"])
    pixels = math.prod(shape)
    batch = min(64, max(16, _BATCH_PIXELS // pixels))
    config = TrainingConfig(batch=batch).settled(shape)
    rate, weight = config.learning_rate or 0.0, config.penalty_weight or 0.0
    pairs = max(1, round(config.penalty_fraction * batch))
    student, critic = _networks(teacher, shape, channels, seed)
    average = copy.deepcopy(student).requires_grad_(False)
    learns, judges = (torch.optim.Adam(net.parameters(), lr=rate, betas=config.betas, foreach=True) for net in (student, critic))
    count = min(max(batch, _ROUND_PIXELS // pixels), math.ceil(steps * batch / SHOWN))
    each = max(1, SHOWN * count // batch)  # steps on so many samples
    recent: list[Tensor] = []
    for step in range(steps):
        if step % each == 0:
            z, condition, wanted = _samples(teacher, count, np.random.default_rng([seed, _DRAW, step // each]))
        rng = np.random.default_rng([seed, _STEP, step])
        rows = torch.from_numpy(rng.integers(count, size=batch)).to(z.device)
        given, x = None if condition is None else condition[rows], wanted[rows]
        drawn = student(z[rows], given)
        mix = torch.from_numpy(rng.random((pairs, *[1] * (1 + len(shape))), dtype=np.float32)).to(z.device)
        found, _ = critic_gradients(critic, x, drawn.detach(), mix, weight, given)
        for parameter, gradient in found.items():
            parameter.grad = gradient
        judges.step()
        apart = (drawn - x).abs().mean()
        learns.zero_grad()
        (generator_loss(critic, drawn, given) + NEARNESS * pixels**0.5 * apart).backward()
        for group in learns.param_groups:
            group["lr"] = RATE * rate * min(1.0, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
        learns.step()
        half_life = config.average_share * (step + 1)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(student.parameters()), 1 - 0.5 ** (1 / half_life))
        recent.append(apart.detach())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            now = torch.stack(recent).mean().item()
            if not math.isfinite(now):
                raise ValueError(f"distilling diverged before step {step + 1}: a weight is not finite any more; choose another --seed")
            log(step + 1, now)
            recent.clear()
    for net in (student, average):
        _settle(net, teacher, batch, seed)
    return Student(student, average, critic, count * math.ceil(steps / each))


def _networks(teacher: Model, shape: tuple[int, ...], channels: int, seed: int) -> tuple[Generator, Critic]:
    device = next(teacher.generator.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng([seed, _INIT]).integers(2**63)))
        student = Generator(shape, channels, teacher.generator.latent, teacher.conditions.size)
        critic = Critic(shape, channels, teacher.conditions.size)
    return place(student, device, len(shape)), place(critic, device, len(shape))


def _samples(teacher: Model, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor | None, Tensor]:
    """Latents, conditions and what the teacher draws for them, on its device."""
    device = next(teacher.generator.parameters()).device
    z, condition = draw(teacher, count, rng)
    x = torch.from_numpy(np.concatenate(list(generate(teacher, z, condition))))
    return z.to(device), None if condition is None else torch.from_numpy(condition).to(device), x.to(device)


@torch.no_grad()
def _settle(net: Generator, teacher: Model, batch: int, seed: int) -> None:
    """Gives a generator the batch statistics of the weights it has now, as Trainer.settle does."""
    for layer in net.modules():
        if isinstance(layer, BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean of all batches
    net.train()
    for n in range(_SETTLED_ON):
        z, condition = draw(teacher, batch, np.random.default_rng([seed, _STATISTICS, n]))
        given = None if condition is None else torch.from_numpy(condition).to(net.bias)
        net(z.to(net.bias), given)
    net.eval()


def save_student(folder: Path, teacher: Checkpoint, student: Student, channels: int, steps: int, seed: int) -> None:
    """Writes the student's checkpoint into a new run folder: what the teacher was trained on and what was spent of privacy stay with it.

    Raises OSError where it cannot be written.
    """
    networks = {"generator": student.generator, "average": student.average, "critic": student.critic}
    tensors = {f"{name}.{key}": tensor for name, net in networks.items() for key, tensor in net.state_dict().items()}
    settings = {
        "networks": {**teacher.config["networks"], "channels": channels}, "conditions": teacher.config.get("conditions", {}),
        "distillation": {"teacher_sha256": teacher.model_hash, "teacher_step": teacher.step, "steps": steps, "samples": student.samples},
    }  # fmt: skip
    random = {"seed": seed, "scheme": "numpy.random.default_rng([seed, purpose, step])"}
    save_checkpoint(folder, Checkpoint(steps, settings, teacher.trained_on, tensors, random, teacher.privacy_spent))


def multiply_adds(generator: Generator) -> int:
    """Multiplications with a weight that one sample takes: of the linear layer and the convolutions, as they are computed."""
    weight = generator.project.weight
    condition = weight.new_zeros(1, generator.conditions) if generator.conditions else None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        generator(weight.new_zeros(1, generator.latent), condition)
    return int(counter.get_total_flops()) // 2


def costs(*models: Model, rounds: int = 10) -> list[Cost]:
    """What a sample takes of each model. ms: drawn TILE at a time, the models in turn, the fastest of so many rounds."""
    rng, fastest = np.random.default_rng(0), [math.inf] * len(models)
    for _ in range(rounds):
        for n, model in enumerate(models):
            z, condition = draw(model, TILE, rng)
            started = time.perf_counter()
            list(generate(model, z, condition))
            fastest[n] = min(fastest[n], time.perf_counter() - started)
    return [
        Cost(model.model_hash, _channels(net), sum(p.numel() for p in net.parameters()), multiply_adds(net), 1000 * seconds / TILE)
        for model, net, seconds in zip(models, map(of_whole_patches, models), fastest, strict=True)
    ]


def _channels(generator: Generator) -> int:
    return int(generator.layers[-1].weight.shape[0])  # type: ignore[union-attr, index]


def table(teacher: Cost, student: Cost) -> str:
    """Both costs and their ratios, as a Markdown table that is also aligned to be read as it is."""
    rows = [["", "channels", "parameters", "multiply-adds a sample", "ms a sample"]]
    for name, cost in (("teacher", teacher), ("student", student)):
        rows.append([name, f"{cost.channels}", f"{cost.parameters:,}", f"{cost.multiply_adds:,}", f"{cost.ms:.3g}"])
    parts = ("channels", "parameters", "multiply_adds", "ms")
    rows.append(["ratio", *(f"{getattr(teacher, part) / getattr(student, part):.1f}" for part in parts)])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * wide[0], *("-" * (width - 1) + ":" for width in wide[1:])])
    return "\n".join(f"| {' | '.join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])])} |" for row in rows)


def write_card(folder: Path, teacher: Cost, student: Cost, distance: Distance, where: str) -> None:
    """What a reader must know before using the student in this run folder: whose samples it learned from, what it costs and how far it
    is from them, and what holds for it because it held for the teacher.

    where: the machine that the milliseconds are of. Raises OSError where the card cannot be written.
    """
    checkpoint = load_checkpoint(folder)
    trained_on, private, told = checkpoint.trained_on, checkpoint.privacy_spent, checkpoint.config["distillation"]
    low, high = trained_on["window"]
    conditions = Conditions.of(checkpoint.config.get("conditions", {}))
    asked_for = ", ".join([*conditions.classes, *["a diameter in mm"] * conditions.diameter])
    warning = "" if trained_on.get("patients_known", True) else f"- warning: {NOT_KNOWN}\n"
    privacy = f"{PASSED_ON_PRIVATE} {private['sentence']}{NOT_COVERED}" if private else f"{NO_GUARANTEE}\n  {PASSED_ON}"
    card = f"""# Model card

A small generator, distilled from that of a WGAN-GP (Gulrajani et al. 2017) that draws CT patches of lesions. Its images are synthetic.

- model: SHA-256 {checkpoint.model_hash}, step {checkpoint.step}
- distilled from: the averaged generator of the model with SHA-256 {told["teacher_sha256"]}, step {told["teacher_step"]};
  by {told["steps"]} steps on {told["samples"]} of its samples. No patch of a patient was read; the teacher's own card says how it was trained
- the teacher was trained on: {trained_on["patients"]} patients;
  {" x ".join(map(str, trained_on["shape"]))} pixels, spacing {trained_on["spacing_mm"] or "unknown"} mm, window {low:g} to {high:g} {trained_on["unit"]}
- licence or terms of the data: {licence_of(trained_on)}
- can be asked for: {asked_for or "nothing; it draws all classes as one"}
- cost, measured on {where}:

{table(teacher, student)}

{"".join(f"- {line}" + chr(10) for line in distance.lines())}{warning}- privacy: {privacy}
- use: research and training data for detectors, after an audit (`python -m evaluate`). Not for diagnosis.
"""
    write_atomically(folder / "model_card.md", card.encode())
