"""What another run's weights are worth where cases are few: real nodules and a rare class, from scratch against transfer.

  python benchmarks/few_cases.py --picture few.png                    over an hour: 54 runs of 40 CPU seconds or 100, 12 of 80, and 3 to start from
  python benchmarks/few_cases.py --study luna --seeds 1
  python benchmarks/few_cases.py --quick --json few.json              about two minutes; shows that it works, and nothing of quality

luna: 30, 100 and 300 training nodules of luna16-patches (in $LESIONGAN_DATA; the README says where they come from), 32 x 32, drawn by
whole patients, the smaller sets within the larger ones; seed k draws the k-th such sets. With train.py's defaults, for the same CPU time:

  from scratch                what most would do
  from other patches          started, as by --init-from, from a run on the training patients' patches without a nodule: those are plenty
  from phantoms               from a run on the lesions of the demo's procedural cohort: those cost nobody anything
  ..., 1 layer frozen         the critic's first layer stays as the other run left it
  ..., lr 3e-4                fine-tuning at a third of the learning rate
  from scratch, as long       from scratch, for the time of a run and of the one it would have started from

The runs to start from are trained once, for half as long again. 1,000 samples of the averaged generator are compared with the nodules of
the validation patients by squared Fréchet distance in quality.py's two families of features; its header describes them. The floor is
what all training nodules score, "the nodules themselves" what a run would that only ever repeats the few it has. Then a look at
copying, in HU at the best mirroring: samples nearer to their training nodules than to as many validation nodules (as many as are
nearer to other validation nodules where nothing is copied), and those nearer to a training nodule than 5 % of validation nodules are.

ground glass: the 13 patients of that class among the 80 of lidc-nodules-3d, cubes of 32 voxels at 1 mm; 16 channels, batches of 16. A third of them is
left out to compare with, another third for each seed. Ground glass alone; all classes, conditional, as often as they occur or balanced
(--training.balance 0.75); ground glass started from a run on the solid and part-solid ones. 200 samples a run, by the
energy distance of radiomic features, with a 95 % interval over the patients left out (the kernel distance's third power would let one odd
patient of four decide it), and by what a reader would measure first.

Time is the process's CPU time on one thread, without drawing and measuring samples. The test patients of luna16-patches are never touched.
Ratios are the distance from scratch over the distance by transfer after a sixth of the time and at its end, median over seeds: above 1,
transfer helps.
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
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.quality import FAMILIES, QUICK, WINDOW, Reference, Sizes, fixed_latents, luna_patches, samples
from data.__main__ import main as data_command
from data.command import run_command
from data.export import write_preview
from data.patches import PatchFolder, WindowedPatches
from evaluate.attributes import lesion_attributes
from evaluate.distances import energy_distance, frechet_distance, standardise
from evaluate.features import radiomics
from evaluate.memorisation import audit_memorisation
from evaluate.neighbours import neighbours
from gan.checkpoint import Checkpoint
from gan.conditions import Conditions, drawing_weights
from gan.config import NetworkConfig, TrainingConfig
from gan.trainer import Trainer, TrainingSet
from gan.training import in_memory
from gan.transfer import start_from
from train import demo_patches

NODULES = (30, 100, 300)
MOMENTS = (0, 1 / 6, 1 / 3, 2 / 3, 1)
"""When samples are measured, as shares of a run's time. At 0, transfer shows what it starts with."""
LONGER_START = 1.5
LONGER_CUBES = 2
"""How much longer than others the runs to start from, and those on cubes, train."""
RARE = "ground_glass"
ATTRIBUTES = {"mean_hu": 0, "diameter_mm": 1}
"""Of a lesion, and the decimals worth showing."""
MEASURES = [f"{what} {name}" for name in ATTRIBUTES for what in ("mean", "sd")]
GRID = 16
"""Samples of each way of training in a picture."""

Point = dict[str, float]


@dataclass(frozen=True)
class Way:
    """Of training on few cases. start: the run whose weights it starts from, or None. settings: what differs from the defaults.

    longer: its time, as a multiple of the others'.
    conditional, balance: trained on all classes, told which is which; how much rare ones are preferred (ground glass only).
    """

    start: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    longer: float = 1.0
    conditional: bool = False
    balance: float = 0.0


