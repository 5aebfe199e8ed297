"""Synthetic files: HU are equal in DICOM, NIfTI and PNG, DICOM says it is synthetic, same input gives same bytes."""

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import affine_of, noise_volume
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from data.dicom_writing import Subject, uid_from, write_series
from data.export import PNG_OFFSET, write_folder_preview, write_patch_dicom, write_patch_nifti, write_png16, write_preview
from data.nifti import write_nifti
from data.patches import Patch, PatchSpec, PatchWriter

SUBJECT = Subject("model 7", "SYNTHETIC^00000007", "SYNTHETIC-7", "synthetic nodule patch", "ab" * 32, "1.0", (-1000, 400))

# DICOM PS3.3, CT Image IOD (A.3): Type 1 attributes of its mandatory modules, then Type 2 ones, which may be empty.
TYPE_1 = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID",
    "ImageType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelData",
]
TYPE_2 = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "SeriesNumber",
    "PositionReferenceIndicator",
    "Manufacturer",
    "InstanceNumber",
    "SliceThickness",
    "KVP",
    "AcquisitionNumber",
    "PatientPosition",
]


@st.composite
def patches(draw):
    """int16 HU (H, W) or (D, H, W), and spacings with digits that no format holds exactly."""
    hu = draw(arrays(np.int16, array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=7)))
    lowest = -PNG_OFFSET if hu.ndim == 2 else -32768
    return np.maximum(hu, np.int16(lowest)), tuple(draw(st.lists(st.floats(0.05, 20), min_size=hu.ndim, max_size=hu.ndim)))


@settings(max_examples=40, deadline=None)
@given(patches())
def test_hu_and_spacing_are_equal_in_all_formats_and_for_other_readers(patch):
    hu, spacing = patch
    with TemporaryDirectory() as folder:
        here = Path(folder)
        write_patch_nifti(hu, spacing, here / "a.nii.gz")
        write_patch_dicom(hu, spacing, SUBJECT, here / "a")
        files = sorted(here.rglob("*.dcm"))
        headers = [pydicom.dcmread(file) for file in files]
        nifti = nib.load(here / "a.nii.gz")
        whole = sitk.ReadImage([str(file) for file in files])
        decoded = {
            "pydicom": np.stack([one.pixel_array * one.RescaleSlope + one.RescaleIntercept for one in headers]),
            "SimpleITK": sitk.GetArrayFromImage(whole),
            "nibabel": np.asarray(nifti.dataobj).T,
        }
        if hu.ndim == 2:
            write_png16(hu, here / "a.png")
            with Image.open(here / "a.png") as image:
                decoded["Pillow"] = np.asarray(image).astype(int)[None] - PNG_OFFSET
    for reader, values in decoded.items():
        np.testing.assert_array_equal(values, hu.reshape(-1, *hu.shape[-2:]), err_msg=reader)
    spacing_of_slice = 1.0 if hu.ndim == 2 else spacing[0]
    assert whole.GetSpacing() == pytest.approx((*spacing[:-3:-1], spacing_of_slice), rel=1e-6)
    assert nifti.header.get_zooms() == pytest.approx((*spacing[:-3:-1], spacing_of_slice), rel=1e-6)
    assert headers[0].PixelSpacing == pytest.approx(spacing[-2:])


@pytest.mark.parametrize("unit", ["HU", "gray"])
def test_a_png_says_what_its_levels_are(tmp_path, unit):
    write_png16(noise_volume()[0], tmp_path / "a.png", unit)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"Comment": f"level = {unit} + 2048"}


