"""Scans with synthetic lesions as files: every voxel outside them as it was, for every reader; nothing of the patient's header; the same bytes twice."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from canaries import leaks
from canary_cohort import dicom as canary_dicom
from conftest import dicom_series
from PIL import Image
from test_data_implanting import CUBE, ISOTROPIC, balls
from test_data_writing import TYPE_1, TYPE_2

from data.cohort import find_volumes
from data.cutting import read_volume
from data.implanting import drawn
from data.lesion_list import ListConfig
from data.lesions import read_lesions
from data.patches import PatchFolder
from data.phantom import chest
from data.placing import Order, place_lesions, read_scan, scan_of
from data.scan_writing import COLUMNS, Composer, facts, write_composites
from data.volume import Volume, spacing_of

MODEL, WINDOW = "ab" * 32, (-1000.0, 400.0)


def compose(scan, out: Path, seeds=(0, 7), count=2, diameter_mm=12.0, anatomy="unknown", nifti=True):
    """Writes the folder; the composer, and what write_composites yielded."""
    orders = [Order(seed, n, 1000 * seed + n, "solid", diameter_mm) for seed in seeds for n in range(1, count + 1)]
    composer = Composer(scan, MODEL, "1.0", WINDOW, ISOTROPIC, anatomy, nifti)
    out.mkdir()
    return composer, list(write_composites(out, composer, drawn(scan, place_lesions(scan, orders), CUBE, ISOTROPIC, balls)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A phantom's series as a hospital has it, full of canaries, the scan that is read from it, and the folder that is made of that."""
    place = tmp_path_factory.mktemp("made")
    volume, lesions = chest(np.random.default_rng(3), "", matrix=128, slice_mm=5.0, lesions=3)
    dicom_series(place / "series", volume.hu, volume.affine)
    scan = read_scan(str(place / "series"))
    composer, done = compose(scan, place / "out")
    return place / "out", scan, composer, done


def read(folder: Path) -> Volume:
    (series,), _ = find_volumes([folder])
    return read_volume(series)


def stored_mask(scan, one) -> np.ndarray:
    mask = np.zeros(scan.stored.hu.shape, bool)
    scan.stored.axial_view(mask)[one.box] = one.mask
    return mask


def near(scan, lesions) -> np.ndarray:
    """bool of the stored shape: within a lesion's support, measured to voxels' centres."""
    places = np.stack(np.meshgrid(*map(np.arange, scan.axial.hu.shape), indexing="ij"), axis=-1)
    inside = [
        np.linalg.norm((places - scan.axial.index_of(one.center_mm)) * scan.axial.spacing_mm, axis=-1) <= one.support_mm + 1e-6
        for one in lesions
    ]
    mask = np.zeros(scan.stored.hu.shape, bool)
    scan.stored.axial_view(mask)[...] = np.any(inside, axis=0)
    return mask


def test_every_voxel_outside_the_lesions_is_as_it_was(made):
    out, scan, _, done = made
    assert [seed for seed, _ in done] == [0, 7]
    for seed, lesions in done:
        ours, outside = read(out / "dicom" / str(seed)), ~near(scan, lesions)
        files = sorted((out / "dicom" / str(seed)).iterdir())
        assert [file.name for file in files] == [f"{k + 1:04d}.dcm" for k in range(47)]
        theirs = np.stack([pydicom.dcmread(file).pixel_array for file in files])
        nifti = sitk.GetArrayFromImage(sitk.ReadImage(out / "nifti" / f"{seed}.nii.gz"))
        for hu in (ours.hu, theirs, nifti):
            np.testing.assert_array_equal(hu[outside], scan.stored.hu[outside])
            np.testing.assert_array_equal(hu, ours.hu)
        np.testing.assert_allclose(ours.affine, scan.stored.affine, atol=1e-6)
        for one in lesions:
            assert (ours.hu != scan.stored.hu)[stored_mask(scan, one)].mean() > 0.99
            assert max(one.support_mm for one in lesions) < 6 + 8


@pytest.mark.parametrize("turn", [(2, 0, 1), (1, 2, 0)], ids=["sagittal", "coronal"])
def test_a_series_keeps_the_axes_it_is_stored_with(made, tmp_path, turn):
    """And flipped ones: rows from back to front."""
    _, scan, _, done = made
    affine, hu = scan.stored.affine[:, [*turn, 3]].copy(), scan.stored.hu.transpose(turn)
    affine[:3, 3] += affine[:3, 1] * (hu.shape[1] - 1)
    affine[:3, 1] *= -1
    other = scan_of(Volume(np.ascontiguousarray(hu[:, ::-1]), spacing_of(affine), affine, ""))
    _, again = compose(other, tmp_path / "out", seeds=(7,))
    volume = read(tmp_path / "out" / "dicom" / "7")
    axial = read(made[0] / "dicom" / "7")
    np.testing.assert_array_equal(volume.axial().hu, axial.hu)
    np.testing.assert_allclose(again[0][1][1].center_mm, done[1][1][1].center_mm, atol=1e-6)
    seg = pydicom.dcmread(tmp_path / "out" / "seg" / "7-2.dcm").pixel_array
    np.testing.assert_array_equal(seg, stored_mask(other, again[0][1][1]))


