"""What synthetic nodules are worth where real ones are few: in real nodules, by what a detector learns from them.

  python benchmarks/rare_class.py --work rare --json rare.json      about 95 minutes of CPU time; stop it, give the command again, and it goes on
  python benchmarks/rare_class.py --work rare --split test          the one look at the test groups, at the end; what is trained is not trained again
  python benchmarks/rare_class.py --quick                           under two minutes; shows that it works, and nothing of worth

Of luna16-patches (in $LESIONGAN_DATA; the README says where they come from), 32 x 32: 50, 100 and 300 training nodules, drawn by whole
groups, the smaller sets within the larger ones; seed k draws the k-th such sets. All of the training groups' lesion-free patches are there
always. evaluate's small network learns lesion from lesion-free, half of each batch of 64, seed k from the k-th weights:

  real                      the few nodules as they are
  real+classic              with classic augmentation: what any gain has to be over
  real+policy               classic and TrivialAugment
  ... synthetic, WAY        classic, and a share of a batch's lesions synthetic: a quarter; with 50 nodules a tenth, too, and one is chosen
  ... synthetic, chosen     the way chosen as well as the share
  synthetic only, WAY       all of a batch's lesions synthetic, of the two ways that copy no lesion
  real+policy+synthetic     TrivialAugment, too: does the best way add to what the strongest augmentation does

Synthetic only is of 50 nodules alone. WAY is how the synthetic ones come from exactly the nodules that the detector has:

  whole patches             a generator trained with train.py's defaults
  context                   one that draws lesions into the training groups' 3,156 lesion-free patches (--context.on true), diameters as the
                            few have them; those that cannot be seen are drawn again, as sample.py does
  pasted, Poisson           the few themselves, set into those lesion-free patches without a model (benchmarks/pasting.py)

Worth: real+classic is also trained on 25 and 200 nodules and on all 648. Its mean AUROC over the number of nodules, made to rise
(isotonic regression) and read linearly in the logarithm of the number, is where an arm's AUROC is looked up: the smallest set that scores as
much. Below the curve it is "at most 25", above it "at least 648". 25 is there so that a loss at 50 shows.

Shares, ways and thresholds (specificity 0.9) never come from the patients they are judged by. With --split validation the validation groups are
dealt into two halves: each half chooses for the other, and figures are the mean of the two. With --split test the validation groups choose, and
the test groups judge. Otherwise the test groups are not touched.

Intervals are 95 %, from 2,000 draws of patients, the same ones for an arm, its baseline and the whole curve, each moved by what other
seeds could change: Student's t with the seeds' own covariance over arms and sizes (evaluate/scores.py says why seeds are not resampled).
Ratios are worth over the number of real nodules there were; above 1, synthetic ones helped. Where the worth is at an end of the curve, so is the
ratio a bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.few_cases import within_patients
from benchmarks.pasting import BLENDS, set_in
from benchmarks.quality import WINDOW, fixed_latents, luna_patches, samples
from benchmarks.step import processor
from data.command import run_command
from data.patches import PatchFolder, WindowedPatches
from data.preprocess import from_unit
from evaluate.detector import CLASSIC, POLICY, REAL, VERSION, Arm, DetectorSet, Recipe, detector_network, log_odds_of, train_detector
from evaluate.detector_store import DetectorStore, content_hash
from evaluate.scores import METRICS, NUMBERS_AT_ONCE, Scores, _metric_table, _patient_counts, area_under_roc, choose_threshold
from gan.commands.shared import lesion_diameters_mm
from gan.config import NetworkConfig, TrainingConfig
from gan.context import CONTRAST, Backgrounds, scene_of, seen_in
from gan.selection import Tally, select
from gan.trainer import Trainer, TrainingSet, draw
from gan.training import in_memory

SIZES = (50, 100, 300)
SMALLER_AND_BETWEEN = (25, 200)
"""Sizes of the learning curve beside SIZES and all nodules."""
SHARES = (0.1, 0.25)
WAYS = ("whole patches", "context", *BLENDS)
ALONE = ("whole patches", "context")
"""Ways whose synthetic lesions a detector also learns from alone."""
SPECIFICITY = 0.9
DRAWS = 2000
AUROC, RECALL, SPECIFIC = (METRICS.index(name) for name in ("auroc", "sensitivity", "specificity"))


class Cell(NamedTuple):
    """What detectors are trained on, one a seed."""

    nodules: int
    arm: str


def mixed(way: str, share: float) -> str:
    return f"real+classic+synthetic {share:g}, {way}"


BASELINE = CLASSIC.name
WITH_POLICY = f"real+policy+synthetic {SHARES[-1]:g}, context"
ARMS: dict[str, tuple[Arm, str | None]] = {
    **{arm.name: (arm, None) for arm in (CLASSIC, REAL, POLICY)},
    **{mixed(way, share): (Arm("mixed", "classic", share), way) for way in WAYS for share in SHARES},
    **{f"synthetic only, {way}": (Arm("only", "classic", 1.0), way) for way in ALONE},
    WITH_POLICY: (Arm("policy", "policy", SHARES[-1]), "context"),
}
"""name -> how a batch is made, and which generator's samples are in it."""
EVERY_SIZE = (BASELINE, REAL.name, POLICY.name, *(mixed(way, SHARES[-1]) for way in WAYS), WITH_POLICY)


