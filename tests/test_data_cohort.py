"""Cohorts: patches show the right lesions, identifiers stay outside, bad input is one line."""

import csv
import gzip
import json
import shutil
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, affine_of, dicom_series, noise_volume

from data.cutting import UNKNOWN_RADIUS_MM, CutConfig, _background
from data.patches import PatchFolder
from data.volume import Lesion, Volume

HEAD = "seriesuid,coordX,coordY,coordZ,diameter_mm,class\n"


def scan(folder, seed=0, patient_id="JD-1", name="Doe^Jane"):
    """A noisy body with two lungs, as DICOM; returns its series UID."""
    import pydicom

    k, j, i = np.ogrid[:8, :100, :120]
    hu = np.full((8, 100, 120), -1000) + np.random.default_rng(seed).integers(-20, 20, (8, 100, 120))
    hu[np.broadcast_to(((j - 50) / 48) ** 2 + ((i - 60) / 58) ** 2 <= 1, hu.shape)] += 1040
    for c in (35, 85):
        hu[np.broadcast_to((j - 50) ** 2 + (i - c) ** 2 <= 21**2, hu.shape)] -= 890
    hu[3:5, 46:54, 31:39] = 111
    files = dicom_series(folder, hu.astype(np.int16), affine_of((5.0, 2.5, 2.5), (-150, -120, 0)), name, patient_id)
    return str(pydicom.dcmread(files[0]).SeriesInstanceUID)


def lesion_row(uid, x=-62.5, y=5.0, z=17.5):
    return f"{uid},{x},{y},{z},20,solid\n"


