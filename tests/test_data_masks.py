"""Masks and DICOM segmentations: balls and discs of known size and place are found where they are; foreign grids are refused."""

import csv
import shutil
import zipfile
from collections import Counter

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import affine_of, dicom_series
from scipy.ndimage import binary_dilation

from data.dicom import find_series, look_at_all, read_series
from data.lesion_list import ListConfig
from data.lesions import read_lesions
from data.nifti import read_nifti, write_nifti
from data.sources import Source, find_sources
from data.volume import Volume, spacing_of

SHAPE, SPACING, ORIGIN = (24, 60, 70), (2.0, 0.7, 0.8), (-30.0, -40.0, 100.0)
CENTRE, RADIUS = (-3.0, -19.0, 122.0), 9.0


def scan(affine=None, shape=SHAPE, image_uids=()):
    affine = affine_of(SPACING, ORIGIN) if affine is None else affine
    return Volume(np.broadcast_to(np.int16(0), shape), spacing_of(affine), affine, "scan", image_uids)


def ball(centre=CENTRE, radius=RADIUS, value=1):
    """uint8 (K, J, I) on the scan's grid: voxels whose centre lies in the ball."""
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    x, y, z = (ORIGIN[0] + SPACING[2] * i, ORIGIN[1] + SPACING[1] * j, ORIGIN[2] + SPACING[0] * k)
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 <= radius**2
    return (inside * value).astype(np.uint8)


