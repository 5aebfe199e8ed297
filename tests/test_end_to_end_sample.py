"""`python sample.py`, small: as asked for, the same bytes however it is drawn, on from where it was killed, drawn again to verify."""

import csv
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import stats
from test_gan_drawing import PLAIN, Discs, critic_of
from test_gan_processes import TORCHRUN, finish, write_patches

from data.files import new_folder
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from data.preprocess import to_unit
from evaluate.attributes import lesion_attributes
from evaluate.memorisation import near_copy_test
from evaluate.neighbours import closeness_to, distance_to_another_patient
from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gan.conditions import Conditions
from gan.drawing import Drawing
from gan.networks import Critic, Generator
from gan.sampling import candidates
from sample import main as sample_main

LICENCE = "CC BY 4.0"
CLASSES = ("ground-glass", "solid")
ASKED = Conditions(CLASSES, diameter=True)
WINDOW, SPACING = (-1000.0, 400.0), (1.0, 1.0)
MANY = "0-1059"
"""Seeds of 8 x 8 patches, which are drawn in two parts."""
JOB = ("--seeds", MANY, "--quality", 0.8, "--trunc", 2, "--format", "dicom")
SENTENCE = "This run is differentially private: epsilon 8 at delta 1e-05."


def write_run(
    run, networks, conditions=PLAIN, step=5, shape=(16, 16), classes=("lesion",), licence=LICENCE, spent=None, context=None, **about
):
    """A run with one checkpoint, as train.py leaves it. networks: by section, "average" among them. context: origin of what it draws into."""
    trained_on = {
        "shape": list(shape), "spacing_mm": [1.0] * len(shape), "window": list(WINDOW), "unit": "HU", "classes": list(classes),
        "class_counts": {"ground-glass": 20, "solid": 60}, "diameter_deciles_mm": [5.0, 7.0, 9.0, 11.0], "licence": licence,
        "content_sha256": "0" * 64, **about,
    }  # fmt: skip
    config = {
        "networks": {"channels": 4, "latent": 8},
        "conditions": {"classes": list(conditions.classes), "diameter": conditions.diameter},
        **({"context": {"origin": context}} if context else {}),
    }
    tensors = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    save_checkpoint(run, Checkpoint(step, config, trained_on, tensors, privacy_spent=spent and {"sentence": spent}))


def write_discs(run, number=1, conditions=PLAIN, **options):
    networks = {name: Discs(channels=n, conditions=conditions.size) for name, n in (("average", number), ("generator", number + 50))}
    write_run(run, {**networks, "critic": critic_of(conditions, number)}, conditions, **options)


def write_untrained(run, seed=0, shape=(8, 8), **options):
    """Of real networks, their weights large enough that every latent gives another patch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = {"average": Generator(shape, 4, 8), "generator": Generator(shape, 4, 8), "critic": Critic(shape, 4)}
    for weight in networks["average"].requires_grad_(False).parameters():
        weight.mul_(8)
    write_run(run, networks, shape=shape, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What all tests read: "patches" of two classes and "nodules" of one, runs, and "whole", what JOB gives when nothing interrupts it."""
    place = tmp_path_factory.mktemp("clinic-of-dr-example")
    write_patches(place / "patches", 32)
    write_patches(place / "nodules", 16, known=False)
    write_untrained(place / "tiny")
    write_discs(place / "asked", 1, ASKED, classes=CLASSES)
    write_discs(place / "other", 2, ASKED, classes=CLASSES, licence="of the hospital")
    write_discs(place / "plain", 3, classes=("nodule",))
    write_discs(place / "private", 4, ASKED, classes=CLASSES, spent=SENTENCE)
    assert sample_main(["--run", f"{place}/tiny", "--out", f"{place}/whole", "--processes", "1", *map(str, JOB)]) == 0
    return place


@pytest.fixture
def draw(command, place, monkeypatch):
    """draw("asked", "out", ...) runs sample.py on that run; what is 16 x 16 is drawn by Discs."""
    monkeypatch.chdir(place)

    def network(shape, channels, latent, conditions=0):
        return Discs(shape, channels, latent, conditions) if shape == (16, 16) else Generator(shape, channels, latent, conditions)

    monkeypatch.setattr("gan.sampling.Generator", network)

    def run(runs, out, *options, fails=False):
        names = [argument for name in runs.split() for argument in ("--run", name)]
        done = command("sample", *names, *(("--out", out) if out else ()), *options)
        assert (done.code != 0) == fails, done.err
        return done

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def files_in(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}


def assert_same_files(one, other):
    one, other = files_in(one), files_in(other)
    assert list(one) == list(other)
    assert [name for name, content in one.items() if content != other[name]] == []


def samples_of(folder) -> list[dict[str, str]]:
    with open(Path(folder) / "samples.csv", newline="") as table:
        return list(csv.DictReader(table))


def column(folder, name) -> np.ndarray:
    return np.array([float(row[name] or "nan") for row in samples_of(folder)])


def said_of(folder) -> dict:
    return json.loads((Path(folder) / "sampling.json").read_text())


