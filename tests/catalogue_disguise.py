"""The catalogue's damage, part two: damage that looks like something else, and whole files that look damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from catalogue_damage import compressed, jpeg_lossless
from catalogue_folders import beside
from catalogue_scans import HU, LARGE, Case, Make, Truth, affine_of, at, each, one, put, save, store, then, write_scan
from catalogue_slices import ANY, LAST, THIRD, bits, without
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import EnhancedCTImageStorage, JPEG2000Lossless, JPEGLSLossless, RLELossless

PIXELS = b"\xe0\x7f\x10\x00"


# ---------------------------------------------------------------- streams that make decoders abort


def streams(compress: Callable[[Path, list[Path]], None], change: Callable[[bytes], bytes]) -> Make:
    """A compressed scan, of whose slice 3 the stream is changed; what encloses it says its new length."""

    def spoil(folder: Path, files: list[Path]) -> None:
        compress(folder, files)
        image = pydicom.dcmread(files[3])
        (stream,) = generate_frames(image.PixelData, number_of_frames=1)
        changed = change(stream)
        assert changed != stream
        image.PixelData = encapsulate([changed])
        save(image, files[3])

    return then(spoil, LARGE)


def at_marker(marker: bytes, offset: int, value: int) -> Callable[[bytes], bytes]:
    """Sets the byte so far behind the start of a JPEG marker."""

    def change(stream: bytes) -> bytes:
        place = stream.index(marker) + offset
        return stream[:place] + bytes([value]) + stream[place + 1 :]

    return change


def one_run_longer(stream: bytes) -> bytes:
    """The first segment of an RLE stream begins with a run of literals: says that it is one of a repeated value."""
    start = struct.unpack("<I", stream[4:8])[0]
    assert stream[start] < 128
    return stream[:start] + b"\x81" + stream[start + 1 :]


def fragment_shortened(folder: Path, files: list[Path]) -> None:
    """The compressed pixels of slice 3 lost bytes near their end, and their fragment still says its old length (PS3.5, A.4)."""
    compressed(JPEG2000Lossless)(folder, files)
    content = files[3].read_bytes()
    files[3].write_bytes(content[:-400] + content[-390:])


def wide(folder: Path) -> None:
    """Slices of 8192 x 8192 equal pixels, each in a few kilobytes."""
    files = write_scan(folder, LARGE.repeat(4, axis=0))
    image = pydicom.dcmread(files[0])
    image.Rows = image.Columns = 8192
    image.PixelData = bytes(2 * 8192 * 8192)
    image.compress(JPEGLSLossless, generate_instance_uid=False)
    stream = image["PixelData"]
    for file in files:
        image = pydicom.dcmread(file)
        image.Rows = image.Columns = 8192
        image["PixelData"] = stream
        image.file_meta.TransferSyntaxUID = JPEGLSLossless
        save(image, file)


STREAMS = [
    Case("JPEG-LS, another number of rows in its stream", "E", streams(compressed(JPEGLSLossless), at_marker(b"\xff\xf7", 6, 200)), (THIRD, "PixelData"), bounded=True),
    Case("JPEG-LS, no columns in its stream", "E", streams(compressed(JPEGLSLossless), at_marker(b"\xff\xf7", 8, 0)), (THIRD, "PixelData"), bounded=True),
    Case("JPEG-LS of 79 bits", "E", streams(compressed(JPEGLSLossless), at_marker(b"\xff\xf7", 4, 79)), (THIRD, "PixelData"), bounded=True),
    Case("JPEG Lossless of 169 bits", "E", streams(jpeg_lossless, at_marker(b"\xff\xc3", 4, 169)), (THIRD, "PixelData"), bounded=True),
    Case("JPEG Lossless without its Huffman tables", "E", streams(jpeg_lossless, at_marker(b"\xff\xc4", 1, 0xFF)), (THIRD, "PixelData"), bounded=True),
    Case("RLE, a byte lost", "E", streams(compressed(RLELossless), lambda s: s[:1500] + s[1501:]), (THIRD, "PixelData"), bounded=True),
    Case("RLE of too many pixels", "E", streams(compressed(RLELossless), one_run_longer), (THIRD, "PixelData"), bounded=True),
    Case("JPEG 2000, bytes lost in its fragment", "E", then(fragment_shortened, LARGE), (THIRD, "PixelData")),
    Case("24 slices of 8192 x 8192", "E", wide, (r"\d{3}\.dcm", "Rows or Columns"), bounded=True),
]  # fmt: skip


# ---------------------------------------------------------------- attributes of any type


def typed(vr: str, **attributes: object):
    """Sets attributes with a VR that is not theirs."""

    def change(image: Dataset, k: int) -> None:
        for keyword, value in attributes.items():
            put(**{keyword: None})(image, k)
            image.add_new(keyword, vr, value)

    return change


def groups_of_text(image: Dataset, k: int) -> None:
    image.SOPClassUID = EnhancedCTImageStorage
    typed("LO", SharedFunctionalGroupsSequence="abc")(image, k)


def twelve_bit_padding(image: Dataset, k: int) -> None:
    stored = HU[k].astype(int).clip(-1000, 1500) + 1024
    stored[:4] = 63536
    store(image, stored, 12)
    image.RescaleIntercept = "-1024"
    image.add_new("PixelPaddingValue", "US", 63536)


FOUR_ROWS_OF_AIR = HU.copy()
FOUR_ROWS_OF_AIR[:, :4] = -1024
PADDED_ROWS = np.zeros(HU.shape, bool)
PADDED_ROWS[:, :4] = True

ATTRIBUTES = [
    Case("an empty HighBit", "=", one(put(HighBit=""))),
    Case("an intercept of -40000", "=", each(bits(-40000, 16))),
    Case("a spacing of 1e-200", "E", each(put(PixelSpacing=["1e-200", "1e-200"])), (ANY, "spacing")),
    Case("a position of 1e300", "E", each(put(ImagePositionPatient=lambda k: ["1e300", "0", str(2.5 * k)])), (ANY,)),
    Case("a NumberOfFrames that is no number", "E", one(typed("LO", NumberOfFrames="abc")), (THIRD, "NumberOfFrames")),
    Case("a SamplesPerPixel that is no number", "E", one(typed("LO", SamplesPerPixel="abc")), (THIRD, "SamplesPerPixel")),
    Case("a ConvolutionKernel that is a number", "=", each(typed("US", ConvolutionKernel=3))),
    Case("a ConvolutionKernel that is a sequence", "=", each(typed("SQ", ConvolutionKernel=[]))),
    Case("an ImageType that is a number", "=E", one(typed("US", ImageType=3)), (THIRD,)),
    Case("a SOPClassUID that is a sequence", "E", one(typed("SQ", SOPClassUID=[])), (THIRD,)),
    Case("functional groups that are text", "E", one(groups_of_text), (THIRD, "damaged DICOM header")),
    Case("an AcquisitionNumber in every other slice", "=", each(put(AcquisitionNumber=lambda k: None if k % 2 else 1))),
    Case("a slope of 1e300", "E", each(put(RescaleSlope="1e300")), (ANY, "Rescale")),
    Case("values that rescale to 65000 HU", "E", each(lambda d, k: store(d, np.full(HU[k].shape, 65000))), (ANY, "Rescale")),
    Case("colours of a palette", "E", one(put(PhotometricInterpretation="PALETTE COLOR")), (THIRD, "PhotometricInterpretation")),
    Case("padding wider than its twelve bits", "=", each(twelve_bit_padding, truth=FOUR_ROWS_OF_AIR, padding=PADDED_ROWS)),
    Case("a description that names the deflated syntax", "=", each(put(DerivationDescription="was 1.2.840.10008.1.2.1.99"))),
]  # fmt: skip


# ---------------------------------------------------------------- damaged slices that hide


def of_last(change: Callable[[bytes], bytes]) -> Make:
    def spoil(folder: Path, files: list[Path]) -> None:
        content = files[-1].read_bytes()
        files[-1].write_bytes(change(content))
        assert files[-1].read_bytes() != content

    return then(spoil)


def value_of(tag: int, content: bytes) -> int:
    """Where the value of a short element of the data set begins."""
    return content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 300) + 8


def cut_in(tag: int, length: int) -> Make:
    """The last slice ends so many bytes into this value."""
    return of_last(lambda content: content[: value_of(tag, content) + length])


def letter(tag: int, n: int, new: bytes) -> Make:
    """One letter of a value in the last slice, another."""

    def change(content: bytes) -> bytes:
        place = value_of(tag, content) + n
        return content[:place] + new + content[place + 1 :]

    return of_last(change)


def moved(name: str, last: Callable[[bytes], bytes] = lambda b: b, **others: bytes) -> Make:
    """The slices under another name, {k} and all, the last of them changed; other files beside them."""

    def spoil(folder: Path, files: list[Path]) -> None:
        for k, file in enumerate(files):
            target = folder / name.format(k=k)
            target.parent.mkdir(exist_ok=True)
            content = file.read_bytes()
            file.unlink()
            target.write_bytes(last(content) if k == len(files) - 1 else content)
        for other, content in others.items():
            (folder / other).write_bytes(content)

    return then(spoil)


def inserted(count: int) -> Make:
    """So many bytes before the first pixel of slice 3."""

    def spoil(folder: Path, files: list[Path]) -> None:
        content = files[3].read_bytes()
        place = content.rindex(PIXELS) + 12
        files[3].write_bytes(content[:place] + b"\x01\x02\x03\x04"[:count] + content[place:])

    return then(spoil)


def followed_by(tail: bytes) -> Make:
    """Every slice with something behind its pixels."""
    return then(lambda _, files: [file.write_bytes(file.read_bytes() + tail) for file in files])


def thin(without_slices: tuple[int, ...], step: float, count=6) -> Make:
    """A scan in steps of a few tenths of a millimetre, as positions are rounded to, of which slices are missing."""

    def make(folder: Path) -> Truth:
        affine = affine_of((0, 0, step))
        without(*without_slices)(folder, write_scan(folder, HU[:count], affine))
        return Truth(HU[:count], affine)

    return make


def unregistered(image: Dataset) -> None:
    """A class that no standard knows, and that may be anything: so it is not told."""
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "2.25.77777"


TRAILING_PADDING = b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 16) + bytes(16)
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000)

HIDDEN = [
    Case("the last slice ends inside its SeriesInstanceUID", "E", cut_in(0x0020000E, 20), (LAST, "PixelData")),
    Case("the last slice ends inside its Modality", "E", cut_in(0x00080060, 1), (LAST, "Modality")),
    Case("a last slice of Modality CU", "E", letter(0x00080060, 1, b"U"), (LAST, "Modality")),
    Case("a last slice of a class one digit off", "E", letter(0x00080016, 10, b"9"), (LAST, "SOPClassUID")),
    Case("257 samples a pixel in the last slice", "E", one(put(SamplesPerPixel=257), 5), (LAST, "SamplesPerPixel")),
    Case("a folder a slice, the last of zero bytes", "E", moved("{k}/IM0000{k}", lambda b: b""), ("5/IM00005",)),
    Case("a folder a slice, the last cut off", "E", moved("{k}/IM0000{k}", lambda b: b[:420]), ("5/IM00005",)),
    Case("names without suffix, the last cut off", "E", moved("IM0000{k}", lambda b: b[:131]), ("IM00005",)),
    Case("names without suffix, the last all zeros", "E", moved("IM0000{k}", lambda b: bytes(len(b))), ("IM00005",)),
    Case("names without suffix beside other files", "W", moved("IM0000{k}", LOCKFILE=b"", README=b"hello", viewer=b"MZ" + bytes(500)), ("LOCKFILE", "README")),
    Case("a slice is missing between steps of 0.2 mm", "E", thin((3,), 0.2), (ANY, "ImagePositionPatient")),
    Case("one of five slices is missing between steps of 0.3 mm", "E", thin((2,), 0.3, 5), (ANY, "ImagePositionPatient")),
    Case("steps of 0.25 mm, rounded to tenths", "=", each(put(ImagePositionPatient=lambda k: at(round(100 + 0.25 * k, 1))), affine=affine_of((0, 0, 0.25)), tolerance_mm=0.15)),
    Case("four bytes before the first pixel", "E", inserted(4), (THIRD, "PixelData")),
    Case("one byte before the first pixel", "E", inserted(1), (THIRD, "PixelData")),
    Case("zeros behind the pixels", "=", followed_by(bytes(512))),
    Case("an element of padding behind the pixels", "=", followed_by(TRAILING_PADDING)),
    Case("what macOS keeps beside a file", "W", then(lambda folder, files: [(folder / f"._{f.name}").write_bytes(APPLE_DOUBLE) for f in files]), ("macOS",)),
    Case("a class that is not registered", "W", beside("odd.dcm", unregistered), (r"odd\.dcm", "SOPClassUID is unknown")),
    Case("a damaged zip archive beside the scan", "W", then(lambda folder, _: (folder / "b.zip").write_bytes(b"PK\3\4aaaa")), (r"b\.zip",)),
]  # fmt: skip

CASES = [*STREAMS, *ATTRIBUTES, *HIDDEN]
