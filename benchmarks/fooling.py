"""Can the audit be fooled? Sets of which the truth is known, and what `python -m evaluate` says of them.

  python benchmarks/fooling.py --work W             a quarter of an hour of CPU time, a third of it the generator's training
  python benchmarks/fooling.py --quick              under two minutes: a generator of 30 steps, four cases; shows only that it works

The nodules of luna16-patches' training groups are dealt out anew: 60 % of the groups to train on, 25 % held out as the reference, the rest, and
the validation groups, as "other patients" that neither the generator nor the reference has seen. The test groups are not touched. One WGAN-GP is
trained on the first by train.py with its defaults. Every case is a patch folder that goes through `python -m evaluate` as a user would run it,
without detector. A case is right when every finding it must have is there, none that it must not have, and the verdicts are as stated.

Ratio: wrong cases over all cases; 0 is best.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.privacy import phantom_patches
from benchmarks.quality import luna_patches
from benchmarks.step import processor
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter

ROOT = Path(__file__).resolve().parent.parent
SHARES = (0.6, 0.25)
"""Of the training groups: to train on, and to hold out. The rest are other patients."""
SAMPLES = 1000
PHANTOMS = 200


@dataclass(frozen=True)
class Lesions:
    """Lesion patches of some patients. hu: int16 (N, 32, 32); the others (N,)."""

    hu: np.ndarray
    label: np.ndarray
    patient: np.ndarray

    def take(self, rows: np.ndarray) -> Lesions:
        return Lesions(self.hu[rows], self.label[rows], self.patient[rows])


@dataclass(frozen=True)
class Case:
    """make: the set to be judged. must, must_not: findings (see evaluate/verdict.py). verdicts: part -> the levels that are right."""

    name: str
    cohort: str
    make: Callable[[Mapping[str, Lesions], np.random.Generator], Lesions]
    verdicts: Mapping[str, tuple[str, ...]]
    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()


def unchanged(name: str) -> Callable[[Mapping[str, Lesions], np.random.Generator], Lesions]:
    return lambda sets, rng: sets[name]


def altered(
    change: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> Callable[[Mapping[str, Lesions], np.random.Generator], Lesions]:
    """The other patients' lesions, each changed in the same way. change: float HU (N, 32, 32) -> the same, clipped to the window afterwards."""

    def make(sets: Mapping[str, Lesions], rng: np.random.Generator) -> Lesions:
        hu = change(sets["others"].hu.astype(np.float64), rng)
        return replace(sets["others"], hu=np.rint(hu.clip(-1000, 400)).astype(np.int16))

    return make