LUNA_WAYS = {
    "from scratch": Way(),
    "from other patches": Way("other patches"),
    "from phantoms": Way("phantoms"),
    "other patches, 1 layer frozen": Way("other patches", {"frozen_layers": 1}),
    "other patches, lr 3e-4": Way("other patches", {"learning_rate": 3e-4}),
    "from scratch, as long": Way(longer=1 + LONGER_START),
}
GROUND_GLASS_WAYS = {
    "ground glass alone": Way(),
    "all classes": Way(conditional=True),
    "all classes, balance 0.75": Way(conditional=True, balance=0.75),
    "from solid and part-solid": Way("solid and part-solid"),
}


@dataclass
class Run:
    """points: at each of MOMENTS the CPU seconds, the updates so far and the distances. samples: int16 HU, those of the last one."""

    points: list[Point]
    samples: np.ndarray
    copying: Point = field(default_factory=dict)


def train(
    shape: Sequence[int], networks: NetworkConfig, config: TrainingConfig, data: TrainingSet, conditions: Conditions, start: Checkpoint | None,
    seconds: float, moments: Sequence[float], look: Callable[[nn.Module], Point],
) -> tuple[Trainer, list[Point]]:  # fmt: skip
    """Trains for so many CPU seconds, from scratch or another run; `look` is given the averaged generator at each moment."""
    trainer = Trainer(shape, networks, config, conditions.size)
    if start:
        start_from(trainer, conditions, start)
    data, spent, points = in_memory(data, trainer), 0.0, []
    for moment in moments:
        while spent < seconds * moment:
            started = time.process_time()
            trainer.update(data)
            spent += time.process_time() - started
        trainer.settle(data)
        points.append({"seconds": spent, "updates": trainer.step, **look(trainer.average)})
    return trainer, points


def pretrained(
    folder: PatchFolder, indices: np.ndarray, networks: NetworkConfig, config: TrainingConfig, seconds: float
) -> tuple[Checkpoint, Point]:
    """A run to start others from, unconditional, as its checkpoint would be; and how long it took."""
    data = TrainingSet(WindowedPatches(folder, indices))
    trainer, (point,) = train(folder.shape, networks, config, data, Conditions(), None, seconds, [1], lambda _: {})
    described = {"networks": asdict(networks), "conditions": asdict(Conditions())}
    return Checkpoint(trainer.step, described, {"shape": list(folder.shape)}, trainer.tensors()), {**point, "patches": len(indices)}


def within_patients(patients: np.ndarray, sizes: Sequence[int], rng: np.random.Generator) -> dict[int, np.ndarray]:
    """size -> rows, of whole patients, each size's within the next one's; a patient with too many for one size waits for the next."""
    found, rows, waiting = {}, np.zeros(0, int), rng.permutation(np.unique(patients)).tolist()
    for size in sorted(sizes):
        for patient in list(waiting):
            more = np.flatnonzero(patients == patient)
            if len(rows) + len(more) <= size:
                rows = np.concatenate([rows, more])
                waiting.remove(patient)
        found[size] = rows
    return found


