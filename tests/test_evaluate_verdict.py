"""The rules of the verdicts, each on a report made by hand, on both sides of its threshold."""

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.artefacts import Artefacts, Band, Checkerboard, NoisePower
from evaluate.attributes import AttributeTest, ClassTest
from evaluate.gray_levels import EndShare, GrayLevels, GrayMap, WindowEnds
from evaluate.intervals import Floor, Interval
from evaluate.key_figures import Figure, Gate, _of_distance
from evaluate.membership import Membership
from evaluate.memorisation import Share
from evaluate.report import Compared, ConfusedClass, Copied, DetectorResult, Distance, Measure, MemorisationResult, Report, SetSize
from evaluate.report_text import in_lines, to_markdown
from evaluate.scores import Difference, MetricSummary
from evaluate.verdict import HEADLINES, FindingName, Level, Part, verdicts_of

WINDOW = (-1000.0, 400.0)
MEASURE = Measure("radiomics", None, WINDOW, "none", 44, True)
SECOND = replace(MEASURE, extractor="simclr", weights_sha256="c" * 64)
GUARANTEE = "This run is differentially private with epsilon 4."
HALF = Interval(0.4, 0.6)
COPY = Copied("seed3", "train9", False, 0.1, 1e-5, "mirrored, 21 HU apart")
BAND = Band(0.0, 0.5, 100.0, 100.0, 1.0, Interval(0.9, 1.1), 2.0, 0.25, 0.2)


def above(value):
    return math.nextafter(value, math.inf)


def below(value):
    return math.nextafter(value, -math.inf)


def distance(metric="frechet", synthetic=1.0, measure=MEASURE, reference="held-out", floor=None):
    """Real halves are 1 (0.5 to 1.5) apart; for shares, 0.8 (0.7 to 0.9)."""
    usual = (
        Floor(1.0, 0.5, 1.5, 40, synthetic) if metric not in ("precision", "recall", "coverage") else Floor(0.8, 0.7, 0.9, 40, synthetic)
    )
    return Distance(metric, measure, reference, 80, 20, 100, synthetic, Interval(0, 9), floor or usual)


def artefacts(bands=(BAND,), ends=(), **differs):
    """Checks by name, all of them clean unless said otherwise."""
    say = {name: differs.get(name, False) for name in ("checkerboard", "noise_power", "window_ends", "gray_map", "gray_levels")}
    return Artefacts(
        checkerboard=Checkerboard((), say["checkerboard"], "At 0.5 cycles a pixel."),
        noise_power=NoisePower(tuple(bands), say["noise_power"], "Between 0 and 0.5 cycles/mm."),
        window_ends=WindowEnds(tuple(ends), say["window_ends"], "At 400 HU or above."),
        gray_map=GrayMap(1, 0.1, 0, 0, 5, (), say["gray_map"], "Synthetic HU = real HU."),
        gray_levels=GrayLevels(1400, 1400, 1, 1, 2, 0, 0, 0.1, say["gray_levels"], "Real voxels take 1400 distinct HU."),
        real_patches=80, real_patients=20, synthetic_patches=100, halvings=100,
    )  # fmt: skip


def detector(low=0.01, high=0.05, **changes):
    gain = Difference(0.03, Interval(low, high))
    row = {name: MetricSummary(0.9, 0.01) for name in ("auroc", "sensitivity", "balanced_accuracy")}
    known = {
        "arms": {"real+classic": row, "real+classic+synthetic": row}, "compared_with": {"real+classic+synthetic": "real+classic"},
        "differences": {"real+classic+synthetic": dict.fromkeys(row, gain)}, "classes": {}, "shares": {"real+classic+synthetic": 0.5},
        "headline": "real+classic+synthetic", "headline_chosen_by": "the only share asked for", "validation_auroc": {}, "network": "small",
        "seeds": 5, "steps": 900, "balance": "patients", "threshold": "youden", "threshold_from": "validation patients", "test_patients": 20,
        "test_lesions": 80, "test_lesion_free": 80, "notes": (),
    }  # fmt: skip
    return DetectorResult(**{**known, **changes})


