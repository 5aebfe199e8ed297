"""NIfTI and MetaImage: geometry equals nibabel's and SimpleITK's, odd files are refused by name."""

import contextlib
import gzip
import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import affine_of, noise_volume

from data.metaimage import read_metaimage
from data.nifti import read_nifti, write_nifti
from data.sources import Source

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path, values, affine=None, **header):
    image = nib.Nifti1Image(values, np.diag([0.7, 0.8, 2.5, 1.0]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def test_written_nifti_reads_back_and_other_readers_agree(tmp_path):
    write_nifti(noise_volume(), affine_of(), tmp_path / "a.nii.gz")
    volume = read_nifti(Source(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(volume.hu, noise_volume())
    np.testing.assert_allclose(volume.affine, affine_of(), atol=1e-5)
    theirs = sitk.ReadImage(str(tmp_path / "a.nii.gz"))  # SimpleITK's world is LPS, as ours
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs), noise_volume())
    np.testing.assert_allclose(theirs.TransformIndexToPhysicalPoint((4, 3, 2)), volume.point_at(np.array([2, 3, 4])), atol=1e-4)


def test_same_volume_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / name[0]).mkdir()
        write_nifti(noise_volume(), affine_of(), tmp_path / name[0] / "x.nii.gz")
    assert (tmp_path / "a" / "x.nii.gz").read_bytes() == (tmp_path / "b" / "x.nii.gz").read_bytes()


def test_units_singleton_dimensions_and_scaling_are_honoured(tmp_path):
    values = noise_volume().T
    for unit, in_mm in (("meter", 1000), ("mm", 1), ("micron", 0.001)):
        image = nib.Nifti1Image(values[..., None], np.diag([0.7 / in_mm, 0.8 / in_mm, 2.5 / in_mm, 1.0]))
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / f"{unit}.nii")
        np.testing.assert_allclose(read_nifti(Source(tmp_path / f"{unit}.nii")).spacing_mm, (2.5, 0.8, 0.7), rtol=1e-5)
    scaled = nib.Nifti1Image(values, np.eye(4))
    scaled.header.set_slope_inter(0.5, -100)
    nib.save(scaled, tmp_path / "scaled.nii")  # stores the values as they are, to be read as 0.5 v - 100
    assert np.abs(read_nifti(Source(tmp_path / "scaled.nii")).hu - (0.5 * noise_volume() - 100)).max() <= 0.5


def test_bad_nifti_is_refused_by_name(tmp_path):
    values = noise_volume().T.astype(np.float32)
    nan = values.copy()
    nan[3, 3, 3] = np.nan
    sheared = np.diag([0.7, 0.8, 2.5, 1.0])
    sheared[1, 2] = 0.6
    save(tmp_path / "four.nii", np.stack([values, values], -1))
    save(tmp_path / "nan.nii", nan)
    save(tmp_path / "windowed.nii", (values - values.min()).clip(0, 255).astype(np.uint8))
    save(tmp_path / "sheared.nii", values, sheared)
    image = nib.Nifti1Image(values, None)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "unset.nii")
    two = nib.Nifti1Image(values, np.diag([0.7, 0.8, 2.5, 1.0]))
    two.set_sform(np.diag([-0.7, 0.8, 2.5, 1.0]), code=1)
    two.set_qform(np.diag([0.7, 0.8, 2.5, 1.0]), code=1)
    nib.save(two, tmp_path / "contradicts.nii")
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress((tmp_path / "four.nii").read_bytes())[:900])
    (tmp_path / "text.nii").write_text("not an image")
    causes = {
        "four": "three dimensions",
        "nan": "NaN",
        "windowed": "windowed",
        "sheared": "sheared",
        "unset": "neither sform",
        "cut": "not a whole",
        "text": "not a whole",
        "contradicts": "sform and qform",
    }
    for name, cause in causes.items():
        (path,) = tmp_path.glob(f"{name}.nii*")
        with pytest.raises(ValueError, match=cause) as error:
            read_nifti(Source(path))
        assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_geometry_and_hu(tmp_path, suffix, compressed):
    image = sitk.GetImageFromArray(noise_volume())
    image.SetSpacing((0.8, 0.7, 2.5))
    image.SetOrigin((-30, -40, 100))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, -1))  # flipped, as some exporters write
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(path), compressed)
    volume = read_metaimage(Source(path))
    np.testing.assert_array_equal(volume.hu, noise_volume())
    point = image.TransformIndexToPhysicalPoint((4, 3, 2))
    assert volume.point_at(np.array([2, 3, 4])) == pytest.approx(point)
    np.testing.assert_array_equal(volume.axial().hu, noise_volume()[::-1, ::-1])


