"""Reading DICOM series: HU and geometry equal the truth, or one line names the file and the cause."""

import contextlib
import random
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from catalogue_folders import enhanced
from conftest import affine_of, dicom_series, noise_volume
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

import data.dicom_codecs
from data.acquisition import acquisition_of
from data.dicom import Series, find_series, look_at_all, read_series
from data.dicom_codecs import check_stream
from data.dicom_file import read_dicom
from data.dicom_slices import slices_of
from data.sources import Source, Unreadable, find_sources
from data.volume import AIR_HU, PADDING_HU


def only_series(folder: Path) -> Series:
    series, skipped = find_series(look_at_all(find_sources([folder])))
    assert len(series) == 1, skipped
    return series[0]


def edit(file: Path, **attributes) -> None:
    """Changes attributes of a file; None removes one."""
    header = pydicom.dcmread(file)
    with pydicom.config.disable_value_validation():
        for keyword, value in attributes.items():
            if value is None:
                delattr(header, keyword)
            elif keyword.startswith("PixelPadding"):
                header.add_new(keyword, "SS", value)
            else:
                setattr(header, keyword, value)
        header.save_as(file)


def test_reads_back_what_was_written(tmp_path):
    dicom_series(tmp_path)
    volume = read_series(only_series(tmp_path))
    np.testing.assert_array_equal(volume.hu, noise_volume())
    np.testing.assert_allclose(volume.affine, affine_of(), atol=1e-9)
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.8))


def test_order_comes_from_positions_not_from_names_or_numbers(tmp_path):
    files = dicom_series(tmp_path)
    random.Random(1).shuffle(files)
    for n, file in enumerate(files):
        edit(file, InstanceNumber=n + 1, SliceThickness="9", SpacingBetweenSlices="0.1", SliceLocation=str(-n))
        file.rename(tmp_path / f"x{n}.dcm")
    volume = read_series(only_series(tmp_path))
    np.testing.assert_array_equal(volume.hu, noise_volume())
    assert volume.spacing_mm[0] == pytest.approx(2.5)


def test_oblique_geometry_is_kept(tmp_path):
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    affine = affine_of()
    affine[:3, :3] = turn @ affine[:3, :3]
    dicom_series(tmp_path, affine=affine)
    np.testing.assert_allclose(read_series(only_series(tmp_path)).affine, affine, atol=1e-6)


def test_each_slice_has_its_own_rescale(tmp_path):
    files = dicom_series(tmp_path)
    for n, file in enumerate(files):
        edit(file, RescaleSlope=str(1 + n % 2), RescaleIntercept=str(-10 * n))
    expected = np.stack([hu.astype(int) * (1 + n % 2) - 10 * n for n, hu in enumerate(noise_volume())])
    expected[expected < -1500] = AIR_HU  # below anything a scanner measures
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, expected)


def test_unsigned_twelve_bit_pixels_with_overlay_in_the_high_bits(tmp_path):
    for file in dicom_series(tmp_path):
        header = pydicom.dcmread(file)
        stored = (header.pixel_array.astype(int) + 1024).astype(np.uint16) | np.uint16(0x8000)
        header.PixelData, header.PixelRepresentation = stored.tobytes(), 0
        header.BitsStored, header.HighBit, header.RescaleIntercept = 12, 11, "-1024"
        header.save_as(file)
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, noise_volume())


def test_signed_twelve_bit_pixels_without_sign_extension(tmp_path):
    for file in dicom_series(tmp_path):
        header = pydicom.dcmread(file)
        header.PixelData = (header.pixel_array & 0x0FFF).astype(np.int16).tobytes()
        header.BitsStored, header.HighBit = 12, 11
        header.save_as(file)
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, noise_volume())