def test_prepares_dicom_nifti_and_metaimage_together(command, tmp_path):
    uid = scan(tmp_path / "in" / "deep" / "er" / "dicom")
    command("data", "convert", tmp_path / "in" / "deep", tmp_path / "in" / "second.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "in" / "second.nii.gz"), sitk.sitkInt16), str(tmp_path / "in" / "third.mha"))
    (tmp_path / "list.csv").write_text(HEAD + "".join(map(lesion_row, (uid, "second", "third"))))
    done = command("data", "prepare", "in", "--lesions", "list.csv", "--out", "p", "--size", 32, "--spacing", 2.5, "--processes", 1)
    assert done.code == 0, done.err
    folder = PatchFolder.open("p")
    lesions = folder.hu(folder.select(classes=["solid"]))
    assert len(lesions) == 3
    assert (lesions == lesions[0]).all()  # one scan in three formats
    assert (lesions[0][13:19, 13:19] > 100).all()  # the nodule is in the middle
    assert lesions[0][16, 2] < -700  # and lung around it
    background = folder.hu(folder.select(classes=["background"]))
    assert len(background) == 3
    assert (background != 111).all()  # no lesion in lesion-free patches
    assert len({row.patient for row in folder.rows}) == 3
    assert {row.split for row in folder.rows} == {"train", "validation", "test"}
    assert "3 patients" in done.out
    assert "next: python -m data report p" in done.out


def test_the_number_of_processes_does_not_matter(command, tmp_path):
    uids = [scan(tmp_path / "in" / str(n), n, f"P{n}") for n in range(2)]
    (tmp_path / "list.csv").write_text(HEAD + "".join(map(lesion_row, uids)))
    for processes in (1, 2):
        options = ["--size", 16, "--spacing", 2, "--dims", 3, "--processes", processes]
        done = command("data", "prepare", "in", "--lesions", "list.csv", "--out", f"p{processes}", *options)
        assert done.code == 0, done.err
    one, two = PatchFolder.open("p1"), PatchFolder.open("p2")
    assert one.content_hash == two.content_hash
    assert one.shape == (16, 16, 16)


def test_bad_series_are_left_out_and_counted(command, tmp_path):
    uids = [scan(tmp_path / "in" / str(n), n, f"P{n}") for n in range(3)]
    (tmp_path / "in" / "1" / "003.dcm").unlink()
    (tmp_path / "in" / "notes.pdf").write_bytes(b"%PDF")
    (tmp_path / "list.csv").write_text(HEAD + "".join(map(lesion_row, [uids[0], uids[1], "9.9"])) + lesion_row(uids[0], x=500))
    done = command("data", "prepare", "in", "--lesions", "list.csv", "--out", "p", "--size", 16, "--processes", 1)
    assert done.code == 0
    assert "a slice is missing" in done.err
    assert "notes.pdf: not a DICOM file" in done.err
    for count in (
        "1 x file: not a DICOM file", "1 x series: slices are not evenly spaced (ImagePositionPatient)", "1 x series without a listed lesion",
        "1 x series: listed, but not among", "1 x lesion: lesion outside",
    ):  # fmt: skip
        assert count in done.out
    assert len(PatchFolder.open("p")) == 2
    skipped = list(csv.DictReader((tmp_path / "p" / "skipped.csv").read_text().splitlines()))
    assert [row["kind"] for row in skipped] == ["file", "series", "lesion", "series"]
    assert skipped[3]["id"].startswith("s-")
    assert "a slice is missing" in skipped[3]["reason"]
    strict = command("data", "prepare", "in", "--lesions", "list.csv", "--out", "q", "--size", 16, "--strict")
    assert (strict.code, "--strict: 4 left out" in strict.err) == (2, True)
    assert not (tmp_path / "q").exists()
    (tmp_path / "list.csv").write_text(HEAD + lesion_row(uids[0]) + lesion_row(uids[0], x=500))
    strict = command("data", "prepare", "in/0", "--lesions", "list.csv", "--out", "q", "--size", 16, "--strict")
    assert (strict.code, "--strict: 1 left out" in strict.err) == (2, True)


def test_lesions_off_the_lung_and_names_given_twice_are_told(command, tmp_path):
    uid = scan(tmp_path / "in")
    (tmp_path / "list.csv").write_text(HEAD + lesion_row(uid) + f"{uid},0,-107.5,17.5,4,solid\n")
    done = command("data", "prepare", "in", "--lesions", "list.csv", "--out", "p", "--size", 16, "--processes", 1)
    assert "1 x lesion that does not touch the lung" in done.out
    for name in ("a", "b"):
        assert command("data", "convert", "in", f"nifti/{name}/ct.nii.gz").code == 0
    (tmp_path / "list.csv").write_text(HEAD + lesion_row("ct"))
    done = command("data", "prepare", "nifti", "--lesions", "list.csv", "--out", "q", "--size", 16)
    assert (done.code, "has the same name" in done.err) == (2, True)


def test_a_list_mirrored_into_the_other_lung_is_told(command, tmp_path):
    uids = [scan(tmp_path / "in" / str(n), n, f"P{n}") for n in range(4)]
    (tmp_path / "list.csv").write_text(HEAD + "".join(lesion_row(uid, x=62.5, y=-5.0) for uid in uids))
    options = ["--lesions", "list.csv", "--size", 16, "--processes", 1]
    done = command("data", "prepare", "in", "--out", "p", *options)
    assert "4 lesions are denser with x and y negated, 0 as stated: is the list in RAS?" in done.out
    assert "WARNING" in done.err
    done = command("data", "prepare", "in", "--out", "q", "--coordinates", "ras", *options)
    assert "denser" not in done.out + done.err
    folder = PatchFolder.open("q")
    assert (folder.hu(folder.select(classes=["solid"]))[:, 7:9, 7:9] == 111).all()


def test_one_of_two_series_is_named(command, tmp_path):
    dicom_series(tmp_path / "in")
    dicom_series(tmp_path / "in" / "again", noise_volume(seed=1), patient_id="JD-2")
    done = command("data", "convert", "in", "x.nii.gz")
    (first, _) = (word for word in done.err.replace(",", " ").split() if word.startswith("2.25."))
    assert command("data", "convert", "in", "x.nii.gz", "--series", first).code == 0
    assert command("data", "convert", "in", "y.nii.gz", "--series", "1.2").code == 2


def test_lesions_wider_than_the_patch_and_patients_without_an_id_are_told(command, tmp_path):
    uid = scan(tmp_path / "in", patient_id="")
    (tmp_path / "list.csv").write_text(HEAD + lesion_row(uid))
    done = command("data", "prepare", "in", "--lesions", "list.csv", "--out", "p", "--size", 16, "--spacing", 1)
    assert "1 x lesion wider than the patch" in done.out
    assert "1 x series without a PatientID" in done.out
    assert "new pseudonym key" in done.out
    assert not PatchFolder.open("p").spec.patients_known


@pytest.mark.parametrize(
    ("column", "options", "known"),
    [("", (), False), (",P1", (), True), ("", ("--patients", "each", "--licence", "CC BY 3.0: a & b"), True)],
)
def test_whose_a_nifti_file_is_must_be_said(command, tmp_path, column, options, known):
    scan(tmp_path / "in")
    assert command("data", "convert", "in", "nifti/a.nii.gz").code == 0
    (tmp_path / "list.csv").write_text(HEAD.strip() + (",patient_id\n" if column else "\n") + lesion_row("a").strip() + column)
    done = command("data", "prepare", "nifti", "--lesions", "list.csv", "--out", "p", "--size", 16, "--processes", 1, *options)
    assert done.code == 0, done.err
    spec = PatchFolder.open("p").spec
    assert (spec.patients_known, "without a PatientID" in done.out) == (known, not known)
    assert spec.licence == (options[-1] if options else "")


def test_several_axial_patches_a_lesion_lie_inside_it(command, tmp_path):
    uid = scan(tmp_path / "in")
    (tmp_path / "list.csv").write_text(HEAD + lesion_row(uid))
    options = ["--size", 16, "--spacing", 2.5, "--slices", 9, "--background", 0]
    assert command("data", "prepare", "in", "--lesions", "list.csv", "--out", "p", *options).code == 0
    folder = PatchFolder.open("p")
    patches = folder.hu(np.arange(len(folder)))
    assert len(patches) == 2  # slices 3 and 4: within a quarter of 20 mm of the centre at 3.5
    assert (patches[:, 7:9, 7:9] == 111).all()
    assert folder.background is None


@pytest.mark.parametrize("diameter_mm", [30.0, None])
def test_lesion_free_patches_hold_no_part_of_a_lesion_and_lie_elsewhere_in_another_series(diameter_mm):
    hu, lesion = np.zeros((30, 40, 40), np.int16), Lesion((0.0, 0.0, 0.0), diameter_mm, "nodule")
    config = CutConfig(shape=(8, 8), spacing_mm=4.0, background=300)
    a, b = (
        _background(np.ones(hu.shape, bool), Volume(hu, (4.0,) * 3, affine_of((4.0,) * 3, (-80, -80, -60)), uid), [lesion], config)
        for uid in ("1.2", "1.3")
    )
    away = np.abs([one.center_mm for one in a]) - 8 * 4.0 / 2  # from the patch's nearest side to the lesion's middle
    assert len(away) == 300
    assert np.linalg.norm(away.clip(min=0), axis=1).min() > (lesion.radius_mm or UNKNOWN_RADIUS_MM)
    assert a != b


def test_patients_are_held_out_for_the_split_that_was_asked_for(command, tmp_path):
    scan(tmp_path / "dicom")
    assert command("data", "convert", "dicom", "a.nii.gz").code == 0
    for name in "abcd":
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy("a.nii.gz", tmp_path / "in" / name / f"{name}.nii.gz")
    (tmp_path / "list.csv").write_text(HEAD + "".join(map(lesion_row, "abcd")))
    for split, other in (("validation", "test"), ("test", "validation")):
        options = ["--size", 16, "--background", 0, "--processes", 1, f"--{split}", 0.25, f"--{other}", 0]
        assert command("data", "prepare", "in", "--lesions", "list.csv", "--out", split, *options).code == 0
        assert sorted(row.split for row in PatchFolder.open(split).rows) == sorted(["train", "train", "train", split])


def test_no_identifier_and_no_path_reaches_the_patch_folder(command, tmp_path):
    canary = {"name": "Canaryname^Zelda", "patient_id": "CANARYID77"}
    uid = scan(tmp_path / "canaryfolder", **canary)
    scan(tmp_path / "canaryfolder2", 1, "CANARYID78")
    shutil.copy(tmp_path / "canaryfolder" / "000.dcm", tmp_path / "canaryfolder2" / "odd-canaryfile.dcm")
    (tmp_path / "list.csv").write_text(HEAD + lesion_row(uid))
    done = command("data", "prepare", "canaryfolder", "canaryfolder2", "--lesions", "list.csv", "--out", "p", "--size", 16)
    assert done.code == 0, done.err
    secrets = ["Canaryname", "CANARYID", "canaryf", uid, str(tmp_path), (tmp_path / "secrets" / "pseudonym.key").read_text()]
    for file in (f for f in (tmp_path / "p").rglob("*") if f.is_file()):
        content = file.read_bytes().lower()
        assert content
        for secret in secrets:
            assert secret.lower().encode() not in content, f"{secret} in {file}"


def test_pictures_from_npz_keep_splits_and_window(command, tmp_path):
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 8, 8), dtype=np.uint8) for n in (40, 10))
    np.savez("set.npz", train_images=train, train_labels=np.arange(40)[:, None] % 2, test_images=test, test_labels=np.zeros((10, 1), int),
             train_groups=np.arange(40) // 4, test_groups=np.full(10, 99))  # fmt: skip
    options = ["--classes", "healthy,nodule", "--background", "healthy"]
    done = command("data", "import", "set.npz", "--out", "p", "--window", "-1000,400", *options)
    assert done.code == 0, done.err
    folder = PatchFolder.open("p")
    assert folder.window == (-1000, 400)
    assert folder.lesion_classes == ("nodule",)
    found = folder.hu(folder.select(splits=["test"]))
    np.testing.assert_array_equal(np.rint((found.astype(float) + 1000) / 1400 * 255), test)
    assert {row.split for row in folder.rows} == {"train", "validation", "test"}
    by_patient = {row.patient: row.split for row in folder.rows}
    assert all(by_patient[row.patient] == row.split for row in folder.rows)
    assert len(by_patient) == 11
    assert folder.spec.patients_known


def test_the_split_does_not_depend_on_the_pseudonym_key(command, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez("set.npz", train_images=images, train_labels=np.zeros(30, int), train_groups=np.arange(30) // 2)
    for key in "ab":
        assert command("data", "import", "set.npz", "--out", key, "--key", f"{key}.key").code == 0
    a, b = PatchFolder.open("a"), PatchFolder.open("b")
    assert [row.split for row in a.rows] == [row.split for row in b.rows]
    assert {row.patient for row in a.rows}.isdisjoint(row.patient for row in b.rows)


def test_unknown_window_is_recorded_not_guessed(command, tmp_path):
    np.savez("set.npz", train_images=np.full((6, 8, 8), 200, np.uint8), train_labels=np.zeros(6, int))
    done = command("data", "import", "set.npz", "--out", "p")
    assert "the HU window is unknown" in done.out
    assert "patients are not known, each picture counts as one" in done.out
    folder = PatchFolder.open("p")
    assert folder.unit == "gray"
    assert (folder.hu([0]) == 200).all()
    assert (folder.spec.patients_known, folder.spec.licence) == (False, "")
    done = command("data", "import", "set.npz", "--out", "q", "--patients", "each", "--licence", " CC BY-NC 4.0 ")
    assert (done.code, "not known" in done.out) == (0, False)
    stated = PatchFolder.open("q")
    assert (stated.spec.patients_known, stated.spec.licence) == (True, "CC BY-NC 4.0")
    assert stated.content_hash == folder.content_hash


def test_class_folders_of_png_and_jpeg_by_patient(command, tmp_path):
    from PIL import Image

    for label, level in (("solid", 65535), ("cystic", 0)):
        (tmp_path / "tree" / label).mkdir(parents=True)
        for n in range(4):
            Image.fromarray(np.full((16, 16), level, np.uint16)).save(tmp_path / "tree" / label / f"pat{n}_a.png")
    done = command("data", "import", "tree", "--out", "p", "--window", "-1000,400", "--separator", "_", "--size", 8)
    assert done.code == 0, done.err
    folder = PatchFolder.open("p")
    for wrong in ("-", "@@", "pat"):  # every picture would be of another patient, and known to be
        done = command("data", "import", "tree", "--out", "q", "--separator", wrong)
        assert (done.code, done.err.count("\n"), "which --separator says" in done.err) == (2, 1, True), done.err
    assert not (tmp_path / "q").exists()
    assert folder.classes == ("cystic", "solid")
    assert folder.shape == (8, 8)
    assert len({row.patient for row in folder.rows}) == 4
    assert folder.spec.patients_known
    for n, row in enumerate(folder.rows):
        assert (folder.hu([n]) == (400 if row.label == "solid" else -1000)).all()


def test_pictures_of_another_generator_are_compared_whole(command, tmp_path):
    """Nobody's: none is held out, and a report has no word of its origin to add."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, count in (("real", 40), ("made", 12)):
        (tmp_path / name / "solid").mkdir(parents=True)
        for n in range(count):
            Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(tmp_path / name / "solid" / f"{n}_a.png")
    hu = ("--window", "-1000,400")
    assert command("data", "import", "real", "--out", "patches", "--separator", "_", *hu).code == 0
    done = command("data", "import", "made", "--out", "synthetic", "--synthetic", "true", *hu)
    assert done.code == 0, done.err
    assert "synthetic: 12 synthetic patches;" in done.out
    assert "next: python -m evaluate REAL_PATCHES synthetic --out report" in done.out
    assert "patients" not in done.out
    folder = PatchFolder.open(tmp_path / "synthetic")
    assert (folder.spec.origin, len(folder.select(splits=["synthetic"])), len(folder.rows)) == ("synthetic", 12, 12)
    report = command("evaluate", "patches", "synthetic", "--out", "report", "--detector.run", "false", "--draws", 10)
    assert report.code == 0, report.err
    assert "12 synthetic lesion patches were compared" in report.out
    assert "says that its patches are real" not in report.out
    assert command("evaluate", "synthetic", "patches", "--out", "reversed").code == 2


def png_header(width, height):
    """A PNG that promises a picture of this size and holds nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bad_npz(**arrays):
    base = {"train_images": np.zeros((4, 8, 8), np.uint8), "train_labels": np.zeros(4, int)}
    return {**base, **arrays}


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        (bad_npz(train_images=np.zeros((4, 8, 8, 3), np.uint8)), "want gray"),
        (bad_npz(train_images=np.zeros((4, 8, 8))), "want gray"),
        (bad_npz(train_labels=np.zeros(3, int)), "do not fit"),
        (bad_npz(train_groups=np.arange(4), test_images=np.zeros((1, 8, 8), np.uint8), test_labels=[0], test_groups=[2]), "both"),
        ({"pictures": np.zeros(3)}, "no train_images"),
        (bad_npz(train_labels=np.array(list("abcd"))), "whole numbers"),
        (bad_npz(train_labels=np.array([{}] * 4, dtype=object)), "plain arrays"),
    ],
)
def test_unfit_npz_is_one_line(command, tmp_path, arrays, cause):
    np.savez("bad.npz", **arrays)
    done = command("data", "import", "bad.npz", "--out", "p")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "bad.npz" in done.err
    assert cause in done.err
    assert not (tmp_path / "p").exists()


def test_an_npz_that_unpacks_to_more_than_the_memory_is_refused_before_it_is(command, tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, **bad_npz(test_images=np.zeros((1000, 64, 64), np.uint8), test_labels=np.zeros(1000, int)))
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr("data.pictures.memory_bytes", lambda: 4_000_000)
    done = command("data", "import", "bomb.npz", "--out", "p")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "bomb.npz" in done.err
    assert "more than the memory can hold" in done.err


def test_bad_input_is_one_line_with_exit_code_2(command, tmp_path):
    uid = scan(tmp_path / "in")
    (tmp_path / "list.csv").write_text(HEAD + lesion_row(uid))
    (tmp_path / "other.csv").write_text(HEAD + lesion_row("9.9"))
    (tmp_path / "broken.csv").write_text(HEAD + f"{uid},1,2,three,4,solid\n")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "ras.csv").write_text(HEAD + lesion_row(uid, x=900, y=-900))
    (tmp_path / "short.csv").write_text("coordX,coordY,coordZ,diameter_mm,seriesuid\n1,2,3,4\n")
    (tmp_path / "long.csv").write_text(HEAD + "9" * 200_000 + ",1,2,3,4,solid\n")
    (tmp_path / "latin.csv").write_bytes((HEAD + "1,1,2,3,4,häm\n").encode("latin-1"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "class").mkdir()
    (tmp_path / "huge" / "class" / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "formula.csv").write_text(HEAD + f"{uid},1,2,3,4,=cmd|x\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_text("hello")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.nii.gz").write_bytes(gzip.compress(b"\0" * 400))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    prepare = ("data", "prepare", "in", "--processes", 1, "--size", 16)
    cases = [
        (("data", "prepare", "gone", "--lesions", "list.csv", "--out", "o"), "gone"),
        (("data", "prepare", "empty", "--lesions", "list.csv", "--out", "o"), "no CT volume"),
        (("data", "prepare", "text", "--lesions", "list.csv", "--out", "o"), "not a DICOM file"),
        (("data", "prepare", "masks", "--lesions", "masks", "--out", "o"), "masks: every scan in it is on the lesion list, as a mask"),
        ((*prepare, "--lesions", "gone.csv", "--out", "o"), "gone.csv"),
        ((*prepare, "--lesions", "list.csv", "--out", "/proc/o"), "/proc/o: cannot be written"),
        (("data", "convert", "in", "/proc/x.nii"), "/proc/x.nii: cannot be written"),
        ((*prepare, "--lesions", "other.csv", "--out", "o"), "none of the 1 series"),
        ((*prepare, "--lesions", "broken.csv", "--out", "o"), "line 2"),
        ((*prepare, "--lesions", "columns.csv", "--out", "o"), "no column"),
        ((*prepare, "--lesions", "ras.csv", "--out", "o"), "--coordinates"),
        ((*prepare, "--lesions", "formula.csv", "--out", "o"), "class name"),
        ((*prepare, "--lesions", "short.csv", "--out", "o"), "short.csv: line 2"),
        ((*prepare, "--lesions", "long.csv", "--out", "o"), "long.csv"),
        ((*prepare, "--lesions", "latin.csv", "--out", "o"), "latin.csv: not a CSV file in UTF-8"),
        (("data", "import", "one.npy", "--out", "o"), "one.npy"),
        (("data", "import", "huge", "--out", "o"), "bomb.png"),
        (("data", "import", "one.npy", "--out", "o", "--size", -3), "--size"),
        (("data", "import", "one.npy", "--out", "o", "--patients", "all"), "patients"),
        ((*prepare, "--lesions", "list.csv", "--out", "o", "--licence", "two\nlines"), "licence 'two"),
        (("data", "phantom", "--out", "o", "--slice-mm", 1000), "--slice-mm"),
        (("data", "phantom", "--out", "o", "--seed", -1), "--seed"),
        ((*prepare, "--lesions", "list.csv", "--out", "full"), "exists already"),
        ((*prepare, "--lesions", "list.csv", "--out", "o", "--window", "400,-1000"), "window"),
        (("data", "convert", "gone", "x.nii.gz"), "gone"),
        (("data", "convert", "in", "x.txt"), ".nii"),
        (("data", "phantom", "--out", "full", "--patients", 1), "exists already"),
    ]
    before = sorted(p.name for p in tmp_path.iterdir())
    for arguments, cause in cases:
        done = command(*arguments)
        assert done.code == 2, arguments
        assert cause in done.err.splitlines()[-1], done.err
        assert "Traceback" not in done.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "secrets") == before
    assert (tmp_path / "full" / "mine").read_text() == "keep"


