"""One run in two processes: the same weights as in one, whoever starts them, and an end in words when one of them is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from data.files import new_folder
from data.patches import Patch, PatchSpec, PatchWriter
from gan.checkpoint import load_checkpoint
from gan.config import TrainingConfig
from gan.processes import Processes, shares

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
OPTIONS = [
    "--data", "patches", "--training.batch", 5, "--training.n_critic", 2, "--training.penalty_fraction", 0.6, "--training.balance", 0.5,
    "--networks.channels", 4, "--networks.latent", 8, "--networks.condition", "class+diameter", "--training.device", "cpu",
    "--training.log_every", 1,
]  # fmt: skip


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 2**32))
def test_shares_keep_patients_whole_and_processes_alike(sizes, count, seed):
    patients = np.random.default_rng(seed).permutation(np.repeat([f"p{n}" for n in range(len(sizes))], sizes))
    if count > len(sizes):
        with pytest.raises(ValueError, match=f"{count} processes want a training patient each, and there are {len(sizes)}"):
            shares(patients, count)
        return
    owner = shares(patients, count)
    assert len({(patient, process) for patient, process in zip(patients, owner, strict=True)}) == len(sizes)
    held = Counter(owner.tolist())
    assert set(held) == set(range(count))
    assert max(held.values()) - min(held.values()) <= max(sizes)


def test_the_largest_patient_is_placed_first():
    owner = shares(np.array([*"abcdef", *"gggggg"]), 2)
    assert Counter(owner.tolist()) == {0: 6, 1: 6}


def write_patches(path: Path, patients: int, known: bool = True) -> None:
    """16 x 16 discs of two classes; one to five a patient, every fourth patient for validation. known: else of one class, diameters unknown."""
    draws = np.random.default_rng(0)
    distance = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2))
    classes = ("ground-glass", "solid") if known else ("nodule",)
    spec = PatchSpec(shape=(16, 16), spacing_mm=(1.0, 1.0), window=(-1000, 400), classes=classes)
    with new_folder(path) as folder:
        writer = PatchWriter(folder, spec)
        for patient in range(patients):
            for n in range(1 + (patient + 1) % 5):
                label, radius = classes[n % len(classes)], draws.uniform(2, 6)
                hu = np.where(distance < radius, (-500, 100)[n % 2], -850) + draws.normal(0, 30, (16, 16))
                split = "validation" if patient % 4 == 3 else "train"
                writer.add(Patch(hu.astype(np.int16), f"p{patient}", f"s{patient}", label, 2 * radius if known else None, None, split))
        writer.finish()


@pytest.fixture
def patches(command, tmp_path):
    """The patch folder "patches" of 32 patients."""
    write_patches(tmp_path / "patches", 32)


@contextmanager
def started(*arguments):
    """`python ARGUMENTS` in a session of its own, of which nothing is left afterwards."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "MASTER_", "LOCAL_", "WORLD_", "RANK"))
    }
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], env={**env, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finish(*arguments):
    with started(*arguments) as process:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
    return out


def assert_close(one, other, tolerance):
    assert one.step == other.step
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert (tensor - other.tensors[name]).double().norm() <= tolerance * tensor.double().norm() + 1e-15, name


def metrics(run):
    return {line["step"]: line for line in map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())}


@pytest.mark.usefixtures("no_curves")
def test_a_run_goes_on_in_two_processes_and_in_one_as_if_nothing_had_changed(command, patches):
    """With 64 bits, rounding hides no other difference. Shares of 5 patches are uneven, and that of the second step's last batch is empty."""
    options = [*OPTIONS, "--training.precision", 64, "--training.steps"]
    assert command("train", *options, 5, "--out", "whole").code == 0
    assert command("train", *options, 1, "--out", "parts").code == 0
    said = finish(*TORCHRUN, ROOT / "train.py", *options, 4, "--out", "parts")
    assert said.count("all 4 steps done") == 1
    done = command("train", *options, 5, "--out", "parts")
    assert done.code == 0, done.err
    whole, parts = load_checkpoint(Path("whole")), load_checkpoint(Path("parts"))
    assert_close(whole, parts, 1e-9)
    assert whole.tensors["critic.score.weight"].dtype == torch.float64
    one, other = metrics("whole"), metrics("parts")
    assert sorted(one) == sorted(other) == list(range(1, 6))
    for step, line in one.items():
        for name in ("critic_loss", "penalty", "slope_norm", "generator_loss", "critic_gradient_norm", "generator_gradient_norm"):
            assert other[step][name] == pytest.approx(line[name], rel=1e-9), (step, name)
    assert {file.name for file in Path("whole").iterdir()} == {file.name for file in Path("parts").iterdir()}


