"""Writing, opening and reading a large patch folder, beside the usual one .npy file a patch.

  python benchmarks/patch_folder.py            a million patches of 32 x 32: 2 GB on the disk for a few minutes
  python benchmarks/patch_folder.py --quick    fifty thousand

Both keep the same int16 patches, in a temporary folder that is removed afterwards, and read batches of 64 at random,
in turns. The usual way gets a smaller sample, in folders of a thousand files, since a million files take minutes to
make and to remove: in its favour, for its files are all in the system's cache. It keeps pixels alone; ours also
checks each patch, writes its row of the table and hashes everything. Nothing is forced to the disk, and what is read
was written before, so where memory allows it comes from the cache: this is the programs' speed, not the disk's.

Memory is what the process holds for itself (RssAnon), without the cache's pages; Linux tells it, other systems do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.command import progress, run_command
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter

BATCH, ROUNDS, BLOCK, FILES_A_FOLDER = 64, 5, 10_000, 1000
OF_A_PATIENT = 100
"""Patches of each patient."""
STATUS = Path("/proc/self/status")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python benchmarks/patch_folder.py", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 patches, unless --patches says otherwise")
    parser.add_argument("--patches", type=int, help="how many; default 1,000,000")
    parser.add_argument("--size", type=int, default=32, help="pixels along each side")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the temporary folder is made")
    parser.add_argument("--json", help="file for the ratios")
    options = parser.parse_args(arguments)
    count = options.patches or (50_000 if options.quick else 1_000_000)
    files, batches = (5_000, 400) if options.quick else (20_000, 2_000)
    files = min(files, count)
    if count < 1 or options.size < 1:
        raise ValueError("want at least one patch of at least one pixel")
    _check_disk(Path(options.dir), count, files, options.size)
    with tempfile.TemporaryDirectory(prefix="patch-folder-", dir=options.dir) as folder:
        result = measure(Path(folder), count, files, batches, options.size)
    for line in _table(result):
        print(line)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, count: int, files: int, batches: int, size: int) -> dict:
    """Writes and reads both ways below `folder`. ratios: ours over the usual way, in patches a second."""
    draws = np.random.default_rng(0)
    pool = draws.integers(-1000, 400, (1024, size, size)).astype(np.int16)  # drawn once: making patches is not what is measured
    memory: dict[str, dict[str, float | None]] = {}
    speed: dict[str, dict[str, float]] = {"ours": {}, "npy_files": {}}
    with memory_of("writing", memory) as look:
        speed["ours"]["write"] = count / _seconds(lambda: write_folder(folder / "ours", pool, count, look))
    speed["npy_files"]["write"] = files / _seconds(lambda: write_files(folder / "files", pool, files))
    with memory_of("opening", memory):
        started = time.perf_counter()
        ours = PatchFolder.open(folder / "ours")
        opening = time.perf_counter() - started
    times: dict[str, list[float]] = {"ours": [], "npy_files": []}
    with memory_of("reading", memory) as look:
        for _ in progress(range(ROUNDS), "rounds of reading", ROUNDS):
            times["ours"].append(seconds_of_reading(ours.hu, draws.integers(count, size=(batches, BATCH))))
            read = partial(read_files, folder / "files")
            times["npy_files"].append(seconds_of_reading(read, draws.integers(files, size=(batches, BATCH))))
            look()
    for n in [0, count // 2, count - 1]:
        np.testing.assert_array_equal(ours.hu([n])[0], pool[n % len(pool)])
    for name, seconds in times.items():
        speed[name]["read"] = batches * BATCH / statistics.median(seconds)
    return {
        "ratios": {f"{what}_over_npy_files": speed["ours"][what] / speed["npy_files"][what] for what in ("write", "read")},
        "patches_per_second": speed,
        "opening_seconds": opening,
        "verifying_seconds": _seconds(ours.verify),
        "memory_mib": memory,
        "table_bytes_per_patch": _gain(memory["opening"], count),
        "open_files": len(os.listdir("/proc/self/fd")) if STATUS.exists() else None,
        "conditions": {
            "patches": count, "npy_files": files, "size": size, "batch": BATCH, "batches_a_round": batches, "rounds": ROUNDS,
            "shards": int(ours.rows.shard[-1]) + 1, "patients": count // OF_A_PATIENT, "python": platform.python_version(),
            "numpy": np.__version__, "system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count(),
        },
    }  # fmt: skip


def write_folder(path: Path, pool: np.ndarray, count: int, look: Callable[[], None]) -> None:
    """A patch folder of `count` patches, one in two a nodule. look: called now and then."""
    path.mkdir()
    shape, classes = pool.shape[1:], ("nodule", "background")
    writer = PatchWriter(path, PatchSpec(shape, (0.7,) * len(shape), (-1000, 400), classes, background="background"))
    for start in progress(range(0, count, BLOCK), "blocks of patches", -(-count // BLOCK)):
        for n in range(start, min(start + BLOCK, count)):
            patient = n // OF_A_PATIENT
            split = ("train", "train", "validation", "test")[patient % 4]
            writer.add(
                Patch(pool[n % len(pool)], f"p-{patient:016x}", f"s-{patient:016x}", classes[n % 2], 5.43, (1.5, -2.25, n % 300), split)
            )
        look()
    writer.finish()


def write_files(path: Path, pool: np.ndarray, count: int) -> None:
    """The first patches, each as a .npy file."""
    for n in range(count):
        if n % FILES_A_FOLDER == 0:
            _file(path, n).parent.mkdir(parents=True)
        np.save(_file(path, n), pool[n % len(pool)])


def read_files(path: Path, chosen: np.ndarray) -> np.ndarray:
    """int16 (N, H, W): these patches of write_files."""
    return np.stack([np.load(_file(path, n)) for n in chosen])


def seconds_of_reading(read: Callable[[np.ndarray], np.ndarray], batches: np.ndarray) -> float:
    started = time.perf_counter()
    for chosen in batches:
        read(chosen)
    return time.perf_counter() - started


def _file(path: Path, n: int) -> Path:
    return path / f"{n // FILES_A_FOLDER:04d}" / f"{n % FILES_A_FOLDER:04d}.npy"


@contextmanager
def memory_of(what: str, memory: dict[str, dict[str, float | None]]) -> Iterator[Callable[[], None]]:
    """Notes RssAnon in MiB before and after the block, and the most of the moments when the yielded function was called."""
    before, seen = _rss_anon_mib(), []
    yield lambda: seen.append(_rss_anon_mib())
    after = _rss_anon_mib()
    looked = [mib for mib in (*seen, after) if mib is not None]
    memory[what] = {"before": before, "first": seen[0] if seen else None, "most": max(looked, default=None), "after": after}


def _rss_anon_mib() -> float | None:
    if not STATUS.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))


def _gain(memory: dict[str, float | None], count: int) -> float | None:
    return None if memory["before"] is None or memory["after"] is None else (memory["after"] - memory["before"]) * 2**20 / count


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _check_disk(folder: Path, count: int, files: int, size: int) -> None:
    """Raises OSError when there is too little room. A row of the table takes about 110 bytes, a small file whole blocks."""
    need = count * (2 * size**2 + 110) + files * (2 * size**2 + 8192)
    free = shutil.disk_usage(folder).free
    if need * 1.1 > free:
        raise OSError(
            f"{folder}: {free / 1e9:.1f} GB free, and this takes {need * 1.1 / 1e9:.1f} GB; name another place with --dir, or fewer --patches"
        )


def _table(result: dict) -> Iterator[str]:
    speed, conditions = result["patches_per_second"], result["conditions"]
    size = conditions["size"]
    yield f"{conditions['patches']:,} patches of {size} x {size} in {conditions['shards']} shards; .npy: {conditions['npy_files']:,} of them"
    yield f"{'patches a second':<28}{'patch folder':>14}{'one .npy each':>16}{'ratio':>8}"
    for what, words in (("write", "written"), ("read", f"read, {BATCH} at random")):
        ours, theirs = speed["ours"][what], speed["npy_files"][what]
        yield f"{words:<28}{ours:>14,.0f}{theirs:>16,.0f}{ours / theirs:>8.1f}"
    yield f"opened in {result['opening_seconds']:.1f} s, verified (every byte hashed) in {result['verifying_seconds']:.1f} s"
    yield f"{'memory (RssAnon), MiB':<28}{'before':>10}{'early':>10}{'most':>10}{'after':>10}"
    for what, mib in result["memory_mib"].items():
        yield f"{what:<28}" + "".join(f"{'-' if value is None else f'{value:.0f}':>10}" for value in mib.values())
    if result["table_bytes_per_patch"] is not None:
        yield f"the open table takes {result['table_bytes_per_patch']:.0f} bytes a patch; {result['open_files']} files open after reading"


if __name__ == "__main__":
    run_command(main)
