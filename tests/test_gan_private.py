"""Private training: a patient moves the critic's sum by at most the clip norm and nothing else by anything; the budget holds through kills."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gan_context import free_patches
from test_gan_losses import WEIGHT, critic_with_biases
from test_gan_privacy import COHORT, stream
from test_gan_training import CLASSES, NETWORKS, NOTHING, QUICK, Patches, discs, run_training

from gan import privacy, private_trainer, training
from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gan.conditions import Conditions
from gan.config import PrivacyConfig, TrainingConfig
from gan.context import Backgrounds, Scene
from gan.losses import gradient_penalty, patient_gradients
from gan.networks import BatchNorm
from gan.privacy import Ledger, PrivacyPlan
from gan.private_step import MARGIN, clipped_sum, clipped_sum_by_autograd
from gan.private_trainer import PrivateTrainer
from gan.processes import Processes
from gan.tracker import Tracker
from gan.trainer import TrainingSet
from gan.training import TIMING, Hooks, train

PATIENTS = 12
PLAN = PrivacyPlan(patients=PATIENTS, expected=4, patches=2, clip_norm=0.5, noise_multiplier=3.0, delta=1e-5, critic_steps=20)


def vector(gradients) -> torch.Tensor:
    """A gradient as one vector in float64, whatever its parameters are."""
    return torch.cat([g.double().flatten() for g in (gradients.values() if isinstance(gradients, dict) else gradients)])


def patients_for(shape, n=5, k=3, p=2, conditions=0, dtype=torch.float64, seed=1):
    """What clipped_sum takes of n patients, of whom the second has one patch only: real, synthetic, mix, there, weight, and condition."""
    rng = torch.Generator().manual_seed(seed)
    real, synthetic = (torch.rand(n, k, 1, *shape, dtype=dtype, generator=rng) * 2 - 1 for _ in range(2))
    mix, there = torch.rand(n, p, 1, *[1] * len(shape), dtype=dtype, generator=rng), torch.ones(n, k, dtype=dtype)
    there[1:2, 1:] = 0
    given_ones = SimpleNamespace(real=real, synthetic=synthetic, mix=mix, there=there, condition=None)
    if conditions:
        given_ones.condition = torch.rand(n, k, conditions, dtype=dtype, generator=rng)
    return given_ones


def of(patients, rows, clip_norm=None):
    """The arguments after the critic, of some of the patients; without clip_norm those of patient_gradients."""
    per_patient = [getattr(patients, name)[rows] for name in ("real", "synthetic", "mix", "there")]
    condition = None if patients.condition is None else patients.condition[rows]
    return (*per_patient, WEIGHT, *([] if clip_norm is None else [clip_norm]), condition)


def one_by_one(critic, patients) -> list[torch.Tensor]:
    """Each patient's gradient as the definition has it, by double backward."""
    wanted, found = [p for p in critic.parameters() if p.requires_grad], []
    k, p = patients.real.shape[1], patients.mix.shape[1]
    for n, (real, synthetic, mix, m) in enumerate(zip(patients.real, patients.synthetic, patients.mix, patients.there, strict=True)):
        condition = [] if patients.condition is None else [patients.condition[n]]
        difference = critic(synthetic, *condition) - critic(real, *condition)
        penalty = gradient_penalty(critic, real[:p], synthetic[:p], mix, *(c[:p] for c in condition))
        loss = (m * difference).sum() / k + WEIGHT * (m[:p] * penalty).sum() / p
        found.append(vector(torch.autograd.grad(loss, wanted)))
    return found


