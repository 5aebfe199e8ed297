"""Distilling: the student draws what its teacher draws, of what it can be asked too; what held for the teacher's patients holds; nothing half-made."""

import json
import re
from dataclasses import asdict, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_gan_checkpoint import damage

from gan import distillation
from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gan.commands.distil import _distance
from gan.conditions import Conditions
from gan.distillation import costs, distil, draw, multiply_adds
from gan.networks import Generator, UpsamplingConvolution
from gan.sampling import TILE, Model, generate, load_model

NOTHING = Conditions()
ASKED = Conditions(("ground_glass", "solid"), diameter=True)
LATENT = 2
SENTENCE = "No patient can be told from this model: epsilon 8."


def trained(run, shape=(16, 16), conditions=NOTHING, channels=8, privacy=None, **changes):
    """A run folder with a teacher in it: random weights, but smooth samples that fill the window and follow latent and condition."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(shape, channels, LATENT, conditions.size)
        with torch.no_grad():
            for layer in (layer for layer in generator.layers if isinstance(layer, UpsamplingConvolution)):
                layer.weight.copy_(30 * layer.weight.mean(list(range(2, layer.weight.ndim)), keepdim=True).expand_as(layer.weight))
            for _ in range(50):
                z, condition = draw(model_of(generator.train(), conditions), 64, np.random.default_rng(0))
                generator(z, None if condition is None else torch.from_numpy(condition))
    tensors = {f"{name}.{key}": tensor.clone() for name in ("average", "generator") for key, tensor in generator.state_dict().items()}
    trained_on = {
        "shape": list(shape), "spacing_mm": [1.0] * len(shape), "window": [-1000.0, 400.0], "unit": "HU", "patients": 12,
        "classes": list(conditions.classes or ("lesion",)), "patients_known": True, "licence": "CC0",
    }  # fmt: skip
    config = {"networks": {"channels": channels, "latent": LATENT, "condition": "auto"}, "conditions": asdict(conditions), "training": {}}
    save_checkpoint(run, Checkpoint(7, config, {**trained_on, **changes}, tensors, privacy_spent=privacy))
    return run


def model_of(generator, conditions):
    return Model(generator, conditions, 0, "", {})


def pixels(model, z, condition):
    return np.concatenate(list(generate(model, z, condition)))


@pytest.fixture
def small_set(monkeypatch):
    """Comparisons of few samples, which say little but take no time."""
    monkeypatch.setattr("gan.commands.distil.COMPARED", 64)


@pytest.fixture
def distilled(command, small_set):
    """distilled("--seed", 1) distils the run "run" to 4 channels as "small", in a few steps."""

    def run(*more, out="small"):
        return command("gan.__main__", "distil", "run", "--channels", 4, "--out", out, "--steps", 12, *more)

    return run


@pytest.mark.parametrize(("shape", "conditions"), [((16, 16), NOTHING), ((16, 16), ASKED), ((8, 16, 16), ASKED)])
def test_the_student_draws_what_its_teacher_draws(tmp_path, monkeypatch, shape, conditions):
    for name, quick in (
        ("_BATCH_PIXELS", 1),
        ("_WARM_UP", 10),
        ("RATE", 10.0),
    ):  # small batches, and steps as large as so small a net bears
        monkeypatch.setattr(distillation, name, quick)
    teacher, told = load_model(trained(tmp_path, shape, conditions)), []
    student = distil(teacher, 4, 150, log=lambda step, apart: told.append((step, apart)))
    z, condition = draw(teacher, 128, np.random.default_rng(1))  # it never saw these
    wanted, drawn = pixels(teacher, z, condition), pixels(model_of(student.average, conditions), z, condition)
    apart, of_one_for_all = np.abs(drawn - wanted).mean(), np.abs(wanted - np.median(wanted, 0)).mean()
    assert apart < 0.75 * of_one_for_all  # no picture that is the same for all latents comes nearer than the median
    assert drawn.std() == pytest.approx(wanted.std(), rel=0.3)
    assert [step for step, _ in told] == list(range(10, 151, 10))
    assert told[-1][1] < 0.6 * told[0][1]
    assert student.samples >= 150 * 16 / distillation.SHOWN
    if conditions.size:
        other = conditions.encode(["solid"] * 128, [20.0] * 128)
        assert np.abs(drawn - pixels(teacher, z, other)).mean() > 1.2 * apart


def test_what_is_taught_are_all_classes_and_diameters_evenly():
    teacher = model_of(Generator((16, 16), 4, 4, ASKED.size), ASKED)
    z, condition = draw(teacher, 4000, np.random.default_rng(0))
    assert z.shape == (4000, 4)
    assert condition[:, :2].mean(0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert condition[:, 2:].mean(0) == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], abs=0.02)  # the shares of evenly spaced knots


def test_multiply_adds_counted_by_hand():
    # 4 -> 8 x 4 x 4; 8 maps of 4 x 4 pixels, each to 4 maps by 4 x 4 weights; 4 maps of 8 x 8, each to one by 4 x 4
    assert multiply_adds(Generator((16, 16), 4, 4)) == 4 * 128 + 16 * 8 * 4 * 16 + 64 * 4 * 16
    assert multiply_adds(Generator((16, 16), 4, 4, 7)) == 11 * 128 + 16 * 8 * 4 * 16 + 64 * 4 * 16
    assert multiply_adds(Generator((16, 16, 16), 4, 4)) == 4 * 512 + 64 * 8 * 4 * 64 + 512 * 4 * 64


def test_a_cost_is_the_fastest_round_per_sample_and_ratios_are_the_teachers_over_the_students(monkeypatch):
    ticks = iter([0.0, 0.64, 10.0, 10.32, 20.0, 21.0])  # three rounds of 32 samples
    monkeypatch.setattr(distillation, "time", SimpleNamespace(perf_counter=ticks.__next__))
    (cost,) = costs(model_of(Generator((16, 16), 4, 4), NOTHING), rounds=3)
    assert cost.ms == pytest.approx(1000 * 0.32 / TILE)
    student = replace(cost, channels=2, parameters=cost.parameters // 4, ms=cost.ms / 5)
    last = distillation.table(cost, student).splitlines()[-1]
    assert last.split() == f"| ratio | 2.0 | {cost.parameters / student.parameters:.1f} | 1.0 | 5.0 |".split()


def test_a_model_is_no_distance_from_itself_but_other_samples_are(tmp_path, small_set):
    teacher = load_model(trained(tmp_path))
    found = _distance(teacher, teacher, None, (-1000.0, 400.0), "HU", seed=0)
    assert (found.apart, found.samples, found.unit) == (0, 64, "HU")
    assert found.apart_by_chance > 50
    assert found.frechet > 0
    assert found.frechet == pytest.approx(found.floor, rel=1)
    assert [cost.channels for cost in costs(teacher, rounds=1)] == [8]


def test_a_run_folder_that_sample_draws_from(command, distilled, tmp_path):
    trained(tmp_path / "run", conditions=ASKED)
    done = distilled()
    assert done.code == 0, done.err
    assert re.search(r"step 12/12  \d+\.\d HU from the teacher  0 min 00 s left", done.out)
    assert "squared Fréchet distance" in done.out
    assert "no guarantee" in done.out
    assert sorted(file.name for file in (tmp_path / "small").iterdir()) == [
        "checkpoints",
        "distillation.json",
        "model_card.md",
        "preview.png",
    ]
    told = json.loads((tmp_path / "small" / "distillation.json").read_text())
    teacher, student = load_checkpoint(tmp_path / "run"), load_checkpoint(tmp_path / "small")
    assert (told["teacher"]["model_sha256"], told["student"]["model_sha256"]) == (teacher.model_hash, student.model_hash)
    assert (told["teacher"]["channels"], told["student"]["channels"], told["steps"], told["seed"]) == (8, 4, 12, 0)
    assert told["teacher"]["multiply_adds"] > 2 * told["student"]["multiply_adds"]
    assert told["teacher"]["ms"] > 0
    assert told["distance"]["apart_by_chance"] > 0
    assert student.trained_on == teacher.trained_on
    card = (tmp_path / "small" / "model_card.md").read_text()
    for said in (f"SHA-256 {student.model_hash}", f"SHA-256 {teacher.model_hash}, step 7", "by 12 steps on 192 of its samples", "12 patients",
                 "CC0", "ground_glass, solid, a diameter in mm", "squared Fréchet distance", "multiply-adds", "no guarantee"):  # fmt: skip
        assert said in card, said
    picture = np.asarray(Image.open(tmp_path / "small" / "preview.png"))
    assert picture.shape[0] == 4 * 17 * 2  # for each class a row of the teacher's and one of the student's

    for out, *more in (["by-class", "--class", "solid", "--diameter", "8"], ["last", "--average", "false"]):
        drawn = command("sample", "--run", "small", "--out", out, "--seeds", "0-3", *more)
        assert drawn.code == 0, drawn.err
    resumed = command("train", "--out", "small", "--training.steps", 20, "--data", "nothing-there")
    assert resumed.code == 2
    again = command("gan.__main__", "distil", "small", "--channels", 2, "--out", "tiny", "--steps", 2)
    assert again.code == 0, again.err


def test_the_guarantee_is_inherited(distilled, tmp_path):
    spent = {"sentence": SENTENCE, "epsilon": 8.0, "critic_steps": 10}
    trained(tmp_path / "run", privacy=spent)
    done = distilled()
    assert SENTENCE in done.out
    assert load_checkpoint(tmp_path / "small").privacy_spent == spent
    assert load_model(tmp_path / "small").guarantee == SENTENCE
    card = (tmp_path / "small" / "model_card.md").read_text()
    assert f"holds for this model too, which saw nothing but the teacher's samples: {SENTENCE}" in card
    assert "no guarantee" not in card


def test_the_same_seed_gives_the_same_bytes(distilled, tmp_path):
    trained(tmp_path / "run", conditions=ASKED)
    for out, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert distilled("--seed", seed, out=out).code == 0
    files = [f"checkpoints/step-00000012.{kind}" for kind in ("json", "safetensors")] + ["preview.png"]
    of = {(out, file): (tmp_path / out / file).read_bytes() for out, file in product(("one", "two", "three"), files)}
    for file in files:
        assert of["one", file] == of["two", file]
        assert of["one", file] != of["three", file]


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, ["nowhere", "--channels", 4], "nowhere: no run there; train.py --data PATCHES --out RUN trains one"),
        ({}, ["run", "--channels", 8], "--channels 8: the run's generator has 8, want 1 to 7"),
        ({}, ["run", "--channels", 0], "--channels 0: the run's generator has 8, want 1 to 7"),
        ({}, ["run", "--channels", "few"], "few"),
        ({}, ["run"], "required: channels"),
        ({}, ["run", "--channels", 4, "--steps", 0], "--steps of 1 or more"),
        ({}, ["run", "--channels", 4, "--out", "run"], "run: exists already"),
        (None, ["run", "--channels", 4], "damaged or foreign"),
        ({"shape": [33, 33]}, ["run", "--channels", 4], "run: .* 33 x 33 cannot be halved"),
        ({"shape": [32, 32]}, ["run", "--channels", 4], "run: checkpoint of step 7 does not fit its own configuration"),
        ({"window": None}, ["run", "--channels", 4], "run: its checkpoint does not say what it was trained on"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, change, options, said):
    trained(tmp_path / "run")
    if change:  # a checkpoint that says something else of its patches
        before = load_checkpoint(tmp_path / "run")
        save_checkpoint(tmp_path / "run", Checkpoint(7, before.config, {**before.trained_on, **change}, before.tensors))
    if change is None:
        damage(tmp_path / "run", 7)
    done = command("gan.__main__", "distil", *options, *([] if "--out" in options else ["--out", "small"]))
    assert done.code == 2
    assert re.search(said, done.err)
    assert len(done.err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["distil", "costs"])
def test_an_interrupt_leaves_nothing_behind(distilled, tmp_path, monkeypatch, name):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    trained(tmp_path / "run")
    monkeypatch.setattr(distillation, name, interrupted)
    assert distilled().code == 130
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_what_diverges_is_not_written(distilled, tmp_path, monkeypatch):
    trained(tmp_path / "run")
    monkeypatch.setattr(distillation, "RATE", 1e38)
    done = distilled()
    assert (done.code, "distilling diverged" in done.err) == (2, True)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
