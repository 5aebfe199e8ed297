"""What privacy costs in quality, on the data that private image generators publish their figures for: MNIST at epsilon 10.

  python benchmarks/mnist.py --mnist FOLDER --inception-weights FILE --json mnist.json --picture mnist.png       meant for a GPU
  python benchmarks/mnist.py --quick                        under a minute on one core; shows that it works, and nothing of quality

FOLDER holds MNIST's four IDX files, plain or .gz, such as train-images-idx3-ubyte.gz. Nothing is downloaded: they are at
https://ossci-datasets.s3.amazonaws.com/mnist/ (yann.lecun.com no longer serves them), and FILE, weights-inception-2015-12-05-6726825d.pth,
is among torch-fidelity's releases. Only --quick goes without MNIST: on digits drawn with a font.

Every image is a patient with one patch, padded to 32 x 32, conditional on its digit; delta is 1e-5. Settings are train.py's but for
these, which nobody has tuned on MNIST: 512 patients expected in a critic step, 10,000 critic steps, 10 for an update and more as the
critic loses its hold (privacy.adaptive), batches of 128 for the generator, no mirroring.

60,000 samples of the averaged generator, as many of each digit, cut back to 28 x 28, are judged by

  accuracy   on the 10,000 test images, of a small network trained on the samples only, always as long, its last weights
  FID        of the standard Inception's 2,048 features, gray repeated over its three channels: to the 10,000 test images, as the released
             code of Bie et al. has it, and to the 60,000 training images, as DPDM's released configuration has it; without FILE, none

beside what the training images score themselves, and the published: DPGAN with adaptive n_critic (Bie, Kamath & Zhang 2022, Private GANs,
revisited) and DPDM, a diffusion model (Dockhorn, Cao, Vahdat & Kreis 2022). Classifiers and Inception ports are not the same, so small
differences mean nothing. Every seed is a private run of its own; of one secret data set, their epsilons would add up.

Ratios are ours over the published, median over seeds, of FID (test images) and of the share of errors; below 1 is better. Only for
epsilon 10 on all of MNIST are there any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step import processor
from data.command import run_command
from data.export import write_preview
from evaluate.distances import frechet_distance
from evaluate.features import Extractor, inception
from gan.conditions import Conditions
from gan.config import NetworkConfig, PrivacyConfig, TrainingConfig
from gan.networks import Generator, device_of
from gan.privacy import plan_for
from gan.private_trainer import PrivateTrainer
from gan.trainer import TrainingSet
from gan.training import in_memory

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {"training": ("train-images-idx3", "train-labels-idx1"), "test": ("t10k-images-idx3", "t10k-labels-idx1")}
SIDE, PADDED = 28, 32
WHITE = (0.0, 255.0)
DIGITS = tuple("0123456789")
EPSILON, DELTA = 10.0, 1e-5
PUBLISHED = {"DPGAN, adaptive n_critic": (13.3, 0.944), "DPDM": (5.0, 0.981)}
"""Name -> (FID, accuracy)."""
BATCH = 128
"""Samples in a generator step, and images in one of the classifier's."""
SHOWN = 20
"""Samples of each digit in the picture."""


@dataclass(frozen=True)
class Sizes:
    """images: at most so many, training and test. patients: expected in a critic step. judge_steps: of the classifier."""

    images: tuple[int, int] = (60_000, 10_000)
    channels: int = NetworkConfig.channels
    patients: int = 512
    critic_steps: int = 10_000
    samples: int = 60_000
    judge_steps: int = 4_700


QUICK = Sizes((2_000, 1_000), 16, 64, 30, 500, 60)


@dataclass(frozen=True)
class Digits:
    """images: uint8 (N, 28, 28), white on black. labels: uint8 (N,), 0 to 9."""

    images: np.ndarray
    labels: np.ndarray


def read_mnist(folder: Path, part: str, most: int) -> Digits:
    """The first images of MNIST, "training" or "test". Raises ValueError or OSError naming the file that is missing, damaged or another."""
    image_file, label_file = (find(folder, name) for name in FILES[part])
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise ValueError(f"{image_file}: {' x '.join(map(str, images.shape))} pixels, want one or more images of {SIDE} x {SIDE}")
    if len(images) != len(labels):
        raise ValueError(f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file.name}; take both from {MIRROR}")
    if labels.max() > 9:
        raise ValueError(f"{label_file}: holds a label {labels.max()}, want digits 0 to 9; take MNIST's from {MIRROR}")
    return Digits(images[:most], labels[:most])


