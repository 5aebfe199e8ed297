"""The quality of a patch folder in plain words: what to look at before training, warnings first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.patches import SPLITS, PatchSpec
from data.quality import HU_MIN, NearCopies, Quality, Rows, outside_window, patients_by
from data.volume import AIR_HU

FEW_PATIENTS = 5
LARGE_SHARE = 0.2
THICK_MM = 2.5
"""Slices farther apart are thick for nodules: LUNA16 leaves such scans out (Setio et al. 2017, sec. 2.1)."""

PADDED = 0.05
CLIPPED = 0.2
FACTORS = {"manufacturer": "manufacturer", "kernel": "reconstruction kernel"}


@dataclass(frozen=True)
class Summary:
    """lead: what the folder holds. warnings: what may spoil training or its evaluation. facts: the rest."""

    lead: str
    warnings: tuple[str, ...]
    facts: tuple[str, ...]


def summary_of(spec: PatchSpec, quality: Quality) -> Summary:
    """The sentences of "In short"."""
    rows = quality.rows
    series = len(np.unique(rows.series))
    lead = f"{_count(len(rows), f'{spec.origin} patch', f'{spec.origin} patches')}, {_count(len(spec.classes), 'class', 'classes')}"
    if spec.origin == "real":
        lead += f", of {_count(rows.patients(), 'patient')} with {_count(series, 'series', 'series')}"
    if quality.augmented:
        lead += f"; besides, {_count(quality.augmented, 'augmented copy', 'augmented copies')}, not counted below"
    warnings = [
        *_patients(spec), *_copies(quality), *_values(spec, quality), *_confounded(quality), *_classes(spec, rows), *_large_patient(rows),
        *_geometry(spec, quality),
    ]  # fmt: skip
    if spec.origin == "synthetic":  # nobody's patches: shares and splits of patients mean nothing
        warnings = [*_values(spec, quality)]
    facts = [*_smallest_class(spec, rows), *_not_known(spec, quality)]
    return Summary(f"{lead}.", tuple(warnings), tuple(facts))


def confounded(quality: Quality) -> Iterator[tuple[str, str, str, float, float]]:
    """(class, factor, value, share in the class, share among the others), where the class can be told by the scanner.

    At least 90 % of the class's patients share the value, at most 60 % of the other classes' do, and so many would by
    chance less than once in 100 if it were as common among them as among the others (binomial).
    """
    from scipy.stats import binom

    for factor in FACTORS:
        by_class = patients_by(quality.rows, quality.series or (), factor)
        for label, values in by_class.items():
            value, count = values.most_common(1)[0]
            others = [other for name, other in by_class.items() if name != label]
            rest = sum(other.total() for other in others)
            common = sum(other[value] for other in others) / rest if rest else 1.0
            if count >= 0.9 * values.total() and common <= 0.6 and binom.sf(count - 1, values.total(), common) < 0.01:
                yield label, factor, value, count / values.total(), common


def _patients(spec: PatchSpec) -> Iterator[str]:
    if not spec.patients_known:
        yield "The patients are not known: each picture or scan that names none counts as one, so one person may be in several splits."


def _copies(quality: Quality) -> Iterator[str]:
    found, rows = quality.near_copies, quality.rows
    if not isinstance(found, NearCopies) or not found.pairs:
        return
    pairs = np.array([(pair.first, pair.second) for pair in found.pairs])
    apart = int((rows.split[pairs[:, 0]] != rows.split[pairs[:, 1]]).sum())
    sample = "" if found.compared == found.of else f" among {found.compared:,} of the {found.of:,} patches, drawn at random"
    words = (
        f"{_count(len(pairs), 'pair')} of near-identical patches under different patients "
        f"({_count(len(np.unique(rows.patient[pairs])), 'patient')}){sample}: is one person listed twice?"
    )
    if apart:
        words += (
            f" {_count(apart, 'pair lies', 'pairs lie')} in different splits, so results on held-out patients would be too good; "
            "give them one patient id, or leave one out."
        )
    yield words


def _values(spec: PatchSpec, quality: Quality) -> Iterator[str]:
    counts = np.sum(list(quality.values.values()), axis=0)
    below = int(counts[: AIR_HU - HU_MIN].sum())
    if spec.unit == "HU" and below > 0.001 * counts.sum():  # noise in air reaches below it, too
        least = int(np.flatnonzero(counts)[0]) + HU_MIN
        yield (
            f"{_percent(below / counts.sum())} of the voxels lie below {AIR_HU} HU, down to {least}: no tissue or air does. "
            "Is it a padding value, or a wrong rescale?"
        )
    for label in spec.classes:
        if label == spec.background or not quality.values[label].sum():
            continue
        low, high = outside_window(quality.values[label], spec.window)
        if low + high > CLIPPED:
            yield (
                f"The window flattens {_percent(low + high)} of the voxels of class {label} ({_percent(low)} to black, "
                f"{_percent(high)} to white); what differs there is lost to the networks."
            )


def _confounded(quality: Quality) -> Iterator[str]:
    for label, factor, value, share, common in confounded(quality):
        whole = "All" if share == 1 else f"{_percent(share)} of"
        yield (
            f"{whole} patients of class {label} have the {FACTORS[factor]} {value}, against {_percent(common)} of the other classes': "
            "networks may learn the scanner in place of the lesion."
        )


def _classes(spec: PatchSpec, rows: Rows) -> Iterator[str]:
    for label in spec.classes:
        patients = rows.patients(rows.label == label)
        if not patients:
            yield f"Class {label} has no patches."
            continue
        splits = [split for split in ("train", "validation", "test") if (rows.split == split).any()]
        absent = [split for split in splits if not ((rows.split == split) & (rows.label == label)).any()]
        if absent:
            yield f"Class {label} is absent from {' and '.join(absent)}."
        if patients < FEW_PATIENTS:
            yield f"Class {label} has only {_count(patients, 'patient')}: its variety, and any figure on it, rest on them."


def _large_patient(rows: Rows) -> Iterator[str]:
    patients, counts = np.unique(rows.patient, return_counts=True)
    share = counts.max() / len(rows)
    if len(patients) > 1 and share > max(LARGE_SHARE, 2 / len(patients)):
        yield f"One patient ({patients[counts.argmax()]}) gives {_percent(share)} of the patches."


def _geometry(spec: PatchSpec, quality: Quality) -> Iterator[str]:
    padded = int((quality.rows.padded > PADDED).sum())
    if padded:
        yield (
            f"{_count(padded, 'patch reaches', 'patches reach')} outside the scan by more than {100 * PADDED:.0f} % of the patch, filled with air "
            f"(up to {_percent(float(quality.rows.padded.max()))}); where shown below, in a frame."
        )
    if spec.spacing_mm is None and spec.origin == "real":
        yield "The spacing of the pixels is unknown: patches may differ in scale, and sizes cannot be given in mm."
    steps = np.array([s.slice_step_mm for s in quality.series or () if s.slice_step_mm], float)
    thick = int((steps > THICK_MM).sum())
    if thick:
        yield f"{thick} of {_count(len(steps), 'series', 'series')} have slices more than {THICK_MM:g} mm apart (up to {steps.max():g} mm)."
    if len(steps) and steps.max() >= 2 * steps.min():
        yield f"Slice steps are mixed, {steps.min():g} to {steps.max():g} mm: thin and thick slices differ in noise and blur."


def _smallest_class(spec: PatchSpec, rows: Rows) -> Iterator[str]:
    lesions = [label for label in spec.classes if label != spec.background and (rows.label == label).any()]
    if not lesions:
        yield "No lesion class: every patch is lesion-free."
    if not lesions or spec.origin == "synthetic":
        return
    smallest = min(lesions, key=lambda label: rows.patients(rows.label == label))
    counts = []
    for split in [split for split in SPLITS if (rows.split == split).any()]:
        patients = rows.patients((rows.label == smallest) & (rows.split == split))
        counts.append(f"{patients} in {split}")
    of = "The only lesion class" if len(lesions) == 1 else "The rarest lesion class"
    yield f"{of}, {smallest}, has {_count(rows.patients(rows.label == smallest), 'patient')}: {', '.join(counts)}."


def _not_known(spec: PatchSpec, quality: Quality) -> Iterator[str]:
    found = quality.near_copies
    if isinstance(found, str):
        yield f"Near copies across patients were not looked for: {found}."
    elif not found.pairs:
        sample = "" if found.compared == found.of else f" among {found.compared:,} of the {found.of:,} patches, drawn at random"
        yield f"No near copies across patients were found{sample}."
    if spec.unit != "HU":
        yield "Values are gray levels whose HU window nobody stated: they are not HU."
    if quality.series is None and spec.origin == "real":
        yield "Scanners, kernels and slices are not recorded (no series.csv), so no confounding with them can be seen."
    elif quality.series is not None:
        unknown = set(quality.rows.series.tolist()) - {s.series for s in quality.series}
        if unknown:
            yield f"{_count(len(unknown), 'series', 'series')} of the patches {'is' if len(unknown) == 1 else 'are'} not in series.csv."


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
