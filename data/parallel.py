"""One function over many inputs, by several processes, by a Dask cluster or by threads that read ahead; results in order."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_processes(
    function: Callable[[In], Out], inputs: Sequence[In], processes: int = 0, scheduler: str | None = None,
    died: Callable[[In], Out] | None = None,
) -> Iterator[Out]:  # fmt: skip
    """function(x) for each x, in order.

    processes: 0 for one a core, 1 for this process itself. scheduler: the address of a Dask scheduler, such as
    tcp://head:8786, whose workers do it instead; they must see the same files. died: gives the result of an input that
    kills its process (on a cluster: four of them); without it that is an OSError.
    """
    if scheduler:
        yield from _on_cluster(function, inputs, scheduler, died)
        return
    processes = min(processes or len(os.sched_getaffinity(0)), len(inputs))
    if processes <= 1:
        yield from map(function, inputs)
        return
    done = 0
    while done < len(inputs):
        try:
            for result in _in_pool(function, inputs[done:], processes):
                yield result
                done += 1
        except BrokenProcessPool:
            if died is None:
                raise OSError("a worker process was killed, perhaps for want of memory; try fewer --processes") from None
            for one in inputs[done : done + processes]:  # one of those at work did it: each by itself now
                try:
                    (result,) = _in_pool(function, [one], 1)
                except BrokenProcessPool:
                    result = died(one)
                yield result
                done += 1


def read_ahead(read: Callable[[In], Out], inputs: Iterable[In], threads: int = 4) -> Iterator[tuple[In, Callable[[], Out]]]:
    """Each input with a call that gives read(input), or raises what it raised; threads are a few inputs ahead of the caller."""
    waiting: deque[tuple[In, Future[Out]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for one in inputs:
            waiting.append((one, pool.submit(read, one)))
            if len(waiting) > 2 * threads:
                ready, future = waiting.popleft()
                yield ready, future.result
        for ready, future in waiting:
            yield ready, future.result


def work_ahead(function: Callable[[In], Out], inputs: Iterable[In], processes: int) -> Iterator[Out]:
    """function(x) for each x, in order, by so many processes, while the caller makes the next x; no more than two wait for each.

    1 process: this one itself. A worker that dies is an OSError.
    """
    if processes <= 1:
        yield from map(function, inputs)
        return
    waiting: deque[Future[Out]] = deque()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _as_worker) as pool:
        try:
            for one in inputs:
                waiting.append(pool.submit(_unwound, function, one))
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise OSError("a worker process was killed, perhaps for want of memory; try fewer --processes") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_pool(function: Callable[[In], Out], inputs: Sequence[In], processes: int) -> Iterator[Out]:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _as_worker) as pool:
        try:
            yield from pool.map(partial(_unwound, function), inputs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_at_work = False


def _as_worker() -> None:
    """An interrupt is the parent's to handle; the workers are told when to stop. SIGTERM, which batch systems send to all, is not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _told_to_end)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess | None) -> None:
    """A parent that was killed tells nobody, and its workers would wait for work for good."""
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _told_to_end(*_: object) -> None:
    """Unwinds what is being done. Elsewhere nothing may be unwound: the pool would catch it, and wait for a lock that a dead worker holds."""
    if _at_work:
        sys.exit()
    os._exit(128 + signal.SIGTERM)


def _unwound(function: Callable[[In], Out], one: In) -> Out:
    """function(one); at SIGTERM the worker dies, but only when what it had unpacked of a scan is cleared away."""
    global _at_work
    try:
        _at_work = True
        return function(one)
    except SystemExit:
        os._exit(128 + signal.SIGTERM)
    finally:
        _at_work = False


def _on_cluster(
    function: Callable[[In], Out], inputs: Sequence[In], scheduler: str, died: Callable[[In], Out] | None
) -> Iterator[Out]:  # fmt: skip
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ValueError("--scheduler needs Dask: pip install 'lesiongan[cluster]'") from None
    try:
        connected = Client(scheduler, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise OSError(f"{scheduler}: no Dask scheduler answers there ({error}); start one (dask scheduler), or mend its address") from None
    with connected as client:
        futures = client.map(function, inputs, pure=False)
        try:
            for one, future in zip(inputs, futures, strict=True):
                try:
                    result = future.result()
                except KilledWorker:
                    if died is None:
                        raise OSError(f"{scheduler}: workers were killed, perhaps for want of memory; see their logs") from None
                    result = died(one)
                except (ImportError, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and "deserialization" not in str(error):
                        raise
                    raise OSError(f"{scheduler}: its scheduler and workers want lesiongan installed, as it is here ({error})") from None
                yield result
        finally:
            client.cancel(futures)
