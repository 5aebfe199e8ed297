"""What a training run survives: 50 kills at random moments, a full disk, flipped bits, a second process in its folder.

Runs that are killed are children of a process that has torch loaded already (`in_own_process`), so that a start takes
a moment and most kills fall into work.
"""

import functools
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

import train
from data.command import run_command
from data.files import new_folder
from data.patches import Patch, PatchSpec, PatchWriter
from gan.checkpoint import load_checkpoint, locked, write_atomically

SMALL = ["--training.batch", 8, "--training.n_critic", 1, "--networks.channels", 4, "--networks.latent", 8, "--training.device", "cpu",
         "--training.log_every", 1]  # fmt: skip

CURVES_BYTES = 180_000

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def write_patches(path: Path, count: int = 48) -> None:
    """16 x 16 patches of bright discs, two a patient; every fourth patient is for validation: too few to look for a best step in 48."""
    draws = np.random.default_rng(0)
    distance = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2))
    with new_folder(path) as folder:
        writer = PatchWriter(folder, PatchSpec(shape=(16, 16), spacing_mm=(1.0, 1.0), window=(-1000, 400), classes=("nodule",)))
        for n in range(count):
            hu = np.where(distance < draws.uniform(2, 6), 100, -850) + draws.normal(0, 30, (16, 16))
            split = "validation" if n // 2 % 4 == 3 else "train"
            writer.add(Patch(hu.astype(np.int16), f"p{n // 2}", f"s{n}", "nodule", 8.0, None, split))
        writer.finish()


@pytest.fixture
def patches(tmp_path):
    write_patches(tmp_path / "patches")
    return tmp_path / "patches"


def in_own_process(function, *arguments, before=()):
    """Calls a function of this file in a new process with a single thread, in which forking is safe; returns what it printed."""
    code = f"import test_end_to_end_crash as test; test.{function.__name__}(*{arguments!r})"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([*before, sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def load_all() -> None:
    """What every start would load, so that no child has to; no thread is there when they are forked."""
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1)])
    for name in (
        "attrs", "yaml", "docstring_parser", "PIL.Image", "lightning_fabric", "data.export", "gan.private_trainer", "gan.training",
        "gan.transfer", "evaluate.validation",
    ):  # fmt: skip
        importlib.import_module(name)


