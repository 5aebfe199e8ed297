"""The whole evaluation, from arrays to a `Report`: which sets are compared with what.

Quality is judged against held-out patients, memorisation against training and held-out patients.
The generator learns lesions only, so lesion-free patches serve the detector alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.artefacts import Artefacts, find_artefacts
from evaluate.attributes import compare_attributes, compare_classes, corrected_together, lesion_attributes
from evaluate.cohort import Cohort, PatchSet
from evaluate.comparison import all_distances, confused_classes, distances_by_class, standardised
from evaluate.config import EvaluateConfig
from evaluate.copies import Copy, duplicates_between
from evaluate.distances import kernel_distance_over_subsets
from evaluate.features import INCEPTION, RADIOMICS, Extractor
from evaluate.memorisation import Memorisation, audit_memorisation
from evaluate.report import ClassRow, Compared, ConfusedClass, Control, Copied, Distance, MemorisationResult, Report, Suspect
from evaluate.usefulness import usefulness

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Pictures:
    """What the report's page shows beside the numbers. suspects: rows of (synthetic, training, held-out); controls: of (held-out, training)."""

    real: PatchSet
    synthetic: PatchSet
    real_attributes: dict[str, NDArray[np.float64]]
    synthetic_attributes: dict[str, NDArray[np.float64]]
    suspects: list[tuple[NDArray, NDArray, NDArray | None]]
    controls: list[tuple[NDArray, NDArray]]


def audit(
    cohort: Cohort,
    extractors: list[Extractor],
    config: EvaluateConfig,
    notes: tuple[str, ...],
    progress: Progress,
    keep: Path | None = None,
    privacy: str = "",
) -> tuple[Report, Pictures]:
    """Runs every comparison. `progress` is told, in words, what begins; notes go into the report; detectors are kept in `keep`.

    privacy: what was promised of the samples, see Report.
    """
    # A generator per part: leaving one part out changes no other part's draws.
    rngs = np.random.default_rng(config.seed).spawn(8)
    training, held_out, synthetic = (one.thinned(config.samples, rngs[0]) for one in (cohort.training, cohort.held_out, cohort.synthetic))
    reference = held_out if len(held_out) else training

    # First, so that settings it cannot follow are told at once; what it trains is kept, whatever comes after.
    detector = usefulness(cohort, config.detector, config.device, rngs[5], progress, keep)

    distances: list[Distance] = []
    classes: tuple[ClassRow, ...] = ()
    confused: tuple[ConfusedClass, ...] = ()
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
            confused = confused_classes(real, sets[2], reference, synthetic, rngs[6])

    progress("lesion attributes")
    spacing_mm = cohort.compared.spacing_mm or (1.0,) * len(cohort.compared.shape)
    measured = [lesion_attributes(one.hu, spacing_mm, cohort.compared.window) for one in (reference, synthetic)]
    attributes, class_shares = corrected_together(
        compare_attributes(measured[0], measured[1], reference.patients, rngs[3]),
        compare_classes(reference.labels, synthetic.labels, reference.patients, rngs[3]),
    )
    progress("artefacts")
    artefacts: Artefacts | str
    try:
        artefacts = find_artefacts(reference.hu, synthetic.hu, spacing_mm, cohort.compared.window, reference.patients, rngs[7])
    except ValueError as error:
        artefacts = str(error)

    progress("memorisation")
    memorisation, suspects, controls = _memorisation(training, held_out, synthetic, cohort.compared, config, rngs[4])
    report = Report(
        compared=cohort.compared,
        distances=tuple(distances),
        classes=classes,
        confused=confused,
        attributes=attributes,
        class_shares=class_shares,
        artefacts=artefacts,
        memorisation=memorisation,
        detector=detector,
        privacy=privacy,
        guaranteed=is_guarantee(privacy),
        kernel_over_subsets=subsets,
        notes=(*notes, *_thinned_notes(cohort, config.samples)),
    )
    return report, Pictures(reference, synthetic, measured[0], measured[1], suspects, controls)