def test_padding_becomes_air_never_anatomy(tmp_path):
    hu = noise_volume()
    hu[:, :4] = 500
    files = dicom_series(tmp_path, hu)
    for file in files:
        edit(file, PixelPaddingValue=500)
    expected = np.where(hu == 500, AIR_HU, hu)
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, expected)
    for file in files:  # from the padding value to its limit (PS3.3, C.7.5.1.1.2)
        edit(file, PixelPaddingValue=450, PixelPaddingRangeLimit=500)
    between = np.where((hu >= 450) & (hu <= 500), AIR_HU, hu)
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, between)
    for file in files:  # the limit may be the lower end
        edit(file, PixelPaddingValue=500, PixelPaddingRangeLimit=450)
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, between)
    for file in files:
        edit(file, PixelPaddingRangeLimit=None)
    hu[:, :4] = -3024  # undeclared
    for k, file in enumerate(files):
        edit(file, PixelData=hu[k].tobytes(), PixelPaddingValue=None)
    assert (read_series(only_series(tmp_path)).hu[:, :4] == AIR_HU).all()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_compression_is_lossless(tmp_path, syntax):
    hu = noise_volume((3, 64, 72))
    for file in dicom_series(tmp_path, hu):
        header = pydicom.dcmread(file)
        header.compress(syntax, generate_instance_uid=False)
        header.save_as(file)
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, hu)


def jpeg(rows, columns, components, huffman=b""):
    """The segments of a JPEG stream up to its scan."""
    frame = struct.pack(">BHHB", 12, rows, columns, components) + bytes(3 * components)
    segments = ((0xC4, huffman), (0xC3, frame), (0xDA, b""))
    return b"\xff\xd8" + b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body for marker, body in segments)


def jpeg_2000(rows, columns, components):
    """The SIZ segment of a JPEG 2000 stream, its image off the grid's corner."""
    return b"\xff\x4f\xff\x51" + bytes(4) + struct.pack(">4I", 5 + columns, 3 + rows, 5, 3) + bytes(16) + struct.pack(">H", components)


@pytest.mark.parametrize("stream", [jpeg, jpeg_2000])
def test_a_compressed_frame_has_its_headers_shape_and_one_component(stream):
    check_stream(stream(7, 9, 1), 7, 9)
    for wrong in ((9, 7, 1), (7, 9, 3), (8, 9, 1)):
        with pytest.raises(ValueError, match="components, Rows x Columns are 7 x 9"):
            check_stream(stream(*wrong), 7, 9)


@pytest.mark.parametrize(("codes", "whole"), [([0, 2, 1], True), ([2], True), ([3], False), ([1, 3], False), ([0, 0, 9], False)])
def test_huffman_tables_hold_no_more_codes_than_their_lengths_allow(codes, whole):
    table = bytes([0, *codes, *[0] * (16 - len(codes)), *range(sum(codes))])
    with contextlib.nullcontext() if whole else pytest.raises(ValueError, match="Huffman"):
        check_stream(jpeg(7, 9, 1, table), 7, 9)


def test_same_instance_twice_is_read_once(tmp_path):
    files = dicom_series(tmp_path)
    (tmp_path / "copy.dcm").write_bytes(files[2].read_bytes())
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, noise_volume())


def test_positions_rounded_to_a_tenth_are_no_gap(tmp_path):
    for n, file in enumerate(dicom_series(tmp_path)):
        edit(file, ImagePositionPatient=["-30", "-40", f"{100 + 2.5 * n + 0.04 * (-1) ** n:.2f}"])
    assert read_series(only_series(tmp_path)).hu.shape == noise_volume().shape


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


