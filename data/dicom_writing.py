"""Synthetic CT images as DICOM that real clients accept, and that say they are synthetic.

CT Image Storage (PS3.3, A.3) with every Type 1 and 2 attribute of its mandatory modules, and
Synthetic Data (0008,001C) = YES (C.12.1). HU are stored as signed 16-bit values with slope 1 and
intercept 0. Nothing depends on the clock: the same arguments give the same bytes.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

_ROOT = uuid.UUID("6a1f4c3e-5d0b-5b7a-9a51-1e5109a40000")


@dataclass(frozen=True)
class Subject:
    """Whom and what the images show: one synthetic patient, one study of them, and the tool that made it.

    key: what the UIDs follow from; the same key and pixels give the same UIDs.
    model: the tool's model or generator, at most 64 characters (a SHA-256 fits).
    window: the HU range a viewer shows first.
    """

    key: str
    name: str
    patient_id: str
    description: str
    model: str
    version: str
    window: tuple[float, float]


def uid_from(*parts: str) -> UID:
    """A UID that follows from the parts alone: a UUID (version 5) under 2.25 (PS3.5, B.2)."""
    return UID(f"2.25.{uuid.uuid5(_ROOT, chr(31).join(parts)).int}")


def write_series(hu: np.ndarray, affine: np.ndarray, subject: Subject, files: list[Path], *, single_image: bool = False) -> UID:
    """Writes int16 HU (K, J, I) as one series of K axial CT images, one file each; returns its series UID.

    affine: (4, 4) from index k, j, i to LPS mm (see volume.py). single_image: the slice's thickness is
    unknown and left empty. Raises ValueError when files and slices differ in number.
    """
    if hu.dtype != np.int16 or hu.ndim != 3 or len(files) != len(hu):
        raise ValueError(f"{hu.dtype}{hu.shape} HU for {len(files)} files; want int16 (K, J, I) and K files")
    digest = hashlib.sha256(np.ascontiguousarray(hu).tobytes() + affine.tobytes()).hexdigest()
    series_uid = uid_from(subject.key, digest, "series")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    for k, file in enumerate(files):
        image = _study_and_equipment(subject)
        image.SOPInstanceUID = uid_from(subject.key, digest, f"image {k}")
        image.StudyInstanceUID = uid_from(subject.key, digest, "study")
        image.SeriesInstanceUID = series_uid
        image.FrameOfReferenceUID = uid_from(subject.key, digest, "frame")
        image.InstanceNumber = k + 1
        image.SliceThickness = None if single_image else _ds(steps[0])
        image.PixelSpacing = [_ds(steps[1]), _ds(steps[2])]
        image.ImageOrientationPatient = [_ds(c) for c in [*affine[:3, 2] / steps[2], *affine[:3, 1] / steps[1]]]
        image.ImagePositionPatient = [_ds(mm) for mm in affine[:3, 3] + k * affine[:3, 0]]
        _set_pixels(image, hu[k])
        dcmwrite(file, image, enforce_file_format=True)
    return series_uid


def _ds(number: float) -> str:
    """A decimal string of at most 16 characters (PS3.5, 6.2)."""
    return f"{float(number):.10g}"[:16]


def _study_and_equipment(subject: Subject) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SpecificCharacterSet = "ISO_IR 192"
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    image.SOPClassUID = CTImageStorage
    image.SyntheticData = "YES"
    image.Modality = "CT"
    image.BodyPartExamined = "CHEST"
    image.Manufacturer = "lesiongan"
    image.SeriesDescription = subject.description
    image.PatientName, image.PatientID = subject.name, subject.patient_id
    image.PatientPosition = "HFS"
    image.SeriesNumber = 1
    low, high = subject.window
    image.WindowCenter, image.WindowWidth = _ds((low + high) / 2), _ds(high - low)
    for keyword in (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex", "StudyID",
        "PositionReferenceIndicator", "KVP", "AcquisitionNumber",
    ):  # fmt: skip
        setattr(image, keyword, None)
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = "109102", "DCM", "Processing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer = "lesiongan"
    equipment.SoftwareVersions = subject.version
    equipment.DeviceSerialNumber = subject.model
    equipment.ContributionDescription = "Synthetic image: every pixel was generated, none was acquired"
    image.ContributingEquipmentSequence = [equipment]
    return image


def _set_pixels(image: Dataset, hu: np.ndarray) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = hu.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = "0", "1", "HU"
    image.BurnedInAnnotation = "NO"
    image.PixelData = hu.astype("<i2").tobytes()
