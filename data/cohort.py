"""From folders of scans and a lesion list to a patch folder: find, read, cut, pseudonymise, split.

Each series is read and cut on its own, by several processes; the result does not depend on how many.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from data.dicom import Series, Skipped, find_series, read_series
from data.metaimage import read_metaimage
from data.nifti import read_nifti, stem
from data.parallel import map_processes
from data.patches import Patch, PatchSpec, PatchWriter, split_by_patient
from data.preprocess import Window, cut, lung_mask
from data.pseudonyms import Pseudonyms
from data.volume import Lesion, Volume

BACKGROUND = "background"
OFF_LUNG = "lesion that does not touch the lung (are the coordinates LPS, in mm?)"
NIFTI, METAIMAGE = (".nii", ".nii.gz"), (".mha", ".mhd")
_NOT_SCANS = (".csv", ".json", ".txt", ".md", ".raw", ".zraw")


@dataclass(frozen=True)
class CutConfig:
    """How patches are cut.

    shape: (H, W) for axial patches, (D, H, W) for cubes. spacing_mm: of a patch, along each axis.
    slices: axial patches a lesion, in neighbouring slices within the middle half of its diameter.
    background: lesion-free patches for each lesion, from inside the lung.
    """

    shape: tuple[int, ...] = (64, 64)
    spacing_mm: float = 1.0
    window: Window = (-1000.0, 400.0)
    slices: int = 1
    background: int = 1
    seed: int = 0
    validation: float = 0.15
    test: float = 0.25


@dataclass
class Outcome:
    """What became of the input, counted; reasons never hold identifiers."""

    patches: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, class)
    patients: set[str] = field(default_factory=set)
    series: int = 0
    notes: Counter[str] = field(default_factory=Counter)


def find_volumes(sources: Sequence[str | Path]) -> tuple[list[Series], list[Skipped]]:
    """Every volume under these files and folders, at any depth; links to folders are not followed.

    A NIfTI or MetaImage file is a series by itself, named by its stem, and a patient by itself.
    Raises FileNotFoundError for a source that does not exist, ValueError where nothing is a CT volume.
    """
    files = [file for source in sources for file in _files(Path(source))]
    single = [f for f in files if f.name.lower().endswith(NIFTI + METAIMAGE)]
    rest = [f for f in files if not f.name.lower().endswith(NIFTI + METAIMAGE + _NOT_SCANS)]
    series, skipped = find_series(rest)
    series += [Series(stem(f), stem(f), (f,)) for f in single]
    known: dict[str, Series] = {}
    for one in series:
        if known.setdefault(one.uid, one) is not one:
            raise ValueError(
                f"{one.files[0]} and {known[one.uid].files[0]} have the same name, so a lesion list cannot tell them apart; rename one"
            )
    if not series:
        reasons = Counter(s.reason for s in skipped).most_common(1)
        why = f"{len(skipped)} files, most of them: {reasons[0][0]}" if reasons else "it is empty"
        raise ValueError(f"{', '.join(map(str, sources))}: no CT volume found ({why})")
    return series, skipped


def read_volume(series: Series) -> Volume:
    """The HU volume of a series, by the format its files have."""
    name = series.files[0].name.lower()
    if name.endswith(NIFTI):
        return read_nifti(series.files[0])
    if name.endswith(METAIMAGE):
        return read_metaimage(series.files[0])
    return read_series(series)


def prepare(
    sources: Sequence[str | Path],
    lesions: dict[str, list[Lesion]],
    out: Path,
    config: CutConfig,
    pseudonyms: Pseudonyms,
    *,
    processes: int = 0,
    warn: Callable[[str], None] = lambda line: None,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Outcome:
    """Cuts every listed lesion, and background, out of the scans, into the empty folder `out`.

    lesions: series UID -> lesions, in LPS mm. processes: 0 for one a core.
    warn: told of each series or file that is left out, with its path. track: wraps the loop over series.
    Raises ValueError when nothing can be cut.
    """
    found, skipped = find_volumes(sources)
    for s in skipped:
        warn(f"skipped {s.file}: {s.reason}")
    wanted = [s for s in found if s.uid in lesions]
    outcome = Outcome()
    outcome.notes["file that is no CT slice, skipped"] = len(skipped)
    outcome.notes["series without a listed lesion, left out"] = len(found) - len(wanted)
    outcome.notes["listed series that is not in the folders"] = len(set(lesions) - {s.uid for s in found})
    if not wanted:
        raise ValueError(
            f"none of the {len(lesions)} series in the lesion list is among the {len(found)} found; "
            "the seriesuid column must hold SeriesInstanceUIDs, or file names without suffix for NIfTI and MetaImage"
        )
    labels = sorted({lesion.label for s in wanted for lesion in lesions[s.uid]})
    if config.background and BACKGROUND in labels:
        raise ValueError(f"class {BACKGROUND!r} in the lesion list is the name of lesion-free patches; rename it or use --background 0")
    classes = (*labels, BACKGROUND) if config.background else tuple(labels)
    spec = PatchSpec(
        shape=config.shape, spacing_mm=(config.spacing_mm,) * len(config.shape), window=config.window,
        classes=classes, background=BACKGROUND if config.background else None,
    )  # fmt: skip
    writer = PatchWriter(out, spec)
    names: dict[str, str] = {}  # patient id -> pseudonym
    jobs = [(s, lesions[s.uid]) for s in wanted]
    for (series, _), cutting in zip(jobs, track(map_processes(partial(_cut_job, config=config), jobs, processes), len(jobs)), strict=True):
        if isinstance(cutting, str):
            warn(f"skipped series: {cutting}")
            outcome.notes["series that cannot be read, skipped"] += 1
            continue
        patches, notes = cutting
        outcome.notes.update(notes)
        patient, uid = pseudonyms.patient(series.patient_id), pseudonyms.series(series.uid)
        if patches:
            outcome.series += 1
            names[series.patient_id] = patient
        for hu, lesion in patches:
            diameter = lesion.diameter_mm if lesion.label != BACKGROUND else None
            writer.add(Patch(hu, patient, uid, lesion.label, diameter, lesion.center_mm))
    if not writer.rows:
        raise ValueError("no patch could be cut: " + ("; ".join(f"{n} x {what}" for what, n in outcome.notes.items() if n)))
    # by the patients' own ids, so that the split does not change with the pseudonym key
    splits = split_by_patient(names, config.seed, config.validation, config.test)
    writer.finish({names[patient_id]: split for patient_id, split in splits.items()})
    outcome.patients = set(names.values())
    outcome.patches.update((row.split, row.label) for row in writer.rows)
    outcome.notes = Counter({what: n for what, n in outcome.notes.items() if n})
    return outcome


def cut_series(series: Series, lesions: list[Lesion], config: CutConfig) -> tuple[list[tuple[np.ndarray, Lesion]], Counter[str]]:
    """The patches of one series, with what each shows, and what was left out.

    Raises ValueError or OSError when the series cannot be read.
    """
    volume = read_volume(series).axial()
    notes: Counter[str] = Counter()
    inside = [lesion for lesion in lesions if volume.contains(volume.index_of(lesion.center_mm))]
    notes["lesion outside its volume, left out (are the coordinates LPS, in mm?)"] = len(lesions) - len(inside)
    patches = []
    for lesion in inside:
        for center_mm in _centres(volume, lesion, config):
            patches.append((cut(volume, center_mm, config.shape, config.spacing_mm), lesion))
    if config.background and inside:
        try:
            lung = lung_mask(volume)
        except ValueError:
            notes["series without a lung mask: no background patches from it"] += 1
            return patches, notes
        notes[OFF_LUNG] = sum(not _touches(lung, volume, lesion) for lesion in inside)
        for center_mm in _background(lung, volume, inside, config):
            patch = cut(volume, center_mm, config.shape, config.spacing_mm)
            patches.append((patch, Lesion(center_mm, 1.0, BACKGROUND)))
    return patches, notes


def _cut_job(job: tuple[Series, list[Lesion]], config: CutConfig):
    try:
        return cut_series(*job, config)
    except (ValueError, OSError) as error:
        return str(error)


def _centres(volume: Volume, lesion: Lesion, config: CutConfig) -> list[tuple[float, float, float]]:
    """The lesion's centre; for several axial slices also the points above and below it, nearest first."""
    if len(config.shape) == 3 or config.slices == 1:
        return [lesion.center_mm]
    centre = volume.index_of(lesion.center_mm)
    middle = round(float(np.clip(centre[0], 0, volume.hu.shape[0] - 1)))
    reach = lesion.diameter_mm / 4 / volume.spacing_mm[0]
    near = sorted(range(volume.hu.shape[0]), key=lambda k: abs(k - centre[0]))
    slices = [k for k in near if k == middle or abs(k - centre[0]) <= reach][: config.slices]
    return [volume.point_at(np.array([k, *centre[1:]])) for k in slices]


