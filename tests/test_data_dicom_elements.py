"""The fast walk over a header gives what pydicom's reader gives, or leaves the file to it."""

import numpy as np
import pydicom
import pytest
from conftest import dicom_series, noise_volume
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data.dicom_elements import Decoder, Unusual, find_elements
from data.dicom_file import _META, _WANTED, HEADER, read_dicom, read_files
from data.sources import Source


def nested(*, undefined: bool) -> Dataset:
    inner = Dataset()
    inner.PatientID = "inner"
    inner.PixelSpacing = ["9", "9"]
    middle = Dataset()
    middle.ReferencedImageSequence = Sequence([inner, inner])
    middle.is_undefined_length_sequence_item = undefined
    middle["ReferencedImageSequence"].is_undefined_length = undefined
    return middle


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_finds_what_pydicom_finds_past_nested_sequences(tmp_path, syntax, undefined):
    (file,) = dicom_series(tmp_path, noise_volume((1, 4, 4)))
    image = pydicom.dcmread(file)
    image.ReferencedStudySequence = Sequence([nested(undefined=undefined)])
    image["ReferencedStudySequence"].is_undefined_length = undefined
    image.add_new(0x00091001, "UN", b"private")
    little = syntax != ExplicitVRBigEndian
    if not little:
        image.PixelData = noise_volume((1, 4, 4)).astype(">i2").tobytes()
    image.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(file, image, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little, overwrite=True)
    content = file.read_bytes()
    meta, at = find_elements(content, 132, len(content), implicit=False, order="<", wanted=_META)
    kind = {"implicit": syntax == ImplicitVRLittleEndian, "order": "<" if little else ">"}
    found, stop = find_elements(content, at, len(content), wanted=_WANTED, **kind)
    header = Decoder().decode(content, found, **kind)
    theirs = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=HEADER)
    assert [e for e in header if e.keyword != "SpecificCharacterSet"] == [e for e in theirs if e.keyword != "SpecificCharacterSet"]
    assert header.PatientID == "JD-1"
    assert len(content) - stop <= 12 + 2 * 16
    np.testing.assert_array_equal(
        read_dicom(Source(file), pixels=True).stored().view("<i2" if little else ">i2"), noise_volume((1, 4, 4))[0]
    )


def test_real_headers_are_pydicoms(real_data):
    files = sorted((real_data / "ct-series").rglob("*.dcm"))
    for source, read in read_files(map(Source, files), pixels=False):
        theirs = pydicom.dcmread(source.path, stop_before_pixels=True, specific_tags=HEADER)
        assert list(read().header) == list(theirs)


def test_what_is_not_one_ascending_row_is_left_to_pydicom(tmp_path):
    (file,) = dicom_series(tmp_path, noise_volume((1, 4, 4)))
    content = file.read_bytes()
    place = content.index(b"\x28\x00\x10\x00US")
    for spoiled in (
        content[:place] + b"\x08\x00" + content[place + 2 :],
        content[:place] + content[place:].replace(b"US", b"ZZ", 1),
        content[:place] + content[place : place + 10] + content[place:],  # Rows twice
    ):
        _, at = find_elements(content, 132, len(content), implicit=False, order="<", wanted=())
        with pytest.raises(Unusual):
            find_elements(spoiled, at, len(spoiled), implicit=False, order="<", wanted=())


def test_padding_is_decoded_anew_when_the_pixels_sign_changes(tmp_path):
    files = dicom_series(tmp_path, noise_volume((2, 4, 4)))
    for file, sign in zip(files, (1, 0), strict=True):
        image = pydicom.dcmread(file)
        image.PixelRepresentation = sign
        image.add_new("PixelPaddingValue", "SS" if sign else "US", -2000 if sign else 63536)
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        pydicom.dcmwrite(file, image, implicit_vr=True, little_endian=True, overwrite=True)
    found = [read().header.PixelPaddingValue for _, read in read_files(map(Source, files), pixels=False)]
    assert found == [-2000, 63536]
