"""The free-response ROC against LUNA16's rules, worked by hand and in plain loops, and `python -m evaluate froc` as a user runs it."""

import csv
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluate.froc import (
    LUNA16_RATES,
    Candidates,
    Findings,
    bootstrap,
    curve_of,
    interval_of,
    match,
    nodules_hit,
    sensitivity_at,
    strongest,
)
from evaluate.froc_report import evaluated

UID = "1.3.6.1.4.1.14519.5.2.1."


def candidates(*rows):
    """Rows of scan, x, probability: all on the x axis."""
    scan, x, probability = np.array(rows, float).reshape(-1, 3).T
    return Candidates(scan.astype(np.int64), np.outer(x, [1.0, 0, 0]), probability)


def findings(*rows):
    """Rows of scan, x, diameter: all on the x axis."""
    scan, x, diameter = np.array(rows, float).reshape(-1, 3).T
    return Findings(scan.astype(np.int64), np.outer(x, [1.0, 0, 0]), diameter)


def once(scans):
    return np.ones((1, scans), np.int64)


def points(marks):
    curve = curve_of(marks)
    return list(zip(curve.false_positives_per_scan.tolist(), curve.sensitivity.tolist(), curve.threshold.tolist(), strict=True))


def test_a_curve_worked_by_hand():
    # 4 scans, 2 nodules; falling: hit 0.9, false 0.8, hit 0.7, false 0.2, false 0.1
    marks = match(
        candidates((0, 1, 0.9), (0, 50, 0.8), (1, 2, 0.7), (2, 0, 0.2), (3, 0, 0.1)), findings((0, 0, 10), (1, 0, 10)), findings(), 4
    )
    assert points(marks) == [(0, 0, np.inf), (0, 0.5, 0.9), (0.25, 0.5, 0.8), (0.25, 1, 0.7), (0.5, 1, 0.2), (0.75, 1, 0.1)]
    # at 1/4 the upper end of the step counts, and beyond the last point its sensitivity stays
    np.testing.assert_array_equal(sensitivity_at(LUNA16_RATES, marks, once(4))[0], [0.5, 1, 1, 1, 1, 1, 1])


def test_ties_come_together_and_between_points_the_curve_is_straight():
    # one scan; at 0.5 a hit and two false positives at once, then a third: (0, 0), (2, 1/2), (3, 1/2)
    marks = match(candidates((0, 0, 0.5), (0, 50, 0.5), (0, 60, 0.5), (0, 70, 0.4)), findings((0, 0, 6), (0, 99, 6)), findings(), 1)
    assert points(marks) == [(0, 0, np.inf), (2, 0.5, 0.5), (3, 0.5, 0.4)]
    np.testing.assert_array_equal(sensitivity_at(LUNA16_RATES, marks, once(1))[0], [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 2, 1 / 2])


@pytest.mark.parametrize(("x", "hits"), [(4.999, 1), (5.0, 0), (5.001, 0)])
def test_a_hit_is_nearer_than_the_radius_and_not_as_near(x, hits):
    marks = match(candidates((0, x, 0.5)), findings((0, 0, 10)), findings(), 1)
    assert (int(marks.hit.sum()), len(marks.hit)) == (hits, 1)
    assert nodules_hit(candidates((0, x, 0.5)), findings((0, 0, 10))) == hits


def test_distance_is_taken_in_three_directions_and_scans_are_kept_apart():
    away = Candidates(np.zeros(2, np.int64), np.array([[3.0, 3, 3], [2.0, 2, 2]]), np.array([0.9, 0.5]))
    assert match(away, findings((0, 0, 10)), findings(), 1).probability.tolist() == [0.5, 0.9]
    assert not match(candidates((1, 0, 0.9)), findings((0, 0, 10)), findings(), 2).hit.any()


def test_of_several_candidates_in_a_nodule_the_most_probable_counts():
    marks = match(candidates((0, 1, 0.3), (0, 0, 0.8), (0, -1, 0.5)), findings((0, 0, 10)), findings(), 1)
    assert (marks.probability.tolist(), marks.hit.tolist(), marks.double) == ([0.8], [True], 2)


