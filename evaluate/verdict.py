"""What a report comes to: four verdicts, each with its findings, its evidence and its doubt.

A verdict is derived from the report's numbers by the rules below and by nothing else, so that two readers get the same one. The
yardstick is always what real patients differ by among themselves, never a number that looks good.

quality       bad: a marked fault (far off, little variety, repeats, an artefact, classes exchanged, or the very patches it is judged against)
              doubt: a difference larger than between real patients      good: none found      unknown: no held-out patients
memorisation  bad: copies of training patches      doubt: closer to training than to held-out patients      good: neither
usefulness    good: the detector gains, beyond chance      doubt: no gain shown      bad: it loses      unknown: not measured
privacy       good: a guarantee is stated, and no copy found      doubt: none      bad: copies of any real patient, whatever was promised
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from evaluate.artefacts import Artefacts, NoisePower
from evaluate.copies import LEAST_CONTROL
from evaluate.intervals import Floor
from evaluate.report import Copied, Distance, MemorisationResult, Report
from evaluate.summary import METRIC_WORDS, interval_words, number

Part = Literal["quality", "memorisation", "usefulness", "privacy"]
Level = Literal["good", "doubt", "bad", "unknown"]
FindingName = Literal[
    "apart", "far", "less_variety", "little_variety", "classes_swapped", "smooth", "noisy", "checkerboard", "wrong_hu", "gray_steps", "saturated",
    "attributes", "duplicates", "repeats", "copies_of_held_out", "copies_of_training", "membership", "nearer_to_training", "no_guarantee",
]  # fmt: skip

FAR = 3.0
"""Times the real halves' own distance, above which a set is far off."""
LITTLE = 0.5
"""Times the real halves' own coverage or recall, below which a set has little variety."""
SATURATED = 0.005
"""Share of voxels at an end of the window, beyond the real one, that is worth a word."""
SIGNIFICANT = 0.05
FEW_PATCHES = 20
"""Synthetic patches, below which quality is not judged."""
FEW_PATIENTS = 20
"""Held-out patients; among fewer only large differences can be seen."""
ENOUGH_TRAININGS = 5

HEADLINES: dict[tuple[Part, Level], str] = {
    ("quality", "good"): "No difference from real patients was found",
    ("quality", "doubt"): "Differences from real patients, none of them marked",
    ("quality", "bad"): "A marked fault was found",
    ("quality", "unknown"): "Cannot be judged",
    ("memorisation", "good"): "No copies of training patients were found",
    ("memorisation", "doubt"): "Leans towards its training patients",
    ("memorisation", "bad"): "Contains copies of patients",
    ("memorisation", "unknown"): "Was not looked for",
    ("usefulness", "good"): "A detector got better",
    ("usefulness", "doubt"): "No gain for a detector was shown",
    ("usefulness", "bad"): "A detector got worse",
    ("usefulness", "unknown"): "Is not known",
    ("privacy", "good"): "Training patients have a stated guarantee",
    ("privacy", "doubt"): "Training patients have no guarantee",
    ("privacy", "bad"): "Real patients are shown",
    ("privacy", "unknown"): "Is not known",
}


