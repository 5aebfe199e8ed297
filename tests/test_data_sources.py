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


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.mha", "ct.mhd", "a scan (1) [b].mhd"])
def test_other_formats_in_an_archive(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    if name.endswith(".nii.gz"):
        write_nifti(noise_volume(), affine_of(), folder / name)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(noise_volume()), str(folder / name), name == "ct.mhd")
    archive = zipped(tmp_path / "scan.zip", *sorted(folder.iterdir()))
    with zipfile.ZipFile(archive, "a") as more:  # as the Finder of macOS packs it
        more.writestr(f"__MACOSX/._{name}", b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200))
    (series,), skipped = find_volumes([archive])
    assert series.uid == name.split(".")[0]
    np.testing.assert_array_equal(read_volume(series).hu, noise_volume())
    assert [one.reason for one in skipped] == ["what macOS keeps beside a file"]


def test_what_is_given_twice_or_through_a_link_is_read_once(tmp_path):
    files = dicom_series(tmp_path / "in" / "dicom")
    write_nifti(noise_volume(), affine_of(), tmp_path / "in" / "ct.nii.gz")
    (tmp_path / "links").mkdir()
    for target in (tmp_path / "in" / "ct.nii.gz", tmp_path / "in" / "dicom"):
        (tmp_path / "links" / target.name).symlink_to(target)
    places = [tmp_path / "in", tmp_path / "in", tmp_path / "links", tmp_path / "in" / "ct.nii.gz", files[0]]
    found, skipped = find_volumes(places)
    assert [len(one.files) for one in found] == [len(files), 1]
    for one in found:
        volume = read_volume(one)
        np.testing.assert_array_equal(volume.hu, noise_volume())
        assert volume.notes == ()
    assert skipped == []


def test_a_metaimages_version_is_that_of_its_pixels_too(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(noise_volume()), str(tmp_path / "ct.mhd"))
    one = Source(tmp_path / "ct.mhd")
    before = one.version()
    assert one.version() == before
    status = (tmp_path / "ct.raw").stat()
    (tmp_path / "ct.raw").write_bytes(noise_volume(seed=1).tobytes())
    os.utime(tmp_path / "ct.raw", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert one.version() != before


def test_a_damaged_archive_is_told_once(command, tmp_path):
    dicom_series(tmp_path / "in")
    (tmp_path / "in" / "b.zip").write_bytes(b"PK\3\4aaaa")
    done = command("data", "convert", "in", "out.nii.gz")
    assert done.code == 0
    assert [line for line in done.err.splitlines() if "b.zip" in line] == ["skipped in/b.zip: damaged zip archive"]


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


def test_a_member_that_unpacks_to_more_than_a_scan_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources._MEMBER_BYTES", 1000)
    noise = np.random.default_rng(0).bytes(1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("noise", noise)
        archive.writestr("zeros", bytes(1 << 20))
    whole, bomb = find_sources([tmp_path / "a.zip"])
    assert whole.read() == noise
    with pytest.raises(Unreadable, match=r"a\.zip/zeros: zip member unpacks to more than a scan does"):
        bomb.read()


def test_reasons_hold_no_file_and_no_value():
    error = Unreadable(Source(Path("/scans/Doe^Jane/1.dcm")), "PixelSpacing is not above 0", "0,\n0")
    assert str(error) == "/scans/Doe^Jane/1.dcm: PixelSpacing is not above 0: 0, 0"
    assert error.reason == "PixelSpacing is not above 0"


def test_memory_is_that_of_this_machine_or_less():
    assert 1 << 28 < memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