def test_a_candidate_in_two_nodules_hits_both():
    marks = match(candidates((0, 0, 0.8), (0, -3, 0.9)), findings((0, -3, 8), (0, 3, 8)), findings(), 1)
    assert (marks.probability.tolist(), marks.hit.tolist(), marks.shared, marks.double) == ([0.9, 0.8], [True, True], 1, 1)


def test_excluded_findings_are_ignored_and_never_stand_before_a_nodule():
    # 0: in a nodule and in an excluded finding; 1: in two excluded findings; 2: 4.9 mm from one without a diameter; 3: 5.1 mm
    marked = candidates((0, 0, 0.9), (0, 30, 0.8), (0, 54.9, 0.7), (0, 55.1, 0.6))
    marks = match(marked, findings((0, 1, 8)), findings((0, 0, 8), (0, 30, 4), (0, 31, 4), (0, 50, -1)), 1)
    assert (marks.probability.tolist(), marks.hit.tolist(), marks.excluded) == ([0.9, 0.6], [True, False], 2)


def test_scans_without_anything_and_missed_nodules_count():
    marks = match(candidates((0, 0, 0.5), (0, 50, 0.9)), findings((0, 0, 10), (1, 0, 10)), findings(), 8)
    assert points(marks) == [(0, 0, np.inf), (0.125, 0, 0.9), (0.125, 0.5, 0.5)]
    nothing = match(candidates(), findings((0, 0, 10)), findings(), 8)
    assert points(nothing) == [(0, 0, np.inf)]
    np.testing.assert_array_equal(sensitivity_at(LUNA16_RATES, nothing, once(8)), np.zeros((1, 7)))
    with pytest.raises(ValueError, match="no nodule"):
        curve_of(match(candidates((0, 0, 0.5)), findings(), findings(), 1))


def test_the_most_probable_candidates_of_a_scan_stay():
    marked = candidates((0, 0, 0.1), (1, 0, 0.3), (0, 1, 0.9), (0, 2, 0.5), (0, 3, 0.5), (1, 1, 0.2))
    assert strongest(marked, 4).all()
    assert strongest(marked, 3).tolist() == [False, True, True, True, True, True]
    assert strongest(marked, 2).tolist() == [False, True, True, False, False, True]  # what ties with the third goes with it
    assert strongest(candidates(), 2).tolist() == []


def reference(marked, nodules, excluded, drawn):
    """Sensitivities at LUNA16_RATES on the scans drawn, by plain loops over what is there: no sorting, no cumulated sums."""
    hits, false, number = [], [], 0
    for scan in drawn:
        mine = [n for n in range(len(marked.scan)) if marked.scan[n] == scan]
        used = set()
        for kind, table in (("nodule", nodules), ("excluded", excluded)):
            for m in range(len(table.scan)):
                if table.scan[m] != scan:
                    continue
                diameter = table.diameter_mm[m] if table.diameter_mm[m] >= 0 else 10
                inside = [n for n in mine if math.dist(marked.position_mm[n], table.center_mm[m]) < diameter / 2]
                used |= set(inside)
                if kind == "nodule":
                    number += 1
                    hits += [max(marked.probability[n] for n in inside)] if inside else []
        false += [marked.probability[n] for n in mine if n not in used]
    curve = [(0.0, 0.0)]
    for threshold in sorted({*hits, *false}, reverse=True):
        curve.append((sum(p >= threshold for p in false) / len(drawn), sum(p >= threshold for p in hits) / number))
    found = []
    for rate in LUNA16_RATES:
        before = [n for n, (x, _) in enumerate(curve) if x <= rate][-1]
        x, y = curve[before]
        if before + 1 < len(curve):
            x2, y2 = curve[before + 1]
            y += (y2 - y) * (rate - x) / (x2 - x)
        found.append(y)
    return found


