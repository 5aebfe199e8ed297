"""Identifiers planted in input, so that a leak names where it came from, the search that finds them in any output, and a watch on the network.

Every planted word begins with "Canary" and goes on with its place; every UID lies under UID_ROOT; dates, times and
numbers stand in NUMBERS. So a handful of stems finds them all, and their neighbourhood says which it was.
"""

from __future__ import annotations

import base64
import functools
import gzip
import io
import os
import re
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

UID_ROOT = "1.2.826.0.1.3680043.10.4242"
NUMBERS = {
    "19431207": "PatientBirthDate", "19971103": "StudyDate", "19980214": "SeriesDate", "19990816": "AcquisitionDate",
    "19960523": "private date", "19951130": "date in a sequence", "19940709": "date in a list", "19930418": "date in a name",
    "235948.181": "StudyTime", "235937.272": "SeriesTime", "90817263544536": "numeric PatientID",
}  # fmt: skip
_WORDS = (
    "PatientName", "PatientBirthName", "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "OtherPatientIDs",
    "MedicalRecordLocator", "EthnicGroup", "Occupation", "AdditionalPatientHistory", "AdmissionID", "IssuerOfPatientID",
    "AccessionNumber", "StudyID", "InstitutionAddress", "InstitutionalDepartmentName", "ReferringPhysicianName",
    "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "StationName", "DeviceSerialNumber", "StudyDescription",
    "SeriesDescription", "ProtocolName", "ImageComments", "RequestedProcedureDescription", "SoftwareVersions", "ContrastBolusAgent",
    "PositionReferenceIndicator",
)  # fmt: skip


def plant(file: Path, series: int, *, patient_id: str | None = None, **changes: object) -> None:
    """Fills a DICOM file with canaries: standard and private tags, nested ones, the preamble. series: a number for its UIDs.

    Its model and kernel repeat the patient's name or birth date and the institution, as free text can. changes: keyword -> another value.
    """
    image = pydicom.dcmread(file)
    for keyword in _WORDS:
        kind = dictionary_VR(keyword)
        setattr(image, keyword, f"Canary{keyword}"[: 16 if kind == "SH" else 60] + "^Zelda" * (kind == "PN"))
    image.PatientID = f"CanaryPatientID{series}" if patient_id is None else patient_id
    image.ManufacturerModelName = "CT CanaryPatientName" if series % 2 else "CT 1943-12-07"
    image.ConvolutionKernel = "CanaryInst"
    image.InstitutionName = "CanaryInst Clinic"
    image.PatientBirthDate, image.StudyDate, image.SeriesDate, image.AcquisitionDate = "19431207", "19971103", "19980214", "19990816"
    image.StudyTime, image.SeriesTime, image.AcquisitionDateTime = "235948.181", "235937.272", "19990816235948.181"
    image.StudyInstanceUID, image.SeriesInstanceUID = (f"{UID_ROOT}.{series}.{what}" for what in (1, 2))
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{UID_ROOT}.{series}.3.{image.InstanceNumber}"
    image.FrameOfReferenceUID = f"{UID_ROOT}.{series}.4"
    request, code = Dataset(), Dataset()
    request.RequestedProcedureID, request.ScheduledProcedureStepDescription = "CanaryRequestID", "CanaryStepDescription"
    request.ScheduledProcedureStepStartDate = "19951130"
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CanaryCode", "99CANARY", "CanaryCodeMeaning"
    request.RequestedProcedureCodeSequence = [code]
    image.RequestAttributesSequence = [request]
    _plant_private(image, series)
    image.file_meta.SourceApplicationEntityTitle = "CANARYAETITLE"
    image.preamble = b"CanaryPreamble".ljust(128, b"\0")
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    image.save_as(file, enforce_file_format=True)


def _plant_private(image: Dataset, series: int) -> None:
    block, inner = image.private_block(0x0029, "CANARYCREATOR", create=True), Dataset()
    for offset, (vr, value) in enumerate(
        [("LO", "CanaryPrivateLO"), ("PN", "CanaryPrivatePN^Zelda"), ("UT", "CanaryPrivateUT " * 9), ("UN", b"CanaryPrivateUN "),
         ("OB", b"CanaryPrivateOB "), ("DA", "19960523"), ("UI", f"{UID_ROOT}.{series}.5")]
    ):  # fmt: skip
        block.add_new(offset, vr, value)
        inner.private_block(0x0031, "CANARYNESTED", create=True).add_new(offset, vr, value)
    block.add_new(0x40, "SQ", [inner])