FLAWLESS = Report(
    compared=Compared(
        SetSize(100, 25), SetSize(80, 20), "test split", SetSize(100, 100), (16, 16), (0.7, 0.7), WINDOW, "HU", "a" * 64, "b" * 64, 0
    ),
    distances=(distance(), distance("coverage", 0.8), distance("recall", 0.8), distance(measure=SECOND)),
    classes=(),
    confused=(),
    attributes=(AttributeTest("diameter_mm", "diameter (mm)", 8, 9, 80, 100, 0.1, 1, 0.2, 0.8),),
    class_shares=ClassTest((("nodule", 80, 100),), None, 0, None, None, "one class"),
    artefacts=artefacts(),
    memorisation=MemorisationResult(
        duplicates=(), copies=(), held_out_copies=(), repeats=0, control_patients=20, authenticity=0.7, authenticity_held_out=0.7,
        nearer_to_training=Share(0.5, HALF), nearer_to_half=Share(0.5, HALF), compared_patches=80,
        membership=Membership(0.5, HALF, math.nan, 100, 80, "fewer than 100 held-out patches"), data_copying=None, suspects=(), controls=(),
    ),
    detector=detector(),
    privacy=GUARANTEE,
    guaranteed=True,
    kernel_over_subsets=None,
    notes=(),
)  # fmt: skip


def verdict(report, part):
    return next(one for one in verdicts_of(report) if one.part == part)


def names(report, part):
    return [one.name for one in verdict(report, part).findings]


def doubts(report, part):
    return " ".join(verdict(report, part).doubt)


def with_distances(*more):
    return lambda report: replace(report, distances=(*report.distances, *more))


def with_artefacts(**changes):
    return lambda report: replace(report, artefacts=artefacts(**changes))


def with_memorisation(**changes):
    return lambda r: r if isinstance(r.memorisation, str) else replace(r, memorisation=replace(r.memorisation, **changes))


def with_p(p_holm):
    return lambda report: replace(report, attributes=tuple(replace(one, p_holm=p_holm) for one in report.attributes))


def saturated(synthetic, excess, real=0.0):
    return with_artefacts(window_ends=excess > 1, ends=[EndShare("at 400 HU or above", real, synthetic, excess)])


def noise(**band):
    return with_artefacts(noise_power=True, bands=[BAND, replace(BAND, **band)])


def test_a_flawless_report_is_good_in_all_parts():
    assert [(one.part, one.level, one.findings) for one in verdicts_of(FLAWLESS)] == [(part, "good", ()) for part in get_args(Part)]
    assert verdict(FLAWLESS, "quality").doubt == ()


def test_every_part_has_a_headline_at_every_level():
    assert set(HEADLINES) == set(product(get_args(Part), get_args(Level)))
    assert all(HEADLINES.values())


SHARES = [
    (name, part, severe, change)
    for metric in ("coverage", "recall")
    for name, part, severe, change in (
        ("less_variety", "quality", False, with_distances(distance(metric, below(0.7)))),
        ("less_variety", "quality", False, with_distances(distance(metric, 0.4))),
        ("little_variety", "quality", True, with_distances(distance(metric, below(0.4)))),
    )
]
FOUND = [
    ("apart", "quality", False, with_distances(distance(synthetic=above(1.5)))),
    ("apart", "quality", False, with_distances(distance(synthetic=3.0))),
    ("far", "quality", True, with_distances(distance(synthetic=above(3.0)))),
    ("far", "quality", True, with_distances(distance(floor=Floor(0.0, 0.0, 0.0, 40, 1e-6)))),
    *SHARES,
    ("classes_swapped", "quality", True, lambda r: replace(r, confused=(ConfusedClass("solid", "cystic", 9.0, 2.0),))),
    ("smooth", "quality", True, noise(ratio=0.3)),
    ("noisy", "quality", True, noise(ratio=3.0)),
    ("smooth", "quality", True, noise(ratio=1.9, quiet=0.9)),
    ("noisy", "quality", True, noise(ratio=0.6, quiet=0.0)),
    ("checkerboard", "quality", True, with_artefacts(checkerboard=True)),
    ("duplicates", "quality", False, with_memorisation(duplicates=(COPY,))),
    ("wrong_hu", "quality", True, with_artefacts(gray_map=True)),
    ("gray_steps", "quality", True, with_artefacts(gray_levels=True)),
    ("saturated", "quality", False, saturated(above(0.005), above(1.0))),
    ("saturated", "quality", False, saturated(0.0, 2.0, real=0.01)),
    ("attributes", "quality", False, with_p(below(0.05))),
    ("repeats", "quality", True, with_memorisation(repeats=1)),
    ("copies_of_held_out", "quality", True, with_memorisation(held_out_copies=(COPY,))),
    ("copies_of_held_out", "privacy", True, with_memorisation(held_out_copies=(COPY,))),
    ("copies_of_held_out", "memorisation", True, with_memorisation(held_out_copies=(COPY,))),
    ("copies_of_training", "memorisation", True, with_memorisation(copies=(COPY,))),
    ("copies_of_training", "privacy", True, with_memorisation(copies=(COPY,))),
    ("membership", "memorisation", False, with_memorisation(membership=Membership(0.6, Interval(above(0.5), 0.7), 0.01, 100, 80, "few"))),
    ("nearer_to_training", "memorisation", False, with_memorisation(nearer_to_training=Share(0.7, Interval(above(0.6), 0.8)))),
    ("no_guarantee", "privacy", False, lambda r: replace(r, privacy="no guarantee: trained without", guaranteed=False)),
]
"""name, part, severe, change: all that can be found, each just beyond its threshold."""


