"""What a patch is drawn for, as numbers: against numbers worked out by hand, and properties."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.conditions import KNOTS_MM, Conditions, drawing_weights

BOTH = Conditions(("ggo", "solid"), diameter=True)


def test_size_counts_classes_and_knots():
    assert [c.size for c in (Conditions(), Conditions(("a", "b")), Conditions(diameter=True), BOTH)] == [0, 2, 5, 7]
    assert Conditions().encode(["solid"], [8.0]).shape == (1, 0)


def test_encoding_worked_out_by_hand():
    found = BOTH.encode(["solid", "ggo", "solid", "ggo"], [6.0, 6 * 2**0.5, 1.0, 1000.0])
    expected = [[0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 0.5, 0.5, 0, 0], [0, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


@given(st.lists(st.floats(0.01, 500), min_size=1, max_size=20))
def test_shares_of_a_diameter_sum_to_one_and_give_it_back(diameters):
    shares = Conditions(diameter=True).encode([""] * len(diameters), diameters)
    assert (shares >= 0).all()
    assert ((shares > 0).sum(1) <= 2).all()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    given_back = np.exp(shares @ np.log(KNOTS_MM))  # a curve linear in log diameter is linear in the shares
    np.testing.assert_allclose(given_back, np.clip(diameters, KNOTS_MM[0], KNOTS_MM[-1]), rtol=1e-4)


def test_an_unknown_diameter_has_zeros_and_its_class():
    np.testing.assert_array_equal(BOTH.encode(["ggo", "ggo"], [math.nan, 3.0]), [[1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(Conditions(diameter=True).encode(["x"], np.array([math.nan])), np.zeros((1, 5)))


def test_an_unknown_class_is_named():
    with pytest.raises(ValueError, match="class 'cyst' is not one of ggo, solid"):
        BOTH.encode(["solid", "cyst"], [3.0, 3.0])


def test_conditions_come_back_from_a_checkpoint():
    assert Conditions.of({"classes": ["ggo", "solid"], "diameter": True}) == BOTH
    assert Conditions.of({}) == Conditions()


def test_drawing_weights_worked_out_by_hand():
    labels = np.array(["a"] * 16 + ["b"] * 4 + ["c"])
    assert drawing_weights(labels, 0.0) is None
    assert drawing_weights(labels[:16], 1.0) is None  # of one class, all are equal
    each = {1.0: [1 / 48, 1 / 12, 1 / 3], 0.5: [1 / 4 / 7, 1 / 2 / 7, 1 / 7]}  # 1 : 1 : 1, and 4 : 2 : 1
    for balance, expected in each.items():
        np.testing.assert_allclose(drawing_weights(labels, balance), np.repeat(expected, [16, 4, 1]), rtol=1e-12)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=50), st.floats(0, 1))
def test_drawing_weights_are_chances_and_favour_the_rare(labels, balance):
    weights = drawing_weights(np.array(labels), balance)
    if weights is None:
        return
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    counts = sorted((labels.count(name), weights[labels.index(name)]) for name in set(labels))
    for (few, weight), (many, lighter) in pairwise(counts):
        assert lighter <= weight
        assert many * lighter / (few * weight) == pytest.approx((many / few) ** (1 - balance), rel=1e-9)


def test_told_by_the_support_a_diameter_is_asked_for_but_not_in_numbers():
    seen = Conditions(("ggo", "solid"), diameter=True, by_support=True)
    assert (seen.size, Conditions(diameter=True, by_support=True).size) == (2, 0)
    np.testing.assert_array_equal(seen.encode(["solid"], np.array([8.0])), [[0, 1]])
    assert Conditions.of({"classes": ["ggo", "solid"], "diameter": True, "by_support": True}) == seen
