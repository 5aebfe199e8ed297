"""Does drawing a rare class into other patients' anatomy help a detector in 3-D? Ground glass in lidc-nodules-3d, 13 of 80 patients.

  python benchmarks/ground_glass.py --work gg --json gg.json       about 40 minutes of CPU time; stop it, give the command again, and it goes on
  python benchmarks/ground_glass.py --quick                        about a minute; shows that it works, and nothing of worth
  python benchmarks/ground_glass.py --cubes cubes                  only makes the patch folder of cubes that it uses, to train on

Cubes of 20 voxels at 1 mm (the data are in $LESIONGAN_DATA; the README says where they come from): each patient's nodule in the middle of
one, and up to eight from the corners of the same 51 mm of scan that hold no voxel of the nodule nor of what lies within 3 mm of it: lesion-free
anatomy. Patients of whom no corner is free are left out; their nodules are larger than the cube. Three folds: a third of the ground-glass patients and of the others is left out in turn. A detector learns ground glass from
lesion-free cubes on the other two thirds (8 or 9 ground-glass nodules), and is judged on those left out; half of each batch of 32 are lesions.

  real+classic               the ground-glass nodules, flipped, turned, moved, with noise
  + other classes            a quarter of a batch's lesions are solid and part-solid nodules instead
  + WAY                      a quarter are synthetic ground glass instead, of the training patients:
    whole patches            by a generator of whole cubes that has learned all classes (--networks.condition class+diameter)
    context                  by one that draws them into lesion-free cubes (--context.on true), learned from all classes, too
    pasted, Poisson          the ground-glass nodules themselves, set into other lesion-free cubes (benchmarks/pasting.py)

AUROC over the cubes left out, of all folds together (log-odds less each detector's mean over lesion-free training cubes, so that folds
compare), mean over seeds, which differ in weights, draws and generators. Intervals are 95 % over patients, and seeds, as in rare_class.py.
Nothing was chosen by these figures: networks, share and steps were set beforehand, the share by rare_class.py's validation groups.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pasting import BLENDS, set_in
from benchmarks.quality import WINDOW
from benchmarks.rare_class import composites, seeds_could_change, told
from benchmarks.step import processor
from data.__main__ import main as data_command
from data.command import run_command
from data.patches import PatchFolder, WindowedPatches
from data.preprocess import from_unit
from evaluate.detector import Arm, DetectorSet, Recipe, log_odds_of, train_detector
from evaluate.detector_store import DetectorStore, content_hash
from evaluate.scores import area_under_roc
from gan.commands.shared import lesion_diameters_mm
from gan.conditions import Conditions
from gan.config import NetworkConfig, TrainingConfig
from gan.context import Backgrounds
from gan.trainer import Trainer, TrainingSet, draw

SIDE, KEEP_AWAY_MM = 20, 3
RARE = "ground_glass"
FOLDS = 3
SHARE = 0.25
WAYS = ("whole patches", "context", *BLENDS)
ARMS = ("real+classic", "+ other classes", *(f"+ {way}" for way in WAYS))
DRAWS = 2000


@dataclass(frozen=True)
class Effort:
    steps: int = 200
    updates: int = 400
    samples: int = 400
    seeds: int = 3


QUICK = Effort(steps=10, updates=4, samples=40, seeds=1)


def cubes(place: Path, folder: Path) -> PatchFolder:
    """Nodules and lesion-free corners, one patch folder; every patient in its training split, since folds decide. place: for files on the way."""
    source = Path(os.environ.get("LESIONGAN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "lidc-nodules-3d"
    if not (source / "nodules.csv").is_file():
        raise FileNotFoundError(
            f"{source / 'nodules.csv'}: not there; set LESIONGAN_DATA to the folder of public data that the README describes"
        )
    table, key = place / "places.csv", place / "key"
    key.write_text("0" * 64 + "\n")  # these pseudonyms hide nobody; a fixed key makes the folder the same everywhere
    with open(source / "nodules.csv", newline="") as file, open(table, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "x", "y", "z", "diameter", "class", "patient_id"])
        for row in csv.DictReader(file):
            mask = np.asarray(nibabel.load(source / row["mask"]).dataobj) > 0
            near = ndimage.distance_transform_edt(~mask) <= KEEP_AWAY_MM
            name = {"1": RARE, "2": "part_solid", "3": "part_solid"}.get(row["texture"], "solid")
            middle = [(n - 1) / 2 for n in mask.shape]
            diameter = 2 * np.cbrt(3 * mask.sum() / (4 * np.pi))
            corners = product(*[(0, n - SIDE) for n in mask.shape])
            free = [corner for corner in corners if not near[tuple(slice(start, start + SIDE) for start in corner)].any()]
            if free:
                writer.writerow([row["image"], *middle, f"{diameter:.1f}", name, row["patient_id"]])
            for corner in free:
                writer.writerow([row["image"], *[start + (SIDE - 1) / 2 for start in corner], "", "background", row["patient_id"]])
    with redirect_stdout(sys.stderr):
        data_command([
            "prepare", str(source / "images"), "--lesions", str(table), "--out", str(folder), "--dims", "3", "--size", str(SIDE),
            "--coordinates", "voxel", "--background", "8", "--validation", "0", "--test", "0", "--processes", "1", "--key", str(key),
        ])  # fmt: skip
    return PatchFolder.open(folder)


class Study:
    """The cubes, and what is trained on them; what is in `work` is not trained again."""

    def __init__(self, folder: PatchFolder, work: Path, effort: Effort):
        self.folder, self.effort = folder, effort
        self.detectors, self.generators = DetectorStore(work / "detectors"), DetectorStore(work / "generators")
        self.rows = folder.select()
        self.labels, self.patients = (folder.rows.names(name, self.rows) for name in ("label", "patient"))
        self.hu = folder.hu(self.rows)
        self.recipe = Recipe(effort.steps, 32, "small", "natural", "cpu")
        self.networks = NetworkConfig(channels=16)
        self.seconds: list[float] = []
        fold_of: dict[str, int] = {}
        for rare in (True, False):
            some = np.unique(self.patients[(self.labels == RARE) == rare]) if rare else np.setdiff1d(self.patients, list(fold_of))
            dealt = np.random.default_rng(0).permutation(some)
            fold_of |= {str(patient): n % FOLDS for n, patient in enumerate(dealt)}
        self.fold = np.array([fold_of[str(patient)] for patient in self.patients])

    def training(self, fold: int, *classes: str) -> NDArray[np.int_]:
        """Positions of the training patients' cubes of these classes."""
        return np.flatnonzero((self.fold != fold) & np.isin(self.labels, classes))

    def log_odds(self, arm: str, fold: int, seed: int) -> NDArray[np.float64]:
        """Of all cubes."""
        rare, free = self.training(fold, RARE), self.training(fold, str(self.folder.background))
        hu = self.hu[np.concatenate([rare, free])]
        train = DetectorSet(hu, np.arange(len(hu)) < len(rare), np.zeros(len(hu)))
        more = self.more(arm, fold, seed)
        settings = {
            "recipe": asdict(self.recipe), "torch": torch.__version__, "seed": seed, "train": content_hash(hu), "more": content_hash(more),
            "share": SHARE, "judged": content_hash(self.hu),
        }  # fmt: skip
        kept = self.detectors.load(settings)
        if kept is None:
            started = time.monotonic()
            synthetic = DetectorSet(more, np.ones(len(more), bool), np.arange(len(more)))
            arm_of = Arm(arm, "classic", SHARE if len(more) else 0.0)
            network = train_detector(train, synthetic, WINDOW, arm_of, seed, self.recipe, lambda step: None)
            scores = log_odds_of(network, self.hu, WINDOW, "cpu")
            kept = {"scores": scores - scores[free].mean()}
            self.detectors.save(settings, kept)
            self.seconds.append(time.monotonic() - started)
        return kept["scores"]

    def more(self, arm: str, fold: int, seed: int) -> np.ndarray:
        """int16 HU: what takes the place of some of the rare lesions of a batch."""
        if arm == "real+classic":
            return self.hu[:0]
        if arm == "+ other classes":
            return self.hu[self.training(fold, *set(self.folder.lesion_classes) - {RARE})]
        way = arm.removeprefix("+ ")
        lesions = self.training(fold, *self.folder.lesion_classes)
        settings = {
            "way": way, "torch": torch.__version__, "seed": seed, "train": content_hash(self.hu[lesions]), "networks": asdict(self.networks),
            **asdict(self.effort), "training": asdict(self.config(seed)), "seeds": None, "steps": None,
        }  # fmt: skip
        kept = self.generators.load(settings)
        if kept is None:
            kept = {"hu": self.drawn(way, lesions, fold, seed)}
            self.generators.save(settings, kept)
        return kept["hu"]

    def config(self, seed: int) -> TrainingConfig:
        return TrainingConfig(seed=seed, device="cpu", steps=self.effort.updates, batch=16)

    def drawn(self, way: str, lesions: np.ndarray, fold: int, seed: int) -> np.ndarray:
        """int16 HU (N, D, H, W), ground glass; learned from the cubes at the positions `lesions`."""
        rng, rare, count = np.random.default_rng([seed, fold]), self.training(fold, RARE), self.effort.samples
        free = WindowedPatches(self.folder, self.rows[self.training(fold, str(self.folder.background))])
        backgrounds = Backgrounds(free[np.arange(len(free))], self.folder.spacing_mm, self.folder.shape)
        of_rare = lesion_diameters_mm(self.folder, self.rows[rare])
        if way in BLENDS:
            found, _, _ = set_in(WindowedPatches(self.folder, self.rows[rare])[np.arange(len(rare))], of_rare, backgrounds, count, rng, way)
            return from_unit(found[:, 0], WINDOW)
        conditions = Conditions(self.folder.lesion_classes, diameter=True, by_support=way == "context")
        mm = lesion_diameters_mm(self.folder, self.rows[lesions])
        patches = WindowedPatches(self.folder, self.rows[lesions])[np.arange(len(lesions))]
        data = TrainingSet(patches, conditions.encode(self.labels[lesions].tolist(), mm), diameters_mm=mm)
        trainer = Trainer(
            self.folder.shape, self.networks, self.config(seed), conditions.size, backgrounds=backgrounds if way == "context" else None
        )
        for _ in range(self.effort.updates):
            trainer.update(data)
        trainer.settle(data)
        wanted = rng.choice(of_rare, count)
        condition = conditions.encode([RARE] * count, wanted)
        if way == "context":
            return from_unit(composites(trainer, wanted, rng, condition)[:, 0], WINDOW)
        found = []
        for some in np.array_split(np.arange(count), -(-count // 50)):
            z = torch.from_numpy(rng.standard_normal((len(some), trainer.average.latent), dtype=np.float32))
            with torch.inference_mode():
                found.append(draw(trainer.average, z, torch.from_numpy(condition[some]), None).numpy())
        return from_unit(np.concatenate(found)[:, 0], WINDOW)


def judged(study: Study) -> Mapping[str, NDArray[np.float64]]:
    """Arm -> log-odds (seeds, N) of every judged cube, each by detectors that did not see its patient. NaN: a nodule of another class."""
    wanted = np.isin(study.labels, [RARE, str(study.folder.background)])
    found = {arm: np.full((study.effort.seeds, len(study.labels)), np.nan) for arm in ARMS}
    everything, started = list(product(range(study.effort.seeds), range(FOLDS), ARMS)), time.monotonic()
    for done, (seed, fold, arm) in enumerate(everything):
        left = f"; about {(time.monotonic() - started) / done * (len(everything) - done) / 60:.0f} min left" if done else ""
        told(f"{done + 1} of {len(everything)}: {arm}, fold {fold}, seed {seed}{left}")
        rows = wanted & (study.fold == fold)
        found[arm][seed, rows] = study.log_odds(arm, fold, seed)[rows]
    return found


def table(study: Study, found: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """AUROC of each arm, and its difference to the first, with 95 % intervals."""
    rows = np.isfinite(found[ARMS[0]][0])
    lesion, patients = study.labels[rows] == RARE, study.patients[rows]
    scores = np.array([found[arm][:, rows] for arm in ARMS])
    values = np.array([[area_under_roc(one, lesion) for one in seeds] for seeds in scores])
    rng, drawn = np.random.default_rng(0), []
    sick = np.unique(patients[lesion])
    of_patient = [np.flatnonzero(patients == patient) for patient in np.concatenate([sick, np.setdiff1d(patients, sick)])]
    for _ in range(DRAWS // 10):  # strata: patients with ground glass, and the others
        picks = np.concatenate(
            [
                rng.integers(len(sick), size=len(sick)),
                len(sick) + rng.integers(len(of_patient) - len(sick), size=len(of_patient) - len(sick)),
            ]
        )
        some = np.concatenate([of_patient[n] for n in picks])
        drawn.append([np.mean([area_under_roc(one[some], lesion[some]) for one in seeds]) for seeds in scores])
    moved = np.repeat(drawn, 10, 0) + seeds_could_change(values[..., None], rng, DRAWS)[..., 0]
    found_rows = []
    for n, arm in enumerate(ARMS):
        low, high = np.quantile(moved[:, n] - moved[:, 0], [0.025, 0.975])
        interval = np.quantile(moved[:, n], [0.025, 0.975]).clip(0, 1)  # seeds are added as if there were room
        difference = [float((values[n] - values[0]).mean()), float(low), float(high)]
        found_rows.append(
            {
                "arm": arm,
                "auroc": [float(values[n].mean()), *map(float, interval)],
                "over_classic": difference,
                "by_seed": values[n].tolist(),
            }
        )
    return found_rows


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"{'detector trained on':<20}{'AUROC (95 %)':<28}over real+classic (95 %)"
    for row in rows:
        words = "{:.3f} ({:.3f} to {:.3f})".format(*row["auroc"])
        yield f"{row['arm']:<20}{words:<28}" + (
            "{:+.3f} ({:+.3f} to {:+.3f})".format(*row["over_classic"]) if row["arm"] != ARMS[0] else ""
        )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/ground_glass.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder that keeps samples and scores from one call to the next")
    parser.add_argument("--cubes", type=Path, help="only make this patch folder")
    parser.add_argument("--seeds", type=int, help=f"default {Effort.seeds}")
    parser.add_argument("--quick", action="store_true", help="one seed, and hardly any training")
    parser.add_argument("--json", type=Path, help="file to write ratios, the table and conditions to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    effort = QUICK if options.quick else Effort()
    if options.seeds is not None:
        effort = Effort(**{**asdict(effort), "seeds": options.seeds})
    with tempfile.TemporaryDirectory() as scratch:
        if options.cubes:
            cubes(Path(scratch), options.cubes)
            return
        study = Study(cubes(Path(scratch), Path(scratch) / "cubes"), options.work or Path(scratch), effort)
        rows = table(study, judged(study))
        counts = {name: int((study.labels == name).sum()) for name in study.folder.classes}
    print("\n".join(lines(rows)))
    ratios = {
        f"error_over_classic{row['arm'].replace(' ', '_')}": round((1 - row["auroc"][0]) / (1 - rows[0]["auroc"][0]), 3) for row in rows[1:]
    }
    if options.json:
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "processor": processor(torch.device("cpu")),
            "threads": 1, **asdict(effort), "share": SHARE, "cubes": counts, "rows": rows,
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