@pytest.mark.parametrize(("name", "part", "severe", "change"), FOUND)
def test_a_finding_is_made_where_its_rule_says_so(name, part, severe, change):
    found = verdict(change(FLAWLESS), part)
    assert [(one.name, one.severe) for one in found.findings] == [(name, severe)]
    assert found.level == ("bad" if severe else "doubt")
    assert found.headline == HEADLINES[part, found.level]


def test_every_name_of_a_finding_is_one_that_can_be_found():
    assert {name for name, *_ in FOUND} == set(get_args(FindingName))


@pytest.mark.parametrize(
    "change",
    [
        with_distances(distance(synthetic=1.5)), with_distances(distance("coverage", 0.7)), with_distances(distance("recall", 0.7)),
        with_distances(distance("precision", 0.1)), with_distances(distance("kernel", 99.0)),
        with_distances(distance(synthetic=99.0, reference="training")),
        with_distances(distance(floor=Floor(0.0, 0.0, 0.0, 40, 0.0))),
        saturated(0.005, 9.0), saturated(0.5, 1.0), with_artefacts(bands=[replace(BAND, ratio=9.0)]), with_p(0.05),
        with_memorisation(membership=Membership(0.6, Interval(0.5, 0.7), 0.01, 100, 80, "few")),
        with_memorisation(nearer_to_training=Share(0.7, Interval(0.6, 0.8))),
        with_memorisation(nearer_to_training=Share(0.1, Interval(0.0, 0.2))),
    ],
)  # fmt: skip
def test_nothing_is_found_just_before_its_threshold(change):
    assert [one.findings for one in verdicts_of(change(FLAWLESS))] == [(), (), (), ()]


@given(
    st.sets(st.sampled_from(range(len(FOUND))), max_size=6), st.sampled_from([n for n, one in enumerate(FOUND) if one[2]]), st.booleans()
)
def test_a_severe_finding_never_makes_a_verdict_better(others, severe, judged):
    rank = {"unknown": 0, "good": 0, "doubt": 1, "bad": 2}
    report = FLAWLESS if judged else replace(FLAWLESS, compared=replace(FLAWLESS.compared, held_out=None))
    for n in sorted(others):
        report = FOUND[n][3](report)
    worse = with_all_of(report, FOUND[severe][3])
    for before, after in zip(verdicts_of(report), verdicts_of(worse), strict=True):
        assert rank[after.level] >= rank[before.level]
        assert (before.level == "unknown") == (after.level == "unknown")
    if judged:
        assert verdict(worse, FOUND[severe][1]).level == "bad"


def with_all_of(report, change):
    """The report with what the change brings, and the artefacts it had before."""
    changed = change(report)
    if changed.artefacts is report.artefacts:
        return changed
    old, new = report.artefacts, changed.artefacts
    checks = ("checkerboard", "noise_power", "window_ends", "gray_map", "gray_levels")
    kept = {name: getattr(old, name) for name in checks if not getattr(new, name).differs}
    return replace(changed, artefacts=replace(new, **kept))


def test_without_held_out_patients_or_a_floor_quality_is_unknown():
    alone = replace(FLAWLESS, compared=replace(FLAWLESS.compared, held_out=None))
    assert verdict(alone, "quality").level == "unknown"
    assert "no held-out patients" in doubts(alone, "quality")
    no_floor = replace(FLAWLESS, distances=(distance(floor="one patient"),))
    assert verdict(no_floor, "quality").level == "unknown"
    assert "too few held-out patients" in doubts(no_floor, "quality")
    lonely = with_memorisation(membership=None, nearer_to_training=None, nearer_to_half=None)(alone)
    assert verdict(lonely, "memorisation").level == "good"
    assert "Without held-out patients" in doubts(lonely, "memorisation")