def wrong_window(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gray levels of the window -1000 to 400, read as if they were of -1400 to 200."""
    return (hu + 1000) / 1400 * 1600 - 1400


def eight_bits(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.floor((hu + 1000) / 1400 * 255) / 255 * 1400 - 1000


def checkerboard(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pattern of 20 HU that alternates from pixel to pixel, as transposed convolutions leave it."""
    return hu + 20 * (1 - 2 * (np.indices(hu.shape[1:]).sum(0) % 2))


def collapsed(sets: Mapping[str, Lesions], rng: np.random.Generator) -> Lesions:
    """Twenty of the generator's samples, again and again, with noise of 10 HU."""
    good = sets["generated"]
    few = good.take(rng.choice(rng.choice(len(good.hu), 20, replace=False), len(good.hu)))
    return replace(few, hu=np.rint(few.hu + rng.normal(0, 10, few.hu.shape)).clip(-1000, 400).astype(np.int16))


def some_copies(sets: Mapping[str, Lesions], rng: np.random.Generator) -> Lesions:
    """The generator's samples, of which 1 % are training lesions: mirrored or turned, shifted by up to 2 pixels, with noise of 20 HU."""
    good, real = sets["generated"], sets["train"]
    hu = good.hu.copy()
    for row in rng.choice(len(hu), len(hu) // 100, replace=False):
        copy = np.rot90(real.hu[rng.integers(len(real.hu))], int(rng.integers(4)))
        copy = np.roll(copy[:, ::-1] if rng.random() < 0.5 else copy, rng.integers(-2, 3, 2), (0, 1))
        hu[row] = np.rint(copy + rng.normal(0, 20, copy.shape)).clip(-1000, 400)
    return replace(good, hu=hu)


def swapped(sets: Mapping[str, Lesions], rng: np.random.Generator) -> Lesions:
    """The phantoms' classes, each called by the next one's name."""
    names = sorted(set(sets["others"].label))
    following = dict(zip(names, names[1:] + names[:1], strict=True))
    return replace(sets["others"], label=np.array([following[name] for name in sets["others"].label]))


def dealt(source: PatchFolder, path: Path) -> dict[str, Lesions]:
    """A patch folder of the source's training and validation patients, dealt out anew, written to path; its lesions by set, and "others".

    In the folder, "others" are the validation split and the held-out reference is the test split.
    """
    chosen = source.select(splits=["train", "validation"])
    label, patient, split = (source.rows.names(column, chosen) for column in ("label", "patient", "split"))
    names = np.random.default_rng(0).permutation(np.unique(patient[split == "train"]))
    ends = np.rint(np.cumsum(SHARES) * len(names)).astype(int)
    place = dict.fromkeys(names[: ends[0]], "train") | dict.fromkeys(names[ends[0] : ends[1]], "test")
    path.mkdir(parents=True)
    writer = PatchWriter(path, replace(source.spec, licence=source.spec.licence or "test data"))
    for index, one, who in zip(chosen, label, patient, strict=True):
        writer.add(Patch(source.hu([index])[0], str(who), str(who), str(one), split=place.get(who, "validation")))
    writer.finish()
    return lesions_of(PatchFolder.open(path))


def lesions_of(folder: PatchFolder) -> dict[str, Lesions]:
    found = {}
    for name, split in (("train", "train"), ("held-out", "test"), ("others", "validation")):
        rows = folder.select(splits=[split], classes=folder.lesion_classes)
        found[name] = Lesions(folder.hu(rows), folder.rows.names("label", rows), folder.rows.names("patient", rows))
    return found


GOOD = ("good", "doubt")
CASES = (
    Case("other real patients", "luna", unchanged("others"), {"quality": ("good",), "memorisation": ("good",)}),
    Case("a generator's samples", "luna", unchanged("generated"), {"quality": GOOD, "memorisation": ("good",)}),
    Case("the training lesions", "luna", unchanged("train"), {"memorisation": ("bad",)}, must=("copies_of_training",)),
    Case("the held-out lesions", "luna", unchanged("held-out"), {"quality": ("bad",)}, must=("copies_of_held_out",)),
    Case("1 % copies of training lesions", "luna", some_copies, {"memorisation": ("bad",)}, must=("copies_of_training",)),
    Case("collapsed on 20 samples", "luna", collapsed, {"quality": ("bad",)}, must=("little_variety",)),
    Case("blurred (1 pixel)", "luna", altered(lambda hu, rng: ndimage.gaussian_filter(hu, (0, 1, 1))), {"quality": ("bad",)}, ("smooth",)),
    Case("noisy (40 HU)", "luna", altered(lambda hu, rng: hu + rng.normal(0, 40, hu.shape)), {"quality": ("bad",)}, ("noisy",)),
    Case("a pattern of 20 HU", "luna", altered(checkerboard), {"quality": ("bad",)}, ("checkerboard",)),
    Case("through the wrong window", "luna", altered(wrong_window), {"quality": ("bad",)}, ("wrong_hu",)),
    Case("truncated to 8 bits", "luna", altered(eight_bits), {"quality": ("bad",)}, ("gray_steps",)),
    Case("a generator of 200 steps", "luna", unchanged("early"), {"quality": ("bad",), "memorisation": ("good",)}),
    Case("phantoms of other patients", "phantoms", unchanged("others"), {"quality": ("good",), "memorisation": ("good",)}, (), ("classes_swapped",)),
    Case("phantoms, classes swapped", "phantoms", swapped, {"quality": ("bad",)}, ("classes_swapped",)),
)  # fmt: skip


def write_set(path: Path, found: Lesions, spec: PatchSpec) -> None:
    """The lesions as a folder of synthetic patches."""
    path.mkdir(parents=True)
    writer = PatchWriter(
        path, replace(spec, origin="synthetic", background=None, classes=tuple(c for c in spec.classes if c != spec.background))
    )
    for n, (hu, label) in enumerate(zip(found.hu, found.label, strict=True)):
        writer.add(Patch(hu, f"{n}", f"{n}", str(label), split="synthetic"))
    writer.finish()


def run(*command: object) -> None:
    """Raises RuntimeError, with what it said last, when the command fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip().splitlines()[-1:]}")


def generated(cohort: Path, place: Path, steps: int, samples: int) -> Lesions:
    """Samples of a generator that train.py trained for so many updates on the cohort; both are kept in place."""
    run("train.py", "--data", cohort, "--out", place / f"run-{steps}", "--training.steps", steps)
    out = place / f"samples-{steps}"
    if not out.exists():
        run(
            "sample.py",
            "--run",
            place / f"run-{steps}",
            "--seeds",
            f"0-{samples - 1}",
            "--format",
            "none",
            "--step",
            "newest",
            "--out",
            out,
        )
    folder = PatchFolder.open(out)
    rows = np.arange(samples)
    return Lesions(folder.hu(rows), folder.rows.names("label", rows), folder.rows.names("patient", rows))


def judged(case: Case, cohort: Path, sets: Mapping[str, Lesions], place: Path) -> dict[str, Any]:
    """What `python -m evaluate` says of a case, and whether that is right."""
    print(case.name, file=sys.stderr, flush=True)
    shutil.rmtree(place, ignore_errors=True)
    write_set(place / "set", case.make(sets, np.random.default_rng(1)), PatchFolder.open(cohort).spec)
    run("-m", "evaluate", cohort, place / "set", "--out", place / "report", "--detector.run", "false")
    report = json.loads((place / "report" / "report.json").read_text())
    levels = {one["part"]: one["level"] for one in report["verdicts"]}
    found = [finding["name"] for one in report["verdicts"] for finding in one["findings"] if one["part"] in ("quality", "memorisation")]
    right = all(levels[part] in allowed for part, allowed in case.verdicts.items())
    right &= set(case.must) <= set(found) and not set(case.must_not) & set(found)
    over = report["figures"].get("frechet.radiomics.over_floor", {}).get("value")
    copies = report["figures"]["memorisation.copies"]["value"]
    return {"case": case.name, "levels": levels, "findings": found, "over_floor": over, "copies": copies, "right": right}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/fooling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the cohorts and the generator from one call to the next")
    parser.add_argument("--quick", action="store_true", help="a generator of 30 steps and four cases")
    parser.add_argument("--steps", type=int, default=5000, help="of the good generator; default 5000")
    parser.add_argument("--json", type=Path, help="file to write the table and conditions to")
    options = parser.parse_args(arguments)
    steps, phantoms = (30, 20) if options.quick else (options.steps, PHANTOMS)
    with tempfile.TemporaryDirectory() as scratch:
        place = options.work or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        rows = list(measured(place, steps, phantoms, CASES[:3] + CASES[6:7] if options.quick else CASES))
    for line in table(rows):
        print(line)
    wrong = sum(not row["right"] for row in rows) / len(rows)
    print(f"\n{'wrong':<30}{wrong:>8.2f}")
    if options.json:
        conditions = {
            "date": date.today().isoformat(),
            "processor": processor(torch.device("cpu")),
            "steps": steps,
            "quick": options.quick,
            "cases": rows,
        }
        options.json.write_text(json.dumps({"ratios": {"wrong": wrong}, "conditions": conditions}, indent=1) + "\n")


def measured(place: Path, steps: int, phantoms: int, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Each case, judged; cohorts and generators are made as they are needed."""
    sets: dict[str, dict[str, Lesions]] = {}
    for case in cases:
        cohort = place / f"cohort-{case.cohort}"
        if case.cohort not in sets:
            if not cohort.exists():
                source = luna_patches(place) if case.cohort == "luna" else phantom_patches(place, phantoms)
                dealt(source, cohort)
            sets[case.cohort] = lesions_of(PatchFolder.open(cohort))
            if case.cohort == "luna":
                sets["luna"] |= {
                    "generated": generated(cohort, place, steps, SAMPLES),
                    "early": generated(cohort, place, min(200, steps), SAMPLES),
                }
        yield judged(case, cohort, sets[case.cohort], place / "case")


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"{'the set is':<32}{'over floor':>11}{'quality':>10}{'memorisation':>14}{'copies':>8}  findings"
    for row in rows:
        over = "" if row["over_floor"] is None else f"{row['over_floor']:.2f}"
        levels = row["levels"]
        yield (
            f"{row['case']:<32}{over:>11}{levels['quality']:>10}{levels['memorisation']:>14}{row['copies']:>8.0f}  {', '.join(row['findings'])}"
            f"{'' if row['right'] else '   WRONG'}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
