"""Lesions drawn into lesion-free patches: what may change, what may not, and that the trainer learns it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from gan.conditions import Conditions
from gan.config import NetworkConfig, TrainingConfig
from gan.context import (
    MARGIN_MM,
    REACH,
    SEEN_MM,
    SOFT_MM,
    Backgrounds,
    ContextGenerator,
    contrast,
    largest_mm,
    lesion_masks,
    privacy_of_composites,
    radius_mm,
    scene_of,
    support,
)
from gan.losses import critic_gradients, critic_loss_textbook
from gan.networks import Critic
from gan.processes import Processes
from gan.trainer import Trainer, TrainingSet, draw, seen

SHAPES = [(32, 32), (16, 16, 16)]


def free_patches(count: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Dark lung with noise, and in every second patch a bright wall along one side."""
    rng = np.random.default_rng(seed)
    patches = -0.8 + 0.05 * rng.standard_normal((count, 1, *shape))
    patches[::2, ..., : shape[-1] // 4] = 0.6
    return patches.clip(-1, 1).astype(np.float32)


def with_discs(patches: np.ndarray, diameters_mm: np.ndarray, value: float = 0.3) -> np.ndarray:
    axes = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in patches.shape[2:]], indexing="ij")
    distance = np.sqrt(sum(np.square(axis) for axis in axes))
    return np.where(distance <= diameters_mm.reshape(-1, *[1] * (patches.ndim - 1)) / 2, np.float32(value), patches)


