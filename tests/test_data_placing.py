"""Where lesions are set into a scan: inside the lung, clear of its border, of vessels and of one another; the same places from the same seeds."""

import numpy as np
import pydicom
import pytest
from conftest import affine_of, dicom_series, noise_volume

from data.acquisition import Acquisition
from data.lesions import write_annotations
from data.phantom import chest
from data.placing import BORDER_MM, GAP_MM, MOST_TISSUE, Order, check_diameter, place_lesions, read_scan, scan_of
from data.preprocess import lung_mask
from data.volume import Lesion, Volume, spacing_of


@pytest.fixture(scope="module")
def phantom():
    """A chest of 47 slices of 5 mm with three lesions."""
    return chest(np.random.default_rng(3), "phantom", matrix=128, slice_mm=5.0, lesions=3)


@pytest.fixture(scope="module")
def scan(phantom):
    return scan_of(*phantom, listed=True)


def orders(seeds, count=3, diameter_mm=9.0):
    return [Order(seed, n, 1000 * seed + n, "solid", diameter_mm) for seed in seeds for n in range(1, count + 1)]


def distances(volume: Volume, center_mm) -> np.ndarray:
    """In mm, of every voxel's centre from a point."""
    at = volume.index_of(center_mm)
    return np.linalg.norm(
        np.meshgrid(*((np.arange(n) - a) * mm for n, a, mm in zip(volume.hu.shape, at, volume.spacing_mm, strict=True)), indexing="ij"),
        axis=0,
    )


def test_lesions_lie_inside_the_lung_and_away_from_everything(scan):
    """By the lung mask at the scan's own spacing, which placing has not seen."""
    lung = lung_mask(scan.axial)
    placed = place_lesions(scan, orders(range(12)))
    assert len(placed) == 36
    for one in placed:
        away = distances(scan.axial, one.center_mm)
        assert lung[away <= 4.5 + BORDER_MM / 2].all()
        assert np.mean(scan.axial.hu[away <= 4.5] > -500) <= MOST_TISSUE + 0.05
        for other in scan.taken:
            assert np.linalg.norm(np.subtract(one.center_mm, other.center_mm)) >= 4.5 + GAP_MM + other.radius_mm
        for other in placed:
            if other.seed == one.seed and other != one:
                assert np.linalg.norm(np.subtract(one.center_mm, other.center_mm)) >= 9 + GAP_MM
        np.testing.assert_allclose(scan.axial.index_of(one.center_mm), one.index)


def test_places_are_spread_over_both_lungs_and_between_slices(scan):
    placed = place_lesions(scan, orders(range(60), 1, 6.0))
    x, _, z = np.array([one.center_mm for one in placed]).T
    assert 15 < (x > 0).sum() < 45
    assert np.ptp(z) > 100
    between = np.array([one.index[0] % 1 for one in placed])
    assert np.histogram(between, 4, (0, 1))[0].min() > 5


def test_places_follow_from_the_seed_alone(scan):
    whole = place_lesions(scan, orders([3, 4, 5]))
    assert place_lesions(scan, orders([3, 4, 5])) == whole
    assert place_lesions(scan, orders([4])) == whole[3:6]
    assert place_lesions(scan, orders([4], count=2)) == whole[3:5]
    assert len({one.center_mm for one in whole}) == 9


def test_the_lungs_border_is_where_slices_end_it():
    """Lung in slices 3 to 8 of 8 mm: it ends between two middles, and lesions may come as near to that as to a wall beside them."""
    hu = np.full((12, 90, 90), 40, np.int16)
    hu[3:9, 15:75, 15:75] = -850
    affine = affine_of((8.0, 1.0, 1.0))
    scan = scan_of(Volume(hu, spacing_of(affine), affine, ""))
    z = np.array([one.index[0] for one in place_lesions(scan, orders(range(150), 1, 10.0))])
    least = (5 + BORDER_MM) / 8
    assert 2.5 + least <= z.min() < 2.5 + least + 0.4
    assert 8.5 - least - 0.4 < z.max() <= 8.5 - least
    x = np.array([one.index[2] for one in place_lesions(scan, orders(range(150), 1, 10.0))])
    assert 14.5 + 7 <= x.min() < 14.5 + 7 + 4


def test_too_little_room_tells_how_many_found_some(scan, phantom):
    with pytest.raises(
        ValueError, match=r"^seed 7: too little room in the lung: 0 of 2 lesions found a place, and the next, of 150\.0 mm, none"
    ):
        place_lesions(scan, orders([7], 2, 150.0))
    with pytest.raises(
        ValueError, match=r"seed 0: too little room in the lung: \d+ of 60 lesions found a place, and the next, of 30\.0 mm, none"
    ):
        place_lesions(scan, orders([0], 60, 30.0))
    full = scan_of(phantom[0], [Lesion((0.0, 0.0, 0.0), 600.0, "mass")])
    with pytest.raises(ValueError, match="0 of 1"):
        place_lesions(full, orders([0], 1))


