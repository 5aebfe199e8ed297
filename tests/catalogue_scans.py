"""What the catalogue of odd input is made of: a small scan, one way to spoil it, and what a right reader gives.

Arrays are int16 HU (K, J, I); affines lead from index k, j, i to LPS mm (data/volume.py). Free of pytest, so that
benchmarks/catalogue.py can run other readers on the same cases. Every case is made from its folder's name alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from scipy.ndimage import map_coordinates

from data.dicom_writing import Subject, uid_from, write_series
from data.volume import AIR_HU, Volume, spacing_of

SECRET = "Canary"
"""Part of every patient's name and id in the catalogue; no output may hold it."""

HU = np.random.default_rng(0).integers(-1000, 1500, (6, 20, 24)).astype(np.int16)
"""Without any symmetry, so that every flip, shift or swap shows."""
LARGE = np.random.default_rng(1).integers(-1000, 1500, (6, 64, 72)).astype(np.int16)
"""For codecs that want a picture of some size."""


def affine_of(step=(0, 0, 2.5), down=(0, 0.7, 0), right=(0.8, 0, 0), origin=(-30, -40, 100)) -> np.ndarray:
    """The steps in LPS mm from slice to slice, down a column and along a row, and the first voxel's place."""
    affine = np.eye(4)
    affine[:3] = np.array([step, down, right, origin], float).T
    return affine


AXIAL = affine_of()


@dataclass(frozen=True)
class Truth:
    """What a right reader gives, in any order and direction of axes.

    padding: bool (K, J, I), where nothing was measured: AIR_HU from us, any HU from -1000 down from others.
    tolerance_mm: how far a corner may lie from its place. resampled: HU are linear in space, and a reader may
    give them on another grid. other: a second scan beside the first, either of which is right.
    """

    hu: np.ndarray
    affine: np.ndarray
    padding: np.ndarray | None = None
    tolerance_mm: float = 0.01
    resampled: bool = False
    other: Truth | None = None

    def difference(self, hu: np.ndarray, affine: np.ndarray, tolerance_hu: float = 0) -> str:
        """What is wrong with a volume (K, J, I), int16 or float HU, and its affine; "" when it is right."""
        if self.other is not None and not self.other.difference(hu, affine, tolerance_hu):
            return ""
        if hu.ndim != 3 or affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.isfinite(hu).all():
            return f"shape {hu.shape}, or values that are not finite"
        if self.resampled and (hu.shape != self.hu.shape or not np.allclose(affine, self.affine, atol=self.tolerance_mm)):
            return self._difference_in_space(hu, affine)
        want = Volume(self.hu, spacing_of(self.affine), self.affine, "").axial()
        found = Volume(hu, spacing_of(affine), affine, "").axial()
        if found.hu.shape != want.hu.shape:
            return f"shape {found.hu.shape} in place of {want.hu.shape}"
        corners = np.array([[k, j, i, 1] for k in (0, 1) for j in (0, 1) for i in (0, 1)]) * [*want.hu.shape, 1]
        off = np.abs((found.affine - want.affine) @ corners.T).max()
        if off > self.tolerance_mm:
            return f"a corner is {off:.3g} mm off"
        error = np.abs(found.hu.astype(np.float64) - want.hu)
        if self.padding is not None and tolerance_hu:
            padded = Volume(self.padding.astype(np.int16), want.spacing_mm, self.affine, "").axial().hu > 0
            error[padded & (found.hu <= -1000)] = 0
        return (
            f"{np.mean(error > tolerance_hu):.0%} of the voxels are off, by up to {error.max():g} HU" if error.max() > tolerance_hu else ""
        )

    def _difference_in_space(self, hu: np.ndarray, affine: np.ndarray) -> str:
        """The same question asked at the true voxels' places, away from the border."""
        index = np.indices(self.hu.shape).reshape(3, -1)
        places = np.linalg.inv(affine) @ self.affine @ np.vstack([index, np.ones(index.shape[1])])
        found = map_coordinates(hu.astype(np.float64), places[:3], order=1, cval=np.nan)
        inside = np.isfinite(found)
        wrong = np.abs(found - self.hu.ravel())[inside] > 3
        return "" if inside.mean() > 0.5 and wrong.mean() < 0.2 else "HU lie in other places"


Make = Callable[[Path], Truth | None]
Change = Callable[[Dataset, int], None]