def test_terminated_in_the_middle_nothing_is_left(tmp_path):
    arguments = [sys.executable, "-m", "data", "phantom", "--out", str(tmp_path / "p"), "--patients", "50", "--processes", "1"]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".p.*.partial/patient-0001/0010.dcm")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


def test_convert_gives_hu_with_true_geometry(command, tmp_path):
    files = dicom_series(tmp_path / "in")
    done = command("data", "convert", "in", "out.nii.gz")
    assert done.code == 0
    image = sitk.ReadImage("out.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), noise_volume())
    np.testing.assert_allclose(image.GetOrigin(), (-30, -40, 100), atol=1e-5)
    dicom_series(tmp_path / "in" / "again", noise_volume(seed=1), patient_id="JD-2")
    done = command("data", "convert", "in", "two.nii.gz")
    assert (done.code, "2 series" in done.err) == (2, True)
    assert len(files) == 6


def test_real_series_and_its_list(command, real_data):
    series = real_data / "ct-series"
    done = command("data", "prepare", series, "--lesions", series / "annotations.csv", "--out", "p", "--size", 64, "--spacing", 1.0)
    assert done.code == 0, done.err
    folder = PatchFolder.open("p")
    rows = list(csv.DictReader((series / "annotations.csv").read_text().splitlines()))
    lesions = folder.hu(folder.select(classes=["lesion"]))
    assert len(lesions) == len(rows)
    assert np.median(lesions[:, 28:36, 28:36]) > -100  # a large solid tumour fills the middle
    assert json.loads((folder.path / "dataset.json").read_text())["shape"] == [64, 64]
