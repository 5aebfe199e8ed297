"""How soon a WGAN-GP draws good lung nodules: lesiongan's recipe beside the textbook's, trained for the same CPU time.

  python benchmarks/quality.py --picture quality.png              over an hour of CPU time: 4 recipes, 3 seeds, 300 s each
  python benchmarks/quality.py --recipes "textbook, 2e-4" defaults --seeds 1
  python benchmarks/quality.py --quick --json quality.json        under a minute; shows that it works, and nothing of quality

Trained on the real nodules of luna16-patches (in $LESIONGAN_DATA; the README says where they come from), 32 x 32,
training split only, mirrored half of the time. All recipes train the same networks:

  textbook, 1e-4     Gulrajani et al. 2017, Algorithm 1, as it is commonly written: autograd's double backward, contiguous
                     layout, batch 64, Adam (0, 0.9) at 1e-4, 5 critic steps, penalty 10 on every pair, no averaged generator
  textbook, 2e-4     the same, twice as fast a learner: what many repositories set
  ours, as the paper lesiongan's step with the first recipe's settings (--preset paper): the same mathematics
  defaults           what `python train.py` does unless told otherwise

At each twentieth of the time, 1,000 samples (the raw generator's of the first three, the averaged one's of the last) are
compared with the nodules of the validation patients, by squared Fréchet distance in two families of features, each
standardised by the training nodules: 44 radiomic ones, and the 32 main components of what a small ResNet sees, trained here to tell
nodules from other patches of the training split. The floor is what the training nodules themselves score: a perfect
copy of the training distribution would end there. Time is the process's CPU time, on one thread, without drawing and
measuring samples; so other work on the machine matters little, and runs may go side by side (--workers).

Ratios are ours over the better textbook, by the median over seeds: the time until its final distance is reached and not lost
again, and the distance at the end, plainly and above the floor. Below 1 is better.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.__main__ import main as data_command
from data.command import run_command
from data.patches import PatchFolder, WindowedPatches
from data.preprocess import from_unit, to_unit
from evaluate.detector import augment_classic
from evaluate.distances import frechet_distance, standardise
from evaluate.features import radiomics
from gan.config import PRESETS, NetworkConfig, TrainingConfig
from gan.losses import critic_loss_textbook
from gan.networks import Critic, Generator
from gan.trainer import Trainer, TrainingSet

WINDOW = (-1000.0, 400.0)
SIZE = 32
COMPONENTS = 32
"""Of the encoder's 64 features: they hold 97 % of the variance, and the validation nodules suffice to measure them."""
SNAPSHOTS = 20
TEXTBOOK = ("textbook, 1e-4", "textbook, 2e-4")
FAMILIES = ("radiomics", "encoder")


class Training(Protocol):
    """A run that goes on step by step, and the generator that is to be judged now."""

    def update(self, patches: WindowedPatches, /) -> object: ...

    def judged(self, patches: WindowedPatches, /) -> nn.Module: ...


class Textbook:
    """WGAN-GP as its paper's readers write it, on the product's networks in the default memory layout."""

    def __init__(self, shape: Sequence[int], networks: NetworkConfig, learning_rate: float, seed: int):
        self.rng, self.latent = np.random.default_rng(seed), networks.latent
        torch.manual_seed(seed)
        self.generator = Generator(shape, networks.channels, networks.latent)
        self.critic = Critic(shape, networks.channels)
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(net.parameters(), lr=learning_rate, betas=(0.0, 0.9), foreach=True) for net in (self.generator, self.critic)
        )

    def update(self, patches: WindowedPatches) -> None:
        """Five critic steps and one generator step."""
        for _ in range(5):
            real = self._real(patches)
            with torch.no_grad():
                synthetic = self.generator(self._latents())
            mix = torch.from_numpy(self.rng.random((len(real), 1, 1, 1), dtype=np.float32))
            loss = critic_loss_textbook(self.critic, real, synthetic, mix, 10.0)
            self.critic_optimizer.zero_grad()
            loss.backward()
            self.critic_optimizer.step()
        self.critic.requires_grad_(False)
        self.generator_optimizer.zero_grad()
        (-self.critic(self.generator(self._latents())).mean()).backward()
        self.generator_optimizer.step()
        self.critic.requires_grad_(True)

    def judged(self, patches: WindowedPatches) -> nn.Module:
        return self.generator

    def _real(self, patches: WindowedPatches) -> Tensor:
        real = patches[self.rng.integers(len(patches), size=64)]
        flipped = self.rng.random(64) < 0.5
        real[flipped] = real[flipped][..., ::-1]
        return torch.from_numpy(real)

    def _latents(self) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal((64, self.latent), dtype=np.float32))


