"""A cohort that was stopped goes on where it was, and gives the same bytes by whatever workers."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import ROOT
from test_data_cohort import HEAD, lesion_row, scan

from data.cutting import CutConfig
from data.dicom import Series
from data.lesion_tables import Points
from data.parts import part_name
from data.patches import PatchFolder
from data.pseudonyms import Pseudonyms
from data.sources import Source

KEY = Pseudonyms(b"0" * 64)
CUT = ("--lesions", "list.csv", "--size", 16, "--spacing", 2)


@pytest.fixture
def cohort(tmp_path):
    """Writes so many series, in `in`, and their list."""

    def write(count):
        uids = [scan(tmp_path / "in" / str(n), n, f"P{n}") for n in range(count)]
        (tmp_path / "list.csv").write_text(HEAD + "".join(map(lesion_row, uids)))

    return write


def test_killed_and_started_again_equals_uninterrupted(command, cohort, tmp_path):
    cohort(12)
    arguments = [sys.executable, "-m", "data", "prepare", "in", "--out", "p", "--processes", "1", *map(str, CUT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".p.parts/parts/*.npz"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert not (tmp_path / "p").exists()
    resumed = command("data", "prepare", "in", "--out", "p", "--processes", 1, *CUT)
    assert resumed.code == 0, resumed.err
    assert "of 12 series were cut by an earlier run" in resumed.err
    assert command("data", "prepare", "in", "--out", "q", "--processes", 1, *CUT).code == 0
    for name in ("patches.csv", "dataset.json", "series.csv", "skipped.csv", "shards/00000.npy"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture
def stopped(command, monkeypatch):
    """A run that is stopped when both its series are cut."""

    def run():
        import data.cohort

        with monkeypatch.context() as broken:
            broken.setattr(data.cohort, "_write", lambda *_: (_ for _ in ()).throw(OSError("pulled the plug")))
            done = command("data", "prepare", "in", "--out", "p", "--processes", 1, *CUT)
        assert (done.code, "what is done so far is kept in .p.parts; the same command goes on from there" in done.err) == (2, True)

    return run


def test_a_scan_that_changed_is_cut_again(command, cohort, tmp_path, stopped):
    cohort(2)
    stopped()
    os.utime(tmp_path / "in" / "1" / "000.dcm", ns=(1, 1))
    done = command("data", "prepare", "in", "--out", "p", "--processes", 1, *CUT)
    assert "1 of 2 series were cut by an earlier run" in done.err
    assert len(PatchFolder.open("p")) == 4


@pytest.mark.parametrize("length", [0, 100, 700, -1])
def test_a_damaged_part_is_cut_again(command, cohort, tmp_path, stopped, length):
    cohort(2)
    stopped()
    part = sorted(tmp_path.glob(".p.parts/parts/*.npz"))[0]
    part.write_bytes(part.read_bytes()[:length])
    for out in ("p", "q"):
        done = command("data", "prepare", "in", "--out", out, "--processes", 1, *CUT)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
    assert PatchFolder.open("p").content_hash == PatchFolder.open("q").content_hash
    assert len(PatchFolder.open("p")) == 4


def test_a_scan_that_was_spoiled_is_not_taken_from_an_old_part(command, cohort, tmp_path, stopped):
    cohort(2)
    stopped()
    (tmp_path / "in" / "1" / "008.dcm").touch()
    done = command("data", "prepare", "in", "--out", "p", "--processes", 1, *CUT)
    assert done.code == 0, done.err
    assert "skipped series: in/1/008.dcm: a damaged file beside the slices" in done.err
    assert len(PatchFolder.open("p")) == 2


def test_a_part_is_named_by_everything_that_its_patches_follow_from(tmp_path):
    file = tmp_path / "a.nii"
    file.write_bytes(b"scan")
    series, listed, config = Series("1.2", "JD", (Source(file),)), (Points(np.zeros((1, 3)), np.array([8.0]), ("nodule",)),), CutConfig()
    others = {
        "shape": (32, 32), "spacing_mm": 2.0, "window": (-900.0, 400.0), "slices": 2, "background": 0, "seed": 1, "validation": 0.1, "test": 0.1,
    }  # fmt: skip
    assert set(others) == {field.name for field in fields(CutConfig)}
    names = [part_name(series, listed, replace(config, **{name: value}), KEY) for name, value in others.items()]
    names += [part_name(series, listed, config, KEY), part_name(replace(series, uid="1.3"), listed, config, KEY)]
    names += [
        part_name(series, (replace(listed[0], labels=("cyst",)),), config, KEY),
        part_name(series, listed, config, Pseudonyms(b"1" * 64)),
    ]
    file.write_bytes(b"another scan")
    names.append(part_name(series, listed, config, KEY))
    assert len(set(names)) == len(names) == len(others) + 5
    assert names[-1] == part_name(series, listed, config, KEY)


def test_a_series_that_kills_its_worker_is_left_out_with_a_reason(command, cohort, monkeypatch):
    import data.cohort

    def first_kills(function, inputs, processes, scheduler, died):
        return [died(one) if died and n == 0 else function(one) for n, one in enumerate(inputs)]

    cohort(2)
    monkeypatch.setattr(data.cohort, "map_processes", first_kills)
    done = command("data", "prepare", "in", "--out", "p", *CUT)
    assert done.code == 0, done.err
    assert "skipped series: in/" in done.err
    assert "1 x series: reading it killed the process" in done.out
    assert len(PatchFolder.open("p")) == 2


def test_two_runs_at_once_do_not_mix(command, cohort, tmp_path):
    from data.files import resumable_folder

    cohort(1)
    with resumable_folder(tmp_path / "p"):
        done = command("data", "prepare", "in", "--out", "p", *CUT)
        assert (done.code, "another process is making it" in done.err) == (2, True)
    assert not (tmp_path / ".p.parts").exists()


def test_workers_of_a_cluster_are_in_another_folder(command, cohort, tmp_path, monkeypatch):
    """The paths that a user gives are of the user's folder."""
    cohort(2)
    (tmp_path / "worker").mkdir()

    def there(function, inputs, scheduler, died):
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "worker")
            results = [function(pickle.loads(pickle.dumps(one))) for one in inputs]
        yield from results

    monkeypatch.setattr("data.parallel._on_cluster", there)
    done = command("data", "prepare", "in", "--out", "p", "--scheduler", "tcp://head:8786", *CUT)
    assert done.code == 0, done.err
    assert len(PatchFolder.open("p")) == 4
    assert not list((tmp_path / "worker").iterdir())


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_gives_the_same_bytes(command, cohort):
    distributed = pytest.importorskip("distributed")
    cohort(3)
    with distributed.LocalCluster(1, processes=False, threads_per_worker=1, protocol="tcp://", dashboard_address=None) as cluster:
        done = command("data", "prepare", "in", "--out", "p", "--scheduler", cluster.scheduler_address, *CUT)
    assert done.code == 0, done.err
    assert command("data", "prepare", "in", "--out", "q", "--processes", 2, *CUT).code == 0
    assert PatchFolder.open("p").content_hash == PatchFolder.open("q").content_hash