SCANS = 4
table = st.lists(st.tuples(st.integers(0, SCANS - 1), st.integers(0, 24), st.sampled_from([1, 3, 5, 8])), max_size=8)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, SCANS - 1), st.integers(0, 24), st.integers(-3, 3)), max_size=25),
    table.filter(len),
    st.lists(st.tuples(st.integers(0, SCANS - 1), st.integers(0, 24), st.sampled_from([-1, 0, 3, 8])), max_size=8),
    st.lists(st.integers(0, SCANS - 1), min_size=SCANS, max_size=SCANS),
)
def test_equals_plain_loops(rows, nodules, excluded, draw):
    marked, real, other = candidates(*rows), findings(*nodules), findings(*excluded)
    marks = match(marked, real, other, SCANS)
    drawn = np.array([[1] * SCANS, np.bincount(draw, minlength=SCANS)])
    found = sensitivity_at(LUNA16_RATES, marks, drawn)
    np.testing.assert_allclose(found[0], reference(marked, real, other, range(SCANS)), atol=1e-12)
    if set(draw) & set(real.scan.tolist()):
        np.testing.assert_allclose(found[1], reference(marked, real, other, draw), atol=1e-12)
    else:
        assert np.isnan(found[1]).all()
    assert (np.diff(found[0]) >= 0).all()
    used = int((~marks.hit).sum()) + marks.excluded
    assert used <= len(rows)
    assert marks.shared or used + marks.hit.sum() + marks.double == len(rows)  # every candidate is accounted for


def cohort(scans=12, seed=0):
    """Candidates, nodules and excluded findings in some of the scans; probabilities of one digit, so that many tie."""
    rng = np.random.default_rng(seed)
    nodules = findings(*[(rng.integers(scans - 6), rng.uniform(0, 100), rng.uniform(4, 20)) for _ in range(5)])
    near = [(s, x + rng.normal(0, 3), round(rng.beta(3, 2), 1)) for s, x in zip(nodules.scan, nodules.center_mm[:, 0], strict=True)]
    far = [(rng.integers(scans - 2), rng.uniform(200, 300), round(rng.beta(2, 3), 1)) for _ in range(30)]
    return candidates(*near, *far), nodules, findings((0, 250, 30), (3, 220, -1))


def test_the_bootstrap_equals_plain_loops_with_the_same_draws(monkeypatch):
    marked, nodules, excluded = cohort()
    marks = match(marked, nodules, excluded, 12)
    found = bootstrap(LUNA16_RATES, marks, np.random.default_rng(7), 60)
    rng, loops = np.random.default_rng(7), []
    for _ in range(60):
        draw = rng.integers(12, size=12)
        if set(draw.tolist()) & set(nodules.scan.tolist()):
            loops.append(reference(marked, nodules, excluded, draw))
    np.testing.assert_allclose(found, loops, atol=1e-12)
    assert len({tuple(row) for row in found.tolist()}) > 30
    monkeypatch.setattr("evaluate.froc._BLOCK", 100)  # a few draws at a time
    np.testing.assert_array_equal(bootstrap(LUNA16_RATES, marks, np.random.default_rng(7), 60), found)


def test_draws_without_a_nodule_are_left_out():
    marks = match(candidates((0, 0, 0.5)), findings((0, 0, 10)), findings(), 6)
    found = bootstrap(LUNA16_RATES, marks, np.random.default_rng(0), 2000)
    np.testing.assert_array_equal(found, np.ones_like(found))
    assert len(found) / 2000 == pytest.approx(1 - (5 / 6) ** 6, abs=0.04)


def test_an_interval_has_luna16s_ranks():
    assert interval_of(np.random.default_rng(0).permutation(1000.0 + np.arange(1000))).__dict__ == {"low": 1025.0, "high": 1975.0}
    with pytest.raises(ValueError, match="40 draws"):
        interval_of(np.zeros(39))


def test_the_scores_interval_is_that_of_the_draws_mean_sensitivities():
    marked, nodules, excluded = cohort()
    report = evaluated(marked, nodules, excluded, 12, 0, 200, np.random.default_rng(7), {}, ())
    drawn = bootstrap(LUNA16_RATES, match(marked, nodules, excluded, 12), np.random.default_rng(7), 200)
    assert report.score.interval == interval_of(drawn.mean(1))
    assert [one.interval for one in report.sensitivity] == [interval_of(column) for column in drawn.T]