def measured_mm(folder) -> np.ndarray:
    patches = PatchFolder.open(folder)
    return lesion_attributes(patches.hu(range(len(patches))), SPACING, WINDOW)["diameter_mm"]


# --- the same bytes ---


def test_two_processes_write_what_one_writes(draw, place, out):
    draw("tiny", out, "--processes", 2, *JOB)
    assert_same_files(out, place / "whole")
    rows = samples_of(out)
    assert [int(row["seed"]) for row in rows] == list(range(1060))
    assert len(files_in(out)) == 1060 + 6
    assert {int(row["attempt"]) for row in rows} >= {0, 1, 2}
    PatchFolder.open(out).verify()


def test_a_sample_is_the_same_among_any_others(draw, place, out):
    """Its pixels, its files and its row: of seeds in another order and number, from both sides of where one part ends."""
    seeds = [1059, 3, 1023, 1024, 500]
    draw("tiny", out, *JOB, "--seeds", ",".join(map(str, seeds)))
    whole, some = PatchFolder.open(place / "whole"), PatchFolder.open(out)
    np.testing.assert_array_equal(some.hu(range(5)), whole.hu(seeds))
    rows = samples_of(place / "whole")
    assert samples_of(out) == [rows[seed] for seed in seeds]
    for name, content in files_in(out).items():
        if "seed-" in name:
            assert (place / "whole" / name).read_bytes() == content


@pytest.mark.parametrize("options", [
    ("--class", "balanced", "--diameter", "6-10", "--trunc", 1.5, "--quality", 0.8), ("--match", "patches", "--dissimilar-to", "patches"),
], ids=["range", "match"])  # fmt: skip
def test_what_is_asked_for_follows_from_the_seed_too(draw, tmp_path, options):
    for name, seeds in (("whole", "0-49"), ("some", "41,7,8")):
        draw("asked other", tmp_path / name, "--seeds", seeds, "--format", "png,nifti,dicom,seg", *options)
    rows, whole = samples_of(tmp_path / "whole"), PatchFolder.open(tmp_path / "whole")
    assert samples_of(tmp_path / "some") == [rows[seed] for seed in (41, 7, 8)]
    np.testing.assert_array_equal(PatchFolder.open(tmp_path / "some").hu(range(3)), whole.hu([41, 7, 8]))
    assert len({row["model"] for row in rows}) == 2
    assert len([name for name in files_in(tmp_path / "some") if "seed-" in name]) == 4 * 3
    for name, content in files_in(tmp_path / "some").items():
        if "seed-" in name:
            assert (tmp_path / "whole" / name).read_bytes() == content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "run", "options"), [((), "--run", ("--devices", 2)), (TORCHRUN, "--model", ())], ids=["devices", "torchrun"]
)
def test_two_devices_draw_what_one_draws(place, out, launcher, run, options):
    """torchrun takes --run for its own --run-path, so there it goes by another name."""
    finish(*launcher, ROOT / "sample.py", run, place / "tiny", "--out", out, *JOB, *options)
    assert_same_files(out, place / "whole")
    assert os.listdir(out.parent) == [out.name]


# --- stopped and started again ---


def interrupt(monkeypatch, what, at, error):
    """Makes the at-th call of a function raise instead; returns the calls that were made."""
    calls, (module, name) = [], what.rsplit(".", 1)
    function = getattr(importlib.import_module(module), name)

    def called(*arguments, **options):
        calls.append(arguments)
        if len(calls) == at:
            raise error
        return function(*arguments, **options)

    monkeypatch.setattr(what, called)
    return calls


def assert_goes_on(draw, place, out, monkeypatch, drawn):
    """The same command again: says which parts it has, draws the others only, and ends with the bytes of one that nothing interrupted."""
    assert not out.exists()
    assert (out.parent / f".{out.name}.parts").is_dir()
    parts, part = [], Drawing.part
    monkeypatch.setattr(Drawing, "part", lambda drawing, first, *rest: parts.append(first) or part(drawing, first, *rest))
    done = draw("tiny", out, "--processes", 1, *JOB)
    assert f"{drawn} of 2 parts were drawn by an earlier run" in done.err
    assert parts == [0, 1024][drawn:]
    assert_same_files(out, place / "whole")
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize(("error", "code", "told"), [
    (KeyboardInterrupt(), 130, "interrupted: nothing was left half-written"), (OSError(28, "No space left on device"), 2, "the disk is full"),
], ids=["interrupted", "disk full"])  # fmt: skip
def test_a_stop_while_a_part_is_written_costs_only_that_part(draw, place, out, monkeypatch, error, code, told):
    with monkeypatch.context() as patch:
        calls = interrupt(patch, "data.synthetic.write_patch_dicom", 1030, error)
        done = draw("tiny", out, "--processes", 1, *JOB, fails=True)
    assert (done.code, len(calls), told in done.err) == (code, 1030, True), done.err
    assert_goes_on(draw, place, out, monkeypatch, 1)


