"""Work by several processes: in order, and a process that dies costs one result."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from data.parallel import map_processes, work_ahead


def square_or_die(n):
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def dead(n):
    return -n


def test_an_input_that_kills_its_process_costs_only_its_own_result():
    assert list(map_processes(square_or_die, range(5), 2, died=dead)) == [0, 1, -2, 9, 16]


def test_without_a_result_for_the_dead_it_is_one_line():
    with pytest.raises(OSError, match="a worker process was killed"):
        list(map_processes(square_or_die, [2, 1], 2))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_workers_end_with_a_parent_that_was_killed():
    code = "import time; from data.parallel import map_processes; list(map_processes(time.sleep, [60, 60], 2))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")

    def at_work() -> list[Path]:
        return [
            place
            for place in map(Path, (f"/proc/{pid}" for pid in listed.read_text().split()))
            if b"spawn_main" in (place / "cmdline").read_bytes()
        ]

    def until(reached) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    until(lambda: len(at_work()) == 2)
    workers = at_work()
    until(lambda: all(len(list((worker / "task").iterdir())) > 1 for worker in workers))  # they watch
    parent.kill()
    parent.wait()
    until(lambda: not any(worker.exists() and (worker / "cmdline").read_bytes() for worker in workers))


def slow_for_even(n):
    time.sleep(0 if n % 2 else 0.1)
    if n == 99:
        raise ValueError("99 will not do")
    return n, os.getpid()


class Asked:
    """The numbers from 0, which remembers how many were asked for; raises at one of them."""

    def __init__(self, count, fails_at=None):
        self.count, self.fails_at, self.given = count, fails_at, 0

    def __iter__(self):
        for n in range(self.count):
            if n == self.fails_at:
                raise ValueError(f"nothing to draw at {n}")
            self.given += 1
            yield n


def test_work_ahead_keeps_the_order_and_stays_a_few_ahead():
    asked, ahead, found = Asked(12), [], []
    for n, process in work_ahead(slow_for_even, asked, 2):
        found.append((n, process))
        ahead.append(asked.given - len(found))
    assert [n for n, _ in found] == list(range(12))
    assert {process for _, process in found}.isdisjoint({os.getpid()})
    assert 0 < max(ahead) <= 4  # two wait for each process: however many there are, memory holds no more


def test_one_process_is_this_one_and_makes_an_input_when_it_is_time():
    asked = Asked(3)
    for count, (n, process) in enumerate(work_ahead(slow_for_even, asked, 1)):
        assert (n, process, asked.given) == (count, os.getpid(), count + 1)


@pytest.mark.parametrize(("function", "inputs", "error"), [
    (square_or_die, [0, 1, 2, 3], pytest.raises(OSError, match="a worker process was killed, perhaps for want of memory; try fewer --proc")),
    (slow_for_even, [0, 99, 2, 3], pytest.raises(ValueError, match="99 will not do")),
    (slow_for_even, Asked(9, fails_at=3), pytest.raises(ValueError, match="nothing to draw at 3")),
], ids=["a worker dies", "the work fails", "there is no next input"])  # fmt: skip
def test_what_stops_the_work_ahead_is_told_in_one_line(function, inputs, error):
    with error:
        list(work_ahead(function, inputs, 2))


class EndsItsProcess:
    """A result; the process that hands it in is told to end just then."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return int, ()


def told_to_end(n):
    return EndsItsProcess()


def test_a_worker_that_is_told_to_end_while_it_hands_in_a_result_ends():
    """It must not take this for a failure of the result: it would go on, perhaps with a lock that nobody gives back, and never be done."""
    with pytest.raises(OSError, match="a worker process was killed"):
        list(work_ahead(told_to_end, range(3), 2))


def test_whoever_needs_no_more_may_leave():
    asked = Asked(10**9)
    work = work_ahead(slow_for_even, asked, 2)
    assert next(work)[0] == 0
    work.close()
    assert asked.given <= 6


@pytest.mark.parametrize(
    ("error", "told"),
    [("killed", "workers were killed, perhaps for want of memory"), (ModuleNotFoundError("No module named 'data'"), "want lesiongan installed"),
     (RuntimeError("Error during deserialization of the task graph"), "want lesiongan installed")],
)  # fmt: skip
def test_what_goes_wrong_on_a_cluster_is_one_line_or_costs_its_own_result(monkeypatch, error, told):
    distributed = pytest.importorskip("distributed")
    raised = distributed.KilledWorker.__new__(distributed.KilledWorker) if error == "killed" else error

    def result(function, one):
        if one == 2:
            raise raised
        return function(one)

    def mapped(function, inputs, **_):
        return [SimpleNamespace(result=partial(result, function, one)) for one in inputs]

    client = SimpleNamespace(map=mapped, cancel=lambda futures: None)
    monkeypatch.setattr("distributed.Client", lambda *_, **__: nullcontext(client))
    if error == "killed":
        assert list(map_processes(str, [1, 2, 3], scheduler="tcp://head:8786", died=lambda one: f"{one} died")) == ["1", "2 died", "3"]
    with pytest.raises(OSError, match=rf"^tcp://head:8786: .*{told}"):
        list(map_processes(str, [1, 2, 3], scheduler="tcp://head:8786"))