class Luna:
    """The study of few nodules: patches, what is measured by, and the runs to start from."""

    def __init__(self, place: Path, seconds: float, sizes: Sizes):
        self.seconds, self.latents = seconds, fixed_latents(sizes.samples)
        self.networks, self.config = NetworkConfig(), TrainingConfig(device="cpu")
        self.folder = luna_patches(place)
        self.reference = Reference(self.folder, "validation", sizes.encoder_steps)
        nodule = self.folder.lesion_classes
        self.nodules = self.folder.select(splits=["train"], classes=nodule)
        self.patients = self.folder.rows.names("patient", self.nodules)
        held_out = self.folder.select(splits=["validation"], classes=nodule)
        self.held_out, self.held_out_patients = self.folder.hu(held_out), self.folder.rows.names("patient", held_out)
        with redirect_stdout(sys.stderr):
            phantoms = PatchFolder.open(demo_patches(place / "demo"))
        others = self.folder.select(splits=["train"], classes=[str(self.folder.background)])
        self.starts, self.cost = {}, {}
        for name, folder, rows in (
            ("other patches", self.folder, others),
            ("phantoms", phantoms, phantoms.select(splits=["train"], classes=phantoms.lesion_classes)),
        ):
            self.starts[name], self.cost[name] = pretrained(folder, rows, self.networks, self.config, LONGER_START * seconds)

    def few(self, count: int, seed: int) -> np.ndarray:
        """Positions among the training nodules."""
        return within_patients(self.patients, NODULES, np.random.default_rng(seed))[count]

    def run(self, way: Way, count: int, seed: int) -> Run:
        few, shown = self.few(count, seed), []

        def look(generator: nn.Module) -> Point:
            shown[:] = [samples(generator, self.latents)]
            return self.reference.distances(shown[0])

        config = replace(self.config, seed=seed, **way.settings)
        data = TrainingSet(WindowedPatches(self.folder, self.nodules[few]))
        start = self.starts[way.start] if way.start else None
        _, points = train(self.folder.shape, self.networks, config, data, Conditions(), start, self.seconds * way.longer, MOMENTS, look)
        return Run(points, shown[0], self.copying(shown[0], few))

    def copying(self, samples: np.ndarray, few: np.ndarray) -> Point:
        training = self.folder.hu(self.nodules[few])
        rng = np.random.default_rng(0)
        audit = audit_memorisation(samples, training, self.patients[few], self.held_out, self.held_out_patients, WINDOW, rng, draws=50)
        near = np.quantile(neighbours(self.held_out, training, WINDOW).nearest_hu, 0.05)
        assert audit.nearer_to_training is not None  # there are validation patients
        assert audit.nearer_to_half is not None
        return {
            "nearer to training": audit.nearer_to_training.value, "nearer to other validation": audit.nearer_to_half.value,
            "nearer than 5 % of validation": float((audit.nearest_training_hu < near).mean()),
        }  # fmt: skip

    def themselves(self, count: int, seed: int) -> Point:
        """What the few nodules score themselves."""
        few = self.few(count, seed)
        return {family: frechet_distance(self.reference.training[family][few], self.reference.held_out[family]) for family in FAMILIES}


