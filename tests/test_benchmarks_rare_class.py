"""The study of synthetic nodules' worth: its arithmetic on scores that are made up, and the whole of it, hardly trained, on made patches."""

import numpy as np
import pytest
from conftest import benchmark

from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter

CURVE = (25, 50, 100, 200)


@pytest.fixture(scope="module")
def rare():
    yield from benchmark("rare_class")


def test_worth_is_read_off_the_curve(rare):
    scored = np.array([0.80, 0.84, 0.88, 0.90])
    assert [rare.worth_of(auroc, CURVE, scored) for auroc in scored] == pytest.approx(CURVE)
    assert rare.worth_of(0.86, CURVE, scored) == pytest.approx(50 * 2**0.5)  # halfway between 50 and 100, in the logarithm
    assert rare.worth_of(0.70, CURVE, scored) == 25
    assert rare.worth_of(0.99, CURVE, scored) == 200


def test_a_curve_that_dips_is_levelled_and_a_level_is_worth_its_smallest_set(rare):
    dips = np.array([0.80, 0.88, 0.84, 0.90])
    assert rare.worth_of(0.86, CURVE, dips) == pytest.approx(50)
    assert rare.worth_of(0.88, CURVE, dips) == pytest.approx(100 * 2**0.5)
    assert rare.worth_of(0.8, CURVE, np.full(4, 0.8)) == 25


def made_up(rare, strengths, seeds=4, patients=30, seed=0):
    """Log-odds of 10 patches of each patient, lesions above the others by a cell's strength; the same noise in every cell of a seed."""
    rng = np.random.default_rng(seed)
    lesion = np.arange(10 * patients) % 3 == 0
    noise = rng.standard_normal((seeds, len(lesion)))
    log_odds = {rare.Cell(*cell): noise + strength * lesion for cell, strength in strengths.items()}
    return rare.Judged(log_odds, lesion, np.repeat(np.arange(patients), 10))


def all_arms(rare, nodules, strength):
    """Every arm of a size, as strong as each other but for lesions in anatomy at a share of 0.25."""
    better = rare.mixed("context", 0.25)
    return {(nodules, arm): strength + 0.5 * (arm == better) for arm in rare.ARMS}


def test_an_arm_that_scores_as_a_set_of_the_curve_is_worth_it_whoever_is_drawn(rare):
    curve = {(count, rare.BASELINE): strength for count, strength in zip(CURVE, (0.5, 1.0, 1.5, 2.0), strict=True)}
    judged = made_up(rare, {**all_arms(rare, 50, 1.0), **curve})
    result = rare.judge(rare.halves(judged), np.random.default_rng(0), draws=200)
    row = rare.Cell(50, "... synthetic, chosen")
    assert {choice[row] for choice in result.choices} == {(50, rare.mixed("context", 0.25))}
    assert result.worth(row, CURVE) == pytest.approx((100, 100, 100))  # paired: what moves the arm moves the curve
    assert result.worth(rare.Cell(50, "real"), CURVE) == pytest.approx((50, 50, 50))
    value, low, high = result.difference(row, rare.AUROC)
    assert 0 < low < value < high
    rows = rare.summary(result, CURVE)
    ways = ("whole_patches", "pasted", "Poisson")
    assert rare.ratios(rows) == {"worth_over_real_50": 2.0, "worth_over_real_50_context": 2.0} | {
        f"worth_over_real_50_{way}": 1.0 for way in ways
    }
    assert any("100 (100 to 100)" in line for line in rare.table(rows, CURVE))


def test_those_who_choose_are_not_those_who_are_judged(rare):
    judged = made_up(rare, all_arms(rare, 50, 1.0))
    (one, other), (other_again, one_again) = rare.halves(judged)
    assert not set(one.patients) & set(other.patients)
    assert sorted([*one.patients, *other.patients]) == sorted(judged.patients)
    assert set(one.patients) == set(one_again.patients)
    assert set(other.patients) == set(other_again.patients)
    shifted = rare.Judged({cell: scores + 100 for cell, scores in judged.log_odds.items()}, judged.lesion, judged.patients)
    result = rare.judge([(judged, shifted)], np.random.default_rng(0), draws=10)
    assert result.mean(rare.Cell(50, "real"), rare.RECALL) == 1  # the threshold is the choosing patients', far below these scores
    assert result.mean(rare.Cell(50, "real"), rare.SPECIFIC) == 0


def test_what_other_seeds_could_change_has_the_covariance_of_the_means(rare):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 8, 1)) + 2 * rng.standard_normal((1, 8, 1))  # of 8 seeds, correlated
    drawn = rare.seeds_could_change(values, rng, 100_000)[..., 0]
    of_student = (8 - 1) / (8 - 3)  # the variance of Student's t over the normal's
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(values[..., 0]) / 8 * of_student, rtol=0.05)
    assert not rare.seeds_could_change(values[:, :1], rng, 5).any()


@pytest.fixture
def folder(tmp_path) -> PatchFolder:
    """24 training patients and 12 each to validate and to test, with two nodules and two other patches each."""
    rng = np.random.default_rng(0)
    (tmp_path / "patches").mkdir()
    writer = PatchWriter(tmp_path / "patches", PatchSpec((32, 32), None, (-1000, 400), ("non-nodule", "nodule"), background="non-nodule"))
    for n in range(48):
        for nodule in (0, 1, 0, 1):
            hu = rng.integers(-1000, 400, (32, 32)).astype(np.int16)
            hu[12:20, 12:20] += np.int16(300 * nodule)
            split = ("train", "train", "validation", "test")[n % 4]
            writer.add(Patch(hu.clip(-1000, 400), f"p-{n:016x}", f"s-{n:016x}", ("non-nodule", "nodule")[nodule], split=split))
    writer.finish()
    return PatchFolder.open(tmp_path / "patches")


def test_sets_are_nested_and_of_whole_patients(rare, folder, tmp_path):
    study = rare.Study(folder, tmp_path / "work", rare.QUICK)
    smaller, larger = (set(study.few(count, 3).tolist()) for count in (25, 48))
    assert smaller < larger
    patients, counts = np.unique(folder.rows.names("patient", sorted(smaller)), return_counts=True)
    assert (counts == 2).all()
    assert set(study.few(25, 4).tolist()) != smaller


def test_a_study_goes_on_where_it_stopped_and_leaves_test_patients_alone(rare, folder, tmp_path, monkeypatch, capsys):
    looked_at = []
    effort = rare.Effort(steps=2, updates=1, samples=8, seeds=1, sizes=(25,), between=())
    monkeypatch.setattr(rare.Study, "set_of", lambda self, split, real=rare.Study.set_of: looked_at.append(split) or real(self, split))
    (_, whole) = rare.stage_by_stage(rare.Study(folder, tmp_path / "work", effort), "validation")
    assert looked_at == ["validation"]
    assert "9 of 9: 48 nodules, real+classic, seed 0" in capsys.readouterr().err

    def again(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(rare, "train_detector", again)
    monkeypatch.setattr(rare, "Trainer", again)
    (_, resumed) = rare.stage_by_stage(rare.Study(folder, tmp_path / "work", effort), "validation")
    assert resumed == whole
    (_, tested) = rare.stage_by_stage(rare.Study(folder, tmp_path / "work", effort), "test")
    assert looked_at == ["validation", "validation", "validation", "test"]
    assert tested != whole