@pytest.mark.parametrize(("what", "at"), [("numpy.load", 2), ("data.export.write_folder_preview", 1)], ids=["second part", "preview"])
def test_a_stop_while_the_parts_are_put_together_costs_none(draw, place, out, monkeypatch, what, at):
    with monkeypatch.context() as patch:
        interrupt(patch, what, at, KeyboardInterrupt())
        assert draw("tiny", out, "--processes", 1, *JOB, fails=True).code == 130
    assert_goes_on(draw, place, out, monkeypatch, 2)


def test_a_kill_leaves_parts_that_the_same_command_finds(draw, place, out, monkeypatch):
    code = """
import os, signal, sys
import data.synthetic
write, parts = data.synthetic.write_formats, []
def killed(folder, part):
    write(folder, part)
    parts.append(part)
    if len(parts) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
data.synthetic.write_formats = killed
import sample
sample.main(sys.argv[1:])
"""
    arguments = ["--run", "tiny", "--out", out, "--processes", 1, *JOB]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert list(out.parent.rglob(".000001.partial"))
    assert_goes_on(draw, place, out, monkeypatch, 1)


def test_another_job_does_not_take_the_parts_of_a_stopped_one(draw, place, out, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "data.synthetic.write_part", 2, KeyboardInterrupt())
        draw("tiny", out, "--processes", 1, *JOB, "--trunc", 1, fails=True)
    done = draw("tiny", out, "--processes", 1, *JOB)
    assert "earlier run" not in done.err
    assert_same_files(out, place / "whole")
    assert os.listdir(out.parent) == [out.name]


def test_volumes_take_the_same_way(draw, tmp_path, monkeypatch):
    """A sample is a folder of DICOM images there."""
    write_untrained(tmp_path / "cubes", shape=(8, 8, 8))
    job = ("--seeds", "5,6,7", "--format", "nifti,dicom,seg")
    draw(f"{tmp_path}/cubes", tmp_path / "whole", *job)
    assert len(files_in(tmp_path / "whole" / "dicom")) == 3 * 8
    with monkeypatch.context() as patch:
        interrupt(patch, "data.export.write_folder_preview", 1, KeyboardInterrupt())
        draw(f"{tmp_path}/cubes", tmp_path / "parts", *job, fails=True)
    assert "1 of 1 parts were drawn" in draw(f"{tmp_path}/cubes", tmp_path / "parts", *job).err
    assert_same_files(tmp_path / "whole", tmp_path / "parts")
    assert "3 of 3 samples" in draw(f"{tmp_path}/cubes", None, "--verify", tmp_path / "parts").out
    (tmp_path / "parts" / "dicom" / "seed-00000006" / "0003.dcm").unlink()
    assert (
        "seed-00000006: dicom/seed-00000006/0003.dcm is missing"
        in draw(f"{tmp_path}/cubes", None, "--verify", tmp_path / "parts", fails=True).out
    )


# --- as asked for ---


def test_diameters_are_measured_and_drawn_again_where_they_miss(draw, tmp_path):
    done = draw("asked", tmp_path / "hit", "--class", "solid", "--diameter", "8-9", "--seeds", "0-99", "--format", "none")
    mm, rows, said = measured_mm(tmp_path / "hit"), samples_of(tmp_path / "hit"), said_of(tmp_path / "hit")
    assert ((mm >= 8) & (mm <= 9)).all()
    np.testing.assert_array_equal(column(tmp_path / "hit", "diameter_mm"), mm)
    assert {row["class"] for row in rows} == {"solid"}
    assert ((column(tmp_path / "hit", "asked_mm") >= 8) & (column(tmp_path / "hit", "asked_mm") <= 9)).all()
    attempts = column(tmp_path / "hit", "attempt").astype(int)
    tally = said["selection"]
    assert tally["drawn"] == attempts.sum() + 100
    assert tally["rejected"] == {"diameter_mm": attempts.sum()}
    assert tally["acceptance"] == round(100 / tally["drawn"], 4)
    assert 0.2 < tally["acceptance"] < 0.9
    assert f"100 of {tally['drawn']} candidates taken ({tally['acceptance']:.2g}); turned down: {attempts.sum()} by diameter_mm" in done.out
    draw("asked", tmp_path / "any", "--class", "solid", "--diameter", "8-9", "--seeds", "0-99", "--format", "none", "--reject", "false")
    first = measured_mm(tmp_path / "any")
    hit = (first >= 8) & (first <= 9)
    np.testing.assert_array_equal(hit, attempts == 0)
    np.testing.assert_array_equal(mm[hit], first[hit])
    np.testing.assert_array_equal(column(tmp_path / "any", "diameter_mm"), first)


def test_a_model_that_cannot_be_asked_is_measured_all_the_same(draw, out):
    draw("plain", out, "--diameter", 10, "--seeds", "0-49", "--format", "none")
    mm = measured_mm(out)
    assert ((mm >= 8) & (mm <= 12)).all()
    assert np.isnan(column(out, "asked_mm")).all()