def _touches(lung: np.ndarray, volume: Volume, lesion: Lesion) -> bool:
    """Whether there is lung inside the lesion's sphere, or up to 5 mm from it."""
    reach = (lesion.diameter_mm / 2 + 5) / np.array(volume.spacing_mm)
    centre = volume.index_of(lesion.center_mm)
    low = np.clip(np.floor(centre - reach).astype(int), 0, None)
    high = np.ceil(centre + reach).astype(int) + 1
    return bool(lung[tuple(map(slice, low, high))].any())


def _background(lung: np.ndarray, volume: Volume, lesions: list[Lesion], config: CutConfig) -> list[tuple[float, float, float]]:
    """Points in the lung whose patch holds no part of a lesion."""
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{volume.series_uid}".encode()).digest()[:8])
    rng = np.random.default_rng(seed)
    inside = np.flatnonzero(lung)
    reach_mm = np.array(config.shape[-2:]).max() * config.spacing_mm / 2
    centres = np.array([lesion.center_mm for lesion in lesions])
    radii = np.array([lesion.diameter_mm / 2 for lesion in lesions])
    points: list[tuple[float, float, float]] = []
    for place in rng.choice(inside, size=min(len(inside), 200 * config.background * len(lesions)), replace=False):
        point = volume.point_at(np.array(np.unravel_index(place, volume.hu.shape)))
        if (np.abs(centres - point).max(axis=1) > reach_mm + radii).all():
            points.append(point)
        if len(points) == config.background * len(lesions):
            break
    return points


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such file or folder")
    for folder, folders, names in os.walk(source):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))
