"""From folders of scans and a lesion list to a patch folder: find, read, cut, pseudonymise, split.

Each series is read and cut on its own, on any number of processes or machines; the result does not depend on
how many, nor on whether the run was stopped in between.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from itertools import chain
from pathlib import Path

from data.cutting import CutConfig, Cutting
from data.dicom import Series, Skipped, find_series, look_at_all
from data.lesion_list import BACKGROUND, LesionList
from data.nifti import stem
from data.parallel import map_processes
from data.parts import Job, died, part_name, read_part, run_job
from data.patch_table import SERIES_COLUMNS, SKIPPED_COLUMNS
from data.patches import Patch, PatchSpec, PatchWriter, split_by_patient
from data.pseudonyms import Pseudonyms
from data.sources import METAIMAGE, NIFTI, Source, Unreadable, find_sources

_BESIDE_SCANS = (".csv", ".json", ".txt", ".md", ".raw", ".zraw")
_LOOK_AT_ONCE = 256
Track = Callable[[Iterable, str, int], Iterable]


@dataclass(frozen=True)
class Skip:
    """What was left out: kind "file", "series", "lesion" or "row"; who by pseudonym, or a row's number; the reason has no identifier."""

    kind: str
    id: str
    count: int
    reason: str


@dataclass
class Outcome:
    """What became of the input, counted; nothing in it identifies anybody."""

    patches: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, class)
    patients: int = 0
    series: int = 0
    skips: list[Skip] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Workers:
    """Who does the work: processes of this machine (0: one a core), or those of a Dask scheduler."""

    processes: int = 0
    scheduler: str | None = None

    def map(self, function: Callable, inputs: Sequence, died: Callable | None = None) -> Iterator:
        """function(x) for each x, in order; died(x) in place of it where x kills its process."""
        return map_processes(function, inputs, self.processes, self.scheduler, died)


def find_volumes(
    places: Sequence[str | Path], workers: Workers = Workers(1), track: Track = lambda items, what, total: items,
    leave_out: frozenset[Source] = frozenset(),
) -> tuple[list[Series], list[Skipped]]:  # fmt: skip
    """Every volume under these files, folders and zip archives, at any depth.

    A NIfTI or MetaImage file is a series by itself, named by its stem, and a patient by itself. leave_out: files that are
    no scans, such as masks. Raises FileNotFoundError for a place that does not exist, ValueError where nothing is a CT volume.
    """
    damaged: list[Unreadable] = []
    every = list(find_sources(places, damaged))
    files = [file for file in every if not (leave_out and Source(file.path.resolve(), file.member) in leave_out)]
    single = [f for f in files if f.name.lower().endswith(NIFTI + METAIMAGE) and not f.name.startswith("._")]
    rest = [f for f in files if not f.name.lower().endswith(NIFTI + METAIMAGE + _BESIDE_SCANS) or f.name.startswith("._")]
    chunks = [rest[n : n + _LOOK_AT_ONCE] for n in range(0, len(rest), _LOOK_AT_ONCE)]
    few = Workers(1) if len(chunks) <= 4 else workers  # starting processes costs more than looking at a few files
    looked_at = track(few.map(look_at_all, chunks), "looking at files, by 256", len(chunks))
    series, skipped = find_series(chain.from_iterable(looked_at))
    skipped += [Skipped(Source(Path(str(error.file))), error.reason) for error in damaged]
    series += [Series(stem(f), stem(f), (f,), nameless=True) for f in single]
    named = Counter(one.uid for one in series)
    twice = "has the same name as another volume, so a lesion list cannot tell them apart; rename one"
    series = [s if named[s.uid] == 1 else replace(s, spoiled=Unreadable(s.files[0], twice)) for s in series]
    if not series:
        reasons = Counter(s.reason for s in skipped).most_common(1)
        if len(skipped) == 1:
            raise ValueError(f"{skipped[0].file}: no CT volume found ({skipped[0].reason})")
        if len(files) < len(every):
            raise ValueError(
                f"{', '.join(map(str, places))}: every scan in it is on the lesion list, as a mask; keep scans and masks in folders of their "
                "own, or give a CSV with the columns image and mask"
            )
        why = f"{len(skipped)} files, most of them: {reasons[0][0]}" if reasons else "no file of a scan format"
        raise ValueError(f"{', '.join(map(str, places))}: no CT volume found ({why})")
    return series, skipped