@pytest.mark.parametrize(
    ("shape", "k", "p", "conditions", "frozen"),
    [
        ((16, 16), 1, 1, 0, 0), ((16, 16), 3, 3, 3, 0), ((16, 24), 3, 2, 0, 1), ((32, 32), 3, 1, 3, 1), ((16, 16), 1, 1, 3, 0),
        ((16, 16, 16), 1, 1, 3, 0), ((8, 16, 24), 3, 2, 0, 0), ((8, 16, 16), 3, 3, 3, 1),
    ],
)  # fmt: skip
def test_gradients_and_their_clipped_sum_equal_a_plain_loop_over_patients(shape, k, p, conditions, frozen):
    critic, patients = critic_with_biases(shape, conditions=conditions), patients_for(shape, 5, k, p, conditions)
    critic.layers[:frozen].requires_grad_(False)
    wanted = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    expected, everyone = one_by_one(critic, patients), slice(None)
    found = list(patient_gradients(critic, *of(patients, everyone)))
    assert all(set(gradients) == set(wanted) for gradients in found)
    for ours, theirs in zip(found, expected, strict=True):
        assert (vector([ours[parameter] for parameter in wanted]) - theirs).norm() <= 1e-10 * theirs.norm()
    norms = torch.stack(expected).norm(dim=1)
    for rows in (everyone, slice(2, 3)):
        for clip_norm in (0.1 * norms.min().item(), norms.median().item(), 2 * norms.max().item()):  # bites all, some, none
            scale = (clip_norm * (1 - MARGIN) / norms).clamp(max=1)
            total = sum(factor * theirs for factor, theirs in zip(scale[rows], expected[rows], strict=True))
            for way in (clipped_sum, clipped_sum_by_autograd):
                ours = way(critic, *of(patients, rows, clip_norm))
                assert list(ours) == wanted
                assert (vector(ours) - total).norm() <= 1e-10 * total.norm(), (way, clip_norm)
    for way in (clipped_sum, clipped_sum_by_autograd):
        assert not vector(way(critic, *of(patients, slice(0), 1.0))).any()  # nobody came


def test_a_patch_that_is_not_there_counts_for_nothing():
    critic, patients = critic_with_biases((16, 16)), patients_for((16, 16))
    (before,) = patient_gradients(critic, *of(patients, slice(1, 2)))
    patients.real[1, 1:] = torch.rand_like(patients.real[1, 1:])
    patients.synthetic[1, 1:] = 0
    (after,) = patient_gradients(critic, *of(patients, slice(1, 2)))
    assert torch.equal(vector(before), vector(after))


HOSTILE = {
    "black": lambda x: torch.full_like(x, -1.0), "nan": lambda x: torch.full_like(x, torch.nan), "inf": lambda x: x * torch.inf,
    "one pixel": lambda x: x.flatten().index_fill(0, torch.tensor([5]), torch.nan).view(x.shape), "huge": lambda x: x * 1e30,
    "large": lambda x: x * 1e6, "checkered": lambda x: x.sign(), "tiny": lambda x: x * 1e-30,
}  # fmt: skip


@pytest.mark.parametrize("way", [clipped_sum, clipped_sum_by_autograd])
@pytest.mark.parametrize("hostile", HOSTILE)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31), where=st.integers(0, 8), clip_norm=st.sampled_from([1e-3, 1.0, 1e3]), bits=st.sampled_from([32, 64]))
def test_one_patient_more_or_less_moves_the_sum_by_at_most_the_clip_norm(way, hostile, seed, where, clip_norm, bits):
    dtype = torch.float32 if bits == 32 else torch.float64
    critic, patients = critic_with_biases((16, 16), dtype, 3), patients_for((16, 16), 9, 2, 1, 3, dtype, seed)
    patients.real[where] = HOSTILE[hostile](patients.real[where])
    others = [n for n in range(9) if n != where]
    more, less = (vector(way(critic, *of(patients, rows, clip_norm))) for rows in (list(range(9)), others))
    assert torch.isfinite(more).all()
    assert (more - less).norm() <= clip_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_others_gradients_are_the_same_bits_whoever_the_patient_is(dtype):
    critic, patients = critic_with_biases((16, 16), dtype, 3), patients_for((16, 16), 6, 2, 1, 3, dtype)
    ordinary = [vector(found) for found in patient_gradients(critic, *of(patients, slice(None)))]
    as_before = patients.real.clone()
    for change in HOSTILE.values():
        patients.real = as_before.clone()
        patients.real[2] = change(as_before[2])
        found = [vector(gradients) for gradients in patient_gradients(critic, *of(patients, slice(None)))]
        assert all(torch.equal(ours, theirs) for n, (ours, theirs) in enumerate(zip(found, ordinary, strict=True)) if n != 2)


def test_the_norm_is_exact_where_32_bits_lose_the_small_among_the_large(monkeypatch):
    gradient = torch.full((2_000_000,), 3e-4)
    gradient[:64] = 1.0
    assert gradient.norm().double() < gradient.double().norm() * (1 - 5 * MARGIN)  # what clipping must not go by
    critic = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(len(gradient)))])
    monkeypatch.setattr("gan.private_step.patient_gradients", lambda *given_ones: iter([{critic[0]: gradient}]))
    (total,) = clipped_sum(critic, *[torch.zeros(1)] * 4, WEIGHT, 1.0).values()
    assert total.double().norm().item() == pytest.approx(1 - MARGIN, rel=1e-6)