def test_matched_samples_have_the_classes_and_diameters_of_training_lesions(draw, place, out):
    draw("asked", out, "--match", "patches", "--seeds", "0-399", "--format", "none")
    real = PatchFolder.open(place / "patches")
    rows = real.select(splits=["train"])
    labels, listed = real.rows.names("label", rows), real.rows.diameter_mm[rows]
    wanted = lesion_attributes(real.hu(rows), SPACING, WINDOW)["diameter_mm"]
    found, drawn_for = measured_mm(out), np.array([row["class"] for row in samples_of(out)])
    for name in CLASSES:
        assert np.mean(drawn_for == name) == pytest.approx(np.mean(labels == name), abs=0.08)
        assert stats.ks_2samp(found[drawn_for == name], wanted[labels == name]).statistic < 0.2
    for mm, asked_mm, name in zip(found, column(out, "asked_mm"), drawn_for, strict=True):
        alike = wanted[(listed == asked_mm) & (labels == name)]
        assert (np.abs(mm - alike) <= np.maximum(0.2 * alike, 1)).any()
    assert said_of(out)["match"] == real.content_hash


def test_filling_gives_each_class_as_many(draw, place, out):
    real = PatchFolder.open(place / "patches")
    there = Counter(real.rows.names("label", real.select(splits=["train"])).tolist())
    assert there["solid"] < there["ground-glass"] < 60
    draw("asked", out, "--match", "patches", "--fill", 60, "--seeds", 1000, "--format", "none")
    assert there + Counter(row["class"] for row in samples_of(out)) == dict.fromkeys(CLASSES, 60)
    assert said_of(out)["fill"] == {name: 60 - there[name] for name in CLASSES}
    assert [int(row["seed"]) for row in samples_of(out)] == list(range(1000, 1000 + 120 - there.total()))
    assert PatchFolder.open(out).rows.names("label").tolist() == [row["class"] for row in samples_of(out)]


def test_filling_and_matching_work_for_a_model_of_one_class(draw, place, tmp_path):
    """What it draws keeps the name of its own class, whatever the lesions to match are called."""
    there = len(PatchFolder.open(place / "nodules").select(splits=["train"]))
    draw("plain", tmp_path / "filled", "--match", "nodules", "--fill", there + 7, "--format", "none", "--reject", "false")
    draw("plain", tmp_path / "alike", "--match", "nodules", "--seeds", "0-6", "--quality", 0.8, "--format", "none", "--reject", "false")
    write_discs(tmp_path / "lesions", classes=CLASSES)  # trained on two classes, without learning to tell them apart
    draw(f"{tmp_path}/lesions", tmp_path / "renamed", "--match", "nodules", "--seeds", "0-6", "--format", "none", "--reject", "false")
    for name, label in (("filled", "nodule"), ("alike", "nodule"), ("renamed", "lesion")):
        assert [row["class"] for row in samples_of(tmp_path / name)] == [label] * 7


def test_truncation_brings_samples_together_and_says_how_much(draw, tmp_path):
    for name, options in (("plain", ()), ("close", ("--trunc", 0.5))):
        done = draw("asked", tmp_path / name, "--seeds", "0-63", "--class", "solid", "--diameter", "8", "--reject", "false", *options)
    hu = [PatchFolder.open(tmp_path / name).hu(range(64)).astype(float) for name in ("plain", "close")]
    apart = [np.sqrt(np.square(x[:32] - x[32:]).mean((1, 2))).mean() for x in hu]
    diversity = said_of(tmp_path / "close")["truncation"]
    assert diversity["limit"] == 0.5
    assert diversity["diversity"] == pytest.approx(apart[1] / apart[0], abs=0.1)
    assert f"--trunc 0.5: samples lie {diversity['diversity']:.0%} as far from one another as without it" in done.out
    assert said_of(tmp_path / "plain")["truncation"] is None


def test_near_copies_are_counted_and_turned_down(draw, place, out, monkeypatch):
    """A generator that, for a third of all latents, gives a training patch with noise: just those candidates are turned down."""
    folder = PatchFolder.open(place / "patches")
    rows = folder.select(splits=["train"])
    training = folder.hu(rows)
    real = torch.from_numpy(to_unit(training, WINDOW))

    class Copying(Discs):
        def forward(self, z, condition=None):
            own = super().forward(z, condition)[:, 0] + 0.5 * (-1) ** torch.arange(16)  # stripes that no real one has
            copies = real[(z[:, 1].abs() * 1000).long() % len(real)].flip(2) + (z @ self.texture).view(-1, 16, 16) / 5
            return torch.where((z[:, 0] > 0.43)[:, None, None], copies, own).clamp(-1, 1)[:, None]

    monkeypatch.setattr("gan.sampling.Generator", Copying)
    done = draw("plain", out, "--dissimilar-to", "patches", "--seeds", "0-199", "--format", "none")

    def first_own(seed):
        return next(attempt for attempt in range(100) if candidates([seed], attempt, 8)[0, 0] <= 0.43)

    attempts = column(out, "attempt").astype(int).tolist()
    assert attempts == [first_own(seed) for seed in range(200)]
    assert f"turned down: {sum(attempts)} by closeness" in done.out
    assert said_of(out)["selection"]["rejected"] == {"closeness": sum(attempts)}
    assert said_of(out)["dissimilar_to"] == folder.content_hash
    assert sum(attempts) / (sum(attempts) + 200) == pytest.approx(1 / 3, abs=0.06)
    spacing_hu = distance_to_another_patient(training, folder.rows.names("patient", rows), WINDOW)
    found = closeness_to(PatchFolder.open(out).hu(range(200)), training, spacing_hu, WINDOW)
    np.testing.assert_allclose(column(out, "closeness"), found, rtol=1e-5)
    assert found.min() > 0.3


