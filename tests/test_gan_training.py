"""Training: a resumed run equals an uninterrupted one bit for bit; what is learned comes from the data; what is not finite is named."""

import copy
import json
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch

from gan import training
from gan.checkpoint import load_checkpoint
from gan.conditions import Conditions, drawing_weights
from gan.config import NetworkConfig, TrainingConfig
from gan.networks import BatchNorm
from gan.not_finite import NotFinite, first_not_finite, weight_not_finite
from gan.sampling import TILE, load_model, sample
from gan.tracker import Tracker
from gan.trainer import Trainer, TrainingSet, latents
from gan.training import Hooks, Validation, train

NETWORKS = NetworkConfig(channels=4, latent=8)
QUICK = {"batch": 8, "n_critic": 2, "log_every": 2, "samples_every": 0, "checkpoint_every": 3, "device": "cpu"}
LEARNING = {"batch": 16, "n_critic": 4, "learning_rate": 2e-3, "average_share": 0.2, "checkpoint_every": 100, "log_every": 100}
ABOUT = {"shape": [16, 16], "window": [-1000, 400]}
NOTHING = Conditions()
CLASSES = Conditions(("bright", "dark"))
BY_DIAMETER = Conditions(("bright", "dark"), diameter=True)

from_centre = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2))


class Patches:
    """Patches in memory; `asked_for` has the positions of every look at them."""

    def __init__(self, values: np.ndarray):
        self.values, self.asked_for = values, []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, positions):
        self.asked_for.append(positions)
        return self.values[positions]


def discs(count=64, conditions=NOTHING, seed=0, balance=0.0, labels=None) -> TrainingSet:
    """Discs of random size, 16 x 16, bright on dark; where the class matters, bright ones and dark ones by turns, on a gray ground."""
    radii = np.random.default_rng(seed).uniform(2, 6, count)
    labels = np.resize(("bright", "dark"), count) if labels is None else labels
    centre, ground = (np.where(labels == "bright", 0.8, -0.8), 0.0) if conditions.classes else (np.full(count, 0.6), -0.8)
    x = np.where(from_centre < radii[:, None, None], centre[:, None, None], ground).astype(np.float32)[:, None]
    condition = conditions.encode(labels.tolist(), 2 * radii) if conditions.size else None
    return TrainingSet(Patches(x), condition, drawing_weights(labels, balance))


class Run(NamedTuple):
    reached: int
    grids: list
    metrics: list


def trainer_for(conditions=NOTHING, **changes) -> Trainer:
    return Trainer((16, 16), NETWORKS, TrainingConfig(**{**QUICK, **changes}), conditions.size)


def run_training(run, steps, data=None, conditions=NOTHING, held_out=None, stop_after=None, validate=None, **changes) -> Run:
    run.mkdir(exist_ok=True)
    calls, grids = iter(range(10**9)), []
    hooks = Hooks(
        tracker=lambda step: Tracker(run, step, {}), samples=lambda *grid: grids.append(grid), validate=validate,
        should_stop=lambda: stop_after is not None and next(calls) >= stop_after,
    )  # fmt: skip
    data = discs(conditions=conditions) if data is None else data
    reached = train(trainer_for(conditions, steps=steps, **changes), data, held_out, conditions, NETWORKS, run, ABOUT, hooks)
    log = run / "metrics.jsonl"
    return Run(reached, grids, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [])


def without_time(metrics):
    return [{name: value for name, value in line.items() if name not in ("images_per_second", "eta_s")} for line in metrics]


def by_distance(*distances):
    """A look at validation patients that finds these, one after the other."""
    scripted = iter(distances)

    def validate(x, positions):
        distance = next(scripted)
        return Validation(distance, "scripted", {"validation/scripted": distance})

    return validate


