"""No name, id, UID, date or path of a patient reaches an output, a log, a tracker or a checkpoint; nothing is asked of the network.

They are planted wherever input can hold them (canary_cohort.py) and searched for in every byte that is left behind (canaries.py).
All of it lies in a folder that is itself named after a patient, so an absolute path in an output is found as well.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import importlib
import importlib.util
import io
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from canaries import ASKED, STEMS, die_over_a_copy, leaks, leaks_in, patterns, watch_network
from canary_cohort import META, NIFTI, inside, nifti, write_lidc, write_pictures, write_points, write_scans, write_segmentation
from conftest import Result
from PIL import Image, PngImagePlugin

import data.metaimage
from data.command import run_command
from data.parallel import map_processes
from data.patches import PatchFolder
from data.pseudonyms import read_or_make_key
from gan.tracker import Tracker

CUT = ["--size", 16, "--spacing", 2.5, "--processes", 1, "--validation", 0.2, "--test", 0.2]
SMALL = ["--training.batch", 4, "--training.n_critic", 1, "--networks.channels", 4, "--networks.latent", 8, "--training.device", "cpu"]


class Clinic:
    """A folder named after a patient. in/ is full of canaries; out/ and elsewhere, for temporary files and caches, may hold none."""

    def __init__(self, root: Path, elsewhere: Path):
        self.root, self.input, self.elsewhere, self.key = root, root / "in", elsewhere, root / "secrets" / "pseudonym.key"
        self.secret = read_or_make_key(self.key).decode()
        write_scans(self.input / "scans")
        write_points(self.input / "CanaryList.csv")
        nifti(self.input / "CanaryMasks" / f"{NIFTI}_mask.nii.gz", inside())
        (self.input / "CanaryMasks.csv").write_text(
            f"image,mask,reader\nCanaryPath\\{NIFTI}.nii.gz,CanaryMasks/{NIFTI}_mask.nii.gz,CanaryReader\n{NIFTI},CanaryGone.nii,CanaryReader\n"
        )
        write_lidc(self.input / "CanaryReadings" / "CanaryReading.xml")
        write_segmentation(self.input / "CanarySegs" / "CanarySeg.dcm", self.input / "scans" / "CanaryFolder" / "CanaryStudy")
        write_pictures(self.input)
        (root / "out").mkdir()
        paths = [path.relative_to(root) for path in self.input.rglob("*")]
        names = {part for path in paths for part in path.parts} | {"CanaryMember", "CanaryZippedMeta.mha"}
        self._names = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names, key=len, reverse=True)))

    def run(self, name: str, *arguments: object) -> Result:
        """A command as a user gives it, in this process and this folder; what it says is searched: paths may be in it, nothing else.

        No other machine may be asked for anything.
        """
        module = importlib.import_module({"data": "data.__main__", "evaluate": "evaluate.__main__"}.get(name, name))
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(self.root)
            patch.setenv("LESIONGAN_KEY", str(self.key))
            patch.setattr(tempfile, "tempdir", str(self.elsewhere))
            for variable in ("TMPDIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
                patch.setenv(variable, str(self.elsewhere))
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            with pytest.raises(SystemExit) as exit_:
                run_command(module.main)
        done = Result(int(exit_.value.code or 0), out.getvalue(), err.getvalue())
        for said in (done.out.replace(str(self.root), ""), self._names.sub("", done.err.replace(str(self.root), ""))):
            assert leaks_in(said.encode("utf-8", "surrogateescape"), patterns([self.secret])) == []
        assert ASKED == []
        return done

    def leaks(self) -> list[str]:
        """What can be found in the outputs, hidden ones too, in temporary files and in caches."""
        (self.elsewhere / "here").touch()
        return leaks(self.root / "out", [self.secret]) + leaks(self.elsewhere, [self.secret])


@pytest.fixture(scope="module")
def clinic(tmp_path_factory) -> Clinic:
    watch_network()
    return Clinic(tmp_path_factory.mktemp("CanaryParent19930418"), tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def prepared(clinic) -> Result:
    """The scans cut by the CSV: out/points."""
    done = clinic.run("data", "prepare", "in/scans", "--lesions", "in/CanaryList.csv", "--out", "out/points", *CUT)
    assert done.code == 0, done.err
    return done


def png_with_text():
    buffer, notes = io.BytesIO(), PngImagePlugin.PngInfo()
    notes.add_text("Title", "Canary7", zip=True)
    Image.new("L", (4, 4)).save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue()


def npz_with(text):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.array([text]))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"xCANARY7", "Canary7".encode("utf-16"), b"x" + "Canary7".encode("utf-16-be"), b"43616e617279", b"43616E617279".lower(),
        *(base64.b64encode(b"x" * n + b"Canary7") for n in range(3)), gzip.compress(b"Canary7", mtime=0), npz_with("Canary7"), png_with_text(),
        b'<img src="data:image/png;base64,' + base64.b64encode(png_with_text()) + b'">', b'{"when": "1943-12-07"}', b"07.12.1943", b"23:59:48.181",
        b"1.2.826.0.1.3680043.10.4242.7", b"90817263544536", b"THE KEY",
    ],
)  # fmt: skip
def test_the_search_finds_a_word_however_it_is_written(tmp_path, content):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "file").write_bytes(b"\0" * 100 + content if content[:2] not in (b"\x1f\x8b", b"PK", b"\x89P") else content)
    assert leaks(tmp_path, ["the key"])
    (tmp_path / ".hidden" / "file").write_bytes(b"nothing of the kind")
    assert leaks(tmp_path, ["the key"]) == []
    (tmp_path / "link").symlink_to("/clinic/canary")
    (tmp_path / "Canary").mkdir()
    assert [leak.partition(":")[0] for leak in leaks(tmp_path)] == ["name Canary", "name link -> /clinic/canary"]


def test_the_watch_sees_who_asks_the_network(monkeypatch):
    watch_network()
    monkeypatch.setattr("canaries.ASKED", heard := [])
    with socket.socket() as one:
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.connect(("192.0.2.1", 9))  # of nobody (RFC 5737)
    socket.getaddrinfo("192.0.2.1", 9)
    with socket.create_server(("127.0.0.1", 0)) as here:
        socket.create_connection(here.getsockname()).close()
    assert heard == ["socket.connect 192.0.2.1", "socket.getaddrinfo 192.0.2.1"]


def test_everything_is_planted(clinic):
    found = "".join(leaks(clinic.input))
    for stem in STEMS:
        assert stem.lower() in found.lower(), stem


def test_prepare_leaves_out_and_tells_but_names_nobody(clinic, prepared):
    folder = PatchFolder.open(clinic.root / "out" / "points")
    assert len({row.patient for row in folder.rows}) == 5  # what was planted came through
    skipped = list(csv.DictReader((folder.path / "skipped.csv").read_text().splitlines()))
    assert {row["kind"] for row in skipped} == {"file", "series", "lesion", "row"}
    assert len({row["reason"] for row in skipped}) > 15
    assert "CanaryFile4.dcm: slices are not evenly spaced" in prepared.err  # whoever may see the files is told which
    assert clinic.leaks() == []


@pytest.mark.parametrize(
    ("places", "lesions", "options"),
    [
        ("in/scans/CanaryVolumes", "in/CanaryMasks", []),
        ("in/scans/CanaryVolumes", "in/CanaryMasks.csv", []),
        ("in/scans/CanaryFolder", "in/CanaryReadings", ["--readers", 2, "--class-from", "texture", "--classes", "5=solid"]),
        ("in/scans/CanaryFolder", "in/CanarySegs", []),
        ("in/scans/CanaryFolder", "in/CanarySegs", ["--classes", "CanaryLabel=solid"]),
        ("in/scans/CanaryFolder", "in/CanarySegs", ["--class-from", "SegmentLabel", "--classes", "CanaryLabel=solid"]),
    ],
)
def test_lists_of_every_kind(clinic, places, lesions, options):
    out = f"out/{len(list((clinic.root / 'out').iterdir()))}"
    done = clinic.run("data", "prepare", places, "--lesions", lesions, "--out", out, *CUT, *options)
    assert done.code == 0, done.err
    assert len(PatchFolder.open(clinic.root / out)) >= 2
    assert clinic.leaks() == []


@pytest.mark.parametrize("cubes", [False, True])
def test_what_a_stopped_run_keeps(clinic, monkeypatch, cubes):
    """Stopped by SIGTERM while a zip member lies unpacked in a temporary folder, after two series were cut."""
    read, left = data.metaimage.read_metaimage_values, []

    def stopped(source):
        if not source.member:
            return read(source)
        with source.local():
            left.extend(clinic.elsewhere.glob("lesiongan-*/*"))
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(data.metaimage, "read_metaimage_values", stopped)
    arguments = ["in/scans", "--lesions", "in/CanaryList.csv", "--out", f"out/stopped{cubes}", *CUT, "--dims", 3 if cubes else 2]
    assert clinic.run("data", "prepare", *arguments).code == 143
    assert [file.name for file in left] == ["CanaryZippedMeta.mha"]
    assert list(clinic.elsewhere.glob("lesiongan-*")) == []
    assert len(list((clinic.root / "out" / f".stopped{cubes}.parts" / "parts").glob("*.npz"))) >= 2
    assert clinic.leaks() == []


def test_a_worker_that_is_terminated_clears_its_copy_away(tmp_path):
    """Batch systems send SIGTERM to workers too; they die of it, but what they had unpacked is gone."""
    assert list(map_processes(die_over_a_copy, [tmp_path] * 2, processes=2, died=lambda _: None)) == [None, None]
    assert list(tmp_path.iterdir()) == []


def test_convert(clinic):
    for source in ("scans/CanaryFolder", f"scans/CanaryVolumes/{NIFTI}.nii.gz", f"scans/CanaryVolumes/{META}.mha"):
        for suffix in (".nii.gz", ".nii"):
            done = clinic.run("data", "convert", f"in/{source}", f"out/nifti/{len(source)}{suffix}")
            assert done.code == 0, done.err
    assert clinic.leaks() == []


def test_import(clinic):
    for source, options in (
        ("CanaryTree", ["--separator", "_"]),
        ("CanaryTree", ["--size", 8]),
        ("CanarySet.npz", ["--window", "-1000,400"]),
    ):
        out = f"out/pictures{len(options)}{options[0]}"
        done = clinic.run("data", "import", f"in/{source}", "--out", out, *options)
        assert done.code == 0, done.err
    assert clinic.leaks() == []


def test_a_patient_in_two_splits_is_told_without_the_name(clinic):
    pictures, labels, groups = np.zeros((2, 8, 8), np.uint8), np.zeros(2, int), np.array(["CanaryOne", "CanaryTwo"])
    sets = {f"{split}_{what}": values for split in ("train", "test") for what, values in (("images", pictures), ("labels", labels))}
    np.savez(clinic.input / "torn.npz", **sets, train_groups=groups, test_groups=groups[::-1])
    done = clinic.run("data", "import", "in/torn.npz", "--out", "out/torn")
    assert (done.code, "test_images[0] is in both train and test" in done.err) == (2, True)


def test_report_augment_train_sample_evaluate(clinic, prepared):
    """The outputs' own paths are given in full: no file may keep them."""
    out = clinic.root / "out"
    wandb = ["--wandb", "offline"] if importlib.util.find_spec("wandb") else []
    seeds = ["--seeds", "0-11", "--format", "png,nifti,dicom"]
    for command in (
        ("data", "report", out / "points"),
        ("data", "augment", out / "points", "--out", out / "augmented", "--factor", 2),
        ("train", "--data", out / "points", "--out", out / "run", "--training.steps", 2, "--training.log_every", 1, *SMALL, *wandb),
        ("train", "--data", out / "points", "--out", out / "run", "--training.steps", 3, *SMALL),
        ("sample", "--run", out / "run", "--out", out / "synthetic", *seeds),
        ("evaluate", out / "points", out / "synthetic", "--out", out / "report", "--detector.steps", 10, "--detector.seeds", 1),
    ):
        done = clinic.run(*command)
        assert done.code == 0, done.err
    assert (out / "run" / "wandb").exists() == bool(wandb)
    assert clinic.leaks() == []