def test_how_near_a_sample_is_does_not_depend_on_the_others():
    """Training patches that hardly differ, as of one lesion twice: which of them is nearest must not be left to rounding."""
    draws = np.random.default_rng(0)
    training = draws.integers(-1000, 400, (200, 16, 16)).astype(np.int16)
    training[100:] = np.clip(training[:100] + draws.integers(-1, 2, (100, 16, 16)), -1000, 400)
    spacing_hu = distance_to_another_patient(training, np.arange(200), WINDOW)
    patches = np.clip(training[draws.integers(0, 200, 600)] + draws.normal(0, 60, (600, 16, 16)), -1000, 400).astype(np.int16)
    whole = closeness_to(patches, training, spacing_hu, WINDOW)
    for size in (1, 2, 3, 7, 32):
        parts = [closeness_to(patches[n : n + size], training, spacing_hu, WINDOW) for n in range(0, 600, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_what_counts_as_near_is_taken_from_lesions_that_nobody_copied(place):
    folder = PatchFolder.open(place / "patches")
    training, held_out = (folder.select(splits=[split]) for split in ("train", "validation"))
    patients = folder.rows.names("patient", training)
    test = near_copy_test(folder.hu(training), patients, folder.hu(held_out), WINDOW)
    found, passed = test(folder.hu(held_out))
    assert len(found) - passed.sum() == 1  # less than 100 of them, so the nearest
    assert passed[found > found.min()].all()
    assert not test(folder.hu(training))[1].any()
    found, passed = near_copy_test(folder.hu(training), patients, folder.hu([]), WINDOW)(folder.hu(held_out))
    np.testing.assert_array_equal(passed, found >= 0.5)


def test_two_runs_share_the_job(draw, place, tmp_path):
    draw("asked other", tmp_path / "both", "--shares", "2,1", "--seeds", "0-299", "--format", "none")
    hashes = [load_checkpoint(place / name).model_hash for name in ("asked", "other")]
    models = np.array([row["model"] for row in samples_of(tmp_path / "both")])
    np.testing.assert_allclose([np.sum(models == one) for one in hashes], [200, 100], atol=3)
    said = said_of(tmp_path / "both")
    assert [(one["model_sha256"], one["step"], one["share"]) for one in said["models"]] == [(hashes[0], 5, 2 / 3), (hashes[1], 5, 1 / 3)]
    assert said["licence"] == "CC BY 4.0 / of the hospital"
    together = PatchFolder.open(tmp_path / "both").hu(range(300))
    for name, model in zip(("asked", "other"), hashes, strict=True):
        draw(name, tmp_path / name, "--seeds", "0-299", "--format", "none")
        np.testing.assert_array_equal(together[models == model], PatchFolder.open(tmp_path / name).hu(range(300))[models == model])


def test_two_checkpoints_of_a_run_share_the_job(draw, tmp_path):
    for step in (5, 9):
        write_discs(tmp_path / "run", step, ASKED, step=step, classes=CLASSES)
    draw(f"{tmp_path}/run", tmp_path / "both", "--step", "5,9", "--seeds", "0-99", "--format", "none")
    assert [one["step"] for one in said_of(tmp_path / "both")["models"]] == [5, 9]
    assert min(Counter(row["model"] for row in samples_of(tmp_path / "both")).values()) > 45
    done = draw(f"{tmp_path}/run", None, "--verify", tmp_path / "both")
    assert "16 of 16 samples drawn again are the same" in done.out


@pytest.mark.parametrize("seeds", ["0-15", "3,1"])
def test_pictures_go_with_the_samples(draw, tmp_path, seeds):
    draw("asked", tmp_path / "moving", "--seeds", seeds, "--pictures", "true")
    draw("asked", tmp_path / "still", "--seeds", seeds)
    moving, still = files_in(tmp_path / "moving"), files_in(tmp_path / "still")
    assert moving.keys() - still.keys() == {"strips.png", "walk.gif", "growth.png"}
    assert {name: moving[name] for name in still} == still
    with Image.open(tmp_path / "moving" / "walk.gif") as opened:
        assert opened.n_frames == (4 if seeds == "0-15" else 2) * 15


# --- drawn again ---


@pytest.fixture
def drawn(draw, out):
    """16 samples of two runs, as every format, which are all of those that --verify looks at."""
    draw("asked other", out, "--seeds", "0-15", "--diameter", "8-12", "--trunc", 1.5, "--format", "png,nifti,dicom,seg")
    return out


def test_runs_whose_best_steps_differ_are_verified_together(draw, tmp_path):
    write_discs(tmp_path / "later", 2, ASKED, step=7, classes=CLASSES)
    draw(f"asked {tmp_path}/later", tmp_path / "out", "--seeds", "0-15")
    assert [one["step"] for one in said_of(tmp_path / "out")["models"]] == [5, 7]
    assert "16 of 16" in draw(f"asked {tmp_path}/later", None, "--verify", tmp_path / "out").out


def other_pixel(file):
    with Image.open(file) as opened:
        pixels, notes = np.array(opened), opened.text
    pixels[3, 4] += 1
    info = PngInfo()
    for key, text in notes.items():
        info.add_text(key, text)
    Image.fromarray(pixels).save(file, pnginfo=info)


def other_byte(file):
    content = bytearray(file.read_bytes())
    content[-10] ^= 1
    file.write_bytes(content)


def other_shard(folder, mended):
    """A voxel of the patch of seed 6 changed; mended: and the hash with it."""
    shard = folder / "shards" / "00000.npy"
    pixels = np.load(shard)
    pixels[6, 2, 3] += 1
    np.save(shard, pixels)
    if mended:
        parts = [hashlib.sha256(file.read_bytes()).digest() for file in (shard, folder / "patches.csv")]
        meta = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**meta, "content_sha256": hashlib.sha256(b"".join(parts)).hexdigest()}))