@pytest.mark.parametrize(
    "options",
    [
        {}, {"conditions": BY_DIAMETER, "balance": 0.5}, {"penalty_fraction": 0.25, "frozen_layers": 1, "precision": "64"},
        {"augment": 1e-3},
    ],
    ids=["plain", "conditional", "frozen, 64 bits", "augmented"],
)  # fmt: skip
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, options, monkeypatch):
    monkeypatch.setattr("gan.trainer.LOOK_EVERY", 1)
    monkeypatch.setattr("gan.augment.STEP", 0.3)
    conditions, balance = options.get("conditions", NOTHING), options.get("balance", 0)
    options = {
        **options, "conditions": conditions, "data": discs(conditions=conditions, balance=balance),
        "held_out": discs(20, conditions, seed=1),
    }  # fmt: skip
    whole = run_training(tmp_path / "whole", 8, validate=by_distance(2, 3, 4), **options)
    assert whole.reached == 8
    reached = [
        run_training(tmp_path / "parts", 8, stop_after=stop_after, validate=by_distance(*found), **options).reached
        for stop_after, found in ((1, ()), (4, (2,)), (None, (3, 4)))
    ]
    assert reached == [1, 5, 8]
    one, other = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert one.tensors.keys() == other.tensors.keys()
    assert {name.partition(".")[0] for name in one.tensors} == {
        "generator", "average", "critic", "generator_optimizer", "critic_optimizer", *["augment"] * ("augment" in options),
    }  # fmt: skip
    if "augment" in options:
        assert len({line["augment_probability"] for line in whole.metrics}) > 1
    assert one.model_hash == other.model_hash
    assert one.best == other.best == {"step": 3, "distance": 2, "measure": "scripted"}
    parts = run_training(tmp_path / "parts", 8, **options)
    assert without_time(whole.metrics) == without_time(parts.metrics)
    assert [line["step"] for line in whole.metrics] == [2, 3, 4, 6, 8]
    assert all("wasserstein_held_out" in line for line in whole.metrics)


def test_seed_decides_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(tmp_path / name, 2, seed=seed)
    a, b, c = (load_checkpoint(tmp_path / name).model_hash for name in "abc")
    assert a == b != c


def test_global_randomness_is_neither_used_nor_moved(tmp_path):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run_training(tmp_path / "a", 2, conditions=BY_DIAMETER)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    torch.manual_seed(6)
    run_training(tmp_path / "b", 2, conditions=BY_DIAMETER)
    assert load_checkpoint(tmp_path / "a").model_hash == load_checkpoint(tmp_path / "b").model_hash


@pytest.mark.parametrize("penalty_fraction", [1.0, 0.25])
def test_learns_where_the_disc_is(tmp_path, penalty_fraction):
    data = discs()
    grids = run_training(tmp_path / "run", 100, data, penalty_fraction=penalty_fraction, **LEARNING).grids
    x = np.concatenate(list(sample(load_model(tmp_path / "run"), range(64))))
    ((step, shown, labels),) = grids
    assert (step, labels) == (100, None)
    np.testing.assert_allclose(shown, x, atol=1e-5)  # the grid shows the samples of seeds 0, 1, 2 ...
    x, real = x[:, 0], data.patches.values[:, 0]
    error = np.abs(x.mean(0) - real.mean(0)).mean()
    assert error < 0.3 * np.abs(real.mean(0)).mean()  # an untrained generator is near 0 everywhere
    assert x.std(0).mean() > 0.3 * real.std(0).mean()  # and it did not collapse to one disc


def test_learns_which_class_is_which(tmp_path):
    run = run_training(tmp_path / "run", 100, conditions=CLASSES, **LEARNING)
    model = load_model(tmp_path / "run")
    assert model.conditions == CLASSES
    centre = {}
    for name in CLASSES.classes:
        x = np.concatenate(list(sample(model, range(64), CLASSES.encode([name] * 64, [np.nan] * 64))))
        centre[name] = x[:, 0, 7:9, 7:9].mean((1, 2))
    assert (centre["bright"] > 0.2).mean() > 0.75
    assert (centre["dark"] < -0.2).mean() > 0.75
    ((_, shown, labels),) = run.grids
    assert len(shown) == len(labels)
    assert labels == sorted(labels)
    told = [np.sign(x[0, 7:9, 7:9].mean()) == (1 if label == "bright" else -1) for x, label in zip(shown, labels, strict=True)]
    assert np.mean(told) > 0.75


