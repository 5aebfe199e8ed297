"""The whole evaluation, from arrays to a `Report`: which sets are compared with what.

Quality is judged against held-out patients, memorisation against training and held-out patients.
The generator learns lesions only, so lesion-free patches serve the detector alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.attributes import compare_attributes, lesion_attributes
from evaluate.cohort import Cohort, PatchSet
from evaluate.comparison import all_distances, distances_by_class, standardised
from evaluate.config import DetectorConfig, EvaluateConfig
from evaluate.distances import kernel_distance_over_subsets
from evaluate.features import INCEPTION, RADIOMICS, Extractor
from evaluate.memorisation import Memorisation, audit_memorisation
from evaluate.report import ClassRow, DetectorResult, Distance, MemorisationResult, Report, Suspect
from evaluate.scores import differences_to, sensitivity_by_class, summarise

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pictures:
    """What the report's page shows beside the numbers. suspects: rows of (synthetic, training, held-out)."""

    real: PatchSet
    synthetic: PatchSet
    real_attributes: dict[str, NDArray[np.float64]]
    synthetic_attributes: dict[str, NDArray[np.float64]]
    suspects: list[tuple[NDArray, NDArray, NDArray | None]]


def audit(
    cohort: Cohort, extractors: list[Extractor], config: EvaluateConfig, notes: tuple[str, ...], progress: Progress
) -> tuple[Report, Pictures]:
    """Runs every comparison. `progress` is told, in words, what begins; notes go into the report."""
    # A generator per part: leaving one part out changes no other part's draws.
    rngs = np.random.default_rng(config.seed).spawn(6)
    training, held_out, synthetic = (one.thinned(config.samples, rngs[0]) for one in (cohort.training, cohort.held_out, cohort.synthetic))
    reference = held_out if len(held_out) else training

    distances: list[Distance] = []
    classes: tuple[ClassRow, ...] = ()
    subsets: tuple[float, float] | None = None
    for extractor in extractors:
        progress(f"features: {extractor.name}")
        features = [extractor.compute(one.hu) if len(one) else None for one in (training, held_out, synthetic)]
        sets = standardised(extractor, features)
        progress(f"distances: {extractor.name}")
        distances += all_distances(extractor, sets, training, held_out, config, rngs[1])
        real = sets[1] if sets[1] is not None else sets[0]
        assert real is not None
        assert sets[2] is not None
        if extractor.name == INCEPTION:
            subsets = kernel_distance_over_subsets(real, sets[2], rngs[1])
        if extractor.name == RADIOMICS:
            classes = distances_by_class(extractor, real, sets[2], reference, synthetic, cohort.compared.reference, config, rngs[2])

    progress("lesion attributes")
    spacing_mm = cohort.compared.spacing_mm or (1.0,) * len(cohort.compared.shape)
    measured = [lesion_attributes(one.hu, spacing_mm, cohort.compared.window) for one in (reference, synthetic)]
    attributes = tuple(compare_attributes(measured[0], measured[1], reference.patients, rngs[3]))

    progress("memorisation")
    memorisation, suspects = _memorisation(training, held_out, synthetic, cohort.compared.window, config, rngs[4])
    detector = _detector(cohort, config, rngs[5], progress)
    report = Report(
        compared=cohort.compared,
        distances=tuple(distances),
        classes=classes,
        attributes=attributes,
        memorisation=memorisation,
        detector=detector,
        kernel_over_subsets=subsets,
        notes=notes,
    )
    return report, Pictures(reference, synthetic, measured[0], measured[1], suspects)


def _memorisation(
    training: PatchSet,
    held_out: PatchSet,
    synthetic: PatchSet,
    window: tuple[float, float],
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> tuple[MemorisationResult | str, list[tuple[NDArray, NDArray, NDArray | None]]]:
    if len(training) < 2:
        return "fewer than 2 training patches to compare with", []
    found = audit_memorisation(
        synthetic.hu, training.hu, training.patients, held_out.hu if len(held_out) else None, held_out.patients, window, rng
    )
    rows = found.most_suspicious(config.suspects)
    suspects = tuple(_suspect(found, row, synthetic, training, held_out) for row in rows)
    pairs = [
        (
            synthetic.hu[row],
            training.hu[found.nearest_training[row]],
            None if found.nearest_held_out is None else held_out.hu[found.nearest_held_out[row]],
        )
        for row in rows
    ]
    result = MemorisationResult(
        authenticity=found.authenticity,
        authenticity_held_out=found.authenticity_held_out,
        exact_copies=int((found.nearest_training_hu == 0).sum()),
        nearer_to_training=found.nearer_to_training,
        nearer_to_half=found.nearer_to_half,
        compared_patches=found.compared_patches,
        membership=found.membership,
        suspects=suspects,
    )
    return result, pairs


def _suspect(found: Memorisation, row: int, synthetic: PatchSet, training: PatchSet, held_out: PatchSet) -> Suspect:
    near = found.nearest_held_out
    return Suspect(
        synthetic=str(synthetic.ids[row]),
        training=str(training.ids[found.nearest_training[row]]),
        training_hu=float(found.nearest_training_hu[row]),
        held_out=None if near is None else str(held_out.ids[near[row]]),
        held_out_hu=None if found.nearest_held_out_hu is None else float(found.nearest_held_out_hu[row]),
        closeness=float(found.closeness[row]),
    )


def _detector(cohort: Cohort, config: EvaluateConfig, rng: np.random.Generator, progress: Progress) -> DetectorResult | str:
    wanted: DetectorConfig = config.detector
    if not wanted.run:
        return "not asked for (--detector.run false)"
    if not cohort.background:
        return "the real folder has no lesion-free patches; cut some with python -m data prepare"
    if not len(cohort.held_out):
        return "there are no held-out patients to test a detector on"
    progress("detector")
    # torch and MONAI take seconds to load: not before they are needed.
    from evaluate.detector import CLASSIC, DetectorSet, run_detector, scores_of

    def with_background(name: str, lesions: PatchSet) -> tuple[DetectorSet, NDArray]:
        free = cohort.background[name]
        labels = np.concatenate([lesions.labels, free.labels])
        return DetectorSet(
            hu=np.concatenate([lesions.hu, free.hu]),
            lesion=np.arange(len(labels)) < len(lesions),
            patients=np.concatenate([lesions.patients, free.patients]),
        ), labels

    train, _ = with_background("training", cohort.training)
    validation, _ = with_background("validation", cohort.validation)
    test, labels = with_background("held_out", cohort.held_out)
    try:
        runs = run_detector(
            train, validation, test, cohort.synthetic.hu, cohort.compared.window,
            seeds=wanted.seeds, steps=wanted.steps, synthetic_share=wanted.synthetic_share, device=config.device,
            progress=lambda arm, seed: progress(f"detector: {arm}, seed {seed + 1} of {wanted.seeds}"),
        )  # fmt: skip
    except ValueError as error:
        return str(error)
    scores = scores_of(runs, test)
    return DetectorResult(
        arms=summarise(scores),
        baseline=CLASSIC,
        differences=differences_to(CLASSIC, scores, rng),
        sensitivity_by_class=sensitivity_by_class(scores, labels),
        seeds=wanted.seeds,
        steps=wanted.steps,
        synthetic_share=wanted.synthetic_share,
        threshold_from=runs[0].threshold_from,
        test_patients=len(np.unique(test.patients)),
        test_lesions=int(test.lesion.sum()),
        test_lesion_free=int((~test.lesion).sum()),
    )
