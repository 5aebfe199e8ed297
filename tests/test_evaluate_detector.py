"""The detector learns what can be learnt, and nothing where there is nothing."""

import numpy as np
import pytest
import torch

from evaluate.detector import ARMS, CLASSIC, REAL, SYNTHETIC, DetectorSet, augment_classic, run_detector, scores_of
from evaluate.scores import choose_threshold, summarise

WINDOW = (-1000.0, 400.0)


def some_set(seed, patients, each=6, shape=(16, 16), visible=True):
    """Half of the patches hold a bright centre, if `visible`; otherwise they are only called lesions."""
    rng = np.random.default_rng(seed)
    lesion = np.tile([True, False], patients * each // 2)
    hu = rng.normal(-850, 60, (len(lesion), *shape))
    middle = (slice(None), *[slice(n // 2 - 2, n // 2 + 2) for n in shape])
    if visible:
        hu[middle] += 500 * lesion.reshape(-1, *[1] * len(shape))
    return DetectorSet(np.clip(hu, -1000, 400).astype(np.int16), lesion, np.repeat([f"s{seed}p{i}" for i in range(patients)], each))


def aurocs(visible, shape=(16, 16), steps=60, seeds=1, arms=ARMS):
    train, validation, test = (some_set(s, 16, shape=shape, visible=visible) for s in (1, 2, 3))
    synthetic = some_set(4, 6, shape=shape).hu[::2]
    runs = run_detector(train, validation, test, synthetic, WINDOW, steps=steps, seeds=seeds, arms=arms, batch=32)
    return {arm: values["auroc"].mean for arm, values in summarise(scores_of(runs, test)).items()}


def test_learns_an_obvious_lesion_in_every_arm():
    found = aurocs(visible=True)
    assert tuple(found) == ARMS
    assert min(found.values()) > 0.97


def test_learns_an_obvious_lesion_in_three_dimensions():
    assert aurocs(visible=True, shape=(8, 10, 10), arms=(CLASSIC,))[CLASSIC] > 0.95


def test_the_threshold_comes_from_validation_patients_alone():
    train, validation, test = (some_set(s, 8) for s in (1, 2, 3))
    options = {"steps": 20, "seeds": 1, "arms": (CLASSIC,), "batch": 16}
    (run,) = run_detector(train, validation, test, train.hu[:4], WINDOW, **options)
    other = some_set(9, 8, visible=False)
    (again,) = run_detector(train, validation, other, train.hu[:4], WINDOW, **options)
    assert run.threshold == again.threshold
    assert (run.scores != again.scores).any()
    (scored,) = run_detector(train, None, validation, train.hu[:4], WINDOW, **options)
    assert run.threshold == choose_threshold(scored.scores, validation.lesion)
    assert (run.threshold_from, scored.threshold) == ("validation patients", 0.0)


def test_meaningless_labels_give_a_coin_toss():
    # 48 against 48 patches: the AUROC of a guess has a standard deviation of 0.06.
    assert 0.3 < aurocs(visible=False, arms=(CLASSIC,), seeds=2)[CLASSIC] < 0.7


def test_a_run_repeats_exactly_and_leaves_the_global_generator_alone():
    train, test = some_set(1, 4), some_set(3, 4)
    before = torch.random.get_rng_state()
    first, second = (
        run_detector(train, None, test, train.hu[:4], WINDOW, steps=10, seeds=2, arms=(REAL, SYNTHETIC), batch=8) for _ in range(2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first, second, strict=True):
        assert (a.scores == b.scores).all()
    by_run = {(run.arm, run.seed): run.scores for run in first}
    assert (by_run[REAL, 0] != by_run[REAL, 1]).any()
    assert (by_run[REAL, 0] != by_run[SYNTHETIC, 0]).any()


def test_arms_start_from_the_same_weights_and_progress_is_told():
    told = []
    train, test = some_set(1, 4), some_set(3, 4)
    runs = run_detector(
        train, None, test, train.hu[:4], WINDOW, steps=10, seeds=1, batch=8, progress=lambda arm, seed: told.append((arm, seed))
    )
    assert told == [(arm, 0) for arm in ARMS]
    assert all(run.threshold == 0 and "no validation" in run.threshold_from for run in runs)


@pytest.mark.parametrize("shape", [(9, 9), (6, 8), (5, 6, 6)])
def test_augmentation_keeps_a_constant_patch_and_moves_a_marked_one(shape):
    rng = np.random.default_rng(0)
    constant = augment_classic(torch.full((64, *shape), 0.25), rng)
    assert constant.shape == (64, *shape)
    assert constant.mean().item() == pytest.approx(0.25, abs=0.01)
    assert constant.std().item() == pytest.approx(0.02, rel=0.1)
    marked = torch.full((64, *shape), -1.0)
    marked[(slice(None), *[1] * len(shape))] = 1
    moved = augment_classic(marked, rng)
    places = {tuple(torch.nonzero(one > 0)[0].tolist()) for one in moved if (one > 0).any()}
    assert len(places) > 8


def test_quarter_turns_happen_only_between_equal_sides():
    rng = np.random.default_rng(0)
    rows = torch.linspace(-1, 1, 8)[:, None].expand(8, 6).expand(200, 8, 6)
    still_rows = augment_classic(rows, rng).std(2).mean()
    turned = augment_classic(rows[:, :6], rng).std(2).mean()
    assert still_rows < 0.05 < turned


def test_says_what_is_missing():
    train, test = some_set(1, 4), some_set(3, 4)
    only_lesions = DetectorSet(train.hu[train.lesion], train.lesion[train.lesion], train.patients[train.lesion])
    with pytest.raises(ValueError, match="training set, got 12 and 0"):
        run_detector(only_lesions, None, test, train.hu, WINDOW)
    one_patient = DetectorSet(test.hu, test.lesion, np.full(len(test.hu), "p"))
    with pytest.raises(ValueError, match="2 held-out patients"):
        run_detector(train, None, one_patient, train.hu, WINDOW)
    with pytest.raises(ValueError, match="split by patient"):
        run_detector(train, None, train, train.hu, WINDOW)