def test_balance_shows_the_rare_class_as_often():
    labels = np.array(["bright"] * 64 + ["dark"] * 8)
    data = discs(72, CLASSES, labels=labels, balance=1.0)
    trainer, given = trainer_for(CLASSES, batch=64, balance=1.0), []
    trainer.generator.register_forward_pre_hook(lambda net, inputs: given.append(inputs[1].numpy()))
    for _ in range(3):
        trainer.update(data)
    real = np.concatenate([labels[positions] for positions in data.patches.asked_for])
    assert 0.4 < (real == "dark").mean() < 0.6  # 8 of 72 otherwise
    assert 0.4 < np.concatenate(given)[:, 1].mean() < 0.6
    for positions, condition in zip(data.patches.asked_for, given[:2], strict=False):
        np.testing.assert_array_equal(condition, data.condition[positions])  # a pair shares its condition


@pytest.mark.parametrize(
    ("shape", "weight", "rate"),
    [((16, 16), 10, 1e-3), ((32, 32), 10, 1e-3), ((128, 128), 40, 1e-3), ((32, 32, 32), 56.6, 1e-3), ((64, 64, 64), 160, 3.54e-4)],
)
def test_penalty_and_learning_rate_follow_the_size_unless_they_are_given(shape, weight, rate):
    settled = TrainingConfig().settled(shape)
    assert (settled.penalty_weight, settled.learning_rate) == (weight, rate)
    assert settled.settled((8, 8)) == settled
    given = TrainingConfig(penalty_weight=0.0, learning_rate=0.5).settled(shape)
    assert (given.penalty_weight, given.learning_rate) == (0, 0.5)


def test_average_follows_the_half_life():
    data, trainer = discs(), trainer_for(average_share=0.5)
    name = "project.weight"
    expected = trainer.average.state_dict()[name].clone()
    for step in range(1, 5):
        trainer.update(data)
        keep = 0.5 ** (1 / (0.5 * step))
        expected = keep * expected + (1 - keep) * trainer.generator.state_dict()[name]
        torch.testing.assert_close(trainer.average.state_dict()[name], expected, rtol=1e-5, atol=1e-7)
    assert trainer.average.training is False
    last = trainer_for(average_share=0.0)
    last.update(data)
    assert torch.equal(last.average.project.weight, last.generator.project.weight)


def test_settled_average_has_its_own_batch_statistics():
    data, trainer = discs(conditions=CLASSES), trainer_for(CLASSES, batch=64, learning_rate=2e-3)
    for _ in range(20):
        trainer.update(data)
    trainer.settle(data)
    layers = [layer for layer in trainer.average.modules() if isinstance(layer, BatchNorm)]
    settled = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    trainer.settle(data)
    for (mean, variance), layer in zip(settled, layers, strict=True):
        assert torch.equal(mean, layer.running_mean)
        assert torch.equal(variance, layer.running_var)

    fresh, came_in = copy.deepcopy(trainer.average), []
    for layer in fresh.modules():
        if isinstance(layer, BatchNorm):
            layer.register_forward_pre_hook(lambda layer, inputs: came_in.append(inputs[0]))
    z = latents(range(1000, 2024), 8)
    condition = torch.from_numpy(data.condition[np.arange(len(z)) % len(data.condition)])
    with torch.no_grad():
        by_batch = fresh.train()(z, condition)
        settled_output = trainer.average(z, condition)
    assert (by_batch - settled_output).abs().mean() < 0.1 * by_batch.abs().mean()
    for x, (mean, variance) in zip(came_in, settled, strict=True):
        assert ((x.mean((0, 2, 3)) - mean).abs() < 0.15 * variance.sqrt()).all()
        assert ((x.var((0, 2, 3)) / variance).log().abs() < 0.3).all()


def test_settling_changes_nothing_that_training_computes():
    data, often, never = discs(), trainer_for(), trainer_for()
    for trainer in (often, never):
        for _ in range(3):
            trainer.update(data)
            if trainer is often:
                trainer.settle(data)
    one, other = often.tensors(), never.tensors()
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ == {f"average.{name}" for name, _ in often.average.named_buffers()}
    assert often.average.training is False