@dataclass(frozen=True)
class Finding:
    """Something that was found. name: a word for programs; severe: whether it alone makes a verdict bad."""

    name: FindingName
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
            "quality", "unknown", [], [], ["There are no held-out patients, and being near to training patients is also what copies are."]
        )
    judged = [d for d in report.distances if d.reference == "held-out" and isinstance(d.floor, Floor)]
    if not judged:
        return _verdict("quality", "unknown", [], [], ["There are too few held-out patients to say what real patients differ by."])
    if report.compared.synthetic.patches < FEW_PATCHES:
        return _verdict(
            "quality",
            "unknown",
            [],
            [],
            [f"{report.compared.synthetic.patches} synthetic patches are too few to tell anything, {FEW_PATCHES} are needed; draw more."],
        )
    findings = [
        *_repeated(report.memorisation), *(one for d in judged if (one := _distant(d))), *_narrow(judged), *_exchanged(report),
        *_artefacts(report.artefacts), *_attributes(report),
    ]  # fmt: skip
    evidence = [
        f"{d.title}: {number(d.floor.synthetic_value)} from synthetic to real patches, {number(d.floor.value)} between two halves of the real "
        f"patients ({number(d.floor.low)} to {number(d.floor.high)} in 95 % of halvings), with {d.floor.samples} patches each."
        for d in judged
        if d.metric == "frechet" and isinstance(d.floor, Floor)
    ]
    if isinstance(report.artefacts, Artefacts) and not report.artefacts.differing:
        evidence.append("No checkerboard, blur, noise, shift of HU or steps of gray was found beyond what real patients differ by.")
    families = {d.measure.extractor for d in judged}
    doubt = []
    if len(families) == 1:
        doubt.append(f"Only one family of features ({', '.join(families)}) was used; another may see what it misses.")
    if report.compared.held_out.patients < FEW_PATIENTS:
        doubt.append(f"Held-out patients: only {report.compared.held_out.patients}. Among so few, only large differences can be seen.")
    if isinstance(report.artefacts, str):
        doubt.append(f"Artefacts were not looked for: {report.artefacts}.")
    if isinstance(report.memorisation, MemorisationResult) and report.memorisation.duplicates:
        findings.append(
            Finding(
                "duplicates", False,
                f"Held-out patches that show what a training patch shows: {len(report.memorisation.duplicates)}. The generator may have seen "
                "whom it is judged by, so nothing here can be trusted before they are sorted out.",
            )
        )  # fmt: skip
    return _verdict("quality", _level(findings), findings, evidence, doubt)


def _distant(d: Distance) -> Finding | None:
    f = d.floor
    if d.metric != "frechet" or not isinstance(f, Floor) or f.synthetic_value <= f.high:
        return None
    times = f.synthetic_value / f.value if f.value > 0 else math.inf
    sentence = f"{d.title}: synthetic patches are {times:.1f} times as far from real patients as two halves of these are from each other."
    if not f.value > 0:
        sentence = f"{d.title}: real patients do not differ at all, synthetic patches do."
    return Finding("far", times > FAR, sentence) if times > FAR else Finding("apart", False, sentence)


def _narrow(judged: list[Distance]) -> Iterator[Finding]:
    for d in judged:
        f = d.floor
        if d.metric in ("coverage", "recall") and isinstance(f, Floor) and f.synthetic_value < f.low:
            severe = f.synthetic_value < LITTLE * f.value
            yield Finding(
                "little_variety" if severe else "less_variety", severe,
                f"{d.title}: synthetic patches reach {f.synthetic_value:.2f} of real variety, where one half of the real patients reaches {f.value:.2f} "
                f"of the other's ({f.low:.2f} to {f.high:.2f} in 95 % of halvings).",
            )  # fmt: skip


def _exchanged(report: Report) -> Iterator[Finding]:
    for one in report.confused:
        yield Finding(
            "classes_swapped", True,
            f"Patches called {one.label} are nearer to real {one.nearest} (Fréchet distance {number(one.other)}) than to real {one.label} "
            f"({number(one.own)}).",
        )  # fmt: skip


def _artefacts(found: Artefacts | str) -> Iterator[Finding]:
    if isinstance(found, str):
        return
    if found.noise_power.differs:
        if _smooth(found.noise_power):
            yield Finding("smooth", True, f"Too smooth. {found.noise_power.evidence}")
        else:
            yield Finding("noisy", True, f"Too noisy. {found.noise_power.evidence}")
    if found.checkerboard.differs:
        yield Finding(
            "checkerboard", True, f"A checkerboard, or a gap in the spectrum, as upsampling leaves it. {found.checkerboard.evidence}"
        )
    if found.gray_map.differs:
        yield Finding("wrong_hu", True, f"HU are shifted or scaled. {found.gray_map.evidence}")
    if found.gray_levels.differs:
        yield Finding("gray_steps", True, f"The steps between gray levels differ. {found.gray_levels.evidence}")
    if any(one.excess > 1 and abs(one.synthetic - one.real) > SATURATED for one in found.window_ends.shares):
        yield Finding("saturated", False, f"Voxels at the ends of the window differ in number. {found.window_ends.evidence}")