def test_what_weakens_a_verdict_of_quality_is_said():
    few = replace(FLAWLESS, compared=replace(FLAWLESS.compared, held_out=SetSize(80, 19)))
    assert "only 19" in doubts(few, "quality")
    assert "one family of features (radiomics)" in doubts(replace(FLAWLESS, distances=FLAWLESS.distances[:3]), "quality")
    assert "not looked for: too few" in doubts(replace(FLAWLESS, artefacts="too few"), "quality")
    assert any("No checkerboard" in one for one in verdict(FLAWLESS, "quality").evidence)
    assert not any("No checkerboard" in one for one in verdict(replace(FLAWLESS, artefacts="too few"), "quality").evidence)


def test_duplicates_are_warned_about_wherever_held_out_patients_count():
    report = with_memorisation(duplicates=(COPY, COPY))(FLAWLESS)
    assert verdict(report, "quality").level == "doubt"
    assert "shows: 2." in verdict(report, "quality").findings[0].sentence
    assert "shows: 2." in doubts(report, "memorisation")
    assert verdict(FLAWLESS, "quality").level == "good"
    assert "shows" not in doubts(FLAWLESS, "memorisation")


def test_too_little_to_judge_by_gives_no_good_verdict():
    for patches, level in ((19, "unknown"), (20, "good")):
        few = replace(FLAWLESS, compared=replace(FLAWLESS.compared, synthetic=SetSize(patches, patches)))
        assert verdict(few, "quality").level == level
    assert verdict(replace(FLAWLESS, detector=detector(seeds=2)), "usefulness").level == verdict(FLAWLESS, "usefulness").level == "good"
    assert verdict(replace(FLAWLESS, detector=detector(seeds=1)), "usefulness").level == "doubt"


def test_copies_say_how_many_are_exact_and_which_is_nearest():
    copies = (replace(COPY, exact=True, misfit=0.0, how="voxel for voxel"), COPY, COPY)
    sentence = verdict(with_memorisation(copies=copies)(FLAWLESS), "memorisation").findings[0].sentence
    assert "shows: 3, 1 of them voxel for voxel. The nearest: seed3 is train9, voxel for voxel." in sentence
    assert "false alarm" not in doubts(with_memorisation(copies=copies)(FLAWLESS), "memorisation")
    assert "false alarm" in doubts(with_memorisation(copies=(COPY,))(FLAWLESS), "memorisation")


def test_few_patients_cannot_tell_copies_from_chance():
    assert "are needed" in doubts(with_memorisation(control_patients=19)(FLAWLESS), "memorisation")
    assert "are needed" not in doubts(FLAWLESS, "memorisation")


@pytest.mark.parametrize(
    ("low", "high", "level"),
    [(above(0.0), 0.1, "good"), (0.0, 0.1, "doubt"), (-0.1, 0.0, "doubt"), (-0.1, below(0.0), "bad")],
)
def test_usefulness_is_what_the_interval_of_auroc_says(low, high, level):
    report = replace(FLAWLESS, detector=detector(low, high))
    assert verdict(report, "usefulness").level == level
    other = dict.fromkeys(("sensitivity", "balanced_accuracy"), Difference(-0.5, Interval(-0.6, -0.4)))
    found = detector(low, high)
    arm = {"real+classic+synthetic": {**found.differences["real+classic+synthetic"], **other}}
    assert verdict(replace(report, detector=replace(found, differences=arm)), "usefulness").level == level


def test_usefulness_without_a_detector_or_an_interval_is_unknown():
    nothing = replace(FLAWLESS, detector="not asked for")
    assert verdict(nothing, "usefulness").level == "unknown"
    assert "not asked for" in doubts(nothing, "usefulness")
    assert verdict(replace(FLAWLESS, detector=detector(headline=None)), "usefulness").level == "unknown"
    missing = {"real+classic+synthetic": dict.fromkeys(("auroc", "sensitivity", "balanced_accuracy"), Difference(0.5, "one patient"))}
    report = replace(FLAWLESS, detector=detector(differences=missing))
    assert verdict(report, "usefulness").level == "unknown"
    assert "no interval: one patient" in doubts(report, "usefulness")