@dataclass(frozen=True)
class Case:
    """One line of the catalogue.

    outcome: "=" load, "E" refuse, "W" skip the odd file and load the rest; "=E" and "EW" leave the choice.
    make: writes the input into a folder. words: patterns, all of them in the error or in what is told of a skip.
    source: what to read in the folder, with {name} for the folder's name. kind: dicom, zip, nifti or metaimage, what a
    reader must know to be asked. bounded: built to exhaust memory, or to kill the process that reads it.
    """

    name: str
    outcome: str
    make: Make
    words: tuple[str, ...] = ()
    source: str = ""
    kind: str = "dicom"
    bounded: bool = False

    def write(self, folder: Path) -> tuple[Path, Truth | None]:
        """Writes the case; returns what to read, and the truth, or None where only an error is right."""
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")  # pydicom's, of the odd values we want
            truth = self.make(folder)
        assert ("=" in self.outcome or self.outcome == "W") <= (truth is not None), self.name
        return folder / self.source.format(name=folder.name), truth if self.outcome in ("=", "=E", "W") else None


def series_uid(folder: Path, *what: str) -> str:
    """The SeriesInstanceUID of the scan in a case's folder, or of what lies beside it."""
    return str(uid_from("catalogue", folder.name, *what))


def write_scan(folder: Path, hu=HU, affine=AXIAL, change: Change | None = None, only: int | None = None, within="", what="") -> list[Path]:
    """Writes a CT series as a scanner does, 000.dcm and on, each slice (or one) changed; returns the files.

    within: a folder inside. what: sets another series of the same patient apart.
    """
    place = folder / within
    place.mkdir(parents=True, exist_ok=True)
    files = [place / f"{what}{k:03d}.dcm" for k in range(len(hu))]
    identity = f"{SECRET}{folder.name}"
    write_series(hu, affine, Subject(f"{identity}{what}", f"{identity}^Jane", identity, "chest", "0" * 64, "test", (-1000, 400)), files)
    for k, file in enumerate(files):
        image = pydicom.dcmread(file)
        image.ImageType, image.AcquisitionNumber, image.ConvolutionKernel = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, "B70f"
        image.SeriesInstanceUID = series_uid(folder, *filter(None, [what]))
        image.StudyInstanceUID = series_uid(folder, "study")
        if change and only in (None, k):
            change(image, k)
        save(image, file)
    return files


def save(image: Dataset, file: Path, **options: bool) -> None:
    """Writes a data set as it is, odd values included."""
    pydicom.dcmwrite(file, image, **options)


def put(**attributes: object) -> Change:
    """Sets attributes, None to remove one; a function is given k, the slice's place in the scan."""

    def change(image: Dataset, k: int) -> None:
        for keyword, value in attributes.items():
            value = value(k) if callable(value) else value
            if value is not None:
                setattr(image, keyword, value)
            elif keyword in image:
                delattr(image, keyword)

    return change


def each(change: Change | None, hu=HU, affine=AXIAL, truth: np.ndarray | None = None, **about) -> Make:
    """A scan whose slices are all changed; truth: its HU where they are not `hu`."""

    def make(folder: Path) -> Truth:
        write_scan(folder, hu, affine, change)
        return Truth(hu if truth is None else truth, affine, **about)

    return make


def one(change: Change, k: int = 3) -> Make:
    """A scan of which one slice is changed."""

    def make(folder: Path) -> Truth:
        write_scan(folder, change=change, only=k)
        return Truth(HU, AXIAL)

    return make


def then(spoil: Callable[[Path, list[Path]], object], hu=HU, affine=AXIAL, **about) -> Make:
    """A good scan, then something done with its folder and files."""

    def make(folder: Path) -> Truth:
        spoil(folder, write_scan(folder, hu, affine))
        return Truth(hu, affine, **about)

    return make


def at(mm: float, x: float = -30, y: float = -40) -> list[str]:
    """An ImagePositionPatient of the axial scan."""
    return [f"{x:.6g}", f"{y:.6g}", f"{mm:.6g}"]


def store(image: Dataset, stored: np.ndarray, bits=16, signed=False) -> None:
    """Sets 16-bit pixels of which `bits` are said to be stored."""
    image.PixelData = stored.astype(np.int64).astype(np.uint16).tobytes()
    image.BitsStored, image.HighBit, image.PixelRepresentation = bits, bits - 1, int(signed)


def padded(hu: np.ndarray = HU) -> tuple[np.ndarray, np.ndarray]:
    """HU with air outside a circle, and where that is: bool (K, J, I)."""
    _, rows, columns = hu.shape
    j, i = np.ogrid[:rows, :columns]
    outside = np.broadcast_to((j - rows / 2) ** 2 + (i - columns / 2) ** 2 > (rows / 2) ** 2, hu.shape)
    return np.where(outside, AIR_HU, hu).astype(np.int16), outside
