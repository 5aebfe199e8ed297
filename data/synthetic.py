"""Synthetic patches to disk, part by part: each part whole or not there, so that a job that was killed goes on where it stopped.

A part is a folder with hu.npy, samples.csv, part.json, and the files of each format. `assemble` makes one patch folder of all parts.
"""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.dicom_writing import Subject
from data.export import write_patch_dicom, write_patch_nifti, write_png16
from data.patches import Patch, PatchSpec, PatchWriter

SAMPLES = "samples.csv"
COLUMNS = ("id", "seed", "attempt", "model", "class", "asked_mm")
"""Of samples.csv, and behind them what was measured."""


@dataclass(frozen=True)
class Sample:
    """What one sample was drawn for, and from what.

    model: SHA-256 of the model's tensors. attempt: which candidate of its seed it is. asked_mm: NaN where no diameter was asked for.
    measured: by name, NaN where nothing could be.
    """

    seed: int
    attempt: int
    model: str
    label: str
    asked_mm: float
    measured: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"seed-{self.seed:08d}"

    def cells(self) -> list[object]:
        numbers = (self.asked_mm, *self.measured.values())
        told = ["" if math.isnan(number) else repr(float(number)) for number in numbers]
        return [self.name, self.seed, self.attempt, self.model, self.label, *told]


@dataclass(frozen=True)
class Part:
    """Samples to be written into a folder. hu: int16 (N, *S). facts: what part.json is to hold. masks: bool (N, *S), of the lesions.

    into: what they were set into, see dicom_writing.Subject.
    """

    folder: Path
    hu: np.ndarray
    samples: Sequence[Sample]
    spec: PatchSpec
    formats: Sequence[str]
    version: str
    facts: Mapping[str, Any]
    masks: np.ndarray | None = None
    into: str = ""


def write_part(part: Part) -> Path:
    """Writes it beside its place and moves it there, whole; returns its folder."""
    partial = part.folder.with_name(f".{part.folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / "hu.npy", part.hu)
    write_formats(partial, part)
    with open(partial / SAMPLES, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(one.cells() for one in part.samples)
    (partial / "part.json").write_text(json.dumps(part.facts), encoding="utf-8")
    partial.replace(part.folder)
    return part.folder


def write_formats(folder: Path, part: Part) -> None:
    """Every sample in every format, each format in a folder of its name."""
    spacing = part.spec.spacing_mm or (1.0,) * len(part.spec.shape)
    for name in part.formats:
        (folder / name).mkdir()
    for n, (one, hu) in enumerate(zip(part.samples, part.hu, strict=True)):
        if "png" in part.formats:
            write_png16(hu, folder / "png" / f"{one.name}.png", part.spec.unit)
        if "nifti" in part.formats:
            write_patch_nifti(hu, spacing, folder / "nifti" / f"{one.name}.nii.gz")
        if "dicom" in part.formats:
            subject = replace(subject_of(one, part.spec, part.version), into=part.into)
            write_patch_dicom(hu, spacing, subject, folder / "dicom" / one.name)
            if part.masks is not None and part.masks[n].any():
                from data.segmentation_writing import write_segmentation

                there = folder / "dicom" / one.name
                images = sorted(there.iterdir()) if there.is_dir() else [there.with_name(f"{one.name}.dcm")]
                write_segmentation(part.masks[n], images, subject, one.label, folder / "seg" / f"{one.name}.dcm")


def wrong_files(part: Part) -> list[tuple[str, str]]:
    """(name of a sample, what is wrong with a file of it) where files in part.folder are not, byte by byte, what would be written now."""
    with tempfile.TemporaryDirectory() as place:
        again = Path(place)
        write_formats(again, part)
        made = [file.relative_to(again) for file in again.rglob("*") if file.is_file()]
        absent = [(file, "is missing") for file in made if not (part.folder / file).is_file()]
        there = [file for file in made if (part.folder / file).is_file()]
        other = [(file, "is another") for file in there if (again / file).read_bytes() != (part.folder / file).read_bytes()]
    return [(_owner(file), f"{file} {what}") for file, what in (*absent, *other)]


def strange_files(folder: Path, formats: Sequence[str], names: Sequence[str]) -> list[str]:
    """What lies in the formats' folders and belongs to none of these samples."""
    known = set(names)
    files = [file.relative_to(folder) for name in formats for file in sorted((folder / name).glob("*"))]
    return [str(file) for file in files if _owner(file) not in known]


def _owner(file: Path) -> str:
    """The sample of a file such as nifti/NAME.nii.gz or dicom/NAME/0001.dcm."""
    return file.parts[1].split(".")[0]


def subject_of(one: Sample, spec: PatchSpec, version: str) -> Subject:
    """The synthetic patient of a sample: the same for the same model and seed."""
    return Subject(
        key=f"{one.model} {one.seed}", name=f"SYNTHETIC^{one.seed:08d}", patient_id=_patient(one).upper(),
        description=f"synthetic {one.label} patch", model=one.model, version=version, window=spec.window,
    )  # fmt: skip


def assemble(folder: Path, spec: PatchSpec, formats: Sequence[str], parts: Iterable[Path], measured: Sequence[str]) -> list[dict[str, Any]]:
    """Makes the empty folder a patch folder of all parts, in their order, with samples.csv; returns what each part.json holds."""
    writer, facts = PatchWriter(folder, spec), []
    for name in formats:
        (folder / name).mkdir()
    with open(folder / SAMPLES, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *measured])
        for part in parts:
            with open(part / SAMPLES, newline="", encoding="utf-8") as rows:
                for cells, hu in zip(csv.reader(rows), np.load(part / "hu.npy", mmap_mode="r", allow_pickle=False), strict=True):
                    table.writerow(cells)
                    one = _sample(cells, measured)
                    asked = None if math.isnan(one.asked_mm) else one.asked_mm
                    writer.add(Patch(hu, _patient(one), one.name, one.label, asked, split="synthetic", id=one.name))
            for name in formats:
                for made in (part / name).iterdir():
                    _place(made, folder / name / made.name)
            facts.append(json.loads((part / "part.json").read_text(encoding="utf-8")))
    writer.finish()
    return facts


def _place(made: Path, place: Path) -> None:
    """A file, or a folder of files, in a second place. The part keeps its own: it is to be there when this is interrupted."""
    if made.is_dir():
        place.mkdir()
        for file in made.iterdir():
            _place(file, place / file.name)
        return
    try:
        os.link(made, place)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(made, place)  # a file system without links


def read_samples(folder: Path) -> list[Sample]:
    """The rows of samples.csv. Raises ValueError naming the file where it is not one of ours."""
    file = folder / SAMPLES
    with open(file, newline="", encoding="utf-8") as rows:
        table = csv.reader(rows)
        try:
            head = next(table)
            if tuple(head[: len(COLUMNS)]) != COLUMNS:
                raise ValueError(f"its columns are {', '.join(head[:8])}")
            return [_sample(cells, head[len(COLUMNS) :]) for cells in table]
        except (ValueError, StopIteration, csv.Error) as error:
            raise ValueError(f"{file}: not a list of samples ({error})") from None


def _sample(cells: Sequence[str], measured: Sequence[str]) -> Sample:
    _, seed, attempt, model, label, asked, *values = cells
    numbers = dict(zip(measured, map(_number, values), strict=True))
    return Sample(int(seed), int(attempt), model, label, _number(asked), numbers)


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


def _patient(one: Sample) -> str:
    return f"synthetic-{one.seed:08d}"