def _smooth(found: NoisePower) -> bool:
    """Whether what is most unusual, of all ratios and shares of quiet patches, is too little noise; otherwise too much."""
    logs = [(_log(band.ratio), _log(band.floor)) for band in found.bands]
    quiet = [(0.25 - band.quiet, band.quiet_floor) for band in found.bands]
    return max((abs(more) / max(floor, 1e-9), more < 0) for more, floor in (*logs, *quiet))[1]


def _log(ratio: float) -> float:
    return math.log(max(ratio, 1e-12))


def _attributes(report: Report) -> Iterator[Finding]:
    differing = [a for a in report.attributes if a.p_holm < SIGNIFICANT]
    if differing:
        words = "; ".join(f"{a.title} {number(a.real_median)} real, {number(a.synthetic_median)} synthetic" for a in differing)
        yield Finding("attributes", False, f"Distributions of lesion attributes differ (medians: {words}).")


def _repeated(found: MemorisationResult | str) -> Iterator[Finding]:
    """The held-out patches themselves, or the same patch again and again."""
    if isinstance(found, str):
        return
    if found.held_out_copies:
        yield Finding(
            "copies_of_held_out", True,
            f"{_listed('held-out', found.held_out_copies)} Whoever made these has probably seen the held-out patients, so quality cannot be judged by them.",
        )  # fmt: skip
    if found.repeats:
        yield Finding("repeats", True, f"Synthetic patches that repeat an earlier one, voxel for voxel: {found.repeats}.")


def _listed(name: str, copies: tuple[Copied, ...]) -> str:
    """How many synthetic patches show what a real one shows, and which is the nearest."""
    exact, first = sum(one.exact for one in copies), copies[0]
    equal = f", {exact} of them voxel for voxel" if exact else ""
    return f"Synthetic patches that show what a {name} patch shows: {len(copies)}{equal}. The nearest: {first.patch} is {first.real}, {first.how}."


def _memorisation(report: Report) -> Verdict:
    found = report.memorisation
    if isinstance(found, str):
        return _verdict("memorisation", "unknown", [], [], [f"Copies were not looked for: {found}."])
    findings, evidence, doubt = [], [], []
    if found.copies:
        findings.append(Finding("copies_of_training", True, _listed("training", found.copies)))
        if not any(one.exact for one in found.copies):
            doubt.append(
                "None of these is equal voxel for voxel. Up to one in twenty sets without copies raises a false alarm, so look at the pairs."
            )
    if found.held_out_copies:
        findings.append(Finding("copies_of_held_out", True, _listed("held-out", found.held_out_copies)))
    if not found.copies:
        evidence.append(
            "Each synthetic patch that was compared was laid over every such training patch (mirrored, turned by right angles, moved, with another contrast). "
            "None fits nearer than chance explains."
        )
    if found.control_patients < LEAST_CONTROL:
        doubt.append(
            f"Real patients to tell chance from copying: {found.control_patients}, and {LEAST_CONTROL} are needed. "
            "With fewer, little but equal voxels is recognised as a copy."
        )
    m, a, b = found.membership, found.nearer_to_training, found.nearer_to_half
    if m is not None:
        sentence = (
            f"By closeness to synthetic patches, training patients are told from held-out ones with AUROC {m.auroc:.2f} "
            f"(95 % interval {m.auroc_interval.low:.2f} to {m.auroc_interval.high:.2f}; 0.5 is guessing)."
        )
        if m.auroc_interval.low > 0.5:
            findings.append(Finding("membership", False, sentence))
        else:
            evidence.append(sentence)
    if a is not None and b is not None and a.interval.low > b.interval.high:
        findings.append(
            Finding(
                "nearer_to_training",
                False,
                f"{100 * a.value:.0f} % of synthetic patches are nearer to training than to held-out patients. Between two halves of the held-out "
                f"patients, {100 * b.value:.0f} % are nearer to the first.",
            )
        )
    if m is None:
        doubt.append("Without held-out patients, a generator that leans on its training patients without copying them is not noticed.")
    doubt.append(
        "Copies are looked for among the lesions of training and held-out patients: not among validation patients', nor lesion-free patches."
    )
    doubt.append("A picture that is no copy may still keep what identifies a patient. Only differential privacy bounds that.")
    if found.duplicates:
        doubt.append(
            f"Held-out patches that show what a training patch shows: {len(found.duplicates)}. Their patients may not be unseen, so no comparison with "
            "held-out patients can be trusted."
        )
    return _verdict("memorisation", _level(findings), findings, evidence, doubt)


