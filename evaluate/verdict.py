"""What a report comes to: four verdicts, each with its findings, its evidence and its doubt.

A verdict is derived from the report's numbers by the rules below and by nothing else, so that two readers get the same one. The
yardstick is always what real patients differ by among themselves, never a number that looks good.

quality       bad: a marked fault (far off, little variety, an artefact, classes exchanged, or the very patches it is judged against)
              doubt: a difference larger than between real patients      good: none found      unknown: no held-out patients
memorisation  bad: copies of training patches      doubt: closer to training than to held-out patients      good: neither
usefulness    good: the detector gains, beyond chance      doubt: no gain shown      bad: it loses      unknown: not measured
privacy       good: a guarantee, and nothing against it      doubt: none      bad: copies, whatever was promised
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from evaluate.artefacts import Artefacts
from evaluate.intervals import Floor
from evaluate.report import Distance, MemorisationResult, Report
from evaluate.summary import METRIC_WORDS, interval_words, number

Part = Literal["quality", "memorisation", "usefulness", "privacy"]
Level = Literal["good", "doubt", "bad", "unknown"]

FAR = 3.0
"""Times the real halves' own distance, above which a set is far off."""
LITTLE = 0.5
"""Times the real halves' own coverage or recall, below which a set has little variety."""
SATURATED = 0.005
"""Share of voxels at an end of the window, beyond the real one, that is worth a word."""
RARE_TAIL = 0.05
"""Significance of tests."""

HEADLINES: dict[tuple[Part, Level], str] = {
    ("quality", "good"): "No difference from real patients was found",
    ("quality", "doubt"): "Like real lesions, with differences",
    ("quality", "bad"): "Not like real lesions",
    ("quality", "unknown"): "Cannot be judged",
    ("memorisation", "good"): "No copies of training patients were found",
    ("memorisation", "doubt"): "Leans towards its training patients",
    ("memorisation", "bad"): "Contains copies of training patients",
    ("memorisation", "unknown"): "Was not looked for",
    ("usefulness", "good"): "A detector gets better",
    ("usefulness", "doubt"): "No gain for a detector was shown",
    ("usefulness", "bad"): "A detector gets worse",
    ("usefulness", "unknown"): "Was not measured",
    ("privacy", "good"): "Patients have a guarantee",
    ("privacy", "doubt"): "Patients have no guarantee",
    ("privacy", "bad"): "Patients are shown",
    ("privacy", "unknown"): "Is not known",
}


@dataclass(frozen=True)
class Finding:
    """Something that was found. name: a word for gates and tests; severe: whether it alone makes a verdict bad."""

    name: str
    severe: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """One of the four. evidence: what speaks for it; doubt: what could make it wrong."""

    part: Part
    level: Level
    headline: str
    findings: tuple[Finding, ...]
    evidence: tuple[str, ...]
    doubt: tuple[str, ...]


def verdicts_of(report: Report) -> tuple[Verdict, ...]:
    """Quality, memorisation, usefulness, privacy, in this order."""
    return _quality(report), _memorisation(report), _usefulness(report), _privacy(report)


def _verdict(part: Part, level: Level, findings: list[Finding], evidence: list[str], doubt: list[str]) -> Verdict:
    return Verdict(part, level, HEADLINES[part, level], tuple(findings), tuple(evidence), tuple(doubt))


def _level(findings: list[Finding]) -> Level:
    return "bad" if any(one.severe for one in findings) else "doubt" if findings else "good"


