"""A lesion's outline as DICOM: every reader finds it on its voxels, with highdicom as the reference; the same input gives the same bytes."""

from collections import Counter
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydicom.sr.codedict import codes

from data.dicom import find_series, look_at_all, read_series
from data.dicom_writing import Subject
from data.export import write_patch_dicom
from data.lesion_list import ListConfig
from data.lesions import read_lesions
from data.segmentation_writing import write_segmentation
from data.sources import find_sources

SUBJECT = Subject("model 7", "SYNTHETIC^00000007", "SYNTHETIC-7", "synthetic nodule patch", "ab" * 32, "1.0", (-1000, 400))
SPACING = (2.5, 0.7, 0.8)


def images_of(folder, shape):
    """The CT files of a patch of noise, in order of position."""
    folder.mkdir(exist_ok=True)
    write_patch_dicom(np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16), SPACING[-len(shape) :], SUBJECT, folder / "ct")
    return sorted(folder.rglob("*.dcm"))


def ellipsoid(shape):
    """bool of this shape, without any symmetry: a ball of 4 mm about a third of the way, less one corner."""
    axes = np.ogrid[tuple(map(slice, shape))]
    inside = sum(((axis - n / 3) * mm) ** 2 for axis, n, mm in zip(axes, shape, SPACING[-len(shape) :], strict=True)) < 16
    inside[tuple(n // 3 for n in shape)] = False
    return inside


@settings(max_examples=20, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=7), elements=st.booleans()).filter(np.any))
def test_any_mask_lies_on_its_voxels_for_every_reader(tmp_path_factory, mask):
    folder = tmp_path_factory.mktemp("mask")
    images = images_of(folder, mask.shape)
    write_segmentation(mask, images, SUBJECT, "solid", folder / "seg")
    frames = mask.reshape(-1, *mask.shape[-2:])
    itk, ct = sitk.ReadImage(folder / "seg"), sitk.ReadImage(images)
    filled = mask.size - mask.size % 8  # ITK unpacks whole bytes only, and leaves the voxels after them to chance
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).ravel()[:filled], 255 * mask.ravel()[:filled])
    for one, other in ((itk.GetSpacing(), ct.GetSpacing()), (itk.GetOrigin(), ct.GetOrigin()), (itk.GetDirection(), ct.GetDirection())):
        assert one == pytest.approx(other)
    np.testing.assert_array_equal(pydicom.dcmread(folder / "seg").pixel_array.reshape(frames.shape), frames)
    read = highdicom.seg.segread(folder / "seg")
    uids = [pydicom.dcmread(image).SOPInstanceUID for image in images]
    np.testing.assert_array_equal(read.get_pixels_by_source_instance(uids)[..., 0], frames)


@pytest.mark.parametrize("shape", [(9, 11), (6, 9, 11)])
def test_it_says_what_highdicom_says_of_the_same_mask(tmp_path, shape):
    images, mask = images_of(tmp_path, shape), ellipsoid(shape)
    write_segmentation(mask, images, SUBJECT, "solid", tmp_path / "seg")
    ours, sources = pydicom.dcmread(tmp_path / "seg"), [pydicom.dcmread(image) for image in images]
    for source in sources:
        source.SliceThickness = source.SliceThickness or 1
    segment = highdicom.seg.SegmentDescription(
        1, "solid", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, "AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence("lesiongan 1.0", codes.DCM.ArtificialIntelligence, "1.0"),
    )  # fmt: skip
    theirs = highdicom.seg.Segmentation(
        sources, mask, "BINARY", [segment], ours.SeriesInstanceUID, 2, ours.SOPInstanceUID, 1, "lesiongan", "lesiongan", "1.0", SUBJECT.model,
        content_label="LESION", omit_empty_frames=False,
    )  # fmt: skip
    del theirs.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence  # its family is not for us to say
    theirs.PerFrameFunctionalGroupsSequence = theirs.PerFrameFunctionalGroupsSequence[::-1]  # from head to feet
    np.testing.assert_array_equal(theirs.pixel_array.reshape(-1, 9, 11)[::-1], ours.pixel_array.reshape(-1, 9, 11))
    known = elements(ours)
    differing = {path for path, value in elements(theirs).items() if known.get(path) != value}
    optional = {"DimensionOrganizationType", "PresentationLUTShape", "SourceImageSequence", "DimensionDescriptionLabel"}
    own = {"ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "ContributingEquipmentSequence"}
    order = {"DimensionOrganizationUID", "DimensionIndexValues", "PixelData"}
    assert {path for path in differing if not (optional | own | order) & {path[0][0], path[-1][0]}} == set()


def elements(dataset, path=()):
    """Every value of a dataset by its path: (keyword, item number) each."""
    found = {}
    for element in dataset:
        if element.VR == "SQ":
            for n, item in enumerate(element.value):
                found |= elements(item, (*path, (element.keyword, n)))
        else:
            found[(*path, (element.keyword, 0))] = element.value or None
    return found


def test_it_belongs_to_its_study_and_says_it_is_synthetic(tmp_path):
    images = images_of(tmp_path, (6, 9, 11))
    write_segmentation(ellipsoid((6, 9, 11)), images, SUBJECT, "part-solid", tmp_path / "seg")
    ct, seg = pydicom.dcmread(images[0]), pydicom.dcmread(tmp_path / "seg")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "StudyID", "AccessionNumber"):
        assert seg[keyword].value == ct[keyword].value
    assert len({ct.SeriesInstanceUID, seg.SeriesInstanceUID, ct.SOPInstanceUID, seg.SOPInstanceUID}) == 4
    assert (seg.Modality, seg.SyntheticData, seg.SegmentSequence[0].SegmentLabel) == ("SEG", "YES", "part-solid")
    assert (seg.SegmentSequence[0].SegmentAlgorithmType, seg.SegmentSequence[0].SegmentAlgorithmName) == ("AUTOMATIC", "lesiongan 1.0")
    assert seg.ContributingEquipmentSequence == ct.ContributingEquipmentSequence