class Ours:
    """The product's trainer. The averaged generator is settled before it is judged, as it is before it is saved."""

    def __init__(self, shape: Sequence[int], networks: NetworkConfig, config: TrainingConfig, average: bool):
        self.trainer, self.average = Trainer(shape, networks, config), average

    def update(self, patches: WindowedPatches) -> None:
        self.trainer.update(TrainingSet(patches))

    def judged(self, patches: WindowedPatches) -> nn.Module:
        if not self.average:
            return self.trainer.generator
        self.trainer.settle(TrainingSet(patches))
        return self.trainer.average


@dataclass(frozen=True)
class Sizes:
    """How much is measured. quick: far too little to conclude from."""

    samples: int = 1000
    encoder_steps: int = 800
    snapshots: int = SNAPSHOTS


QUICK = Sizes(samples=200, encoder_steps=30, snapshots=4)


class Reference:
    """Features of the real training and held-out nodules, and how to take them of samples."""

    def __init__(self, folder: PatchFolder, held_out: str, encoder_steps: int):
        def hu(split: str, lesion: bool) -> np.ndarray:
            return folder.hu(folder.select(splits=[split], classes=folder.lesion_classes if lesion else [str(folder.background)]))

        nodules = hu("train", True)
        self.encoder = train_encoder(nodules, hu("train", False), encoder_steps)
        self.raw = {"radiomics": radiomic(nodules), "encoder": encoded(self.encoder, nodules)}
        centred = self.raw["encoder"] - self.raw["encoder"].mean(0)
        _, spread, axes = np.linalg.svd(centred, full_matrices=False)
        self.axes = axes[:COMPONENTS].T / np.sqrt(np.square(spread).sum() / len(nodules) / COMPONENTS)  # a mean variance of 1
        held_out_nodules = hu(held_out, True)
        self.training, self.held_out = self.features(nodules), self.features(held_out_nodules)
        self.counts = {"training": len(nodules), held_out: len(held_out_nodules)}
        self.floor = {family: frechet_distance(self.training[family], self.held_out[family]) for family in FAMILIES}

    def features(self, hu: np.ndarray) -> dict[str, np.ndarray]:
        """float64 (N, D) by family, standardised by the training nodules."""
        in_axes = (encoded(self.encoder, hu) - self.raw["encoder"].mean(0)) @ self.axes
        return {"radiomics": standardise(self.raw["radiomics"], radiomic(hu))[0], "encoder": in_axes}

    def distances(self, hu: np.ndarray) -> dict[str, float]:
        """Squared Fréchet distance to the held-out nodules, by family."""
        found = self.features(hu)
        return {family: frechet_distance(found[family], self.held_out[family]) for family in FAMILIES}