def test_a_segmentation_lies_voxel_on_voxel_for_every_reader(made):
    out, scan, _, done = made
    assert sorted(file.name for file in (out / "seg").iterdir()) == ["0-1.dcm", "0-2.dcm", "7-1.dcm", "7-2.dcm"]
    for seed, lesions in done:
        images = sorted((out / "dicom" / str(seed)).iterdir())
        uids = [pydicom.dcmread(image, stop_before_pixels=True).SOPInstanceUID for image in images]
        for one in lesions:
            file, mask = out / "seg" / f"{one.placed.name}.dcm", stored_mask(scan, one)
            np.testing.assert_array_equal(pydicom.dcmread(file).pixel_array, mask)
            itk, ct = sitk.ReadImage(file), sitk.ReadImage(images)
            np.testing.assert_array_equal(sitk.GetArrayFromImage(itk) > 0, mask)
            for a, b in ((itk.GetSpacing(), ct.GetSpacing()), (itk.GetOrigin(), ct.GetOrigin()), (itk.GetDirection(), ct.GetDirection())):
                assert a == pytest.approx(b)
            seg = highdicom.seg.segread(file)
            np.testing.assert_array_equal(seg.get_pixels_by_source_instance(uids)[..., 0], mask)
            assert seg.SegmentSequence[0].SegmentLabel == "solid"
    (series,), _ = find_volumes([out / "dicom" / "7"])
    listed = read_lesions(out / "seg", ListConfig(class_from="SegmentLabel")).series[series.uid]
    found = [lesion for one in listed for lesion in one.locate(read_volume(series))[0]]
    np.testing.assert_allclose(sorted(one.center_mm for one in found), sorted(one.center_mm for one in done[1][1]), atol=1.5)


def test_slices_that_overlap_keep_their_thickness_and_the_segmentation_its_step(made, tmp_path):
    volume = made[1].stored
    for file in dicom_series(tmp_path / "series", volume.hu, volume.affine):
        image = pydicom.dcmread(file)
        image.SliceThickness = 10
        image.save_as(file)
    compose(read_scan(str(tmp_path / "series")), tmp_path / "out", seeds=(7,), count=1)
    ct, seg = (pydicom.dcmread(tmp_path / "out" / name) for name in ("dicom/7/0001.dcm", "seg/7-1.dcm"))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (ct.SliceThickness, measures.SliceThickness, measures.SpacingBetweenSlices) == (10, 10, 5)


@pytest.mark.parametrize(("anatomy", "scene"), [("unknown", "an acquired CT"), ("phantom", "a procedural CT phantom")])
def test_headers_say_what_was_done(made, tmp_path, anatomy, scene):
    out, _, _, _ = made
    if anatomy == "phantom":
        compose(made[1], tmp_path / "out", anatomy=anatomy)
        out = tmp_path / "out"
    images = [pydicom.dcmread(out / "dicom" / name) for name in ("0/0001.dcm", "0/0002.dcm", "7/0001.dcm")]
    image = images[0]
    assert [k for k in TYPE_1 if k not in image or image[k].is_empty] == []
    assert [k for k in TYPE_2 if k not in image] == []
    assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
    assert (image.SyntheticData, image.PatientIdentityRemoved, image.LongitudinalTemporalInformationModified) == ("YES", "YES", "REMOVED")
    assert (
        image.DerivationDescription == f"Synthetic lesions, drawn by a generator, were set into {scene}; voxels outside them keep their HU"
    )
    assert len(image.DeidentificationMethod) <= 64
    assert scene in image.ContributingEquipmentSequence[0].ContributionDescription
    assert image.SeriesDescription == f"synthetic lesions in {'a phantom' if anatomy == 'phantom' else 'a real scan'}, seed 0"
    assert str(image.PatientName).startswith("SYNTHETIC^")
    for keyword in ("KVP", "StudyDate", "PatientPosition", "PatientBirthDate"):
        assert image[keyword].is_empty
    assert "BurnedInAnnotation" not in image  # nobody has looked
    assert len({one.PatientID for one in images}) == 1  # one scan, one patient: a split keeps them together
    for keyword, count in (("SOPInstanceUID", 3), ("SeriesInstanceUID", 2), ("StudyInstanceUID", 2), ("FrameOfReferenceUID", 2)):
        assert len({one[keyword].value for one in images}) == count
    seg = pydicom.dcmread(out / "seg" / "0-1.dcm")
    assert (seg.PatientIdentityRemoved, seg.StudyInstanceUID, seg.PatientID) == ("YES", image.StudyInstanceUID, image.PatientID)
    assert seg.ContributingEquipmentSequence == image.ContributingEquipmentSequence


def test_a_validator_finds_nothing_wrong(made):
    validator = shutil.which("dciodvfy") or pytest.skip("no dciodvfy: apt install dicom3tools")
    for name in ("dicom/0/0001.dcm", "dicom/7/0047.dcm", "seg/0-1.dcm"):
        done = subprocess.run([validator, str(made[0] / name)], capture_output=True, text=True, timeout=30)
        found = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Abort"))]
        assert [line for line in found if "(0x0008,0x001c)" not in line] == []  # Synthetic Data is younger than many a dictionary