STEMS = ("Canary", UID_ROOT, *NUMBERS)


class Patterns(NamedTuple):
    """Bytes to look for: those of `folded` in lower-cased content, those of `exact` in the content as it is."""

    folded: frozenset[bytes]
    exact: frozenset[bytes]


def patterns(secrets: Iterable[str] = ()) -> Patterns:
    """The stems and `secrets` in the ways in which files hold text: UTF-8, UTF-16, UTF-32 (as NumPy), hexadecimal, base64; dates and times also with separators."""
    folded, exact = set(), set()
    for stem in (*STEMS, *secrets):
        for spelling in _spellings(stem.lower()):
            folded |= {spelling.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")}
        folded.add(stem.encode().hex().encode())
        for spelling in {stem, stem.lower(), stem.upper()}:
            folded.add(spelling.encode().hex().encode())
            exact |= set(_base64(spelling.encode())) | set(_base64(spelling.encode("utf-16-le")))
    return Patterns(frozenset(folded), frozenset(exact))


def _spellings(stem: str) -> Iterator[str]:
    yield stem
    if re.fullmatch(r"\d{8}", stem):
        year, month, day = stem[:4], stem[4:6], stem[6:]
        for separator in "-./_":
            yield from (separator.join(parts) for parts in ((year, month, day), (day, month, year), (month, day, year)))
    elif re.fullmatch(r"\d{6}\.\d+", stem):
        yield f"{stem[:2]}:{stem[2:4]}:{stem[4:]}"


def _base64(plain: bytes) -> Iterator[bytes]:
    """Its base64 at each of the three alignments, without the digits that its neighbours share."""
    for lead in range(3):
        coded = base64.b64encode(b"\0" * lead + plain).rstrip(b"=")
        yield coded[(0, 2, 3)[lead] : len(coded) - ((lead + len(plain)) % 3 > 0)]


def leaks_in(content: bytes, wanted: Patterns) -> list[str]:
    """What is found in some bytes, or in what they are a packed form of, each with its neighbourhood."""
    found = []
    for layer in _layers(content):
        lower = layer.lower()
        places = [*(lower.find(pattern) for pattern in wanted.folded), *(layer.find(pattern) for pattern in wanted.exact)]
        found += [repr(layer[max(at - 20, 0) : at + 60]) for at in sorted({at for at in places if at >= 0})]
    return found


def _layers(content: bytes) -> Iterator[bytes]:
    """The bytes, and what lies packed in them: gzip, zip (so npz), PNG text, pictures and data inside HTML."""
    yield content
    if content[:2] == b"\x1f\x8b":
        yield from _layers(gzip.decompress(content))  # names and comments of its header are plain to see
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                yield from _layers(archive.read(member))
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        while at < len(content):
            length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
            body = content[at + 8 : at + 8 + length]
            if kind in (b"zTXt", b"iTXt", b"iCCP") and (packed := re.search(rb"\x78[\x01\x5e\x9c\xda].*", body, re.DOTALL)):
                yield zlib.decompressobj().decompress(packed[0])
            at += 12 + length
    elif b"base64," in content:
        for data in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
            yield from _layers(base64.b64decode(data))


def leaks(folder: Path, secrets: Iterable[str] = ()) -> list[str]:
    """What of the planted, or of `secrets`, is in a folder: in names, in what links point to, in any byte of any file."""
    wanted = patterns(secrets)
    found, files = [], 0
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        told = f"{name} -> {os.readlink(path)}" if path.is_symlink() else name
        found += [f"name {told}: {leak}" for leak in leaks_in(told.encode("utf-8", "surrogateescape"), wanted)]
        if path.is_file() and not path.is_symlink():
            files += 1
            found += [f"{name}: {leak}" for leak in leaks_in(path.read_bytes(), wanted)]
    assert files, f"{folder} holds no file to search"
    return found


ASKED: list[str] = []
"""Other machines that Python code of this process has looked up, connected or sent to, once `watch_network` was called."""


@functools.cache
def watch_network() -> None:
    """From now on, and for good: such a hook cannot be taken away. What a library does in C, or in a process of its own, it does not see."""
    sys.addaudithook(_note)


def _note(event: str, arguments: tuple) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # otherwise a socket in the file system
    else:
        return
    if host and host not in ("localhost", "127.0.0.1", "::1"):
        ASKED.append(f"{event} {host}")


def die_over_a_copy(folder: Path) -> None:
    """What a worker does when SIGTERM comes while a scan is unpacked: never comes back."""
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        (Path(copy) / "CanaryCopy.mha").write_bytes(b"")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
