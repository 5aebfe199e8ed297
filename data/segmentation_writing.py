"""Synthetic lesions' outlines as DICOM segmentations (PS3.3, A.51), in the study and frame of reference of their images.

One binary segment, a frame for each image, empty ones too, so that mask and images lie voxel on voxel for every reader.
Nothing depends on the clock: the same arguments give the same bytes. SimpleITK (2.5.7) leaves the last voxels to chance where the
mask's number of voxels is no multiple of 8; other readers have all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from data.dicom_writing import Subject, code, ds, synthetic_instance, uid_from

_NO_DATE, _NO_TIME = "19000101", "000000"
"""Content Date and Time may not be empty (C.7.6.16), and the real ones would make every file another."""
_OF_IMAGES = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID",
    "Rows", "Columns", "PixelSpacing", "SliceThickness", "ImageOrientationPatient", "ImagePositionPatient",
]  # fmt: skip


def write_segmentation(mask: np.ndarray, images: Sequence[Path], subject: Subject, label: str, file: Path) -> None:
    """Writes the lesion in `images`, the CT files of one patch or scan from write_series, as one segment in a series of its own.

    mask: bool (H, W), or (D, H, W) in the order of the images. label: SegmentLabel, at most 64 characters; `python -m data prepare`
    reads it as the lesion's class. Raises ValueError when the mask is empty or not of the images' shape, or the label is too long.
    """
    headers = [pydicom.dcmread(image, stop_before_pixels=True, specific_tags=list(_OF_IMAGES)) for image in images]
    frames = mask[None] if mask.ndim == 2 else mask
    shape = (len(headers), headers[0].Rows, headers[0].Columns)
    if mask.dtype != bool or frames.shape != shape:
        raise ValueError(f"{file}: a mask of {mask.dtype}{mask.shape} for images of {shape}; want bool of their shape")
    if not mask.any():
        raise ValueError(f"{file}: the mask is empty, and a segmentation without a voxel says nothing; leave it out")
    if not 0 < len(label) <= 64:
        raise ValueError(f"{file}: a label of {len(label)} characters; SegmentLabel holds 1 to 64")
    uids = [str(header.SOPInstanceUID) for header in headers]
    key = (subject.key, label, subject.model, subject.version, hashlib.sha256(frames.tobytes()).hexdigest(), *uids)
    segmentation = synthetic_instance(
        SegmentationStorage, "synthetic lesion segmentation", subject.model, subject.version, subject.into
    )  # fmt: skip
    _set_series(segmentation, headers, key)
    _set_segment(segmentation, label, subject)
    _set_frames(segmentation, headers, uid_from(*key, "dimensions"))
    _set_pixels(segmentation, frames)
    segmentation.file_meta = FileMetaDataset()
    segmentation.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(file, segmentation, enforce_file_format=True)


def _set_series(segmentation: Dataset, headers: Sequence[Dataset], key: tuple[str, ...]) -> None:
    first = headers[0]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(segmentation, keyword, first[keyword].value)
    segmentation.SOPInstanceUID = uid_from(*key, "segmentation")
    segmentation.SeriesInstanceUID = uid_from(*key, "series")
    segmentation.Modality = "SEG"
    segmentation.SeriesNumber, segmentation.InstanceNumber = 2, 1
    segmentation.ContentDate, segmentation.ContentTime = _NO_DATE, _NO_TIME
    segmentation.ContentLabel = "LESION"
    segmentation.ContentDescription = segmentation.ContentCreatorName = None
    images = Dataset()
    images.SeriesInstanceUID = first.SeriesInstanceUID
    images.ReferencedInstanceSequence = [_reference(header) for header in headers]
    segmentation.ReferencedSeriesSequence = [images]


def _set_segment(segmentation: Dataset, label: str, subject: Subject) -> None:
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, label
    segment.SegmentedPropertyCategoryCodeSequence = [code("49755003", "SCT", "Morphologically Abnormal Structure")]
    segment.SegmentedPropertyTypeCodeSequence = [code("52988006", "SCT", "Lesion")]
    segment.SegmentAlgorithmType, segment.SegmentAlgorithmName = "AUTOMATIC", f"lesiongan {subject.version}"
    segmentation.SegmentSequence = [segment]
    segmentation.SegmentationType, segmentation.SegmentsOverlap = "BINARY", "NO"
    # who segmented (C.7.5.2); it is also who made the images
    segmentation.ManufacturerModelName, segmentation.SoftwareVersions = "lesiongan", subject.version
    segmentation.DeviceSerialNumber = subject.model


def _set_frames(segmentation: Dataset, headers: Sequence[Dataset], dimensions: str) -> None:
    """Where the frames lie (C.7.6.16), one for each image, and in which order (C.7.6.17): by segment and place."""
    first, shared = headers[0], Dataset()
    measures, orientation, segment = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = first.PixelSpacing
    measures.SliceThickness = 1 if first.SliceThickness is None else first.SliceThickness
    measures.SpacingBetweenSlices = _step(headers) if len(headers) > 1 else measures.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    segment.ReferencedSegmentNumber = 1
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence, shared.SegmentIdentificationSequence = (
        [measures],
        [orientation],
        [segment],
    )
    segmentation.SharedFunctionalGroupsSequence = [shared]
    segmentation.PerFrameFunctionalGroupsSequence = [_frame(header, place) for place, header in enumerate(headers, 1)]
    segmentation.NumberOfFrames = len(headers)
    organization = Dataset()
    organization.DimensionOrganizationUID = dimensions
    segmentation.DimensionOrganizationSequence = [organization]
    segmentation.DimensionIndexSequence = [
        _dimension(dimensions, "ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        _dimension(dimensions, "ImagePositionPatient", "PlanePositionSequence"),
    ]


def _step(headers: Sequence[Dataset]) -> str:
    """From slice to slice in mm: slices may be thicker than that, or thinner."""
    first, last = (np.array(header.ImagePositionPatient, float) for header in (headers[0], headers[-1]))
    return ds(float(np.linalg.norm(last - first)) / (len(headers) - 1))


def _dimension(organization: str, pointer: str, group: str) -> Dataset:
    dimension = Dataset()
    dimension.DimensionOrganizationUID = organization
    dimension.DimensionIndexPointer, dimension.FunctionalGroupPointer = Tag(pointer), Tag(group)
    return dimension


def _frame(header: Dataset, place: int) -> Dataset:
    frame, content, position, derivation = Dataset(), Dataset(), Dataset(), Dataset()
    content.DimensionIndexValues = [1, place]
    position.ImagePositionPatient = header.ImagePositionPatient
    source = _reference(header)
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    derivation.SourceImageSequence = [source]
    derivation.DerivationCodeSequence = [code("113076", "DCM", "Segmentation")]
    frame.FrameContentSequence, frame.PlanePositionSequence, frame.DerivationImageSequence = [content], [position], [derivation]
    return frame


def _reference(header: Dataset) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return reference


def _set_pixels(segmentation: Dataset, frames: np.ndarray) -> None:
    """One bit a voxel, without a gap between rows or frames (PS3.5, 8.1.1), in an even number of bytes."""
    segmentation.ImageType = ["DERIVED", "PRIMARY"]
    segmentation.SamplesPerPixel, segmentation.PhotometricInterpretation = 1, "MONOCHROME2"
    segmentation.Rows, segmentation.Columns = frames.shape[1:]
    segmentation.BitsAllocated, segmentation.BitsStored, segmentation.HighBit, segmentation.PixelRepresentation = 1, 1, 0, 0
    segmentation.LossyImageCompression = "00"
    bits = np.packbits(frames, bitorder="little").tobytes()
    segmentation.PixelData = bits + bytes(len(bits) % 2)