def _usefulness(report: Report) -> Verdict:
    found = report.detector
    if isinstance(found, str):
        return _verdict("usefulness", "unknown", [], [], [f"No detector was trained: {found}."])
    if found.headline is None:
        return _verdict("usefulness", "unknown", [], [], ["No detector was trained on real and synthetic lesions together."])
    differences = {name: found.differences[found.headline][name] for name in ("auroc", "sensitivity", "balanced_accuracy")}
    words = "; ".join(f"{METRIC_WORDS[name]} {d.value:+.3f}{interval_words(d.interval)}" for name, d in differences.items())
    evidence = [
        f"Detector trained on {found.headline} less that on {found.compared_with[found.headline]}, on {found.test_patients} held-out patients: {words}."
    ]
    doubt = ["The verdict goes by AUROC, which needs no threshold. It holds for this detector and these patients."]
    if found.seeds < ENOUGH_TRAININGS:
        doubt.append(f"Trainings of each detector: {found.seeds}. With fewer than {ENOUGH_TRAININGS}, chance in training is hardly seen.")
    auroc = differences["auroc"].interval
    if isinstance(auroc, str):
        return _verdict("usefulness", "unknown", [], evidence, [f"There is no interval: {auroc}.", *doubt])
    if found.seeds == 1:  # then the interval is about patients alone
        return _verdict("usefulness", "doubt", [], evidence, doubt)
    return _verdict("usefulness", "good" if auroc.low > 0 else "bad" if auroc.high < 0 else "doubt", [], evidence, doubt)


def _privacy(report: Report) -> Verdict:
    found, said = report.memorisation, report.privacy
    if isinstance(found, MemorisationResult) and (found.copies or found.held_out_copies):
        promised = ", although a guarantee is stated" if report.guaranteed else ""
        shown = "Synthetic patches that show what a {} patch shows: {}{}."
        findings = []
        if found.copies:
            findings.append(Finding("copies_of_training", True, shown.format("training", len(found.copies), promised)))
        if found.held_out_copies:
            findings.append(Finding("copies_of_held_out", True, shown.format("held-out", len(found.held_out_copies), promised)))
        return _verdict("privacy", "bad", findings, [said] if report.guaranteed else [], [])
    searched = f"Copies were not looked for: {found}." if isinstance(found, str) else "That no copies were found is no proof of privacy."
    if not said:
        doubt = ["No sampling.json beside the patches says whether they come with differential privacy.", searched]
        return _verdict("privacy", "unknown", [], [], doubt)
    if report.guaranteed:
        doubt = [
            "The guarantee is quoted, not checked: it rests on the training code. python -m evaluate privacy puts that to the test, for models of whole patches.",
            "It is worth as much as its epsilon is small: at 1 it protects well, far above 10 it says little.",
            "This report is outside of the guarantee: its figures were computed from patients.",
        ]
        return _verdict("privacy", "good", [], [said], [*doubt, searched] if isinstance(found, str) else doubt)
    no_guarantee = Finding("no_guarantee", False, f"{said[:1].upper()}{said[1:].rstrip('.')}.")  # in the words of who drew the samples
    return _verdict("privacy", "doubt", [no_guarantee], [], [searched])