@dataclass(frozen=True)
class Effort:
    steps: int = 900  # at 400, a detector has not learned what all 648 nodules can teach it
    updates: int = 500
    samples: int = 2000
    seeds: int = 5
    sizes: tuple[int, ...] = SIZES
    between: tuple[int, ...] = SMALLER_AND_BETWEEN


QUICK = Effort(steps=30, updates=15, samples=200, seeds=2, sizes=(50,), between=())


class Study:
    """The patches, and what is trained on them.

    What is in `work` is not trained again: it is known by a hash of patches, settings and versions. Of changes to lesiongan's own code
    it knows nothing: begin another folder after one.
    """

    def __init__(self, folder: PatchFolder, work: Path, effort: Effort):
        self.folder, self.effort = folder, effort
        self.detectors, self.generators = DetectorStore(work / "detectors"), DetectorStore(work / "generators")
        self.nodules = folder.select(splits=["train"], classes=folder.lesion_classes)
        self.free = folder.select(splits=["train"], classes=[str(folder.background)])
        self.patients = folder.rows.names("patient", self.nodules)
        self.backgrounds = Backgrounds(WindowedPatches(folder, self.free)[np.arange(len(self.free))], folder.spacing_mm, folder.shape)
        self.curve = tuple(sorted({*effort.between, *effort.sizes, len(self.nodules)}))
        self.recipe = Recipe(effort.steps, 64, "small", "natural", "cpu")
        self.seconds: dict[str, list[float]] = {"generator": [], "detector": []}
        """Wall time of what was trained now."""

    def few(self, count: int, seed: int) -> np.ndarray:
        """Which patches of the folder: `count` training nodules of whole patients, those of smaller counts among them."""
        every = sorted({*SIZES, *SMALLER_AND_BETWEEN, *self.curve})  # whatever is asked for: the draws stay the same
        return self.nodules[within_patients(self.patients, every, np.random.default_rng(seed))[count]]

    def set_of(self, split: str) -> DetectorSet:
        rows = self.folder.select(splits=[split])
        lesion = self.folder.rows.names("label", rows) != self.folder.background
        return DetectorSet(self.folder.hu(rows), lesion, self.folder.rows.names("patient", rows))

    def log_odds(self, cell: Cell, seed: int, judged: DetectorSet) -> NDArray[np.float64]:
        """Of the judged patches, by the detector that was trained, or now is, on this."""
        arm, way = ARMS[cell.arm]
        few = self.few(cell.nodules, seed)
        hu = self.folder.hu(np.concatenate([few, self.free]))
        train = DetectorSet(hu, np.arange(len(hu)) < len(few), np.zeros(len(hu)))
        drawn = self.samples(way, cell.nodules, seed) if way else np.zeros((0, *hu.shape[1:]), np.int16)
        settings = {
            "version": VERSION, "torch": torch.__version__, "monai": monai.__version__, "recipe": asdict(self.recipe), "seed": seed,
            "augmentation": arm.augmentation, "share": arm.share, "train": content_hash(hu), "nodules": len(few), "synthetic": content_hash(drawn),
        }  # fmt: skip
        kept = self.detectors.load(settings)
        if kept is None:
            started = time.monotonic()
            synthetic = DetectorSet(drawn, np.ones(len(drawn), bool), np.arange(len(drawn)))
            network = train_detector(train, synthetic, WINDOW, arm, seed, self.recipe, lambda step: None)
            self.detectors.save(settings, {name: tensor.numpy() for name, tensor in network.state_dict().items()})
            self.seconds["detector"].append(time.monotonic() - started)
        else:
            network = detector_network(self.recipe.network, hu.ndim - 1, 0, "cpu").eval()
            network.load_state_dict({name: torch.from_numpy(array) for name, array in kept.items()})
        return log_odds_of(network, judged.hu, WINDOW, "cpu")

    def samples(self, way: str, count: int, seed: int) -> np.ndarray:
        """int16 HU (N, H, W), of a generator that was trained on these nodules."""
        few = self.few(count, seed)
        mm = None if way == "whole patches" else content_hash(lesion_diameters_mm(self.folder, few))
        settings = {
            "torch": torch.__version__, "way": way, **({} if mm is None else {"diameters": mm}), "train": content_hash(self.folder.hu(few)), "seed": seed, "updates": self.effort.updates,
            "samples": self.effort.samples, "networks": asdict(NetworkConfig()), "training": asdict(TrainingConfig()),
        }  # fmt: skip
        kept = self.generators.load(settings)
        if kept is None:
            started = time.monotonic()
            kept = {"hu": self.drawn(way, few, seed)}
            self.generators.save(settings, kept)
            if way not in BLENDS:
                self.seconds["generator"].append(time.monotonic() - started)
        return kept["hu"]

    def drawn(self, way: str, few: np.ndarray, seed: int) -> np.ndarray:
        """int16 HU (N, H, W): what `samples` keeps."""
        count, rng = self.effort.samples, np.random.default_rng([seed, len(few)])
        if way in BLENDS:
            lesions = WindowedPatches(self.folder, few)[np.arange(len(few))]
            found, _, _ = set_in(lesions, lesion_diameters_mm(self.folder, few), self.backgrounds, count, rng, way)
            return from_unit(found[:, 0], WINDOW)
        trainer = self.trained(few, seed, context=way == "context")
        if way != "context":
            return samples(trainer.average, fixed_latents(count))
        diameters = rng.choice(lesion_diameters_mm(self.folder, few), count)
        return from_unit(composites(trainer, diameters, rng)[:, 0], WINDOW)

    def trained(self, rows: np.ndarray, seed: int, context: bool) -> Trainer:
        updates, backgrounds = self.effort.updates, self.backgrounds if context else None
        config = TrainingConfig(device="cpu", seed=seed, steps=updates)
        trainer = Trainer(self.folder.shape, NetworkConfig(), config, backgrounds=backgrounds)
        diameters = lesion_diameters_mm(self.folder, rows) if context else None
        data = in_memory(TrainingSet(WindowedPatches(self.folder, rows), diameters_mm=diameters), trainer)
        for _ in range(updates):
            trainer.update(data)
        trainer.settle(data)
        return trainer

    def stages(self) -> Iterator[list[Cell]]:
        """The first size, then the curve it is read off, then the others with the arms that are of every size."""
        first, *others = self.effort.sizes
        yield [Cell(first, arm) for arm in ARMS if first == SIZES[0] or arm in EVERY_SIZE]
        yield [Cell(count, BASELINE) for count in self.curve if count != first]
        for count in others:
            yield [Cell(count, arm) for arm in EVERY_SIZE if arm != BASELINE]