# The command


def row(*cells):
    return ",".join(map(str, cells))


RESULTS = [
    row("seriesuid", "coordX", "coordY", "coordZ", "probability"),
    row(UID + "11", 10.5, -20, 30, 0.9),  # hit
    row(UID + "11", 10, -21, 30, 0.7),  # beside it
    row(UID + "11", -60, 40, 5, 0.8),  # false
    row(UID + "22", -35, 14, -100, 0.6),  # hit
    row(UID + "22", 70, 70, -90, 0.95),  # excluded
]
ANNOTATIONS = [
    row("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"),
    row(UID + "11", 10, -20, 30, 8),
    row(UID + "22", -35, 15, -100, 6.5),
    row(UID + "22", 0, 90, -100, 5),  # missed
]
EXCLUDED = [ANNOTATIONS[0], row(UID + "22", 70, 71, -90, -1)]
SERIES = [UID + "11", UID + "22", *(f"{UID}{n}" for n in range(30, 36))]


@pytest.fixture
def files(tmp_path):
    for name, lines in (("results", RESULTS), ("annotations", ANNOTATIONS), ("excluded", EXCLUDED), ("scans", SERIES)):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


WHOLE = ("results.csv", "annotations.csv", "--excluded", "excluded.csv", "--scans", "scans.csv")


def test_the_command_prints_a_table_and_writes_three_files(command, files):
    done = command("evaluate", "froc", *WHOLE, "--out", "froc")
    assert (done.code, done.err) == (0, "")
    assert "Scans: 8, 2 of them with nodules." in done.out
    assert "Nodules: 3, 2 of them hit at some threshold." in done.out
    assert "Candidates: 5, 1 of them false positives. Ignored: 1 beside the most probable one of their nodule, 1 on excluded" in done.out
    assert sorted(f.name for f in (files / "froc").iterdir()) == ["froc.csv", "froc.json", "froc.png"]
    told = json.loads((files / "froc" / "froc.json").read_text())
    assert [one["value"] for one in told["sensitivity"]] == pytest.approx([2 / 3] * 7)  # one false positive in 8 scans
    assert [one["false_positives_per_scan"] for one in told["sensitivity"]] == list(LUNA16_RATES)
    assert told["luna16_score"]["value"] == pytest.approx(2 / 3)
    assert 0 <= told["luna16_score"]["low"] <= 2 / 3 <= told["luna16_score"]["high"] == 1
    assert "The curve ends at 0.125 false positives a scan" in done.out
    table = list(csv.reader(io.StringIO((files / "froc" / "froc.csv").read_text())))
    assert table[0] == ["false_positives_per_scan", "sensitivity", "threshold"]
    wanted = [[0, 0, np.inf], [0, 1 / 3, 0.9], [0.125, 1 / 3, 0.8], [0.125, 2 / 3, 0.6]]
    np.testing.assert_allclose(np.array(table[1:], float), wanted)
    with Image.open(files / "froc" / "froc.png") as picture:
        assert picture.width > 400
    for content in (done.out.encode(), *(f.read_bytes() for f in (files / "froc").iterdir())):
        assert UID.encode() not in content
        assert str(files).encode() not in content


def test_without_the_lists_what_is_missing_is_said(command, files):
    (files / "annotations.csv").write_text("\n".join([*ANNOTATIONS, row(UID + "33", 0, 0, 0, 5)]))
    done = command("evaluate", "froc", "results.csv", "annotations.csv")
    assert (done.code, done.err) == (0, "")
    assert "The scans are those that RESULTS or ANNOTATIONS name" in done.out
    assert "No findings are excluded" in done.out
    assert "Scans: 3, 3 of them" in done.out
    assert "2 of them false positives" in done.out
    assert done.out == command("evaluate", "froc", "results.csv", "annotations.csv", "--seed", 0).out


