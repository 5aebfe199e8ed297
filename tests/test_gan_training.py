"""Training: a resumed run equals an uninterrupted one bit for bit; what is learned comes from the data; damage is survived."""

import json
import pickle
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from gan import checkpoint as checkpoint_module
from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, write_atomically
from gan.config import NetworkConfig, TrainingConfig
from gan.sampling import TILE, load_model, sample
from gan.tracker import Tracker
from gan.training import Trainer, latents, train

NETWORKS = NetworkConfig(channels=4, latent=8)
QUICK = {"batch": 8, "n_critic": 2, "log_every": 2, "samples_every": 0, "checkpoint_every": 3, "device": "cpu"}
ABOUT = {"shape": [16, 16], "window": [-1000, 400]}


class Discs:
    """Patches with a bright disc of random size on a dark ground, float32 (N, 1, 16, 16)."""

    def __init__(self, count=64, size=16):
        r = np.hypot(*np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 2))
        radii = np.random.default_rng(0).uniform(2, 6, count)
        self.patches = np.where(r[None] < radii[:, None, None], 0.6, -0.8).astype(np.float32)[:, None]

    def __len__(self):
        return len(self.patches)

    def __getitem__(self, positions):
        return self.patches[positions]


def run_training(run, steps, stop_after=None, warn=None, **changes):
    run.mkdir(exist_ok=True)
    calls = iter(range(10**9))
    grids = []
    reached = train(
        Discs(), (16, 16), NETWORKS, TrainingConfig(steps=steps, **{**QUICK, **changes}), run, ABOUT,
        tracker=lambda step: Tracker(run, step, {}), on_samples=lambda step, x: grids.append((step, x)),
        should_stop=lambda: stop_after is not None and next(calls) >= stop_after, warn=warn or (lambda line: None),
    )  # fmt: skip
    return reached, grids


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    assert run_training(tmp_path / "whole", 8)[0] == 8
    assert run_training(tmp_path / "parts", 8, stop_after=1)[0] == 1
    assert run_training(tmp_path / "parts", 8, stop_after=4)[0] == 5
    reached, grids = run_training(tmp_path / "parts", 8)
    assert reached == 8
    whole, parts = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "parts")
    assert whole.tensors.keys() == parts.tensors.keys()
    assert {name.partition(".")[0] for name in whole.tensors} == {
        "generator",
        "average",
        "critic",
        "generator_optimizer",
        "critic_optimizer",
    }
    assert whole.model_hash == parts.model_hash
    logs = [[{k: v for k, v in json.loads(line).items() if k not in ("images_per_second", "eta_s")} for line in
             (tmp_path / run / "metrics.jsonl").read_text().splitlines()] for run in ("whole", "parts")]  # fmt: skip
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [2, 4, 6, 8]
    assert grids[0][1].shape == (64, 1, 16, 16)


def test_seed_decides_everything(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_training(tmp_path / name, 2, seed=seed)
    a, b, c = (load_checkpoint(tmp_path / name).model_hash for name in "abc")
    assert a == b != c


def test_global_randomness_is_neither_used_nor_moved(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_training(tmp_path / "a", 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("penalty_fraction", [1.0, 0.25])
def test_learns_where_the_disc_is(tmp_path, penalty_fraction):
    run_training(tmp_path / "run", 300, n_critic=3, learning_rate=1e-3, penalty_fraction=penalty_fraction, batch=16, checkpoint_every=300)
    x = np.concatenate(list(sample(load_model(tmp_path / "run"), range(64))))[:, 0]
    real = Discs().patches[:, 0]
    error = np.abs(x.mean(0) - real.mean(0)).mean()
    assert error < 0.25 * np.abs(real.mean(0)).mean()  # an untrained generator is near 0 everywhere
    assert x.std(0).mean() > 0.3 * real.std(0).mean()  # and it did not collapse to one disc


def test_average_follows_the_half_life(tmp_path):
    trainer = Trainer((16, 16), NETWORKS, TrainingConfig(**{**QUICK, "average_share": 0.5}))
    name = "project.weight"
    expected = trainer.average.state_dict()[name].clone()
    for step in range(1, 5):
        trainer.update(Discs())
        keep = 0.5 ** (1 / (0.5 * step))
        expected = keep * expected + (1 - keep) * trainer.generator.state_dict()[name]
        torch.testing.assert_close(trainer.average.state_dict()[name], expected, rtol=1e-5, atol=1e-7)
    assert trainer.average.training is False


def test_mirroring_flips_left_to_right_only(tmp_path):
    seen = []

    class Corner(Discs):
        def __getitem__(self, positions):
            x = np.full((len(positions), 1, 16, 16), -1.0, np.float32)
            x[:, :, 0, 0] = 1
            seen.append(x)
            return x

    Trainer((16, 16), NETWORKS, TrainingConfig(**{**QUICK, "batch": 64})).update(Corner())
    flipped = (seen[0][:, 0, 0, -1] == 1).mean()
    assert 0.25 < flipped < 0.75
    assert (seen[0][:, 0, -1] == -1).all()


def test_latents_follow_from_their_seed_alone():
    many = latents(range(100), 8)
    torch.testing.assert_close(latents([42], 8)[0], many[42], rtol=0, atol=0)
    assert abs(many.mean()) < 0.15
    assert abs(many.std() - 1) < 0.1
    assert len({tuple(row.tolist()) for row in many}) == 100


def test_sample_does_not_depend_on_its_neighbours(tmp_path):
    run_training(tmp_path / "run", 2)
    model = load_model(tmp_path / "run")
    all_at_once = np.concatenate(list(sample(model, range(3 * TILE + 5))))
    for seeds in ([0], [70, 3, 99, 41], list(range(90, 20, -1))):
        np.testing.assert_array_equal(np.concatenate(list(sample(model, seeds))), all_at_once[seeds])
    raw = next(sample(load_model(tmp_path / "run", average=False), [0]))
    assert (raw != all_at_once[0]).any()


def checkpoint_at(step: int) -> Checkpoint:
    return Checkpoint(step, {"networks": {}}, ABOUT, {"generator.w": torch.full((3,), float(step))}, {"seed": 0})


def test_checkpoint_round_trip_and_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint_at(step))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, dict(loaded.trained_on)) == (3, ABOUT)
    assert torch.equal(loaded.tensors["generator.w"], torch.full((3,), 3.0))
    assert load_checkpoint(tmp_path, 2).step == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 1"):
        load_checkpoint(tmp_path, 1)


def test_a_flipped_bit_costs_only_the_newest_checkpoint(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint_at(step))
    file = tmp_path / "checkpoints" / "step-00000002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    warnings = []
    assert load_checkpoint(tmp_path, warn=warnings.append).step == 1
    assert "step-00000002.safetensors" in warnings[0]
    with pytest.raises(ValueError, match="damaged or foreign"):
        load_checkpoint(tmp_path, 2)


class Code:
    def __reduce__(self):
        return (open, ("pickled-code-ran", "w"))


def test_pickle_and_foreign_files_are_refused_and_never_run(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.chdir(tmp_path)
    meta = json.loads(save_checkpoint(tmp_path, checkpoint_at(1)).read_text())
    tensors, described = (tmp_path / "checkpoints" / f"step-00000001.{s}" for s in ("safetensors", "json"))
    for content in (pickle.dumps(Code()), b"", b"\xff" * 64, safetensors.torch.save({"other": torch.zeros(1)})):
        tensors.write_bytes(content)
        described.write_text(json.dumps({**meta, "tensors_sha256": hashlib.sha256(content).hexdigest()}))  # even when the hash was forged
        with pytest.raises(ValueError, match=str(tmp_path)):
            load_model(tmp_path)
    assert not (tmp_path / "pickled-code-ran").exists()
    for text in ("{", "[]", '{"format": "other"}'):
        described.write_text(text)
        with pytest.raises(ValueError, match=r"step-00000001\.json"):
            load_checkpoint(tmp_path)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint_at(1))

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, checkpoint_at(2))
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).step == 1
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-00000001.json", "step-00000001.safetensors"]


