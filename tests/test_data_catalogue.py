"""Every line of the catalogue of odd hospital input gets its stated outcome, through the command line."""

import contextlib
import csv
import gzip
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from catalogue import CASES, SECRET, Case, Truth, series_uid
from catalogue_scans import AXIAL, HU, affine_of, each, padded
from catalogue_slices import SMOOTH
from conftest import ROOT

from data.patches import PatchFolder
from data.pseudonyms import Pseudonyms
from data.volume import AIR_HU

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MEMORY_KB = 1_000_000


class Hang(BaseException):
    """A command took too long; no error handler of its own may catch this."""


@contextlib.contextmanager
def no_longer_than(seconds: float):
    def stop(*_):
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def by_name(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def check(case: Case, source: Path, truth: Truth | None, target: Path, code: int, err: str) -> None:
    """That the outcome is one that the catalogue allows."""
    if code == 0:
        assert truth is not None, f"a volume where only an error is right; told: {err}"
        image = nib.Nifti1Image.from_filename(target)
        assert truth.difference(np.asarray(image.dataobj).T, RAS @ image.affine[:, [2, 1, 0, 3]]) == ""
        assert SECRET.encode() not in gzip.decompress(target.read_bytes())
    else:
        assert code == 2, err
        assert "E" in case.outcome, f"refused: {err}"
        assert not target.exists()
        last = err.splitlines()[-1]
        assert last.startswith("error: ")
        assert source.name in last
    if code or case.outcome == "W":
        told = err if "W" in case.outcome else err.splitlines()[-1]
        assert [word for word in case.words if not re.search(word, told)] == [], told
    assert "Traceback" not in err
    assert SECRET not in err


def test_the_judge_sees_what_is_wrong_and_only_that():
    truth = Truth(HU, AXIAL, tolerance_mm=0.05)
    turned = AXIAL @ np.array([[0, 0, -1, 5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    moved, off = AXIAL.copy(), HU.copy()
    moved[2, 3] += 0.1
    off[2, 3, 4] += 1
    assert truth.difference(HU, AXIAL) == ""
    assert truth.difference(HU[::-1].transpose(1, 2, 0), turned) == ""  # other axes, and an affine that says so
    assert "HU" in truth.difference(HU[:, ::-1], AXIAL)
    assert "HU" in truth.difference(off, AXIAL)
    assert truth.difference(off, AXIAL, 1) == ""
    assert "mm off" in truth.difference(HU, moved)
    assert "shape" in truth.difference(HU[1:], AXIAL)
    deep = Truth(padded()[0], AXIAL, padding=padded()[1])
    below = np.where(padded()[1], -3024, HU)
    assert deep.difference(below, AXIAL) != ""  # ours is air
    assert deep.difference(below, AXIAL, 1) == ""
    tilted = Truth(SMOOTH, affine_of((0, 0.9, 2.5)), resampled=True)
    k, j, i = np.indices((6, 26, 24))
    straight = 50 * k + 15 * 0.7 * j - 12 * 0.8 * i - 300  # the same HU in the same places, on a straight grid
    assert tilted.difference(straight, AXIAL) == ""
    assert tilted.difference(SMOOTH, AXIAL) != ""


@by_name([case for case in CASES if not case.bounded])
def test_each_case_has_its_outcome(command, tmp_path, case):
    source, truth = case.write(tmp_path / "scan")
    before = sorted(tmp_path.rglob("*"))
    with no_longer_than(20):
        done = command("data", "convert", source, "out.nii.gz")
    check(case, source, truth, tmp_path / "out.nii.gz", done.code, done.err)
    (tmp_path / "out.nii.gz").unlink(missing_ok=True)
    assert sorted(tmp_path.rglob("*")) == before  # nothing written anywhere else


@by_name([case for case in CASES if case.bounded])
def test_what_is_built_to_exhaust_memory_is_refused_in_little(tmp_path, case):
    source, truth = case.write(tmp_path / "scan")

    def limits():
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    with open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "data", "convert", str(source), str(tmp_path / "out.nii.gz")],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err, preexec_fn=limits,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    check(case, source, truth, tmp_path / "out.nii.gz", process.returncode, (tmp_path / "err").read_text())
    assert used.ru_maxrss < MEMORY_KB


def test_a_cohort_of_all_cases_goes_on_without_the_bad_ones(command, tmp_path):
    cases = [case for case in CASES if not case.bounded]
    good, bad = {}, {}  # the case's name by its series, as lesion lists name that
    with open(tmp_path / "list.csv", "w") as file:
        print("seriesuid,coordX,coordY,coordZ,diameter_mm", file=file)
        for n, case in enumerate(cases):
            folder = tmp_path / "in" / f"{SECRET}{n:03d}"
            _, truth = case.write(folder)
            uid = series_uid(folder) if case.kind in ("dicom", "zip") else folder.name
            shape, affine = (truth.hu.shape, truth.affine) if truth else (HU.shape, AXIAL)
            centre = affine @ [*(n // 2 for n in shape), 1]
            print(uid, *centre[:3], 4, sep=",", file=file)
            if case.outcome in ("=", "W"):
                good[uid] = case.name
            elif case.outcome in ("E", "EW"):
                bad[uid] = case.name
    options = ["--lesions", "list.csv", "--size", 8, "--background", 0, "--processes", 1]
    with no_longer_than(60):
        done = command("data", "prepare", "in", *options, "--out", "p")
    assert done.code == 0, done.err.splitlines()[-1]
    pseudonyms = Pseudonyms((tmp_path / "secrets" / "pseudonym.key").read_bytes())
    cut = {row.series for row in PatchFolder.open("p").rows}
    assert [name for uid, name in good.items() if pseudonyms.series(uid) not in cut] == []
    assert [name for uid, name in bad.items() if pseudonyms.series(uid) in cut] == []

    text = (tmp_path / "p" / "skipped.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert list(rows[0]) == ["kind", "id", "count", "reason"]
    for row in rows:
        assert row["kind"] in ("file", "series", "lesion", "row")
        assert re.fullmatch(r"[fs]-[0-9a-f]{16}|\d+", row["id"])
        assert int(row["count"]) > 0
        assert len(row["reason"]) > 5
    assert sum(row["kind"] in ("file", "series") for row in rows) >= len(bad)
    assert not re.search(rf"(?i){SECRET}|\.dcm|\.nii|\.mh|\.zip|2\.25\.|{re.escape(str(tmp_path))}", text)
    assert SECRET not in str(PatchFolder.open("p").rows)

    with no_longer_than(60):
        done = command("data", "prepare", "in", *options, "--out", "strict", "--strict")
    assert done.code == 2
    assert not (tmp_path / "strict").exists()


def edge_cases(real_data: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((real_data / "dicom-edge" / "expected.csv").read_text().splitlines()))


def test_real_odd_slices_are_read_right(command, tmp_path, real_data):
    """Each file that is to be read, twice at a distance of 5 mm, against a plain reading of its stored values."""
    names = [row["file"] for row in edge_cases(real_data) if row["expected"].startswith("read")]
    assert len(names) > 4
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        image = pydicom.dcmread(real_data / "dicom-edge" / name)
        stored = image.pixel_array.astype(int)
        truth = stored * float(image.RescaleSlope) + float(image.RescaleIntercept)
        truth[(truth < -1500) | (stored == image.get("PixelPaddingValue", -99999))] = AIR_HU
        cosines = np.array(image.ImageOrientationPatient, float)
        image.save_as(folder / "a.dcm")
        image.SOPInstanceUID += "1"
        place = np.array(image.ImagePositionPatient, float) + 5 * np.cross(cosines[:3], cosines[3:])
        image.ImagePositionPatient = [f"{mm:.8g}" for mm in place]
        image.save_as(folder / "b.dcm")
        done = command("data", "convert", folder, f"{name}.nii.gz")
        assert done.code == 0, done.err
        hu = np.asarray(nib.Nifti1Image.from_filename(f"{name}.nii.gz").dataobj).T
        np.testing.assert_array_equal(hu, np.stack([truth, truth]), name)


def test_real_odd_files_beside_a_scan_are_skipped_with_a_reason(command, tmp_path, real_data):
    """As listed; a file without its meta header may be a slice that was lost, so that refusing is right too."""
    rows = [row for row in edge_cases(real_data) if row["expected"].startswith("skipped")]
    assert len(rows) > 4
    for row in rows:
        folder = tmp_path / row["file"].replace(".", "-")
        truth = each(None)(folder)
        assert truth is not None
        shutil.copy(real_data / "dicom-edge" / row["file"], folder)
        done = command("data", "convert", folder, f"{folder.name}.nii.gz")
        if done.code == 2:
            assert "or read" in row["expected"], done.err
            assert row["file"] in done.err.splitlines()[-1]
            continue
        image = nib.Nifti1Image.from_filename(f"{folder.name}.nii.gz")
        assert truth.difference(np.asarray(image.dataobj).T, RAS @ image.affine[:, [2, 1, 0, 3]]) == ""
        assert row["file"] in done.err or row["file"] == "DICOMDIR"