@pytest.mark.parametrize(
    ("spacing", "told", "thickness", "least"),
    [
        ((1.0, 0.7, 0.7), None, 1.0, 1.4), ((8.0, 0.65, 0.65), 8.0, 8.0, 4.0), ((2.5, 0.7, 0.7), 5.0, 5.0, 2.5), ((10.0, 0.7, 0.7), 1.0, 1.0, 9.5),
        ((1.0, 0.7, 0.9), 500.0, 1.0, 1.8), ((1.0, 0.7, 0.7), 0.01, 1.0, 1.4),
    ],
)  # fmt: skip
def test_what_the_spacing_can_show(spacing, told, thickness, least):
    """Overlapping slices, slices with gaps in which a lesion might vanish, and thicknesses that make no sense."""
    hu = np.full((40, 60, 60), 40, np.int16)
    hu[5:35, 10:50, 10:50] = -850
    affine = affine_of(spacing)
    scan = scan_of(Volume(hu, spacing, affine, "", acquisition=Acquisition("DICOM", slice_thickness_mm=told)))
    assert (scan.thickness_mm, scan.least_mm) == (thickness, pytest.approx(least))
    check_diameter(scan, least + 1e-6, 30)
    with pytest.raises(
        ValueError,
        match=rf"--diameter {least - 0.1:g}: with pixels of .* mm and slices of {thickness:g} mm every {spacing[0]:g} mm, .* {least:.3g} mm and more",
    ):
        check_diameter(scan, least - 0.1, 30)
    with pytest.raises(ValueError, match="--diameter 31: the model's cube holds lesions of up to 30 mm"):
        check_diameter(scan, 31, 30)


def test_a_series_stored_sagittally_has_its_axial_step_for_thickness(phantom):
    volume, _ = phantom
    turned = Volume(volume.hu.transpose(2, 0, 1), volume.spacing_mm[2:] + volume.spacing_mm[:2], volume.affine[:, [2, 0, 1, 3]], "",
                    acquisition=Acquisition("DICOM", slice_thickness_mm=2.4))  # fmt: skip
    scan = scan_of(turned)
    assert scan.thickness_mm == pytest.approx(5)
    assert place_lesions(scan, orders([1])) == place_lesions(scan_of(volume), orders([1]))


# --- read from disk ---


@pytest.fixture(scope="module")
def folder(phantom, tmp_path_factory):
    """The phantom as DICOM, with its list."""
    volume, lesions = phantom
    place = tmp_path_factory.mktemp("scan")
    files = dicom_series(place / "series", volume.hu, volume.affine)
    write_annotations({pydicom.dcmread(files[0]).SeriesInstanceUID: lesions}, place / "list.csv")
    write_annotations({"1.2.3": lesions}, place / "other.csv")
    aside = volume.affine + np.array([[0, 0, 0, 200], [0, 0, 0, 150], [0, 0, 0, 0], [0, 0, 0, 0]])  # where left is not right
    uid = pydicom.dcmread(dicom_series(place / "aside", volume.hu, aside)[0]).SeriesInstanceUID
    ras = [Lesion((-x - 200, -y - 150, z), 9.0, "solid") for x, y, z in (lesion.center_mm for lesion in lesions)]
    write_annotations({uid: ras}, place / "ras.csv")
    elsewhere = [Lesion((x, y, z - 2000), 9.0, "solid") for x, y, z in (lesion.center_mm for lesion in lesions)]
    write_annotations({uid: elsewhere}, place / "elsewhere.csv")
    return place


def test_a_series_is_read_with_its_list(folder, phantom):
    volume, lesions = phantom
    told = []
    scan = read_scan(str(folder / "series"), str(folder / "list.csv"), told.append)
    np.testing.assert_array_equal(scan.stored.hu, volume.hu)
    assert [one.label for one in scan.taken] == [one.label for one in lesions]
    np.testing.assert_allclose([one.center_mm for one in scan.taken], [one.center_mm for one in lesions], atol=1e-3)
    assert (scan.listed, told) == (True, [])
    bare = read_scan(str(folder / "series"))
    assert (bare.listed, bare.taken) == (False, ())


def test_a_list_that_says_nothing_of_the_series_is_told(folder):
    told = []
    assert read_scan(str(folder / "series"), str(folder / "other.csv"), told.append).taken == ()
    assert [line for line in told if "lists no lesion of this series" in line] == told != []


def test_what_is_no_scan_is_one_line_without_identifiers(folder, tmp_path):
    two, mr = tmp_path / "two", tmp_path / "mr"
    for n in (1, 2):
        dicom_series(two / str(n), noise_volume(seed=n), patient_id=f"JD-{n}")
    for file in dicom_series(mr):
        image = pydicom.dcmread(file)
        image.Modality, image.SOPClassUID = "MR", pydicom.uid.MRImageStorage
        image.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        image.save_as(file)
    dicom_series(tmp_path / "water", np.full((5, 40, 40), 20, np.int16))
    (tmp_path / "empty").mkdir()
    for place, lesions, cause in (
        (two, None, "two: holds 2 series; name a folder or file that holds one"),
        (mr, None, "no CT volume found (6 files, most of them: Modality is MR, not CT)"),
        (tmp_path / "water", None, "water: no lung found"),
        (tmp_path / "empty", None, "no CT volume found"),
        (tmp_path / "gone", None, "no such file or folder"),
        (folder / "series", folder / "gone.csv", "gone.csv: no such file or folder"),
        (folder / "aside", folder / "ras.csv", "the listed lesions lie in the lung only with x and y negated: the list is in RAS"),
        (folder / "aside", folder / "elsewhere.csv", "of the listed lesions, 3, none touches the lung; want LPS mm of this very scan"),
    ):
        with pytest.raises((ValueError, OSError)) as error:
            read_scan(str(place), None if lesions is None else str(lesions))
        assert cause in str(error.value)
        assert "\n" not in str(error.value)
        assert "2.25." not in str(error.value)
