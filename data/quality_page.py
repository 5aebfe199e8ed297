"""The quality of a patch folder as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.near_copies import COPY, NearCopy
from data.patches import SPLITS, PatchFolder
from data.quality import NearCopies, Quality, Rows, SeriesRow, contact_rows, outside_window, value_quantiles
from data.quality_figures import contact_sheet, diameter_histograms, geometry_histograms, picture, value_histograms
from data.quality_summary import PADDED, Summary

GENERATOR = '<meta name="generator" content="lesiongan data report">'
"""Stands in the head of every such page, so that a rerun knows its own."""

PAIRS_SHOWN = 12
GEOMETRY = {"slice_step_mm": "slice step, mm", "slice_thickness_mm": "slice thickness, mm", "pixel_mm": "pixel size, mm"}


def to_html(folder: PatchFolder, quality: Quality, summary: Summary) -> str:
    """The page. It shows patches; folders of real patients say so on it. No path and no name of a file's place is in it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters.update(percent=_percent, mm=_mm)
    environment.globals.update(image=_image)
    spec, rows, found = folder.spec, quality.rows, quality.near_copies
    filled = {label: counts for label, counts in quality.values.items() if counts.any()}
    diameters = _diameters(spec.classes, rows)
    geometry = _geometry(quality.series or ())
    return environment.get_template("quality.html.jinja").render(
        generator=GENERATOR,
        spec=spec,
        content_hash=folder.content_hash,
        summary=summary,
        splits=[split for split in SPLITS if (rows.split == split).any()],
        table=_split_table(spec.classes, rows),
        series_per_patient=_series_per_patient(rows),
        patches_per_patient=_spread(np.unique(rows.patient, return_counts=True)[1]),
        patients=rows.patients(),
        recorded=quality.series is not None,
        scanners=_scanners(quality.series or ()),
        geometry={title: _spread(mm) for title, mm in geometry.items()},
        geometry_figure=geometry_histograms(geometry) if geometry else None,
        values_figure=value_histograms(filled, spec.window, spec.unit),
        values={label: (*value_quantiles(c, (0.05, 0.5, 0.95)), *outside_window(c, spec.window)) for label, c in filled.items()},
        diameters={label: _spread(mm) for label, mm in diameters.items()},
        diameters_figure=diameter_histograms(diameters) if diameters else None,
        sheets=_sheets(folder, rows),
        padded=PADDED,
        skipped=None if quality.skipped is None else sorted(quality.skipped.items(), key=lambda item: (-item[1], item[0])),
        found=found if isinstance(found, NearCopies) else None,
        not_looked=found if isinstance(found, str) else None,
        pairs=_pairs(folder, rows, found.pairs) if isinstance(found, NearCopies) else [],
        threshold=COPY,
    )


def _split_table(classes: tuple[str, ...], rows: Rows) -> dict[str, dict[str, tuple[int, int]]]:
    """class -> split or "all" -> patches and patients; the last line is every class together."""
    table = {}
    for name in (*classes, "all"):
        of_class = (rows.label == name) if name != "all" else np.ones(len(rows), bool)
        parts = {split: of_class & (rows.split == split) for split in SPLITS} | {"all": of_class}
        table[name if name != "all" else "all classes"] = {split: (int(part.sum()), rows.patients(part)) for split, part in parts.items()}
    return table


def _series_per_patient(rows: Rows) -> list[tuple[int, int]]:
    """(series, how many patients have so many)."""
    patient_of = dict(zip(rows.series.tolist(), rows.patient.tolist(), strict=True))
    return sorted(Counter(Counter(patient_of.values()).values()).items())


def _scanners(series: tuple[SeriesRow, ...]) -> list[tuple[tuple[str, str, str], int, int]]:
    """((manufacturer, model, kernel), series, patients), most patients first."""
    patients: dict[tuple[str, str, str], list[str]] = {}
    for row in series:
        patients.setdefault((row.manufacturer, row.model, row.kernel), []).append(row.patient)
    counted = [(scanner, len(of), len(set(of))) for scanner, of in patients.items()]
    return sorted(counted, key=lambda line: (-line[2], -line[1], line[0]))


def _geometry(series: tuple[SeriesRow, ...]) -> dict[str, np.ndarray]:
    """Title -> mm of the series that tell it; without those that none tells."""
    columns = {title: [mm for row in series if (mm := getattr(row, name))] for name, title in GEOMETRY.items()}
    return {title: np.array(mm) for title, mm in columns.items() if mm}


def _diameters(classes: tuple[str, ...], rows: Rows) -> dict[str, np.ndarray]:
    """Class -> known diameters; without the classes that have none."""
    known = np.isfinite(rows.diameter_mm)
    return {label: rows.diameter_mm[of] for label in classes if (of := known & (rows.label == label)).any()}


def _spread(values: np.ndarray) -> dict[str, float]:
    low, fifth, middle, ninety_fifth, high = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    return {"count": len(values), "least": low, "low": fifth, "median": middle, "high": ninety_fifth, "most": high}


def _sheets(folder: PatchFolder, rows: Rows) -> list[dict[str, object]]:
    """For each class that has patches: its contact sheet and what it holds."""
    sheets = []
    for label in folder.classes:
        if not (rows.label == label).any():
            continue
        shown = contact_rows(rows, label)
        framed = rows.padded[shown] > PADDED
        sheets.append(
            {
                "label": label, "count": len(shown), "of": int((rows.label == label).sum()), "patients": len(set(rows.patient[shown])),
                "framed": int(framed.sum()), "image": contact_sheet(folder.hu(rows.index[shown]), folder.window, framed),
            }
        )  # fmt: skip
    return sheets


def _pairs(folder: PatchFolder, rows: Rows, found: tuple[NearCopy, ...]) -> list[dict[str, object]]:
    """The pairs to show, those in different splits first; the first patch mirrored as it matches the second."""
    shown = sorted(found, key=lambda pair: (rows.split[pair.first] == rows.split[pair.second], -pair.detail))[:PAIRS_SHOWN]
    pairs = []
    for pair in shown:
        first, second = folder.hu(rows.index[[pair.first, pair.second]])
        pairs.append(
            {
                "detail": pair.detail, "mirrored": bool(pair.mirrored), "apart": rows.split[pair.first] != rows.split[pair.second],
                "first": _told(rows, pair.first, picture(first, folder.window, pair.mirrored)),
                "second": _told(rows, pair.second, picture(second, folder.window)),
            }
        )  # fmt: skip
    return pairs


def _told(rows: Rows, n: int, image: bytes) -> Mapping[str, object]:
    return {
        "id": str(rows.id[n]), "label": str(rows.label[n]), "patient": str(rows.patient[n]), "split": str(rows.split[n]), "image": image,
    }  # fmt: skip


def _image(png: bytes, alt: str, kind: str = ""):
    from markupsafe import Markup

    return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(kind, alt, base64.b64encode(png).decode("ascii"))


def _percent(share: float) -> str:
    return "0" if share == 0 else "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _mm(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
