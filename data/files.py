"""Folders and files that are there whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill: becomes `path` when the block ends well, and disappears when it does not.

    Raises FileExistsError when `path` is already there, unless it is an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; remove it or choose another --out")
    with _partial_folder(path) as folder:
        yield folder
        folder.replace(path)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A file to write, of `path`'s name: becomes `path` when the block ends well.

    Raises FileExistsError when `path` is already there.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path}: exists already; remove it or choose another name")
    with _partial_folder(path) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


@contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is gone when the block ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        folder.chmod(0o755)
        yield folder
    except Exception as error:
        if _disk_is_full(error):
            raise OSError(errno.ENOSPC, "the disk is full; nothing was kept, free some space or choose another place", str(path)) from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _disk_is_full(error: Exception) -> bool:
    """NumPy and pydicom put the system's error into words of their own."""
    told = str(error)
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in told or "Not enough free space" in told