REFUSED = {
    "missing slice": (lambda f: f.unlink(), "missing"),
    "two images at one position": (lambda f: edit(f, ImagePositionPatient=["-30", "-40", "100"]), "same ImagePositionPatient"),
    "sideways shift": (lambda f: edit(f, ImagePositionPatient=["-30", "-37", "107.5"]), "ImagePositionPatient"),
    "a slice out of place": (lambda f: edit(f, ImagePositionPatient=["-30", "-40", "107.2"]), "ImagePositionPatient"),
    "no position": (lambda f: edit(f, ImagePositionPatient=None), "ImagePositionPatient is absent"),
    "position not finite": (lambda f: edit(f, ImagePositionPatient=["-30", "-40", "NaN"]), "ImagePositionPatient"),
    "other spacing": (lambda f: edit(f, PixelSpacing=["0.9", "0.9"]), "PixelSpacing"),
    "other orientation": (lambda f: edit(f, ImageOrientationPatient=["1", "0", "0", "0", "0", "-1"]), "ImageOrientationPatient"),
    "other frame of reference": (lambda f: edit(f, FrameOfReferenceUID="1.2.3"), "FrameOfReferenceUID"),
    "other size": (lambda f: edit(f, Rows=10), "Rows"),
    "no slope": (lambda f: edit(f, RescaleSlope=None), "RescaleSlope is absent"),
    "slope 0": (lambda f: edit(f, RescaleSlope="0"), "RescaleSlope is 0"),
    "not HU": (lambda f: edit(f, RescaleType="US"), "RescaleType"),
    "pixels in the upper bits": (lambda f: edit(f, BitsStored=12, HighBit=15), "HighBit"),
    "two slopes": (lambda f: edit(f, RescaleSlope=["1", "2"]), "RescaleSlope has 2 values"),
    "pixels cut off": (truncated, "PixelData"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_bad_slice_refuses_the_series_naming_file_and_cause(tmp_path, case):
    spoil, cause = REFUSED[case]
    files = dicom_series(tmp_path)
    spoil(files[3])
    with pytest.raises(ValueError, match=cause) as error:
        read_series(only_series(tmp_path))
    assert any(str(f) in str(error.value) or f.name in str(error.value) for f in files[2:5] + files[:1])
    assert "\n" not in str(error.value)


def test_bytes_inserted_among_the_pixels_are_noticed_and_padding_behind_them_is_none(tmp_path):
    file = dicom_series(tmp_path)[2]
    content = file.read_bytes()
    file.write_bytes(content + bytes(6))
    np.testing.assert_array_equal(read_series(only_series(tmp_path)).hu, noise_volume())
    file.write_bytes(content[:-200] + b"\1\2\3\4\5\6" + content[-200:])
    with pytest.raises(Unreadable, match=r"002\.dcm: what follows its PixelData are no elements"):
        read_series(only_series(tmp_path))


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("SOMATOM Force", True), ("Brilliance 64", True), ("CT 1234", True), ("CT 12345", False), ("CT 1943-12-07", False), ("Anna 64", False),
        ("CT of ANNAs", False), ("64 slices", False), ("A" * 25, False), ("A, B", False),
    ],
)  # fmt: skip
def test_a_models_name_is_kept_where_it_repeats_nothing_of_the_hospital_and_holds_no_long_number(model, kept):
    header = Dataset()
    header.ManufacturerModelName, header.InstitutionName = model, "St. Anna, Linz"
    assert acquisition_of(header).model == (model if kept else "")


def test_a_doubled_slice_without_instance_uid_is_refused(tmp_path):
    files = dicom_series(tmp_path)
    (tmp_path / "copy.dcm").write_bytes(files[2].read_bytes())
    for file in (files[2], tmp_path / "copy.dcm"):
        edit(file, SOPInstanceUID=None)
    with pytest.raises(ValueError, match="same ImagePositionPatient"):
        read_series(only_series(tmp_path))


def test_32_bit_pixels_are_refused(tmp_path):
    files = dicom_series(tmp_path)
    for file in files:
        header = pydicom.dcmread(file)
        header.PixelData = header.pixel_array.astype(np.int32).tobytes()
        header.BitsAllocated, header.BitsStored, header.HighBit = 32, 32, 31
        header.save_as(file)
    with pytest.raises(ValueError, match="BitsAllocated is not 8 or 16: 32"):
        read_series(only_series(tmp_path))


@pytest.mark.parametrize("seed", range(5))
def test_flipped_bytes_never_crash(tmp_path, seed):
    rng = np.random.default_rng(seed)
    files = dicom_series(tmp_path, noise_volume((3, 8, 8)))
    whole = files[1].read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(132, len(whole) - 128, 2):
            content[place] = rng.integers(256)
        files[1].write_bytes(content)
        with contextlib.suppress(ValueError):  # anything else fails the test
            series, _ = find_series(look_at_all(map(Source, files)))
            read_series(series[0])


def test_gantry_tilt_is_refused(tmp_path):
    affine = affine_of()
    affine[1, 0] = 0.5
    dicom_series(tmp_path, affine=affine)
    with pytest.raises(ValueError, match=r"gantry tilt.*11\.3 degrees"):
        read_series(only_series(tmp_path))