def _thinned_notes(cohort: Cohort, most: int) -> list[str]:
    """What was left out of the comparisons and of the search for copies."""
    named = (("training", cohort.training), ("held-out", cohort.held_out), ("synthetic", cohort.synthetic))
    left_out = [f"{most} of {len(one)} {name} patches" for name, one in named if len(one) > most]
    if not left_out:
        return []
    largest = max(len(one) for _, one in named)
    return [
        f"Only {' and '.join(left_out)}, drawn at random, were compared and searched for copies: a copy among the others is not found. "
        f"--samples {largest} takes all."
    ]


def is_guarantee(said: str) -> bool:
    """Whether what is said of the samples' privacy is a promise: of several models, each must make it."""
    return "differentially private" in said and "no guarantee" not in said


def _memorisation(
    training: PatchSet, held_out: PatchSet, synthetic: PatchSet, compared: Compared, config: EvaluateConfig, rng: np.random.Generator
) -> tuple[MemorisationResult | str, list[tuple[NDArray, NDArray, NDArray | None]], list[tuple[NDArray, NDArray]]]:
    if len(training) < 2:
        return "fewer than 2 training patches to compare with", [], []
    window, spacing_mm = compared.window, compared.spacing_mm
    found = audit_memorisation(
        synthetic.hu, training.hu, training.patients, held_out.hu if len(held_out) else None, held_out.patients, window, rng,
        spacing_mm=spacing_mm,
    )  # fmt: skip
    known = duplicates_between(synthetic.hu, held_out.hu, held_out.patients, window, spacing_mm) if len(held_out) > 1 else ()
    rows = found.most_suspicious(config.suspects)
    copied = {one.row: one for one in found.copies}
    pairs = [
        (
            synthetic.hu[row],
            training.hu[copied[row].real if row in copied else found.nearest_training[row]],
            None if found.nearest_held_out is None else held_out.hu[found.nearest_held_out[row]],
        )
        for row in rows
    ]
    control_rows = found.least_close_control(config.suspects)
    nearest = found.control_nearest
    result = MemorisationResult(
        duplicates=_copied(found.duplicates, held_out, training),
        copies=_copied(found.copies, synthetic, training),
        held_out_copies=_copied(known, synthetic, held_out),
        repeats=sum(len(group) - 1 for group in found.repeats),
        control_patients=found.control_patients,
        authenticity=found.authenticity,
        authenticity_held_out=found.authenticity_held_out,
        nearer_to_training=found.nearer_to_training,
        nearer_to_half=found.nearer_to_half,
        compared_patches=found.compared_patches,
        membership=found.membership,
        data_copying=found.data_copying,
        suspects=tuple(_suspect(found, row, copied.get(row), synthetic, training, held_out) for row in rows),
        controls=tuple(
            Control(str(held_out.ids[row]), str(training.ids[nearest[row]]), float(found.control_closeness[row]))
            for row in control_rows
            if nearest is not None and found.control_closeness is not None
        ),
    )
    return result, pairs, [(held_out.hu[row], training.hu[nearest[row]]) for row in control_rows if nearest is not None]


def _copied(found: Sequence[Copy], patches: PatchSet, real: PatchSet) -> tuple[Copied, ...]:
    return tuple(Copied(str(patches.ids[one.row]), str(real.ids[one.real]), one.exact, one.misfit, one.chance, one.how) for one in found)


def _suspect(found: Memorisation, row: int, copy: Copy | None, synthetic: PatchSet, training: PatchSet, held_out: PatchSet) -> Suspect:
    near = found.nearest_held_out
    return Suspect(
        synthetic=str(synthetic.ids[row]),
        training=str(training.ids[found.nearest_training[row] if copy is None else copy.real]),
        training_hu=float(found.nearest_training_hu[row]) if copy is None else copy.difference_hu,
        held_out=None if near is None else str(held_out.ids[near[row]]),
        held_out_hu=None if found.nearest_held_out_hu is None else float(found.nearest_held_out_hu[row]),
        closeness=float(found.closeness[row]),
    )