@given(st.floats(2, 30), st.sampled_from([1.0, 0.7, 2.0]), st.sampled_from(SHAPES))
def test_the_support_is_whole_inside_and_nothing_beyond(diameter, spacing, shape):
    (found,) = support(shape, [spacing] * len(shape), [diameter])[:, 0]
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing for n in shape], indexing="ij")
    distance = np.sqrt(sum(np.square(axis) for axis in axes))
    inner = diameter / 2 * REACH + MARGIN_MM
    assert (found[distance <= inner - 1e-6] == 1).all()
    assert (found[distance >= inner + SOFT_MM + 1e-6] == 0).all()
    order = np.argsort(distance, axis=None)
    assert (np.diff(found.ravel()[order]) <= 1e-6).all()  # falls from the middle outwards


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_lesion_is_the_one_whose_support_just_fits(shape):
    spacing = [1.0] * len(shape)
    edge = support(shape, spacing, [largest_mm(shape, spacing), largest_mm(shape, spacing) + 1.5])[:, 0]
    assert edge[0, 0].max() == 0
    assert edge[1, 0].max() > 0
    assert radius_mm(np.array(largest_mm(shape, spacing))) == pytest.approx((shape[0] - 1) / 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_outside_the_support_nothing_changes_by_a_bit_and_inside_it_stays_in_the_window(shape):
    torch.manual_seed(0)
    generator = ContextGenerator(shape, 4, 8, conditions=3)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(20)  # as far as it can go
        patches = free_patches(6, shape)
        scene = scene_of(patches, [1.0] * len(shape), np.array([2.0, 4, 6, 4, 2, 3]))
        x = generator(torch.randn(6, 8), torch.randn(6, 3), scene)
    assert x.shape == scene.background.shape
    assert x.abs().max() <= 1
    assert (x != scene.background).any()
    assert_array_equal(x[scene.support == 0].numpy(), scene.background[scene.support == 0].numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_latent_condition_background_and_support_all_count(shape):
    torch.manual_seed(0)
    generator = ContextGenerator(shape, 4, 8, conditions=2).eval()
    scene = scene_of(free_patches(2, shape), [1.0] * len(shape), np.array([4.0, 4]))
    z, condition = torch.randn(2, 8), torch.eye(2)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(3)
        x = generator(z, condition, scene) - scene.background
        for other in (
            generator(z.flip(0), condition, scene) - scene.background,
            generator(z, condition.flip(0), scene) - scene.background,
            generator(z, condition, scene._replace(background=scene.background.flip(0))) - scene.background.flip(0),
            generator(z, condition, scene._replace(support=scene.support / 2)) - scene.background,
        ):
            assert (x - other).abs().max() > 1e-4


def test_backgrounds_with_room_are_preferred_and_draws_follow_from_the_generator_alone():
    free = free_patches(40, (32, 32))
    free[20:, ..., 10:22, 10:22] = 0.9  # a vessel in the middle
    backgrounds = Backgrounds(free, None, (32, 32))
    diameters = np.full(200, 6.0)
    drawn, rows = backgrounds.draw(np.random.default_rng(0), diameters)
    assert (rows < 20).mean() > 0.95
    assert (drawn[..., 12:20, 12:20].mean(axis=(1, 2, 3)) < 0).mean() > 0.95  # by chance a half
    assert_array_equal(drawn, backgrounds.draw(np.random.default_rng(0), diameters)[0])
    wall = drawn[..., 2].mean(axis=(1, 2)) > 0
    assert 0.1 < wall.mean() < 0.4  # half have a wall, half of those flipped away
    with pytest.raises(ValueError, match="no lesion-free patch"):
        Backgrounds(free[:0], None, (32, 32))


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_are_flipped_along_each_axis_half_of_the_time(shape):
    one = np.arange(np.prod(shape), dtype=np.float32).reshape(1, 1, *shape)
    found = Backgrounds(one, None, shape).flipped(np.random.default_rng(0), np.repeat(one, 1600, 0))
    turned = np.array(np.unravel_index(found.reshape(1600, -1)[:, 0].astype(int), shape)).T > 0  # what has come to the first corner
    for axes in np.ndindex(*[2] * len(shape)):
        mine = (turned == axes).all(1)
        assert mine.mean() == pytest.approx(0.5 ** len(shape), abs=0.05)  # four deviations
        assert (found[mine] == np.flip(one, [2 + n for n, flip in enumerate(axes) if flip])).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_critic_sees_composites_as_far_as_real_lesions_and_further_than_they_may_change(shape):
    free, spacing, diameters = free_patches(3, shape), [0.8] * len(shape), np.array([2.0, 3.0, 4.0])
    scene = scene_of(free, spacing, diameters)
    assert_array_equal(scene.support, support(shape, spacing, diameters))
    assert_array_equal(scene.view, Backgrounds(free, spacing, shape).view(diameters))
    wider = support(shape, spacing, diameters + 2 * SEEN_MM / REACH)  # by so much on either side
    np.testing.assert_allclose(scene.view, wider, atol=1e-6)


def test_surroundings_are_like_those_of_real_lesions_whatever_lies_in_the_middle():
    rng, diameters = np.random.default_rng(0), np.full(100, 6.0)
    free = np.clip(rng.uniform(-1, 0.5, (300, 1, 1, 1)) + 0.05 * rng.standard_normal((300, 1, 32, 32)), -1, 1).astype(np.float32)
    like = rng.uniform(-1, 0.5, (100, 1, 1, 1)) + np.zeros((100, 1, 32, 32))
    surroundings = like[:, 0, 0, 0].copy()
    like[..., 13:19, 13:19] = 0.9  # the lesions
    backgrounds = Backgrounds(free, None, (32, 32))
    found, _ = backgrounds.draw(rng, diameters, like)
    apart = np.abs(found.mean(axis=(1, 2, 3)) - surroundings)
    assert np.median(apart) < 0.12  # the nearest of 8 over a width of 1.5; by chance 0.4
    larger, _ = backgrounds.draw(rng, np.full(3, 60.0), like[:3])  # nothing is seen around those: any will do
    assert np.isfinite(larger).all()


def test_real_lesions_may_lie_on_another_device():
    class Elsewhere(torch.Tensor):
        def __array__(self, *_arguments, **_options):
            raise TypeError("can't convert device type tensor to numpy")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    backgrounds, like = Backgrounds(free_patches(40, (32, 32)), None, (32, 32)), torch.rand(5, 1, 32, 32)
    here, there = (
        backgrounds.draw(np.random.default_rng(0), np.full(5, 6.0), one)[0] for one in (like.numpy(), like.as_subclass(Elsewhere))
    )
    assert_array_equal(here, there)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_discs_that_were_drawn(shape):
    diameters = np.array([3.0, 5, 7, 9])
    free = free_patches(8, shape)[1::2]  # without a wall, which a lesion may hide in
    scene = scene_of(free, [1.0] * len(shape), diameters)
    drawn = with_discs(free, diameters)
    drawn[0, ..., 0, 0] = 1.0  # a change elsewhere is no part of the lesion
    expected = with_discs(np.full_like(free, -1), diameters, 1.0)[:, 0] > 0
    assert_array_equal(lesion_masks(drawn, scene), expected)
    holed = drawn.copy()
    holed[3, 0][tuple(n // 2 for n in shape)] = free[3, 0][tuple(n // 2 for n in shape)]  # a vessel shines through
    assert_array_equal(lesion_masks(holed, scene)[3], expected[3])
    assert not lesion_masks(free, scene).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_is_the_mean_change_of_the_lesions_inside(shape):
    diameters, free = np.array([3.0, 6, 9, 0.5]), free_patches(8, shape)[1::2]
    spacing = [0.5] * len(shape)
    drawn = free.copy()
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * 0.5 for n in shape], indexing="ij")
    distance = np.sqrt(sum(np.square(axis) for axis in axes))
    for n, mm in enumerate(diameters):
        inner = distance <= max(0.35 * mm, distance.min())
        drawn[n, 0][inner] += np.where(np.arange(inner.sum()) % 2, 0.3, -0.1).astype(np.float32)  # brighter and darker both are seen
        drawn[n, 0][distance > 0.45 * mm + 1] = 1.0  # what lies outside is not the lesion
        wanted = np.where(np.arange(inner.sum()) % 2, 0.3, 0.1).mean()
        assert contrast(drawn, free, spacing, diameters)[n] == pytest.approx(wanted, abs=1e-6)
    assert (contrast(free, free, spacing, diameters) == 0).all()


def test_the_critic_step_is_the_textbooks_on_what_it_sees():
    shape = (32, 32)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    critic = Critic(shape, 4, 2).double()
    scene = scene_of(free_patches(6, shape), (1.0, 1.0), np.full(6, 5.0))
    real, synthetic = (seen(torch.from_numpy(rng.uniform(-1, 1, (6, 1, *shape))), scene).double() for _ in range(2))
    mix, condition = torch.from_numpy(rng.random((6, 1, 1, 1))), torch.eye(2).double().repeat(3, 1)
    found, terms = critic_gradients(critic, real, synthetic, mix, 10.0, condition)
    loss = critic_loss_textbook(critic, real, synthetic, mix, 10.0, condition)
    assert terms.loss.item() == pytest.approx(loss.item())
    for parameter, gradient in zip(critic.parameters(), torch.autograd.grad(loss, list(critic.parameters())), strict=True):
        torch.testing.assert_close(found[parameter], gradient)


def run(steps: int, seed: int = 0, processes: Processes | None = None) -> tuple[Trainer, TrainingSet]:
    shape, count = (16, 16), 24
    diameters = np.resize([4.0, 6.0], count)
    patches = with_discs(free_patches(count, shape, seed=5), diameters)
    conditions = Conditions(diameter=True)
    data = TrainingSet(patches, conditions.encode([""] * count, diameters), diameters_mm=diameters)
    config = TrainingConfig(seed=seed, device="cpu", steps=max(steps, 1), batch=16, learning_rate=2e-3)
    backgrounds = Backgrounds(free_patches(60, shape), (1.0, 1.0), shape)
    trainer = Trainer(shape, NetworkConfig(channels=8, latent=16), config, conditions.size, processes, backgrounds=backgrounds)
    for _ in range(steps):
        trainer.update(data)
    trainer.settle(data)
    return trainer, data


def test_learns_to_draw_discs_of_the_size_that_is_asked_for():
    trainer, _ = run(250)
    assert trainer.backgrounds is not None
    changed = {}
    for diameter in (4.0, 6.0):
        diameters = np.full(32, diameter)
        scene = trainer.scene(np.random.default_rng(1), diameters)
        condition = torch.from_numpy(Conditions(diameter=True).encode([""] * 32, diameters))
        with torch.no_grad():
            x = trainer.average(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), condition, scene)
        assert x[..., 7:9, 7:9].mean() == pytest.approx(0.3, abs=0.15)  # the discs' value, where the lung has -0.8
        changed[diameter] = lesion_masks(x.numpy(), scene).sum(axis=(1, 2)).mean()
    assert changed[6.0] > 1.3 * changed[4.0]  # areas of discs: 2.25 times


def test_in_one_place_lesions_differ_by_their_latents_as_real_ones_do():
    """Real ones are of two kinds, bright and faint: the anatomy tells nothing of which, the latent has to."""
    shape, rng = (16, 16), np.random.default_rng(0)
    diameters = np.full(24, 6.0)
    bright, faint = (with_discs(free_patches(12, shape, seed), diameters[:12], value) for seed, value in ((5, 0.8), (6, -0.3)))
    data = TrainingSet(np.concatenate([bright, faint]), diameters_mm=diameters)
    config = TrainingConfig(seed=0, device="cpu", steps=250, batch=16, learning_rate=2e-3)
    trainer = Trainer(shape, NetworkConfig(channels=8, latent=16), config, backgrounds=Backgrounds(free_patches(60, shape), None, shape))
    for _ in range(250):
        trainer.update(data)
    trainer.settle(data)
    place = np.repeat(free_patches(2, shape)[1:], 64, 0)
    with torch.no_grad():
        z = torch.from_numpy(rng.standard_normal((64, 16), dtype=np.float32))
        x = trainer.average(z, None, scene_of(place, [1.0, 1.0], np.full(64, 6.0)))
    middle = x[..., 7:9, 7:9].mean(dim=(1, 2, 3))
    assert middle.std() > 0.5 * 0.55  # half of what the two kinds' standard deviation is


def test_the_same_seed_gives_the_same_weights_and_a_checkpoint_goes_on_bit_for_bit():
    from gan.checkpoint import Checkpoint

    (whole, data), (again, _) = run(4), run(4)
    tensors = whole.tensors()
    for name, tensor in again.tensors().items():
        assert_array_equal(tensor.numpy(), tensors[name].numpy())
    half, _ = run(2)
    other, _ = run(0)
    other.restore(Checkpoint(2, {}, {}, half.tensors()))
    for _ in range(2):
        other.update(data)
    other.settle(data)
    for name, tensor in other.tensors().items():
        assert_array_equal(tensor.numpy(), tensors[name].numpy())


def test_processes_share_the_batch_that_one_would_draw(monkeypatch):
    class OneOfTwo(Processes):
        """A process beside another that is not there: what it has stands for the sum."""

        def __init__(self, rank):
            super().__init__(TrainingConfig(device="cpu"))
            self.rank, self.count = rank, 2

        def sum(self, tensors):
            return list(tensors)

        def differentiable_sum(self):
            return None

    shown: dict[int | None, list[tuple]] = {}
    for rank in (None, 0, 1):
        trainer, data = run(0, processes=None if rank is None else OneOfTwo(rank))
        with monkeypatch.context() as patched:
            patched.setattr("gan.trainer.draw", lambda *given, rank=rank: shown.setdefault(rank, []).append(given[1:]) or draw(*given))
            trainer.update(data)
    assert len(shown[None]) == len(shown[0]) == len(shown[1]) > 1
    for whole, one, other in zip(*(shown[rank] for rank in (None, 0, 1)), strict=True):  # latents, conditions, and the scene
        everything, parts = ({tuple(torch.cat([z, c, *(s.flatten(1) for s in scene)], 1)[n].tolist()) for z, c, scene in some
                              for n in range(len(z))} for some in ([whole], [one, other]))  # fmt: skip
        assert everything == parts
        assert len(one[0]) + len(other[0]) == len(whole[0])


def test_what_is_promised_of_a_composite_never_covers_private_anatomy():
    promise = "The model is differentially private: epsilon 8."
    for origin in ("cohort", "unknown"):
        assert privacy_of_composites(promise, origin).startswith("no guarantee")
        assert privacy_of_composites(None, origin).startswith("no guarantee")
    for origin in ("public", "phantom"):
        assert privacy_of_composites(promise, origin).startswith(promise)
        assert privacy_of_composites(None, origin).startswith("no guarantee")
