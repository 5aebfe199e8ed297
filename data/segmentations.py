"""Lesions as DICOM segmentations (PS3.3, A.51), placed by their own geometry in the patient's coordinates."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from data.dicom_file import NotDicom, read_dicom
from data.lesion_list import DEFAULT_CLASS, LesionList, ListConfig, Listed, class_of
from data.masks import as_lesions, components
from data.sources import Source, Unreadable
from data.volume import Lesion, Volume

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
LABEL = "SegmentLabel"
POSITION_TOLERANCE_MM = 0.101
"""How far a frame may lie from its place: positions are often rounded to a tenth of a millimetre."""

UNNAMED = "segment whose SegmentLabel is not among the named classes, left out"
UNFIT = "segment whose SegmentLabel is unfit for a class name, left out"


@dataclass(frozen=True)
class Segmentation:
    """A DICOM segmentation of one series. version: changes when the file does.

    image_uids: the SOPInstanceUIDs of the images that it says it segments, perhaps none. A segment's class follows
    from its SegmentLabel, through `classes`, or by_label: as it is. That is free text, so without either: "lesion".
    """

    source: Source
    version: str
    image_uids: tuple[str, ...]
    classes: tuple[tuple[str, str], ...] = ()
    by_label: bool = False

    def locate(self, volume: Volume) -> tuple[list[Lesion], Counter[str]]:
        """The connected components of each segment; of a fractional one, where it is at least one half.

        Raises Unreadable when the file is damaged, or not a segmentation of this volume.
        """
        if self.image_uids and volume.image_uids and not set(self.image_uids) & set(volume.image_uids):
            raise Unreadable(self.source, "none of the images that the segmentation refers to is in its series (ReferencedSOPInstanceUID)")
        notes: Counter[str] = Counter()
        lesions, left_out = as_lesions(self._components(volume, notes))
        return lesions, notes + left_out

    def _components(self, volume: Volume, notes: Counter[str]) -> list[tuple[str, tuple[float, float, float], float]]:
        """(class, centre in LPS mm, diameter in mm), segment by segment."""
        from highdicom.seg import Segmentation as Reader

        content = read_dicom(self.source, pixels=True).content
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Reader.from_dataset(pydicom.dcmread(BytesIO(content), force=True), copy=False)
                place = image.get_volume_geometry(atol=POSITION_TOLERANCE_MM)
                if place is None:
                    raise Unreadable(self.source, "the segmentation's frames do not make an even volume (ImagePositionPatient)")
                self._check_inside(volume, place.spatial_shape, place.affine)
                found = []
                for number in image.segment_numbers:
                    label = self._class_of(str(image.get_segment_description(number).segment_label), notes)
                    if label is not None:
                        part = image.get_volume(segment_numbers=[number], atol=POSITION_TOLERANCE_MM)
                        found += [(label, centre, mm) for _, centre, mm in components(self.source, part.array[..., 0] >= 0.5, part.affine)]
                return found
        except Unreadable:
            raise
        except Exception as error:  # pydicom and highdicom raise many kinds on damaged files
            raise Unreadable(self.source, "not a whole DICOM segmentation", f"{type(error).__name__}: {str(error)[:200]}") from None

    def _check_inside(self, volume: Volume, shape: tuple[int, ...], affine: np.ndarray) -> None:
        """Before its voxels are laid out: a frame far away would ask for more than the memory."""
        corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
        index = [volume.index_of(tuple(affine[:3, :3] @ corner + affine[:3, 3])) for corner in corners]
        if not all(volume.contains(np.round(at, 3)) for at in index) or np.prod(shape) > 8 * volume.hu.size:
            raise Unreadable(self.source, "the segmentation does not lie inside its scan (ImagePositionPatient, FrameOfReferenceUID)")

    def _class_of(self, label: str, notes: Counter[str]) -> str | None:
        classes = dict(self.classes)
        if self.by_label or label in classes:
            try:
                return class_of(label.strip(), classes)
            except ValueError:
                notes[UNFIT] += 1
                return None
        if classes:
            notes[UNNAMED] += 1
            return None
        return DEFAULT_CLASS


def read_segmentations(place: Path, sources: list[Source], config: ListConfig) -> LesionList:
    """The DICOM segmentations among these files, by the series that they refer to. Frames are read when their scan is.

    Raises Unreadable when there is none, ValueError when the classes are asked from anything but the SegmentLabel.
    """
    series: dict[str, list[Listed]] = {}
    patients: dict[str, str] = {}
    problems: list[tuple[int, str]] = []
    for source in sources:
        try:
            if read_dicom(source, pixels=False).header.get("SOPClassUID") not in SEGMENTATIONS:
                continue
            header = _header(source)
            for one in header.ReferencedSeriesSequence:
                uid = str(one.SeriesInstanceUID)
                images = tuple(str(image.ReferencedSOPInstanceUID) for image in one.get("ReferencedInstanceSequence") or ())
                listed = Segmentation(source, source.version(), images, config.classes, config.class_from == LABEL)
                if header.get("PatientID") and patients.setdefault(uid, str(header.PatientID)) != str(header.PatientID):
                    raise Unreadable(source, "another PatientID than in another segmentation of its series")
                series.setdefault(uid, []).append(listed)
        except NotDicom:
            continue
        except Unreadable as error:
            problems.append((0, error.reason))
        except AttributeError:
            problems.append((0, "a segmentation that names no series (ReferencedSeriesSequence)"))
    if not series:
        reason = problems[0][1] if problems else "no lesion list in it: want LIDC XML, masks or DICOM segmentations; name a CSV file itself"
        raise Unreadable(place, reason)
    if config.class_from not in (None, LABEL):
        raise ValueError(f"{place}: DICOM segmentations hold classes in {LABEL}, not in {config.class_from!r}")
    return LesionList({uid: tuple(found) for uid, found in series.items()}, patients, tuple(problems))


def _header(source: Source) -> Dataset:
    content = read_dicom(source, pixels=True).content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags: list = ["PatientID", "ReferencedSeriesSequence"]
            return pydicom.dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=tags, force=True)
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise Unreadable(source, "damaged DICOM header", f"{type(error).__name__}: {error}") from None