def test_write_atomically_replaces_whole_files(tmp_path):
    write_atomically(tmp_path / "f", b"one")
    write_atomically(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 1


def test_divergence_is_named_before_it_is_saved(tmp_path):
    run_training(tmp_path / "run", 3)
    with pytest.raises(ValueError, match="training diverged"):
        run_training(tmp_path / "run", 40, learning_rate=1e30, log_every=50)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.step == 3
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.tensors.values())


def test_every_step_sees_fresh_patches_and_fresh_latents():
    chosen, drawn = [], []

    class Seen(Discs):
        def __getitem__(self, positions):
            chosen.append(tuple(positions.tolist()))
            return super().__getitem__(positions)

    trainer = Trainer((16, 16), NETWORKS, TrainingConfig(**QUICK))
    trainer.generator.register_forward_pre_hook(lambda net, inputs: drawn.append(tuple(inputs[0][0].tolist())))
    for _ in range(3):
        trainer.update(Seen())
    assert len(chosen) == len(set(chosen)) == 3 * 2
    assert len(drawn) == len(set(drawn)) == 3 * (2 + 1)


def test_weights_start_as_dcgan_has_them():
    trainer = Trainer((32, 32), NetworkConfig(channels=16, latent=32), TrainingConfig(**QUICK))
    for name, weight in trainer.generator.named_parameters():
        if weight.ndim > 1:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name


def test_checkpoint_of_other_networks_is_refused(tmp_path):
    run_training(tmp_path / "run", 1)
    trainer = Trainer((16, 16), NetworkConfig(channels=6, latent=8), TrainingConfig(**QUICK))
    with pytest.raises(ValueError, match="does not fit these networks"):
        trainer.restore(load_checkpoint(tmp_path / "run"))


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": -1}, {"penalty_fraction": 0.0}, {"betas": (0.0, 1.0)}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrainingConfig(**change)


def test_metrics_forget_what_the_resumed_run_will_do_again(tmp_path):
    tracker = Tracker(tmp_path, 0, {})
    for step in (10, 20, 30):
        tracker.log(step, {"x": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "x"')  # cut short by a kill
    Tracker(tmp_path, 20, {}).log(30, {"x": -1.0})
    assert [json.loads(line)["x"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [10, 20, -1]


def test_wandb_offline_keeps_paths_names_and_hosts_out(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    import platform

    run = tmp_path / "CanaryPatient"
    run.mkdir()
    monkeypatch.chdir(run)
    monkeypatch.setattr("sys.argv", ["train.py", "--data", "/clinic/CanaryArgument"])
    tracker = Tracker(run, 0, {"training": {"batch": 8}}, "offline")
    tracker.log(1, {"wasserstein": 1.5})
    tracker.close()
    deadline = time.monotonic() + 20  # wandb's own process writes its file
    while not any(b"wasserstein" in f.read_bytes() for f in run.rglob("*.wandb")):
        assert time.monotonic() < deadline, list(run.rglob("*"))
        time.sleep(0.05)
    content = {f: f.read_bytes() for f in (run / "wandb").rglob("*") if f.is_file()}
    for secret in ("CanaryPatient", "CanaryArgument", platform.node()):
        assert not [f for f, c in content.items() if secret.encode() in c], secret