class GroundGlass:
    """The study of a rare class in cubes. Fold k leaves out a third of its patients."""

    def __init__(self, place: Path, seconds: float, samples: int):
        self.seconds, self.latents = seconds, fixed_latents(samples)
        self.networks, self.config = NetworkConfig(channels=16), TrainingConfig(batch=16, device="cpu")
        self.folder = nodule_cubes(place)
        self.indices = self.folder.select()  # whatever their split: patients are left out by fold
        self.hu, self.labels = self.folder.hu(self.indices), self.folder.rows.names("label", self.indices)
        self.conditions = Conditions(self.folder.classes)
        self.extractor = radiomics(self.folder.spacing_mm or (1.0, 1.0, 1.0), WINDOW)
        self.features = self.extractor.compute(self.hu)
        start, cost = pretrained(self.folder, self.indices[self.labels != RARE], self.networks, self.config, seconds)
        self.starts, self.cost = {"solid and part-solid": start}, {"solid and part-solid": cost}

    def left_out(self, fold: int) -> np.ndarray:
        """bool (N,); a patient has one nodule."""
        out = np.zeros(len(self.labels), bool)
        out[np.random.default_rng(0).permutation(np.flatnonzero(self.labels == RARE))[fold::3]] = True
        return out

    def run(self, way: Way, fold: int) -> tuple[Run, np.ndarray]:
        """A run, and the features of its samples, standardised as those of the patients left out."""
        out, shown = self.left_out(fold), []
        rows = np.flatnonzero(~out & ((self.labels == RARE) | way.conditional))
        labels = self.labels[rows].tolist()
        conditions = self.conditions if way.conditional else Conditions()
        wanted = torch.from_numpy(conditions.encode([RARE], [np.nan])[0]) if way.conditional else None
        data = TrainingSet(
            WindowedPatches(self.folder, self.indices[rows]), conditions.encode(labels, [np.nan] * len(labels)) if way.conditional else None,
            drawing_weights(self.labels[rows], way.balance),
        )  # fmt: skip

        def look(generator: nn.Module) -> Point:
            hu = samples(generator, self.latents, wanted)
            shown[:] = [hu, self.standardised(self.extractor.compute(hu), fold)]
            return {"energy": energy_distance(self.standardised(self.features[out], fold), shown[1]), **self.measured(hu)}

        config = replace(self.config, seed=fold, **way.settings)
        start = self.starts[way.start] if way.start else None
        _, points = train(self.folder.shape, self.networks, config, data, conditions, start, self.seconds, MOMENTS, look)
        return Run(points, shown[0]), shown[1]

    def standardised(self, features: np.ndarray, fold: int) -> np.ndarray:
        return standardise(self.features[~self.left_out(fold)], features)[0]

    def measured(self, hu: np.ndarray) -> Point:
        """Mean and spread of density and diameter of the central lesions."""
        found = lesion_attributes(hu, self.folder.spacing_mm or (1.0, 1.0, 1.0), WINDOW)
        functions = {"mean": np.nanmean, "sd": np.nanstd}
        return {measure: float(functions[measure.split()[0]](found[measure.split()[1]])) for measure in MEASURES}

    def real(self, fold: int) -> dict[str, np.ndarray]:
        """Name -> bool (N,): real nodules to put beside samples."""
        out = self.left_out(fold)
        return {
            "real: ground glass left out": out, "real: ground glass trained on": (self.labels == RARE) & ~out,
            "real: part-solid": self.labels == "part_solid", "real: solid": self.labels == "solid",
        }  # fmt: skip

    def interval(self, features: Mapping[int, np.ndarray]) -> tuple[float, float, float]:
        """Energy distance, the mean over folds, with a 95 % interval over the patients left out. features: fold -> (N, D).

        By half-samples, as evaluate's (Saigo, Shao & Sitter 2001)."""
        rng = np.random.default_rng(0)
        pairs = [(self.standardised(self.features[self.left_out(fold)], fold), drawn_ones) for fold, drawn_ones in features.items()]

        def half(rows: np.ndarray) -> np.ndarray:
            return rows[rng.choice(len(rows), len(rows) // 2, replace=False)]

        value = float(np.mean([energy_distance(held, ours) for held, ours in pairs]))
        draws = np.array([np.mean([energy_distance(half(held), half(ours)) for held, ours in pairs]) for _ in range(200)])
        low, high = np.quantile(draws - np.median(draws), [0.025, 0.975])
        return value, value + float(low), value + float(high)


def nodule_cubes(place: Path) -> PatchFolder:
    """Cubes of lidc-nodules-3d, made as docs/data.md shows."""
    source = Path(os.environ.get("LESIONGAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "lidc-nodules-3d"
    table, key = source / "nodules.csv", place / "key"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: not there; set LESIONGAN_DATA to the folder of public data that the README describes")
    key.write_text("0" * 64 + "\n")  # these pseudonyms hide nobody; a fixed key makes the folder the same everywhere
    with redirect_stdout(sys.stderr):
        data_command([
            "prepare", str(source), "--lesions", str(table), "--out", str(place / "cubes"), "--dims", "3", "--size", "32", "--class-from",
            "texture", "--classes", "1=ground_glass,2=part_solid,3=part_solid,4=solid,5=solid", "--background", "0", "--processes", "1",
            "--key", str(key),
        ])  # fmt: skip
    return PatchFolder.open(place / "cubes")


LunaRuns = Mapping[int, Mapping[str, Mapping[int, Run]]]
"""count -> way -> seed -> run."""


def luna_table(study: Luna, runs: LunaRuns) -> Iterator[str]:
    """A block for each count and family; a row a way, a column a moment: the median over seeds, and the range at the end."""
    yield "few nodules: squared Fréchet distance to validation nodules, median over seeds"
    yield from (
        f"started from {name}: {c['patches']} patches, {c['updates']} updates, {c['seconds']:.0f} s" for name, c in study.cost.items()
    )
    for count, ways in runs.items():
        for family in FAMILIES:
            yield ""
            title = f"{count} nodules, {family}"
            yield f"{title:<34}" + "".join(f"{moment * study.seconds:>7.0f} s" for moment in MOMENTS) + "   lowest, highest"
            for name, by_seed in ways.items():
                ends = [run.points[-1][family] for run in by_seed.values()]
                middles = [statistics.median(run.points[n][family] for run in by_seed.values()) for n in range(len(MOMENTS))]
                shown = "".join(f"{d:>9.2f}" for d in middles)
                if (longer := LUNA_WAYS[name].longer) > 1:
                    shown = f"{f'after {longer * study.seconds:.0f} s:':>36}{middles[-1]:>9.2f}"
                yield f"{name:<34}{shown}   {min(ends):.2f}, {max(ends):.2f}"
            own = statistics.median(study.themselves(count, seed)[family] for seed in next(iter(ways.values())))
            yield f"{'the nodules themselves':<34}{own:>45.2f}   (all training nodules, the floor: {study.reference.floor[family]:.2f})"
    yield ""
    measures = list(next(iter(next(iter(next(iter(runs.values())).values())).values())).copying)
    yield f"{'copying, shares of samples':<46}" + "".join(f"{name:>32}" for name in measures)
    for count, ways in runs.items():
        for name, by_seed in ways.items():
            middles = [statistics.median(run.copying[measure] for run in by_seed.values()) for measure in measures]
            yield f"{f'{count} nodules, {name}':<46}" + "".join(f"{share:>32.2f}" for share in middles)


def luna_ratios(runs: LunaRuns) -> dict[str, float]:
    found = {}
    for count, ways in runs.items():
        for moment, when in ((1, "after_a_sixth"), (-1, "at_the_end")):
            for family in FAMILIES:
                distances = {name: statistics.median(run.points[moment][family] for run in by.values()) for name, by in ways.items()}
                scratch = distances.pop("from scratch")
                found |= {
                    f"{count}_nodules_{key(name)}_{family}_{when}": round(scratch / distance, 3)
                    for name, distance in distances.items() if moment == -1 or LUNA_WAYS[name].longer == 1
                }  # fmt: skip
    return found


def key(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def ground_glass_table(study: GroundGlass, runs: Mapping[str, Mapping[int, tuple[Run, np.ndarray]]]) -> Iterator[str]:
    """A row a way, and a row for real nodules of each kind in the same measures, means over folds."""
    folds = list(next(iter(runs.values())))
    cost = study.cost["solid and part-solid"]
    yield f"ground glass: {sum(study.labels == RARE)} patients, {', '.join(str(study.left_out(fold).sum()) for fold in folds)} left out; "
    yield f"{study.seconds:.0f} s a run, {cost['seconds']:.0f} s ({cost['updates']} updates) for the one started from"
    yield f"{'':<34}{'energy distance (95 % interval)':>34}{'density, HU':>22}{'diameter, mm':>18}"

    def row(name: str, features: Mapping[int, np.ndarray] | None, measures: Sequence[Point]) -> str:
        value, low, high = study.interval(features) if features else (np.nan,) * 3
        distance = f"{value:.2f} ({low:.2f} to {high:.2f})" if features else ""
        mean = {what: float(np.mean([one[what] for one in measures])) for what in MEASURES}
        density, diameter = (f"{mean[f'mean {what}']:.{digits}f} +- {mean[f'sd {what}']:.{digits}f}" for what, digits in ATTRIBUTES.items())
        return f"{name:<34}{distance:>34}{density:>22}{diameter:>18}"

    for name, by_fold in runs.items():
        yield row(name, {fold: features for fold, (_, features) in by_fold.items()}, [run.points[-1] for run, _ in by_fold.values()])
    for name in study.real(0):
        kinds = {fold: study.real(fold)[name] for fold in folds}
        features = {fold: study.standardised(study.features[kind], fold) for fold, kind in kinds.items()}
        yield row(name, None if "left out" in name else features, [study.measured(study.hu[kind]) for kind in kinds.values()])
    yield ""
    yield f"{'energy distance, mean over folds':<34}" + "".join(f"{moment * study.seconds:>7.0f} s" for moment in MOMENTS) + "   updates"
    for name, by_fold in runs.items():
        means = [np.mean([run.points[n]["energy"] for run, _ in by_fold.values()]) for n in range(len(MOMENTS))]
        updates = statistics.median(run.points[-1]["updates"] for run, _ in by_fold.values())
        yield f"{name:<34}" + "".join(f"{d:>9.2f}" for d in means) + f"   {updates:.0f}"


def ground_glass_ratios(runs: Mapping[str, Mapping[int, tuple[Run, np.ndarray]]]) -> dict[str, float]:
    """None where a distance, being unbiased, is not above 0."""
    ends = {name: float(np.mean([run.points[-1]["energy"] for run, _ in by_fold.values()])) for name, by_fold in runs.items()}
    alone = ends.pop("ground glass alone")
    return {f"ground_glass_{key(name)}_energy": round(alone / end, 3) for name, end in ends.items() if min(alone, end) > 0}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/few_cases.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="1 s a run and one seed unless told otherwise, fewer samples, a hasty encoder")
    parser.add_argument("--seconds", type=float, help=f"CPU seconds of a run on nodules, {LONGER_CUBES} times as many on cubes; default 40")
    parser.add_argument("--seeds", type=int, help="runs of each way of training, 3 at most for ground glass; default 3")
    parser.add_argument("--study", choices=("luna", "ground-glass", "both"), default="both")
    parser.add_argument("--json", type=Path, help="file to write ratios, curves and conditions to")
    parser.add_argument("--picture", type=Path, help="file to draw samples into, such as few.png; those of cubes into few-cubes.png")
    options = parser.parse_args(arguments)
    seconds, seeds = options.seconds or (1.0 if options.quick else 40.0), options.seeds or (1 if options.quick else 3)
    if seconds <= 0 or seeds < 1:
        raise ValueError("want --seconds above 0 and --seeds of 1 or more")
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    conditions: dict[str, Any] = {
        "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(),
        "cores": os.cpu_count(), "threads": 1, "cpu_seconds": seconds, "seeds": seeds,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        if options.study != "ground-glass":
            luna = Luna(Path(place), seconds, QUICK if options.quick else Sizes())
            runs: dict[int, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
            for seed in range(seeds):
                for count in NODULES:
                    for name, way in LUNA_WAYS.items():
                        print(f"{count} nodules, {name}, seed {seed}", file=sys.stderr, flush=True)
                        runs[count][name][seed] = luna.run(way, count, seed)
            print("\n".join(luna_table(luna, runs)))
            ratios |= luna_ratios(runs)
            conditions["luna"] = {
                "floor": luna.reference.floor, "started_from": luna.cost, "samples": len(luna.latents),
                "themselves": {count: [luna.themselves(count, seed) for seed in range(seeds)] for count in NODULES},
                "runs": {count: {n: [asdict_of(r) for r in by.values()] for n, by in ways.items()} for count, ways in runs.items()},
            }  # fmt: skip
            if options.picture:
                first = {name: by_seed[0].samples for name, by_seed in runs[NODULES[0]].items()}
                draw(options.picture, {f"{NODULES[0]} {name}": samples for name, samples in first.items()}, None)
        if options.study != "luna":
            rare = GroundGlass(Path(place), LONGER_CUBES * seconds, 20 if options.quick else 200)
            by_way: dict[str, dict[int, tuple[Run, np.ndarray]]] = defaultdict(dict)
            for fold in range(min(seeds, 3)):
                for name, way in GROUND_GLASS_WAYS.items():
                    print(f"{name}, fold {fold}", file=sys.stderr, flush=True)
                    by_way[name][fold] = rare.run(way, fold)
            print("\n".join(["", *ground_glass_table(rare, by_way)]))
            ratios |= ground_glass_ratios(by_way)
            conditions["ground_glass"] = {
                "started_from": rare.cost, "samples": len(rare.latents),
                "intervals": {name: rare.interval({f: features for f, (_, features) in by.items()}) for name, by in by_way.items()},
                "runs": {name: [asdict_of(run) for run, _ in by.values()] for name, by in by_way.items()},
            }  # fmt: skip
            if options.picture:
                file = options.picture.with_stem(f"{options.picture.stem}-cubes")
                draw(
                    file,
                    {"real": rare.hu[rare.labels == RARE], **{n: by[0][0].samples for n, by in by_way.items()}},
                    rare.folder.spacing_mm,
                )
    for name, ratio in ratios.items():
        print(f"{name:<70}{ratio:>8.3f}")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


def asdict_of(run: Run) -> dict[str, Any]:
    return {"points": run.points, "copying": run.copying}


def draw(file: Path, samples: Mapping[str, np.ndarray], spacing_mm: Sequence[float] | None) -> None:
    """The first samples of each way of training, from the same latents."""
    labels = [name for name, hu in samples.items() for _ in hu[:GRID]]
    write_preview(np.concatenate([hu[:GRID] for hu in samples.values()]), WINDOW, file, spacing_mm, labels)


if __name__ == "__main__":
    run_command(main)
