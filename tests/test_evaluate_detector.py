"""The detector learns what can be learnt, and nothing where there is nothing."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from evaluate import classic, detector
from evaluate.classic import OPERATIONS, augment_classic, augment_policy
from evaluate.detector import (
    ARMS,
    CLASSIC,
    POLICY,
    REAL,
    SYNTHETIC,
    SYNTHETIC_ONLY,
    Arm,
    DetectorSet,
    ensembles,
    run_detector,
    scores_of,
)
from evaluate.detector_store import DetectorStore, content_hash
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


def aurocs(visible, shape=(16, 16), steps=40, seeds=1, arms=ARMS):
    train, validation, test = (some_set(s, 16, shape=shape, visible=visible) for s in (1, 2, 3))
    synthetic = some_set(4, 6, shape=shape).hu[::2]
    runs = run_detector(train, validation, test, synthetic, WINDOW, steps=steps, seeds=seeds, arms=arms, batch=32)
    found = summarise(scores_of(runs, test))
    return {arm: found[arm.name]["auroc"].mean for arm in arms}


def test_learns_an_obvious_lesion_in_every_arm():
    assert min(aurocs(visible=True, arms=ARMS).values()) > 0.97


def test_learns_an_obvious_lesion_in_three_dimensions():
    assert min(aurocs(visible=True, shape=(8, 10, 10), arms=(CLASSIC, POLICY)).values()) > 0.95


@pytest.mark.parametrize("shape", [(16, 16), (8, 6, 6)])
def test_a_larger_network_trains_too(shape):
    train, test = some_set(1, 6, shape=shape), some_set(3, 6, shape=shape)
    (run,) = run_detector(train, None, test, train.hu[:0], WINDOW, steps=4, seeds=1, arms=(CLASSIC,), batch=8, network="resnet10")
    assert np.isfinite(run.scores).all()
    assert sum(p.numel() for p in detector.detector_network("resnet18", 2, 0, "cpu").parameters()) > 1e7


def test_an_arm_without_real_lesions_learns_from_the_synthetic_ones_alone():
    """Labels of the real lesions mean nothing here, those of the synthetic ones do."""
    train, test = some_set(1, 16, visible=False), some_set(3, 16)
    synthetic = some_set(4, 12).hu[::2]
    found = [
        run_detector(train, None, test, synthetic, WINDOW, steps=60, seeds=1, arms=(arm,), batch=32) for arm in (SYNTHETIC_ONLY, CLASSIC)
    ]
    only, classic = (summarise(scores_of(runs, test))[runs[0].arm]["auroc"].mean for runs in found)
    assert only > 0.97 > classic


def test_the_threshold_comes_from_validation_patients_alone():
    train, validation, test = (some_set(s, 8) for s in (1, 2, 3))
    options = {"steps": 20, "seeds": 1, "arms": (CLASSIC,), "batch": 16}
    (run,) = run_detector(train, validation, test, train.hu[:6], WINDOW, **options)
    other = some_set(9, 8, visible=False)
    (again,) = run_detector(train, validation, other, train.hu[:6], WINDOW, **options)
    assert run.threshold == again.threshold
    assert (run.scores != again.scores).any()
    (scored,) = run_detector(train, None, validation, train.hu[:6], WINDOW, **options)
    assert run.threshold == choose_threshold(scored.scores, validation.lesion)
    assert (run.threshold_from, scored.threshold) == ("validation patients", 0.0)


def test_meaningless_labels_give_a_coin_toss():
    # 48 against 48 patches: the AUROC of a guess has a standard deviation of 0.06.
    assert 0.3 < aurocs(visible=False, arms=(CLASSIC,), seeds=2)[CLASSIC] < 0.7


def test_a_run_repeats_exactly_and_leaves_the_global_generator_alone():
    train, test = some_set(1, 4), some_set(3, 4)
    before = torch.random.get_rng_state()
    first, second = (
        run_detector(train, None, test, train.hu[:6], WINDOW, steps=10, seeds=2, arms=(REAL, SYNTHETIC), batch=8) for _ in range(2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first, second, strict=True):
        assert (a.scores == b.scores).all()
    by_run = {(run.arm, run.seed): run.scores for run in first}
    assert (by_run[REAL.name, 0] != by_run[REAL.name, 1]).any()
    assert (by_run[REAL.name, 0] != by_run[SYNTHETIC.name, 0]).any()


def test_progress_is_told_and_says_what_is_left():
    told = []
    train, test = some_set(1, 4), some_set(3, 4)
    runs = run_detector(train, None, test, train.hu[:6], WINDOW, steps=10, seeds=2, batch=8, progress=told.append)
    begins = list(dict.fromkeys((one.number, one.arm, one.seed) for one in told))
    assert begins == [(n + 1, arm.name, seed) for n, (seed, arm) in enumerate((s, a) for s in (0, 1) for a in ARMS)]
    assert all(one.total == 8 and one.kept == 0 for one in told)
    assert told[0].seconds_left is None
    assert all(one.seconds_left > 0 for one in told[1:])
    assert all(run.threshold == 0 and "no validation" in run.threshold_from for run in runs)


def batches(monkeypatch, arm, train, synthetic, **options):
    """What the network is shown in training, step by step."""
    shown = []

    class Watch(torch.nn.Linear):
        def forward(self, x):
            if self.training:
                shown.append(x.flatten(1).clone())
            return super().forward(x.flatten(1))

    monkeypatch.setattr(detector, "detector_network", lambda name, dimensions, seed, device: Watch(train.hu[0].size, 1))
    options = {"steps": 20, "seeds": 1, "batch": 16} | options
    run_detector(train, None, some_set(3, 4), synthetic, WINDOW, arms=(arm,), **options)
    return torch.stack(shown)


def test_arms_differ_only_in_the_lesions_that_are_replaced(monkeypatch):
    """Half of each batch are lesions; larger shares replace more of the same ones; lesion-free patches are the same and real in every arm."""
    train, synthetic = some_set(1, 8), np.full((6, 16, 16), 400, np.int16)
    plain, quarter, half, alone = (
        batches(monkeypatch, Arm("x", "none", share), train, synthetic[:count])
        for share, count in ((0, 0), (0.25, 5), (0.5, 6), (1, 6))
    )  # fmt: skip
    for shown, replaced in ((plain, 0), (quarter, 2), (half, 4), (alone, 8)):
        assert (shown[:, :replaced] == 1).all()
        assert torch.equal(shown[:, replaced:], plain[:, replaced:])
        assert (shown[:, 8:] < 0.9).all()
    classic, policy = (batches(monkeypatch, arm, train, synthetic) for arm in (CLASSIC, POLICY))
    unchanged = (classic == policy).all(2).float().mean().item()
    assert unchanged == pytest.approx(1 / len(OPERATIONS), abs=0.06)


def test_balanced_by_class_draws_a_rare_class_as_often_as_the_others(monkeypatch):
    train, synthetic = some_set(1, 20), np.full((10, 16, 16), 400, np.int16)
    hu, labels = train.hu.copy(), np.where(train.lesion, "solid", "none").astype("<U5")
    rare = np.flatnonzero(train.lesion)[:3]
    hu[rare], labels[rare] = 300, "rare"
    marked = DetectorSet(hu, train.lesion, train.patients, labels)
    share = {
        balance: (batches(monkeypatch, REAL, marked, synthetic, balance=balance, steps=100)[:, :8] > 0.8).all(2).float().mean().item()
        for balance in ("natural", "classes")
    }
    assert share["natural"] == pytest.approx(3 / 60, abs=0.03)
    assert share["classes"] == pytest.approx(1 / 2, abs=0.08)
    synthetic[1:] = 350
    drawn = batches(
        monkeypatch,
        Arm("x", "none", 1.0),
        marked,
        synthetic,
        balance="classes",
        synthetic_labels=np.array(["rare"] + ["solid"] * 9),
        steps=100,
    )
    assert (drawn[:, :8] == 1).all(2).float().mean().item() == pytest.approx(1 / 2, abs=0.08)


def equal_runs(one, other):
    return [(a.arm, a.seed, a.threshold, a.scores.tobytes()) for a in one] == [
        (b.arm, b.seed, b.threshold, b.scores.tobytes()) for b in other
    ]


def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_bytes(tmp_path):
    train, validation, test = (some_set(s, 6) for s in (1, 2, 3))
    given = (train, validation, test, some_set(4, 2).hu, WINDOW)
    options = {"steps": 10, "seeds": 2, "batch": 8, "arms": (REAL, CLASSIC, SYNTHETIC)}
    whole = run_detector(*given, **options)

    def killed(training):
        if training.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_detector(*given, **options, keep=tmp_path / "kept", progress=killed)
    assert len(list((tmp_path / "kept").iterdir())) == 4
    told = []
    assert equal_runs(whole, run_detector(*given, **options, keep=tmp_path / "kept", progress=told.append))
    assert [(one.number, one.kept) for one in told] == [(5, 4), (6, 4)]
    told.clear()
    assert equal_runs(whole, run_detector(*given, **options, keep=tmp_path / "kept", progress=told.append))
    assert told == []


def test_what_is_kept_serves_only_what_it_was_trained_for(tmp_path):
    train, validation, test = (some_set(s, 6) for s in (1, 2, 3))
    synthetic, changed = some_set(4, 2).hu, train.hu.copy()
    changed[0, 0, 0] += 1
    options = {"steps": 10, "seeds": 1, "batch": 8, "arms": (CLASSIC, SYNTHETIC), "keep": tmp_path}

    def trained(*sets, **changes):
        told = []
        run_detector(*sets, WINDOW, **(options | changes), progress=told.append)
        return [one.arm for one in told]

    both = [CLASSIC.name, SYNTHETIC.name]
    assert trained(train, validation, test, synthetic) == both
    assert trained(train, validation, test, synthetic) == []
    assert trained(train, validation, test, synthetic + 1) == [SYNTHETIC.name]
    assert trained(train, validation, test, synthetic, specificity=0.9) == []
    assert trained(train, validation, test, synthetic, arms=(CLASSIC, Arm("more", "classic", 0.5))) == ["more"]
    assert trained(train, validation, test, synthetic, seeds=2) == both
    for change in ({"steps": 11}, {"batch": 10}, {"balance": "classes"}):
        assert trained(train, validation, test, synthetic, **change) == both
    assert trained(DetectorSet(changed, train.lesion, train.patients), validation, test, synthetic) == both
    assert trained(train, None, test, synthetic) == both
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    assert trained(train, validation, test, synthetic) == both  # damaged ones are replaced
    assert trained(train, validation, test, synthetic) == []


def test_a_content_hash_tells_values_shapes_and_types_apart():
    x = np.arange(6, dtype=np.int16)
    some = [x, x.reshape(2, 3), x.reshape(3, 2), x.reshape(2, 3).T, x.astype(np.int32), x.view(np.uint16), x[::-1]]
    assert len({content_hash(one) for one in some}) == len(some)
    assert all(content_hash(one) == content_hash(np.ascontiguousarray(one)) for one in some)  # wherever they lie in memory


def test_what_was_saved_is_found_by_its_settings_in_any_order(tmp_path):
    store = DetectorStore(tmp_path / "kept")
    store.save({"steps": 10, "arm": {"name": "real", "share": 0.0}}, {"scores": np.arange(3.0)})
    np.testing.assert_array_equal(store.load({"arm": {"share": 0.0, "name": "real"}, "steps": 10})["scores"], np.arange(3.0))
    assert store.load({"steps": 11, "arm": {"name": "real", "share": 0.0}}) is None


def test_an_ensemble_is_the_mean_of_its_seeds_with_a_threshold_of_its_own():
    train, validation, test = (some_set(s, 6) for s in (1, 2, 3))
    runs = run_detector(train, validation, test, train.hu[:6], WINDOW, steps=10, seeds=3, batch=8, arms=(CLASSIC, SYNTHETIC))
    found = ensembles(runs, validation, 0.8)
    assert [one.arm for one in found] == ["ensemble of real+classic", "ensemble of real+classic+synthetic"]
    mine = [run for run in runs if run.arm == CLASSIC.name]
    np.testing.assert_allclose(found[0].scores, sum(run.scores for run in mine) / 3)
    together = sum(run.validation_scores for run in mine) / 3
    assert found[0].threshold == pytest.approx(choose_threshold(together, validation.lesion, 0.8))


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


@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (3, 12, 12), (10, 10, 10)])
def test_a_policy_changes_each_patch_by_one_operation_within_the_window(shape):
    rng = np.random.default_rng(0)
    patches = torch.from_numpy(rng.uniform(-1, 1, (220, *shape)).astype(np.float32))
    before = patches.clone()
    changed = augment_policy(patches, np.random.default_rng(1))
    assert torch.equal(patches, before)
    assert torch.equal(changed, augment_policy(patches, np.random.default_rng(1)))
    assert changed.shape == patches.shape
    assert changed.abs().max() <= 1
    same = (changed == patches).flatten(1).all(1).float().mean().item()
    assert same == pytest.approx(1 / len(OPERATIONS), abs=0.05)


def test_a_policy_leaves_what_has_no_structure_in_place():
    """Of a constant patch only offset, gamma and noise can change anything."""
    changed = augment_policy(torch.full((400, 8, 8), 0.25), np.random.default_rng(0))
    still = ((changed - 0.25).abs().flatten(1).amax(1) < 1e-5).float().mean().item()
    assert still == pytest.approx(1 - 3 / len(OPERATIONS), abs=0.06)


@pytest.mark.parametrize(
    ("operation", "strength", "expected"),
    [
        ("move", 5 / 0.2 / 10, lambda x: x.roll(-5, 1)),  # five voxels of ten, along the axis that place 0 names
        ("none", 0.0, lambda x: x),
    ],
)
def test_warping_reads_where_it_is_told_to(operation, strength, expected):
    x = torch.rand(1, 10, 10)
    matrices = classic._matrices(operation, x.shape[1:], np.array([strength]), np.array([[0.0, 0.0]]))
    inside = slice(0, 5) if operation == "move" else slice(None)
    torch.testing.assert_close(classic._warp(x, matrices)[:, inside], expected(x)[:, inside], rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.0, 1.0])
def test_a_zoom_reads_by_its_factor_nearer_to_the_middle_or_further_from_it(strength):
    places = torch.arange(11.0) - 5
    matrices = classic._matrices("zoom", torch.Size([11, 11]), np.array([strength]), np.zeros((1, 2)))
    wanted = (places * classic.ZOOM**strength).clamp(-5, 5).expand(11, 11)  # beyond the border is the border
    torch.testing.assert_close(classic._warp(places.expand(1, 11, 11), matrices)[0], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("operation", ["offset", "contrast", "gamma"])
def test_the_opposite_strength_undoes_a_change_of_intensity(operation):
    x = torch.rand(4, 9, 9) - 0.5
    strength = torch.tensor([-1.0, -0.3, 0.5, 1.0]).view(4, 1, 1)
    changed = classic._intensity(operation, x, strength, np.random.default_rng(0))
    assert (changed - x).abs().flatten(1).amax(1).min() > 0.01
    torch.testing.assert_close(classic._intensity(operation, changed, -strength, np.random.default_rng(0)), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(11, 11), (5, 11, 11)])
def test_turning_by_a_right_angle_is_a_quarter_turn(shape):
    """The turn is a rigid one: three times its strongest, 90 degrees, is exact; blurring is SciPy's."""
    x = torch.rand(2, *shape)
    matrices = classic._matrices("turn", x.shape[1:], np.full(2, 3.0), np.array([[0.0, 0.0], [0.0, 0.9]]))
    warped = classic._warp(x, matrices)
    for one, turns in ((0, 1), (1, -1)):
        rotated = torch.rot90(x[one], turns, (-2, -1))
        torch.testing.assert_close(warped[one], rotated, rtol=0, atol=1e-4)
    blurred = classic._blurred(x, torch.tensor([0.5, 0.9]).view(2, *[1] * len(shape)))
    for one, sigma in ((0, 0.5), (1, 0.9)):
        by_scipy = gaussian_filter(x[one].double().numpy(), sigma, mode="nearest", radius=3)
        np.testing.assert_allclose(blurred[one].numpy(), by_scipy, atol=1e-5)


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
    with pytest.raises(ValueError, match="training and the validation set"):
        run_detector(train, train, test, train.hu, WINDOW)
    with pytest.raises(ValueError, match="5 synthetic lesions, got 2"):
        run_detector(train, None, test, train.hu[:2], WINDOW)
