"""Are synthetic lesions of use? Which detectors are trained on a cohort, and what is said of them.

Test patients judge, and choose nothing: thresholds and the synthetic share come from validation patients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluate.cohort import Cohort, PatchSet
from evaluate.config import DetectorConfig
from evaluate.report import DetectorClass, DetectorResult
from evaluate.scores import Scores, area_under_roc, class_differences_to, differences_to, sensitivity_by_class, summarise

if TYPE_CHECKING:
    from evaluate.detector import Arm, DetectorRun, DetectorSet, Training


def usefulness(
    cohort: Cohort,
    config: DetectorConfig,
    device: str,
    rng: np.random.Generator,
    progress: Callable[[str], None],
    keep: Path | None = None,
) -> DetectorResult | str:
    """Trains the arms asked for and compares them on held-out patients; or says why there is nothing to train.

    keep: folder for what is trained, where `config.keep` names none. Raises ValueError for a rare class that
    is not there, or of fewer patients.
    """
    if not config.run:
        return "not asked for (--detector.run false)"
    if not cohort.background:
        return "the real folder has no lesion-free patches; cut some with python -m data prepare"
    if not len(cohort.held_out):
        return "there are no held-out patients to test a detector on"
    keeping, resampling = rng.spawn(2)
    training, notes = _made_rare(cohort.training, config, keeping)
    progress("detector")
    # torch and MONAI take seconds to load: not before they are needed.
    from evaluate.detector import ensembles, run_detector, scores_of

    train, validation, test = (
        _with_background(lesions, cohort.background[name])
        for name, lesions in (("training", training), ("validation", cohort.validation), ("held_out", cohort.held_out))
    )
    arms = _arms(config)
    try:
        runs = run_detector(
            train, validation, test, cohort.synthetic.hu, cohort.compared.window,
            synthetic_labels=cohort.synthetic.labels, arms=arms, seeds=config.seeds, steps=config.steps, network=config.network,
            balance=config.balance, specificity=config.specificity, device=device, keep=Path(config.keep) if config.keep else keep,
            progress=lambda training: progress(_words(training, config.seeds)),
        )  # fmt: skip
    except ValueError as error:
        return str(error)
    validation_auroc = _validation_auroc(runs, validation)
    headline, chosen_by = _headline(arms, validation_auroc)
    tables = {"real+classic": scores_of(runs, test)}
    if "ensemble" in config.arm_names:
        two = ensembles([run for run in runs if run.arm in ("real+classic", headline)], validation, config.specificity)
        tables[two[0].arm] = scores_of(two, test)
        notes.append("Intervals of ensembles are about patients alone: there is one of each, and its threshold is as it fell.")
    if config.seeds == 1:
        notes.append("One seed: intervals are about patients alone, and another training could change more than they say.")
    return DetectorResult(
        arms={arm: row for scores in tables.values() for arm, row in summarise(scores).items()},
        compared_with={arm: base for base, scores in tables.items() for arm in scores.arms if arm != base},
        differences={arm: row for base, scores in tables.items() for arm, row in differences_to(base, scores, resampling).items()},
        classes=_classes(tables, np.asarray(test.labels), resampling),
        shares={arm.name: arm.share for arm in arms},
        headline=headline,
        headline_chosen_by=chosen_by,
        validation_auroc=validation_auroc,
        network=config.network,
        seeds=config.seeds,
        steps=config.steps,
        balance=config.balance,
        threshold=config.threshold,
        threshold_from=runs[0].threshold_from,
        test_patients=len(np.unique(test.patients)),
        test_lesions=int(test.lesion.sum()),
        test_lesion_free=int((~test.lesion).sum()),
        notes=tuple(notes),
    )


def _arms(config: DetectorConfig) -> list[Arm]:
    """The arms to train, the one with synthetic lesions once a share. An ensemble is trained by its members."""
    from evaluate.detector import CLASSIC, POLICY, REAL, SYNTHETIC, SYNTHETIC_ONLY

    mixed = [replace(SYNTHETIC, share=share) for share in config.shares]
    if len(mixed) > 1:
        mixed = [replace(arm, name=f"{arm.name} {arm.share:g}") for arm in mixed]
    return [
        arm
        for arm in (REAL, CLASSIC, POLICY, *mixed, SYNTHETIC_ONLY)
        if arm.name in config.arm_names or (arm in mixed and SYNTHETIC.name in config.arm_names)
    ]


def _headline(arms: list[Arm], validation_auroc: dict[str, float]) -> tuple[str | None, str]:
    """The arm that answers the question, and how it was chosen: of equals the smallest share."""
    mixed = sorted((arm for arm in arms if arm.share > 0 and arm.name.startswith("real")), key=lambda arm: arm.share)
    if not mixed:
        return None, "no arm has real and synthetic lesions"
    if len(mixed) == 1:
        return mixed[0].name, "the only share asked for"
    if not validation_auroc:
        return mixed[0].name, "the smallest share, for want of validation patients to choose by"
    return max(mixed, key=lambda arm: validation_auroc[arm.name]).name, "best mean AUROC on validation patients"


def _validation_auroc(runs: list[DetectorRun], validation: DetectorSet) -> dict[str, float]:
    """arm -> mean over seeds; empty without validation patients."""
    found: dict[str, list[float]] = {}
    for run in runs:
        if run.validation_scores is not None:
            found.setdefault(run.arm, []).append(area_under_roc(run.validation_scores, validation.lesion))
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def _classes(tables: dict[str, Scores], labels: NDArray, rng: np.random.Generator) -> dict[str, DetectorClass]:
    sensitivity = [sensitivity_by_class(scores, labels) for scores in tables.values()]
    differences = [class_differences_to(base, scores, labels, rng) for base, scores in tables.items()]
    lesion, patients = next((scores.lesion, scores.patients) for scores in tables.values())
    found = {}
    for name in sensitivity[0]:
        rows = lesion & (labels == name)
        found[name] = DetectorClass(
            patients=len(np.unique(patients[rows])),
            lesions=int(rows.sum()),
            sensitivity={arm: value for one in sensitivity for arm, value in one[name].items()},
            differences={arm: value for one in differences for arm, value in one[name].items()},
        )
    return found


def _made_rare(training: PatchSet, config: DetectorConfig, rng: np.random.Generator) -> tuple[PatchSet, list[str]]:
    """The training lesions without one class's lesions in all but N of its patients, and a note on it.

    One seed's N patients are among its N + 1, so that results for several N are about the same ones.
    """
    if config.rare_class is None:
        return training, []
    label, count = config.rare_class
    of_class = training.labels == label
    patients = np.unique(training.patients[of_class])
    if not len(patients):
        raise ValueError(f"detector.rare: no training lesion is of class {label!r}; there are {', '.join(np.unique(training.labels))}")
    if count > len(patients):
        raise ValueError(f"detector.rare: {count} training patients with {label} are to be kept, and there are {len(patients)}")
    kept = rng.permutation(patients)[:count]
    rows = ~of_class | np.isin(training.patients, kept)
    return training.take(np.flatnonzero(rows)), [
        f"The detector saw the {label} lesions of {count} of {len(patients)} training patients. The generator may have seen all of them: what it "
        "adds is then also theirs, unless it was trained on as few."
    ]


def _with_background(lesions: PatchSet, free: PatchSet) -> DetectorSet:
    from evaluate.detector import DetectorSet

    labels = np.concatenate([lesions.labels, free.labels])
    return DetectorSet(
        hu=np.concatenate([lesions.hu, free.hu]),
        lesion=np.arange(len(labels)) < len(lesions),
        patients=np.concatenate([lesions.patients, free.patients]),
        labels=labels,
    )


def _words(training: Training, seeds: int) -> str:
    words = f"detector {training.number} of {training.total}: {training.arm}, seed {training.seed + 1} of {seeds}"
    if training.kept:
        words += f"; {training.kept} were done before"
    if training.seconds_left is None:
        return words
    minutes, seconds = divmod(round(training.seconds_left), 60)
    return f"{words}; about {minutes} min {seconds:02d} s left"