def test_mirroring_flips_left_to_right_only():
    corner = np.full((64, 1, 16, 16), -1.0, np.float32)
    corner[:, :, 0, 0] = 1
    for mirror in (True, False):
        trainer, seen = trainer_for(batch=64, n_critic=1, mirror=mirror), []
        trainer.critic.register_forward_pre_hook(lambda net, inputs, seen=seen: seen.append(inputs[0][:64, 0].detach().numpy()))
        trainer.update(TrainingSet(Patches(corner)))
        real = seen[0]
        assert ((real == 1).sum((1, 2)) == 1).all()
        flipped = (real[:, 0, -1] == 1).mean()
        assert 0.25 < flipped < 0.75 if mirror else flipped == 0
        assert (real[:, 0, 0] == 1).mean() == 1 - flipped
    assert corner[:, :, 0, 0].all()  # and the patches themselves are as they were


def test_latents_follow_from_their_seed_alone():
    many = latents(range(100), 8)
    torch.testing.assert_close(latents([42], 8)[0], many[42], rtol=0, atol=0)
    assert abs(many.mean()) < 0.15
    assert abs(many.std() - 1) < 0.1
    assert len({tuple(row.tolist()) for row in many}) == 100


@pytest.mark.parametrize("conditions", [NOTHING, BY_DIAMETER], ids=["plain", "conditional"])
def test_sample_does_not_depend_on_its_neighbours(tmp_path, conditions):
    run_training(tmp_path / "run", 2, conditions=conditions)
    model, count = load_model(tmp_path / "run"), 3 * TILE + 5
    asked = conditions.encode(np.resize(conditions.classes, count).tolist(), np.linspace(3, 30, count)) if conditions.size else None

    def draw(seeds, model=model):
        return np.concatenate(list(sample(model, seeds, None if asked is None else asked[seeds])))

    all_at_once = draw(range(count))
    for seeds in ([0], [70, 3, 99, 41], list(range(90, 20, -1))):
        np.testing.assert_array_equal(draw(seeds), all_at_once[seeds])
    assert (draw([0], load_model(tmp_path / "run", average=False))[0] != all_at_once[0]).any()
    wrong = np.zeros((1, 3), np.float32) if asked is None else None
    with pytest.raises(ValueError, match="this model takes no conditions" if asked is None else "give it condition="):
        next(sample(model, [0], wrong))


def test_every_step_sees_fresh_patches_and_fresh_latents():
    data, trainer, drawn = discs(), trainer_for(), []
    trainer.generator.register_forward_pre_hook(lambda net, inputs: drawn.append(tuple(inputs[0][0].tolist())))
    for _ in range(3):
        trainer.update(data)
    chosen = [tuple(positions.tolist()) for positions in data.patches.asked_for]
    assert len(chosen) == len(set(chosen)) == 3 * 2
    assert len(drawn) == len(set(drawn)) == 3 * (2 + 1)


def test_weights_start_as_dcgan_has_them():
    trainer = Trainer((32, 32), NetworkConfig(channels=16, latent=32), TrainingConfig(**QUICK))
    for name, weight in trainer.generator.named_parameters():
        if weight.ndim > 1:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name


def test_the_best_step_is_kept_and_found(tmp_path):
    found, looked_at = iter((5, 2, 4, 3)), []

    def validate(x, positions):
        looked_at.append((x, positions))
        return Validation(next(found), "scripted", {"validation/scripted": 7.0})

    run = run_training(
        tmp_path / "run", 8, held_out=discs(20, seed=1), validate=validate, checkpoint_every=2, n_critic=1, log_every=8, samples_every=8
    )
    steps = sorted(int(file.stem[5:]) for file in (tmp_path / "run" / "checkpoints").glob("*.json"))
    assert steps == [4, 6, 8]
    assert load_model(tmp_path / "run", "best").step == 4
    assert load_model(tmp_path / "run").step == 8
    assert load_checkpoint(tmp_path / "run").best == {"step": 4, "distance": 2, "measure": "scripted"}
    assert [line.get("validation/scripted") for line in run.metrics] == [7.0] * 4
    assert len(looked_at) == 4
    for x, positions in looked_at:
        assert x.shape == (len(positions), 1, 16, 16)
        assert set(positions) <= set(range(20))
        np.testing.assert_array_equal(positions, looked_at[0][1])  # the same at every step, or steps could not be compared
    assert (looked_at[0][0] != looked_at[1][0]).any()


