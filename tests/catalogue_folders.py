"""The catalogue's folders: what lies beside a scan, multi-frame objects, links, odd names, zip archives."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from catalogue_damage import GIB, bomb
from catalogue_scans import AXIAL, HU, Case, Truth, affine_of, at, put, save, series_uid, then, write_scan
from catalogue_slices import ANY
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

OTHER_HU = np.random.default_rng(2).integers(-1000, 1500, HU.shape).astype(np.int16)


# ---------------------------------------------------------------- beside the scan


def beside(name: str, change: Callable[[Dataset], object], own_series=True):
    """One more DICOM object: a slice of the scan, changed."""

    def spoil(folder: Path, files: list[Path]) -> None:
        image = pydicom.dcmread(files[2])
        image.SOPInstanceUID += "7"
        if own_series:
            image.SeriesInstanceUID = series_uid(folder, name)
        change(image)
        save(image, folder / name)

    return then(spoil)


def localizer(image: Dataset) -> None:
    image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    image.ImageOrientationPatient, image.ImagePositionPatient = ["1", "0", "0", "0", "0", "-1"], at(300)


def report(image: Dataset) -> None:
    image.SOPClassUID, image.Modality = BasicTextSRStorage, "SR"
    for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(image, keyword)
    image.ValueType, image.CompletionFlag, image.VerificationFlag = "CONTAINER", "COMPLETE", "UNVERIFIED"


def dose_page(image: Dataset) -> None:
    image.SOPClassUID, image.ImageType = SecondaryCaptureImageStorage, ["DERIVED", "SECONDARY", "OTHER", "DOSE_INFO"]
    image.BurnedInAnnotation = "YES"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(image, keyword)


def colour_screen(image: Dataset) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = bytes(image.Rows * image.Columns * 3)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(image, keyword)


def perfusion_slice(image: Dataset) -> None:
    image.ImageType = ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]


def burned_in(image: Dataset) -> None:
    image.BurnedInAnnotation, image.SOPClassUID = "YES", SecondaryCaptureImageStorage


def magnetic_resonance(image: Dataset) -> None:
    image.Modality, image.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"


def foreign_files(folder: Path, files: list[Path]) -> None:
    for name, content in {
        "report.pdf": b"%PDF-1.7\n" + bytes(300), "export.xml": b"<a/>", "Thumbs.db": b"\xd0\xcf\x11\xe0" * 99, ".DS_Store": b"\0\0\0\1Bud1",
        "README.TXT": b"hello", "viewer.exe": b"MZ" + bytes(500), "autorun.inf": b"[autorun]",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)


def directory(folder: Path, files: list[Path]) -> None:
    index = Dataset()
    index.file_meta = pydicom.dcmread(files[0]).file_meta
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.FileSetID, index.FileSetConsistencyFlag, index.DirectoryRecordSequence = "CANARY", 0, []
    save(index, folder / "DICOMDIR")


def pipe(folder: Path, files: list[Path]) -> None:
    os.mkfifo(folder / "events")


def two_series(folder: Path) -> Truth:
    affine = affine_of(origin=(-30, -40, 102))
    write_scan(folder)
    write_scan(folder, OTHER_HU, affine, put(SeriesNumber=2), what="second")
    return Truth(HU, AXIAL, other=Truth(OTHER_HU, affine))


# ---------------------------------------------------------------- multi-frame


def enhanced(order=range(6), mm: Callable[[int], float] = lambda k: 100 + 2.5 * k, frame_type=("ORIGINAL", "PRIMARY", "VOLUME", "NONE"),
             rescale_type="HU", sop_class=EnhancedCTImageStorage, own_slopes=False, keep: int | None = None, scan=False):  # fmt: skip
    """One multi-frame CT object (PS3.3, A.38) with the slices in this order; scan: beside a plain series.

    own_slopes: each frame has its own rescale. keep: bytes of PixelData that are left.
    """

    def make(folder: Path) -> Truth:
        files = write_scan(folder)
        image = pydicom.dcmread(files[0])
        slope = [1 + k % 2 if own_slopes else 1 for k in range(len(HU))]
        frames = [np.rint(HU[k].astype(float) / slope[k]).astype(np.int16) for k in range(len(HU))]
        image.SOPClassUID, image.ImageType, image.NumberOfFrames = sop_class, list(frame_type), len(order)
        image.file_meta.MediaStorageSOPClassUID = sop_class
        image.SOPInstanceUID += "8"
        shared, measures, orientation, kind = Dataset(), Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, "2.5"
        orientation.ImageOrientationPatient = image.ImageOrientationPatient
        kind.FrameType = list(frame_type)
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence, shared.CTImageFrameTypeSequence = [measures], [orientation], [kind]
        image.SharedFunctionalGroupsSequence = [shared]
        image.PerFrameFunctionalGroupsSequence = [_frame(n, mm(k), slope[k], rescale_type) for n, k in enumerate(order)]
        image.PixelData = b"".join(frames[k].tobytes() for k in order)[:keep]
        for keyword in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "RescaleSlope",
            "RescaleIntercept",
            "RescaleType",
        ):
            delattr(image, keyword)
        if scan:
            image.SeriesInstanceUID = series_uid(folder, "enhanced")
        else:
            for file in files:
                file.unlink()
        save(image, folder / "enhanced.dcm")
        return Truth(HU if scan else np.stack([frames[k] * slope[k] for k in range(len(HU))]).astype(np.int16), AXIAL)

    return make


PERFUSION = ("DERIVED", "PRIMARY", "PERFUSION", "RCBF")


def _frame(n: int, mm: float, slope: float, rescale_type: str) -> Dataset:
    frame, position, value, content = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = at(mm)
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = str(slope), "0", rescale_type
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", n + 1, [1, n + 1]
    frame.PlanePositionSequence, frame.PixelValueTransformationSequence, frame.FrameContentSequence = [position], [value], [content]
    return frame


# ---------------------------------------------------------------- links, names, archives


def loop(folder: Path, files: list[Path]) -> None:
    (folder / "again").symlink_to(folder, target_is_directory=True)
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to("..", target_is_directory=True)


def linked(folder: Path) -> Truth:
    write_scan(folder, within="store")
    (folder / "in").mkdir()
    (folder / "in" / "link").symlink_to("../store", target_is_directory=True)
    return Truth(HU, AXIAL)


def linked_files(folder: Path) -> Truth:
    (folder / "in").mkdir()
    for file in write_scan(folder, within="store"):
        (folder / "in" / file.name).symlink_to(f"../store/{file.name}")
    return Truth(HU, AXIAL)


def renamed(name: Callable[[int], str]):
    def spoil(folder: Path, files: list[Path]) -> None:
        for k, file in enumerate(files):
            target = folder / name(k)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)

    return then(spoil)


def zipped(name: Callable[[Path], str] = lambda f: f.name, spoil: Callable[[Path], object] = lambda archive: None, extra: bool = False):
    """The scan in an archive, and nothing beside it; extra: a foreign file too."""

    def pack(folder: Path, files: list[Path]) -> None:
        archive = folder / f"{folder.name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for file in files:
                out.writestr(name(file), file.read_bytes())
                file.unlink()
            if extra:
                out.writestr("report.pdf", b"%PDF" + bytes(300))
        spoil(archive)

    return then(pack)


def damaged(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[:4000] + bytes(8) + content[4008:])


def encrypted(archive: Path) -> None:
    """Sets the flag that members are encrypted, in their own headers and in the directory."""
    content = bytearray(archive.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(mark, place + 4)
    archive.write_bytes(content)


def claiming(size: int):
    """An archive of one slice whose stream unpacks to 3 GiB and that claims `size` bytes."""

    def spoil(archive: Path) -> None:
        member, packed = b"006.dcm", bomb(3 * GIB)
        about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), size, len(member), 0)
        local = b"PK\3\4" + about + member + packed
        entry = b"PK\1\2" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, 0) + member
        archive.write_bytes(local + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0))

    return spoil


ZIP = "{name}.zip"

CASES = [
    Case("a localizer in its own series", "W", beside("scout.dcm", localizer), (r"scout\.dcm", "(?i)localizer")),
    Case("a localizer in the scan's series", "W", beside("scout.dcm", localizer, own_series=False), (r"scout\.dcm", "(?i)localizer")),
    Case("two CT series", "=E", two_series, ("2 series",)),
    Case("foreign files", "W", then(foreign_files), (r"report\.pdf",)),
    Case("a DICOMDIR", "=", then(directory)),
    Case("a structured report", "W", beside("sr.dcm", report), (r"sr\.dcm", "Modality|SR|report")),
    Case("a dose page", "W", beside("dose.dcm", dose_page), (r"dose\.dcm", "BurnedInAnnotation|Secondary|SOPClassUID")),
    Case("a colour screen", "W", beside("screen.dcm", colour_screen), (r"screen\.dcm", "SamplesPerPixel|colour")),
    Case("a colour screen in the scan's series", "W", beside("screen.dcm", colour_screen, own_series=False), (r"screen\.dcm", "SamplesPerPixel|colour")),
    Case("a perfusion map beside the scan", "W", beside("rcbf.dcm", perfusion_slice), (r"rcbf\.dcm", "(?i)perfusion")),
    Case("a picture with text burned in", "W", beside("key.dcm", burned_in), (r"key\.dcm", "BurnedInAnnotation|Secondary")),
    Case("an MR image", "W", beside("mr.dcm", magnetic_resonance), (r"mr\.dcm", "Modality")),
    Case("a pipe in the folder", "=E", then(pipe), ("events",)),
    Case("multi-frame", "=", enhanced()),
    Case("multi-frame, frames out of order", "=", enhanced([3, 0, 5, 1, 4, 2])),
    Case("multi-frame, a rescale per frame", "=", enhanced(own_slopes=True)),
    Case("multi-frame, converted from single slices", "=E", enhanced(sop_class=LegacyConvertedEnhancedCTImageStorage), (r"enhanced\.dcm",)),
    Case("multi-frame with a gap", "E", enhanced([0, 1, 3, 4, 5]), (r"enhanced\.dcm", "ImagePositionPatient")),
    Case("multi-frame, two frames at one position", "E", enhanced(mm=lambda k: 100 + 2.5 * (k // 2)), (r"enhanced\.dcm", "ImagePositionPatient")),
    Case("multi-frame, pixels cut off", "E", enhanced(keep=4000), (r"enhanced\.dcm", "PixelData")),
    Case("multi-frame of one frame", "E", enhanced([0]), (r"enhanced\.dcm",)),
    Case("multi-frame, not in HU", "EW", enhanced(rescale_type="US"), ("RescaleType",)),
    Case("a multi-frame perfusion map", "EW", enhanced(frame_type=PERFUSION), ("(?i)perfusion|ImageType",)),
    Case("a multi-frame perfusion map beside the scan", "W", enhanced(frame_type=PERFUSION, scan=True), (r"enhanced\.dcm", "(?i)perfusion|ImageType")),
    Case("links that lead round in circles", "=", then(loop)),
    Case("a link to nowhere", "=E", then(lambda folder, _: (folder / "006.dcm").symlink_to("gone")), (r"006\.dcm",)),
    Case("a linked folder", "=", linked, source="in"),
    Case("linked files", "=", linked_files, source="in"),
    Case("names in other scripts", "=", renamed(lambda k: f"Größe 日本 {k}.dcm")),
    Case("names that are no text", "=", renamed(lambda k: os.fsdecode(b"\xff\xfe%d.dcm" % k))),
    Case("names without suffix, a folder a slice", "=", renamed(lambda k: f"{k}/IM{k:06d}")),
    Case("names with quotes, spaces, formulas and a leading minus", "=", renamed(lambda k: f"-rf 'a' \"$(x)\" =1+1;{k}.dcm")),
    Case("a zip archive", "=", zipped(), source=ZIP, kind="zip"),
    Case("a zip archive in a folder", "=", zipped(), kind="zip"),
    Case("a zip archive with a foreign file", "W", zipped(extra=True), (r"report\.pdf",), source=ZIP, kind="zip"),
    Case("folders in a zip archive", "=", zipped(lambda f: f"a/{f.stem}/Größe/{f.name}"), source=ZIP, kind="zip"),
    Case("a zip archive with ../ in its names", "=", zipped(lambda f: f"../../evil/{f.name}"), source=ZIP, kind="zip"),
    Case("a zip archive with absolute names", "=", zipped(lambda f: f"/tmp/evil/{f.name}"), source=ZIP, kind="zip"),
    Case("an encrypted zip archive", "E", zipped(spoil=encrypted), ("(?i)encrypted",), source=ZIP, kind="zip"),
    Case("a zip archive cut off", "E", zipped(spoil=lambda a: a.write_bytes(a.read_bytes()[:-200])), (r"\.zip",), source=ZIP, kind="zip"),
    Case("a zip archive with a damaged member", "E", zipped(spoil=damaged), (ANY,), source=ZIP, kind="zip"),
    Case("an empty file called .zip", "E", zipped(spoil=lambda a: a.write_bytes(b"")), (r"\.zip",), source=ZIP, kind="zip"),
    Case("a zip bomb that owns up", "E", zipped(spoil=claiming(3 * GIB)), (r"\.zip",), source=ZIP, kind="zip", bounded=True),
    Case("a zip bomb that claims less", "E", zipped(spoil=claiming(4000)), (r"\.zip",), source=ZIP, kind="zip", bounded=True),
]  # fmt: skip
