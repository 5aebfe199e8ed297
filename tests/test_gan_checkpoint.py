"""A run's state on disk: whole or not at all, whenever it is killed and whatever is full; damage is noticed and costs one checkpoint."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from conftest import ROOT

from gan import checkpoint as checkpoint_module
from gan.checkpoint import Checkpoint, load_checkpoint, locked, save_checkpoint, write_atomically
from gan.sampling import load_model
from gan.tracker import Tracker

ABOUT = {"shape": [16, 16], "window": [-1000, 400]}


def checkpoint_at(step: int, best: int | None = None) -> Checkpoint:
    nearest = None if best is None else {"step": best, "distance": 0.25, "measure": "sliced Wasserstein"}
    return Checkpoint(
        step, {"training": {"betas": (0.0, 0.9)}}, ABOUT, {"generator.w": torch.full((3,), float(step))}, {"seed": 0}, best=nearest
    )


def save(run: Path, *steps: int, best: int | None = None) -> None:
    for step in steps:
        save_checkpoint(run, checkpoint_at(step, best))


def files(run: Path) -> list[str]:
    return sorted(file.name for file in (run / "checkpoints").iterdir())


def pairs(*steps: int) -> list[str]:
    return [f"step-{step:08d}.{suffix}" for step in steps for suffix in ("json", "safetensors")]


def damage(run: Path, step: int, suffix: str = "safetensors") -> Path:
    file = run / "checkpoints" / f"step-{step:08d}.{suffix}"
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content)
    return file


def assert_right(loaded: Checkpoint, step: int) -> None:
    assert loaded.step == step
    assert torch.equal(loaded.tensors["generator.w"], torch.full((3,), float(step)))


def test_checkpoint_round_trip_and_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3)
    loaded = load_checkpoint(tmp_path)
    assert_right(loaded, 3)
    assert (loaded.trained_on, loaded.config, loaded.random) == (ABOUT, {"training": {"betas": [0.0, 0.9]}}, {"seed": 0})
    assert (loaded.best, loaded.privacy_spent) == (None, None)
    assert loaded.model_hash == hashlib.sha256((tmp_path / "checkpoints/step-00000003.safetensors").read_bytes()).hexdigest()
    assert_right(load_checkpoint(tmp_path, 2), 2)
    assert files(tmp_path) == pairs(2, 3)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 1"):
        load_checkpoint(tmp_path, 1)


def test_the_best_step_stays_and_can_be_asked_for(tmp_path):
    save(tmp_path, 1)
    assert_right(load_checkpoint(tmp_path, "best"), 1)  # nothing to choose by yet, so the newest
    save(tmp_path, 2, 3, 4, 5, best=2)
    assert files(tmp_path) == pairs(2, 4, 5)
    best = load_checkpoint(tmp_path, "best")
    assert_right(best, 2)
    assert best.best == {"step": 2, "distance": 0.25, "measure": "sliced Wasserstein"}
    save(tmp_path, 6, best=6)
    assert files(tmp_path) == pairs(2, 5, 6)  # should 6 be damaged, 5 still finds its best
    damage(tmp_path, 6)
    assert_right(load_checkpoint(tmp_path, "best"), 2)
    save(tmp_path, 6, 7, best=6)
    assert files(tmp_path) == pairs(6, 7)
    damage(tmp_path, 6)
    with pytest.raises(ValueError, match=r"step-00000006\.safetensors"):
        load_checkpoint(tmp_path, "best")
    with pytest.raises(FileNotFoundError, match="no run there"):
        load_checkpoint(tmp_path / "gone", "best")


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_flipped_bit_costs_only_the_newest_checkpoint(tmp_path, suffix):
    save(tmp_path, 1, 2)
    file = damage(tmp_path, 2, suffix)
    warnings = []
    assert_right(load_checkpoint(tmp_path, warn=warnings.append), 1)
    assert file.name in warnings[0]
    assert "going back to step 1" in warnings[0]
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path, 2)


def test_every_seventh_bit_of_the_json_counts(tmp_path):
    file = save_checkpoint(tmp_path, checkpoint_at(1, best=1))
    content, whole = file.read_bytes(), load_checkpoint(tmp_path)
    for bit in range(0, 8 * len(content), 7):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with suppress(ValueError):  # but it may say the same as before, such as 1E-05 for 1e-05
            loaded = load_checkpoint(tmp_path)
            assert_right(loaded, 1)
            assert replace(loaded, tensors={}) == replace(whole, tensors={})


def test_a_file_cut_short_missing_or_renamed_is_noticed(tmp_path):
    save(tmp_path, 1, 2)
    for suffix in ("json", "safetensors"):
        file = tmp_path / "checkpoints" / f"step-00000002.{suffix}"
        content = file.read_bytes()
        for length in (0, 1, 7, 8, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:length])
            assert_right(load_checkpoint(tmp_path), 1)
        file.write_bytes(content)
    file.unlink()
    assert_right(load_checkpoint(tmp_path), 1)
    with pytest.raises(ValueError, match=r"step-00000002\.safetensors: missing"):
        load_checkpoint(tmp_path, 2)
    for suffix in ("json", "safetensors"):
        shutil.copy(tmp_path / f"checkpoints/step-00000001.{suffix}", tmp_path / f"checkpoints/step-00000009.{suffix}")
    with pytest.raises(ValueError, match="does not fit its SHA-256 or its name"):
        load_checkpoint(tmp_path, 9)


def test_damaged_checkpoints_never_push_out_the_last_good_one(tmp_path):
    save(tmp_path, 1, 2, 3)
    damage(tmp_path, 3)
    save(tmp_path, 4)  # resumed from 2
    assert files(tmp_path) == pairs(2, 4)
    save(tmp_path, 8)
    damage(tmp_path, 8, "json")
    save(tmp_path, 5)  # resumed from 4: a damaged checkpoint of a later step is of no use to anybody
    assert files(tmp_path) == pairs(4, 5)
    assert_right(load_checkpoint(tmp_path, warn=pytest.fail), 5)


def test_steps_of_nine_digits_come_after_those_of_eight(tmp_path):
    save(tmp_path, 99_999_998, 99_999_999, 100_000_000)
    assert load_checkpoint(tmp_path).step == 100_000_000
    assert files(tmp_path) == sorted(pairs(99_999_999, 100_000_000))


def test_files_of_others_are_left_alone(tmp_path):
    save(tmp_path, 1)
    for name in ("notes.txt", "step-one.json", "step-00000001.json.bak"):
        (tmp_path / "checkpoints" / name).write_text("mine")
    save(tmp_path, 2, 3)
    assert set(files(tmp_path)) == {*pairs(2, 3), "notes.txt", "step-one.json", "step-00000001.json.bak"}
    assert_right(load_checkpoint(tmp_path, warn=pytest.fail), 3)


def at_line(n: int, act):
    """A trace function that calls `act` when the n-th line of gan/checkpoint.py begins."""
    left = n

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename != checkpoint_module.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                act()
        return trace

    return trace


def assert_survived(run: Path, step_before: int, step: int) -> None:
    """After a save of `step` that did not end: every checkpoint is whole, its best is there, and the next save leaves no trace of it."""
    reached = load_checkpoint(run, warn=pytest.fail).step
    assert reached in (step_before, step)
    for there in (int(name[5:13]) for name in files(run) if name.endswith(".json")):
        assert_right(load_checkpoint(run, there), there)
    assert_right(load_checkpoint(run, "best"), 1)
    save(run, step + 1, best=1)
    assert files(run) == pairs(1, reached, step + 1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_at_any_line_of_a_save_is_survived(tmp_path, monkeypatch, error):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # only a power cut asks for it, and it takes long
    failed = []

    def fail():
        failed.append(n)
        raise error

    before = sys.gettrace()
    save(tmp_path / "saved", 1, 2, 3, best=1)
    for n in range(1, 1000):
        run = shutil.copytree(tmp_path / "saved", tmp_path / str(n))
        sys.settrace(at_line(n, fail))
        with suppress(OSError, KeyboardInterrupt):
            save_checkpoint(run, checkpoint_at(4, best=1))
        sys.settrace(before)
        if n not in failed:
            break
        assert_survived(run, 3, 4)
    assert 50 < n < 999
    assert files(run) == pairs(1, 3, 4)


def kill_at_every_line(folder: Path) -> None:
    """Saves in a child that is killed when the n-th line begins, for each n; runs in a process of its own, for it forks."""
    os.fsync = lambda descriptor: None  # only a power cut asks for it, and it takes long
    save(folder / "saved", 1, 2, 3, best=1)
    for n in range(1, 1000):
        run = shutil.copytree(folder / "saved", folder / str(n))
        child = os.fork()
        if child == 0:
            sys.settrace(at_line(n, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            save_checkpoint(run, checkpoint_at(4, best=1))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        assert_survived(run, 3, 4)
    assert 50 < n < 999
    assert files(run) == pairs(1, 3, 4)
    print("killed at", n - 1, "lines")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_line_of_a_save_is_survived(tmp_path):
    code = f"import pathlib, test_gan_checkpoint as test; test.kill_at_every_line(pathlib.Path({str(tmp_path)!r}))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "killed at" in done.stdout


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_save_returns(tmp_path, monkeypatch):
    done, sync, replace_ = [], os.fsync, os.replace

    def synced(descriptor):
        done.append(("synced", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def moved(here, there):
        done.append(("moved", os.stat(here).st_ino))
        replace_(here, there)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved)
    save(tmp_path, 1)
    moves = [n for n, (what, _) in enumerate(done) if what == "moved"]
    assert {done[n][1] for n in moves} == {(tmp_path / "checkpoints" / name).stat().st_ino for name in pairs(1)}
    assert all(("synced", done[n][1]) in done[: moves[0]] for n in moves)
    assert {done[n] for n in range(moves[-1], len(done))} >= {("synced", at.stat().st_ino) for at in (tmp_path / "checkpoints", tmp_path)}


@contextmanager
def files_up_to(size: int):
    """No file can grow beyond so many bytes: as on a full disk, what still fits is written, then the system refuses."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 64, 5000, 40000, 40500])  # the last two: the tensors fit, the JSON does not