def test_samples_are_drawn_again_and_compared(draw, drawn):
    done = draw("asked other", None, "--verify", drawn)
    assert "16 of 16 samples drawn again are the same, byte by byte, as patches, png, nifti, dicom, seg" in done.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: other_pixel(folder / "png" / "seed-00000006.png"), "png/seed-00000006.png is another"),
        (lambda folder: other_byte(folder / "dicom" / "seed-00000006.dcm"), "dicom/seed-00000006.dcm is another"),
        (lambda folder: other_byte(folder / "seg" / "seed-00000006.dcm"), "seg/seed-00000006.dcm is another"),
        (lambda folder: (folder / "nifti" / "seed-00000006.nii.gz").unlink(), "nifti/seed-00000006.nii.gz is missing"),
        (lambda folder: other_shard(folder, mended=True), "differs from what the model draws"),
    ],
    ids=["pixel", "dicom", "seg", "missing", "shard"],
)
def test_whatever_was_changed_is_found(draw, drawn, change, told):
    change(drawn)
    done = draw("asked other", None, "--verify", drawn, fails=True)
    assert (done.code, done.err) == (1, "")
    first, last, *note = done.out.splitlines()
    assert first == f"seed-00000006: {told}"
    assert last == "15 of 16 samples drawn again are the same, byte by byte, as patches, png, nifti, dicom, seg"
    assert len(note) == (told == "differs from what the model draws")  # processors differ in rounding, and not in which files there are


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("privacy", "differentially private with epsilon 1"), ("licence", "CC0"), ("trained_on_sha256", "1" * 64), ("step", 6), ("samples", 17),
        ("seeds", "0-14"), ("seeds", "0-14,16"),
    ],
)  # fmt: skip
def test_claims_that_the_models_do_not_bear_out_are_told(draw, drawn, claim, value):
    (drawn / "sampling.json").write_text(json.dumps({**said_of(drawn), claim: value}))
    done = draw("asked other", None, "--verify", drawn, fails=True)
    first, last = done.out.splitlines()
    assert (done.code, done.err) == (1, "")
    assert first.startswith(f"sampling.json: {claim} is not " if claim != "seeds" else "sampling.json: its seeds are not ")
    assert last.startswith("16 of 16 samples drawn again are the same")


def test_a_file_of_no_sample_is_told(draw, drawn):
    shutil.copy(drawn / "dicom" / "seed-00000006.dcm", drawn / "dicom" / "seed-00000999.dcm")
    done = draw("asked other", None, "--verify", drawn, fails=True)
    assert (done.code, done.out.splitlines()[0]) == (1, "dicom/seed-00000999.dcm: belongs to no sample")


@pytest.mark.parametrize("average", ["true", "false"])
def test_verifying_knows_what_the_samples_were_drawn_with(draw, tmp_path, average):
    draw("plain", tmp_path / "out", "--seeds", "0-20", "--average", average)
    told = draw("plain", None, "--verify", tmp_path / "out").out
    assert told == "16 of 16 samples drawn again are the same, byte by byte, as patches, png; 5 more were not drawn again\n"
    other = {"true": "false", "false": "true"}[average]
    draw("plain", tmp_path / "other", "--seeds", "0-20", "--average", other)
    assert (tmp_path / "other" / "shards" / "00000.npy").read_bytes() != (tmp_path / "out" / "shards" / "00000.npy").read_bytes()