@pytest.mark.parametrize("name", ["SYNTHETIC^00000007", "Müller^Jörg", "", "山田^太郎"])
def test_dicom_is_byte_for_byte_what_pydicom_writes(tmp_path, name):
    subject = Subject("model 7", name, "odd", "synthetic nodule patch", "ab" * 32, "1.0", (-1000, 400.5))
    write_series(noise_volume((2, 5, 3)), affine_of((2.5, 1 / 3, 0.7)), subject, [tmp_path / "0", tmp_path / "1"])
    for file in (tmp_path / "0", tmp_path / "1"):
        read = pydicom.dcmread(file)
        for element in (*read.file_meta, *read.iterall()):
            element.value  # noqa: B018  decoded, or pydicom would only copy its bytes
        assert read.PatientName == name
        read.save_as(tmp_path / "again", enforce_file_format=True)
        assert (tmp_path / "again").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_is_what_nibabel_writes(tmp_path, name):
    write_nifti(noise_volume(), affine_of(), tmp_path / name)
    image = nib.load(tmp_path / name)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "again.nii")
    content = (tmp_path / name).read_bytes()
    assert (gzip.decompress(content) if name.endswith("gz") else content) == (tmp_path / "again.nii").read_bytes()


def test_ct_image_has_what_the_standard_asks_and_says_it_is_synthetic(tmp_path):
    write_patch_dicom(noise_volume()[0], (1.0, 1.0), SUBJECT, tmp_path / "a")
    header = pydicom.dcmread(tmp_path / "a.dcm")
    assert [k for k in TYPE_1 if k not in header or header[k].is_empty] == []
    assert [k for k in TYPE_2 if k not in header] == []
    assert header.SyntheticData == "YES"
    assert header.BurnedInAnnotation == "NO"
    assert header.ContributingEquipmentSequence[0].DeviceSerialNumber == SUBJECT.model
    assert "DeidentificationMethod" not in header


def test_a_3d_sample_is_one_series_with_true_geometry(tmp_path):
    hu = noise_volume((5, 8, 9))
    write_patch_dicom(hu, (2.0, 0.7, 0.8), SUBJECT, tmp_path / "a")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "a")))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), hu)
    assert image.GetSpacing() == pytest.approx((0.8, 0.7, 2.0))


def test_same_input_same_bytes_other_pixels_other_uids(tmp_path):
    hu = noise_volume()[:1]
    files = [tmp_path / f"{n}.dcm" for n in range(3)]
    write_series(hu, affine_of(), SUBJECT, files[:1])
    write_series(hu, affine_of(), SUBJECT, files[1:2])
    write_series(hu + np.int16(1), affine_of(), SUBJECT, files[2:])
    assert files[0].read_bytes() == files[1].read_bytes()
    a, b = pydicom.dcmread(files[0]), pydicom.dcmread(files[2])
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert a[keyword].value != b[keyword].value
        assert a[keyword].value.is_valid
    assert uid_from("a", "bc") != uid_from("ab", "c")


def test_what_does_not_fit_a_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dimensions"):
        write_png16(noise_volume(), tmp_path / "a.png")
    with pytest.raises(ValueError, match="below"):
        write_png16(np.full((4, 4), -3000, np.int16), tmp_path / "a.png")
    with pytest.raises(ValueError, match="files"):
        write_series(noise_volume(), affine_of(), SUBJECT, [Path("one")])


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_preview_shows_every_patch_through_the_window(tmp_path):
    hu = np.full((10, 6, 7), -1000, np.int16)
    hu[1] = 400
    write_preview(hu, (-1000, 400), tmp_path / "p.png", columns=4, zoom=1)
    gray = pixels(tmp_path / "p.png")
    assert gray.shape == (3 * 7, 4 * 8)
    assert (gray == 255).sum() == 6 * 7
    assert (gray[:6, 8:15] == 255).all()


def test_preview_has_square_pixels(tmp_path):
    hu = noise_volume((3, 6, 12))
    write_preview(hu, (-1000, 400), tmp_path / "thin.png", (0.5, 0.5), zoom=1)
    write_preview(hu, (-1000, 400), tmp_path / "wide.png", (1.0, 0.5), zoom=1)
    assert pixels(tmp_path / "thin.png").shape == (7, 3 * 13)
    assert pixels(tmp_path / "wide.png").shape == (13, 3 * 13)


