"""The benchmark that tries to fool the audit: its cases are what they say, and one of them goes all the way on a cohort made here."""

from typing import get_args

import numpy as np
import pytest
from conftest import benchmark
from scipy import ndimage

from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from evaluate.copies import search_copies
from evaluate.verdict import FindingName, Level, Part

WINDOW = (-1000.0, 400.0)
SHAPE = (32, 32)


@pytest.fixture(scope="module")
def fooling():
    yield from benchmark("fooling")


def nodules(count, seed, noise_hu=30.0):
    """int16 HU, (count, 32, 32): a bright disc in noise, of many sizes and densities."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(SHAPE) - 15.5
    radius, height = rng.uniform(3, 9, (count, 1, 1)), rng.uniform(500, 900, (count, 1, 1))
    disc = height / (1 + np.exp((np.hypot(y, x * rng.uniform(0.8, 1.2, (count, 1, 1))) - radius) / 0.8))
    noise = ndimage.gaussian_filter(rng.normal(0, noise_hu, (count, *SHAPE)), (0, 0.5, 0.5))
    return np.rint(disc - 850 + noise).clip(*WINDOW).astype(np.int16)


@pytest.fixture(scope="module")
def sets(fooling):
    """All sets that a case may ask for; those who are held out and the others have three lesions a patient."""

    def lesions(count, seed):
        label = np.array(["cystic", "ground_glass", "solid"])[np.arange(count) % 3]
        return fooling.Lesions(nodules(count, seed), label, np.array([f"{seed}-{n // 3}" for n in range(count)]))

    return {name: lesions(120, seed) for seed, name in enumerate(("train", "held-out", "others", "generated", "early"))}


def made(fooling, sets, name):
    case = next(one for one in fooling.CASES if one.name == name)
    before = {key: one.hu.copy() for key, one in sets.items()}
    found = case.make(sets, np.random.default_rng(1))
    for key, hu in before.items():
        np.testing.assert_array_equal(sets[key].hu, hu)
    return found


def test_every_case_asks_for_what_the_verdicts_can_say(fooling):
    assert len({case.name for case in fooling.CASES}) == len(fooling.CASES)
    for case in fooling.CASES:
        assert set(case.must) | set(case.must_not) <= set(get_args(FindingName))
        assert set(case.verdicts) <= set(get_args(Part))
        assert {level for levels in case.verdicts.values() for level in levels} <= set(get_args(Level))
        assert case.cohort in ("luna", "phantoms")


def test_every_case_makes_patches_within_the_window_with_a_class_and_a_patient_each(fooling, sets):
    for case in fooling.CASES:
        found = made(fooling, sets, case.name)
        assert found.hu.dtype == np.int16
        assert found.hu.shape[1:] == SHAPE
        assert len(found.hu) == len(found.label) == len(found.patient)
        assert found.hu.min() >= WINDOW[0]
        assert found.hu.max() <= WINDOW[1]


def test_8_bits_leave_256_levels_and_never_brighten(fooling, sets):
    found, real = made(fooling, sets, "truncated to 8 bits"), sets["others"]
    every = np.arange(-1000, 401, dtype=float)
    assert len(np.unique(fooling.eight_bits(every, np.random.default_rng(0)).round(6))) == 256
    assert set(np.unique(found.hu)) <= set(np.rint(np.arange(256) / 255 * 1400 - 1000).astype(int))
    lost = real.hu.astype(int) - found.hu
    assert lost.min() >= -0.5
    assert lost.max() <= 1400 / 255 + 0.5


def test_the_wrong_window_is_a_straight_line_that_ends_at_the_windows(fooling, sets):
    ends = fooling.wrong_window(np.array([-1000.0, -300.0, 400.0]), np.random.default_rng(0))
    np.testing.assert_allclose(ends, [-1400, -600, 200])
    found, real = made(fooling, sets, "through the wrong window"), sets["others"].hu.astype(float)
    np.testing.assert_allclose(found.hu, (real * 8 / 7 - 1400 + 8000 / 7).clip(*WINDOW), atol=0.5)


def test_blur_noise_and_pattern_are_as_strong_as_they_say(fooling, sets):
    real = sets["others"].hu.astype(float)
    inner = (slice(None), slice(12, 20), slice(12, 20))  # away from the window's ends
    noise = made(fooling, sets, "noisy (40 HU)").hu - real
    assert noise[inner].std() == pytest.approx(40, rel=0.03)
    pattern = made(fooling, sets, "a pattern of 20 HU").hu - real
    assert set(np.unique(pattern[inner])) == {-20, 20}
    assert (pattern[inner][:, 1:] == -pattern[inner][:, :-1]).all()
    assert (pattern[inner][..., 1:] == -pattern[inner][..., :-1]).all()
    dot = np.full((1, *SHAPE), -300.0)
    dot[0, 16, 16] = 400
    blur = next(case for case in fooling.CASES if case.name.startswith("blurred")).make(
        {"others": fooling.Lesions(dot.astype(np.int16), np.array(["solid"]), np.array(["p"]))}, np.random.default_rng(0)
    )
    assert blur.hu[0, 16, 16] + 300 == pytest.approx(700 / (2 * np.pi), rel=0.02)  # a Gaussian of 1 pixel at its middle


def test_the_collapsed_set_has_20_originals(fooling, sets):
    found, good = made(fooling, sets, "collapsed on 20 samples").hu.astype(float), sets["generated"].hu.astype(float)
    apart = np.sqrt(np.square(found[:, None] - good).mean((2, 3)))
    assert len(np.unique(apart.argmin(1))) == 20
    assert apart.min(1).max() < 11
    assert len(np.unique(found, axis=0)) == len(found)


def test_one_in_a_hundred_is_a_copy_that_can_be_found_and_the_rest_is_as_it_was(fooling, sets):
    many = {**sets, "generated": fooling.Lesions(nodules(400, 9), np.full(400, "solid"), np.arange(400).astype(str))}
    found, good = made(fooling, many, "1 % copies of training lesions"), many["generated"]
    rows = np.flatnonzero((found.hu != good.hu).any((1, 2)))
    assert len(rows) == 4
    searched = search_copies(found.hu[rows], sets["train"].hu, sets["train"].patient, None, None, WINDOW)
    assert (searched.synthetic.misfit < 0.5).all()
    others = search_copies(good.hu[rows], sets["train"].hu, sets["train"].patient, None, None, WINDOW)
    assert searched.synthetic.misfit.max() < others.synthetic.misfit.min()


def test_swapped_classes_are_all_wrong_and_lose_no_patch(fooling, sets):
    found, real = made(fooling, sets, "phantoms, classes swapped"), sets["others"]
    np.testing.assert_array_equal(found.hu, real.hu)
    assert (found.label != real.label).all()
    assert sorted(found.label) == sorted(real.label)
    assert len(set(zip(real.label, found.label, strict=True))) == 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A patch folder of 40 patients to train on, 4 to validate and 2 to test with, two lesions and a lesion-free patch each."""
    path = tmp_path_factory.mktemp("source") / "patches"
    path.mkdir()
    writer = PatchWriter(path, PatchSpec(SHAPE, (0.7, 0.7), WINDOW, ("nodule", "background"), background="background"))
    for n, hu in enumerate(nodules(46 * 2, 7)):
        patient = f"p{n // 2}"
        split = "train" if n < 80 else "validation" if n < 88 else "test"
        writer.add(Patch(hu, patient, patient, "nodule", split=split))
        if n % 2:
            writer.add(Patch(np.full(SHAPE, -850, np.int16), patient, patient, "background", split=split))
    writer.finish()
    return PatchFolder.open(path)


