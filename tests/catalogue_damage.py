"""The catalogue's DICOM series, part two: their encodings, damage and hostility."""

from __future__ import annotations

import zlib
from pathlib import Path

import pydicom
from catalogue_scans import LARGE, Case, each, one, put, save, then
from catalogue_slices import ANY, LAST, THIRD
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

GIB = 1 << 30


# ---------------------------------------------------------------- encodings


def compressed(syntax: str):
    def spoil(folder: Path, files: list[Path]) -> None:
        for file in files:
            image = pydicom.dcmread(file)
            image.compress(syntax, generate_instance_uid=False)
            save(image, file)

    return spoil


def jpeg_lossless(folder: Path, files: list[Path]) -> None:
    import gdcm

    for file in files:
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(file))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()


def recoded(syntax: str):
    def spoil(folder: Path, files: list[Path]) -> None:
        for file in files:
            image = pydicom.dcmread(file)
            meta, pixels = image.file_meta, image.pixel_array
            plain = Dataset()  # a data set that was read keeps its byte order
            for element in image:
                plain.add(element)
            plain.file_meta, plain.preamble = meta, bytes(128)
            meta.TransferSyntaxUID = UID(syntax)
            if syntax == ExplicitVRBigEndian:
                plain.PixelData = pixels.astype(">i2").tobytes()
            save(plain, file)

    return spoil


def mixed_encodings(folder: Path, files: list[Path]) -> None:
    for n, spoil in enumerate([compressed(RLELossless), compressed(JPEG2000Lossless), jpeg_lossless, compressed(JPEGLSLossless)]):
        spoil(folder, [files[n]])
    recoded(ImplicitVRLittleEndian)(folder, [files[4]])


def relabelled(folder: Path, files: list[Path]) -> None:
    """One transfer syntax written over another of the same length, so that all else stays."""
    for file in files:
        content = file.read_bytes()
        assert content.count(b"1.2.840.10008.1.2.1\0") == 1
        file.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"))


ENCODINGS = [
    Case("JPEG Lossless", "=", then(jpeg_lossless, LARGE)),
    Case("JPEG-LS", "=", then(compressed(JPEGLSLossless), LARGE)),
    Case("JPEG 2000", "=", then(compressed(JPEG2000Lossless), LARGE)),
    Case("RLE", "=", then(compressed(RLELossless), LARGE)),
    Case("deflated", "=", then(recoded(DeflatedExplicitVRLittleEndian))),
    Case("big-endian", "=", then(recoded(ExplicitVRBigEndian))),
    Case("implicit VR", "=", then(recoded(ImplicitVRLittleEndian))),
    Case("five encodings in one series", "=", then(mixed_encodings, LARGE)),
    Case("an unknown transfer syntax", "E", then(relabelled), (ANY, "(?i)TransferSyntaxUID|transfer syntax")),
]


# ---------------------------------------------------------------- damage and hostility


def cut_at(size: int, k: int):
    return then(lambda folder, files: files[k].write_bytes(files[k].read_bytes()[:size]))


def less(size: int, k: int):
    return then(lambda folder, files: files[k].write_bytes(files[k].read_bytes()[:-size]))


def compressed_then_cut(folder: Path, files: list[Path]) -> None:
    compressed(RLELossless)(folder, files)
    files[5].write_bytes(files[5].read_bytes()[:-1500])


def bare(only: int | None = None):
    """No preamble, no file meta, so no word of the transfer syntax."""

    def spoil(folder: Path, files: list[Path]) -> None:
        for file in files if only is None else [files[only]]:
            image = pydicom.dcmread(file)
            content = file.read_bytes()
            file.write_bytes(content[144 + image.file_meta.FileMetaInformationGroupLength :])

    return spoil


def unlabelled(folder: Path, files: list[Path]) -> None:
    for file in files:
        image = pydicom.dcmread(file)
        del image.file_meta.TransferSyntaxUID
        save(image, file, implicit_vr=False, little_endian=True)