def _quality(report: Report) -> Verdict:
    if report.compared.held_out is None:
        return _verdict(
            "quality", "unknown", [], [], ["There are no held-out patients: being near to training patients is also what copying is."]
        )
    judged = [d for d in report.distances if d.reference == "held-out" and isinstance(d.floor, Floor)]
    if not judged:
        return _verdict("quality", "unknown", [], [], ["There are too few held-out patients for a floor to read distances against."])
    findings = [
        *_repeated(report.memorisation), *(one for d in judged if (one := _distant(d))), *_narrow(judged), *_exchanged(report),
        *_artefacts(report.artefacts), *_attributes(report),
    ]  # fmt: skip
    evidence = [
        f"{d.title}: {number(d.floor.synthetic_value)} at {d.floor.samples} patches, where halves of real patients are at {number(d.floor.value)} "
        f"({number(d.floor.low)} to {number(d.floor.high)})."
        for d in judged
        if d.metric == "frechet" and isinstance(d.floor, Floor)
    ]
    if isinstance(report.artefacts, Artefacts) and not report.artefacts.differing:
        evidence.append("No checkerboard, blur, noise, shift of HU or steps of gray beyond those between real patients.")
    families = {d.measure.extractor for d in judged}
    doubt = []
    if len(families) == 1:
        doubt.append(f"One family of features ({', '.join(families)}) was asked; another may see what it does not.")
    if report.compared.held_out.patients < 20:
        doubt.append(f"{report.compared.held_out.patients} held-out patients are few: only large differences can be seen.")
    if isinstance(report.artefacts, str):
        doubt.append(f"Artefacts were not looked for: {report.artefacts}.")
    if isinstance(report.memorisation, MemorisationResult) and report.memorisation.duplicates:
        doubt.append("Held-out patients are also among the training patients (see below): no number of theirs can be trusted.")
    return _verdict("quality", _level(findings), findings, evidence, doubt)


def _distant(d: Distance) -> Finding | None:
    f = d.floor
    if d.metric != "frechet" or not isinstance(f, Floor) or f.synthetic_value <= f.high:
        return None
    times = f.synthetic_value / f.value
    sentence = f"{d.title}: {times:.1f} times as far from real patients as these are from one another."
    return Finding("far", times > FAR, sentence) if times > FAR else Finding("apart", False, sentence)


def _narrow(judged: list[Distance]) -> Iterator[Finding]:
    for d in judged:
        f = d.floor
        if d.metric in ("coverage", "recall") and isinstance(f, Floor) and f.synthetic_value < f.low:
            severe = f.synthetic_value < LITTLE * f.value
            yield Finding(
                "little_variety" if severe else "less_variety", severe,
                f"{d.title}: {f.synthetic_value:.2f}, where halves of real patients reach {f.value:.2f} ({f.low:.2f} to {f.high:.2f}).",
            )  # fmt: skip


def _exchanged(report: Report) -> Iterator[Finding]:
    for one in report.confused:
        yield Finding(
            "classes_swapped", True,
            f"What is called {one.label} is nearer to real {one.nearest} ({number(one.other)}) than to real {one.label} ({number(one.own)}).",
        )  # fmt: skip


def _artefacts(found: Artefacts | str) -> Iterator[Finding]:
    if isinstance(found, str):
        return
    if found.noise_power.differs:
        band = max(found.noise_power.bands, key=lambda b: abs(_log(b.ratio)) / max(_log(b.floor), 1e-9))
        yield Finding("smooth" if band.ratio < 1 else "noisy", True, found.noise_power.evidence)
    for name, check in (("checkerboard", found.checkerboard), ("wrong_hu", found.gray_map), ("gray_steps", found.gray_levels)):
        if check.differs:
            yield Finding(name, True, check.evidence)
    if any(abs(one.excess) > 1 and abs(one.synthetic - one.real) > SATURATED for one in found.window_ends.shares):
        yield Finding("saturated", False, found.window_ends.evidence)


def _log(ratio: float) -> float:
    return math.log(max(ratio, 1e-12))


def _attributes(report: Report) -> Iterator[Finding]:
    differing = [a for a in report.attributes if a.p_holm < RARE_TAIL]
    if differing:
        words = "; ".join(f"{a.title} {number(a.real_median)} real, {number(a.synthetic_median)} synthetic" for a in differing)
        yield Finding("attributes", False, f"Lesion attributes differ (medians: {words}).")


def _repeated(found: MemorisationResult | str) -> Iterator[Finding]:
    """The held-out patches themselves, or the same patch again and again."""
    if isinstance(found, str):
        return
    if found.held_out_copies:
        yield Finding(
            "copies_of_held_out", True,
            f"{len(found.held_out_copies)} synthetic patches show the very lesions they are judged against (first: {found.held_out_copies[0].patch} "
            f"is {found.held_out_copies[0].real}): whoever made them has seen the held-out patients.",
        )  # fmt: skip
    if found.repeats:
        yield Finding("repeats", True, f"{found.repeats} synthetic patches are equal to another one, voxel for voxel.")