def cohort(conditions=NOTHING, patients=PATIENTS, seed=0, labels=None) -> TrainingSet:
    """Discs of patients with one to four patches each, not in order; in a private run, nobody may ask what a patch is called."""
    sizes = [1 + (3 * n) % 4 for n in range(patients)]
    names = np.random.default_rng(seed).permutation(np.repeat([f"p{n:02d}" for n in range(patients)], sizes))
    data = discs(len(names), conditions, seed, labels=labels)

    def describe(position: int) -> str:
        raise AssertionError(f"asked who patch {position} is")

    return TrainingSet(data.patches, data.condition, None, names, describe, np.linspace(3, 9, len(names)))


def trainer_for(plan=PLAN, conditions=NOTHING, processes=None, n_critic=3, adaptive=False, backgrounds=None, **changes) -> PrivateTrainer:
    config, privacy = TrainingConfig(**{**QUICK, "learning_rate": 1e-4, **changes}), PrivacyConfig(n_critic=n_critic, adaptive=adaptive)
    return PrivateTrainer((16, 16), NETWORKS, config, privacy, plan, conditions, processes, backgrounds)


ALL = Conditions(("bright", "dark"), diameter=True)
ANATOMY = Backgrounds(free_patches(30, (16, 16)), (1.0, 1.0), (16, 16), "public")
KINDS = pytest.mark.parametrize(
    ("conditions", "backgrounds"), [(NOTHING, None), (ALL, None), (ALL, ANATOMY)], ids=["plain", "conditional", "in anatomy"]
)


def inputs_of(given_ones) -> list[torch.Tensor]:
    """What a generator was given, one by one, (N, ...): latents, conditions, and the parts of a scene."""
    return [x for one in given_ones if one is not None for x in (one if isinstance(one, Scene) else [one])]


class Constant:
    """In place of the generator of random numbers nobody knows: whoever asks gets the same, so that two ways can be compared."""

    def permutation(self, positions):
        return np.sort(positions)

    def random(self, shape, dtype=np.float64):
        return np.full(shape, 0.7, dtype)

    def standard_normal(self, shape, dtype=np.float64):
        return np.full(shape, 0.3, dtype)


def all_join(count, rate):
    return np.arange(count)


def nobody_joins(count, rate):
    return np.arange(0)


def no_noise(count):
    return torch.zeros(count, dtype=torch.float64)


def watched(trainer) -> list[torch.Tensor]:
    """The gradients of its critic steps, as they come."""
    seen: list[torch.Tensor] = []
    trainer.observe = lambda gradients: seen.append(vector(gradients))
    return seen


def tapped(monkeypatch, trainer) -> list[dict]:
    """What is summed over patients before noise, call by call, as they come."""
    seen, real = [], trainer._clipped_sum
    monkeypatch.setattr(trainer, "_clipped_sum", lambda data, patients: seen.append(real(data, patients)) or seen[-1])
    return seen