class Training:
    """A forked child that does `python train.py --data patches --out RUN ...`; no file it writes may exceed `largest_file` bytes."""

    def __init__(self, run: str, *options: object, largest_file: int | None = None):
        self._said, said = os.pipe()  # holds 64 KiB, more than a short run says
        self._process = os.fork()
        if self._process:
            os.close(said)
            return
        code = 99
        try:
            os.dup2(said, 1)
            os.dup2(said, 2)
            if largest_file is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            sys.argv = ["train.py", "--data", "patches", "--out", run, *map(str, (*SMALL, *options))]
            run_command(train.main)
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def end(self, kill: bool = False) -> tuple[int, str]:
        """Waits for its end, or kills it: its exit code, -9 if killed, and what it said."""
        if kill:
            os.kill(self._process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        with open(self._said) as said:
            return code, said.read()


def finish(run: str, *options: object) -> None:
    code, said = Training(run, *options).end()
    assert code == 0, said


def step_of(run: str) -> int:
    """The step of the newest checkpoint, which must be whole; 0 where there is none."""
    try:
        return load_checkpoint(Path(run), warn=pytest.fail).step
    except FileNotFoundError:
        return 0


def newest(run: str) -> int:
    """The same from the names of the files alone, while another process writes them."""
    return max((int(file.stem[5:]) for file in Path(run).glob("checkpoints/step-*.json")), default=0)


def wait_until_past(run: str, step: int) -> None:
    deadline = time.monotonic() + 60
    while newest(run) <= step:
        assert time.monotonic() < deadline, f"{run} does not get past step {step}"
        time.sleep(0.001)


def assert_same_runs(one: str, other: str) -> None:
    """Every file of both runs is equal byte for byte, but for speed and remaining time in the metrics and their picture."""

    def content(file: Path) -> object:
        if file.name == "curves.png":
            return "drawn"
        if file.name != "metrics.jsonl":
            return file.read_bytes()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in ("images_per_second", "eta_s")} for line in lines]

    names = [sorted(file.relative_to(run) for file in Path(run).rglob("*")) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        if (Path(one) / name).is_file():
            assert content(Path(one) / name) == content(Path(other) / name), name


def kill_often(folder: str, kills: int, steps: int) -> None:
    """One run to its end, then the same one killed so often: by turns some time after its start and some time after it got further.

    `steps` must be three times `kills`, or the run ends too soon.
    """
    os.chdir(folder)
    load_all()
    curves = importlib.import_module("gan.curves")
    curves.write_curves = lambda history, file: None  # a picture at each checkpoint would take most of the time
    draws = np.random.default_rng(0)
    options = ["--training.steps", steps, "--training.checkpoint_every", 2, "--training.samples_every", 20]
    started = time.monotonic()
    whole = Training("whole", *options)
    wait_until_past("whole", 0)
    start_s = time.monotonic() - started
    code, said = whole.end()
    assert code == 0, said
    checkpoint_s = (time.monotonic() - started - start_s) / (steps / 2)

    moments, step = Counter[str](), 0
    for n in range(kills):
        parts = Training("parts", *options)
        wait_s, most = draws.uniform(0, start_s), step
        if n > 5 and n % 2:
            wait_until_past("parts", step)
            wait_s, most = draws.uniform(0, 2 * checkpoint_s), step + 4
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and newest("parts") <= most:
            time.sleep(0.001)
        code, said = parts.end(kill=True)
        assert code == -signal.SIGKILL, said
        before, step = step, step_of("parts")
        assert step >= before, f"the checkpoint of step {before} was lost"
        writing = Path("parts/checkpoints/.partial").exists()
        moments["before the first checkpoint" if not step else "while writing a checkpoint" if writing else "at another moment"] += 1
        moments["before any progress"] += step == before
    finish("parts", *options)
    assert_same_runs("whole", "parts")
    print(f"{kills} kills up to step {step} of {steps}: {dict(moments)}")


@needs_fork
@pytest.mark.parametrize(("kills", "steps"), [(16, 60), pytest.param(50, 150, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(tmp_path, patches, kills, steps):
    said = in_own_process(kill_often, str(tmp_path), kills, steps)
    assert said.startswith(f"{kills} kills")


def fill_the_disk(folder: str, own_file_system: bool) -> None:
    """Trains while hardly anything fits on the disk, or into a file, with more room each time, and at last with enough.

    In place of the picture of the curves, which takes a second to draw, a file of its size is written as that is.
    """
    os.chdir(folder)
    load_all()
    curves = importlib.import_module("gan.curves")
    curves.write_curves = lambda history, file: write_atomically(file, bytes(CURVES_BYTES))
    write_patches(Path("patches"))
    options = ["--training.checkpoint_every", 4, "--training.samples_every", 3, "--training.steps"]
    finish("whole", *options, 24)
    finish("parts", *options, 9)
    metrics, tensors = (Path("parts", name).stat().st_size for name in ("metrics.jsonl", "checkpoints/step-00000009.safetensors"))
    page, step, errors = 4096, 9, set()
    if own_file_system:
        rooms = [0, page, 3 * page, tensors // 2, tensors - page, tensors + page, tensors + 5 * page, 2**20]
    else:
        rooms = [0, 100, 700, metrics + 50, tensors // 2, tensors - 1]
    for room in rooms:
        if own_file_system:
            Path("filler").write_bytes(b"")
            free = os.statvfs(".").f_bavail * os.statvfs(".").f_frsize
            Path("filler").write_bytes(bytes(max(0, free - room)))
        code, said = Training("parts", *options, 24, largest_file=None if own_file_system else room).end()
        Path("filler").unlink(missing_ok=True)
        if code == 0:
            break
        *before, error = said.splitlines()
        assert code == 2, said
        assert not [line for line in before if "error" in line or "Traceback" in line], said
        assert error.startswith("error: parts/"), said
        assert any(cause in error for cause in (("No space left", "disk is full") if own_file_system else ("too large",))), said
        errors.add(error)
        assert step_of("parts") >= step
        step = step_of("parts")
    assert (code == 0) is own_file_system  # a disk has room at last, a file may never be as large as the tensors
    finish("parts", *options, 24)
    assert_same_runs("whole", "parts")
    print(*sorted(errors), sep="\n")


@needs_fork
def test_files_that_may_not_grow_stop_the_run_with_one_line(tmp_path):
    pytest.importorskip("resource")
    said = in_own_process(fill_the_disk, str(tmp_path), False)
    for file in ("trained_on.json", "metrics.jsonl", "checkpoints/step-00000012.json"):
        assert f"error: parts/{file}: " in said


@functools.cache
def own_file_system() -> list[str]:
    """The start of a command line that mounts a small file system at its first argument and runs the rest with it; empty if it may not."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8m none "$0" && exec "$@"']
    try:
        return command if subprocess.run([*command, ROOT / "docs", "true"], capture_output=True).returncode == 0 else []
    except OSError:
        return []


@needs_fork
def test_a_full_disk_stops_the_run_with_one_line(tmp_path):
    if not own_file_system():
        pytest.skip("needs Linux and the right to mount a file system in a namespace")
    said = in_own_process(fill_the_disk, str(tmp_path), True, before=[*own_file_system(), str(tmp_path)])
    assert "mend this and run the same command again" in said


@pytest.mark.usefixtures("no_curves")
def test_thirty_flipped_bits_are_noticed(command, tmp_path):
    write_patches(tmp_path / "patches", 88)
    options = ["train", "--data", tmp_path / "patches", "--training.steps", 3, "--training.checkpoint_every", 1, *SMALL]
    assert command(*options, "--out", "run").code == 0
    right = {step: load_checkpoint(Path("run"), step) for step in (2, 3)}
    files, draws = sorted(Path("run/checkpoints").glob("step-*")), np.random.default_rng(0)

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        bit = int(draws.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)

    for n in range(30):
        file, warnings = files[n % len(files)], []
        content = file.read_bytes()
        flip(file)
        loaded = load_checkpoint(Path("run"), warn=warnings.append)
        file.write_bytes(content)
        assert bool(warnings) == (file.stem == "step-00000003")
        assert (loaded.step, file.name in warnings[0]) == (2, True) if warnings else loaded.step == 3
        expected = right[loaded.step]
        assert (loaded.model_hash, loaded.config, loaded.best) == (expected.model_hash, expected.config, expected.best)
        assert loaded.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(loaded.tensors[name], expected.tensors[name]) for name in expected.tensors)

    for copy in ("once", "everywhere"):
        shutil.copytree("run", copy)
    flip(Path("once/checkpoints/step-00000003.safetensors"))
    done = command(*options, "--out", "once")
    assert done.code == 0, done.err
    assert "warning: once/checkpoints/step-00000003.safetensors: damaged" in done.err
    assert_same_runs("run", "once")

    oldest, *_ = tensors = sorted(Path("everywhere/checkpoints").glob("*.safetensors"))
    for file in tensors:
        flip(file)
    for refused in ((*options, "--out", "everywhere"), ("sample", "--run", "everywhere", "--out", "synthetic")):
        done = command(*refused)
        assert done.code == 2
        assert done.err.splitlines()[-1].startswith(f"error: {oldest}: damaged")
    assert newest("everywhere") == 3


@pytest.mark.usefixtures("no_curves")
def test_a_second_training_in_the_same_run_folder_is_refused(command, patches):
    pytest.importorskip("fcntl")
    options = ["train", "--data", patches, "--out", "run", *SMALL]
    assert command(*options, "--training.steps", 2).code == 0
    before = {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()}
    with locked(Path("run")):
        done = command(*options, "--training.steps", 3)
    assert (done.code, done.err) == (2, "error: run: another process is training in it; wait for it, or choose another --out\n")
    assert before == {file: file.read_bytes() for file in Path("run").rglob("*") if file.is_file()}
    assert command(*options, "--training.steps", 3).code == 0


@pytest.mark.parametrize("left", [[], [".trained_on.json.partial"], ["trained_on.json"], ["trained_on.json", ".config.yaml.partial"]])
def test_a_run_killed_in_its_first_moment_starts_again(command, patches, left):
    Path("run").mkdir()
    for name in [".lock", *left]:
        (Path("run") / name).write_bytes(b"")
    done = command("train", "--data", patches, "--out", "run", "--training.steps", 1, *SMALL)
    assert done.code == 0, done.err
    assert not list(Path("run").glob(".*.partial"))
