"""The catalogue's DICOM series, part one: their geometry and their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from catalogue_scans import AXIAL, HU, Case, Truth, affine_of, at, each, one, padded, put, save, store, then, write_scan
from pydicom.dataset import Dataset

ANY = r"\d{3}\.dcm"
THIRD = r"003\.dcm"
LAST = r"005\.dcm"


# ---------------------------------------------------------------- geometry


def copied(change) -> Callable[[Path, list[Path]], None]:
    """Beside slice 3 a changed copy of it."""

    def spoil(folder: Path, files: list[Path]) -> None:
        image = pydicom.dcmread(files[3])
        change(image, 3)
        save(image, folder / "copy.dcm")

    return spoil


def other_pixels(image: Dataset, k: int) -> None:
    image.PixelData = HU[(k + 1) % len(HU)].tobytes()


def other_image(image: Dataset, k: int) -> None:
    other_pixels(image, k)
    image.SOPInstanceUID += "1"


def second_phase(folder: Path, files: list[Path]) -> None:
    for k, file in enumerate(files):
        image = pydicom.dcmread(file)
        other_image(image, k)
        image.AcquisitionNumber = 2
        save(image, folder / f"phase{k}.dcm")


def without(*slices: int) -> Callable[[Path, list[Path]], None]:
    def spoil(folder: Path, files: list[Path]) -> None:
        for k in slices:
            files[k].unlink()

    return spoil


def without_last(folder: Path) -> Truth:
    write_scan(folder)[-1].unlink()
    return Truth(HU[:-1], AXIAL)


def shuffled(folder: Path, files: list[Path]) -> None:
    for n, k in enumerate([3, 0, 5, 1, 4, 2]):
        image = pydicom.dcmread(files[k])
        image.InstanceNumber = n + 1
        save(image, folder / f"{'zyxwvu'[n]}.dcm")
        files[k].unlink()


def shortened(image: Dataset, k: int) -> None:
    image.Rows = 10
    store(image, HU[k, :10], signed=True)


SMOOTH = np.fromfunction(lambda k, j, i: 20 * k * 2.5 + 15 * (j * 0.7 + k * 0.9) - 12 * i * 0.8 - 300, HU.shape).round().astype(np.int16)
"""Linear in space when slices shift by 0.9 mm to the back: a tilt made straight shows the same HU in the same places."""

GEOMETRY = [
    Case("plain scan", "=", each(None)),
    Case("a slice is missing", "E", then(without(3)), (ANY, "ImagePositionPatient")),
    Case("the second slice is missing", "E", then(without(1)), (ANY, "ImagePositionPatient")),
    Case("two slices in a row are missing", "E", then(without(2, 3)), (ANY, "ImagePositionPatient")),
    Case("the last slice is missing, which none can know", "=", without_last),
    Case("two spacings", "E", each(put(ImagePositionPatient=lambda k: at(100 + 2.5 * k + 2.5 * max(k - 2, 0)))), (ANY, "ImagePositionPatient")),
    Case("a slice 0.5 mm out of place", "E", one(put(ImagePositionPatient=at(108))), (ANY, "ImagePositionPatient")),
    Case("the same file twice", "W", then(copied(put())), ("SOPInstanceUID",)),
    Case("one SOPInstanceUID, two pictures", "E", then(copied(other_pixels)), (r"(copy|003)\.dcm", "SOPInstanceUID")),
    Case("one SOPInstanceUID for all slices", "=E", each(put(SOPInstanceUID="1.2.3.4")), (ANY, "SOPInstanceUID")),
    Case("two pictures at one position", "E", then(copied(other_image)), (r"(copy|003)\.dcm", "ImagePositionPatient")),
    Case("two phases at the same positions", "E", then(second_phase), (r"\.dcm", "ImagePositionPatient|AcquisitionNumber")),
    Case("two acquisitions, one between the other", "E", each(put(AcquisitionNumber=lambda k: k % 2 + 1)), (ANY, "AcquisitionNumber")),
    Case("two reconstructions, one between the other", "E", each(put(ConvolutionKernel=lambda k: ["B70f", "B30f"][k % 2])), (ANY, "ConvolutionKernel")),
    Case("step and shoot: an acquisition a slice", "=", each(put(AcquisitionNumber=lambda k: k + 1))),
    Case("step and shoot: two acquisitions, one after the other", "=", each(put(AcquisitionNumber=lambda k: 2 - k // 3))),
    Case("positions rounded to a tenth", "=", each(put(ImagePositionPatient=lambda k: at(round(100 + 1.25 * k, 1))), affine=affine_of((0, 0, 1.25)), tolerance_mm=0.15)),
    Case("positions with 0.04 mm of jitter", "=", each(put(ImagePositionPatient=lambda k: at(100 + 2.5 * k + 0.04 * (-1) ** k)), tolerance_mm=0.15)),
    Case("gantry tilt", "=E", each(None, SMOOTH, affine_of((0, 0.9, 2.5)), resampled=True), (ANY, "tilt")),
    Case("one slice turned", "E", one(put(ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"])), (ANY, "ImageOrientationPatient")),
    Case("half the slices mirrored", "E", each(put(ImageOrientationPatient=lambda k: ["1" if k < 3 else "-1", "0", "0", "0", "1", "0"])), (ANY, "ImageOrientationPatient")),
    Case("rows to the right: flipped cosines", "=", each(None, affine=affine_of(right=(-0.8, 0, 0)))),
    Case("columns to the front: flipped cosines", "=", each(None, affine=affine_of(down=(0, -0.7, 0)))),
    Case("head to feet", "=", each(None, affine=affine_of((0, 0, -2.5)))),
    Case("prone", "=", each(None, affine=affine_of(down=(0, -0.7, 0), right=(-0.8, 0, 0)))),
    Case("stored sagittally", "=", each(None, affine=affine_of((2.5, 0, 0), (0, 0, -0.7), (0, 0.8, 0)))),
    Case("stored coronally", "=", each(None, affine=affine_of((0, 2.5, 0), (0, 0, -0.7), (0.8, 0, 0)))),
    Case("oblique", "=", each(None, affine=affine_of((0, 0, 2.5), (-0.42, 0.56, 0), (0.64, 0.48, 0)))),
    Case("names and numbers out of order", "=", then(shuffled)),
    Case("no InstanceNumber", "=", each(put(InstanceNumber=None))),
    Case("one InstanceNumber for all", "=", each(put(InstanceNumber=1))),
    Case("a SliceThickness that lies", "=", each(put(SliceThickness="9"))),
    Case("a SpacingBetweenSlices that lies", "=", each(put(SpacingBetweenSlices="0.1"))),
    Case("a negative SpacingBetweenSlices", "=", each(put(SpacingBetweenSlices="-2.5"))),
    Case("a SliceLocation that misleads", "=", each(put(SliceLocation=lambda k: str(7 * k % 5)))),
    Case("no position in one slice", "E", one(put(ImagePositionPatient=None)), (THIRD, "ImagePositionPatient")),
    Case("no position in the last slice", "E", one(put(ImagePositionPatient=None), 5), (LAST, "ImagePositionPatient")),
    Case("no position at all", "E", each(put(ImagePositionPatient=None)), (ANY, "ImagePositionPatient")),
    Case("an empty position", "E", one(put(ImagePositionPatient=[])), (THIRD, "ImagePositionPatient")),
    Case("a position of two numbers", "E", one(put(ImagePositionPatient=["-30", "-40"])), (THIRD, "ImagePositionPatient")),
    Case("a position that is not a number", "E", one(put(ImagePositionPatient=["-30", "-40", "NaN"])), (THIRD, "ImagePositionPatient")),
    Case("an infinite position", "E", one(put(ImagePositionPatient=["-30", "1e999", "107.5"]), 5), (LAST, "ImagePositionPatient")),
    Case("spacing 0", "E", each(put(PixelSpacing=["0", "0"])), (ANY, "PixelSpacing")),
    Case("negative spacing", "E", each(put(PixelSpacing=["-0.7", "0.8"])), (ANY, "PixelSpacing")),
    Case("no spacing", "E", each(put(PixelSpacing=None)), (ANY, "PixelSpacing")),
    Case("no spacing in one slice", "E", one(put(PixelSpacing=None)), (ANY, "PixelSpacing")),
    Case("another spacing in one slice", "E", one(put(PixelSpacing=["0.9", "0.9"])), (ANY, "PixelSpacing")),
    Case("no orientation", "E", each(put(ImageOrientationPatient=None)), (ANY, "ImageOrientationPatient")),
    Case("cosines that are none", "E", each(put(ImageOrientationPatient=["1", "0", "0", "1", "0", "0"])), (ANY, "ImageOrientationPatient")),
    Case("one slice of another matrix size", "E", one(shortened), (ANY, "Rows")),
    Case("one slice in another frame of reference", "E", one(put(FrameOfReferenceUID="1.2.3")), (ANY, "FrameOfReferenceUID")),
    Case("one slice of another patient", "E", one(put(PatientID="CanaryOther")), (ANY, "PatientID")),
    Case("a single slice", "E", each(None, HU[:1]), (ANY, "single|one slice")),
    Case("an empty folder", "E", lambda folder: None, ("empty|no CT",)),
]  # fmt: skip


# ---------------------------------------------------------------- values


def rescaled(slope, intercept) -> tuple[Callable, np.ndarray]:
    """The change that gives slice k slope(k) and intercept(k) and stores what comes nearest, and the HU that follow."""
    stored = np.stack([np.rint((hu.astype(float) - intercept(k)) / slope(k)) for k, hu in enumerate(HU)])
    truth = np.stack([np.rint(s * slope(k) + intercept(k)) for k, s in enumerate(stored)]).astype(np.int16)

    def change(image: Dataset, k: int) -> None:
        image.RescaleSlope, image.RescaleIntercept = f"{slope(k):g}", f"{intercept(k):g}"
        store(image, stored[k], signed=True)

    return change, truth


def bits(add=0, stored=12, signed=False, high=0, shift=0):
    """Stores HU - add in `stored` bits, `high` set above them, all shifted left."""

    def change(image: Dataset, k: int) -> None:
        store(image, (((HU[k].astype(int) - add) & ((1 << stored) - 1)) | high) << shift, stored, signed)
        image.HighBit += shift
        image.RescaleIntercept = str(add)

    return change


def padding(value: int, vr="SS", intercept=-1024, limit: int | None = None, declared=True):
    """Stores `value` outside a circle; intercept: that of the slices, whose truth is air there."""
    air, outside = padded()

    def change(image: Dataset, k: int) -> None:
        stored = np.where(outside[k], value, HU[k].astype(int) - intercept)
        image.RescaleIntercept = str(intercept)
        store(image, stored, signed=True)
        if declared:
            image.add_new("PixelPaddingValue", vr, value & 0xFFFF if vr == "US" else value if limit is None else limit)
        if limit is not None:
            image.add_new("PixelPaddingRangeLimit", vr, value)

    return each(change, truth=air, padding=outside)


def lookup(image: Dataset, k: int) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", np.arange(4096, dtype="<u2").tobytes())
    table.ModalityLUTType = "US"
    store(image, HU[k].astype(int) + 1024, 12)
    put(RescaleSlope=None, RescaleIntercept=None, RescaleType=None, ModalityLUTSequence=[table])(image, k)


def wide(image: Dataset, k: int) -> None:
    image.PixelData = HU[k].astype("<i4").tobytes()
    image.BitsAllocated, image.BitsStored, image.HighBit = 32, 32, 31


def own_rescale() -> Case:
    change, truth = rescaled(lambda k: 1 + k / 8, lambda k: -10 * k - 1 / 16)  # never half a HU, which rounds either way
    return Case("slope and intercept differ per slice", "=", each(change, truth=truth))


def half_slope() -> Case:
    change, truth = rescaled(lambda k: 0.5, lambda k: -1024.0)
    return Case("slope 0.5", "=", each(change, truth=truth))


VALUES = [
    own_rescale(), half_slope(),
    Case("unsigned 12 bits", "=", each(bits(-1024))),
    Case("unsigned 16 bits", "=", each(bits(-8192, 16))),
    Case("signed 12 bits, not sign-extended", "=", each(bits(0, 12, signed=True))),
    Case("overlay bits above unsigned pixels", "=", each(bits(-1024, high=0x8000))),
    Case("overlay bits above signed pixels", "=", each(bits(0, signed=True, high=0x5000))),
    Case("pixels in the upper 12 bits", "=E", each(bits(-1024, shift=4)), (ANY, "HighBit")),
    Case("32-bit pixels", "=E", each(wide), (ANY, "BitsAllocated")),
    Case("padding -2000, declared", "=", padding(-2000)),
    Case("padding -2000, not declared", "=", padding(-2000, declared=False)),
    Case("padding -2000, declared as US 63536", "=", padding(-2000, "US")),
    Case("padding among the values of tissue, declared", "=", padding(3000, intercept=0)),
    Case("padding up to a limit", "=", padding(2600, intercept=0, limit=2700)),
    Case("MONOCHROME1 is a display hint", "=", each(put(PhotometricInterpretation="MONOCHROME1"))),
    Case("no RescaleType", "=", each(put(RescaleType=None))),
    Case("no rescale at all", "E", each(put(RescaleSlope=None, RescaleIntercept=None)), (ANY, "Rescale(Slope|Intercept)")),
    Case("no slope", "E", each(put(RescaleSlope=None)), (ANY, "RescaleSlope")),
    Case("no intercept in one slice", "E", one(put(RescaleIntercept=None)), (THIRD, "RescaleIntercept")),
    Case("an empty slope", "E", one(put(RescaleSlope="")), (THIRD, "RescaleSlope")),
    Case("slope 0", "E", each(put(RescaleSlope="0")), (ANY, "RescaleSlope")),
    Case("a slope that is not a number", "E", one(put(RescaleSlope="NaN")), (THIRD, "RescaleSlope")),
    Case("RescaleType US", "EW", each(put(RescaleType="US")), ("RescaleType",)),
    Case("RescaleType Z_EFF in one slice", "E", one(put(RescaleType="Z_EFF")), (THIRD, "RescaleType")),
    Case("effective atomic numbers", "EW", each(put(RescaleType="Z_EFF", RescaleSlope="0.01", ImageType=["DERIVED", "SECONDARY", "AXIAL"])), ("RescaleType",)),
    Case("a lookup table in place of the rescale", "E", each(lookup), (ANY, "ModalityLUTSequence")),
]  # fmt: skip

CASES = [*GEOMETRY, *VALUES]