def find(folder: Path, name: str) -> Path:
    """The file of that name in either spelling, plain or .gz."""
    names = [f"{stem}-ubyte{end}" for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for file in (folder / one for one in names):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder / names[0]}: not there, nor as {', '.join(names[1:])}; fetch it from {MIRROR}")


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """uint8 of so many dimensions, from an IDX file of unsigned bytes, plain or gzipped.

    The bytes 0, 0, 8 (for unsigned bytes) and the number of dimensions; each of them as a big-endian uint32; the values, the last dimension
    fastest (LeCun, Cortes & Burges, The MNIST database). Raises ValueError naming the file that is another, or has too few or many bytes.
    """
    content = file.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file}: damaged gzip file ({error}); fetch it anew from {MIRROR}") from None
    start, magic = 4 + 4 * dimensions, bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        begins = content[:4].hex(" ") or "nothing"
        raise ValueError(f"{file}: begins with {begins}, want {magic.hex(' ')}, an IDX file of bytes in {dimensions} dimensions")
    shape = np.frombuffer(content[4:start].ljust(4 * dimensions, b"\0"), ">u4").tolist()
    if len(content) != start + prod(shape):
        said = f"the header says {' x '.join(map(str, shape))}" if len(content) >= start else "the header alone takes more"
        raise ValueError(f"{file}: {len(content)} bytes, but {said}, {start + prod(shape)} in all; fetch it anew from {MIRROR}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def drawn_digits(count: int, seed: int) -> Digits:
    """Digits of Pillow's own font in several sizes, places and slants: enough to show that all works."""
    from PIL import Image, ImageDraw, ImageFont

    rng, fonts = np.random.default_rng(seed), [ImageFont.load_default(size) for size in (18, 22, 26)]
    labels, images = rng.integers(10, size=count).astype(np.uint8), []
    for label in labels:
        image = Image.new("L", (SIDE, SIDE))
        place = (SIDE / 2 + rng.uniform(-2, 2), SIDE / 2 + rng.uniform(-2, 2))
        ImageDraw.Draw(image).text(place, DIGITS[label], fill=255, font=fonts[rng.integers(3)], anchor="mm")
        images.append(np.asarray(image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)))
    return Digits(np.stack(images), labels)


def training_set(digits: Digits) -> TrainingSet:
    """Every image a patient's one patch, float32 (N, 1, 32, 32) in [-1, 1], on a black frame."""
    frame = (PADDED - SIDE) // 2
    patches = np.pad(digits.images.astype(np.float32) / 127.5 - 1, ((0, 0), (frame, frame), (frame, frame)), constant_values=-1)
    condition = Conditions(DIGITS).encode([DIGITS[label] for label in digits.labels], [])
    return TrainingSet(patches[:, None], condition, patients=np.arange(len(patches)))


def spend_all(trainer: PrivateTrainer, data: TrainingSet) -> dict[str, float]:
    """Trains until the budget is spent; how it came there. The averaged generator is ready to be judged."""
    data, started, told = in_memory(data, trainer), time.monotonic(), time.monotonic()
    while trainer.progress < 1:
        trainer.update(data)
        if trainer.progress >= 1 or time.monotonic() - told > 10:
            told = time.monotonic()
            done = f"{trainer.critic_steps:,} of {trainer.plan.critic_steps:,} critic steps, n_critic {trainer.n_critic:.0f}"
            print(f"seed {trainer.config.seed}: {done}, {told - started:.0f} s", file=sys.stderr, flush=True)
    trainer.settle(data)
    return {"critic_steps": trainer.critic_steps, "updates": trainer.step, "n_critic": trainer.n_critic, "seconds": told - started}


