"""What seeds are drawn for: it follows from each seed alone, keeps to its shares, and imitates the lesions it is told to."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from gan.conditions import Conditions
from gan.orders import Likeness, Orders, Request, check_request, missing, orders, seed_of, which_model

PLAIN, CLASSES, BOTH = Conditions(), Conditions(("ggo", "solid", "cystic")), Conditions(("ggo", "solid", "cystic"), diameter=True)
SIZES = Conditions(diameter=True)
ABOUT = {"class_counts": {"solid": 60, "ggo": 30, "cystic": 10}, "diameter_deciles_mm": [4.0, 5.0, 6.0, 6.5, 7.0, 8.0, 10.0, 14.0, 20.0]}
SPACING = (1.0, 1.0)
GOLDEN = 0x9E3779B97F4A7C15

seed_lists = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30, unique=True)


def likeness(count=60, seed=0, names=("ggo", "solid", "cystic"), unmeasured=0.1) -> Likeness:
    """No two of them are listed alike, so a listed diameter names its row."""
    draws = np.random.default_rng(seed)
    measured = draws.uniform(3, 20, count)
    measured[draws.random(count) < unmeasured] = np.nan
    return Likeness(draws.choice(names, count), draws.permutation(np.linspace(3, 20, count)), measured)


LIKE = likeness()
REQUESTS = [
    Request(), Request("balanced"), Request("solid"), Request(between_mm=(6, 12)), Request("ggo", (8, 8)), Request(like=LIKE),
    Request("solid", like=LIKE), Request("balanced", (6, 12), LIKE),
]  # fmt: skip


def asked(request, conditions, seeds, first=0, about=ABOUT, spacing=SPACING) -> Orders:
    return orders(request, conditions, about, spacing, seeds, first)


def as_rows(found: Orders) -> list[tuple]:
    """One tuple a sample, equal where all that was ordered is."""
    numbers = np.stack([found.asked_mm, found.low_mm, found.high_mm], axis=1)
    return [(label, *row.tobytes()) for label, row in zip(found.labels.tolist(), numbers, strict=True)]


# --- which model draws a seed ---


def test_the_first_lesion_of_a_series_is_its_seeds_own_sample_and_the_rest_are_nobodys():
    seeds = [seed_of(seed, number) for seed in range(20) for number in range(1, 21)]
    assert seeds[::20] == list(range(20))
    assert len(set(seeds)) == 400
    assert min(set(seeds) - set(range(20))) > 2**32


@given(seed_lists | st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30), st.lists(st.integers(1, 50), min_size=1, max_size=5))
@example([0, 2**63, 2**64 - 1], [1, 1])
def test_a_models_part_is_found_as_with_whole_numbers(seeds, shares):
    found = which_model(seeds, shares)
    ends = [Fraction(sum(shares[: n + 1]), sum(shares)) for n in range(len(shares))]
    for seed, model in zip(seeds, found.tolist(), strict=True):
        place = Fraction(seed * GOLDEN % 2**64, 2**64)
        if min(abs(place - end) for end in ends) > 1e-12:  # nearer than that, the last digits decide
            assert model == next(n for n, end in enumerate(ends) if place < end)
        assert 0 <= model < len(shares)


@given(st.integers(0, 2**63), st.integers(1, 3000), st.lists(st.floats(0.05, 1), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_every_run_of_seeds_has_the_shares_within_a_few(start, count, shares):
    found = np.bincount(which_model(range(start, start + count), shares), minlength=len(shares))
    np.testing.assert_allclose(found, count * np.array(shares) / sum(shares), atol=4)


def test_shares_are_relative_and_a_seeds_model_does_not_depend_on_its_neighbours():
    whole = which_model(range(1000), [2, 1])
    np.testing.assert_array_equal(whole, which_model(range(1000), [200.0, 100.0]))
    some = np.random.default_rng(0).permutation(1000)[:100]
    np.testing.assert_array_equal(which_model(some.tolist(), [2, 1]), whole[some])


# --- what follows from the seed ---


@pytest.mark.parametrize("conditions", [PLAIN, CLASSES, SIZES, BOTH], ids=["plain", "classes", "sizes", "both"])
@pytest.mark.parametrize("number", range(len(REQUESTS)))
@given(seed_lists, st.randoms(use_true_random=False), st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_orders_follow_from_each_seed_alone(number, conditions, seeds, random, first):
    whole = dict(zip(seeds, as_rows(asked(REQUESTS[number], conditions, seeds)), strict=True))
    some = random.sample(seeds, random.randint(1, len(seeds)))
    assert as_rows(asked(REQUESTS[number], conditions, some, first)) == [whole[seed] for seed in some]


def test_classes_come_as_often_as_in_training_or_equally_often():
    def shares(request, about=ABOUT):
        counts = Counter(asked(request, CLASSES, range(3000), about=about).labels.tolist())
        return [counts[name] / 3000 for name in CLASSES.classes]

    natural, equal = [0.3, 0.6, 0.1], [1 / 3] * 3
    assert shares(Request()) == pytest.approx(natural, abs=0.03)
    assert shares(Request("balanced")) == pytest.approx(equal, abs=0.03)
    assert shares(Request(), {}) == pytest.approx(equal, abs=0.03)  # of a private run, how often is not known
    assert shares(Request("solid")) == [0, 1, 0]
    assert set(asked(Request(), PLAIN, range(5)).labels.tolist()) == {""}


def test_diameters_asked_for_are_spread_as_in_training():
    deciles = ABOUT["diameter_deciles_mm"]
    mm = asked(Request(), BOTH, range(2000)).asked_mm
    assert stats.kstest(mm, lambda x: np.interp(x, deciles, np.linspace(0, 1, 9))).pvalue > 1e-3
    unknown = asked(Request(), BOTH, range(2000), about={}).asked_mm
    assert stats.kstest(unknown, stats.uniform(5, 15).cdf).pvalue > 1e-3
    assert np.isnan(asked(Request(), CLASSES, range(9)).asked_mm).all()


def test_a_range_is_asked_for_and_measured():
    found = asked(Request(between_mm=(6, 12)), BOTH, range(500))
    assert stats.kstest(found.asked_mm, stats.uniform(6, 6).cdf).pvalue > 1e-3
    assert set(found.low_mm) == {6}
    assert set(found.high_mm) == {12}
    without = asked(Request(between_mm=(6, 12)), CLASSES, range(9))  # a model that cannot be asked is measured all the same
    assert np.isnan(without.asked_mm).all()
    assert (set(without.low_mm), set(without.high_mm)) == ({6}, {12})
    anything = asked(Request(), BOTH, range(9))
    assert (set(anything.low_mm), set(anything.high_mm)) == ({-np.inf}, {np.inf})


@pytest.mark.parametrize(
    ("spacing", "room"), [((1.0, 1.0), 2.0), ((3.0, 1.0, 1.0), 3.0), (None, 2.0)], ids=["a fifth", "a voxel", "unknown"]
)
def test_one_diameter_is_a_fifth_or_a_voxel_wide(spacing, room):
    found = asked(Request(between_mm=(10, 10)), SIZES, range(9), spacing=spacing)
    assert (set(found.asked_mm), set(found.low_mm), set(found.high_mm)) == ({10}, {10 - room}, {10 + room})


def test_an_order_in_words():
    found = asked(Request("solid", (6, 12)), BOTH, [7])
    assert found.words(0, 7) == "seed 7, solid, measured 6.0 to 12.0 mm"
    assert asked(Request(), PLAIN, [3]).words(0, 3) == "seed 3"


def test_an_order_becomes_the_models_condition():
    found = asked(Request("balanced", (6, 12)), BOTH, range(20))
    rows = np.array([3, 11])
    np.testing.assert_array_equal(found.condition(BOTH, rows), BOTH.encode(found.labels[rows].tolist(), found.asked_mm[rows]))
    assert asked(Request(), PLAIN, range(20)).condition(PLAIN, rows) is None


# --- lesions to fill up to, and to imitate ---


def test_what_is_missing_is_counted_class_by_class_the_rarest_first():
    like = Likeness(np.repeat(["ggo", "solid", "cystic"], [30, 50, 7]), np.full(87, np.nan), np.full(87, np.nan))
    assert list(missing(like, 40, CLASSES).items()) == [("cystic", 33), ("ggo", 10)]
    assert missing(like, 40, PLAIN) == {"": 43}
    found = asked(Request(like=like, fill=missing(like, 40, SIZES)), SIZES, range(43))
    assert found.labels.tolist() == [""] * 43
    for wanted in (7, 0, -3):
        with pytest.raises(ValueError, match=f"--fill {wanted}: nothing is missing, there are 7 cystic, 30 ggo, 50 solid"):
            missing(like, wanted, CLASSES)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.booleans(),
    st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_filling_is_exact_in_any_parts(counts, sizes, imitated, start):
    fill = dict(zip(("cystic", "ggo", "solid"), counts, strict=False))
    request, total = Request(like=LIKE if imitated else None, fill=fill), sum(counts)
    seeds = range(start, start + total)
    whole = asked(request, BOTH, seeds)
    assert Counter(whole.labels.tolist()) == fill
    found, first = [], 0
    while first < total:
        size = sizes[len(found) % len(sizes)]
        found += as_rows(asked(request, BOTH, seeds[first : first + size], first))
        first = len(found)
    assert found == as_rows(whole)


@pytest.mark.parametrize("request_", [Request(like=LIKE), Request("solid", like=LIKE), Request("balanced", like=LIKE),
                                      Request(like=LIKE, fill={"cystic": 300, "ggo": 100})],
                         ids=["as they are", "one class", "balanced", "filled"])  # fmt: skip
def test_a_lesion_to_imitate_has_the_class_and_its_own_window(request_):
    seeds = range(400)
    found = asked(request_, BOTH, seeds)
    rows = np.array([np.flatnonzero(LIKE.listed_mm == mm).item() for mm in found.asked_mm])
    np.testing.assert_array_equal(LIKE.labels[rows], found.labels)
    measured = LIKE.measured_mm[rows]
    known, room = np.isfinite(measured), np.maximum(0.2 * measured, 1.0)
    assert 0 < known.sum() < len(seeds)
    np.testing.assert_array_equal(found.low_mm, np.where(known, measured - room, -np.inf))
    np.testing.assert_array_equal(found.high_mm, np.where(known, measured + room, np.inf))
    if request_.label == "natural" and request_.fill is None:
        for name in BOTH.classes:
            assert np.mean(found.labels == name) == pytest.approx(np.mean(LIKE.labels == name), abs=0.08)
    for name in np.unique(found.labels):  # every lesion of a class is as likely to be imitated
        of_class, drawn = np.flatnonzero(LIKE.labels == name), rows[found.labels == name]
        counts = [np.sum(drawn == row) for row in of_class]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_a_model_without_classes_imitates_diameters_and_names_none():
    """What it draws is of the one class that it was trained on, whatever the lesions to imitate are called."""
    for like in (LIKE, likeness(names=("tumour",))):
        found = asked(Request(like=like), SIZES, range(50))
        assert set(found.asked_mm) <= set(like.listed_mm)
        assert set(found.labels.tolist()) == {""}


def test_measured_diameters_bind_a_model_that_cannot_be_asked_for_one():
    found = asked(Request(like=likeness(unmeasured=0)), CLASSES, range(50))
    assert np.isnan(found.asked_mm).all()
    assert np.isfinite(found.low_mm).all()


@pytest.mark.parametrize(
    ("request_", "conditions", "cause"),
    [
        (Request("cyst"), BOTH, "class cyst: this model can be asked for ggo, solid, cystic"),
        (Request("solid"), PLAIN, "class solid: this model can be asked for no class"),
        (Request(fill={"solid": 3, "cyst": 1}), CLASSES, "class cyst: this model can be asked for"),
        (Request("cystic", like=likeness(names=("ggo", "solid"))), BOTH, "class cystic: there is no lesion of it to match"),
        (Request(like=likeness(names=("ggo", "cyst"))), BOTH, "class cyst is among the lesions to match; this model can be asked for"),
    ],
)
def test_what_cannot_be_asked_for_is_said(request_, conditions, cause):
    with pytest.raises(ValueError, match=cause):
        check_request(request_, conditions)


def test_what_can_be_asked_for_passes():
    for request in (*REQUESTS, Request(like=likeness(names=("solid", "cyst")), label="solid")):
        check_request(request, BOTH)
    check_request(Request(like=likeness(names=("cyst", "tumour"))), SIZES)