@pytest.mark.parametrize("precision", ["32", "64", "bf16-mixed"])
@pytest.mark.parametrize("joined", [[], [4], [0, 3, 5, 7, 8, 11]])
def test_a_step_is_the_clipped_sum_plus_noise_over_the_number_expected(monkeypatch, joined, precision):
    data, trainer = cohort(CLASSES), trainer_for(conditions=CLASSES, precision=precision)
    asked, noise = [], []

    def poisson(count, rate):
        asked.append((count, rate))
        return np.array(joined, int)

    def gaussian(count):
        noise.append(torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
        return noise[-1].clone()

    monkeypatch.setattr(private_trainer, "poisson", poisson)
    monkeypatch.setattr(private_trainer, "gaussian", gaussian)
    seen, sums = watched(trainer), tapped(monkeypatch, trainer)
    before = vector(p.detach().clone() for p in trainer.critic.parameters())
    norm = trainer._private_critic_step(data)
    assert asked == [(PATIENTS, 4 / 12)]
    assert len(noise) == 1
    total = vector(sums[0]) if joined else torch.zeros(len(noise[0]))
    assert bool(joined) == (total.norm() > 0)
    expected = (total + 3.0 * 0.5 * noise[0]) / 4
    torch.testing.assert_close(seen[0], expected, rtol=1e-6, atol=1e-9)  # rounded to 32 bits
    assert torch.equal(seen[0].float().double(), seen[0])  # also where the networks have 64
    assert norm == pytest.approx(expected.norm().item(), rel=1e-5)
    assert (vector(p.detach() for p in trainer.critic.parameters()) != before).all()
    assert trainer.critic_steps == 1
    assert bool(joined) == bool(data.patches.asked_for)


def test_noise_has_the_planned_deviation_and_is_new_in_every_step(monkeypatch):
    source = stream("steps")
    monkeypatch.setattr(private_trainer, "gaussian", lambda count: privacy.gaussian(count, source))
    monkeypatch.setattr(private_trainer, "poisson", nobody_joins)
    trainer = trainer_for(replace(PLAN, noise_multiplier=50.0))
    seen = watched(trainer)
    for _ in range(10):
        trainer._private_critic_step(cohort())
    steps = torch.stack(seen) * 4 / (50 * 0.5)
    error = 4 / math.sqrt(steps.numel())
    assert abs(steps.mean()) < error
    assert abs(steps.std() - 1) < error
    assert abs((steps[1:] * steps[:-1]).mean()) < 1.1 * error
    assert abs((steps[:, 1:] * steps[:, :-1]).mean()) < 1.1 * error
    assert trainer.critic_steps == 10


def test_everyone_gives_k_patches_of_their_own_and_each_only_once(monkeypatch):
    monkeypatch.setattr(private_trainer, "poisson", all_join)
    data, trainer, given_ones = cohort(CLASSES), trainer_for(replace(PLAN, patches=3), CLASSES), []

    def spy(critic, real, synthetic, mix, there, weight, clip_norm, condition):
        given_ones.append((there, condition))
        return clipped_sum(critic, real, synthetic, mix, there, weight, clip_norm, condition)

    monkeypatch.setattr(private_trainer, "clipped_sum", spy)
    chosen = set()
    for _ in range(12):
        trainer._private_critic_step(data)
        positions, (there, condition) = data.patches.asked_for[-1].reshape(-1, 3), given_ones[-1]
        owners = data.patients[positions]
        assert (owners == owners[:, :1]).all()
        assert sorted(owners[:, 0]) == sorted(set(data.patients))
        np.testing.assert_array_equal(condition, data.condition[positions])
        for row, m, owner in zip(positions, there, owners[:, 0], strict=True):
            owned = int((data.patients == owner).sum())
            assert m.tolist() == [n < owned for n in range(3)]
            assert len(set(row[: min(3, owned)])) == min(3, owned)
        chosen |= set(positions.ravel().tolist())
    assert chosen == set(range(len(data.patches)))  # over some steps, all of them


@pytest.mark.parametrize("precision", ["32", "64"])
def test_one_patient_more_moves_a_step_by_at_most_what_the_noise_is_made_for(monkeypatch, precision):
    monkeypatch.setattr(private_trainer, "poisson", all_join)
    monkeypatch.setattr(private_trainer, "gaussian", no_noise)
    data, moved = cohort(CLASSES), []
    for hostile in (0.5, np.nan, np.inf, 1e30, -1.0):
        for patient in ("p01", "p06"):
            data.patches.values[data.patients == patient] = hostile
            kept = data.patients != patient
            without = TrainingSet(Patches(data.patches.values[kept]), data.condition[kept], None, data.patients[kept])
            seen = []
            for one in (data, without):
                trainer = trainer_for(conditions=CLASSES, precision=precision)
                trainer._private = Constant()
                seen.append(watched(trainer))
                trainer._private_critic_step(one)
            moved.append(4 * (seen[0][0] - seen[1][0]).norm().item())
            assert moved[-1] <= PLAN.clip_norm
    assert max(moved) > 0.5 * PLAN.clip_norm  # and it is not all dropped


@pytest.mark.parametrize(("conditions", "backgrounds"), [(CLASSES, None), (ALL, ANATOMY)], ids=["plain", "in anatomy"])
def test_synthetic_partners_do_not_depend_on_who_else_joined(monkeypatch, conditions, backgrounds):
    data, trainer = cohort(conditions), trainer_for(conditions=conditions, backgrounds=backgrounds)
    trainer.update(data)
    drawn, statistics = [], [layer for layer in trainer.generator.modules() if isinstance(layer, BatchNorm)]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in statistics]
    hook = trainer.generator.register_forward_hook(lambda net, inputs, output: drawn.append((net.training, *inputs, output)))
    monkeypatch.setattr(private_trainer, "poisson", all_join)
    trainer._private_critic_step(data)
    hook.remove()
    ((was_training, *inputs, x),) = drawn
    assert not was_training
    assert trainer.generator.training
    assert len(x) == PATIENTS * PLAN.patches
    trainer.generator.eval()
    for n in range(0, len(x), PLAN.patches):
        alone = slice(n, n + PLAN.patches)
        mine = [Scene(*(part[alone] for part in one)) if isinstance(one, Scene) else one[alone] for one in inputs]
        torch.testing.assert_close(trainer.generator(*mine), x[alone], rtol=1e-5, atol=1e-6)
    for layer, (mean, variance) in zip(statistics, before, strict=True):
        assert torch.equal(layer.running_mean, mean)
        assert torch.equal(layer.running_var, variance)


