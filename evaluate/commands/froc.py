"""Judges a detector on whole scans."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evaluate.froc_report import FrocReport
    from evaluate.froc_tables import Table

DESCRIPTION = """Judge a detector on whole scans: free-response ROC (FROC) and LUNA16's score, with intervals.

  python -m evaluate froc results.csv annotations.csv
  python -m evaluate froc results.csv annotations.csv --excluded annotations_excluded.csv --scans seriesuids.csv --out froc

RESULTS is what your detector marked: seriesuid,coordX,coordY,coordZ,probability. ANNOTATIONS has the nodules that are there:
seriesuid,coordX,coordY,coordZ,diameter_mm. Both as in LUNA16: CSV with commas, coordinates in mm of the scanner's axes (LPS, as in DICOM).
A probability may be any number that is larger for what is more suspicious. The scans may be real, or have synthetic lesions put in.

How it counts, as LUNA16 does (Setio et al. 2017 and its script): a candidate nearer to a nodule's centre than half of the diameter hits it.
Of several in one nodule the most probable counts, and the others are ignored. What hits no nodule is a false positive, unless it lies in
one of the --excluded findings: then it is ignored. Sensitivity is read off the curve, interpolated linearly, at 1/8, 1/4, 1/2, 1, 2, 4 and
8 false positives a scan, and the score is the mean of the seven. Scans without a nodule or a candidate count in the rate, so name all that the
detector has read with --scans. Intervals are over scans, drawn with replacement.

It prints the table. In the folder --out, without a series UID in any of them:
  froc.json   score, sensitivities, intervals, counts
  froc.csv    the curve: false positives a scan, sensitivity, threshold
  froc.png    its picture

Exit codes: 0 done, 2 bad input."""


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("results", type=str, help="CSV of the detector's candidates")
    parser.add_argument("annotations", type=str, help="CSV of the nodules")
    parser.add_argument(
        "--excluded",
        type=str | None,
        default=None,
        help="CSV of findings that count neither as hit nor as false positive, like ANNOTATIONS",
    )
    parser.add_argument(
        "--scans",
        type=str | None,
        default=None,
        help="the scans evaluated: a series UID a line, or a CSV with a column seriesuid; without, those that RESULTS or ANNOTATIONS name",
    )
    parser.add_argument("--out", type=str | None, default=None, help="folder to make")
    parser.add_argument("--bootstrap", type=int, default=1000, help="draws of scans for the intervals, 100 or more; 0 for no intervals")
    parser.add_argument("--seed", type=int, default=0, help="of those draws")
    parser.add_argument(
        "--candidates-per-scan",
        type=int,
        default=100,
        help="a scan with more keeps its most probable ones only, as in LUNA16; 0 for no limit",
    )


def run(options: Namespace) -> int:
    """Evaluates the tables; prints and writes what came out."""
    from data.files import new_folder
    from evaluate.froc_report import to_csv, to_json, to_picture, to_text

    with new_folder(options.out) if options.out else nullcontext() as out:
        report = evaluated_tables(options)
        if out:
            (out / "froc.json").write_text(to_json(report), encoding="utf-8")
            (out / "froc.csv").write_text(to_csv(report.curve), encoding="utf-8")
            (out / "froc.png").write_bytes(to_picture(report))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(to_text(report))
    if options.out:
        print(f"\n{options.out}/froc.json\n{options.out}/froc.csv\n{options.out}/froc.png")
    return 0


def evaluated_tables(options: Namespace) -> FrocReport:
    """Reads the tables and evaluates them. Raises ValueError or OSError, in one line, for what is not as it should be."""
    if not (options.bootstrap == 0 or 100 <= options.bootstrap <= 100_000):
        raise ValueError(f"--bootstrap is {options.bootstrap}, want 100 to 100,000, or 0 for no intervals")
    if options.seed < 0 or options.candidates_per_scan < 0:
        raise ValueError(f"--seed {options.seed}, --candidates-per-scan {options.candidates_per_scan}: want 0 or more")

    import numpy as np

    from evaluate.froc import Candidates, Findings
    from evaluate.froc_report import evaluated
    from evaluate.froc_tables import Table, read_annotations, read_excluded, read_results, read_scans

    results, annotations = read_results(Path(options.results)), read_annotations(Path(options.annotations))
    excluded = read_excluded(Path(options.excluded)) if options.excluded else Table(Path(), [], [], np.zeros((0, 4)))
    notes = []
    if options.scans:
        scans = _numbered(read_scans(Path(options.scans)))
        results.refuse(_scan(results, scans) < 0, f"its series is not in {options.scans}; add the series there, or leave the row out here")
        if absent := int((_scan(annotations, scans) < 0).sum()):
            notes.append(f"Nodules of scans that --scans does not name, left out: {absent:,}.")
    else:
        scans = _numbered([*results.series, *annotations.series])
        notes.append(
            "The scans are those that RESULTS or ANNOTATIONS name. If there are more, name all with --scans: false positives a scan will be fewer."
        )
    if not options.excluded:
        notes.append(
            "No findings are excluded: candidates on what LUNA16 lists in annotations_excluded.csv, such as small nodules, count as false positives."
        )

    def findings(table: Table) -> Findings:
        scan = _scan(table, scans)
        here = scan >= 0
        return Findings(scan[here], table.numbers[here, :3], table.numbers[here, 3])

    nodules = findings(annotations)
    if not len(nodules.scan):
        raise ValueError(f"{options.annotations}: no nodule in it of a scan that is evaluated; a sensitivity takes one or more")
    settings = {
        "scans_from": "scans" if options.scans else "results_and_annotations", "excluded": bool(options.excluded),
        "candidates_per_scan": options.candidates_per_scan, "bootstrap": options.bootstrap, "seed": options.seed,
    }  # fmt: skip
    return evaluated(
        Candidates(_scan(results, scans), results.numbers[:, :3], results.numbers[:, 3]), nodules, findings(excluded), len(scans),
        options.candidates_per_scan, options.bootstrap, np.random.default_rng(options.seed), settings, notes,
    )  # fmt: skip


def _numbered(series: Sequence[str]) -> dict[str, int]:
    return {uid: n for n, uid in enumerate(dict.fromkeys(series))}


def _scan(table: Table, scans: dict[str, int]) -> NDArray[np.int64]:
    """The number of each row's scan, (N,); -1 where there is none."""
    import numpy as np

    return np.array([scans.get(uid, -1) for uid in table.series], np.int64)