def prepare(
    places: Sequence[str | Path], lesions: LesionList, out: Path, parts: Path, config: CutConfig, pseudonyms: Pseudonyms, *,
    licence: str = "", one_each: bool = False, workers: Workers = Workers(), strict: bool = False, warn: Callable[[str], None] = lambda line: None,
    track: Track = lambda items, what, total: items,
) -> Outcome:  # fmt: skip
    """Cuts every listed lesion, and background, out of the scans, into the empty folder `out`.

    parts: a folder for what each series gave; what is there from an earlier run is used again.
    licence: of the scans, in words. one_each: each study or file without a patient id is known to be another patient's.
    strict: anything left out is an error. warn: told of each series and of the files that are left out, with their paths.
    track: wraps what takes long. Raises ValueError when nothing can be cut.
    """
    found, skipped = find_volumes(places, workers, track, lesions.files())
    outcome = Outcome()
    tell_files(skipped, warn)
    outcome.skips += [Skip("file", pseudonyms.file(str(s.file)), 1, s.reason) for s in skipped]
    outcome.skips += [Skip("row", str(line), 1, reason) for line, reason in lesions.problems]
    absent = sorted(set(lesions.series) - {s.uid for s in found})
    outcome.skips += [Skip("series", pseudonyms.series(uid), 1, "listed, but not among the scans") for uid in absent]
    wanted = [
        replace(s, patient_id=lesions.patients.get(s.uid, s.patient_id))
        for s in sorted(found, key=lambda s: s.uid)
        if s.uid in lesions.series
    ]
    outcome.notes["series without a listed lesion, left out"] = len(found) - len(wanted)
    nameless = {s.uid for s in wanted if s.nameless and s.uid not in lesions.patients and not one_each}
    outcome.notes[
        "series without a PatientID, whose study or file counts as a patient; say --patients each if no two are of one person"
    ] = len(nameless)
    if not wanted:
        raise ValueError(
            f"none of the {len(lesions.series)} series in the lesion list is among the {len(found)} found; "
            "a list, and a mask by its file's name, must name a scan by its SeriesInstanceUID, or by its file's name without suffix "
            "for NIfTI and MetaImage"
        )
    jobs = [
        Job(s, lesions.series[s.uid], config, parts / part_name(s, lesions.series[s.uid], config, pseudonyms)) for s in wanted
    ]  # fmt: skip
    before = sum(job.part.exists() for job in jobs)
    if before:
        warn(f"{before} of {len(jobs)} series were cut by an earlier run")
    cut: list[Job] = []
    labels: set[str] = set()
    mirrored = Counter[bool]()
    for job, result in zip(jobs, track(workers.map(run_job, jobs, died), "series", len(jobs)), strict=True):
        uid = pseudonyms.series(job.series.uid)
        outcome.notes.update(dict(result.notes))
        mirrored.update({True: result.mirrored[0], False: result.mirrored[1]})
        outcome.skips += [Skip("lesion", uid, count, reason) for reason, count in result.left_out]
        if result.error:
            warn(f"skipped series: {result.error}")
            outcome.skips.append(Skip("series", uid, 1, result.reason))
        if result.labels:
            cut.append(job)
            labels.update(result.labels)
    if mirrored[True] >= 4 and mirrored[True] > 3 * mirrored[False]:
        told = f"{mirrored[True]} lesions are denser with x and y negated, {mirrored[False]} as stated: is the list in RAS? (--coordinates ras)"
        warn(f"WARNING: {told}")
        outcome.notes[told] = 1
    _refuse(outcome, cut, strict)
    spec = PatchSpec(
        shape=config.shape, spacing_mm=(config.spacing_mm,) * len(config.shape), window=config.window,
        classes=(*sorted(labels - {BACKGROUND}), *({BACKGROUND} & labels)), background=BACKGROUND if BACKGROUND in labels else None,
        resampling="linear, in the nearest axial slice" if len(config.shape) == 2 else "trilinear",
        licence=licence, patients_known=not any(job.series.uid in nameless for job in cut),
    )  # fmt: skip
    _write(out, spec, cut, pseudonyms, outcome)
    return outcome


def _write(out: Path, spec: PatchSpec, jobs: Sequence[Job], pseudonyms: Pseudonyms, outcome: Outcome) -> None:
    """The patch folder, series by series from their parts, with series.csv and skipped.csv."""
    config = jobs[0].config
    # by the patients' own ids, so that the split does not change with the pseudonym key
    splits = split_by_patient({job.series.patient_id for job in jobs}, config.seed, config.validation, config.test)
    writer = PatchWriter(out, spec)
    with open(out / "series.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(SERIES_COLUMNS)
        for job in jobs:
            patient, uid = pseudonyms.patient(job.series.patient_id), pseudonyms.series(job.series.uid)
            cutting = read_part(job.part)
            split = splits[job.series.patient_id]
            table.writerow([uid, patient, *_facts(cutting)])
            for one in cutting.cuts:
                diameter = None if one.lesion.label == BACKGROUND else one.lesion.diameter_mm
                writer.add(Patch(one.hu, patient, uid, one.lesion.label, diameter, one.lesion.center_mm, split, padded=one.padded))
    writer.finish()
    with open(out / "skipped.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([SKIPPED_COLUMNS, *(astuple(skip) for skip in outcome.skips)])
    outcome.patches, outcome.patients, outcome.series = writer.patches, len(splits), len(jobs)
    outcome.notes = +outcome.notes


def _facts(cutting: Cutting) -> list[object]:
    made = cutting.acquisition
    slices, rows, columns = cutting.shape
    step_mm, row_mm, column_mm = cutting.spacing_mm
    thickness = "" if made.slice_thickness_mm is None else f"{made.slice_thickness_mm:g}"
    return [made.format, made.manufacturer, made.model, made.kernel, slices, rows, columns, f"{(row_mm + column_mm) / 2:.4g}",
            f"{step_mm:.4g}", thickness]  # fmt: skip


def _refuse(outcome: Outcome, cut: Sequence[Job], strict: bool) -> None:
    """ValueError when nothing was cut, or when something was left out although that was not to be."""
    reasons: Counter[str] = Counter()
    for skip in outcome.skips:
        reasons[skip.reason] += skip.count
    told = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(5))
    if strict and outcome.skips:
        raise ValueError(f"--strict: {reasons.total()} left out: {told}")
    if not cut:
        raise ValueError(f"no patch could be cut: {told or 'no lesion'}")


def tell_files(skipped: Sequence[Skipped], warn: Callable[[str], None]) -> None:
    """One line a folder and reason: a folder of a thousand MR slices is one line."""
    groups: dict[tuple[str, str], list[Skipped]] = {}
    for s in skipped:
        groups.setdefault((s.file.folder, s.reason), []).append(s)
    for (folder, reason), group in groups.items():
        names = ", ".join(s.file.name for s in group[:3]) + (", ..." if len(group) > 3 else "")
        warn(f"skipped {group[0].file if len(group) == 1 else f'{len(group)} files in {folder} ({names})'}: {reason}")
