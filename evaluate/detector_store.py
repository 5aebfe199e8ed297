"""Trainings of a detector that are done are kept, so that hours of work outlive an interruption.

A training is known by a hash of everything its scores depend on: patches, settings, seed. Change any, and
it is trained anew; add seeds, arms or shares, and only these are. Files hold scores: no patches, no ids.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.files import write_whole

Arrays = dict[str, NDArray[np.float64]]


def content_hash(array: NDArray) -> str:
    """SHA-256 of an array's type, shape and values."""
    found = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


class DetectorStore:
    """A folder with a file a training; `folder` is made when the first one is saved."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, settings: Mapping[str, Any]) -> Path:
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"

    def load(self, settings: Mapping[str, Any]) -> Arrays | None:
        """What was saved under these settings; None when there is nothing, or nothing that can be read."""
        try:
            with open(self._file(settings), "rb") as opened, np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except (zipfile.BadZipFile, EOFError, ValueError, KeyError):
            return None  # damaged: trained again, and replaced

    def save(self, settings: Mapping[str, Any], arrays: Arrays) -> None:
        """Writes the arrays, whole or not at all. Raises OSError when the folder cannot be written."""
        file = self._file(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        write_whole(file, content.getvalue())
