"""Scans with synthetic lesions, written as series of DICOM: `write_composites` makes the folder, series by series.

dicom/SEED/0001.dcm ...   the scan, every voxel outside the lesions as it was read; with a header of its own
seg/SEED-N.dcm            lesion N of it
nifti/SEED.nii.gz         where asked for
annotations.csv           all lesions, as `python -m data prepare` and LUNA16's tools read them
lesions.csv               the same, with what was asked for and what was measured
preview.png               lesions in three planes and a projection: left the scan as it was, right with the lesion
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data.dicom_writing import Subject, in_words, write_series
from data.export import write_preview
from data.implanting import Drawn, Implanted, implant
from data.lesions import write_annotations
from data.nifti import write_nifti
from data.placing import BORDER_MM, GAP_MM, MOST_TISSUE, TISSUE_HU, Scan
from data.preprocess import Window, cut
from data.segmentation_writing import write_segmentation
from data.volume import Lesion

COLUMNS = (
    "seed", "lesion", "class", "asked_mm", "diameter_mm", "x_mm", "y_mm", "z_mm", "support_mm", "slices", "voxels", "mean_before_hu",
    "mean_after_hu", "noise_around_hu", "noise_before_hu", "noise_after_hu",
)  # fmt: skip
"""Of lesions.csv. Centre and diameter are those of the lesion's mass in the scan, noise as data/implanting.py measures it."""
_PREVIEWED, _PREVIEW_SIDE, _PREVIEW_MM = 24, 64, 0.75


@dataclass(frozen=True)
class Composer:
    """What all series share. model: SHA-256 of the model. spacing_mm: of its cubes. anatomy: whose the scan is, "phantom" for nobody's.
    nifti: whether to write that, too."""

    scan: Scan
    model: str
    version: str
    window: Window
    spacing_mm: tuple[float, ...]
    anatomy: str = "unknown"
    nifti: bool = False

    def subject(self, seed: int) -> Subject:
        """One synthetic patient for all series of one scan, so that a split by patient keeps them together; a study for each."""
        stored = self.scan.stored
        patient = hashlib.sha256(stored.hu.tobytes() + stored.affine.tobytes()).hexdigest()[:12].upper()
        where = "a phantom" if self.anatomy == "phantom" else "a real scan"
        return Subject(
            key=f"into {self.model} {seed}", name=f"SYNTHETIC^{patient}", patient_id=f"SYNTHETIC-{patient}",
            description=f"synthetic lesions in {where}, seed {seed}", model=self.model, version=self.version, window=self.window, into=in_words(self.anatomy),
        )  # fmt: skip


def write_composites(folder: Path, composer: Composer, drawn: Iterable[Drawn]) -> Iterator[tuple[int, list[Implanted]]]:
    """Writes a series for each seed into an empty folder, yielding the seed and its lesions, and at the end the tables and the preview.

    drawn: the lesions of data.implanting.drawn, those of a seed together.
    """
    for name in ("dicom", "seg", *(["nifti"] if composer.nifti else [])):
        (folder / name).mkdir()
    listed: dict[str, list[Lesion]] = {}
    rows: list[list[object]] = []
    shown: list[np.ndarray] = []
    labels: list[str] = []
    for seed, of_seed in groupby(drawn, lambda one: one.placed.seed):
        hu = composer.scan.stored.hu.copy()
        axial = composer.scan.stored.axial_view(hu)
        lesions = [implant(axial, composer.scan, one, composer.spacing_mm) for one in of_seed]
        listed[_write_series(folder, composer, seed, hu, lesions)] = [
            Lesion(one.center_mm, one.diameter_mm, one.placed.label) for one in lesions
        ]
        rows += map(_cells, lesions)
        for one in lesions[: _PREVIEWED - len(labels)]:
            shown += _before_and_after(composer.scan, axial, one)
            labels += [f"{one.placed.name} {one.placed.label} {one.diameter_mm:.1f} mm"] * 2
        yield seed, lesions
    write_annotations(listed, folder / "annotations.csv")
    with open(folder / "lesions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    write_preview(np.stack(shown), composer.window, folder / "preview.png", (_PREVIEW_MM,) * 3, labels, columns=2)


def facts(composer: Composer, done: Sequence[tuple[int, list[Implanted]]]) -> dict[str, Any]:
    """What sampling.json says of the scan and the lesions in it. No path, no UID of the scan."""
    scan = composer.scan
    thick, low = scan.thickness_mm, min(one.placed.diameter_mm for _, lesions in done for one in lesions)
    most = max(one.slices for _, lesions in done for one in lesions)
    avoided = (
        f"listed: {len(scan.taken)}" if scan.listed else "no list was given: lesions that were there already were not stayed away from"
    )
    return {
        "anatomy": composer.anatomy,
        "scan": {
            "voxels": list(scan.stored.hu.shape), "spacing_mm": list(scan.stored.spacing_mm), "slice_thickness_mm": thick,
            "smallest_diameter_mm": round(scan.least_mm, 3),
            "what_slices_show": f"a slice shows the mean of {thick:g} mm: of the smallest lesion here, {low:.1f} mm, at most "
            f"{min(1, low / thick):.0%} of its contrast; a lesion here lies in up to {most} slices",
        },
        "lesions_of_the_scan": avoided,
        "placing": {
            "lung_border_mm": BORDER_MM, "between_lesions_mm": GAP_MM, "most_tissue": MOST_TISSUE, "tissue_hu": TISSUE_HU,
        },
        "series": [
            {"seed": seed, "lesions": len(lesions), "places_looked_at": sum(one.placed.tries for one in lesions)} for seed, lesions in done
        ],
    }  # fmt: skip


def _write_series(folder: Path, composer: Composer, seed: int, hu: np.ndarray, lesions: Sequence[Implanted]) -> str:
    """hu: as stored. Returns the series UID."""
    stored, subject = composer.scan.stored, composer.subject(seed)
    (folder / "dicom" / str(seed)).mkdir()
    images = [folder / "dicom" / str(seed) / f"{k + 1:04d}.dcm" for k in range(len(hu))]
    thickness, step = composer.scan.thickness_mm, composer.scan.axial.spacing_mm[0]
    uid = write_series(hu, stored.affine, subject, images, thickness_mm=None if thickness == step else thickness)
    for one in lesions:
        mask = np.zeros(hu.shape, bool)
        stored.axial_view(mask)[one.box] = one.mask
        write_segmentation(mask, images, subject, one.placed.label, folder / "seg" / f"{one.placed.name}.dcm")
    if composer.nifti:
        write_nifti(hu, stored.affine, folder / "nifti" / f"{seed}.nii.gz")
    return str(uid)


def _cells(one: Implanted) -> list[object]:
    placed = one.placed
    measured = [placed.diameter_mm, one.diameter_mm, *one.center_mm, one.support_mm]
    density = [f"{hu:.1f}" if np.isfinite(hu) else "" for hu in (*one.mean_hu, *one.noise_hu)]
    voxels = np.count_nonzero(one.mask)
    return [placed.seed, placed.number, placed.label, *(f"{mm:.3f}" for mm in measured), one.slices, voxels, *density]


def _before_and_after(scan: Scan, axial: np.ndarray, one: Implanted) -> list[np.ndarray]:
    """Cubes around a lesion, of the scan and of axial, the scan with lesions in it."""
    volumes = (scan.axial, replace(scan.axial, hu=axial))
    return [cut(volume, one.center_mm, (_PREVIEW_SIDE,) * 3, _PREVIEW_MM) for volume in volumes]