def test_nodules_of_other_scans_are_left_out_and_told(command, files):
    (files / "results.csv").write_text("\n".join(RESULTS[:4]))
    (files / "scans.csv").write_text("number,SeriesUID\r\n" + f"1,{UID}11\r\n")
    done = command("evaluate", "froc", *WHOLE)
    assert (done.code, done.err) == (0, "")
    assert "Nodules: 1, 1 of them hit" in done.out
    assert "Nodules of scans that --scans does not name, left out: 2." in done.out
    assert "No intervals: they take two scans or more." in done.out


def test_files_as_spreadsheets_write_them(command, files):
    plain = command("evaluate", "froc", *WHOLE).out
    for name in ("results", "annotations", "excluded", "scans"):
        text = (files / f"{name}.csv").read_text()
        (files / f"{name}.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").replace("coordX", " CoordX ").encode() + b"\r\n")
    done = command("evaluate", "froc", *WHOLE)
    assert (done.code, done.out, done.err) == (0, plain, "")


def test_a_detector_that_finds_nothing_scores_0(command, files):
    (files / "results.csv").write_text(RESULTS[0])
    done = command("evaluate", "froc", *WHOLE)
    assert (done.code, done.err) == (0, "")
    assert "LUNA16 score (mean)     0.000        0.000 to 0.000" in done.out


def test_coordinates_in_ras_or_voxels_are_suspected(command, files):
    turned = [row(u, -float(x), -float(y), z, p) for u, x, y, z, p in (line.split(",") for line in RESULTS[1:])]
    (files / "results.csv").write_text("\n".join([RESULTS[0], *turned]))
    done = command("evaluate", "froc", *WHOLE, "--out", "froc")
    assert done.code == 0
    assert done.err.startswith("warning: nodules hit: 0; with the signs of coordX and coordY turned, 2 would be.")
    assert "RAS" in json.loads((files / "froc" / "froc.json").read_text())["warnings"][0]
    (files / "results.csv").write_text("\n".join([RESULTS[0], row(UID + "11", 250, 260, 80, 0.5)]))
    done = command("evaluate", "froc", *WHOLE)
    assert done.code == 0
    assert "warning: no candidate hits a nodule; check that" in done.err


def test_nodules_annotated_twice_are_suspected(command, files):
    (files / "annotations.csv").write_text("\n".join([*ANNOTATIONS, row(UID + "11", 10, -20.5, 30, 8)]))
    done = command("evaluate", "froc", *WHOLE, "--bootstrap", 0)
    assert done.code == 0
    assert "warning: candidates in two nodules or more: 2;" in done.err
    assert "none" in done.out
    assert "No intervals: --bootstrap is 0." in done.out


def test_a_scan_keeps_its_most_probable_candidates(command, files):
    done = command("evaluate", "froc", *WHOLE, "--candidates-per-scan", 2)
    assert done.code == 0
    assert "1 beyond the limit" in done.out
    assert "0 beyond the limit" in command("evaluate", "froc", *WHOLE, "--candidates-per-scan", 0).out


