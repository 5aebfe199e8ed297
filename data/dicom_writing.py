"""Synthetic CT images as DICOM that real clients accept, and that say they are synthetic.

CT Image Storage (PS3.3, A.3) with every Type 1 and 2 attribute of its mandatory modules, and
Synthetic Data (0008,001C) = YES (C.12.1). HU are stored as signed 16-bit values with slope 1 and
intercept 0. Nothing depends on the clock: the same arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

_ROOT = uuid.UUID("6a1f4c3e-5d0b-5b7a-9a51-1e5109a40000")
_PREAMBLE = bytes(128) + b"DICM"
_GROUP_LENGTH, _IMAGE_UID_OF_META, _PIXELS = 0x00020000, 0x00020003, 0x7FE00010

Encoded = Mapping[int, bytes]
"""Elements by tag, as a file holds them: explicit VR little endian (PS3.5, 7.1.2)."""


@dataclass(frozen=True)
class Subject:
    """Whom and what the images show: one synthetic patient, one study of them, and the tool that made it.

    key: what the UIDs follow from; the same key and pixels give the same UIDs.
    model: the tool's model or generator, at most 64 characters (a SHA-256 fits).
    window: the HU range a viewer shows first. into: what synthetic lesions were set into, such as "an acquired CT"; empty where every
    pixel was generated.
    """

    key: str
    name: str
    patient_id: str
    description: str
    model: str
    version: str
    window: tuple[float, float]
    into: str = ""


def in_words(anatomy: str) -> str:
    """Subject.into of lesions that were set into anatomy of this origin."""
    return "a procedural CT phantom" if anatomy == "phantom" else "an acquired CT"


def uid_from(*parts: str) -> UID:
    """A UID that follows from the parts alone: a UUID (version 5) under 2.25 (PS3.5, B.2)."""
    return UID(f"2.25.{uuid.uuid5(_ROOT, chr(31).join(parts)).int}")


def write_series(
    hu: np.ndarray, affine: np.ndarray, subject: Subject, files: list[Path], *, single_image: bool = False, thickness_mm: float | None = None
) -> UID:  # fmt: skip
    """Writes int16 HU (K, J, I) as one series of K axial CT images, one file each; returns its series UID.

    affine: (4, 4) from index k, j, i to LPS mm (see volume.py). single_image: the slice's thickness is unknown and left empty.
    thickness_mm: of a slice, where that is not the step to the next. Raises ValueError when files and slices differ in number.
    """
    if hu.dtype != np.int16 or hu.ndim != 3 or len(files) != len(hu):
        raise ValueError(f"{hu.dtype}{hu.shape} HU for {len(files)} files; want int16 (K, J, I) and K files")
    digest = hashlib.sha256(np.ascontiguousarray(hu).tobytes() + affine.tobytes()).hexdigest()
    series_uid = uid_from(subject.key, digest, "series")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    shared = {
        **_of_all_alike(
            subject.description, subject.model, subject.version, subject.window, subject.into, hu.shape[1:],
            thickness=None if single_image else ds(thickness_mm or steps[0]), pixel_spacing=(ds(steps[1]), ds(steps[2])),
            orientation=tuple(ds(c) for c in [*affine[:3, 2] / steps[2], *affine[:3, 1] / steps[1]]),
        ),
        **_texts(
            PatientName=subject.name, PatientID=subject.patient_id, StudyInstanceUID=uid_from(subject.key, digest, "study"),
            SeriesInstanceUID=series_uid, FrameOfReferenceUID=uid_from(subject.key, digest, "frame"),
        ),
    }  # fmt: skip
    for k, file in enumerate(files):
        position = affine[:3, 3] + k * affine[:3, 0]
        image_uid = uid_from(subject.key, digest, f"image {k}")
        of_image = _texts(SOPInstanceUID=image_uid, InstanceNumber=str(k + 1), ImagePositionPatient="\\".join(map(ds, position)))
        file.write_bytes(_file_meta(image_uid) + _joined({**shared, **of_image, _PIXELS: _pixels(hu[k])}))
    return series_uid


def ds(number: float) -> str:
    """A decimal string of at most 16 characters (PS3.5, 6.2)."""
    return f"{float(number):.10g}"[:16]


def synthetic_instance(sop_class: UID, description: str, model: str, version: str, into: str = "") -> Dataset:
    """What every synthetic object holds, whatever it shows: an unknown patient and study, and the tool that made it.

    into: see Subject. Where there was a scan, its patient's identity was removed, and how is said (PS3.3, C.7.1.1).
    """
    instance = Dataset()
    instance.SpecificCharacterSet = "ISO_IR 192"
    instance.SOPClassUID = sop_class
    instance.SyntheticData = "YES"
    instance.Manufacturer = "lesiongan"
    instance.SeriesDescription = description
    for keyword in (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex", "StudyID",
        "PositionReferenceIndicator",
    ):  # fmt: skip
        setattr(instance, keyword, None)
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [code("109102", "DCM", "Processing Equipment")]
    equipment.Manufacturer = "lesiongan"
    equipment.SoftwareVersions = version
    equipment.DeviceSerialNumber = model
    equipment.ContributionDescription = (
        f"Synthetic lesions set into {into}: the lesions were generated, all else was not"
        if into
        else "Synthetic image: every pixel was generated, none was acquired"
    )
    instance.ContributingEquipmentSequence = [equipment]
    if into:
        instance.PatientIdentityRemoved = "YES"
        instance.DeidentificationMethod = "header written anew; only geometry and HU are kept"
        instance.LongitudinalTemporalInformationModified = "REMOVED"
    return instance


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """A coded entry (PS3.3, 8.8)."""
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = value, scheme, meaning
    return coded


@lru_cache(maxsize=64)  # a folder of samples shares them all, and encoding them takes 50 times as long as writing the file
def _of_all_alike(
    description: str, model: str, version: str, window: tuple[float, float], into: str, shape: tuple[int, int],
    thickness: str | None, pixel_spacing: tuple[str, str], orientation: tuple[str, ...],
) -> Encoded:  # fmt: skip
    """The elements that follow neither from the patient nor from the pixels."""
    image = synthetic_instance(CTImageStorage, description, model, version, into)
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    image.Modality = "CT"
    image.BodyPartExamined = "CHEST"
    image.PatientPosition = None if into else "HFS"
    image.SeriesNumber = 1
    image.KVP = image.AcquisitionNumber = None
    low, high = window
    image.WindowCenter, image.WindowWidth = ds((low + high) / 2), ds(high - low)
    image.SliceThickness = thickness
    image.PixelSpacing = list(pixel_spacing)
    image.ImageOrientationPatient = list(orientation)
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "HU"
    if into:  # of a derived image, how it was (C.7.6.1.1.3); whether text is burned into it nobody has looked
        image.DerivationDescription = f"Synthetic lesions, drawn by a generator, were set into {into}; voxels outside them keep their HU"
    else:
        image.BurnedInAnnotation = "NO"
    return _encoded(image)


def _encoded(dataset: Dataset) -> Encoded:
    elements = {}
    for element in dataset:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_data_element(buffer, element, "utf-8")
        elements[int(element.tag)] = buffer.getvalue()
    return elements


def _texts(**values: str) -> Encoded:
    """Elements by keyword, of VRs that are text or UIDs."""
    return {tag: _text(tag, vr, value) for (tag, vr), value in zip(map(_tag_and_vr, values), values.values(), strict=True)}


@lru_cache
def _tag_and_vr(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag, dictionary_VR(tag)


def _text(tag: int, vr: str, text: str) -> bytes:
    value = text.encode()
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def _pixels(hu: np.ndarray) -> bytes:
    value = hu.astype("<i2").tobytes()
    return struct.pack("<HH2sxxI", _PIXELS >> 16, _PIXELS & 0xFFFF, b"OW", len(value)) + value


def _joined(elements: Encoded) -> bytes:
    return b"".join(elements[tag] for tag in sorted(elements))


def _file_meta(image_uid: str) -> bytes:
    """What a file starts with (PS3.10, 7.1)."""
    meta = _joined({**_of_all_meta(), _IMAGE_UID_OF_META: _text(_IMAGE_UID_OF_META, "UI", image_uid)})
    return _PREAMBLE + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta


@lru_cache
def _of_all_meta() -> Encoded:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid_from("")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    write_file_meta_info(DicomBytesIO(), meta, enforce_standard=True)  # adds what the standard asks for
    del meta[_GROUP_LENGTH]
    return _encoded(meta)