def test_lists_say_what_is_there_and_prepare_cuts_it(made, tmp_path, command):
    out, _, _, done = made
    lesions = [one for _, of_seed in done for one in of_seed]
    with open(out / "annotations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]
    uids = [str(pydicom.dcmread(out / "dicom" / str(one.placed.seed) / "0001.dcm").SeriesInstanceUID) for one in lesions]
    assert [row["seriesuid"] for row in rows] == uids
    np.testing.assert_allclose(
        [[float(row[f"coord{axis}"]) for axis in "XYZ"] for row in rows], [one.center_mm for one in lesions], atol=1e-3
    )
    with open(out / "lesions.csv", newline="") as file:
        told = list(csv.DictReader(file))
    assert tuple(told[0]) == COLUMNS
    assert [(row["seed"], row["lesion"], row["asked_mm"]) for row in told] == [(str(s), str(n), "12.000") for s in (0, 7) for n in (1, 2)]
    cut = command("data", "prepare", out / "dicom", "--lesions", out / "annotations.csv", "--out", "patches", "--size", 32, "--processes", 1,
                  "--background", 0, "--validation", 0, "--test", 0)  # fmt: skip
    assert cut.code == 0, cut.err
    patches = PatchFolder.open(tmp_path / "patches")
    assert len({row.patient for row in patches.rows}) == 1
    assert len(patches) == 4
    hu = patches.hu(range(4)).astype(float)
    assert (hu[:, 14:18, 14:18].mean(axis=(1, 2)) > -250).all()
    assert (np.percentile(hu, 25, axis=(1, 2)) < -600).all()


def test_the_same_again_is_the_same_bytes(made, tmp_path):
    compose(made[1], tmp_path / "out")
    compose(made[1], tmp_path / "other", seeds=(7,))
    files = {str(file.relative_to(made[0])): file.read_bytes() for file in made[0].rglob("*") if file.is_file()}
    assert len(files) == 2 * 47 + 4 + 2 + 3
    assert files == {str(file.relative_to(tmp_path / "out")): file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    for name in ("dicom/7/0020.dcm", "seg/7-2.dcm", "nifti/7.nii.gz"):
        assert (tmp_path / "other" / name).read_bytes() == files[name]


def test_nothing_of_the_patient_is_in_any_byte(tmp_path):
    """Every tag of the scan is planted with canaries, private and nested ones, and so is its folder's name."""
    canary_dicom(tmp_path / "CanaryFolder", 1)
    scan = read_scan(str(tmp_path / "CanaryFolder"))
    assert leaks(tmp_path / "CanaryFolder")
    composer, done = compose(scan, tmp_path / "out", diameter_mm=9.0)
    (tmp_path / "out" / "sampling.json").write_text(json.dumps(facts(composer, done)))
    assert leaks(tmp_path / "out") == []


def test_what_is_said_of_slices_and_other_lesions(made):
    _, _, composer, done = made
    said = facts(composer, done)
    assert "no list was given" in said["lesions_of_the_scan"]
    assert (
        "a slice shows the mean of 5 mm: of the smallest lesion here, 12.0 mm, at most 100% of its contrast"
        in said["scan"]["what_slices_show"]
    )
    assert [one["lesions"] for one in said["series"]] == [2, 2]
    json.dumps(said)


def test_the_preview_shows_each_lesion_beside_what_was_there(made):
    with Image.open(made[0] / "preview.png") as picture:
        gray = np.asarray(picture)
    assert gray.shape[0] == 20 + 4 * 113
    rows = gray[20:].reshape(4, 113, -1)
    half = 4 * 114 - 1
    left, right = rows[:, 50:62, -2 * half :][:, :, 50:62], rows[:, 50:62, -half:][:, :, 50:62]  # the middles of both axial planes
    assert (right.mean(axis=(1, 2)) > left.mean(axis=(1, 2)) + 60).all()


def test_a_real_scan_of_thick_slices(real_data, tmp_path):
    scan = read_scan(str(real_data / "ct-series"), str(real_data / "ct-series" / "annotations.csv"))
    _, ((_, lesions),) = compose(scan, tmp_path / "out", seeds=(3,), count=3, diameter_mm=14.0, anatomy="public")
    volume = read(tmp_path / "out" / "dicom" / "3")
    outside = ~near(scan, lesions)
    np.testing.assert_array_equal(volume.hu[outside], scan.stored.hu[outside])
    for one in lesions:
        around, _, after = one.noise_hu
        assert 5 < around < 15
        assert after == pytest.approx(around, rel=0.5)
        assert 1 <= one.slices <= 3
        assert one.diameter_mm == pytest.approx(14, abs=0.5)
        assert one.mean_hu[1] > one.mean_hu[0] + 300
        for other in scan.taken:
            assert np.linalg.norm(np.subtract(one.center_mm, other.center_mm)) > 7 + other.radius_mm
