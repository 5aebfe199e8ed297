"""Synthetic files: HU are equal in DICOM, NIfTI and PNG, DICOM says it is synthetic, same input gives same bytes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import affine_of, noise_volume
from PIL import Image

from data.dicom_writing import Subject, uid_from, write_series
from data.export import PNG_OFFSET, write_patch_dicom, write_patch_nifti, write_png16, write_preview

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


def test_hu_are_equal_in_all_three_formats_and_for_other_readers(tmp_path):
    hu = noise_volume()[0]
    write_png16(hu, tmp_path / "a.png")
    write_patch_nifti(hu, (0.7, 0.8), tmp_path / "a.nii.gz")
    write_patch_dicom(hu, (0.7, 0.8), SUBJECT, tmp_path / "a")
    header = pydicom.dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(header.pixel_array * header.RescaleSlope + header.RescaleIntercept, hu)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.dcm")))[0], hu)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)[:, :, 0].T, hu)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image).astype(int) - PNG_OFFSET, hu)
    assert header.PixelSpacing == [0.7, 0.8]
    assert nib.load(tmp_path / "a.nii.gz").header.get_zooms()[:2] == pytest.approx((0.8, 0.7))


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


@pytest.mark.parametrize("shape", [(10, 6, 7), (3, 5, 6, 7)])
def test_preview_shows_every_patch_through_the_window(tmp_path, shape):
    hu = np.full(shape, -1000, np.int16)
    hu[1] = 400
    write_preview(hu, (-1000, 400), tmp_path / "p.png", columns=4, zoom=1)
    with Image.open(tmp_path / "p.png") as image:
        gray = np.asarray(image)
    rows = -(-shape[0] // min(4, shape[0]))
    assert gray.shape == (rows * (shape[-2] + 1), min(4, shape[0]) * (shape[-1] + 1))
    assert (gray == 255).sum() == shape[-2] * shape[-1]