def test_anatomy_is_chosen_by_each_patients_own_patches_and_turned_every_way_as_theirs_are(monkeypatch):
    monkeypatch.setattr(private_trainer, "poisson", all_join)
    data, shown, given_ones = cohort(ALL), [], []

    def spy(critic, real, *others):
        given_ones.append(real.flatten(0, 1))
        return clipped_sum(critic, real, *others)

    monkeypatch.setattr(private_trainer, "clipped_sum", spy)
    for hostile in (False, True):
        if hostile:
            data.patches.values[data.patients == "p01"] = np.nan
        trainer = trainer_for(conditions=ALL, backgrounds=ANATOMY)
        trainer._private = np.random.default_rng(0)
        trainer.generator.register_forward_pre_hook(lambda net, inputs: shown.append(inputs[2]))
        trainer._private_critic_step(data)
    rest = np.repeat(np.unique(data.patients) != "p01", PLAN.patches)
    for one, other in zip(*shown, strict=True):
        assert torch.equal(one[rest], other[rest])
    data.patches.values[:] = -1
    data.patches.values[..., 2, 3] = 1
    data.diameters_mm[:] = 30  # so all of a patch is seen
    trainer._private_critic_step(data)
    assert set(given_ones[-1].flatten(1).argmax(1).tolist()) == {16 * y + x for y in (2, 13) for x in (3, 12)}


def test_the_critic_sees_samples_with_the_contrast_of_the_last_update():
    trainer = trainer_for(conditions=CLASSES)
    for settled in (0, 1):  # from the first step on
        z = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
        condition = torch.from_numpy(CLASSES.encode(np.resize(CLASSES.classes, 256).tolist(), [np.nan] * 256))
        with torch.no_grad():
            in_eval = trainer.generator.eval()(z, condition)
            in_training = trainer.generator.train()(z, condition)
        assert (in_eval - in_training).abs().mean() < 0.5 * in_training.abs().mean()
        if not settled:
            trainer.update(cohort(CLASSES))


def test_a_step_in_parts_is_the_same_step(monkeypatch):
    monkeypatch.setattr(private_trainer, "poisson", all_join)
    monkeypatch.setattr(private_trainer, "gaussian", no_noise)
    seen, parts = {}, {}
    for at_once in (1, 5 * 2 * 2 * 16 * 16, 1 << 25):
        monkeypatch.setattr(private_trainer, "AT_ONCE", at_once)
        trainer = trainer_for(conditions=CLASSES, precision="64")
        trainer._private = Constant()
        gradients, sums = watched(trainer), tapped(monkeypatch, trainer)
        trainer._private_critic_step(cohort(CLASSES))
        seen[at_once], parts[at_once] = gradients[0], len(sums)
    assert list(parts.values()) == [12, 3, 1]
    for gradient in seen.values():
        torch.testing.assert_close(gradient, seen[1 << 25], rtol=1e-6, atol=1e-12)


class Guarded(Patches):
    """Patches, conditions or diameters that may be looked at while `open` only."""

    def __init__(self, values, gate):
        super().__init__(values)
        self.gate = gate

    def __getitem__(self, positions):
        assert self.gate.open, "looked at outside the clipped sum"
        return super().__getitem__(positions)


def guarded(monkeypatch, conditions=CLASSES) -> TrainingSet:
    """A cohort whose patches and conditions raise unless a clipped sum asks for them."""
    gate, data, real = SimpleNamespace(open=False), cohort(conditions), PrivateTrainer._clipped_sum

    def clipped(*given_ones):
        gate.open = True
        try:
            return real(*given_ones)
        finally:
            gate.open = False

    monkeypatch.setattr(PrivateTrainer, "_clipped_sum", clipped)
    condition = None if data.condition is None else Guarded(data.condition, gate)
    return replace(data, patches=Guarded(data.patches.values, gate), condition=condition, diameters_mm=Guarded(data.diameters_mm, gate))


