"""A report in plain words: what was found, and what it cannot say."""

from evaluate.intervals import Floor, Interval
from evaluate.report import DetectorResult, Distance, MemorisationResult, Report

METRIC_WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
}


def summary_of(report: Report) -> list[str]:
    """A sentence or two on each part, most important first."""
    return [
        _what_was_compared(report),
        *[_quality(d) for d in main_distances(report)],
        *_attributes(report),
        *_memorisation(report.memorisation),
        *_detector(report.detector),
    ]


def main_distances(report: Report) -> list[Distance]:
    """The Fréchet distance of each extractor, to held-out patients wherever there are any."""
    return [d for d in report.distances if d.metric == "frechet" and d.reference == report.compared.reference]


def limits_of(report: Report) -> list[str]:
    """What a reader should not conclude from this report."""
    compared = report.compared
    limits = list(report.notes)
    if compared.held_out and compared.held_out.patients < 20:
        limits.append(
            f"Only {compared.held_out.patients} held-out patients: floors and intervals rest on few people and could "
            "differ much with others."
        )
    if not any(d.measure.weights_sha256 for d in report.distances):
        limits.append(
            "One family of features was used (radiomics). Two generators should not be ranked on one family; give "
            "--inception-weights for a second."
        )
    if any(d.measure.weights_sha256 for d in report.distances):
        limits.append("Inception learnt from photographs: what it notices is not what a radiologist notices.")
    limits += [
        "Distances depend on the number of patches. Compare them with the floor beside them, or with another report of the same "
        "sets, never with a number from elsewhere.",
        "Lesions are outlined by a rule (half-way between centre and surroundings), not by a radiologist.",
        "The search for copies looks at pixels under mirroring. A shifted or rotated copy, or one that keeps only what identifies a "
        "patient, can be missed: its absence here is no proof of privacy.",
    ]
    if isinstance(report.detector, DetectorResult):
        limits.append(
            f"The detector is small and was trained {report.detector.steps} steps; a larger one may gain more or less from synthetic lesions."
        )
    if report.compared.unit != "HU":
        limits.append("The patches are gray levels whose HU window nobody stated: where this report says HU, read gray levels.")
    if report.compared.spacing_mm is None:
        limits.append("The spacing of the patches is unknown: where this report says mm, read pixels.")
    return limits


def _what_was_compared(report: Report) -> str:
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


def _quality(d: Distance) -> str:
    start = f"{d.title} to {d.reference} patients: {number(d.value)}{_interval_words(d.interval)}"
    if not isinstance(d.floor, Floor):
        return f"{start}. Without a floor ({d.floor}) this number means little."
    f = d.floor
    factor = f"{f.synthetic_value / f.value:.1f} times as much" if f.value > 0 else "real halves do not differ"
    return (
        f"{start}. At {f.samples} patches, two halves of the real held-out patients differ by {number(f.value)} "
        f"({number(f.low)} to {number(f.high)}), synthetic from real by {number(f.synthetic_value)}: {factor}."
    )


def _attributes(report: Report) -> list[str]:
    if not report.attributes:
        return []
    differ = [a for a in report.attributes if a.p_holm < 0.05]
    if not differ:
        return [f"None of {len(report.attributes)} lesion attributes differs significantly; few patients can also be the reason."]
    words = ", ".join(f"{a.title}: {number(a.real_median)} real, {number(a.synthetic_median)} synthetic" for a in differ)
    return [f"{len(differ)} of {len(report.attributes)} lesion attributes differ significantly (medians: {words})."]


def _memorisation(found: MemorisationResult | str) -> list[str]:
    if isinstance(found, str):
        return [f"Copies were not looked for: {found}."]
    copies = f"Exact copies of training patches: {found.exact_copies}. " if found.exact_copies else ""
    if found.membership is None:
        return [
            f"{copies}{found.authenticity:.0%} of synthetic patches are authentic (no nearer to a training patch than other patients are); "
            "without held-out patients there is no control to read this by."
        ]
    m, a, b = found.membership, found.nearer_to_training, found.nearer_to_half
    assert a is not None
    assert b is not None
    suspicious = found.exact_copies or m.auroc_interval.low > 0.5 or a.interval.low > b.interval.high
    verdict = "Signs of copying: look at the pairs below." if suspicious else "No sign of copying in pixels."
    return [
        f"{copies}{verdict} Training patients are told from held-out ones with AUROC {m.auroc:.2f}"
        f"{_interval_words(m.auroc_interval)}, where 0.5 is guessing; {a.value:.0%} of synthetic patches are nearer to training than to "
        f"held-out patients, against {b.value:.0%} ({b.interval.low:.0%} to {b.interval.high:.0%}) in the control. Authentic: "
        f"{found.authenticity:.0%} of synthetic, {found.authenticity_held_out:.0%} of real held-out patches."
    ]


def _detector(found: DetectorResult | str) -> list[str]:
    if isinstance(found, str):
        return [f"No detector was trained: {found}."]
    sentences = []
    for arm, metrics in found.differences.items():
        if "synthetic" not in arm:
            continue
        changes = []
        for name in ("sensitivity", "auroc", "balanced_accuracy"):
            d = metrics[name]
            sure = d.interval.low > 0 or d.interval.high < 0
            changes.append(
                f"{METRIC_WORDS[name]} {d.value:+.3f} ({d.interval.low:+.3f} to {d.interval.high:+.3f}{'' if sure else ', includes 0'})"
            )
        sentences.append(
            f"Adding synthetic lesions to classic augmentation changed the detector on {found.test_patients} held-out patients by: "
            f"{'; '.join(changes)}."
        )
    return sentences


def number(value: float) -> str:
    """A number with three digits that matter."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _interval_words(interval: Interval | str) -> str:
    return f" (95 % interval {number(interval.low)} to {number(interval.high)})" if isinstance(interval, Interval) else ""
