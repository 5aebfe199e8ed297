"""The whole way through the command line, small: phantom to report; resume; signals; bad input; the real run in miniature."""

import csv
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from test_gan_processes import write_patches

from data.__main__ import main as data_command
from data.patches import PatchFolder
from gan.checkpoint import load_checkpoint
from gan.config import NetworkConfig, TrainingConfig
from gan.trainer import Trainer

SMALL = ["--training.batch", 8, "--training.n_critic", 1, "--networks.channels", 4, "--networks.latent", 8, "--training.device", "cpu"]
QUICK_AUDIT = ["--detector.steps", 10, "--detector.seeds", 1, "--draws", 20]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A small phantom cohort, "phantom", its patch folder, "patches", and its key."""
    folder = tmp_path_factory.mktemp("cohort")
    cohort = ["phantom", "--out", "phantom", "--patients", "4", "--lesions", "6", "--matrix", "96", "--slice-mm", "10", "--processes", "1"]
    prepare = ["prepare", "phantom", "--lesions", "phantom/annotations.csv", "--out", "patches", "--size", "16", "--spacing", "3",
               "--processes", "1", "--validation", "0.25", "--test", "0.25"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LESIONGAN_KEY", str(folder / "secrets" / "pseudonym.key"))
        for arguments in (cohort, prepare):
            assert not data_command(arguments)
    return folder


@pytest.fixture
def patches(command, phantom):
    """A copy of the cohort here, and its patch folder."""
    shutil.copytree(phantom, ".", dirs_exist_ok=True)
    return Path("patches")


def test_phantom_to_report(command, patches):
    done = command("train", "--data", patches, "--out", "run", "--training.steps", 4, "--training.log_every", 2, *SMALL)
    assert done.code == 0, done.err
    assert "all 4 steps done" in done.out
    assert {f.name for f in Path("run").iterdir()} == {
        "config.yaml", "trained_on.json", "metrics.jsonl", "curves.png", "samples", "checkpoints", "model_card.md", ".lock",
    }  # fmt: skip
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [2, 4]
    for picture in ("samples/step-00000004.png", "curves.png"):
        with Image.open(Path("run") / picture) as opened:
            assert min(opened.size) > 16 * 4
    assert "no guarantee" in Path("run/model_card.md").read_text()
    trained_on, folder = json.loads(Path("run/trained_on.json").read_text()), PatchFolder.open(patches)
    training = [row for row in folder.rows if row.split == "train" and row.label != "background"]
    assert (trained_on["patches"], trained_on["patients"]) == (len(training), len({row.patient for row in training}))

    done = command("sample", "--run", "run", "--out", "synthetic", "--seeds", "0-39", "--format", "png,nifti,dicom")
    assert done.code == 0, done.err
    synthetic = PatchFolder.open("synthetic")
    synthetic.verify()
    assert [row.id for row in synthetic.rows][:2] == ["seed-00000000", "seed-00000001"]
    assert {row.split for row in synthetic.rows} == {"synthetic"}
    assert {row.label for row in synthetic.rows} == {"cystic", "ground_glass", "solid"}
    header = pydicom.dcmread("synthetic/dicom/seed-00000005.dcm")
    np.testing.assert_array_equal(header.pixel_array, synthetic.hu([5])[0])
    assert header.PixelSpacing == [3, 3]
    assert json.loads(Path("synthetic/sampling.json").read_text())["model_sha256"] == load_checkpoint(Path("run")).model_hash

    done = command("evaluate", patches, "synthetic", "--out", "report", *QUICK_AUDIT)
    assert done.code == 0, done.err
    report = json.loads(Path("report/report.json").read_text())
    page = Path("report/report.html").read_text()
    assert "data:image/png;base64" in page
    assert "http" not in page.split("</style>")[-1].replace("http://www.w3.org", "")
    for secret in (str(Path.cwd()), "PHANTOM-0", "PHANTOM^"):
        assert secret not in page + json.dumps(report)


@pytest.mark.usefixtures("no_curves")
def test_same_command_same_bytes(command, patches):
    for name in ("a", "b"):
        assert command("train", "--data", patches, "--out", name, "--training.steps", 2, *SMALL).code == 0
        assert command("sample", "--run", name, "--out", f"{name}-out", "--seeds", "3,1", "--format", "png,nifti,dicom").code == 0
    speed = {"metrics.jsonl", "curves.png"}  # they tell how fast it was
    files = [sorted(f.relative_to(name) for f in Path(name).rglob("*") if f.is_file()) for name in ("a", "b")]
    assert files[0] == files[1]
    for one, two in (("a", "b"), ("a-out", "b-out")):
        for file in (f.relative_to(one) for f in Path(one).rglob("*") if f.is_file() and f.name not in speed):
            assert (Path(one) / file).read_bytes() == (Path(two) / file).read_bytes(), file


@pytest.mark.usefixtures("no_curves")
def test_a_run_resumes_only_as_itself(command, patches):
    train = ("train", "--data", patches, "--out", "run", *SMALL)
    assert command(*train, "--training.steps", 2).code == 0
    done = command(*train, "--training.steps", 2)
    assert (done.code, "all 2 steps done" in done.out) == (0, True)
    assert command(*train, "--training.steps", 3).code == 0  # longer is fine
    done = command(*train, "--training.steps", 3, "--training.seed", 1)
    assert (done.code, "training.seed is 1, but run was started with 0" in done.err) == (2, True)
    assert load_checkpoint(Path("run")).step == 3
    done = command("train", "--data", patches, "--out", "other", "--config", "run/config.yaml", "--training.steps", 1)
    assert done.code == 0, done.err
    assert load_checkpoint(Path("other")).config["networks"]["channels"] == 4


@pytest.mark.usefixtures("no_curves")
def test_the_licence_goes_with_the_model_and_may_be_mended(command, patches):
    train, described = ("train", "--data", patches, "--out", "run", *SMALL), patches / "dataset.json"
    assert command(*train, "--training.steps", 1).code == 0
    card = Path("run/model_card.md")
    assert "- licence or terms of the data: not stated; find out" in card.read_text()
    before = json.loads(Path("run/trained_on.json").read_text())
    assert (before.pop("licence"), before.pop("patients_known")) == ("", True)
    Path("run/trained_on.json").write_text(json.dumps(before))  # as a run of before they were recorded
    described.write_text(json.dumps({**json.loads(described.read_text()), "licence": "CC BY 3.0", "patients_known": False}))
    done = command(*train, "--training.steps", 2)
    assert done.code == 0, done.err
    stated = {**before, "licence": "CC BY 3.0", "patients_known": False}
    assert load_checkpoint(Path("run")).trained_on == json.loads(Path("run/trained_on.json").read_text()) == stated
    assert "- licence or terms of the data: CC BY 3.0\n" in card.read_text()
    assert "warning: the patients were not known" in card.read_text()


def test_a_signal_finishes_the_step_saves_and_says_so(command, patches):
    arguments = ["--data", "patches", "--training.steps", 100000, "--training.log_every", 1, "--networks.condition", "none", *SMALL]
    sent = {"terminated": signal.SIGTERM, "interrupted": signal.SIGINT}
    processes = {
        run: subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "--out", run, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        for run in sent
    }  # fmt: skip
    try:
        for run, process in processes.items():
            deadline, metrics = time.monotonic() + 120, Path(run, "metrics.jsonl")
            while not (metrics.exists() and metrics.read_text()):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(sent[run])
            out, err = process.communicate(timeout=120)
            assert process.returncode == 75, err
            step = load_checkpoint(Path(run)).step
            assert f"stopped at step {step} of 100000, saved; the same command resumes" in out
            assert f", step {step} of 100000; " in Path(run, "model_card.md").read_text()
            assert step == json.loads(metrics.read_text().splitlines()[-1])["step"] >= 1
    finally:
        for process in processes.values():
            process.kill()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(command, patches):
    before = sorted(Path().rglob("*"))
    done = command("train", "--data", patches, "--out", "run", "--dry-run", "--training.steps", 100, *SMALL)
    assert done.code == 0, done.err
    assert sorted(Path().rglob("*")) == before
    trainer = Trainer((16, 16), NetworkConfig(4, 8), TrainingConfig(device="cpu"), 3)
    for name, net in (("generator", trainer.generator), ("critic", trainer.critic)):
        assert f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters" in done.out
    assert re.search(r"\d+ images/s, \d+ ms a step, \d+ MiB of memory", done.out)
    assert re.search(r"100 steps would take \d+ (minutes|seconds)", done.out)
    assert "12 lesion patches of 2 training patients, 16 x 16, and 6 of 1 validation patients" in done.out
    done = command("train", "--data", patches, "--out", "run", "--dry-run", "--training.frozen_layers", 2)
    assert (done.code, "training.frozen_layers is 2, and the critic has 2 layers" in done.err) == (2, True)


@pytest.mark.usefixtures("no_curves")
def test_a_preset_gives_defaults_and_what_is_asked_for_goes_before_it(command, patches):
    def printed(*options):
        done = command("train", *options, "--print_config")
        assert done.code == 0, done.err
        return yaml.safe_load(done.out)["training"]

    paper = printed("--training.batch", 6, "--preset", "paper")
    expected = {"n_critic": 5, "penalty_weight": 10, "penalty_fraction": 1, "learning_rate": 1e-4, "betas": [0, 0.9], "average_share": 0}
    assert {name: paper[name] for name in expected} == expected  # Gulrajani et al. 2017, Algorithm 1
    assert (paper["batch"], paper["mirror"]) == (6, False)
    assert printed("--preset=paper", "--training.batch", 6) == paper
    Path("paper.yaml").write_text("preset: paper\ntraining:\n  batch: 6\n  n_critic: 2\n")
    assert command("train", "--data", patches, "--out", "run", "--config", "paper.yaml", "--training.steps", 1, *SMALL[4:]).code == 0
    used = yaml.safe_load(Path("run/config.yaml").read_text())["training"]
    assert used == {**paper, "n_critic": 2, "steps": 1, "device": "cpu"}
    assert printed("--config", "run/config.yaml", "--training.penalty_weight", 5) == {**used, "penalty_weight": 5}
    assert command("train", "--preset", "rapid").code == 2


def test_without_any_option_the_demo_cohort_is_taken(command, monkeypatch):
    def taken(place: Path) -> Path:
        raise ValueError(f"it would be made in {place}")

    monkeypatch.setattr("train.demo_patches", taken)
    done = command("train")
    assert (done.code, done.err) == (
        2,
        "note: no --data given, so this is the demo, on procedural phantoms\nerror: it would be made in demo\n",
    )


def rows_of(folder):
    with open(Path(folder) / "patches.csv", newline="") as table:
        return list(csv.DictReader(table))


@pytest.mark.usefixtures("no_curves")
def test_a_model_that_learned_classes_and_diameters_draws_what_it_is_asked_for(command):
    write_patches(Path("patches"), 32)
    train = ("train", "--data", "patches", "--networks.condition", "class+diameter", "--training.checkpoint_every", 4, *SMALL)
    done = command(*train, "--out", "run", "--training.steps", 8)
    assert done.code == 0, done.err
    best = load_checkpoint(Path("run")).best
    assert best["step"] in (4, 8)
    assert f"nearest to validation patients: step {best['step']} (frechet_radiomics" in done.out
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert best["distance"] == min(line["validation/frechet_radiomics"] for line in metrics)
    assert all("validation/floor/frechet_radiomics" in line and "wasserstein_held_out" in line for line in metrics)
    assert "can be asked for: ground-glass, solid, a diameter in mm" in Path("run/model_card.md").read_text()

    def draw(out, *options):
        done = command("sample", "--run", "run", "--out", out, "--format", "none", "--reject", "false", *options)
        assert done.code == 0, done.err
        return rows_of(out), PatchFolder.open(out).hu(range(len(rows_of(out)))), json.loads(Path(out, "sampling.json").read_text())

    rows, hu, said = draw("solid", "--seeds", "0-39", "--class", "solid", "--diameter", 8)
    assert {(row["class"], float(row["diameter_mm"])) for row in rows} == {("solid", 8.0)}
    assert (said["class"], said["diameter"], said["step"]) == ("solid", "8", best["step"])
    _, again, _ = draw("again", "--seeds", "7,3", "--class", "solid", "--diameter", 8)
    np.testing.assert_array_equal(again, hu[[7, 3]])
    for other in (("--class", "ground-glass", "--diameter", 8), ("--class", "solid", "--diameter", 20)):
        assert (draw(f"other{other[-1]}", "--seeds", "0-39", *other)[1] != hu).any()
    rows, natural, _ = draw("natural", "--seeds", "0-199")
    shares = {name: sum(row["class"] == name for row in rows) / 200 for name in ("ground-glass", "solid")}
    counts = json.loads(Path("run/trained_on.json").read_text())["class_counts"]
    assert shares["solid"] == pytest.approx(counts["solid"] / sum(counts.values()), abs=0.12)
    diameters = [float(row["diameter_mm"]) for row in rows]
    assert min(diameters) > 3
    assert max(diameters) < 13
    assert np.std(diameters) > 1
    rows, some, _ = draw("some", "--seeds", "150,20", "--class", "natural")
    np.testing.assert_array_equal(some, natural[[150, 20]])  # what a seed is asked for follows from the seed too
    rows, _, said = draw("range", "--seeds", "0-99", "--class", "balanced", "--diameter", "6-12", "--step", "newest")
    assert said["step"] == 8
    assert all(6 <= float(row["diameter_mm"]) <= 12 for row in rows)
    assert 0.3 < sum(row["class"] == "solid" for row in rows) / 100 < 0.7
    for options, cause in (
        (("--class", "cyst"), "--class cyst: this model can be asked for ground-glass, solid"),
        (("--diameter", "12-6"), "--diameter 12-6: want mm, such as 8 or 6-12"),
        (("--diameter", "large"), "--diameter large: want mm"),
    ):
        done = command("sample", "--run", "run", "--out", "new", *options)
        assert (done.code, done.err.count("\n"), cause in done.err) == (2, 1, True), done.err
        assert not Path("new").exists()


@pytest.mark.usefixtures("no_curves")
def test_a_run_can_start_from_anothers_weights(command):
    write_patches(Path("patches"), 32)
    write_patches(Path("plain"), 8, known=False)
    assert command("train", "--data", "patches", "--out", "run", "--training.steps", 2, *SMALL).code == 0
    start = ("train", "--data", "plain", "--out", "plain-run", "--init-from", "run", "--training.frozen_layers", 1, *SMALL)
    done = command(*start, "--training.steps", 2)
    assert done.code == 0, done.err
    assert "run: 100% of the weights are those of step 2 of the other run" in done.out
    before, after = load_checkpoint(Path("run"), "best"), load_checkpoint(Path("plain-run"))
    for name in ("critic.layers.0.weight", "critic.layers.0.bias"):
        assert torch.equal(before.tensors[name], after.tensors[name])
    assert not torch.equal(before.tensors["critic.layers.1.weight"], after.tensors["critic.layers.1.weight"])
    settings = yaml.safe_load(Path("plain-run/config.yaml").read_text())
    assert settings["start"]["init_from"] == before.model_hash
    without = ("train", "--data", "plain", "--out", "plain-run", "--training.frozen_layers", 1, *SMALL)
    assert command(*without, "--training.steps", 3).code == 0  # resuming does not need the other run, nor forget it
    assert yaml.safe_load(Path("plain-run/config.yaml").read_text())["start"]["init_from"] == before.model_hash
    for arguments, cause in (
        ((*without, "--training.steps", 4, "--init-from", "plain-run"), "start.init_from is"),
        (
            ("train", "--data", "plain", "--out", "new", "--init-from", "gone", *SMALL),
            "gone: no run there; train.py --data PATCHES --out RUN trains one",
        ),
        (
            ("train", "--data", "plain", "--out", "new", "--init-from", "run", *SMALL[:4], "--networks.channels", 6),
            "not one layer of that run",
        ),
        (("train", "--data", "plain", "--out", "new", "--networks.condition", "class"), "has one lesion class, nodule"),
        (("train", "--data", "plain", "--out", "new", "--networks.condition", "diameter"), "no train patch of plain has one"),
        (
            ("sample", "--run", "plain-run", "--out", "new", "--class", "nodule"),
            "--class nodule: this model can be asked for no class; leave --class out",
        ),
        (("sample", "--run", "plain-run", "--out", "new", "--step", "best", "--seeds", "x"), "--seeds"),
    ):
        done = command(*arguments)
        assert (done.code, done.err.count("\n"), cause in done.err) == (2, 1, True), done.err
        assert not Path("new").exists()


@pytest.mark.usefixtures("no_curves")
def test_bad_input_is_one_line_with_exit_code_2(command, patches):
    assert command("train", "--data", patches, "--out", "run", "--training.steps", 1, *SMALL).code == 0
    arguments = ["phantom", "--lesions", "phantom/annotations.csv", "--size", 24, "--spacing", 3, "--processes", 1]
    assert command("data", "prepare", *arguments, "--out", "larger").code == 0
    again = [a if a != 24 else 16 for a in arguments]
    assert command("data", "prepare", *again, "--out", "resplit", "--seed", 7).code == 0
    assert command("sample", "--run", "run", "--out", "synthetic", "--seeds", "0-9").code == 0
    shutil.copytree("run", "nameless")
    (described,) = Path("nameless/checkpoints").glob("*.json")
    meta = json.loads(described.read_text())
    del meta["sha256"]
    meta["trained_on"] = {"shape": meta["trained_on"]["shape"]}
    described.write_text(json.dumps({**meta, "sha256": hashlib.sha256(json.dumps(meta).encode()).hexdigest()}))
    for folder in ("foreign", "damaged"):
        Path(folder).mkdir()
    Path("foreign/thesis.doc").write_text("keep")
    Path("damaged/checkpoints").mkdir()
    Path("damaged/checkpoints/step-00000001.json").write_text("\x80\x04pickle")
    cases = [
        (("train", "--data", "gone", "--out", "new"), "gone: no such patch folder"),
        (("train", "--data", "phantom", "--out", "new"), "not a patch folder"),
        (("train", "--data", patches, "--out", "foreign"), "not a run folder"),
        (("train", "--data", "synthetic", "--out", "new"), "no lesion patch of a training patient"),
        (("train", "--data", "larger", "--out", "run", "--training.steps", 1, *SMALL), "trained on other patches"),
        (("train", "--data", patches, "--out", "new", "--training.steps", 0), "training.steps"),
        (("train", "--data", patches, "--out", "new", "--training.stepz", 5), "stepz"),
        (("train", "--data", patches, "--out", "new", "--training.batch", "many"), "batch"),
        (("sample", "--run", "gone", "--out", "new"), "gone: no run there"),
        (("sample", "--run", "patches", "--out", "new"), "patches: a patch folder, not a run"),
        (("sample", "--run", "damaged", "--out", "new"), "step-00000001.json"),
        (("sample", "--run", "run", "--out", "new", "--seeds", "5-"), "--seeds"),
        (("sample", "--run", "run", "--out", "new", "--seeds", "1,1"), "each seed once"),
        (("sample", "--run", "run", "--out", "new", "--format", "tiff"), "--format"),
        (("sample", "--run", "run", "--out", "new", "--seeds", "0-99999999999"), "at most"),
        (("train", "--data", patches, "--out", "new", "--networks.channels", 0), "networks.channels"),
        (("sample", "--run", "run", "--out", "synthetic"), "exists already"),
        (("sample", "--run", "run", "--out", "new", "--step", 77), "no checkpoint of step 77"),
        (("sample", "--run", "nameless", "--out", "new"), "does not say what it was trained on"),
        (("evaluate", "larger", "synthetic", "--out", "new"), "24"),
        (("evaluate", "gone", "synthetic", "--out", "new"), "gone"),
        (("evaluate", "resplit", "synthetic", "--out", "new"), "trained on another patch folder"),
        (("evaluate", patches, "synthetic", "--out", "foreign"), "exists already"),
    ]
    if not torch.cuda.is_available():
        cases += [
            (("train", "--data", patches, "--out", "new", "--training.device", "cuda"), "no GPU is visible"),
            (("sample", "--run", "run", "--out", "new", "--device", "cuda"), "no GPU is visible"),
            (("evaluate", patches, "synthetic", "--out", "new", "--device", "cuda"), "no GPU is visible"),
        ]
    for case, cause in cases:
        done = command(*case)
        assert done.code == 2, case
        assert cause in done.err, done.err
        assert "Traceback" not in done.err
        assert not Path("new").exists(), case
    assert Path("foreign/thesis.doc").read_text() == "keep"
    assert len(list(Path("foreign").iterdir())) == 1


@pytest.mark.usefixtures("no_curves")
def test_a_config_file_with_an_unknown_key_is_refused(command, patches):
    Path("c.yaml").write_text("training:\n  stepz: 3\n")
    done = command("train", "--config", "c.yaml", "--data", patches, "--out", "new")
    assert done.code == 2
    assert "stepz" in done.err
    Path("c.yaml").write_text("training: 3\n")
    done = command("train", "--config", "c.yaml", "--data", patches, "--out", "new")
    assert (done.code, "not a table of settings" in done.err) == (2, True)
    Path("c.yaml").write_text("training:\n  steps: 2\n")
    assert command("train", "--config", "c.yaml", "--data", patches, "--out", "new", *SMALL).code == 0
    assert load_checkpoint(Path("new")).step == 2


def test_a_config_file_never_runs_code(command, patches, monkeypatch):
    Path("evil.py").write_text("open('ran', 'w')\nclass X: pass\n")
    monkeypatch.syspath_prepend(Path.cwd())
    Path("c.yaml").write_text("training:\n  class_path: evil.X\n")
    Path("d.yaml").write_text("detector:\n  class_path: evil.X\n")
    Path("e.yaml").write_text("!!python/object/apply:os.mkdir [ran]\n")
    for name in ("c", "e"):
        assert command("train", "--config", f"{name}.yaml", "--data", patches, "--out", "new").code == 2
    assert command("evaluate", patches, patches, "--config", "d.yaml", "--out", "new").code == 2
    assert not Path("ran").exists()
    assert not Path("new").exists()


UNFOLDING = {
    "aliases of aliases": "a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0]\n"
    + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")) + "training: *i\n",
    "an alias of itself": "training: &a [*a]\n",
    "nested brackets": f"training: {'[' * 3000}{']' * 3000}\n",
    "brackets that libyaml overflows its stack with": f"training: {'[' * 100_000}{']' * 100_000}\n",
    "dashes that libyaml overflows its stack with": "- " * 100_000 + "a\n",
}  # fmt: skip


@pytest.mark.parametrize("text", UNFOLDING.values(), ids=UNFOLDING)
def test_a_config_file_that_unfolds_is_refused(command, text):
    Path("c.yaml").write_text(text)
    done = command("train", "--config", "c.yaml", "--data", "patches", "--out", "new")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "more or deeper values than there are settings" in done.err


@pytest.mark.usefixtures("no_curves", "no_figures")
def test_three_dimensions_take_the_same_way(command, patches):
    arguments = ["phantom", "--lesions", "phantom/annotations.csv", "--out", "cubes", "--size", 16, "--spacing", 3, "--dims", 3]
    assert command("data", "prepare", *arguments, "--processes", 1, "--validation", 0.25, "--test", 0.25).code == 0
    done = command("train", "--data", "cubes", "--out", "run", "--training.steps", 2, *SMALL)
    assert done.code == 0, done.err
    done = command("sample", "--run", "run", "--out", "synthetic", "--seeds", "0-11", "--format", "nifti,dicom")
    assert done.code == 0, done.err
    assert len(list(Path("synthetic/dicom/seed-00000003").iterdir())) == 16
    assert command("sample", "--run", "run", "--out", "new", "--format", "png").code == 2
    done = command("evaluate", "cubes", "synthetic", "--out", "report", *QUICK_AUDIT)
    assert done.code == 0, done.err


@pytest.mark.usefixtures("no_curves", "no_figures")
def test_real_nodules_in_miniature(command, real_data):
    options = ["--window", "-1000,400", "--classes", "non-nodule,nodule", "--background", "non-nodule", "--size", 32]
    done = command("data", "import", real_data / "luna16-patches" / "luna16_patches.npz", "--out", "patches", *options)
    assert done.code == 0, done.err
    folder = PatchFolder.open("patches")
    assert len(folder.select(splits=["test"], classes=["nodule"])) == 206
    assert len(folder.select(splits=["train", "validation"], classes=["nodule"])) == 771
    quick = ["--training.n_critic", 2, "--training.penalty_fraction", 0.25, "--training.learning_rate", 1e-3, "--networks.channels", 8]
    done = command("train", "--data", "patches", "--out", "run", "--training.steps", 60, "--training.device", "cpu", *quick)
    assert done.code == 0, done.err
    done = command("sample", "--run", "run", "--out", "synthetic", "--seeds", "0-99", "--format", "dicom")
    assert done.code == 0, done.err
    synthetic = PatchFolder.open("synthetic").hu(range(100)).astype(float)
    real = folder.hu(folder.select(splits=["train"], classes=["nodule"])).astype(float)
    centre, rim = (slice(None), slice(14, 18), slice(14, 18)), (slice(None), slice(4, 8), slice(4, 8))
    assert real[centre].mean() - real[rim].mean() > 200  # a nodule is brighter than the lung beside it
    assert synthetic[centre].mean() - synthetic[rim].mean() > 100  # and so is what was learned
    done = command("evaluate", "patches", "synthetic", "--out", "report", *QUICK_AUDIT)
    assert done.code == 0, done.err