def bomb(total: int, head: bytes = b"") -> bytes:
    """A raw deflate stream of `head` and then `total` bytes of zero, a thousandth of that in size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # each flush forgets what was: blocks can be repeated
    return start + block * (total >> 20) + packer.flush(zlib.Z_FINISH)


def deflate_bomb(k: int):
    def spoil(folder: Path, files: list[Path]) -> None:
        image = pydicom.dcmread(files[k])
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        del image.PixelData
        save(image, files[k])
        content = files[k].read_bytes()
        end = 144 + pydicom.dcmread(files[k], stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
        dataset = zlib.decompressobj(-15).decompress(content[end:])
        pixels = b"\xe0\x7f\x10\x00OW\0\0" + (3 * GIB).to_bytes(4, "little")
        files[k].write_bytes(content[:end] + bomb(3 * GIB, dataset + pixels))

    return spoil


def stream_claiming(side: int):
    """Of the last slice the JPEG 2000 stream says that it has side x side pixels (ISO/IEC 15444-1, A.5.1), in one tile."""

    def spoil(folder: Path, files: list[Path]) -> None:
        compressed(JPEG2000Lossless)(folder, files)
        content = bytearray(files[-1].read_bytes())
        size = content.index(b"\xff\x4f\xff\x51") + 8
        for place in (size, size + 4, size + 16, size + 20):
            content[place : place + 4] = side.to_bytes(4, "big")
        files[-1].write_bytes(content)

    return spoil


def hostile(image: Dataset, k: int) -> None:
    image.PatientName, image.PatientID = '=cmd|"/C calc"!A0', "../../../Canary"
    image.SeriesDescription, image.StudyID = "$(touch pwned); `touch pwned`", "../../pwned"
    image.StudyDescription, image.PatientComments = "\x1b[2J<script>alert(1)</script>\r\n", "@SUM(1+1)\t'; DROP TABLE"


def long_numbers(image: Dataset, k: int) -> None:
    image.ImagePositionPatient = [f"{mm:.20f}" for mm in (-30, -40, 100 + 2.5 * k)]
    image.RescaleIntercept = f"{0:.20f}"


def private(image: Dataset, k: int) -> None:
    block = image.private_block(0x0029, "CANARY VENDOR", create=True)
    block.add_new(0x10, "LO", "Canary^Zelda")
    block.add_new(0x20, "OB", b"Canary" * 100)


DAMAGE = [
    *(Case(f"the last slice cut off after {n} bytes", "E", cut_at(n, 5), (LAST,)) for n in (0, 1, 100, 131, 132, 140, 200, 420, 900)),
    *(Case(f"a middle slice cut off after {n} bytes", "E", cut_at(n, 3), (r"00[234]\.dcm",)) for n in (0, 131, 200, 420, 900)),
    Case("the first slice cut off after 200 bytes", "E", cut_at(200, 0), (r"000\.dcm",)),
    Case("the last slice's pixels are cut off", "E", less(100, 5), (LAST, "PixelData")),
    Case("a middle slice's pixels are cut off", "E", less(900, 3), (THIRD, "PixelData")),
    Case("the last slice lost all its pixels", "E", one(put(PixelData=None), 5), (LAST, "PixelData")),
    Case("short PixelData", "E", one(lambda d, k: setattr(d, "PixelData", d.PixelData[:-48])), (THIRD, "PixelData")),
    Case("long PixelData", "=E", one(lambda d, k: setattr(d, "PixelData", d.PixelData + bytes(48))), (THIRD, "PixelData")),
    Case("compressed pixels cut off", "E", then(compressed_then_cut, LARGE), (LAST, "PixelData")),
    Case("an empty .dcm beside the scan", "E", then(lambda folder, _: (folder / "006.dcm").touch()), (r"006\.dcm",)),
    Case("Rows and Columns 65535", "E", each(put(Rows=65535, Columns=65535)), (ANY, "PixelData|Rows"), bounded=True),
    Case("Rows 65535 in one slice", "E", one(put(Rows=65535)), (ANY, "Rows")),
    Case("Rows 0", "E", each(put(Rows=0)), (ANY, "Rows")),
    Case("no Rows in the last slice", "E", one(put(Rows=None), 5), (LAST, "Rows")),
    Case("a deflate bomb for a last slice", "E", then(deflate_bomb(5)), (LAST,), bounded=True),
    Case("a JPEG 2000 stream that claims 50000 x 50000", "E", then(stream_claiming(50000), LARGE), (LAST, "PixelData"), bounded=True),
    Case("no preamble, no file meta", "=E", then(bare()), (ANY,)),
    Case("no preamble in the last slice", "=E", then(bare(5)), (LAST,)),
    Case("no transfer syntax", "=E", then(unlabelled), (ANY, "(?i)TransferSyntaxUID|transfer syntax")),
    Case("no SeriesInstanceUID in the last slice", "E", one(put(SeriesInstanceUID=None), 5), (LAST, "SeriesInstanceUID")),
    Case("no Modality in the last slice", "E", one(put(Modality=None), 5), (LAST, "Modality")),
    Case("numbers longer than DS allows", "=", each(long_numbers)),
    Case("an IS that reads 12.0", "=", each(put(InstanceNumber=lambda k: f"{k + 1}.0", AcquisitionNumber="12.0"))),
    Case("an unknown character set", "=", each(put(SpecificCharacterSet="ISO_IR 999", PatientName=b"Canary\xe4\xff"))),
    Case("an undeclared character set", "=", each(put(SpecificCharacterSet=None, PatientName="Canary Jürgen 日本".encode()))),
    Case("hostile text in tags", "=", each(hostile)),
    Case("text burned into every slice", "EW", each(put(BurnedInAnnotation="YES")), ("BurnedInAnnotation",)),
    Case("private tags", "=", each(private)),
    Case("no frame of reference", "=", each(put(FrameOfReferenceUID=None))),
]  # fmt: skip

CASES = [*ENCODINGS, *DAMAGE]
