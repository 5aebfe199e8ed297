"""Folders and files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

E = TypeVar("E", bound=BaseException)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill: becomes `path` when the block ends well, and disappears when it does not.

    Raises FileExistsError when `path` is already there, unless it is an empty folder.
    """
    path = Path(path)
    _check_free(path)
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
def resumable_folder(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """A folder to fill, and one beside it for parts of the work: the first becomes `path` when the block ends well.

    When it does not, the parts stay, also after a kill, and are found again by the next call with the same path.
    Raises FileExistsError as new_folder does, and when another process is at work on the same path.
    """
    import fcntl

    path = Path(path)
    _check_free(path)
    work = path.parent / f".{path.name}.parts"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _told_plainly(error, path) from None
    with open(work / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"{path}: another process is making it at this moment") from None
        parts, folder = work / "parts", work / "folder"
        parts.mkdir(exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder, parts
            folder.replace(path)
        except BaseException as error:
            if any(parts.iterdir()):
                print(f"what is done so far is kept in {work}; the same command goes on from there", file=sys.stderr)
            raise _told_plainly(error, path) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if path.exists() or not any(parts.iterdir()):
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file open for writing that becomes `path`, in place of what was there, when the block ends well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # whole also after a power cut
        partial.replace(path)
    except Exception as error:
        raise _told_plainly(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def _check_free(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; remove it or choose another --out")


@contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is gone when the block ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise _told_plainly(error, path) from None
    try:
        folder.chmod(0o755)
        yield folder
    except Exception as error:
        raise _told_plainly(error, path) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told_plainly(error: E, path: Path) -> E | OSError:
    """The error itself; or one that says that the disk is full, for which NumPy and pydicom have words of their own; or one that names
    `path` where the file that could not be written is one on the way to it."""
    told = str(error)
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in told or "Not enough free space" in told:
        return OSError(errno.ENOSPC, "the disk is full; free some space or choose another place", str(path))
    if isinstance(error, OSError) and error.strerror and f".{path.name}." in str(error.filename):
        return OSError(error.errno, f"cannot be written: {error.strerror}", str(path))
    return error