ALLOWED = {
    "step", "generator_loss", "critic_gradient_norm", "generator_gradient_norm", "n_critic", "critic_steps", "epsilon",
}  # fmt: skip


@pytest.fixture
def free_accounting(monkeypatch):
    """Epsilon in proportion to the steps, where the test is not about it."""
    monkeypatch.setattr(PrivacyPlan, "epsilon", lambda plan, steps: steps / 10)


def fresh_run(run: Path, trainer, data, conditions=CLASSES, log=lambda step, metrics: None) -> tuple[int, list]:
    """Trains, or resumes, with a ledger, whose say at each moment that something is shown comes back beside the trainer's."""
    ledger, told = Ledger(run, trainer.plan, COHORT, any(run.glob("checkpoints/*.json"))), []
    trainer.spend_before(ledger)

    def shown(what):
        told.append((what, trainer.critic_steps, Ledger(run, trainer.plan, COHORT, True).spent))

    def logged(step, metrics):
        shown("metrics")
        log(step, metrics)

    hooks = Hooks(
        tracker=lambda step: Tracker(run, step, {}),
        samples=lambda *grid: shown("samples"),
        saved=lambda step: shown("checkpoint"),
        log=logged,
    )
    return train(trainer, data, None, conditions, NETWORKS, run, {"shape": [16, 16]}, hooks), told


@pytest.mark.usefixtures("free_accounting")
@KINDS
def test_a_whole_run_looks_at_patients_through_the_clipped_sum_only(tmp_path, monkeypatch, conditions, backgrounds):
    monkeypatch.setattr(training, "IN_MEMORY", 0)  # else all patches are copied to the device once
    monkeypatch.setattr(private_trainer, "LOOK_EVERY", 2)
    data = guarded(monkeypatch, conditions)
    trainer = trainer_for(conditions=conditions, adaptive=True, samples_every=4, log_every=4, backgrounds=backgrounds)
    metrics = []
    _, told = fresh_run(tmp_path, trainer, data, conditions, lambda step, line: metrics.append(line))
    assert {what for what, *_ in told} == {"metrics", "samples", "checkpoint"}
    assert all(set(line) <= ALLOWED | set(TIMING) for line in metrics)  # how long it took goes to the screen only
    assert data.patches.asked_for
    trainer.about_to_show()
    trainer.settle(data)
    assert set(trainer.look(data, data)) == {"critic_steps", "epsilon"}
    described = load_checkpoint(tmp_path)
    assert set(described.tensors) == set(trainer.tensors())
    assert {name.partition(".")[0] for name in described.tensors} == {
        "generator", "average", "critic", "generator_optimizer", "critic_optimizer", "adaptive",
    }  # fmt: skip


@KINDS
def test_what_the_generator_is_asked_for_is_the_same_for_any_training_set(monkeypatch, conditions, backgrounds):
    monkeypatch.setattr(private_trainer, "poisson", nobody_joins)
    monkeypatch.setattr(private_trainer, "gaussian", no_noise)
    seen = []
    for labels, seed in ((None, 0), (np.array(["dark"] * 30), 1)):
        data, asked = cohort(conditions, seed=seed, labels=labels), []
        trainer = trainer_for(conditions=conditions, backgrounds=backgrounds)
        for net in (trainer.generator, trainer.average):
            net.register_forward_pre_hook(lambda net, inputs, asked=asked: asked.append([x.flatten(1) for x in inputs_of(inputs)]))
        trainer.update(data)
        trainer.settle(data)
        seen.append(([torch.cat(inputs, 1) for inputs in asked], trainer.tensors()))
    (one, tensors), (other, others) = seen
    assert len(one) == len(other) > 2
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())  # where nobody joined, nothing differs
    if conditions.size:
        drawn = torch.cat(one)[:, 8 : 8 + conditions.size]
        assert 0.4 < drawn[:, 0].mean() < 0.6  # both classes equally often
        assert (drawn[:, 2:].mean(0) > 0.1).all()  # and all diameters