def changed(line, cell, text):
    """RESULTS with another cell in a line, from 1."""
    cells = RESULTS[line - 1].split(",")
    cells[cell] = text
    return "\n".join([*RESULTS[: line - 1], ",".join(cells), *RESULTS[line:]])


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("results", "", "results.csv: empty"),
        ("results", "\n\n", "results.csv: empty"),
        ("results", "\n".join(RESULTS[1:]), "results.csv: no column seriesuid; want seriesuid,coordX,coordY,coordZ,probability in the first line"),
        ("results", changed(1, 4, "score"), "results.csv: no column probability; want"),
        ("results", changed(1, 4, "coordX"), "results.csv: two columns coordX; want"),
        ("results", "\n".join(RESULTS).replace(",", ";"), "separated by commas, not by semicolons"),
        ("results", "\n".join(RESULTS).replace(",", "\t"), "separated by commas, not by tabs"),
        ("results", changed(3, 1, "abc"), "results.csv: line 3: a coordinate is not a finite number"),
        ("results", changed(3, 1, "1_0"), "results.csv: line 3: a coordinate is not a finite number"),
        ("results", changed(4, 3, ""), "results.csv: line 4: a coordinate is missing"),
        ("results", changed(4, 3, "1e9"), "results.csv: line 4: a coordinate is more than 100 m from the origin"),
        ("results", changed(2, 4, "nan"), "results.csv: line 2: the probability is not a finite number"),
        ("results", changed(2, 4, "inf"), "results.csv: line 2: the probability is not a finite number"),
        ("results", changed(5, 4, "0,5"), "results.csv: line 5: has 6 cells, and the first line names 5"),
        ("results", changed(5, 0, " "), "results.csv: line 5: the series is missing"),
        ("results", changed(5, 0, UID + "99"), "results.csv: line 5: its series is not in scans.csv"),
        ("results", "\n".join([*RESULTS, RESULTS[3]]), "results.csv: line 7: says the same as line 4; leave one of them out"),
        ("results", changed(3, 0, '"1\n2"'), "results.csv: line 3: a quoted cell goes over several lines"),
        ("results", changed(3, 0, '"1"2'), "results.csv: line 3: not CSV"),
        ("results", changed(3, 0, "1" * 200_000), "results.csv: line 3: not CSV"),
        ("results", b"\xff\xfe" + "\n".join(RESULTS).encode("utf-16-le"), "not a CSV file in UTF-8"),
        ("results", bytes(range(256)) * 40, "results.csv: line 1 or after: not a CSV file in UTF-8"),
        ("results", b"\0" * 4000, "results.csv: no column seriesuid"),
        ("annotations", "\n".join([*ANNOTATIONS, row(UID + "11", 1, 2, 3, 0)]), "annotations.csv: line 5: the diameter is not between 0 and 500"),
        ("annotations", "\n".join([*ANNOTATIONS, row(UID + "11", 1, 2, 3, -1)]), "annotations.csv: line 5: the diameter is not between 0 and 500"),
        ("annotations", "\n".join([*ANNOTATIONS, ANNOTATIONS[1]]), "annotations.csv: line 5: says the same as line 2"),
        ("annotations", ANNOTATIONS[0], "annotations.csv: no nodule in it of a scan that is evaluated"),
        ("excluded", "\n".join([EXCLUDED[0], row(UID + "11", 1, 2, 3, 500)]), "excluded.csv: line 2: the diameter is not below 500 mm"),
        ("excluded", "\n".join([EXCLUDED[0], row(UID + "11", 1, 2, 3, "")]), "excluded.csv: line 2: the diameter is missing"),
        ("scans", "", "scans.csv: empty"),
        ("scans", "seriesuid\n", "scans.csv: no series in it"),
        ("scans", "\n".join([*SERIES, SERIES[0]]), "scans.csv: line 9: the same series as in line 1"),
        ("scans", "\n".join([*SERIES, row(UID, 5)]), "scans.csv: line 9: want one series UID a line, or a CSV with a column seriesuid"),
        ("scans", ";".join(SERIES), "scans.csv: line 1: want one series UID a line"),
        ("scans", "seriesuid,seriesuid\n1,2", "scans.csv: two columns seriesuid"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(command, files, file, content, told):
    (files / f"{file}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    done = command("evaluate", "froc", *WHOLE, "--out", "froc")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("error: ")
    assert told in done.err
    assert UID not in done.err
    assert sorted(f.name for f in files.iterdir()) == ["annotations.csv", "excluded.csv", "results.csv", "scans.csv"]


def test_folders_missing_files_and_options_out_of_range(command, files):
    for arguments, told in (
        ((files, "annotations.csv"), "Is a directory"),
        (("results.csv", "none.csv"), "none.csv: No such file"),
        ((*WHOLE, "--bootstrap", 50), "--bootstrap is 50, want 100 to 100,000, or 0"),
        ((*WHOLE, "--seed", -1), "--seed -1"),
        ((*WHOLE, "--candidates-per-scan", -1), "--candidates-per-scan -1"),
        ((*WHOLE, "--out", "results.csv"), "results.csv: exists already"),
        (("results.csv",), "annotations"),
    ):
        done = command("evaluate", "froc", *arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), arguments
        assert told in done.err
