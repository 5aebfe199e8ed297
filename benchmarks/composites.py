"""Do lesions that were set into lesion-free patches look right? Pasted, Poisson-blended and generated ones beside real ones.

  python benchmarks/composites.py --panel panel.png --profile profile.png --json composites.json     about a quarter of an hour of CPU time
  python benchmarks/composites.py --quick                                                            under a minute; shows that it works

From 300 training nodules of luna16-patches (whole groups; the data are in $LESIONGAN_DATA, and the README says where they come from),
32 x 32: a generator of lesions in anatomy (train.py --context.on true), trained on them, pastes and Poisson blends of them
(benchmarks/pasting.py). They are set into lesion-free patches of the other training and the validation groups, and compared with the nodules
of those groups, which neither the generator nor the pastes have seen, at the same diameters. The test groups are not touched.

  edge       evaluate/edges.py and seams.py: gradient and noise inside, on and outside the edge of the support, against real nodules, whose
             edges are looked at in the same places. A measure differs where its 95 % interval lies beyond what two halves of the
             real patients differ by; "seam" lists those of them that only a seam explains
  noise      noise power in the support over that of the same voxels before, median
  told apart evaluate/told_apart.py: AUROC of a small network that learns composites from real nodules, on groups it has not seen, of the
             lesion and its rim alone (what lies further out is another place of the lung); 0.5 is a guess. Floor: two halves of the real

Ratios are each way's AUROC above 0.5 over pasting's: below 1, harder to tell from real.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.few_cases import within_patients
from benchmarks.pasting import BLENDS, set_each
from benchmarks.quality import WINDOW, luna_patches
from benchmarks.rare_class import composites, told
from benchmarks.step import processor
from data.command import run_command
from data.export import write_preview
from data.patches import PatchFolder, WindowedPatches
from data.preprocess import from_unit
from evaluate.detector import Recipe
from evaluate.edges import edge_measures, noise_kept, radial_profile
from evaluate.figures import edge_profile
from evaluate.seams import Edges, compare_edges
from evaluate.told_apart import Shown, ToldApart, deal_folds, tell_apart, tell_halves
from gan.commands.shared import lesion_diameters_mm
from gan.config import NetworkConfig, TrainingConfig
from gan.context import SEEN_MM, SOFT_MM, Backgrounds, radius_mm
from gan.trainer import Trainer, TrainingSet
from gan.training import in_memory

NODULES, SPACING = 300, (1.0, 1.0)  # the spacing is not known: in pixels
WAYS = (*BLENDS, "context")
COLUMNS = 12


class Sets:
    """Real nodules, and for each way as many composites of the same diameters."""

    def __init__(self, folder: PatchFolder, updates: int, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        training = folder.select(splits=["train"], classes=folder.lesion_classes)
        of_nodules = folder.rows.names("patient", training)
        few = training[within_patients(of_nodules, [NODULES], self.rng)[NODULES]]
        seen = np.unique(folder.rows.names("patient", few))
        others = {
            kind: rows[~np.isin(folder.rows.names("patient", rows), seen)]
            for kind, classes in (("real", folder.lesion_classes), ("free", [str(folder.background)]))
            for rows in [folder.select(splits=["train", "validation"], classes=classes)]
        }
        self.real, self.patients = folder.hu(others["real"]), folder.rows.names("patient", others["real"])
        self.diameters = lesion_diameters_mm(folder, others["real"])
        lesions, of_few = WindowedPatches(folder, few)[np.arange(len(few))], lesion_diameters_mm(folder, few)
        free = folder.select(splits=["train"], classes=[str(folder.background)])
        trainer = trained(folder, lesions, of_few, free, updates, seed)
        backgrounds = Backgrounds(WindowedPatches(folder, others["free"]), None, folder.shape)
        anatomy, rows = backgrounds.draw(self.rng, self.diameters)
        self.of_background = folder.rows.names("patient", others["free"][rows])
        self.background = from_unit(anatomy[:, 0], WINDOW)
        nearest = np.abs(of_few - self.diameters[:, None]).argsort(1)[:, :5]  # one of the five of the nearest diameter
        chosen = nearest[np.arange(len(nearest)), self.rng.integers(5, size=len(nearest))]
        self.composites = {
            way: from_unit(set_each(lesions[chosen], of_few[chosen], anatomy, backgrounds, self.rng, way)[:, 0], WINDOW) for way in BLENDS
        }
        self.composites["context"] = from_unit(composites(trainer, self.diameters, self.rng, anatomy=anatomy)[:, 0], WINDOW)
        self.counts = {"nodules": len(few), "groups": len(seen), "real": len(self.real), "real_groups": len(np.unique(self.patients))}


def trained(folder: PatchFolder, lesions: np.ndarray, diameters: np.ndarray, free: np.ndarray, updates: int, seed: int) -> Trainer:
    trainer = Trainer(
        folder.shape, NetworkConfig(), TrainingConfig(device="cpu", seed=seed, steps=updates),
        backgrounds=Backgrounds(WindowedPatches(folder, free)[np.arange(len(free))], None, folder.shape),
    )  # fmt: skip
    data = in_memory(TrainingSet(lesions, diameters_mm=diameters), trainer)
    for step in range(updates):
        if step % 500 == 0:
            told(f"generator: update {step} of {updates}")
        trainer.update(data)
    trainer.settle(data)
    return trainer


def edges(sets: Sets, way: str) -> tuple[Edges, float]:
    """The edge's measures against real nodules, and the median share of the noise power that was kept."""
    radii, edge = sets.diameters / 2, edge_in_radii(sets.diameters)
    real, drawn = (edge_measures(hu, radii, SPACING, WINDOW, edge) for hu in (sets.real, sets.composites[way]))
    kept = noise_kept(sets.composites[way], sets.background, radii, SPACING, WINDOW, edge)
    found = compare_edges(real, drawn, (radii, radii), sets.patients, sets.of_background, np.random.default_rng(0))
    return found, float(np.nanmedian(kept))