def test_without_held_out_patches_nothing_is_called_best(tmp_path):
    for held_out in (None, TrainingSet(Patches(np.zeros((0, 1, 16, 16), np.float32)))):
        run = run_training(tmp_path / "run", 3, held_out=held_out, validate=by_distance(1.0))
        assert load_checkpoint(tmp_path / "run").best is None
        assert "wasserstein_held_out" not in run.metrics[-1]


def test_the_critics_estimate_on_held_out_patches_stands_beside_that_on_training_patches(tmp_path):
    same, other = (run_training(tmp_path / name, 4, held_out=discs(seed=seed)).metrics[-1] for name, seed in (("same", 0), ("other", 1)))
    assert same["wasserstein"] == same["wasserstein_held_out"] == pytest.approx(other["wasserstein"])  # all 64 of both are looked at
    assert other["wasserstein_held_out"] != other["wasserstein"]


def test_the_estimate_is_the_mean_score_of_patches_less_that_of_the_last_synthetic_ones(monkeypatch):
    gray = torch.full((1, 1, 16, 16), -0.5)
    drawn = training.draw
    monkeypatch.setattr("gan.trainer.draw", lambda *given: 0 * drawn(*given) + gray)
    trainer, data = trainer_for(), discs()
    trainer.update(data)
    with torch.no_grad():
        wanted = trainer.critic(torch.from_numpy(data.patches.values)).mean() - trainer.critic(gray).mean()
    assert trainer.look(data, None)["wasserstein"] == pytest.approx(wanted.item(), abs=1e-5)


def with_nan(data: TrainingSet, bad: int) -> TrainingSet:
    data.patches.values[bad, 0, 3, 3] = np.nan
    return TrainingSet(data.patches, data.condition, describe="patch number {} of the list".format)


def test_a_patch_that_is_not_finite_is_named(tmp_path):
    run_training(tmp_path / "run", 3)
    data = with_nan(discs(), 11)
    with pytest.raises(NotFinite, match=r"step \d+ is not finite, first seen in patch number 11 of the list; the last checkpoint is whole"):
        run_training(tmp_path / "run", 40, data)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.step >= 3
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values())


@pytest.mark.parametrize("conditions", [NOTHING, CLASSES], ids=["plain", "conditional"])
@pytest.mark.parametrize(
    ("net", "parameter"),
    [("critic", "layers.1.weight"), ("critic", "score.weight"), ("generator", "layers.2.weight"), ("generator", "layers.3.bias")],
)
def test_a_weight_that_is_not_finite_is_named(net, parameter, conditions):
    trainer = trainer_for(conditions)
    with torch.no_grad():
        getattr(trainer, net).get_parameter(parameter)[0] = torch.nan
    with pytest.raises(NotFinite, match=re.escape(f"first seen in {net}.{parameter};")):
        trainer.update(discs(conditions=conditions))