def test_preview_groups_rows_by_class_and_names_them(tmp_path):
    hu = np.stack([np.full((5, 5), value, np.int16) for value in (-1000, 400, -300)])
    write_preview(hu, (-1000, 400), tmp_path / "p.png", labels=["solid", "cystic", "solid"], zoom=1)
    gray = pixels(tmp_path / "p.png")
    margin = gray.shape[1] - 2 * 6
    assert gray.shape[0] == 2 * 6
    assert [gray[2, margin + 2], gray[2, margin + 8], gray[8, margin + 2]] == [0, 128, 255]
    assert (gray[:5, :margin] > 100).any()
    assert (gray[6:11, :margin] > 100).any()
    with pytest.raises(ValueError, match="2 labels for 3 patches"):
        write_preview(hu, (-1000, 400), tmp_path / "q.png", labels=["solid", "cystic"])
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_preview_of_cubes_shows_planes_as_radiologists_look_at_them(tmp_path):
    """Blobs in known corners; a patch's axes run to the head, to the back, to the left."""
    hu = np.full((1, 16, 16, 16), -1000, np.int16)
    head, back, left, front, right, middle = slice(12, 16), slice(12, 16), slice(12, 16), slice(0, 4), slice(0, 4), slice(7, 9)
    hu[0, head, middle, left] = 400
    hu[0, head, back, middle] = 400
    hu[0, middle, back, right] = 400
    hu[0, 4:6, front, right] = 400
    write_preview(hu, (-1000, 400), tmp_path / "p.png", (1.0, 1.0, 1.0))
    gray = pixels(tmp_path / "p.png")
    planes = {name: gray[-113:-1, 114 * n : 114 * n + 112] for n, name in enumerate(("axial", "coronal", "sagittal", "projection"))}
    corners = {"top left": (10, 10), "top right": (10, 101), "bottom left": (101, 10), "bottom right": (101, 101)}
    bright = {name: {corner for corner, place in corners.items() if plane[place] > 200} for name, plane in planes.items()}
    assert bright == {
        "axial": {"bottom left"},
        "coronal": {"top right"},
        "sagittal": {"top right"},
        "projection": {"top left", "bottom left"},
    }


def test_preview_of_cubes_has_their_true_proportions(tmp_path):
    hu = np.full((1, 4, 16, 16), 400, np.int16)
    for name, spacing in {"thick": (4.0, 1.0, 1.0), "flat": None, "tall": (8.0, 1.0, 1.0)}.items():
        write_preview(hu, (-1000, 400), tmp_path / f"{name}.png", spacing)
    lit = {name: pixels(tmp_path / f"{name}.png")[20:] == 255 for name in ("thick", "flat", "tall")}
    coronal = {name: (there[:, there.shape[1] // 4 + 20].sum(), there[56, : there.shape[1] // 4].sum()) for name, there in lit.items()}
    assert coronal == {"thick": (112, 112), "flat": (28, 112), "tall": (112, 56)}


@pytest.mark.parametrize(("columns", "drawn"), [(None, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 23]), (5, range(15))])
def test_preview_of_cubes_picks_some_of_many(tmp_path, columns, drawn):
    hu = np.arange(24, dtype=np.int16)[:, None, None, None] * 10 + np.zeros((8, 8, 8), np.int16)
    write_preview(hu, (-10, 245), tmp_path / "p.png", columns=columns)
    gray = pixels(tmp_path / "p.png")[20:]
    per_row = columns or 2
    width = gray.shape[1] // per_row
    shown = [gray[113 * (n // per_row) + 50, width * (n % per_row) + 50] for n in range(len(drawn))]
    assert gray.shape[0] == 113 * (len(drawn) // per_row)
    np.testing.assert_array_equal(shown, 10 * np.array(drawn) + 10)


def test_folder_preview_shows_as_many_patches_of_each_class(tmp_path):
    spec = PatchSpec((6, 6), None, (-1000.0, 400.0), ("background", "common", "rare", "absent"), background="background")
    writer = PatchWriter(tmp_path, spec)
    for n in range(60):
        label, value = ("background", 400) if n % 3 == 0 else ("rare", 0) if n > 50 else ("common", -300)
        writer.add(Patch(np.full((6, 6), value, np.int16), f"p{n}", "s", label, split="train"))
    writer.finish()
    write_folder_preview(tmp_path)
    grid = pixels(tmp_path / "preview.png")[:, -8 * 14 :]
    counts = {value: (grid == value).sum() // 144 for value in (128, 182, 255)}
    assert counts == {128: 32, 182: 6, 255: 0}