@pytest.mark.parametrize(("hold", "adaptive", "expected"), [(-1.0, True, [2, 3, 4.5, 5]), (2.0, True, [2] * 4), (-1.0, False, [2] * 4)])
def test_n_critic_grows_while_the_critic_has_no_hold_up_to_its_cap(monkeypatch, hold, adaptive, expected):
    for name, value in (("HOLD", hold), ("LOOK_EVERY", 1), ("MOST_N_CRITIC", 5)):
        monkeypatch.setattr(private_trainer, name, value)
    data, trainer, found = guarded(monkeypatch), trainer_for(replace(PLAN, critic_steps=100), CLASSES, n_critic=2, adaptive=adaptive), []
    for _ in range(6):
        before = trainer.critic_steps
        trainer.update(data)
        found.append((trainer.n_critic, trainer.critic_steps - before))
    assert [n_critic for n_critic, _ in found[:4]] == expected
    assert [steps for _, steps in found[1:]] == [round(n_critic) for n_critic, _ in found[:-1]]
    assert found[-1][0] == expected[-1]


@pytest.mark.parametrize("followed", [True, False])
def test_n_critic_grows_where_the_critic_takes_all_later_samples_for_more_real(monkeypatch, followed):
    monkeypatch.setattr(private_trainer, "LOOK_EVERY", 1)
    trainer = trainer_for(adaptive=True)
    monkeypatch.setattr(trainer.critic, "forward", lambda x, condition=None: x.mean((1, 2, 3)))
    trainer._adapt()
    assert trainer.n_critic == 3  # nothing to compare with yet
    trainer._before.fill_(-1.0 if followed else 1.0)
    trainer._adapt()
    assert trainer.n_critic == (4.5 if followed else 3)


@pytest.mark.parametrize(("n_critic", "steps"), [(1, 20), (3, 7), (7, 3), (200, 1)])
def test_a_run_ends_with_its_last_critic_step(n_critic, steps):
    data, trainer = cohort(), trainer_for(n_critic=n_critic)
    while trainer.progress < 1:
        before = trainer.critic_steps
        trainer.update(data)
        assert before < trainer.critic_steps <= 20
    assert (trainer.progress, trainer.critic_steps, trainer.step) == (1, 20, steps)
    update = trainer.update(data)  # as a dry run may ask for
    assert trainer.critic_steps == 20
    assert math.isnan(update["critic_gradient_norm"])


@pytest.mark.usefixtures("free_accounting")
def test_what_counts_critic_steps_comes_with_the_first_update_that_reaches_it(tmp_path):
    trainer = trainer_for(n_critic=3, conditions=CLASSES, log_every=5, samples_every=0, checkpoint_every=1000)
    _, told = fresh_run(tmp_path, trainer, cohort(CLASSES))
    assert [steps for what, steps, _ in told if what == "metrics"] == [3, 6, 12, 15, 20]  # a sign of life, then 5, 10, 15 and the end


def test_a_run_of_few_updates_ends_before_its_budget(tmp_path):
    data, trainer = cohort(), trainer_for(steps=2)
    while trainer.progress < 1:
        trainer.update(data)
    assert (trainer.progress, trainer.critic_steps, trainer.step) == (1, 6, 2)


@pytest.mark.usefixtures("free_accounting")
def test_what_was_shown_before_a_kill_is_spent_and_the_resumed_run_ends_earlier(tmp_path, monkeypatch):
    data, done, step = cohort(CLASSES), [], PrivateTrainer._private_critic_step
    monkeypatch.setattr(PrivateTrainer, "_private_critic_step", lambda trainer, data: done.append(1) or step(trainer, data))

    def killed_at(steps):
        def log(_, metrics):
            if metrics["critic_steps"] >= steps:
                raise KeyboardInterrupt

        return log

    often = {"log_every": 1, "checkpoint_every": 9, "conditions": CLASSES}
    for killed, saved, spent in ((6, None, 6), (15, 9, 15), (18, 9, 18)):  # by 3; what a kill undoes stays spent
        with pytest.raises(KeyboardInterrupt):
            fresh_run(tmp_path, trainer_for(**often), data, log=killed_at(killed))
        assert Ledger(tmp_path, PLAN, COHORT, True).spent == spent
        assert bool(list(tmp_path.glob("checkpoints/*.json"))) == (saved is not None)
        if saved:
            assert load_checkpoint(tmp_path).privacy_spent["critic_steps"] == saved
    done.clear()
    trainer = trainer_for(**often)
    _, told = fresh_run(tmp_path, trainer, data)
    assert len(done) == 2  # of 20
    assert trainer.progress == 1
    assert told
    assert all(critic_steps <= spent <= 20 for _, critic_steps, spent in told)
    spent = load_checkpoint(tmp_path).privacy_spent
    assert (spent["critic_steps"], spent["epsilon"], spent["plan"]) == (20, 2.0, asdict(PLAN))
    assert "20 critic steps so far" in spent["sentence"]
    again = trainer_for(**often)
    fresh_run(tmp_path, again, data)
    assert len(done) == 2  # nothing is left to do
    with pytest.raises(ValueError, match="want 20, spent before"):
        again.ledger.spend(19)


