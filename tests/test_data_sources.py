"""Files are found once, links and pipes do no harm, and archives are read where they lie, to a bound."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import affine_of, dicom_series, noise_volume

from data.cohort import find_volumes
from data.cutting import read_volume
from data.nifti import write_nifti
from data.sources import Source, Unreadable, find_sources, memory_bytes


def zipped(target: Path, *files: Path, names: list[str] | None = None) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, name in zip(files, names or [file.name for file in files], strict=True):
            archive.write(file, name)
    return target


def test_every_file_is_found_once_through_links_and_loops(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one").write_text("1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "two").write_text("2")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "elsewhere")
    assert [source.name for source in find_sources([tmp_path / "a"])] == ["two", "one"]


def test_a_pipe_is_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (source,) = find_sources([tmp_path])
    with pytest.raises(Unreadable, match="not a regular file"):
        source.read()


def test_a_series_in_an_archive_is_read_without_unpacking(tmp_path):
    files = dicom_series(tmp_path / "in")
    archive = zipped(tmp_path / "scan.zip", *files, names=[f"../../{n}/{f.name}" for n, f in enumerate(files)])
    before = sorted(tmp_path.rglob("*"))
    (series,), _ = find_volumes([archive])
    np.testing.assert_array_equal(read_volume(series).hu, noise_volume())
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "0").exists()


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".mhd"])
def test_other_formats_in_an_archive(tmp_path, suffix):
    folder = tmp_path / "in"
    folder.mkdir()
    if suffix == ".nii.gz":
        write_nifti(noise_volume(), affine_of(), folder / "ct.nii.gz")
    else:
        sitk.WriteImage(sitk.GetImageFromArray(noise_volume()), str(folder / f"ct{suffix}"), suffix == ".mhd")
    (series,), _ = find_volumes([zipped(tmp_path / "scan.zip", *sorted(folder.iterdir()))])
    assert series.uid == "ct"
    np.testing.assert_array_equal(read_volume(series).hu, noise_volume())


def test_bombs_and_damaged_archives_are_refused(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("zeros", bytes(50 << 20))
    with pytest.raises(Unreadable, match="unpacks to more"):
        list(find_sources([bomb]))
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(Unreadable, match=r"text\.zip: damaged zip"):
        list(find_sources([tmp_path / "text.zip"]))
    whole = bytearray(zipped(tmp_path / "a.zip", *dicom_series(tmp_path / "in")).read_bytes())
    whole[60] ^= 0xFF
    (tmp_path / "b.zip").write_bytes(whole)
    with pytest.raises(Unreadable, match=r"b\.zip/000\.dcm"):
        next(find_sources([tmp_path / "b.zip"])).read()


def test_reasons_hold_no_file_and_no_value():
    error = Unreadable(Source(Path("/scans/Doe^Jane/1.dcm")), "PixelSpacing is not above 0", "0,\n0")
    assert str(error) == "/scans/Doe^Jane/1.dcm: PixelSpacing is not above 0: 0, 0"
    assert error.reason == "PixelSpacing is not above 0"


def test_memory_is_that_of_this_machine_or_less():
    assert 1 << 28 < memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