def children_of(process) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not listed.exists():
        pytest.skip("needs Linux's list of children")
    return [int(number) for number in listed.read_text().split()]


def kill_a_worker(*arguments, run):
    """Starts two processes, kills one after the first checkpoint: that checkpoint, the exit code and what was said."""
    with started(*arguments, ROOT / "train.py", *OPTIONS, "--training.checkpoint_every", 3, "--training.steps", 10**6, "--out", run,
                 *([] if arguments else ["--training.devices", 2])) as process:  # fmt: skip
        deadline = time.monotonic() + 240
        while not list(Path(run).glob("checkpoints/*.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first = load_checkpoint(Path(run))
        os.kill(children_of(process)[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    return first, process.returncode, err


@pytest.mark.usefixtures("no_curves")
def test_two_processes_started_by_the_run_itself_until_one_is_killed(command, patches):
    first, code, said = kill_a_worker(run="two")
    assert code != 0
    assert [line for line in said.splitlines() if "another process of this run has ended" in line or "terminated with code -9" in line], (
        said
    )
    assert "Traceback" not in said
    done = command("train", *OPTIONS, "--training.steps", first.step, "--out", "one")
    assert done.code == 0, done.err
    assert_close(load_checkpoint(Path("one")), first, 1e-4)  # 32 bits, after a few steps
    step = load_checkpoint(Path("two"), warn=pytest.fail).step
    done = command("train", *OPTIONS, "--training.steps", step + 1, "--out", "two")
    assert done.code == 0, done.err
    assert load_checkpoint(Path("two")).step == step + 1


@pytest.mark.slow
def test_a_killed_worker_of_torchrun_ends_the_run_with_one_line(command, patches):
    first, code, said = kill_a_worker(*TORCHRUN, run="two")
    assert code != 0
    assert len([line for line in said.splitlines() if line.startswith("error: another process of this run has ended")]) == 1, said
    step = load_checkpoint(Path("two"), warn=pytest.fail).step
    assert step >= first.step
    done = command("train", *OPTIONS, "--training.steps", step + 1, "--out", "two")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_what_one_process_refuses_ends_them_all_with_one_line(command, patches):
    assert command("train", *OPTIONS, "--training.steps", 1, "--out", "run").code == 0
    write_patches(Path("few"), 1)
    for options, cause in (
        (["--training.seed", 1, "--out", "run"], "error: training.seed is 1, but run was started with 0"),
        (["--data", "few", "--out", "new"], "error: 2 processes want a training patient each, and there are 1"),
    ):
        with started(ROOT / "train.py", *OPTIONS, "--training.steps", 2, "--training.devices", 2, *options) as process:
            _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        assert cause in err
        assert "Traceback" not in err
    assert load_checkpoint(Path("run")).step == 1


@pytest.mark.parametrize(("numbers", "agree"), [((5, 5, 5), True), ((5, 5, 6), False), ((4, 5, 6), False), ((6, 5, 5), False)])
def test_processes_know_whether_they_agree(numbers, agree):
    """Three of them, in threads; the sum of 4, 5 and 6 is three times 5."""
    meet, given = Barrier(len(numbers)), {}

    class OneOfThree(Processes):
        def __init__(self, rank):
            super().__init__(TrainingConfig(device="cpu"))
            self.rank, self.count = rank, len(numbers)

        def sum(self, tensors):
            given[self.rank] = tensors
            meet.wait()
            sums = [sum(parts) for parts in zip(*given.values(), strict=True)]
            meet.wait()
            return sums

    everyone = [OneOfThree(rank) for rank in range(len(numbers))]
    with ThreadPoolExecutor(len(numbers)) as pool:
        assert list(pool.map(lambda one: one.agree(7, numbers[one.rank]), everyone)) == [agree] * len(numbers)
    assert Processes(TrainingConfig(device="cpu")).agree(1)


@pytest.mark.slow
def test_machines_that_do_not_share_the_run_folder_are_told(command, patches):
    """As torchrun starts them on two machines, of which one has a disk of its own."""
    assert command("train", *OPTIONS, "--training.steps", 1, "--out", "run").code == 0
    machine = ["-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-id", "two",
               "--rdzv-endpoint", "localhost:29613"]  # fmt: skip
    train = [ROOT / "train.py", *OPTIONS, "--training.steps", 3, "--out"]
    with started(*machine, *train, "run") as one, started(*machine, *train, "elsewhere") as other:
        for process in (one, other):
            _, err = process.communicate(timeout=120)
            assert process.returncode != 0
            assert "not all processes see the same checkpoint in it, or the same patches; their machines must share both" in err, err
    assert load_checkpoint(Path("run")).step == 1