def _memorisation(report: Report) -> Verdict:
    found = report.memorisation
    if isinstance(found, str):
        return _verdict("memorisation", "unknown", [], [], [f"Copies were not looked for: {found}."])
    findings, evidence, doubt = [], [], []
    if found.copies:
        exact = sum(one.exact for one in found.copies)
        first = found.copies[0]
        findings.append(
            Finding(
                "copies_of_training",
                True,
                f"{len(found.copies)} synthetic patches show what a training patch shows{f' ({exact} of them voxel for voxel)' if exact else ''}; "
                f"the nearest: {first.patch} is {first.real}, {first.how}.",
            )
        )
    else:
        evidence.append(
            "Each synthetic patch was laid over every training patch (mirrored, turned, moved, with another contrast); none fits better than "
            "patches of other patients do, with one false alarm in twenty such reports."
        )
    m, a, b = found.membership, found.nearer_to_training, found.nearer_to_half
    if m is not None:
        sentence = f"Closeness to the synthetic patches tells training from held-out patients with AUROC {m.auroc:.2f} ({m.auroc_interval.low:.2f} to {m.auroc_interval.high:.2f}; 0.5 is guessing)."
        if m.auroc_interval.low > 0.5:
            findings.append(Finding("membership", False, sentence))
        else:
            evidence.append(sentence)
    if a is not None and b is not None and a.interval.low > b.interval.high:
        findings.append(
            Finding(
                "nearer_to_training",
                False,
                f"{a.value:.0%} of synthetic patches are nearer to training patients; {b.value:.0%} in the control.",
            )
        )
    if m is None:
        doubt.append("Without held-out patients there is no control: a model that only leans on its training patients is not noticed.")
    doubt.append(
        "What identifies a patient may survive in a picture that is no copy; only a guarantee (differential privacy) speaks of that."
    )
    if found.duplicates:
        doubt.append(f"{len(found.duplicates)} held-out patches are also among the training patches: the control is not one.")
    return _verdict("memorisation", _level(findings), findings, evidence, doubt)


def _usefulness(report: Report) -> Verdict:
    found = report.detector
    if isinstance(found, str):
        return _verdict("usefulness", "unknown", [], [], [f"No detector was trained: {found}."])
    if found.headline is None:
        return _verdict("usefulness", "unknown", [], [], ["No detector was trained on real and synthetic lesions together."])
    differences = {name: found.differences[found.headline][name] for name in ("auroc", "sensitivity", "balanced_accuracy")}
    words = "; ".join(f"{METRIC_WORDS[name]} {d.value:+.3f}{interval_words(d.interval)}" for name, d in differences.items())
    evidence = [f"{found.headline} less {found.compared_with[found.headline]}, on {found.test_patients} held-out patients: {words}."]
    doubt = ["The verdict is by AUROC, which needs no threshold; it is of this detector and these patients."]
    if found.seeds < 5:
        doubt.append(f"{found.seeds} trainings of each arm: 5 or more make a result.")
    auroc = differences["auroc"].interval
    if isinstance(auroc, str):
        return _verdict("usefulness", "unknown", [], evidence, [f"There is no interval: {auroc}.", *doubt])
    return _verdict("usefulness", "good" if auroc.low > 0 else "bad" if auroc.high < 0 else "doubt", [], evidence, doubt)


def _privacy(report: Report) -> Verdict:
    found, said = report.memorisation, report.privacy
    if isinstance(found, MemorisationResult) and found.copies:
        promised = f" although it was promised: {said}" if report.guaranteed else ""
        return _verdict("privacy", "bad", [Finding("copies_of_training", True, f"There are copies of training patches{promised}.")], [], [])
    if not said:
        return _verdict("privacy", "unknown", [], [], ["Nothing says how the patches were made: there is no sampling.json beside them."])
    if report.guaranteed:
        return _verdict(
            "privacy", "good", [], [said],
            ["The guarantee rests on the accountant and the code; `python -m evaluate privacy` attacks them. This report is outside of it."],
        )  # fmt: skip
    return _verdict(
        "privacy", "doubt", [Finding("no_guarantee", False, "The generator was trained without differential privacy.")], [],
        ["That no copies were found is no proof of privacy."],
    )  # fmt: skip