@torch.inference_mode()
def composites(
    trainer: Trainer, diameters_mm: np.ndarray, rng: np.random.Generator, condition: np.ndarray | None = None, anatomy: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """float32 (N, 1, *S) in [-1, 1]: lesions of these diameters that can be seen, as sample.py has it, each in a lesion-free patch of its own.

    condition: float32 (N, K). anatomy: the lesion-free patches, float32 (N, 1, *S); None: drawn anew for each try.
    """
    backgrounds = trainer.backgrounds
    assert backgrounds is not None
    free = np.empty((len(diameters_mm), 1, *trainer.shape), np.float32) if anatomy is None else anatomy

    def candidates(rows: np.ndarray, attempt: int) -> np.ndarray:
        found = []
        for some in np.array_split(rows, -(-len(rows) // 50)):
            z = torch.from_numpy(rng.standard_normal((len(some), trainer.average.latent), dtype=np.float32))
            mm = diameters_mm[some]
            if anatomy is None:
                free[some] = backgrounds.draw(rng, mm)[0]
            given = None if condition is None else torch.from_numpy(condition[some])
            found.append(draw(trainer.average, z, given, scene_of(free[some], backgrounds.spacing_mm, mm)).numpy())
        return np.concatenate(found)

    tests = {CONTRAST: seen_in(free, backgrounds.spacing_mm, diameters_mm)}
    return select(len(diameters_mm), candidates, tests, Tally(), "composite {}".format).patches


def told(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def left(study: Study, cells: Sequence[Cell]) -> str:
    """How long cells that are still to be trained will take, in words."""
    generators = sum(cell.arm in [mixed(way, SHARES[-1]) for way in WAYS if way not in BLENDS] for cell in cells)  # the others share them
    counts = {"detector": len(cells), "generator": generators}
    seconds = sum(count * float(np.mean(study.seconds[what])) for what, count in counts.items() if study.seconds[what])
    return f"about {seconds / 60:.0f} min left" if all(study.seconds.values()) else "time left not known yet"


@dataclass(frozen=True)
class Judged:
    """Log-odds of the patches of some patients: (seeds, N) for each cell. lesion: bool (N,); patients: N ids."""

    log_odds: Mapping[Cell, NDArray[np.float64]]
    lesion: NDArray[np.bool_]
    patients: NDArray

    def of(self, patients: NDArray) -> Judged:
        rows = np.isin(self.patients, patients)
        return Judged({cell: scores[:, rows] for cell, scores in self.log_odds.items()}, self.lesion[rows], self.patients[rows])

    def mean_auroc(self, cell: Cell) -> float:
        return float(np.mean([area_under_roc(one, self.lesion) for one in self.log_odds[cell]]))


def halves(judged: Judged) -> list[tuple[Judged, Judged]]:
    """(which chooses, which is judged), and the other way round: halves of the patients, always the same."""
    dealt = np.random.default_rng(0).permutation(np.unique(judged.patients))
    one, other = (judged.of(dealt[n::2]) for n in range(2))
    return [(one, other), (other, one)]


def chosen(choosing: Judged) -> dict[Cell, Cell]:
    """Rows of the table -> the trained cell each stands for. Of equal shares the smallest, of equal ways the first."""
    found = {cell: cell for cell in choosing.log_odds if ARMS[cell.arm][0].name != "mixed"}
    for nodules in sorted({cell.nodules for cell in choosing.log_odds if ARMS[cell.arm][0].name == "mixed"}):
        shares = {way: [cell for share in SHARES if (cell := Cell(nodules, mixed(way, share))) in choosing.log_odds] for way in WAYS}
        best = {way: max(cells, key=choosing.mean_auroc) for way, cells in shares.items()}
        found |= {Cell(nodules, f"... synthetic, {way}"): cell for way, cell in best.items()}
        found[Cell(nodules, "... synthetic, chosen")] = max(best.values(), key=choosing.mean_auroc)
    return found


@dataclass(frozen=True)
class Result:
    """rows: what is in the table; values: (rows, seeds, METRICS); drawn: (draws, rows, METRICS), means over seeds as other patients and
    seeds could have made them; shares: (for each fold) row -> the cell that was chosen for it."""

    rows: list[Cell]
    values: NDArray[np.float64]
    drawn: NDArray[np.float64]
    choices: list[dict[Cell, Cell]]

    def mean(self, row: Cell, metric: int) -> float:
        return float(self.values[self.rows.index(row), :, metric].mean())

    def difference(self, row: Cell, metric: int) -> tuple[float, float, float]:
        """To real+classic of as many nodules: value, low, high."""
        a, b = self.rows.index(row), self.rows.index(Cell(row.nodules, BASELINE))
        low, high = np.quantile(self.drawn[:, a, metric] - self.drawn[:, b, metric], [0.025, 0.975])
        return float((self.values[a] - self.values[b])[:, metric].mean()), float(low), float(high)

    def worth(self, row: Cell, curve: Sequence[int]) -> tuple[float, float, float] | None:
        """In real nodules: value, low, high; None while the curve is not there."""
        points = [Cell(count, BASELINE) for count in curve]
        if not set(points) <= set(self.rows):
            return None
        on_curve, a = [self.rows.index(point) for point in points], self.rows.index(row)
        auroc = self.values[..., AUROC].mean(1)
        draws = [worth_of(one[a], curve, one[on_curve]) for one in self.drawn[..., AUROC]]
        low, high = np.quantile(draws, [0.025, 0.975], method="inverted_cdf")
        return worth_of(auroc[a], curve, auroc[on_curve]), float(low), float(high)


def worth_of(auroc: float, curve: Sequence[int], scored: NDArray[np.float64]) -> float:
    """The smallest number of real nodules that scores as much, from curve[0] to curve[-1], which stand for what lies beyond them too.

    curve: numbers of nodules, rising; scored: the AUROC of each.
    """
    level = isotonic_regression(scored).x
    above = int(np.searchsorted(level, auroc))  # the first that scores as much
    if above in (0, len(level)):
        return float(curve[0] if above == 0 else curve[-1])
    part = (auroc - level[above - 1]) / (level[above] - level[above - 1])
    return float(curve[above - 1] * (curve[above] / curve[above - 1]) ** part)


def judge(folds: Sequence[tuple[Judged, Judged]], rng: np.random.Generator, draws: int = DRAWS) -> Result:
    """Every row by each fold's judging patients, with what the fold's choosing ones chose; figures are means over folds."""
    choices = [chosen(choosing) for choosing, _ in folds]
    rows = sorted(choices[0], key=lambda row: row.nodules)
    values, drawn = [], []
    for (choosing, judging), choice in zip(folds, choices, strict=True):
        cells = [choice[row] for row in rows]
        thresholds = [[choose_threshold(one, choosing.lesion, SPECIFICITY) for one in choosing.log_odds[cell]] for cell in cells]
        log_odds = np.array([judging.log_odds[cell] for cell in cells])
        scores = Scores(tuple(map(str, rows)), log_odds, np.array(thresholds), judging.lesion, judging.patients)
        counts = _patient_counts(scores, rng, draws)
        at_once = max(1, NUMBERS_AT_ONCE // len(judging.lesion))
        drawn.append(np.concatenate([_metric_table(scores, counts[n : n + at_once]).mean(2) for n in range(0, draws, at_once)]))
        values.append(_metric_table(scores, np.ones((1, counts.shape[1])))[0])
    value, moved = np.mean(values, 0), np.mean(drawn, 0)
    return Result(rows, value, moved + seeds_could_change(value, rng, draws), choices)


def seeds_could_change(values: NDArray[np.float64], rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """(rows, seeds, metrics) -> (draws, rows, metrics): deviations of the means, multivariate Student's t with the seeds' covariance.

    0 for one seed: nobody knows what another would change.
    """
    seeds = values.shape[1]
    if seeds == 1:
        return np.zeros((draws, values.shape[0], values.shape[2]))
    weights = rng.standard_normal((draws, seeds)) / np.sqrt(rng.chisquare(seeds - 1, (draws, 1)) * seeds)
    return np.einsum("ds,rsm->drm", weights, values - values.mean(1, keepdims=True))


def summary(result: Result, curve: Sequence[int]) -> list[dict[str, Any]]:
    """A row of the table each."""
    found = []
    for row in result.rows:
        one = {
            "nodules": row.nodules, "arm": row.arm, "auroc": result.mean(row, AUROC), "recall": result.mean(row, RECALL),
            "specificity": result.mean(row, SPECIFIC), "auroc_by_seed": result.values[result.rows.index(row), :, AUROC].tolist(),
            "chosen": [choice[row].arm for choice in result.choices] if row.arm.startswith("...") else None,
        }  # fmt: skip
        if row.arm != BASELINE:
            one |= {"auroc_over_classic": result.difference(row, AUROC), "recall_over_classic": result.difference(row, RECALL)}
            one |= {"worth": result.worth(row, curve)}
        found.append(one)
    return found


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Worth over the real nodules there were, of the arms with synthetic ones beside them."""
    return {
        f"worth_over_real_{row['nodules']}" + ("" if row["arm"].endswith("chosen") else "_" + row["arm"].split(", ")[1].replace(" ", "_")): round(
            row["worth"][0] / row["nodules"], 3
        )
        for row in rows
        if row["arm"].startswith("...") and row["worth"]
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]], curve: Sequence[int]) -> Iterator[str]:
    def nodules(count: float) -> str:
        edge = "at most " if count <= curve[0] else "at least " if count >= curve[-1] else ""
        return f"{edge}{count:.0f}"

    def less(values: Sequence[float]) -> str:
        return "{:+.3f} ({:+.3f} to {:+.3f})".format(*values)

    yield f"{'nodules, detector trained on':<42}{'AUROC':>7}  {'over real+classic':<26}{'recall':>7}  {'over real+classic':<26}{'specificity':>11}  worth in real nodules"
    for row in rows:
        line = f"{row['nodules']:>4} {row['arm']:<37}{row['auroc']:>7.3f}  "
        line += f"{less(row['auroc_over_classic']) if row['arm'] != BASELINE else '':<26}{row['recall']:>7.3f}  "
        line += f"{less(row['recall_over_classic']) if row['arm'] != BASELINE else '':<26}{row['specificity']:>11.3f}"
        if row.get("worth"):
            value, low, high = map(nodules, row["worth"])
            line += f"  {value} ({low} to {high})"
        yield line
    for row in rows:
        if row["chosen"]:
            yield f"{row['nodules']:>4} {row['arm']}: " + "; ".join(dict.fromkeys(row["chosen"]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/rare_class.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder that keeps generators' samples and detectors from one call to the next")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="which groups judge; default %(default)s")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, metavar="N", help="of the training nodules; default 50 100 300")
    parser.add_argument("--seeds", type=int, help=f"default {Effort.seeds}")
    parser.add_argument("--steps", type=int, help=f"of a detector; default {Effort.steps}")
    parser.add_argument("--updates", type=int, help=f"of a generator; default {Effort.updates}")
    parser.add_argument("--quick", action="store_true", help="50 nodules, two seeds, and hardly any training")
    parser.add_argument("--json", type=Path, help="file to write ratios, the table and conditions to; after each stage, too")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("seeds", "steps", "updates") if getattr(options, name) is not None}
    if any(value < 1 for value in given.values()):
        raise ValueError("want --seeds, --steps and --updates of 1 or more")
    if options.sizes:
        given["sizes"] = tuple(dict.fromkeys(options.sizes))
    torch.set_num_threads(1)
    effort = Effort(**{**asdict(QUICK if options.quick else Effort()), **given})
    with tempfile.TemporaryDirectory() as scratch:
        study = Study(luna_patches(Path(scratch)), options.work or Path(scratch), effort)
        for rows in stage_by_stage(study, options.split):
            lines, found = list(table(rows, study.curve)), ratios(rows)
            lines += [f"{name:<64}{ratio:>8.3f}" for name, ratio in found.items()]
            print("\n".join(["", *lines]), flush=True)
            if options.json:
                write_json(options.json, found, conditions(study, options.split, rows))


def stage_by_stage(study: Study, split: str) -> Iterator[list[dict[str, Any]]]:
    """The table as far as it is known, after each stage."""
    sets = {name: study.set_of(name) for name in ("validation", *(["test"] if split == "test" else []))}
    scores: dict[str, dict[Cell, list[NDArray[np.float64]]]] = {name: {} for name in sets}
    stages, seeds = list(study.stages()), study.effort.seeds
    order = [[(cell, seed) for seed in range(seeds) for cell in stage] for stage in stages]
    everything, done = [cell for cell, _ in chain(*order)], 0
    for stage in order:
        for cell, seed in stage:
            told(f"{done + 1} of {len(everything)}: {cell.nodules} nodules, {cell.arm}, seed {seed}; {left(study, everything[done:])}")
            for name, judged in sets.items():
                scores[name].setdefault(cell, []).append(study.log_odds(cell, seed, judged))
            done += 1
        known = {
            name: Judged({cell: np.array(ones) for cell, ones in by_cell.items()}, sets[name].lesion, sets[name].patients)
            for name, by_cell in scores.items()
        }
        folds = [(known["validation"], known["test"])] if split == "test" else halves(known["validation"])
        yield summary(judge(folds, np.random.default_rng(0)), study.curve)


def conditions(study: Study, split: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "processor": processor(torch.device("cpu")),
        "cores": os.cpu_count(), "threads": 1, "split": split, "threshold": f"specificity:{SPECIFICITY:g}", **asdict(study.effort),
        "batch": study.recipe.batch, "curve": study.curve, "rows": rows,
    }  # fmt: skip


def write_json(file: Path, found: Mapping[str, float], conditions: Mapping[str, Any]) -> None:
    file.write_text(json.dumps({"ratios": found, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
