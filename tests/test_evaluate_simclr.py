"""SimCLR: its loss is the paper's, its views stay patches, it learns, and its file is the same twice and safe to open."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from evaluate.config import EvaluateConfig
from evaluate.families import families
from evaluate.features import radiomics
from evaluate.report import Compared, SetSize
from evaluate.simclr import exchangeable_axes, load_encoder, nt_xent, save_encoder, simclr, train_encoder, view

WINDOW = (-1000.0, 400.0)
TRAINED = {"shape": (16, 16), "spacing_mm": (0.7, 0.7), "window": WINDOW, "trained_on_sha256": "0" * 64}


def discs_and_bars(count, seed, side=16):
    """int16 HU (N, side, side), half of them round lesions, the others vessels of the same area, anywhere near the middle; and which."""
    rng = np.random.default_rng(seed)
    round_ones = np.arange(count) % 2 == 0
    y, x = np.indices((side, side)) - (side - 1) / 2
    radius, angle = rng.uniform(2.5, 3.5, count), rng.uniform(0, np.pi, count)
    hu = np.empty((count, side, side))
    for n in range(count):
        dy, dx = y - rng.uniform(-2, 2), x - rng.uniform(-2, 2)
        along, across = dx * np.cos(angle[n]) + dy * np.sin(angle[n]), dy * np.cos(angle[n]) - dx * np.sin(angle[n])
        bar = np.abs(across) < np.pi * radius[n] ** 2 / (2 * side)
        shape = np.hypot(along, across) < radius[n] if round_ones[n] else bar
        hu[n] = rng.uniform(-950, -700) + shape * rng.uniform(300, 900)
    return (hu + rng.normal(0, 60, hu.shape)).round().astype(np.int16), round_ones


def patients_of(count):
    """Four patches a patient, in order."""
    return [f"p{n // 4}" for n in range(count)]


@pytest.fixture(scope="module")
def trained():
    hu, _ = discs_and_bars(400, 0)
    return train_encoder(hu, patients_of(len(hu)), (0.7, 0.7), WINDOW, np.random.default_rng(0), steps=80, batch=48)


def test_the_loss_equals_equation_1_in_a_loop():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 7))
    patients = [0, 1, 1, 2, 3]
    z = np.concatenate([first, second])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(10):
        partner = (i + 5) % 10
        similar = np.exp(z @ z[i] / 0.3)
        negatives = [k for k in range(10) if patients[k % 5] != patients[i % 5]]
        losses.append(-np.log(similar[partner] / (similar[partner] + similar[negatives].sum())))
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second), torch.tensor(patients), 0.3)
    assert found.item() == pytest.approx(np.mean(losses))


def test_patches_of_one_patient_are_never_negatives_for_each_other():
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert nt_xent(first, second, torch.zeros(6, dtype=torch.long)).item() == 0
    # Of two patients, moving one patch of the first changes nothing for his other patches.
    patients = torch.tensor([0, 0, 0, 1, 1, 1])
    z = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    moved = z.clone()
    moved[:, 0] *= -1
    others = [nt_xent(one[0][[1, 3, 4, 5]], one[1][[1, 3, 4, 5]], patients[[1, 3, 4, 5]]) for one in (z, moved)]
    assert others[0] == others[1]


@pytest.mark.parametrize("shape", [(12, 12), (9, 12), (6, 10, 10)])
def test_a_view_is_a_patch_and_follows_from_its_generator(shape):
    patches = torch.rand((50, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    turns = exchangeable_axes(shape, None)
    seen, again, other = (view(patches, turns, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert seen.shape == patches.shape
    assert seen.dtype == torch.float32
    assert seen.abs().max() <= 1
    assert torch.equal(seen, again)
    assert not torch.equal(seen, other)


def test_uncropped_views_are_mirrored_and_turned_patches(monkeypatch):
    from evaluate import simclr as module

    monkeypatch.setattr(module, "SMALLEST_CROP", 1.0)
    monkeypatch.setattr(module, "SHIFT", 0.0)
    monkeypatch.setattr(module, "NOISE", 0.0)
    patch = torch.arange(9 * 9, dtype=torch.float32).view(9, 9) / 81 - 0.5
    seen = view(patch.expand(200, 9, 9), [(0, 1)], np.random.default_rng(0))
    eight = [t for k in range(4) for t in (torch.rot90(patch, k), torch.rot90(patch, k).flip(0))]
    met = [min(range(8), key=lambda n: float((eight[n] - one).abs().max())) for one in seen]
    assert set(met) == set(range(8))
    assert all(torch.allclose(eight[n], one, atol=1e-5) for n, one in zip(met, seen, strict=True))
    unlike = torch.rand((200, 9, 12), generator=torch.Generator().manual_seed(0))[:1].expand(200, 9, 12)
    four = [unlike[0], unlike[0].flip(0), unlike[0].flip(1), unlike[0].flip(0, 1)]
    for one in view(unlike, exchangeable_axes((9, 12), None), np.random.default_rng(0)):
        assert min(float((f - one).abs().max()) for f in four) < 1e-5


def test_only_axes_of_one_size_and_spacing_change_places():
    assert exchangeable_axes((16, 16), None) == [(0, 1)]
    assert exchangeable_axes((16, 16), (0.7, 1.4)) == []
    assert exchangeable_axes((8, 16, 16), (2.0, 0.7, 0.7)) == [(1, 2)]
    assert exchangeable_axes((8, 8, 8), (1.0, 1.0, 1.0)) == [(0, 1), (0, 2), (1, 2)]


def test_it_learns_what_an_untrained_network_does_not_see(trained):
    untrained = train_encoder(discs_and_bars(8, 0)[0], patients_of(8), None, WINDOW, np.random.default_rng(0), steps=0)
    known, labels = discs_and_bars(300, 1)
    asked, truth = discs_and_bars(300, 2)
    right = {}
    for name, encoder in (("trained", trained), ("untrained", untrained)):
        here, there = (features_of(encoder, hu) for hu in (known, asked))
        middle, spread = here.mean(0), here.std(0) + 1e-6
        distance = np.square((there - middle)[:, None] / spread - ((here - middle) / spread)[None]).sum(2)
        right[name] = (labels[distance.argmin(1)] == truth).mean()
    assert right["trained"] > right["untrained"] + 0.03, right
    assert right["trained"] > 0.9, right


def features_of(encoder, hu):
    low, high = WINDOW
    unit = (np.clip(hu, low, high).astype(np.float32) - low) * (2 / (high - low)) - 1
    with torch.inference_mode():
        return encoder(torch.from_numpy(unit.astype(np.float32))[:, None]).double().numpy()


@pytest.mark.parametrize(("shape", "spacing_mm"), [((16, 16), None), ((3, 12, 12), (2.5, 0.7, 0.7)), ((8, 8, 8), (1.0, 1.0, 1.0))])
def test_the_same_seed_gives_the_same_bytes(tmp_path, shape, spacing_mm):
    hu = np.random.default_rng(0).integers(-1000, 400, (20, *shape)).astype(np.int16)
    told = {"shape": shape, "spacing_mm": spacing_mm, "window": WINDOW}
    written, progress = [], []
    for seed in (1, 1, 2):
        before = torch.get_rng_state()
        encoder = train_encoder(
            hu, patients_of(20), spacing_mm, WINDOW, np.random.default_rng(seed), steps=3, batch=8, tell=lambda *done: progress.append(done)
        )
        assert torch.equal(torch.get_rng_state(), before)
        save_encoder(tmp_path / "encoder.safetensors", encoder, told)
        written.append((tmp_path / "encoder.safetensors").read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]
    assert [share for share, _ in progress[:3]] == pytest.approx([1 / 3, 2 / 3, 1])
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.safetensors"]
    features = simclr(tmp_path / "encoder.safetensors", shape, spacing_mm, WINDOW).compute(hu)
    assert features.shape == (20, 64)
    assert np.isfinite(features).all()


def test_the_extractor_has_the_encoders_features_whatever_the_batch(tmp_path, trained):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, trained, TRAINED)
    extractor = simclr(path, (16, 16), (0.7, 0.7), WINDOW)
    hu, _ = discs_and_bars(300, 3)
    together = extractor.compute(hu)
    assert (extractor.name, extractor.window, extractor.unit_scale) == ("simclr", WINDOW, True)
    assert extractor.weights_sha256 == load_encoder(path)[2]
    assert together.dtype == np.float64
    assert together == pytest.approx(features_of(trained, hu), rel=1e-4, abs=1e-5)
    alone = np.concatenate([extractor.compute(hu[n : n + 1]) for n in (0, 255, 299)])
    assert alone == pytest.approx(together[[0, 255, 299]], rel=1e-4, abs=1e-5)
    assert (extractor.compute(np.clip(hu, -1000, 400)) == together).all()


def test_the_trainer_of_generators_reads_the_same_network(tmp_path, trained):
    from gan.encoder import load_encoder as load_for_training

    save_encoder(tmp_path / "encoder.safetensors", trained, TRAINED)
    theirs = load_for_training(tmp_path / "encoder.safetensors", 2)
    x = torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = {}
    trained.layer4.register_forward_hook(lambda module, given, found: maps.update(last=found))
    with torch.inference_mode():
        trained(x)
        ours = maps["last"].mean((2, 3))
        assert theirs.features(x)[-1][:, : ours.shape[1]].numpy() == pytest.approx(ours.numpy(), rel=1e-3, abs=1e-5)


def test_an_encoder_measures_only_patches_like_those_it_was_trained_on(tmp_path, trained):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, trained, TRAINED)
    for shape, spacing_mm, window, told in [
        ((32, 32), (0.7, 0.7), WINDOW, "shape"),
        ((16, 16), (1.0, 0.7), WINDOW, "spacing_mm"),
        ((16, 16), None, WINDOW, "spacing_mm"),
        ((16, 16), (0.7, 0.7), (-1200.0, 400.0), "window"),
    ]:
        with pytest.raises(ValueError, match=f"trained on patches of {told}"):
            simclr(path, shape, spacing_mm, window)


@pytest.mark.parametrize(("trained_on", "told"), [("a" * 64, False), ("b" * 64, True), (None, True)])
def test_an_encoder_of_another_folder_is_told(monkeypatch, trained_on, told):
    extractor = replace(radiomics((1.0, 1.0), WINDOW), name="simclr", trained_on_sha256=trained_on)
    monkeypatch.setattr("evaluate.simclr.simclr", lambda *_: extractor)
    size = SetSize(20, 5)
    compared = Compared(size, size, "test split", size, (16, 16), (1.0, 1.0), WINDOW, "HU", "a" * 64, "c" * 64, 0)
    found, notes = families(compared, EvaluateConfig(encoder="encoder"), lambda line: None)
    assert extractor in found
    assert any("trained on another patch folder" in note for note in notes) == told


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path, trained):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_encoder(path)
    save_encoder(path, trained, TRAINED)
    whole = path.read_bytes()
    tensors = safetensors.torch.load(whole)
    told = load_encoder(path)[1]
    pickled = io.BytesIO()
    torch.save(tensors, pickled)
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    del tensors["conv1.weight"]
    for content in (
        b"", b"text", whole[:-10], bytes(flipped), pickled.getvalue(), safetensors.torch.save(tensors),
        safetensors.torch.save(tensors, {"encoder": json.dumps(told)}), safetensors.torch.save(tensors, {"encoder": "[]"}),
        safetensors.torch.save(tensors, {"encoder": json.dumps({**told, "version": 2})}),
        safetensors.torch.save(tensors, {"encoder": json.dumps({**told, "shape": None})}),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"encoder\.safetensors: not an encoder") as error:
            load_encoder(path)
        assert "\n" not in str(error.value)


def test_one_patient_is_nothing_to_learn_from():
    hu = np.zeros((4, 16, 16), np.int16)
    with pytest.raises(ValueError, match="4 patches of 1 patients"):
        train_encoder(hu, ["p"] * 4, None, WINDOW, np.random.default_rng(0))
    with pytest.raises(ValueError, match="0 patches of 0 patients"):
        train_encoder(hu[:0], [], None, WINDOW, np.random.default_rng(0))
    with pytest.raises(ValueError, match="8 or more voxels"):
        train_encoder(hu[:, :4], list("abcd"), None, WINDOW, np.random.default_rng(0))


@pytest.fixture
def folder(tmp_path):
    """A patch folder "patches" of 40 training patches of 10 patients, and 4 of a patient of each other split."""
    (tmp_path / "patches").mkdir()
    writer = PatchWriter(tmp_path / "patches", PatchSpec((16, 16), (0.7, 0.7), WINDOW, ("lesion",)))
    splits = ["train"] * 10 + ["validation", "test"]
    for n, hu in enumerate(discs_and_bars(48, 0)[0]):
        writer.add(Patch(hu, f"{n // 4:016x}", "0" * 12, "lesion", split=splits[n // 4]))
    writer.finish()
    return PatchFolder.open(tmp_path / "patches")


def test_the_command_writes_an_encoder_that_names_nobody(command, tmp_path, folder):
    done = command("evaluate", "encoder", "patches", "--out", "e", "--steps", 100, "--batch", 8, "--seed", 3)
    assert done.code == 0, done.err
    assert "40 patches of 10 training patients" in done.out
    _, trained, sha256 = load_encoder(tmp_path / "e")
    assert sha256 in done.out
    assert trained == {
        "format": "lesiongan encoder", "version": 1, "channels": [8, 16, 32, 64], "shape": [16, 16], "spacing_mm": [0.7, 0.7],
        "window": [-1000.0, 400.0], "unit": "HU", "steps": 100, "batch": 8, "seed": 3, "patches": 40, "patients": 10,
        "trained_on_sha256": folder.content_hash, "tensors_sha256": trained["tensors_sha256"],
    }  # fmt: skip
    assert not any(patient.encode() in (tmp_path / "e").read_bytes() for patient in folder.rows.names("patient"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--out", "there"), "exists already"), (("--out", "no/encoder"), "no such folder"),
        (("--out", "e", "--steps", 99), "want 100, 8 and 0 or more"), (("--out", "e", "--batch", 4), "want 100, 8 and 0 or more"),
        (("--out", "e", "--seed", -1), "want 100, 8 and 0 or more"), (("--out", "e", "--device", "cuda"), "no GPU is visible"),
    ],
)  # fmt: skip
def test_the_command_refuses_before_it_reads(command, tmp_path, monkeypatch, options, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "there").write_text("kept")
    done = command("evaluate", "encoder", "not-looked-for", *options)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert told in done.err
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


@pytest.mark.usefixtures("folder")
def test_an_interrupted_training_leaves_nothing(command, tmp_path, monkeypatch):
    def stop(share, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluate.commands.encoder.time_left", lambda: stop)
    assert command("evaluate", "encoder", "patches", "--out", "e", "--steps", 100, "--batch", 8).code == 130
    assert [file.name for file in tmp_path.iterdir()] == ["patches"]
