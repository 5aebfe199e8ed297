"""What scans are read from: files in folders, and members of zip archives read where they lie.

Nothing is unpacked to disk for DICOM and NIfTI, so no copy of a patient's scan is left behind and no
archive can name a path outside its own.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

NIFTI, METAIMAGE = (".nii", ".nii.gz"), (".mha", ".mhd")
"""Suffixes of the formats that hold a scan or a mask in one file, in small letters."""

DEFLATE_RATIO = 1032
"""The most that a deflate stream can grow by (zlib, "Technical details"): what claims more is not all there."""

ARCHIVE_BYTES = 64 << 30
"""The most that the members of one zip archive may hold together."""

_MEMBER_BYTES, _MEMBER_RATIO, _PIECE_BYTES = 256 << 20, 200, 1 << 20


class Unreadable(ValueError):
    """A source is not what it should be.

    file: which one. reason: why, in fixed words with the attribute's name, fit for any output: no identifier, no value.
    detail: values that help whoever may see the file. The message is one line of all three.
    """

    def __init__(self, file: object, reason: str, detail: str = ""):
        self.file, self.reason = file, reason
        super().__init__(" ".join(f"{file}: {reason}{': ' if detail else ''}{detail}".split()))

    def __reduce__(self):  # raised in one process, caught in another
        return _unreadable_again, (str(self), str(self.file), self.reason)


def _unreadable_again(message: str, file: str, reason: str) -> Unreadable:
    error = Unreadable(file, reason)
    error.args = (message,)
    return error


@dataclass(frozen=True, order=True)
class Source:
    """A file, or a member of a zip archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.member.rpartition("/")[2] if self.member else self.path.name

    @property
    def folder(self) -> str:
        """What it lies in, folder or archive with the folder inside: sources of one folder share it."""
        return str(self).rpartition("/")[0]

    @property
    def size(self) -> int:
        """Bytes, unpacked. Raises Unreadable for what is no regular file, OSError for what is gone."""
        if self.member:
            return _archive(self.path).getinfo(self.member).file_size
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise Unreadable(self, "not a regular file")
        return status.st_size

    def version(self) -> str:
        """What changes when the content does: size and time of a file, size and checksum of a member; of its family, too."""
        if self.member:
            infos = [_archive(self.path).getinfo(name) for name in self._family()]
            return " ".join(f"{info.file_size} {info.CRC}" for info in infos)
        stats = [self.path.stat(), *(beside.stat() for beside in self._pixels_beside())]
        return " ".join(f"{status.st_size} {status.st_mtime_ns}" for status in stats)

    def read(self) -> bytes:
        """All of it. Raises Unreadable when a zip member is damaged or encrypted."""
        if not self.member:
            if self.size == 0:
                return b""
            return self.path.read_bytes()
        try:
            info = _archive(self.path).getinfo(self.member)
            if info.file_size > max(_MEMBER_BYTES, _MEMBER_RATIO * info.compress_size):
                raise Unreadable(self, "zip member unpacks to more than a scan does", f"{info.file_size} bytes")
            with _archive(self.path).open(info) as member:  # piece by piece: one read of all would inflate without a bound
                return b"".join(iter(lambda: member.read(_PIECE_BYTES), b""))
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            raise Unreadable(self, "damaged or encrypted member of a zip archive", str(error)) from None

    @contextmanager
    def local(self) -> Iterator[Path]:
        """A path that libraries can open: its own, or that of a copy which is gone afterwards.

        Beside the copy lie those of the members that have its name with other suffixes: a .raw with its .mhd.
        """
        if not self.member:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="lesiongan-") as folder:
            for name in self._family():
                one = Source(self.path, name)
                (Path(folder) / one._plain_name()).write_bytes(one.read())
            yield Path(folder) / self._plain_name()

    def _family(self) -> list[str]:
        """The member, and those that have its name with other suffixes."""
        stem = self.member.rpartition(".")[0]
        names = _archive(self.path).namelist()
        return [self.member, *(name for name in names if stem and name != self.member and name.rpartition(".")[0] == stem)]

    def _pixels_beside(self) -> list[Path]:
        """The pixel file that a MetaImage header names, where it lies beside it."""
        if not self.name.lower().endswith(".mhd"):
            return []
        with open(self.path, "rb") as file:
            named = re.search(rb"ElementDataFile *= *([^\r\n/]+?) *\r?(?:\n|$)", file.read(1 << 16))
        beside = self.path.parent / os.fsdecode(named[1]) if named else self.path
        return [beside] if named and beside.is_file() else []

    def _plain_name(self) -> str:
        """Its name, or another where a file system would take it for more than a name."""
        return self.name if self.name.replace(".", "") and "\0" not in self.name else "member"


def find_sources(places: Iterable[str | Path], damaged: list[Unreadable] | None = None) -> Iterator[Source]:
    """Every file under these files and folders, at any depth, and every member of zip archives, sorted by name.

    Links are followed, each folder and file once. Raises FileNotFoundError for a place that does not exist. An archive that
    is damaged, or unpacks to more than ARCHIVE_BYTES, is Unreadable: raised, or put into `damaged` when that is given.
    """
    seen: set[str] = set()
    for given in places:
        place = Path(given)
        if not str(given):
            raise ValueError("an empty name in place of a file or folder (a variable that is not set?)")
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such file or folder")
        for file in [place] if not place.is_dir() else _walk(place):
            real = os.path.realpath(file)
            if real in seen:
                continue
            seen.add(real)
            if file.name.lower().endswith(".zip") and file.is_file():
                try:
                    yield from _members(file)
                except Unreadable as error:
                    if damaged is None:
                        raise
                    damaged.append(error)
            else:
                yield Source(file)


def _walk(place: Path) -> Iterator[Path]:
    seen = {os.path.realpath(place)}
    for folder, folders, names in os.walk(place, followlinks=True):
        folders.sort()
        kept = []
        for name in folders:
            real = os.path.realpath(os.path.join(folder, name))
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(folder) / name for name in sorted(names))


def _members(file: Path) -> Iterator[Source]:
    try:
        infos = [info for info in _archive(file).infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise Unreadable(file, "damaged zip archive", str(error)) from None
    unpacked = sum(info.file_size for info in infos)
    if unpacked > min(ARCHIVE_BYTES, DEFLATE_RATIO * file.stat().st_size):
        raise Unreadable(file, "zip archive unpacks to more than can be", f"{unpacked} bytes")
    yield from (Source(file, info.filename) for info in sorted(infos, key=lambda info: info.filename))


@lru_cache(maxsize=8)
def _archive(file: Path) -> zipfile.ZipFile:
    """Kept open: an archive's list of members is read once, not once a slice."""
    return zipfile.ZipFile(file)


def memory_bytes() -> int:
    """The memory this process may use: the machine's, or its control group's where that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits)