def test_a_layer_whose_output_is_not_finite_is_named():
    trainer = trainer_for()
    with torch.no_grad():
        for layer in trainer.critic.layers:
            layer.weight.fill_(1e38)  # finite itself
    with pytest.raises(NotFinite, match=r"first seen in layer critic\.layers\.\d;"):
        trainer.update(discs())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_infinities_are_not_finite_either(bad):
    net = torch.nn.Sequential(*(torch.nn.Linear(1, 1, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer in net:
            layer.weight.fill_(2)
    assert first_not_finite(net, "critic", torch.ones(1, 1)) is None
    assert first_not_finite(net, "critic", torch.full((1, 1), bad)) == "layer critic.0"
    with torch.no_grad():
        net[2].weight.fill_(bad)
    assert weight_not_finite(net, "critic") == "critic.2.weight"
    assert first_not_finite(net, "critic", torch.full((1, 1), bad)) == "critic.2.weight"  # a weight explains more than an output


def test_steps_that_are_not_finite_can_be_skipped(tmp_path):
    data = with_nan(discs(), 11)
    run = run_training(tmp_path / "run", 10, data, held_out=discs(20, seed=1), not_finite="skip")
    assert run.reached == 10
    assert 0 < run.metrics[-1]["skipped_steps"] < 20
    assert all(np.isfinite(value) for line in run.metrics for value in line.values())
    assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(tmp_path / "run").tensors.values())
    clean, trainer = discs(), trainer_for(not_finite="skip")
    trainer.update(clean)
    before = {name: tensor.clone() for name, tensor in trainer.tensors().items() if name.startswith("critic")}
    clean.patches.values[:] = np.nan
    trainer.update(clean)
    assert all(torch.equal(tensor, trainer.tensors()[name]) for name, tensor in before.items())  # a skipped step leaves no trace
    assert trainer.skipped == 2


def test_divergence_is_named_and_never_saved(tmp_path):
    run_training(tmp_path / "run", 3)
    with pytest.raises(ValueError, match="training diverged"):
        run_training(tmp_path / "run", 40, learning_rate=1e30, log_every=50)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values())


def test_sixty_four_bits_agree_with_thirty_two(tmp_path):
    for precision in ("32", "64"):
        run_training(tmp_path / precision, 3, conditions=CLASSES, precision=precision)
    single, double = (load_checkpoint(tmp_path / precision).tensors for precision in ("32", "64"))
    assert double["critic.layers.0.weight"].dtype == double["generator_optimizer.0.exp_avg"].dtype == torch.float64
    for name, tensor in single.items():
        if tensor.is_floating_point():
            assert (tensor - double[name]).norm() <= 1e-4 * double[name].norm() + 1e-12, name
    model = load_model(tmp_path / "64")
    assert next(sample(model, [0], CLASSES.encode(["dark"], [np.nan]))).dtype == np.float32


def test_patches_in_memory_and_on_the_disk_give_the_same_model(tmp_path, monkeypatch):
    data = discs(conditions=CLASSES)
    run_training(tmp_path / "memory", 3, data, CLASSES)
    assert len(data.patches.asked_for) == 1  # all at once, and never again
    monkeypatch.setattr(training, "IN_MEMORY", len(data.patches) * 16 * 16 * 4 - 1)
    run_training(tmp_path / "disk", 3, data, CLASSES)
    assert len(data.patches.asked_for) > 6
    assert load_checkpoint(tmp_path / "memory").model_hash == load_checkpoint(tmp_path / "disk").model_hash


def test_checkpoint_of_other_networks_is_refused(tmp_path):
    run_training(tmp_path / "run", 1)
    trainer = Trainer((16, 16), NetworkConfig(channels=6, latent=8), TrainingConfig(**QUICK))
    with pytest.raises(ValueError, match="does not fit these networks"):
        trainer.restore(load_checkpoint(tmp_path / "run"))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0}, {"batch": -1}, {"penalty_fraction": 0.0}, {"betas": (0.0, 1.0)}, {"seed": -1}, {"balance": 1.5},
        {"frozen_layers": -1}, {"devices": 0},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainingConfig(**change)


def test_more_frozen_layers_than_the_critic_has_are_refused():
    with pytest.raises(ValueError, match=r"training\.frozen_layers is 2, and the critic has 2 layers"):
        trainer_for(frozen_layers=2)


def test_metrics_forget_what_the_resumed_run_will_do_again(tmp_path):
    tracker = Tracker(tmp_path, 0, {})
    for step in (10, 20, 30):
        tracker.log(step, {"x": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "x"')  # cut short by a kill
    Tracker(tmp_path, 20, {}).log(30, {"x": -1.0})
    assert [json.loads(line)["x"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [10, 20, -1]