def edge_in_radii(diameters_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the support is half faded, in radii of the lesion."""
    return (radius_mm(diameters_mm) - SOFT_MM / 2) / (diameters_mm / 2)


def apart(sets: Sets, way: str | None, steps: int, seeds: int) -> ToldApart:
    """Of one way; of two halves of the real nodules for None."""
    rng, shown = np.random.default_rng(0), radius_mm(sets.diameters) + SEEN_MM
    options = {
        "seeds": seeds, "recipe": Recipe(steps, 64, "small", "natural", "cpu"),
        "tell": lambda seed, fold: told(f"{way or 'halves of the real'}: network of seed {seed}, fold {fold}"),
    }  # fmt: skip
    real = Shown(sets.real, sets.patients, shown)
    if way is None:
        return tell_halves(real, SPACING, WINDOW, rng, **options)
    fold_of = deal_folds(sets.patients, sets.of_background, 5, rng)
    return tell_apart(real, Shown(sets.composites[way], sets.of_background, shown), SPACING, WINDOW, rng, fold_of=fold_of, **options)


def write_panel(sets: Sets, file: Path) -> None:
    """A row a way, of equal diameters column by column; two such blocks."""
    wanted = np.quantile(sets.diameters, np.linspace(0.1, 0.95, COLUMNS))
    order = np.abs(sets.diameters - wanted[:, None]).argsort(1, kind="stable")
    names = ("real", *WAYS)
    rows = [order[:, block] for block in range(2)]
    hu = [(sets.real if name == "real" else sets.composites[name])[some] for name in names for some in rows]
    labels = [name for name in names for _ in range(2 * COLUMNS)]
    write_preview(np.concatenate(hu), WINDOW, file, None, labels, columns=COLUMNS, zoom=2)


def table(rows: Sequence[Mapping[str, Any]], floor: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'set':<12}{'told apart, AUROC (95 %)':<28}{'noise':>6}  differs from real nodules (those that a seam explains in capitals)"
    for row in rows:
        words = "{:.3f} ({:.3f} to {:.3f})".format(*row["auroc"])
        marked = [name.upper() if name in row["seams"] else name for name in row["differs"]]
        yield f"{row['way']:<12}{words:<28}{row['noise_kept']:>6.2f}  {', '.join(marked) or 'nothing'}"
    yield f"{'real halves':<12}" + "{:.3f} ({:.3f} to {:.3f})".format(*floor["auroc"])


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/composites.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=1500, help="of the generator; default %(default)s")
    parser.add_argument("--panel", type=Path, help="PNG to write: real, pasted, Poisson and generated nodules at equal diameters")
    parser.add_argument("--profile", type=Path, help="PNG to write: HU, gradient and noise from the middle outwards")
    parser.add_argument("--quick", action="store_true", help="hardly any training")
    parser.add_argument("--json", type=Path, help="file to write ratios, the table and conditions to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    updates, steps, seeds = (10, 10, 1) if options.quick else (options.updates, 400, 3)
    with tempfile.TemporaryDirectory() as scratch:
        sets = Sets(luna_patches(Path(scratch)), updates)
    if options.panel:
        write_panel(sets, options.panel)
    if options.profile:
        radii, edge = sets.diameters / 2, edge_in_radii(sets.diameters)
        profiles = {"real": radial_profile(sets.real, radii, SPACING, WINDOW, sets.patients, edge)}
        profiles |= {way: radial_profile(hu, radii, SPACING, WINDOW, sets.of_background, edge) for way, hu in sets.composites.items()}
        options.profile.write_bytes(edge_profile(profiles))
    rows = []
    for way in WAYS:
        (found, kept), network = edges(sets, way), apart(sets, way, steps, seeds)
        rows.append({
            "way": way, "auroc": [network.auroc, network.interval.low, network.interval.high], "told": network.told, "by_size": network.by_size,
            "noise_kept": kept, "seams": list(found.seams), "differs": [one.name for one in found.tests if one.differs],
            "edges": {one.name: [one.real_median, one.composite_median, one.interval.low, one.interval.high, one.floor] for one in found.tests},
        })  # fmt: skip
    halves = apart(sets, None, steps, seeds)
    floor = {"auroc": [halves.auroc, halves.interval.low, halves.interval.high]}
    print("\n".join(table(rows, floor)))
    above = {row["way"]: row["auroc"][0] - 0.5 for row in rows}
    ratios = {f"told_apart_{way}_over_pasted": round(above[way] / above["pasted"], 3) for way in WAYS if way != "pasted"}
    if options.json:
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "processor": processor(torch.device("cpu")),
            "cores": os.cpu_count(), "threads": 1, "updates": updates, "steps": steps, "seeds": seeds, **sets.counts, "rows": rows, "floor": floor,
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