def test_one_slice_is_no_volume(tmp_path):
    dicom_series(tmp_path, noise_volume((1, 8, 8)))
    with pytest.raises(ValueError, match="single slice"):
        read_series(only_series(tmp_path))


def test_other_files_are_skipped_with_a_reason(tmp_path):
    files = dicom_series(tmp_path)
    edit(files[0], Modality="MR")
    edit(files[1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    files[2].write_bytes(b"")
    files[3].write_bytes(files[3].read_bytes()[:200])
    (tmp_path / "Thumbs.db").write_bytes(b"\x00" * 500)
    series, skipped = find_series(look_at_all(find_sources([tmp_path])))
    reasons = {s.file.name: s.reason for s in skipped}
    assert len(series[0].files) == 2
    assert "Modality" in reasons[files[0].name]
    assert "localizer" in reasons[files[1].name]
    assert set(reasons) == {*(f.name for f in files[:4]), "Thumbs.db"}


def test_frames_are_taken_apart_once_a_file(tmp_path, monkeypatch):
    truth = enhanced()(tmp_path / "enhanced0")
    (file,) = (tmp_path / "enhanced0").iterdir()
    image = pydicom.dcmread(file)
    image.compress(RLELossless, generate_instance_uid=False)
    image.save_as(file)
    series = only_series(tmp_path / "enhanced0")
    calls = []

    def counted(name, plain):
        return lambda *given, **options: calls.append(name) or plain(*given, **options)

    monkeypatch.setattr(data.dicom_codecs, "generate_frames", counted("frames", data.dicom_codecs.generate_frames))
    monkeypatch.setattr(pydicom, "dcmread", counted("file", pydicom.dcmread))
    np.testing.assert_array_equal(read_series(series).hu, truth.hu)
    assert calls.count("frames") == 1
    assert calls.count("file") <= 2  # the header, perhaps, and all of it


def test_real_series_equals_simpleitk(real_data):
    import SimpleITK as sitk

    series = only_series(real_data / "ct-series")
    ours = read_series(series)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series.files[0].path.parent)))
    theirs = reader.Execute()
    np.testing.assert_array_equal(ours.hu, sitk.GetArrayFromImage(theirs))
    np.testing.assert_allclose(ours.affine[:3, 3], theirs.GetOrigin(), atol=1e-6)
    np.testing.assert_allclose(ours.spacing_mm[::-1], theirs.GetSpacing(), atol=1e-6)


def test_real_odd_files_are_slices_or_skipped_as_listed(real_data):
    import csv

    series, skipped = find_series(look_at_all(find_sources([real_data / "dicom-edge"])))
    kept = {f.name for s in series for f in s.files}
    reasons = {s.file.name: s.reason for s in skipped}
    rows = list(csv.DictReader((real_data / "dicom-edge" / "expected.csv").read_text().splitlines()))
    assert len(rows) > 10
    for row in rows:
        if row["expected"].startswith("read"):
            assert row["file"] in kept, reasons.get(row["file"])
        else:
            assert row["file"] not in kept
            assert reasons.get(row["file"]) or row["file"] == "DICOMDIR"


def test_real_compressed_slices_decode_and_padding_is_air(real_data):
    folder = real_data / "dicom-edge"
    hu = {name: next(slices_of(read_dicom(Source(folder / name), pixels=True))).hu() for name in (
        "CT_small.dcm", "693_UNCR.dcm", "wg04_CT1_RLE.dcm", "wg04_CT1_JPLL.dcm", "wg04_CT2_J2KR.dcm", "wg04_CT2_JLSN.dcm")}  # fmt: skip
    np.testing.assert_array_equal(hu["wg04_CT1_RLE.dcm"], hu["wg04_CT1_JPLL.dcm"])  # one image, two codecs
    near = np.abs(hu["wg04_CT2_J2KR.dcm"].astype(int) - hu["wg04_CT2_JLSN.dcm"])
    assert near.max() <= 10  # JPEG-LS near-lossless
    assert (hu["693_UNCR.dcm"][:5, :5] == AIR_HU).all()  # outside the field of view: stored -2000, -3024 after rescale
    for name, values in hu.items():
        assert values.min() >= PADDING_HU, name
        assert values.max() > 300, name
