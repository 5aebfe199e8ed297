"""Drawing again until it will do: as a plain loop over seeds and attempts does it, in any parts; what hardly ever passes is given up."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan import selection
from gan.selection import LEAST_RATE, PATIENCE, Tally, select


class World(NamedTuple):
    """Candidates and tests that depend on the sample and its attempt alone; seeds: what the samples are called."""

    seeds: np.ndarray
    chances: dict[str, float]

    def patch(self, row: int, attempt: int) -> np.ndarray:
        return np.random.default_rng([self.seeds[row], attempt]).random((1, 2, 2), dtype=np.float32)

    def draw(self, rows: np.ndarray, attempt: int) -> np.ndarray:
        return np.stack([self.patch(row, attempt) for row in rows])

    def measure(self, name: str, patch: np.ndarray) -> float:
        return float(np.random.default_rng([*patch.view(np.uint32).ravel().tolist(), len(name)]).random())

    def tests(self):
        def test(patches, rows, name, chance):
            assert len(patches) == len(rows) > 0
            measured = np.array([self.measure(name, patch) for patch in patches])
            return measured, measured < chance

        return {
            name: lambda patches, rows, name=name, chance=chance: test(patches, rows, name, chance) for name, chance in self.chances.items()
        }

    def selected(self, rows=None):
        world = self if rows is None else self._replace(seeds=self.seeds[rows])
        tally = Tally()
        return select(len(world.seeds), world.draw, world.tests(), tally, lambda row: f"seed {world.seeds[row]}"), tally

    def by_plain_loop(self):
        """patches, attempts, measured, Tally: one seed after the other."""
        patches, attempts, measured, tally = [], [], {name: [] for name in self.chances}, Tally()
        for row in range(len(self.seeds)):
            for attempt in range(10**6):
                patch = self.patch(row, attempt)
                tally.drawn += 1
                failed = next((name for name, chance in self.chances.items() if self.measure(name, patch) >= chance), None)
                if failed is None:
                    break
                tally.rejected[failed] += 1
            patches.append(patch)
            attempts.append(attempt)
            for name in self.chances:
                measured[name].append(self.measure(name, patch))
            tally.taken += 1
        return np.stack(patches), attempts, measured, tally


worlds = st.builds(
    World,
    st.lists(st.integers(0, 2**32), min_size=1, max_size=25, unique=True).map(np.array),
    st.dictionaries(st.sampled_from(["size", "quality", "closeness_hu"]), st.floats(0.3, 1), max_size=3),
)


def assert_same(found, tally, expected):
    patches, attempts, measured, counted = expected
    np.testing.assert_array_equal(found.patches, patches)
    np.testing.assert_array_equal(found.attempts, attempts)
    assert {name: values.tolist() for name, values in found.measured.items()} == measured
    assert (tally.drawn, tally.taken, +tally.rejected) == (counted.drawn, counted.taken, counted.rejected)


@given(worlds)
@settings(max_examples=60, deadline=None)
def test_it_takes_what_a_plain_loop_takes(world):
    assert_same(*world.selected(), world.by_plain_loop())


@given(worlds, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_parts_in_any_order_take_what_the_whole_takes(world, random):
    rows = random.sample(range(len(world.seeds)), len(world.seeds))
    cut = random.randint(1, len(rows))
    whole, tally = world.selected()
    together = Tally()
    for some in filter(len, (rows[:cut], rows[cut:])):
        part, counted = world.selected(some)
        np.testing.assert_array_equal(part.patches, whole.patches[some])
        np.testing.assert_array_equal(part.attempts, whole.attempts[some])
        for name in world.chances:
            np.testing.assert_array_equal(part.measured[name], whole.measured[name][some])
        together.add(**counted.facts())
    assert together.facts() == tally.facts()


def test_without_tests_every_first_candidate_is_taken():
    found, tally = World(np.arange(7), {}).selected()
    assert found.attempts.tolist() == [0] * 7
    assert (found.measured, tally.facts()) == ({}, {"drawn": 7, "taken": 7, "rejected": {}})


@pytest.mark.parametrize("count", [8, 64, 3000])
def test_what_hardly_ever_passes_stops_with_the_rate(count):
    tally = Tally()

    def draw(rows, attempt):
        return np.zeros((len(rows), 1, 2, 2), np.float32)

    def one_in_300(patches, rows):
        passed = np.arange(tally.drawn - len(rows), tally.drawn) % 300 == 299
        return np.zeros(len(rows)), passed

    with pytest.raises(ValueError, match=r"hardly any sample is as asked for: \d+ of \d,\d+ candidates taken \(0\.\d+\)") as stopped:
        select(count, draw, {"diameter_mm": one_in_300}, tally, str)
    assert "by diameter_mm" in str(stopped.value)
    assert str(stopped.value).count("\n") == 0
    assert PATIENCE <= tally.drawn < PATIENCE + count
    assert tally.taken == tally.drawn // 300
    assert tally.taken / tally.drawn < LEAST_RATE


def test_a_seed_that_never_passes_among_others_that_do_is_named(monkeypatch):
    monkeypatch.setattr(selection, "MOST_ATTEMPTS", 40)
    asked = []

    def draw(rows, attempt):
        asked.append((rows.tolist(), attempt))
        return np.zeros((len(rows), 1, 2, 2), np.float32)

    def not_the_third(patches, rows):
        return np.zeros(len(rows)), rows != 2

    with pytest.raises(ValueError, match=r"seed 102: none of 40 candidates is as asked for; in all, 4 of 44 candidates taken") as stopped:
        select(5, draw, {"diameter_mm": not_the_third}, Tally(), lambda row: f"seed {100 + row}")
    assert "40 by diameter_mm" in str(stopped.value)
    assert asked == [([0, 1, 2, 3, 4], 0), *[([2], attempt) for attempt in range(1, 40)]]


def test_a_job_that_is_done_is_not_stopped():
    """All 19 pass at their 106th candidate: 2,014 were drawn, of which fewer than 1 in 100 were taken, but nothing is left to draw."""

    def draw(rows, attempt):
        return np.full((len(rows), 1, 2, 2), attempt, np.float32)

    found = select(19, draw, {"late": lambda patches, rows: (patches[:, 0, 0, 0], patches[:, 0, 0, 0] == 105)}, Tally(), str)
    assert found.attempts.tolist() == [105] * 19


def test_a_tally_adds_up_and_reads_well():
    tally = Tally()
    for _ in range(2):
        tally.add(500, 206, {"diameter_mm": 274, "closeness": 20})
    assert tally.facts() == {"drawn": 1000, "taken": 412, "rejected": Counter(diameter_mm=548, closeness=40)}
    assert tally.words() == "412 of 1,000 candidates taken (0.41); turned down: 548 by diameter_mm, 40 by closeness"
    assert Tally().rate == 0