def train_encoder(nodules: np.ndarray, others: np.ndarray, steps: int) -> nn.Module:
    """A small ResNet that tells nodules from other patches, both int16 HU (N, H, W); it ends at its 64 features. Always the same."""
    from monai.networks.nets import ResNet

    rng, half = np.random.default_rng(0), 32
    torch.manual_seed(0)
    network = ResNet("basic", [1, 1, 1, 1], [8, 16, 32, 64], 2, 1, 3, 2, True, num_classes=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    sets = [torch.from_numpy(to_unit(hu, WINDOW)) for hu in (nodules, others)]
    target = torch.cat([torch.ones(half, 1), torch.zeros(half, 1)])
    for _ in range(steps):
        patches = torch.cat([one[rng.integers(len(one), size=half)] for one in sets])
        loss = nn.functional.binary_cross_entropy_with_logits(network(augment_classic(patches, rng)[:, None]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.fc = None  # then the forward pass ends at its input
    return network.eval()


def radiomic(hu: np.ndarray) -> np.ndarray:
    """int16 HU (N, H, W) -> float64 (N, 44)."""
    return radiomics((1.0, 1.0), WINDOW).compute(hu)  # the patches' spacing is unknown: in pixels


@torch.inference_mode()
def encoded(encoder: nn.Module, hu: np.ndarray) -> np.ndarray:
    """int16 HU (N, H, W) -> float64 (N, 64)."""
    return torch.cat([encoder(some[:, None]) for some in torch.from_numpy(to_unit(hu, WINDOW)).split(250)]).double().numpy()


def fixed_latents(count: int) -> Tensor:
    """(N, latent), always the same."""
    return torch.from_numpy(np.random.default_rng(12345).standard_normal((count, NetworkConfig().latent), dtype=np.float32))


@torch.inference_mode()
def samples(generator: nn.Module, latents: Tensor, condition: Tensor | None = None) -> np.ndarray:
    """int16 HU (N, *S), drawn in eval mode; condition: (K,), the same for all. The generator is left as it was."""
    was_training = generator.training
    generator.eval()
    conditions = None if condition is None else condition.expand(100, -1)
    patches = torch.cat([generator(z, None if conditions is None else conditions[: len(z)]) for z in latents.split(100)])[:, 0].numpy()
    generator.train(was_training)
    return from_unit(patches, WINDOW)


Point = dict[str, float]


def curve(
    training: Training, patches: WindowedPatches, reference: Reference, seconds: float, latents: Tensor, snapshots: int
) -> list[Point]:
    """Trains for so many CPU seconds; at each snapshot the time, the generator updates so far, and the distances."""
    points: list[Point] = []
    spent, step = 0.0, 0
    while len(points) < snapshots:
        started = time.process_time()
        training.update(patches)
        spent, step = spent + time.process_time() - started, step + 1
        if spent >= seconds * (len(points) + 1) / snapshots:
            points.append({"seconds": spent, "step": step, **reference.distances(samples(training.judged(patches), latents))})
    return points


def recipes() -> dict[str, Callable[[Sequence[int], int], Training]]:
    """Name -> (shape, seed) -> a run that has not begun."""
    networks = NetworkConfig()
    paper = TrainingConfig(**PRESETS["paper"] | {"mirror": True}, device="cpu")
    return {
        "textbook, 1e-4": lambda shape, seed: Textbook(shape, networks, 1e-4, seed),
        "textbook, 2e-4": lambda shape, seed: Textbook(shape, networks, 2e-4, seed),
        "ours, as the paper": lambda shape, seed: Ours(shape, networks, replace(paper, seed=seed), average=False),
        "defaults": lambda shape, seed: Ours(shape, networks, TrainingConfig(seed=seed, device="cpu"), average=True),
    }


def run(
    folder: Path, reference: Reference, seconds: float, latents: Tensor, snapshots: int, threads: int, which: tuple[str, int]
) -> list[Point]:
    """The curve of one recipe and seed, in a process of its own."""
    torch.set_num_threads(threads)
    patches, (name, seed) = training_nodules(PatchFolder.open(folder)), which
    points = curve(recipes()[name](patches.folder.shape, seed), patches, reference, seconds, latents, snapshots)
    ends = ", ".join(f"{family} {points[-1][family]:.2f}" for family in FAMILIES)
    print(f"{name}, seed {seed}: {points[-1]['step']} updates, {ends}", file=sys.stderr, flush=True)
    return points


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="5 s a run and one seed unless told otherwise, 200 samples, a hasty encoder")
    parser.add_argument("--seconds", type=float, help="CPU seconds of each run; default 300")
    parser.add_argument("--seeds", type=int, help="runs of each recipe; default 3")
    parser.add_argument("--recipes", nargs="+", choices=list(recipes()), default=list(recipes()), metavar="NAME", help="which; default all")
    parser.add_argument("--threads", type=int, default=1, help="of torch; CPU time is summed over them (default 1)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, a process each (default 1)")
    parser.add_argument("--test-split", action="store_true", help="compare with the test patients: for a last look, never to choose by")
    parser.add_argument("--json", type=Path, help="file to write ratios, curves and conditions to")
    parser.add_argument("--picture", type=Path, help="file to draw the curves into, such as quality.png")
    options = parser.parse_args(arguments)
    seconds, seeds = options.seconds or (5.0 if options.quick else 300.0), options.seeds or (1 if options.quick else 3)
    if seconds <= 0 or min(seeds, options.threads, options.workers) < 1:
        raise ValueError("want --seconds above 0, and --seeds, --threads and --workers of 1 or more")
    torch.set_num_threads(options.threads)
    sizes, held_out = QUICK if options.quick else Sizes(), "test" if options.test_split else "validation"
    latents = fixed_latents(sizes.samples)
    with tempfile.TemporaryDirectory() as place:
        folder = luna_patches(Path(place))
        reference = Reference(folder, held_out, sizes.encoder_steps)
        runs = [(name, seed) for seed in range(seeds) for name in options.recipes]
        one = partial(run, folder.path, reference, seconds, latents, sizes.snapshots, options.threads)
        curves: dict[str, list[list[Point]]] = {name: [] for name in options.recipes}
        with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
            for (name, _), points in zip(runs, pool.map(one, runs), strict=True):
                curves[name].append(points)
    for line in table(curves, reference, held_out):
        print(line)
    found = ratios(curves, reference.floor, seconds)
    for name, ratio in found.items():
        print(f"{name:<64}{ratio:>8.3f}")
    if options.json:
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
            "cores": os.cpu_count(), "threads": options.threads, "workers": options.workers, "cpu_seconds": seconds, "seeds": seeds, "held_out": held_out,
            "nodules": reference.counts, "samples": sizes.samples, "floor": reference.floor, "curves": curves,
        }  # fmt: skip
        finite = {name: ratio if ratio < float("inf") else None for name, ratio in found.items()}  # JSON has no infinity
        options.json.write_text(json.dumps({"ratios": finite, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        draw(options.picture, curves, reference, held_out)


def training_nodules(folder: PatchFolder) -> WindowedPatches:
    """What all recipes train on."""
    return WindowedPatches(folder, folder.select(splits=["train"], classes=folder.lesion_classes))


def luna_patches(place: Path) -> PatchFolder:
    """The patch folder of the README's section on real data."""
    source = Path(os.environ.get("LESIONGAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "luna16-patches"
    file = source / "luna16_patches.npz"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; set LESIONGAN_DATA to the folder of public data that the README describes")
    key = place / "key"
    key.write_text("0" * 64 + "\n")  # these pseudonyms hide nobody; a fixed key makes the folder the same everywhere
    with redirect_stdout(sys.stderr):
        data_command([
            "import", str(file), "--out", str(place / "patches"), "--window=-1000,400", "--classes", "non-nodule,nodule",
            "--background", "non-nodule", "--size", str(SIZE), "--key", str(key),
        ])  # fmt: skip
    return PatchFolder.open(place / "patches")


def median_curve(runs: Sequence[Sequence[Point]], family: str) -> list[float]:
    """The distance at each snapshot, the median over seeds."""
    return [statistics.median(point[family] for point in points) for points in zip(*runs, strict=True)]


def ratios(curves: Mapping[str, list[list[Point]]], floor: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Each of our recipes over the textbook whose median distance is the lower one at the end; below 1 is better.

    A distance that is not reached has infinite time."""
    found: dict[str, float] = {}
    peers = [name for name in TEXTBOOK if name in curves]
    for family in FAMILIES if peers else ():
        target = min(median_curve(curves[name], family)[-1] for name in peers)
        for name in curves:
            if name in TEXTBOOK:
                continue
            distances = median_curve(curves[name], family)
            late = [n for n, distance in enumerate(distances) if distance > target]
            reached = late[-1] + 1 if late else 0  # the first snapshot from which on it stays
            key = name.replace(",", "").replace(" ", "_")
            found[f"{key}_time_to_textbook_distance_{family}"] = (
                (reached + 1) / len(distances) if reached < len(distances) else float("inf")
            )
            found[f"{key}_distance_at_equal_time_{family}"] = distances[-1] / target
            found[f"{key}_distance_above_floor_at_equal_time_{family}"] = (distances[-1] - floor[family]) / (target - floor[family])
    return {name: round(ratio, 3) for name, ratio in found.items()}


def table(curves: Mapping[str, list[list[Point]]], reference: Reference, held_out: str) -> Iterator[str]:
    """The curves in words: for each family, a row a recipe, a column a tenth of the time (median, and range at the end)."""
    counts = ", ".join(f"{count} {name}" for name, count in reference.counts.items())
    yield f"squared Fréchet distance to {held_out} nodules, median over seeds ({counts} nodules)"
    shown = slice(1, None, 2)
    for family in FAMILIES:
        times = [f"{point['seconds']:.0f} s" for point in next(iter(curves.values()))[0]]
        yield ""
        yield f"{family + f', floor {reference.floor[family]:.2f}':<26}" + "".join(f"{t:>8}" for t in times[shown]) + "   lowest, highest"
        for name, runs in curves.items():
            ends = [run[-1][family] for run in runs]
            yield f"{name:<26}" + "".join(f"{d:>8.2f}" for d in median_curve(runs, family)[shown]) + f"   {min(ends):.2f}, {max(ends):.2f}"
    yield ""
    yield "generator updates: " + "; ".join(
        f"{name} {statistics.median(run[-1]['step'] for run in runs):,.0f}" for name, runs in curves.items()
    )
    yield ""


def draw(file: Path, curves: Mapping[str, list[list[Point]]], reference: Reference, held_out: str) -> None:
    """Distance over CPU time, a panel a family: seeds thin, their median thick, the floor dashed."""
    from matplotlib.figure import Figure

    colours = ("#000000", "#e69f00", "#0072b2", "#d55e00")  # told apart by colour-blind readers too
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, family in zip(figure.subplots(1, 2), FAMILIES, strict=True):
        for (name, runs), colour in zip(curves.items(), colours, strict=False):
            for run in runs:
                axes.plot([p["seconds"] for p in run], [p[family] for p in run], color=colour, linewidth=0.7, alpha=0.5)
            axes.plot([p["seconds"] for p in runs[0]], median_curve(runs, family), color=colour, linewidth=2.2, label=name)
        axes.axhline(reference.floor[family], color="gray", linestyle="--", label="floor: real training nodules")
        axes.set(title=family, xlabel="CPU seconds of training", ylabel=f"squared Fréchet distance to {held_out} nodules", yscale="log")
    axes.legend()
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    run_command(main)