def test_what_else_is_made_of_patches_and_a_run(clinic, prepared):
    """An encoder, a report with it and its cache, reports side by side, a smaller generator, and one without torch.

    `python -m evaluate privacy` calls its own made-up patients canaries: see test_end_to_end_audit.
    """
    out = clinic.root / "out"
    seeds, quick = ["--seeds", "0-11"], ["--detector.run", "false", "--draws", 10]
    export = [("sample", "--run", out / "two", "--export", out / "model.onnx")] if importlib.util.find_spec("onnxruntime") else []
    for command in (
        ("train", "--data", out / "points", "--out", out / "two", "--training.steps", 2, *SMALL),
        ("sample", "--run", out / "two", "--out", out / "drawn", *seeds, "--pictures", "true"),
        ("sample", "--run", out / "two", "--verify", out / "drawn"),
        ("evaluate", "encoder", out / "points", "--out", out / "encoder.safetensors", "--steps", 100, "--batch", 8),
        ("evaluate", out / "points", out / "drawn", "--out", out / "one-report", "--encoder", out / "encoder.safetensors", "--cache-root", out / "cache", *quick),
        ("evaluate", out / "points", out / "drawn", "--out", out / "other-report", *quick),
        ("evaluate", "compare", out / "one-report", out / "other-report", "--out", out / "comparison"),
        ("gan.__main__", "distil", out / "two", "--channels", 2, "--steps", 2, "--out", out / "small"),
        *export,
    ):  # fmt: skip
        done = clinic.run(*command)
        assert done.code == 0, done.err
    assert list((out / "cache").iterdir())
    assert clinic.leaks() == []


def test_a_tracker_that_is_killed_leaves_no_path(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    run = tmp_path / "CanaryPatient" / "run"
    run.mkdir(parents=True)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    tracker = Tracker(run, 0, {}, "offline")
    tracker.log(1, {"wasserstein": 1.5})
    try:
        assert leaks(run) == []
    finally:
        tracker.close()