def test_an_oblique_metaimage_lies_where_simpleitk_has_it(tmp_path):
    (a, b), (c, d) = ((np.cos(angle), np.sin(angle)) for angle in (0.5, 0.3))
    image = sitk.GetImageFromArray(noise_volume())
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-30, -40, 100))
    image.SetDirection((np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -d], [0, d, c]])).ravel())
    sitk.WriteImage(image, str(tmp_path / "oblique.mha"))
    volume = read_metaimage(Source(tmp_path / "oblique.mha"))
    for i, j, k in ((0, 0, 0), (4, 3, 2), (20, 0, 5), (0, 17, 1)):
        np.testing.assert_allclose(volume.point_at(np.array([k, j, i])), image.TransformIndexToPhysicalPoint((i, j, k)), atol=1e-4)


def test_metaimage_may_not_read_outside_its_folder(tmp_path):
    inner, scan = tmp_path / "inner", noise_volume((8, 8, 8))  # one that would be read, so that nothing but its place refuses it
    inner.mkdir()
    for place in (tmp_path / "secret.raw", inner / "fine.raw"):
        place.write_bytes(scan.tobytes())
    header = "ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = {}\n"
    (inner / "a.mhd").write_text(header.format("fine.raw"))
    np.testing.assert_array_equal(read_metaimage(Source(inner / "a.mhd")).hu, scan)
    outside = str(tmp_path / "secret.raw")
    hidden = [f"ElementDataFile : {outside}", f"ElementDataFile:{outside}", f"Comment = x\rElementDataFile = {outside}\rA = b"]
    for name in ("../secret.raw", outside, "gone.raw", "LIST"):
        hidden.append(f"ElementDataFile = {name}")
    for line in hidden:
        text = header.replace("ElementDataFile = {}\n", f"{line}\nElementDataFile = LOCAL\n")
        (inner / "a.mhd").write_bytes(text.encode() + scan.tobytes())
        with pytest.raises(ValueError, match=r"a\.mhd"):
            read_metaimage(Source(inner / "a.mhd"))
    (inner / "a.mhd").write_text(header.replace("8 8 8", "8 x 8").format("LOCAL"))
    with pytest.raises(ValueError, match=r"DimSize.*8 x 8"):
        read_metaimage(Source(inner / "a.mhd"))
    (inner / "short.raw").write_bytes(bytes(100))
    (inner / "a.mhd").write_text(header.format("short.raw"))
    with pytest.raises(ValueError, match="1024 bytes of pixels, there are 100"):
        read_metaimage(Source(inner / "a.mhd"))


def test_flipped_bytes_in_a_header_never_crash(tmp_path):
    whole = bytearray(save(tmp_path / "a.nii", noise_volume((3, 5, 4)).T).read_bytes())
    rng = np.random.default_rng(0)
    for n in range(200):
        content = bytearray(whole)
        for place in rng.integers(0, 352, 2):
            content[place] = rng.integers(256)
        path = tmp_path / f"{n}.nii"  # a new name each time: an uncompressed file stays mapped while it is read
        path.write_bytes(content)
        with contextlib.suppress(ValueError), warnings.catch_warnings():  # anything else fails the test
            warnings.simplefilter("ignore", RuntimeWarning)  # scale factors of 1e38
            read_nifti(Source(path))


def test_real_volumes(real_data):
    nodule = next((real_data / "lidc-nodules-3d" / "images").glob("*.nii.gz"))
    assert read_nifti(Source(nodule)).hu.shape == (51, 51, 51)
    lung = real_data / "metaimage" / "3DCT_lung_baseline_small.mha"
    np.testing.assert_array_equal(read_metaimage(Source(lung)).hu, sitk.GetArrayFromImage(sitk.ReadImage(str(lung))))