@torch.inference_mode()
def drawn_by(generator: Generator, count: int, seed: int) -> Digits:
    """Samples of a generator in eval mode, the digits in turn, without the frame."""
    rng, labels = np.random.default_rng([seed, 1]), (np.arange(count) % 10).astype(np.uint8)
    device, images, frame = next(generator.parameters()).device, list[np.ndarray](), (PADDED - SIDE) // 2
    for some in np.array_split(labels, -(-count // 500)):
        z = torch.from_numpy(rng.standard_normal((len(some), generator.latent), dtype=np.float32)).to(device)
        condition = torch.from_numpy(Conditions(DIGITS).encode([DIGITS[label] for label in some], [])).to(device)
        patches = generator(z, condition)[:, 0, frame:-frame, frame:-frame]
        images.append(((patches + 1) * 127.5).round().to(torch.uint8).cpu().numpy())
    return Digits(np.concatenate(images), labels)


def accuracy(training: Digits, test: Digits, steps: int, seed: int, device: torch.device) -> float:
    """Of a small network, trained from a seed on these digits only, on the test images: the share that it names rightly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * (SIDE // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, len(DIGITS)),
        ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    rng, images, labels = np.random.default_rng(seed), pixels(training, device), torch.from_numpy(training.labels.astype(int)).to(device)
    for _ in range(steps):
        some = torch.from_numpy(rng.integers(len(images), size=BATCH)).to(device)
        loss = nn.functional.cross_entropy(network(images[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        found = torch.cat([network(some).argmax(1) for some in pixels(test, device).split(1000)])
    return float((found.cpu().numpy() == test.labels).mean())


def pixels(digits: Digits, device: torch.device) -> torch.Tensor:
    """float32 (N, 1, 28, 28), 0 to 1."""
    return torch.from_numpy(digits.images / np.float32(255))[:, None].to(device)


class Judge:
    """What samples are held against: the test images by a classifier and, with an extractor, test and training images by FID."""

    def __init__(self, training: Digits, test: Digits, steps: int, extractor: Extractor | None, device: torch.device):
        self.test, self.steps, self.extractor, self.device = test, steps, extractor, device
        self.real = {f"fid_{name}": self.features(one) for name, one in (("test", test), ("training", training)) if extractor}
        self.training_images = {"accuracy": accuracy(training, test, steps, 0, device)}
        if extractor:
            self.training_images["fid_test"] = frechet_distance(self.real["fid_training"], self.real["fid_test"])

    def features(self, digits: Digits) -> np.ndarray:
        """float64 (N, D)."""
        assert self.extractor is not None
        return self.extractor.compute(digits.images.astype(np.int16))

    def scores(self, samples: Digits, seed: int) -> dict[str, float]:
        """accuracy and, with an extractor, fid_test and fid_training."""
        found = {"accuracy": accuracy(samples, self.test, self.steps, seed, self.device)}
        if self.extractor:
            features = self.features(samples)
            found |= {name: frechet_distance(features, real) for name, real in self.real.items()}
        return found


def table(runs: Sequence[Mapping[str, float]], judge: Judge, samples: int) -> Iterator[str]:
    if judge.extractor:
        counts = " or ".join(f"{len(found):,} {name.removeprefix('fid_')}" for name, found in judge.real.items())
        yield f"FID of {samples:,} samples to {counts} images, by {judge.extractor.name} (SHA-256 {judge.extractor.weights_sha256})"
    else:
        yield "no FID was computed: it takes --inception-weights FILE, the standard Inception's weights"
    yield f"\n{'':<48}{'FID, test':>12}{'FID, training':>16}{'accuracy':>11}"
    rows: dict[str, Mapping[str, float]] = {"the training images": judge.training_images}
    rows |= {f"lesiongan, seed {seed}": run for seed, run in enumerate(runs)}
    for name, row in rows.items():
        test, training = (f"{row[key]:.1f}" if key in row else "-" for key in ("fid_test", "fid_training"))
        yield f"{name:<48}{test:>12}{training:>16}{row['accuracy']:>11.1%}"
    for name, (fid, share) in PUBLISHED.items():
        yield f"{name + ', epsilon 10, published':<48}{fid:>12.1f}{'':>16}{share:>11.1%}"


def ratios(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Ours over the published, the median over seeds; below 1 is better."""
    found = {}
    for name, (fid, share) in PUBLISHED.items():
        key = name.split(",")[0].lower()
        found[f"errors_over_{key}"] = round(statistics.median(1 - run["accuracy"] for run in runs) / (1 - share), 3)
        if "fid_test" in runs[0]:
            found[f"fid_over_{key}"] = round(statistics.median(run["fid_test"] for run in runs) / fid, 3)
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/mnist.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="with the four IDX files, plain or .gz")
    parser.add_argument("--inception-weights", type=Path, metavar="FILE", help="the standard Inception's; without it there is no FID")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto: a GPU where there is one")
    parser.add_argument("--critic-steps", type=int, help=f"that share the budget; default {Sizes.critic_steps:,}")
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="the budget; default %(default)s")
    parser.add_argument("--seeds", type=int, default=1, help="private runs; default 1")
    parser.add_argument("--quick", action="store_true", help="few images, steps and samples, small networks, one thread")
    parser.add_argument("--json", type=Path, help="file to write ratios, scores and conditions to")
    parser.add_argument("--picture", type=Path, help=f"file to draw {SHOWN} samples of each digit into, such as mnist.png")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    steps = sizes.critic_steps if options.critic_steps is None else options.critic_steps
    if min(steps, options.seeds) < 1:
        raise ValueError("want --critic-steps and --seeds of 1 or more")
    device = device_of(options.device)
    if options.quick:
        torch.set_num_threads(1)
    if options.mnist:
        training, test = (read_mnist(options.mnist, part, most) for part, most in zip(FILES, sizes.images, strict=True))
    elif options.quick:
        print(f"no --mnist: digits drawn with a font stand in; {MIRROR} has MNIST", file=sys.stderr)
        training, test = (drawn_digits(most, seed) for seed, most in enumerate(sizes.images))
    else:
        names = ", ".join(f"{name}-ubyte.gz" for part in FILES.values() for name in part)
        raise ValueError(f"give --mnist FOLDER, a folder with {names}; fetch them from {MIRROR} (yann.lecun.com no longer serves them)")
    extractor = inception(options.inception_weights, WHITE, str(device)) if options.inception_weights else None
    networks = NetworkConfig(sizes.channels)
    privacy = PrivacyConfig(epsilon=options.epsilon, delta=DELTA, patients=sizes.patients, patches=1, critic_steps=steps, adaptive=True)
    config = TrainingConfig(steps=steps, batch=BATCH, mirror=False, device=options.device)
    plan = plan_for(privacy, len(training.images))
    print(f"noise multiplier {plan.noise_multiplier:g}; training the classifier on the training images first", file=sys.stderr, flush=True)
    judge, data, runs = Judge(training, test, sizes.judge_steps, extractor, device), training_set(training), list[dict[str, float]]()
    for seed in range(options.seeds):
        trainer = PrivateTrainer((PADDED, PADDED), networks, replace(config, seed=seed), privacy, plan, Conditions(DIGITS))
        spent = spend_all(trainer, data)
        samples = drawn_by(trainer.average, sizes.samples, seed)
        runs.append(spent | judge.scores(samples, seed))
        if options.picture and seed == 0:
            shown, labels = samples.images[: SHOWN * len(DIGITS)], [DIGITS[label] for label in samples.labels[: SHOWN * len(DIGITS)]]
            write_preview(shown.astype(np.int16), WHITE, options.picture, labels=labels, columns=SHOWN)
    for line in table(runs, judge, sizes.samples):
        print(line)
    print(f"\n{plan.sentence(plan.critic_steps)}\n")
    comparable = options.epsilon == EPSILON and sizes.images == (len(training.images), len(test.images)) and not options.quick
    found = ratios(runs) if comparable else {}
    for name, ratio in found.items():
        print(f"{name:<40}{ratio:>8.3f}")
    if options.json:
        conditions: dict[str, Any] = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "processor": processor(device),
            "cores": os.cpu_count(), "threads": torch.get_num_threads(), "digits": "MNIST" if options.mnist else "drawn with a font",
            "images": {"training": len(training.images), "test": len(test.images)}, "samples": sizes.samples,
            "judge_steps": sizes.judge_steps, "batch": BATCH,
            "extractor": extractor and {"name": extractor.name, "sha256": extractor.weights_sha256, "resize": extractor.resize},
            "networks": asdict(networks), "training": asdict(config), "privacy": asdict(privacy), "plan": asdict(plan),
            "epsilon_spent": plan.epsilon(plan.critic_steps), "training_images": judge.training_images, "runs": runs,
            "published": {name: {"fid": fid, "accuracy": share} for name, (fid, share) in PUBLISHED.items()},
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": found, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