def test_few_trainings_are_said():
    assert "detector: 4." in doubts(replace(FLAWLESS, detector=detector(seeds=4)), "usefulness")
    assert "Trainings" not in doubts(FLAWLESS, "usefulness")


@pytest.mark.parametrize(
    ("privacy", "guaranteed", "copies", "level"),
    [
        (GUARANTEE, True, (), "good"), ("no guarantee: trained without", False, (), "doubt"), ("", False, (), "unknown"),
        (GUARANTEE, True, (COPY,), "bad"), ("no guarantee: trained without", False, (COPY,), "bad"), ("", False, (COPY,), "bad"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whose", ["copies", "held_out_copies"])
def test_privacy_is_a_guarantee_that_no_copy_contradicts(privacy, guaranteed, copies, level, whose):
    report = replace(with_memorisation(**{whose: copies})(FLAWLESS), privacy=privacy, guaranteed=guaranteed)
    found = verdict(report, "privacy")
    assert found.level == level
    assert (GUARANTEE in found.evidence) == guaranteed
    assert any("although a guarantee" in one.sentence for one in found.findings) == bool(guaranteed and copies)


def test_copies_that_nobody_looked_for_are_not_said_to_be_absent():
    report = replace(FLAWLESS, memorisation="fewer than 2 training patches to compare with")
    assert verdict(report, "memorisation").level == "unknown"
    for privacy, guaranteed in ((GUARANTEE, True), ("no guarantee: trained without", False), ("", False)):
        said = doubts(replace(report, privacy=privacy, guaranteed=guaranteed), "privacy")
        assert "not looked for" in said
        assert "no copies were found" not in said.lower()


def test_sentences_are_sentences_without_markup():
    reports = [FLAWLESS, *(change(FLAWLESS) for *_, change in FOUND)]
    reports += [replace(FLAWLESS, detector="none", memorisation="none", artefacts="none", privacy="", guaranteed=False)]
    reports += [with_memorisation(duplicates=(COPY,), control_patients=3, membership=None)(replace(FLAWLESS, detector=detector(seeds=1)))]
    for one in [one for report in reports for one in verdicts_of(report)]:
        for sentence in (*(found.sentence for found in one.findings), *one.evidence, *one.doubt):
            assert sentence[0].isupper() or sentence.startswith(tuple("0123456789"))
            assert sentence.endswith(".")
            assert not set("`*<>_") & set(sentence.replace("real+classic", ""))
            assert "inf" not in sentence.split()


def test_what_a_verdict_says_stands_in_every_form_of_the_report():
    report = with_memorisation(copies=(COPY,))(FLAWLESS)
    lines, markdown = list(in_lines(report)), to_markdown(report)
    for one in verdicts_of(report):
        assert f"\n{one.part.upper()}: {one.headline}" in lines
        assert f"## {one.part.capitalize()}: {one.headline}" in markdown
        for sentence in (*(found.sentence for found in one.findings), *one.evidence, *(f"Caution: {doubt}" for doubt in one.doubt)):
            assert f"  - {sentence}" in lines
            assert f"- {sentence}\n" in markdown


@pytest.mark.parametrize("text", ["verdict.quality == bda", "verdict.quality != Good", "frechet.radiomics > nan"])
def test_a_gate_that_could_never_close_or_open_is_refused(text):
    with pytest.raises(ValueError, match="is no"):
        Gate.parse(text)


@pytest.mark.parametrize(("metric", "better"), [("frechet", "lower"), ("coverage", "higher"), ("density", "neither")])
def test_a_distance_is_a_figure_beside_its_floor_at_the_same_size(metric, better):
    floor = Floor(1.25, 0.5, 1.5, 40, 2.5)
    found = dict(_of_distance("x", replace(distance(metric, floor=floor), value=9.0)))
    assert found.pop("x") == Figure(9.0, 0, 9, better)
    assert found == ({"x.over_floor": Figure(2.0, better="lower")} if better == "lower" else {})
    near_0 = distance(metric, floor=replace(floor, low=-0.1))  # an unbiased kernel distance has such floors: no number of times
    assert list(dict(_of_distance("x", near_0))) == ["x"]


def test_a_figure_that_is_no_number_fails_its_gate():
    assert "not measured" in Gate.parse("frechet.radiomics > 3").fails({"frechet.radiomics": Figure(math.nan)}, {})
