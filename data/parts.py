"""What each series gave, kept on disk until the whole cohort is there: so a run that was killed goes on where it stopped.

A part is named by a keyed hash of all that it depends on, so a changed scan, list or option makes another part.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from data.acquisition import Acquisition
from data.cutting import Cut, CutConfig, Cutting, cut_series
from data.dicom import Series
from data.files import whole_file
from data.lesion_list import Listed
from data.pseudonyms import Pseudonyms
from data.sources import Unreadable
from data.volume import Lesion

VERSION = 1
"""To be raised whenever the same input gives other patches."""


@dataclass(frozen=True)
class Job:
    """A series to cut, and the file its patches go to."""

    series: Series
    listed: tuple[Listed, ...]
    config: CutConfig
    part: Path


@dataclass(frozen=True)
class Result:
    """What became of a job: how many patches of which classes, or why there are none (error: one line, with the file)."""

    labels: tuple[str, ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    notes: tuple[tuple[str, int], ...] = ()
    mirrored: tuple[int, int] = (0, 0)
    error: str = ""
    reason: str = ""


def part_name(series: Series, listed: Sequence[Listed], config: CutConfig, pseudonyms: Pseudonyms) -> str:
    """The file's name: follows from the files' sizes and times, the list and the options."""
    files = [(str(file), file.version()) for file in series.files]
    return pseudonyms.fingerprint(json.dumps([VERSION, series.uid, files, [repr(one) for one in listed], asdict(config)])) + ".npz"


def run_job(job: Job) -> Result:
    """Cuts a series into its part, unless the part is there already. A series that gives no patch leaves none."""
    try:
        if job.series.spoiled:
            raise job.series.spoiled
        cutting = _kept(job.part) or cut_series(job.series, job.listed, job.config)
        if cutting.cuts and not job.part.exists():
            write_part(job.part, cutting)
    except Unreadable as error:
        return Result(error=str(error), reason=error.reason)
    except MemoryError:
        return Result(error=f"{job.series.files[0]}: more than the memory can hold", reason="more than the memory can hold")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return Result(error=f"{job.series.files[0]}: {error.strerror or error}", reason="a file cannot be opened")
    labels = {one.lesion.label for one in cutting.cuts}
    return Result(tuple(sorted(labels)), tuple(cutting.left_out.items()), tuple(cutting.notes.items()), cutting.mirrored)


def _kept(part: Path) -> Cutting | None:
    """What an earlier run left; a part that is damaged is removed."""
    try:
        return read_part(part)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, BadZipFile):
        part.unlink()
        return None


def died(job: Job) -> Result:
    """The result of a job whose process was killed."""
    reason = "reading it killed the process: a decoder that aborts, or too little memory"
    return Result(error=f"{job.series.files[0]}: {reason}", reason=reason)


def write_part(file: Path, cutting: Cutting) -> None:
    """One npz, whole or not at all."""
    meta = {
        "cuts": [(c.lesion.center_mm, c.lesion.diameter_mm, c.lesion.label, c.padded) for c in cutting.cuts],
        "left_out": cutting.left_out, "notes": cutting.notes, "acquisition": asdict(cutting.acquisition),
        "shape": cutting.shape, "spacing_mm": cutting.spacing_mm, "mirrored": cutting.mirrored,
    }  # fmt: skip
    hu = np.stack([c.hu for c in cutting.cuts]) if cutting.cuts else np.zeros(0, np.int16)
    with whole_file(file) as out:
        np.savez(out, hu=hu, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))


def read_part(file: Path) -> Cutting:
    """What write_part wrote."""
    with open(file, "rb") as content, np.load(content, allow_pickle=False) as part:  # NumPy leaves a damaged one open
        hu, meta = part["hu"], json.loads(part["meta"].tobytes())
    cuts = [
        Cut(patch, Lesion(tuple(centre), diameter, label), padded)
        for patch, (centre, diameter, label, padded) in zip(hu, meta["cuts"], strict=True)
    ]
    return Cutting(cuts, Counter(meta["left_out"]), Counter(meta["notes"]), Acquisition(**meta["acquisition"]),
                   tuple(meta["shape"]), tuple(meta["spacing_mm"]), tuple(meta["mirrored"]))  # fmt: skip
