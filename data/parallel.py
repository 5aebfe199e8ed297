"""One function over many inputs, by several processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_processes(function: Callable[[In], Out], inputs: Sequence[In], processes: int = 0) -> Iterator[Out]:
    """function(x) for each x, in order; processes: 0 for one a core, 1 for this process itself."""
    processes = min(processes or os.cpu_count() or 1, len(inputs))
    if processes <= 1:
        yield from map(function, inputs)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(function, inputs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