@pytest.fixture(scope="module")
def cohort(fooling, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("dealt") / "cohort"
    return path, fooling.dealt(source, path)


def test_patients_are_dealt_out_once_and_those_to_test_with_are_left_alone(fooling, source, cohort):
    path, sets = cohort
    patients = {name: set(one.patient) for name, one in sets.items()}
    assert [len(patients[name]) for name in ("train", "held-out", "others")] == [24, 10, 10]
    assert len(set.union(*patients.values())) == 44
    assert sum(len(one.hu) for one in sets.values()) == 88
    assert set(sets["train"].label) == {"nodule"}
    again = fooling.lesions_of(PatchFolder.open(path))
    for name, one in sets.items():
        np.testing.assert_array_equal(one.hu, again[name].hu)
    dealt_hu = {hu.tobytes() for one in sets.values() for hu in one.hu}
    assert dealt_hu == {hu.tobytes() for hu in source.hu(source.select(splits=["train", "validation"], classes=["nodule"]))}


def test_a_set_of_8_bits_is_found_out_and_what_was_not_found_is_wrong(fooling, cohort, tmp_path, monkeypatch):
    path, sets = cohort
    monkeypatch.setattr(fooling, "run", lambda *command, run=fooling.run: run(*command, "--draws", 20))
    case = next(one for one in fooling.CASES if one.name == "truncated to 8 bits")
    row = fooling.judged(case, path, sets, tmp_path / "case")
    assert row["right"]
    assert row["levels"]["quality"] == "bad"
    assert "gray_steps" in row["findings"]
    assert row["copies"] == 0
    head, line = fooling.table([row])
    assert line.startswith("truncated to 8 bits")
    assert "WRONG" not in line
    assert "WRONG" in list(fooling.table([{**row, "right": False}]))[1]
