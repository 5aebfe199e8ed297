"""A run's state on disk: tensors in safetensors, everything else in readable JSON beside them.

    RUN/checkpoints/step-00000500.safetensors
    RUN/checkpoints/step-00000500.json        step, configuration, what was trained on, SHA-256 of the tensors

The JSON is written last, so a checkpoint is there whole or not at all. Loading never executes code:
safetensors holds arrays only, and no pickle is ever opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

FORMAT = {"format": "lesiongan checkpoint", "version": 1}
KEPT = 2
"""Checkpoints a run keeps: the newest, and the one before in case it was damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` generator updates.

    config: sections of plain values, such as "training" and "networks". trained_on: what the patches were
    (shape, window, hash ...), never whose. tensors: weights, optimiser states and the average, by name.
    random: from what every random number of the run follows. privacy_spent: None for a run without a guarantee.
    """

    step: int
    config: Mapping[str, Any]
    trained_on: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    random: Mapping[str, Any] = field(default_factory=dict)
    privacy_spent: Mapping[str, Any] | None = None
    model_hash: str = ""


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Writes it atomically and removes all but the newest KEPT; returns its JSON file. Raises OSError on a full disk."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{checkpoint.step:08d}"
    content = safetensors.torch.save({k: t.detach().cpu().contiguous() for k, t in checkpoint.tensors.items()})
    meta = {
        **FORMAT, "step": checkpoint.step, "config": checkpoint.config, "trained_on": checkpoint.trained_on,
        "random": checkpoint.random, "privacy_spent": checkpoint.privacy_spent,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    write_atomically(folder / f"{name}.safetensors", content)
    write_atomically(folder / f"{name}.json", (json.dumps(meta, indent=1) + "\n").encode())
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return folder / f"{name}.json"


def load_checkpoint(run: Path, step: int | None = None, warn: Callable[[str], None] = lambda line: None) -> Checkpoint:
    """The run's checkpoint at a step, by default the newest whole one (`warn` is told of damaged newer ones).

    Raises FileNotFoundError where there is none, ValueError naming the file of a damaged or foreign one.
    """
    files = sorted((run / "checkpoints").glob("step-*.json"), reverse=True)
    if step is not None:
        files = [file for file in files if file.stem == f"step-{step:08d}"]
    if not files:
        which = "no checkpoint in it" if step is None else f"no checkpoint of step {step} in it"
        raise FileNotFoundError(f"{run}: {which}; train one with `python train.py --out {run}`")
    for n, file in enumerate(files):
        try:
            return _load(file)
        except (ValueError, OSError) as error:
            if n == len(files) - 1:
                raise
            warn(f"{error}; going back to {files[n + 1].stem}")
    raise AssertionError("the loop returns or raises")


def _load(file: Path) -> Checkpoint:
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    if not isinstance(meta, dict) or {k: meta.get(k) for k in FORMAT} != FORMAT:
        raise ValueError(f"{file}: not a checkpoint of version {FORMAT['version']}")
    tensors_file = file.with_suffix(".safetensors")
    content = tensors_file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != meta.get("tensors_sha256"):
        raise ValueError(f"{tensors_file}: damaged or foreign, its SHA-256 is not the one in {file.name}")
    try:
        tensors = safetensors.torch.load(content)
        return Checkpoint(
            int(meta["step"]), dict(meta["config"]), dict(meta["trained_on"]), tensors, dict(meta["random"]), meta["privacy_spent"], found
        )  # fmt: skip
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{tensors_file}: not a checkpoint ({type(error).__name__}: {error})") from None


def write_atomically(file: Path, content: bytes) -> None:
    """The file with this content, or as it was before. Raises OSError, on a full disk for one."""
    descriptor, partial = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, file)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"{error.strerror}; the file was left as it was", str(file)) from None
        raise
