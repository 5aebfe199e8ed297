"""A run's state on disk: tensors in safetensors, everything else in readable JSON beside them.

    RUN/checkpoints/step-00000500.safetensors
    RUN/checkpoints/step-00000500.json        step, configuration, what was trained on, hash of the tensors and of itself
    RUN/checkpoints/.partial/                 what is being written
    RUN/.lock                                 held by the process that trains

Both files are written and synchronised aside and then moved, the JSON last: a checkpoint is there whole or not at
all, after a kill, on a full disk, after a power cut. A flipped bit in either of them is noticed. Loading never executes
code: safetensors holds arrays only, and no pickle is ever opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
from torch import Tensor

FORMAT = {"format": "lesiongan checkpoint", "version": 2}
KEPT = 2
"""Whole checkpoints a run keeps besides the best: the newest, and the one before in case it gets damaged."""

_NAME = re.compile(r"step-(\d{8,})\.(json|safetensors)")


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` generator updates.

    config: sections of plain values, such as "training" and "networks". trained_on: what the patches were
    (shape, window, hash ...), never whose. tensors: weights, optimiser states and the average, by name.
    random: from what every random number of the run follows. privacy_spent: None for a run without a guarantee.
    best: {"step", "distance", "measure"} of the step, among those with a checkpoint, whose samples were nearest
    to validation patients; None for a run that did not look. model_hash: SHA-256 of the tensors, once on disk.
    """

    step: int
    config: Mapping[str, Any]
    trained_on: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    random: Mapping[str, Any] = field(default_factory=dict)
    privacy_spent: Mapping[str, Any] | None = None
    best: Mapping[str, Any] | None = None
    model_hash: str = ""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes it, then removes all but the newest KEPT whole ones and the best; returns its JSON file.

    Raises OSError where it cannot be written; the checkpoints before it are then as they were.
    """
    folder = run / "checkpoints"
    partial = folder / ".partial"
    described = folder / f"{_name(checkpoint.step)}.json"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a killed run
        partial.mkdir(parents=True, exist_ok=True)
        tensors_hash = _write_tensors(partial / f"{described.stem}.safetensors", checkpoint.tensors)
        meta = {
            **FORMAT, "step": checkpoint.step, "config": checkpoint.config, "trained_on": checkpoint.trained_on, "random": checkpoint.random,
            "privacy_spent": checkpoint.privacy_spent, "best": checkpoint.best, "tensors_sha256": tensors_hash,
        }  # fmt: skip
        (partial / described.name).write_text(json.dumps({**meta, "sha256": _hash_of(meta)}, indent=1) + "\n", encoding="utf-8")
        _sync(partial / described.name)
        for file in (described.with_suffix(".safetensors"), described):
            os.replace(partial / file.name, file)
        for parent in (folder, run):
            _sync_folder(parent)
    except OSError as error:
        told = f"{error.strerror or error}; the checkpoints before it are as they were, mend this and run the same command again"
        raise OSError(error.errno, told, str(described)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _remove_old(folder, checkpoint)
    return described


def load_checkpoint(run: Path, step: int | Literal["best"] | None = None, warn: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """The run's checkpoint at a step, by default the newest whole one (`warn` is told of damaged newer ones).

    "best" is the step that the newest whole one names as the nearest to validation patients, or that one itself where none was compared.
    Raises FileNotFoundError where there is none, ValueError naming the file of a damaged or foreign one.
    """
    if step == "best":
        newest = load_checkpoint(run, warn=warn)
        return load_checkpoint(run, int(newest.best["step"])) if newest.best and newest.best["step"] != newest.step else newest
    folder = run / "checkpoints"
    steps = [there for there in _steps(folder) if step in (None, there)]
    if not steps:
        there_are = ", ".join(map(str, sorted(_steps(folder))))
        raise FileNotFoundError(f"{run}: " + (
            f"no checkpoint of step {step} in it; there are {there_are} (a run keeps its newest and its best)" if there_are
            else "a patch folder, not a run; train.py --data PATCHES --out RUN trains one" if (run / "dataset.json").exists()
            else "no checkpoint in it yet" if (run / "config.yaml").exists()
            else "no run there; train.py --data PATCHES --out RUN trains one"
        ))  # fmt: skip
    for there, before in zip(steps, [*steps[1:], None], strict=True):
        try:
            return _load(folder, there)
        except (ValueError, OSError) as error:
            if before is None:
                raise
            warn(f"{error}; going back to step {before}")
    raise AssertionError("the loop returns or raises")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keeps other processes from training in the run folder, which is made where it is missing, and clears what a kill left in it.

    The lock goes with the process, however it ends. Where the system has none (Windows, some network drives), this does nothing.
    Raises ValueError when another process holds it.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "ab") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run}: another process is training in it; wait for it, or choose another --out") from None
        except (ImportError, OSError):
            pass
        else:  # nobody else is writing here
            for left in run.rglob(".*.partial"):
                left.unlink(missing_ok=True)
        yield


def write_atomically(file: Path, content: bytes, mode: int = 0o644) -> None:
    """The file with this content, or as it was before. Raises OSError, on a full disk for one."""
    partial = file.with_name(f".{file.name}.partial")  # always the same, so what a kill leaves behind is overwritten
    try:
        partial.touch(mode)
        partial.write_bytes(content)
        _sync(partial, mode)
        os.replace(partial, file)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; the file was left as it was", str(file)) from None
        raise
    _sync_folder(file.parent)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, whole or damaged, newest first."""
    named = (_NAME.fullmatch(file.name) for file in folder.glob("step-*.json"))
    return sorted((int(name[1]) for name in named if name), reverse=True)


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes and synchronises the file without a copy of it in memory; returns its SHA-256."""
    try:
        safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except safetensors.SafetensorError as error:  # how it tells of a full disk
        raise OSError(errno.EIO, str(error)) from None
    _sync(file)
    return _file_hash(file)


def _read(folder: Path, step: int) -> dict[str, Any]:
    """A checkpoint's JSON, after its hash and that of the tensors were checked. Raises ValueError for a damaged or foreign one."""
    described, tensors_file = (folder / f"{_name(step)}.{suffix}" for suffix in ("json", "safetensors"))
    try:
        meta = json.loads(described.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{described}: not JSON ({error})") from None
    if not isinstance(meta, dict) or {k: meta.get(k) for k in FORMAT} != FORMAT:
        raise ValueError(f"{described}: not a checkpoint of version {FORMAT['version']}")
    if meta.pop("sha256", None) != _hash_of(meta) or meta.get("step") != step:
        raise ValueError(f"{described}: damaged or changed, what it says does not fit its SHA-256 or its name")
    if not tensors_file.exists():  # no FileNotFoundError: there is a run, and it must not start anew
        raise ValueError(f"{tensors_file}: missing, though {described.name} is there")
    if _file_hash(tensors_file) != meta.get("tensors_sha256"):
        raise ValueError(f"{tensors_file}: damaged or foreign, its SHA-256 is not the one in {described.name}")
    return meta


def _load(folder: Path, step: int) -> Checkpoint:
    meta, tensors_file = _read(folder, step), folder / f"{_name(step)}.safetensors"
    try:
        return Checkpoint(
            step, dict(meta["config"]), dict(meta["trained_on"]), safetensors.torch.load_file(tensors_file), dict(meta["random"]),
            meta["privacy_spent"], meta["best"], meta["tensors_sha256"],
        )  # fmt: skip
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{tensors_file}: not a checkpoint ({type(error).__name__}: {error})") from None


def _remove_old(folder: Path, saved: Checkpoint) -> None:
    """Removes what is not among the newest KEPT whole checkpoints or a best step that they name.

    Every older one is checked before it counts: a damaged one must not push out the last good one.
    """
    keep, whole = set[int](), 0
    for step in _steps(folder):
        try:
            best = saved.best if step == saved.step else _read(folder, step).get("best")
        except ValueError:
            continue
        except OSError:  # cannot be read now, perhaps later
            keep.add(step)
            continue
        keep |= {step, best["step"]} if best else {step}
        whole += 1
        if whole >= KEPT and saved.step in keep:
            break
    there = (_NAME.fullmatch(file.name) for file in folder.glob("step-*"))
    for step in {int(name[1]) for name in there if name} - keep:
        with suppress(OSError):  # tried again at the next checkpoint
            for suffix in ("json", "safetensors"):  # in this order, so that what a kill leaves is no checkpoint
                (folder / f"{_name(step)}.{suffix}").unlink(missing_ok=True)


def _hash_of(meta: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON file says, however it is laid out."""
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _file_hash(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(file: Path, mode: int = 0o644) -> None:
    """Its content is on the disk after this; others may read it, which safetensors would not let them."""
    os.chmod(file, mode)
    with open(file, "rb+") as written:
        os.fsync(written.fileno())


def _sync_folder(folder: Path) -> None:
    """What was moved in it stays moved after a power cut, where the system can promise that: not every file system, nor Windows."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