@pytest.mark.parametrize("rows", [0, 10, 17])
def test_a_list_that_does_not_fit_the_samples_is_one_line(draw, drawn, rows):
    lines = (drawn / "samples.csv").read_text().splitlines(keepends=True)
    (drawn / "samples.csv").write_text("".join([*lines, lines[-1].replace("15,", "16,")][: rows + 1]))
    done = draw("asked other", None, "--verify", drawn, fails=True)
    assert (done.code, done.err.count("\n"), "samples.csv" in done.err) == (2, 1, True), done.err


def test_what_cannot_be_verified_is_one_line(draw, drawn, place, tmp_path):
    shutil.copytree(drawn, tmp_path / "damaged")
    other_shard(tmp_path / "damaged", mended=False)
    shutil.copytree(drawn, tmp_path / "unsaid")
    (tmp_path / "unsaid" / "sampling.json").write_text("{}")
    shutil.copytree(drawn, tmp_path / "deep")
    (tmp_path / "deep" / "sampling.json").write_text("[" * 100_000)
    shutil.copytree(drawn, tmp_path / "scans")
    (tmp_path / "scans" / "lesions.csv").write_text("")
    for runs, folder, cause in (
        ("private", drawn, "drawn from the model"),
        ("asked", drawn, "which is in no --run given"),
        ("asked other", tmp_path / "damaged", "does not match its hash"),
        ("asked other", tmp_path / "unsaid", "sampling.json: not as sample.py wrote it"),
        ("asked other", tmp_path / "deep", "sampling.json: not as sample.py wrote it"),
        ("asked", place / "patches", "no sampling.json in it, so it was not drawn by sample.py"),
        ("asked", tmp_path / "scans", "made with --into, which --verify does not know"),
        ("asked", tmp_path / "gone", "no such patch folder"),
    ):
        done = draw(runs, None, "--verify", folder, fails=True)
        assert (done.code, done.err.count("\n"), cause in done.err) == (2, 1, True), done.err


# --- what is said, and what is refused ---


def test_private_samples_are_not_chosen_by_what_the_guarantee_does_not_cover(draw, tmp_path):
    for option, value, reason in (("--quality", 0.8, "by its critic"), ("--dissimilar-to", "patches", "by its training patients")):
        for runs in ("private", "asked private"):
            done = draw(runs, tmp_path / "new", option, value, fails=True)
            assert (done.code, done.err.count("\n")) == (2, 1)
            assert f"{option} chooses samples {reason}, which the guarantee of a private run does not cover" in done.err
            assert not (tmp_path / "new").exists()
    draw("private", tmp_path / "out", "--class", "solid", "--diameter", "8-10", "--trunc", 2, "--seeds", "0-9")
    assert said_of(tmp_path / "out")["privacy"] == SENTENCE
    draw("private", tmp_path / "alike", "--match", "patches", "--seeds", "0-9")
    assert said_of(tmp_path / "alike")["privacy"].startswith(f"{SENTENCE} Classes and diameters were drawn as in a given patch folder")
    draw("asked", tmp_path / "open", "--seeds", "0-9")
    assert said_of(tmp_path / "open")["privacy"].startswith("no guarantee")


def test_no_path_and_no_patient_is_in_what_is_written(draw, place, out):
    draw(f"{place}/asked {place}/other", out, "--match", f"{place}/patches", "--dissimilar-to", f"{place}/patches", "--seeds", "0-19",
         "--format", "png,nifti,dicom,seg", "--trunc", 2, "--quality", 0.9, "--pictures", "true")  # fmt: skip
    for name, content in files_in(out).items():
        for secret in (b"clinic-of-dr-example", str(ROOT).encode(), bytes(out.parent), b'"p1"'):
            assert secret not in content, name
    assert "/" not in re.sub(r"\.csv|CC BY 4.0 / of the hospital", "", (out / "sampling.json").read_text())


def test_a_missing_licence_is_a_warning(draw, place, tmp_path):
    write_discs(tmp_path / "run", licence="")
    done = draw(f"{tmp_path}/run", tmp_path / "out", "--seeds", "0-3")
    assert [line for line in done.err.splitlines() if line.startswith("warning:")] == [
        "warning: nobody stated the licence or terms of the training data; find out before you give samples away "
        "(python -m data prepare --licence states them)"
    ]
    assert said_of(tmp_path / "out")["licence"] is None
    assert "warning" not in draw("plain", tmp_path / "licensed", "--seeds", "0-3").err


def test_what_the_model_hardly_draws_stops_with_the_rate(draw, out, monkeypatch):
    """Diameters that no patch of 16 mm holds, of many seeds and of one."""
    monkeypatch.setattr("gan.selection.MOST_ATTEMPTS", 100)
    for options, cause in (
        (("--diameter", "40-50", "--seeds", "0-99"), r"hardly any sample is as asked for: 0 of 2,\d00 candidates taken \(0\); turned down"),
        (("--class", "solid", "--diameter", "40", "--seeds", "7"), "seed 7, solid, measured 32.0 to 48.0 mm: none of 100 candidates"),
    ):
        done = draw("asked", out, *options, fails=True)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert re.search(cause, done.err), done.err
        assert os.listdir(out.parent) == []


