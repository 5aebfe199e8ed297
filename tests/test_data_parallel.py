"""Work by several processes: in order, and a process that dies costs one result."""

import os
import signal

import pytest

from data.parallel import map_processes


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
