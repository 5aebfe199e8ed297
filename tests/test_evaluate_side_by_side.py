"""Reports beside one another, and gates on one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.key_figures import Figure, Gate
from evaluate.page import comparison_page
from evaluate.side_by_side import Read, check_comparable, in_words, ranking, read_report, to_markdown, to_table

COMPARED = {
    "real_sha256": "a", "window": [-1000, 400], "shape": [8, 8], "synthetic_sha256": "s", "synthetic": {"patches": 10, "patients": 10},
}  # fmt: skip


def report(name, synthetic="s", verdicts=None, **figures):
    found = {key.replace("_", "."): Figure(*value) for key, value in figures.items()}
    return Read(name, found, verdicts or {"quality": "good"}, {**COMPARED, "synthetic_sha256": synthetic + name})


def nearer(value, low=None, high=None):
    return (value, low, high, "lower")


def test_what_cannot_be_told_apart_shares_a_place():
    a, b, c = (report(name, frechet_x=nearer(v, v - 1, v + 1)) for name, v in (("a", 3.0), ("b", 4.5), ("c", 9.0)))
    assert ranking([c, b, a], "frechet.x") == [["a", "b"], ["c"]]


def test_who_reaches_only_the_last_of_a_place_has_another():
    ends = {"a": (1.0, 0.9, 1.1), "b": (1.1, 1.05, 2.0), "c": (1.8, 1.5, 2.1)}
    assert ranking([report(name, frechet_x=nearer(*three)) for name, three in ends.items()], "frechet.x") == [["a", "b"], ["c"]]


def test_higher_is_better_where_it_says_so_and_a_figure_without_direction_ranks_nobody():
    a, b = report("a", recall_x=(0.2, 0.1, 0.3, "higher")), report("b", recall_x=(0.8, 0.7, 0.9, "higher"))
    assert ranking([a, b], "recall.x") == [["b"], ["a"]]
    assert ranking([report("a", density_x=(1.0,)), report("b", density_x=(2.0,))], "density.x") == []


@given(st.permutations([1.0, 2.0, 3.0, 4.0]))
def test_order_of_reports_does_not_matter(values):
    reports = [report(f"r{v:g}", frechet_x=nearer(v)) for v in values]
    assert ranking(reports, "frechet.x") == [["r1"], ["r2"], ["r3"], ["r4"]]


def test_families_that_disagree_are_said_to():
    a = report("a", frechet_x=nearer(1.0), frechet_y=nearer(2.0))
    b = report("b", frechet_x=nearer(2.0), frechet_y=nearer(1.0))
    assert any("x and y disagree on a and b" in one for one in in_words([a, b]))
    assert not any("disagree" in one for one in in_words([a, report("c", frechet_x=nearer(2.0), frechet_y=nearer(3.0))]))


def test_other_patients_are_refused_and_other_sizes_noted():
    a, b = report("a"), report("b")
    assert check_comparable([a, b]) == []
    with pytest.raises(ValueError, match="different real patches"):
        check_comparable([a, Read("b", {}, {}, {**b.compared, "real_sha256": "b"})])
    with pytest.raises(ValueError, match="two or more"):
        check_comparable([a])
    with pytest.raises(ValueError, match="one name"):
        check_comparable([a, a])
    more = Read("b", {}, {}, {**b.compared, "synthetic": {"patches": 20, "patients": 20}})
    assert "differ in size (10, 20)" in check_comparable([a, more])[0]


def test_a_file_that_is_no_report_is_named(tmp_path):
    for text in ('{"figures": {"x": 3}}', "[" * 100_000):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"report\.json: not a report of this version"):
            read_report(tmp_path)
    (tmp_path / "report.json").write_text(
        json.dumps({"figures": {"frechet.x": {"value": 1.0}}, "verdicts": [{"part": "quality", "level": "good"}], "compared": COMPARED})
    )
    assert read_report(tmp_path).figures == {"frechet.x": Figure(1.0)}


def test_a_name_cannot_break_the_table():
    text = to_markdown(to_table([report("a|b", frechet_x=nearer(1.0)), report("c", frechet_x=nearer(2.0, 1.0, 3.0))]), ["one"])
    assert "a\\|b" in text
    assert "2 (1 to 3)" in text


def test_a_name_cannot_become_markup():
    hostile = report("<script>alert(1)</script>", verdicts={"<i>part": "<i>level"}, **{"frechet_<b>x": nearer(1.0)})
    page = comparison_page([hostile, report("b", **{"frechet_<b>x": nearer(2.0)})], ["<b>a sentence</b>"])
    assert "&lt;script&gt;alert(1)" in page
    for markup in ("<script", "<b>", "<i>"):
        assert markup not in page


FIGURES = {
    "detector.delta.sensitivity": Figure(0.02, -0.01, 0.05, "higher"),
    "frechet.inception-v3": Figure(12.0),
    "class.a/b.frechet.torchscript:net": Figure(4.0),
}


@pytest.mark.parametrize(
    ("gate", "fails"),
    [
        ("detector.delta.recall < 0", False), ("detector.delta.recall.low < 0", True), ("detector.delta.sensitivity<=0.02", True),
        ("fid > 10", True), ("fid > 12", False), ("fid >= 12", True), ("verdict.quality != good", False), ("verdict.quality == good", True),
        ("memorisation.copies > 0", True), ("class.a/b.frechet.torchscript:net > 3", True), ("frechet.inception-v3.low > 0", True),
    ],
)  # fmt: skip
def test_gates(gate, fails):
    assert bool(Gate.parse(gate).fails(FIGURES, {"quality": "good"})) == fails


def test_a_gate_on_what_was_not_measured_says_what_there_is():
    assert "not measured; report.json has, under figures, 3 that were, such as detector.delta.sensitivity" in Gate.parse(
        "memorisation.copies > 0"
    ).fails(FIGURES, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fid",
        "fid >",
        "> 3",
        "fid > good",
        "verdict.quality < bad",
        "verdict.nothing == bad",
        "fid = 3",
        "frechet > 3",
        "memorization.copies > 0",
        "detector.delta.recal < 0",
    ],
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ValueError, match="--fail-if"):
        Gate.parse(text)
