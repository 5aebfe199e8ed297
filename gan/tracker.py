"""Where metrics go: always a line of JSON in RUN/metrics.jsonl, and Weights & Biases when asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from gan.checkpoint import write_atomically

WandbMode = Literal["off", "offline", "online"]


class Tracker:
    """Writes metrics. wandb stays on this machine ("offline") unless "online" was asked for.

    What wandb adds by itself (host name, command line, paths, code, git) is switched off: a path or a
    host name may name a patient or a hospital.
    """

    def __init__(self, run: Path, step: int, config: dict[str, Any], wandb: WandbMode = "off"):
        self._file = run / "metrics.jsonl"
        self._forget_after(step)
        self._wandb = None if wandb == "off" else _start_wandb(run, config, wandb)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line: {"step": ..., name: value, ...}. Raises OSError when it does not fit on the disk; no half line stays."""
        line = (json.dumps({"step": step, **metrics}) + "\n").encode()
        try:
            with open(self._file, "ab", buffering=0) as out:
                length = out.tell()
                try:
                    while line:
                        line = line[out.write(line) :]
                except OSError:
                    out.truncate(length)
                    raise
        except OSError as error:
            told = f"{error.strerror}; the checkpoints are whole, mend this and run the same command again"
            raise OSError(error.errno, told, str(self._file)) from None
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)

    def close(self) -> None:
        """Ends a wandb run."""
        if self._wandb is not None:
            self._wandb.finish()
            _remove_logs(self._wandb)

    def _forget_after(self, step: int) -> None:
        """Drops lines past the checkpoint that the run resumes from, and what a kill or a power cut left of a line."""
        if not self._file.exists():
            return
        kept = []
        for line in self._file.read_bytes().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        write_atomically(self._file, b"".join(kept))


def _start_wandb(run: Path, config: dict[str, Any], mode: Literal["offline", "online"]) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError("--wandb needs the wandb package: pip install wandb") from None
    settings = wandb.Settings(
        console="off", disable_git=True, disable_code=True, save_code=False, host="hidden", silent=True,
        x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
    )  # fmt: skip
    started = wandb.init(project="lesiongan", dir=run, mode=mode, config=config, settings=settings)
    _remove_logs(started)  # now and not only at the end: a killed run could not
    return started


def _remove_logs(run: Any) -> None:
    """Removes a wandb run's debug logs: they hold paths."""
    shutil.rmtree(Path(run.settings.log_user).parent, ignore_errors=True)