def test_a_full_disk_is_told_in_one_line_and_keeps_the_last_checkpoint(tmp_path, room):
    save(tmp_path, 1, 2)
    large = replace(checkpoint_at(3), tensors={"generator.w": torch.zeros(9_970)}, config={"networks": {"channels": [0] * 40_000}})
    with files_up_to(room), pytest.raises(OSError, match=r"too large.*mend this and run the same command again") as full:
        save_checkpoint(tmp_path, large)
    assert Path(full.value.filename).name == "step-00000003.json"
    assert files(tmp_path) == pairs(1, 2)
    assert_right(load_checkpoint(tmp_path), 2)


def test_write_atomically_replaces_whole_files(tmp_path):
    write_atomically(tmp_path / "f", b"one")
    (tmp_path / ".f.partial").write_bytes(b"left by a kill")
    write_atomically(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"two"
    with files_up_to(4), pytest.raises(OSError, match="left as it was") as full:
        write_atomically(tmp_path / "f", b"three")
    assert full.value.filename == str(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_line_of_metrics_that_does_not_fit_leaves_no_half_line(tmp_path):
    tracker = Tracker(tmp_path, 0, {})
    tracker.log(1, {"x": 1.0})
    length = (tmp_path / "metrics.jsonl").stat().st_size
    for room in (0, 5, length - 1):
        with files_up_to(length + room), pytest.raises(OSError, match=r"too large.*the checkpoints are whole") as full:
            tracker.log(2, {"x": 2.0})
        assert full.value.filename == str(tmp_path / "metrics.jsonl")
        assert (tmp_path / "metrics.jsonl").stat().st_size == length
    tracker.log(2, {"x": 3.0})
    assert [json.loads(line)["x"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1.0, 3.0]


def test_wandb_is_told_no_host_and_asked_for_nothing_of_the_machine(tmp_path, monkeypatch):
    wandb, given = pytest.importorskip("wandb"), {}
    logs = SimpleNamespace(settings=SimpleNamespace(log_user=str(tmp_path / "logs" / "debug.log")))
    monkeypatch.setattr(wandb, "init", lambda **named: (given.update(named), logs)[1])
    Tracker(tmp_path, 0, {}, "offline")
    told = given["settings"]
    assert (given["mode"], told.host, told.console) == ("offline", "hidden", "off")
    assert all((told.disable_git, told.disable_code, told.x_disable_meta, told.x_disable_stats, told.x_disable_machine_info))
    assert not any((told.save_code, told.x_save_requirements))


@pytest.mark.parametrize("left", [b'{"step": 2, "x"', b"\0" * 40, b"\xff\xfe{}\n", b'{"step": "2"}\n', b"7\n"])
def test_what_a_crash_left_in_the_metrics_does_not_stop_a_resume(tmp_path, left):
    Tracker(tmp_path, 0, {}).log(1, {"x": 1.0})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(left)
    Tracker(tmp_path, 1, {}).log(2, {"x": 2.0})
    assert [json.loads(line)["x"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1.0, 2.0]


def test_one_process_at_a_time_trains_in_a_run_folder(tmp_path):
    pytest.importorskip("fcntl")
    run = tmp_path / "new" / "run"
    with locked(run), pytest.raises(ValueError, match=r"run: another process is training in it"), locked(run):
        pytest.fail("two at a time")
    with locked(run):
        pass
    code = f"import pathlib, gan.checkpoint as c\nwith c.locked(pathlib.Path({str(run)!r})): print('mine', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match="another process"), locked(run):
            pytest.fail("two at a time")
        other.kill()
    (run / "samples").mkdir()
    for left in (".config.yaml.partial", "samples/.step-00000500.png.1234.partial"):
        (run / left).write_bytes(b"cut short")
    with locked(run):
        assert sorted(str(file.relative_to(run)) for file in run.rglob("*")) == [".lock", "samples"]


def test_without_locks_in_the_system_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass


class Code:
    def __reduce__(self):
        return (open, ("pickled-code-ran", "w"))


def test_pickle_and_foreign_files_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta = json.loads(save_checkpoint(tmp_path, checkpoint_at(1)).read_text())
    del meta["sha256"]
    tensors, described = (tmp_path / "checkpoints" / name for name in reversed(pairs(1)))

    def write_forged(**changes):
        forged = {**meta, **changes}  # with the right hashes
        described.write_text(json.dumps({**forged, "sha256": hashlib.sha256(json.dumps(forged).encode()).hexdigest()}))

    for content in (pickle.dumps(Code()), b"", b"\xff" * 64, safetensors.torch.save({"other": torch.zeros(1)})):
        tensors.write_bytes(content)
        write_forged(tensors_sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(ValueError, match=str(tmp_path)):
            load_model(tmp_path)
    assert not (tmp_path / "pickled-code-ran").exists()
    save(tmp_path, 1)
    for change in ({"config": 3}, {"step": "1"}, {"random": None}, {"version": 1}):
        write_forged(**change)
        with pytest.raises(ValueError, match=r"step-00000001\."):
            load_checkpoint(tmp_path)
    for text in ("{", "[]", '{"format": "other"}', "[" * 100_000, "\udc80"):
        described.write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"step-00000001\.json"):
            load_checkpoint(tmp_path)