def write_mask(path, values, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(values, affine_of(SPACING, ORIGIN) if affine is None else affine, path)
    return path


def located(place, at=None, config=None, name="scan"):
    """What the list says of the scan: lesions and notes."""
    (one,) = read_lesions(place, config or ListConfig()).series[name]
    return one.locate(at or scan())


def assert_is_ball(lesion, centre=CENTRE, radius=RADIUS, label="lesion"):
    np.testing.assert_allclose(lesion.center_mm, centre, atol=0.1)
    assert lesion.diameter_mm == pytest.approx(2 * radius, rel=0.015)
    assert lesion.label == label


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan_mask.nii", "scan-seg.nii.gz", "deep/er/scan_label.nii.gz"])
def test_a_ball_is_found_with_its_centre_and_diameter(tmp_path, name):
    write_mask(tmp_path / "masks" / name, ball())
    (lesion,), notes = located(tmp_path / "masks")
    assert_is_ball(lesion)
    assert notes == Counter()


def test_metaimage_single_file_and_zip_archive(tmp_path):
    nifti = write_mask(tmp_path / "scan.nii.gz", ball())
    (tmp_path / "in").mkdir()
    sitk.WriteImage(sitk.ReadImage(str(nifti), sitk.sitkUInt8), str(tmp_path / "in" / "scan.mha"))
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.write(nifti, "../../scan.nii.gz")
    for place in (nifti, tmp_path / "in" / "scan.mha", tmp_path / "masks.zip"):
        assert_is_ball(located(place)[0][0])


def test_a_scan_beside_its_mask_is_no_mask(tmp_path):
    write_mask(tmp_path / "scan.nii.gz", np.full(SHAPE, -1000, np.int16))
    write_mask(tmp_path / "scan_seg.nii.gz", ball())
    assert_is_ball(located(tmp_path)[0][0])
    (tmp_path / "scan_seg.nii.gz").unlink()
    with pytest.raises(ValueError, match="is it a scan"):
        located(tmp_path)


def test_the_mask_may_be_stored_in_another_orientation(tmp_path):
    image = nib.load(write_mask(tmp_path / "first.nii.gz", ball()))
    for codes in ("RAS", "PSR", "ILA"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
        nib.save(image.as_reoriented(turn), tmp_path / "scan.nii.gz")
        assert_is_ball(located(tmp_path / "scan.nii.gz")[0][0])


def test_values_are_classes_and_touching_values_are_apart(tmp_path):
    values = ball((-15.0, -19.0, 122.0), 6.0, 1) + ball((8.0, -19.0, 122.0), 7.0, 3)
    write_mask(tmp_path / "scan.nii.gz", values)
    large, small = located(tmp_path, config=ListConfig(classes=(("3", "part_solid"),)))[0]
    assert_is_ball(small, (-15.0, -19.0, 122.0), 6.0, "1")
    assert_is_ball(large, (8.0, -19.0, 122.0), 7.0, "part_solid")
    half = ball()
    half[:, :, 34:][half[:, :, 34:] > 0] = 2
    write_mask(tmp_path / "scan.nii.gz", half)
    assert [lesion.label for lesion in located(tmp_path)[0]] == ["1", "2"]


def test_corners_join_and_one_slice_is_a_disc(tmp_path):
    values = np.zeros(SHAPE, np.uint8)
    values[5:8, 10:16, 10:16] = 255
    values[8:11, 16:22, 16:22] = 255  # touches in one corner
    values[20] = ball(value=255)[11]
    write_mask(tmp_path / "scan.nii.gz", values)
    joined, disc = located(tmp_path)[0]
    assert joined.diameter_mm == pytest.approx((6 * 2 * 108 * np.prod(SPACING) / np.pi) ** (1 / 3))
    np.testing.assert_allclose(joined.center_mm, (-30 + 15.5 * 0.8, -40 + 15.5 * 0.7, 100 + 7.5 * 2))
    assert disc.diameter_mm == pytest.approx(2 * RADIUS, rel=0.01)
    assert disc.center_mm[2] == pytest.approx(140)
    assert disc.label == joined.label == "lesion"


def test_specks_and_empty_masks_are_counted(tmp_path):
    values = ball()
    values[2, 3:5, 3:5] = 1  # 1.7 mm across
    write_mask(tmp_path / "scan.nii.gz", values)
    found, notes = located(tmp_path)
    assert len(found) == 1
    assert notes == {"component of a mask under 3 mm across, left out": 1}
    write_mask(tmp_path / "scan.nii.gz", np.zeros(SHAPE, np.uint8))
    assert located(tmp_path) == ([], {"mask without a lesion in it": 1})


def shifted(*mm):
    affine = affine_of(SPACING, ORIGIN)
    affine[:3, 3] += mm
    return affine


NOISE = np.zeros(SHAPE, np.uint8)
NOISE[::2, ::2, ::2] = 1
MISFITS = {
    "shape": (ball()[:-1], None, "scan's grid"),
    "origin": (ball(), shifted(0.5, 0, 0), "scan's grid"),
    "spacing": (ball(), affine_of((2.0, 0.7, 0.81), ORIGIN), "scan's grid"),
    "flipped": (ball(), affine_of((-2.0, 0.7, 0.8), ORIGIN), "scan's grid"),
    "noise": (NOISE, None, "noise"),
    "probability": (ball() * np.float32(0.5), None, "probability map"),
    "nan": (ball() * np.float32("nan"), None, "from 0 to 65535"),
    "scan": (ball() * np.int16(-5), None, "is it a scan"),
}


@pytest.mark.parametrize(("values", "affine", "cause"), MISFITS.values(), ids=MISFITS)
def test_a_mask_that_does_not_fit_is_refused_by_name(tmp_path, values, affine, cause):
    file = write_mask(tmp_path / "scan.nii.gz", values, affine)
    with pytest.raises(ValueError, match=cause) as error:
        located(tmp_path)
    assert str(error.value).startswith(str(file))


def test_rounded_headers_still_fit(tmp_path):
    write_mask(tmp_path / "scan.nii.gz", ball(), shifted(0.05, -0.05, 0.05))
    assert_is_ball(located(tmp_path)[0][0])


def test_masks_of_one_name_and_columns_that_masks_have_not_are_refused(tmp_path):
    write_mask(tmp_path / "a" / "scan.nii.gz", ball())
    with pytest.raises(ValueError, match="masks have no 'texture'"):
        read_lesions(tmp_path, ListConfig(class_from="texture"))
    write_mask(tmp_path / "b" / "scan.nii.gz", ball())
    with pytest.raises(ValueError, match="another mask has the same name"):
        read_lesions(tmp_path, ListConfig())


def test_a_table_of_masks(tmp_path):
    write_mask(tmp_path / "list" / "masks" / "a.nii.gz", ball())
    write_mask(tmp_path / "outside.nii.gz", ball())
    (tmp_path / "list" / "masks" / "notes.txt").write_text("no mask")
    outside = "the mask is missing, or not a path inside the list's folder"
    rows = {
        "images/scan.nii.gz,masks/a.nii.gz,solid": None,
        "scan,masks\\a.nii.gz,solid": "the same lesion as in an earlier row",
        "scan,../outside.nii.gz,solid": outside,
        "scan,masks/../../outside.nii.gz,solid": outside,
        f"scan,{tmp_path}/outside.nii.gz,solid": outside,
        "scan,c:\\outside.nii.gz,solid": outside,
        "scan,,solid": outside,
        "scan,masks/gone.nii.gz,solid": "the mask is not there",
        "scan,masks/notes.txt,solid": "the mask is neither NIfTI nor MetaImage",
        "scan,masks/a.nii.gz,=cmd": "class name is unfit: want letters, digits, '_', '-', '.' or spaces, at most 40",
    }
    (tmp_path / "list" / "list.csv").write_text("image,mask,class\n" + "\n".join(rows) + "\n")
    read = read_lesions(tmp_path / "list" / "list.csv", ListConfig())
    assert read.problems == tuple((line, reason) for line, reason in enumerate(rows.values(), 2) if reason)
    ((one,),) = read.series.values()
    assert_is_ball(one.locate(scan())[0][0], label="solid")


def test_real_masks_through_their_table(real_data):
    folder = real_data / "lidc-nodules-3d"
    classes = (("1", "ground_glass"), ("2", "part_solid"), ("3", "part_solid"), ("4", "solid"), ("5", "solid"))
    read = read_lesions(folder / "nodules.csv", ListConfig(class_from="texture", classes=classes))
    rows = list(csv.DictReader((folder / "nodules.csv").read_text().splitlines()))
    assert (len(read.series), read.problems) == (80, ())
    assert read.patients == {row["patient_id"]: row["patient_id"] for row in rows}
    for row in rows:
        (one,) = read.series[row["patient_id"]]
        found, _ = one.locate(read_nifti(Source(folder / row["image"])))
        mask = np.asarray(nib.load(folder / row["mask"]).dataobj)
        (lesion,) = found  # voxels of 1 mm; their file's affine is LPS reversed, so the index is the place
        np.testing.assert_allclose(lesion.center_mm, np.argwhere(mask).mean(axis=0), atol=1e-3)
        assert lesion.diameter_mm == pytest.approx(np.cbrt(6 * mask.sum() / np.pi))
        assert lesion.label == dict(classes)[row["texture"]]


def test_a_change_of_the_file_changes_the_repr(tmp_path):
    write_mask(tmp_path / "scan.nii.gz", ball())
    before = repr(read_lesions(tmp_path, ListConfig()).series["scan"])
    write_mask(tmp_path / "scan.nii.gz", ball(radius=5.0))
    assert repr(read_lesions(tmp_path, ListConfig()).series["scan"]) != before


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A CT series of 24 slices, and a segmentation of it: two balls in the first segment, one in the second."""
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from highdicom.uid import UID
    from pydicom.sr.codedict import codes

    folder = tmp_path_factory.mktemp("segmented")
    hu = np.random.default_rng(0).integers(-1000, 400, SHAPE).astype(np.int16)
    files = dicom_series(folder / "ct", hu, affine_of(SPACING, ORIGIN))
    algorithm = AlgorithmIdentificationSequence("test", codes.cid7162.ArtificialIntelligence, "1")
    described = [
        SegmentDescription(number, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Nodule, SegmentAlgorithmTypeValues.AUTOMATIC,
                           algorithm_identification=algorithm)
        for number, label in ((1, "Solid nodule"), (2, "Jane Doe's (left)"))
    ]  # fmt: skip
    two = ball((-15.0, -25.0, 116.0), 6.0) | ball((8.0, -15.0, 130.0), 7.0)
    pixels = np.stack([two, ball((10.0, -30.0, 110.0), 5.0)], axis=-1)
    fractions = np.where(pixels, 0.75, 0.25 * binary_dilation(pixels, np.ones((3, 3, 3, 1)))).astype(np.float32)  # faint around
    for kind in SegmentationTypeValues.BINARY, SegmentationTypeValues.FRACTIONAL:
        image = Segmentation(
            [pydicom.dcmread(file) for file in files], fractions if kind.value == "FRACTIONAL" else pixels, kind, described,
            UID(), 1, UID(), 1, "lesiongan", "test", "1", "1",
        )  # fmt: skip
        (folder / kind.value).mkdir()
        image.save_as(folder / kind.value / "seg.dcm")
    series, _ = find_series(look_at_all(find_sources([folder / "ct"])))
    return folder, read_series(series[0])


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_a_dicom_segmentation_is_found_where_it_is(segmented, kind):
    folder, volume = segmented
    read = read_lesions(folder / kind, ListConfig())
    assert read.patients == {volume.series_uid: "JD-1"}
    (one,) = read.series[volume.series_uid]
    found, notes = one.locate(volume)
    assert notes == Counter()
    balls = [((-15.0, -25.0, 116.0), 6.0), ((8.0, -15.0, 130.0), 7.0), ((10.0, -30.0, 110.0), 5.0)]
    for lesion, (centre, radius) in zip(sorted(found, key=lambda one: one.center_mm), balls, strict=True):
        assert_is_ball(lesion, centre, radius)


def test_segment_labels_become_classes_only_when_asked(segmented):
    folder, volume = segmented
    file = folder / "BINARY" / "seg.dcm"
    found, notes = located(file, volume, ListConfig(classes=(("Solid nodule", "solid"),)), volume.series_uid)
    assert [lesion.label for lesion in found] == ["solid", "solid"]
    assert notes == {"segment whose SegmentLabel is not among the named classes, left out": 1}
    found, notes = located(file, volume, ListConfig(class_from="SegmentLabel"), volume.series_uid)
    assert [lesion.label for lesion in found] == ["Solid nodule", "Solid nodule"]
    assert notes == {"segment whose SegmentLabel is unfit for a class name, left out": 1}
    with pytest.raises(ValueError, match="SegmentLabel, not in 'texture'"):
        read_lesions(file, ListConfig(class_from="texture"))


def test_a_segmentation_among_slices_and_of_another_scan(segmented, tmp_path):
    folder, volume = segmented
    shutil.copytree(folder / "ct", tmp_path / "all")
    shutil.copy(folder / "BINARY" / "seg.dcm", tmp_path / "all" / "100")
    assert len(located(tmp_path / "all", volume, name=volume.series_uid)[0]) == 3
    with pytest.raises(ValueError, match="none of the images"):
        located(tmp_path / "all", scan(image_uids=("1.2",) * 24), name=volume.series_uid)
    with pytest.raises(ValueError, match="does not lie inside its scan"):
        located(tmp_path / "all", scan(shifted(100, 0, 0)), name=volume.series_uid)
    with pytest.raises(ValueError, match="no lesion list in it"):
        read_lesions(folder / "ct", ListConfig())


def test_damaged_segmentations_are_one_line(segmented, tmp_path):
    folder, volume = segmented
    whole = (folder / "BINARY" / "seg.dcm").read_bytes()
    image = pydicom.dcmread(folder / "BINARY" / "seg.dcm")
    far = image.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    far.ImagePositionPatient = [*far.ImagePositionPatient[:2], 1e6]
    image.save_as(tmp_path / "far.dcm")
    (tmp_path / "cut.dcm").write_bytes(whole[:-500])
    for name in ("far.dcm", "cut.dcm"):
        with pytest.raises(ValueError, match=name) as error:
            located(tmp_path / name, volume, name=volume.series_uid)
        assert "\n" not in str(error.value)
    (tmp_path / "head.dcm").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"head\.dcm"):
        read_lesions(tmp_path / "head.dcm", ListConfig())