def test_our_own_reader_finds_the_lesion_where_it_is(tmp_path):
    shape = (12, 20, 24)
    images, mask = images_of(tmp_path, shape), ellipsoid(shape)
    write_segmentation(mask, images, SUBJECT, "part-solid", tmp_path / "seg.dcm")
    (series,), _ = find_series(look_at_all(find_sources([tmp_path / "ct"])))
    volume = read_series(series)
    (one,) = read_lesions(tmp_path, ListConfig(class_from="SegmentLabel")).series[volume.series_uid]
    (lesion,), notes = one.locate(volume)
    assert notes == Counter()
    assert lesion.label == "part-solid"
    np.testing.assert_allclose(lesion.center_mm, (np.argwhere(mask).mean(axis=0) * SPACING)[::-1], atol=1e-6)


def test_same_input_same_bytes_other_input_other_uids(tmp_path):
    images, mask = images_of(tmp_path, (6, 9, 11)), ellipsoid((6, 9, 11))
    others = images_of(tmp_path / "other", (6, 9, 12))
    for name, arguments in {
        "seg": (mask, images, SUBJECT, "solid"),
        "again": (mask.copy(order="F"), images, SUBJECT, "solid"),
        "larger": (mask | np.roll(mask, 1, axis=2), images, SUBJECT, "solid"),
        "named": (mask, images, SUBJECT, "cystic"),
        "others": (np.pad(mask, [(0, 0), (0, 0), (0, 1)]), others, SUBJECT, "solid"),
        "seed": (mask, images, replace(SUBJECT, key="model 8"), "solid"),
    }.items():
        write_segmentation(*arguments, tmp_path / name)
    assert (tmp_path / "seg").read_bytes() == (tmp_path / "again").read_bytes()
    read = [pydicom.dcmread(tmp_path / name) for name in ("seg", "larger", "named", "others", "seed")]
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert len({one[keyword].value for one in read}) == 5


def test_what_cannot_be_a_segment_is_refused_in_one_line(tmp_path):
    images, mask, file = images_of(tmp_path, (3, 9, 11)), np.ones((3, 9, 11), bool), tmp_path / "seg"
    for given_mask, label, cause in (
        (np.zeros_like(mask), "solid", "the mask is empty"),
        (mask[:2], "solid", r"bool\(2, 9, 11\) for images of \(3, 9, 11\)"),
        (mask[0], "solid", r"bool\(9, 11\) for images of"),
        (mask.astype(np.uint8), "solid", "a mask of uint8"),
        (mask, "", "a label of 0 characters"),
        (mask, "s" * 65, "a label of 65 characters"),
    ):
        with pytest.raises(ValueError, match=cause) as error:
            write_segmentation(given_mask, images, SUBJECT, label, file)
        assert str(error.value).startswith(str(file))
        assert not file.exists()