@pytest.fixture
def foreign(tmp_path):
    """Patch folders that do not fit a model of 16 x 16 pixels of 1 mm, and one without lesions of training patients."""
    for name, shape, spacing, window, split in (
        ("large", (24, 24), SPACING, WINDOW, "train"), ("coarse", (16, 16), (2.0, 2.0), WINDOW, "train"),
        ("bone", (16, 16), SPACING, (-500, 1000), "train"), ("tested", (16, 16), SPACING, WINDOW, "test"),
    ):  # fmt: skip
        with new_folder(tmp_path / name) as folder:
            writer = PatchWriter(folder, PatchSpec(shape, spacing, window, CLASSES))
            writer.add(Patch(np.zeros(shape, np.int16), "p", "s", "solid", 8.0, None, split))
            writer.finish()
    return tmp_path


def test_bad_input_is_one_line(draw, place, foreign, tmp_path):
    write_discs(tmp_path / "gray", 1, ASKED, classes=CLASSES, spacing_mm=None)
    write_discs(tmp_path / "cyst", 1, Conditions(("cyst", "solid"), diameter=True), classes=("cyst", "solid"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.doc").write_text("keep")
    cases = [
        ("asked", ("--class", "cyst"), "--class cyst: this model can be asked for ground-glass, solid"),
        ("plain", ("--class", "nodule"), "--class nodule: this model can be asked for no class"),
        ("asked", ("--diameter", "0"), "--diameter 0: want mm"),
        ("asked", ("--diameter", "6-"), "--diameter 6-: want mm"),
        ("asked", ("--diameter", "-6"), "--diameter"),
        ("asked", ("--diameter", "12-6"), "--diameter 12-6: want mm"),
        (f"{tmp_path}/gray", ("--diameter", "6"), "spacing of the patches that this model was trained on was never stated"),
        ("asked", ("--match", foreign / "large"), "its shape is (24, 24), and the model draws (16, 16); they do not fit"),
        ("asked", ("--match", foreign / "coarse"), "its spacing_mm is (2.0, 2.0)"),
        ("asked", ("--dissimilar-to", foreign / "bone"), "its window is"),
        ("asked", ("--match", foreign / "tested"), "it has no lesion of a training patient"),
        ("asked", ("--dissimilar-to", foreign / "tested"), "it has fewer than 2 lesions of training patients"),
        ("asked", ("--match", foreign / "gone"), "gone: no such patch folder"),
        (f"{tmp_path}/cyst", ("--match", "patches"), "class ground-glass is among the lesions to match; this model can be asked for cyst"),
        (f"{tmp_path}/cyst", ("--match", "patches", "--fill", 60), "ground-glass: this model can be asked for cyst, solid"),
        ("asked", ("--fill", 60), "--fill counts the lesions of a patch folder; name it with --match"),
        ("asked", ("--fill", 0, "--match", "patches"), "--fill 0: nothing is missing, there are"),
        ("asked", ("--fill", 3, "--match", "patches"), "--fill 3: nothing is missing, there are"),
        ("asked", ("--fill", 60, "--match", "patches", "--seeds", "0-9"), "with --fill want the first seed only"),
        ("asked", ("--trunc", 0), "--trunc 0: want a number of standard deviations above 0"),
        ("asked", ("--trunc", "-1"), "--trunc -1"),
        ("asked", ("--quality", 0), "--quality 0: want a share above 0 and at most 1"),
        ("asked", ("--quality", 1.5), "--quality 1.5"),
        ("asked other", ("--shares", "1"), "--shares 1: want a number above 0 for each of 2 models"),
        ("asked other", ("--shares", "1,0"), "--shares 1,0"),
        ("asked other", ("--shares", "1,much"), "--shares 1,much: want numbers with commas"),
        ("asked other", ("--shares", "nan,1"), "--shares nan,1"),
        ("asked other", ("--shares", "inf,1"), "--shares inf,1"),
        ("asked plain", (), "different sizes, spacings, windows or classes, or can be asked for other things"),
        ("asked", ("--step", "last"), "--step last: want a number, best or newest"),
        ("asked", ("--step", "6"), "no checkpoint of step 6"),
        ("asked", ("--seeds", 2**64), "--seeds"),
        ("asked", ("--format", "seg"), "seg beside dicom"),
        ("asked", ("--devices", 0), "--devices 0: want 1 or more"),
        ("asked", ("--seeds", 7, "--pictures", "true"), "--pictures goes from seed to seed; want 2 --seeds or more"),
        ("asked", ("--out", tmp_path / "there"), "there: exists already"),
    ]  # fmt: skip
    for runs, options, cause in cases:
        done = draw(runs, None if "--out" in options else tmp_path / "new", *options, fails=True)
        lines = [line for line in done.err.splitlines() if not line.startswith(("warning: ", "note: "))]
        assert (done.code, len(lines), cause in done.err) == (2, 1, True), (options, done.err)
        assert not {"new", ".new.parts", ".there.parts"} & set(os.listdir(tmp_path)), options
    assert os.listdir(tmp_path / "there") == ["thesis.doc"]
