"""Words that a report is told in: what was compared, how numbers are written, and what a reader should not conclude."""

from evaluate.features import INCEPTION
from evaluate.intervals import Interval
from evaluate.report import DetectorResult, Report

METRIC_WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
}


def what_was_compared(report: Report) -> str:
    """The sets, in a sentence."""
    c = report.compared
    trained = f"{c.training.patches} real lesion patches of {c.training.patients} training patients"
    if c.held_out is None:
        return (
            f"{c.synthetic.patches} synthetic lesion patches were compared with {trained}. There are NO held-out patients: "
            "closeness to training patients is also what copying looks like, so quality cannot be judged."
        )
    return (
        f"{c.synthetic.patches} synthetic lesion patches were compared with {c.held_out.patches} real lesion patches of "
        f"{c.held_out.patients} held-out patients ({c.held_out_from}), and with {trained}."
    )


def limits_of(report: Report) -> list[str]:
    """What a reader should not conclude from this report."""
    compared = report.compared
    limits = list[str]()
    if compared.held_out and compared.held_out.patients < 20:
        limits.append(
            f"Only {compared.held_out.patients} held-out patients: floors and intervals rest on few people and could "
            "differ much with others."
        )
    families = {d.measure.extractor for d in report.distances}
    if len(families) == 1:
        limits.append(
            f"One family of features was used ({', '.join(families)}). Two generators should not be ranked on one family; give --encoder or "
            "--inception-weights for a second."
        )
    if INCEPTION in families:
        limits.append("Inception learnt from photographs: what it notices is not what a radiologist notices.")
    limits += [
        "Distances depend on the number of patches. Compare them with the floor beside them, or with another report of the same "
        "sets, never with a number from elsewhere.",
        "Lesions are outlined by a rule (half-way between centre and surroundings), not by a radiologist.",
        "The search for copies finds what was mirrored, turned by right angles, moved by a few voxels, made noisy or given another contrast. A copy "
        "that was turned by other angles, or keeps only what identifies a patient, can be missed: its absence here is no proof of privacy.",
    ]
    if isinstance(report.detector, DetectorResult):
        limits.append(
            f"The detector ({report.detector.network}) was trained {report.detector.steps} steps; another one may gain more or less from synthetic lesions."
        )
    if report.compared.unit != "HU":
        limits.append("The patches are gray levels whose HU window nobody stated: where this report says HU, read gray levels.")
    if report.compared.spacing_mm is None:
        limits.append("The spacing of the patches is unknown: where this report says mm, read pixels.")
    return limits


def number(value: float) -> str:
    """A number with three digits that matter."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def interval_words(interval: Interval | str) -> str:
    """In brackets, after a number; nothing where there is no interval."""
    return f" (95 % interval {number(interval.low)} to {number(interval.high)})" if isinstance(interval, Interval) else ""
