"""Starting from another run: what fits is taken over, what does not starts anew, and how much is said."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from gan.checkpoint import Checkpoint
from gan.conditions import Conditions
from gan.config import NetworkConfig, TrainingConfig
from gan.trainer import Trainer, TrainingSet, latents, section
from gan.transfer import start_from

NOTHING = Conditions()
TWO = Conditions(("ggo", "solid"), diameter=True)


class Noise:
    """64 patches of noise."""

    def __init__(self, shape):
        self.values = np.random.default_rng(0).uniform(-1, 1, (64, 1, *shape)).astype(np.float32)

    def __len__(self):
        return 64

    def __getitem__(self, positions):
        return self.values[positions]


def data_for(shape, conditions=NOTHING):
    labels = np.resize(conditions.classes or ("lesion",), 64).tolist()
    return TrainingSet(Noise(shape), conditions.encode(labels, np.linspace(3, 30, 64)) if conditions.size else None)


def trainer_for(shape=(16, 16), conditions=NOTHING, channels=4, seed=1, **changes):
    config = TrainingConfig(batch=8, n_critic=1, device="cpu", seed=seed, **changes)
    return Trainer(shape, NetworkConfig(channels, 8), config, conditions.size)


def trained(shape=(16, 16), conditions=NOTHING) -> Checkpoint:
    """A short run's checkpoint."""
    trainer, data = trainer_for(shape, conditions, seed=0), data_for(shape, conditions)
    for _ in range(3):
        trainer.update(data)
    trainer.settle(data)
    return Checkpoint(3, {"conditions": asdict(conditions)}, {"shape": list(shape)}, trainer.tensors())


def of(checkpoint, net):
    return section(checkpoint.tensors, net)


def average_of(checkpoint, conditions):
    trainer = trainer_for(conditions=conditions)
    trainer.average.load_state_dict(of(checkpoint, "average"))
    return trainer.average


@pytest.mark.parametrize("conditions", [NOTHING, TWO], ids=["plain", "conditional"])
def test_the_same_networks_take_over_everything(conditions):
    before, trainer = trained(conditions=conditions), trainer_for(conditions=conditions)
    assert start_from(trainer, conditions, before) == "100% of the weights are those of step 3 of the other run"
    for net, source in ((trainer.average, "average"), (trainer.generator, "average"), (trainer.critic, "critic")):
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, of(before, source)[name]), name
    assert trainer.step == 0
    assert not trainer.critic_optimizer.state
    z, asked = latents([0], 8), torch.ones(1, conditions.size) if conditions.size else None
    other = average_of(before, conditions)
    assert torch.equal(trainer.average(z, asked), other(z, asked))
    trainer.update(data_for((16, 16), conditions))
    assert torch.equal(other(z, asked), average_of(before, conditions)(z, asked))  # the checkpoint does not train along


@pytest.mark.parametrize(("small", "large"), [((16, 16), (32, 32)), ((8, 8, 8), (16, 16, 16))])
def test_another_patch_size_takes_the_layers_next_to_the_image(small, large):
    before, trainer, fresh = trained(small), trainer_for(large), trainer_for(large)
    told, taken = start_from(trainer, NOTHING, before), 0
    for net, source, other, ahead in (
        (trainer.average, "average", fresh.average, 3),
        (trainer.generator, "average", fresh.generator, 3),
        (trainer.critic, "critic", fresh.critic, 0),
    ):
        of_same_place = {
            f"layers.{int(name.split('.')[1]) + ahead}.{name.split('.')[2]}": tensor
            for name, tensor in of(before, source).items()
            if name.startswith("layers.")
        }
        assert len(of_same_place) > 1
        of_same_place |= {name: tensor for name, tensor in of(before, source).items() if name == "bias"}
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, of_same_place.get(name, other.state_dict()[name])), name
            taken += tensor.numel() * (name in of_same_place)
    total = sum(t.numel() for net in (fresh.average, fresh.generator, fresh.critic) for t in net.state_dict().values())
    assert told == f"{taken / total:.0%} of the weights are those of step 3 of the other run"
    assert 0 < taken < total
    trainer.update(data_for(large))


def test_other_classes_keep_what_they_share_and_a_new_one_is_their_mean():
    now = Conditions(("cyst", "solid", "ggo"), diameter=True)
    before, trainer = trained(conditions=TWO), trainer_for(conditions=now)
    assert start_from(trainer, now, before).startswith("100%")
    old, old_critic = average_of(before, TWO), trainer_for(conditions=TWO).critic
    old_critic.load_state_dict(of(before, "critic"))
    z, x = latents(range(2), 8), torch.from_numpy(Noise((16, 16))[np.arange(2)])
    same = ["ggo", "solid"]
    mean = TWO.encode(["ggo", "ggo"], [7, 7]) / 2 + TWO.encode(["solid", "solid"], [7, 7]) / 2
    for asked, was in ((now.encode(same, [5, 20]), TWO.encode(same, [5, 20])), (now.encode(["cyst"] * 2, [7, 7]), mean)):
        asked, was = torch.from_numpy(asked), torch.from_numpy(was)
        torch.testing.assert_close(trainer.average(z, asked), old(z, was))
        torch.testing.assert_close(trainer.critic(x, asked), old_critic(x, was))


def test_classes_can_be_learned_on_top_of_a_run_without_and_left_again():
    plain = trained()
    trainer = trainer_for(conditions=TWO)
    assert start_from(trainer, TWO, plain).startswith("100%")
    z = latents(range(2), 8)
    asked = torch.from_numpy(TWO.encode(["ggo", "solid"], [5, 20]))
    torch.testing.assert_close(trainer.average(z, asked), average_of(plain, NOTHING)(z))
    left, conditional = trainer_for(), trained(conditions=TWO)
    assert start_from(left, NOTHING, conditional).startswith("100%")
    torch.testing.assert_close(left.average(z), average_of(conditional, TWO)(z, torch.zeros(2, TWO.size)))


def test_frozen_layers_keep_the_other_runs_weights():
    before, trainer = trained((32, 32)), trainer_for((32, 32), frozen_layers=2)
    start_from(trainer, NOTHING, before)
    for _ in range(2):
        trainer.update(data_for((32, 32)))
    for name, tensor in trainer.critic.state_dict().items():
        frozen = name.startswith(("layers.0.", "layers.1."))
        assert torch.equal(tensor, of(before, "critic")[name]) == frozen, name
    again = trainer_for((32, 32), frozen_layers=2)
    again.restore(replace(before, step=5, tensors=trainer.tensors()))
    for name, tensor in trainer.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name


@pytest.mark.parametrize(("shape", "channels"), [((16, 16), 6), ((16, 16, 16), 4)])
def test_a_run_of_which_nothing_fits_is_refused(shape, channels):
    with pytest.raises(ValueError, match=r"--init-from: not one layer of that run \(patches \[16, 16\]\) fits 16 x 16.* networks.channels"):
        start_from(trainer_for(shape, channels=channels), NOTHING, trained())