@pytest.mark.usefixtures("free_accounting")
def test_a_resumed_run_has_the_state_it_had(tmp_path, monkeypatch):
    for name, value in (("HOLD", -1.0), ("LOOK_EVERY", 1)):
        monkeypatch.setattr(private_trainer, name, value)
    data, trainer = cohort(CLASSES), trainer_for(conditions=CLASSES, n_critic=2, adaptive=True)
    for _ in range(3):
        trainer.update(data)
    save_checkpoint(tmp_path, Checkpoint(trainer.step, {}, {}, trainer.tensors(), {}, trainer.privacy_spent))
    resumed = trainer_for(conditions=CLASSES, n_critic=2, adaptive=True)
    resumed.restore(load_checkpoint(tmp_path))
    assert (resumed.step, resumed.critic_steps, resumed.n_critic) == (3, 7, 4.5)
    assert resumed.tensors().keys() == trainer.tensors().keys()
    assert all(torch.equal(tensor, resumed.tensors()[name]) for name, tensor in trainer.tensors().items())
    assert resumed.privacy_spent == trainer.privacy_spent
    assert trainer._private.random() != resumed._private.random()  # what nobody knows is not repeated


def test_a_checkpoint_without_privacy_is_refused(tmp_path):
    run_training(tmp_path, 2)
    with pytest.raises(ValueError, match="checkpoint of step 2 is of a run without privacy"):
        trainer_for().restore(load_checkpoint(tmp_path))


class OneOfTwo(Processes):
    """A process beside another that is not there: what it adds to a sum is kept, and comes back alone."""

    def __init__(self, rank):
        super().__init__(TrainingConfig(device="cpu", precision="64"))
        self.rank, self.count, self.given = rank, 2, []

    def sum(self, tensors):
        self.given.append([tensor.clone() for tensor in tensors])
        return list(tensors)

    def differentiable_sum(self):
        return None


def test_two_processes_add_one_noise_and_every_patient_once(monkeypatch):
    noises = []

    def gaussian(count):
        noises.append(torch.linspace(-1, 1, count, dtype=torch.float64))
        return noises[-1].clone()

    monkeypatch.setattr(private_trainer, "poisson", all_join)
    monkeypatch.setattr(private_trainer, "gaussian", gaussian)

    def contribution(processes):
        data, trainer = cohort(CLASSES), trainer_for(conditions=CLASSES, processes=processes, precision="64")
        trainer._private = Constant()
        summed = []
        monkeypatch.setattr(trainer.processes, "sum", lambda tensors: summed.append(vector(tensors)) or list(tensors))
        trainer._share(data)
        trainer._private_critic_step(data)
        (one,) = summed
        return one, set(data.patients[np.concatenate(data.patches.asked_for)])

    whole, everybody = contribution(None)
    (first, some), (second, others) = (contribution(OneOfTwo(rank)) for rank in (0, 1))
    assert len(noises) == 2  # the whole run's, and the first of the two processes'
    assert some | others == everybody
    assert not some & others
    torch.testing.assert_close(first + second, whole, rtol=1e-12, atol=1e-12)


def test_all_processes_count_on_from_the_first_ones_ledger(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, PLAN, COHORT)
    ledger.spend(7)
    first = trainer_for()
    first.spend_before(ledger)
    other = trainer_for(processes=OneOfTwo(1))
    monkeypatch.setattr(other.processes, "sum", lambda tensors: [tensor + 7 for tensor in tensors])
    other.spend_before(None)
    assert (first.critic_steps, other.critic_steps) == (7, 7)


def test_two_trainers_of_one_seed_choose_differently():
    one, other = trainer_for(), trainer_for()
    assert torch.equal(vector(p.detach() for p in one.critic.parameters()), vector(p.detach() for p in other.critic.parameters()))
    assert (one._private.random(8) != other._private.random(8)).all()
