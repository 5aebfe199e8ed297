"""The whole way through the command line, small: phantom to report; resume; signals; bad input; the real run in miniature."""

import json
import os
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
from conftest import ROOT
from PIL import Image

from data.patches import PatchFolder
from gan.checkpoint import load_checkpoint

SMALL = ["--training.batch", 8, "--training.n_critic", 1, "--networks.channels", 4, "--networks.latent", 8, "--training.device", "cpu"]
QUICK_AUDIT = ["--detector.steps", 10, "--detector.seeds", 1]


@pytest.fixture
def patches(command):
    """A small phantom cohort's patch folder, "patches"."""
    done = command(
        "data", "phantom", "--out", "phantom", "--patients", 4, "--lesions", 6, "--matrix", 96, "--slice-mm", 10, "--processes", 1
    )
    assert done.code == 0, done.err
    arguments = ["phantom", "--lesions", "phantom/annotations.csv", "--out", "patches", "--size", 16, "--spacing", 3, "--processes", 1]
    done = command("data", "prepare", *arguments, "--validation", 0.25, "--test", 0.25)
    assert done.code == 0, done.err
    return Path("patches")


def test_phantom_to_report(command, patches):
    done = command("train", "--data", patches, "--out", "run", "--training.steps", 4, "--training.log_every", 2, *SMALL)
    assert done.code == 0, done.err
    assert "all 4 steps done" in done.out
    assert {f.name for f in Path("run").iterdir()} == {
        "config.yaml",
        "trained_on.json",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "model_card.md",
    }
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [2, 4]
    with Image.open("run/samples/step-00000004.png") as grid:
        assert grid.size == (8 * 17 * 2, 8 * 17 * 2)
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


def test_same_command_same_bytes(command, patches):
    for name in ("a", "b"):
        assert command("train", "--data", patches, "--out", name, "--training.steps", 2, *SMALL).code == 0
        assert command("sample", "--run", name, "--out", f"{name}-out", "--seeds", "3,1", "--format", "png,nifti,dicom").code == 0
    files = [sorted(f.relative_to(name) for f in Path(name).rglob("*") if f.is_file() and f.name != "metrics.jsonl") for name in ("a", "b")]
    assert files[0] == files[1]
    for one, two in (("a", "b"), ("a-out", "b-out")):
        for file in (f.relative_to(one) for f in Path(one).rglob("*") if f.is_file() and f.name != "metrics.jsonl"):
            assert (Path(one) / file).read_bytes() == (Path(two) / file).read_bytes(), file


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


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_so(command, patches, sent):
    arguments = [
        sys.executable,
        str(ROOT / "train.py"),
        "--data",
        "patches",
        "--out",
        "run",
        "--training.steps",
        "100000",
        *map(str, SMALL),
    ]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    deadline = time.monotonic() + 60
    while not (Path("run/metrics.jsonl").exists() and Path("run/metrics.jsonl").read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    step = load_checkpoint(Path("run")).step
    assert f"stopped at step {step} of 100000, saved" in out
    logged = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert step >= logged[-1] >= 50


def test_killed_at_any_moment_the_run_can_go_on(command, patches):
    arguments = [sys.executable, str(ROOT / "train.py"), "--data", "patches", "--out", "run", "--training.steps", "100000",
                 "--training.checkpoint_every", "3", *map(str, SMALL)]  # fmt: skip
    for wait in (0.0, 0.13):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(Path("run").glob("checkpoints/*.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(wait)
        process.kill()
        process.wait()
    step = load_checkpoint(Path("run")).step
    assert step >= 3
    done = command("train", "--data", patches, "--out", "run", "--training.steps", step + 2, *SMALL)
    assert done.code == 0, done.err
    assert load_checkpoint(Path("run")).step == step + 2


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
    described.write_text(json.dumps({**meta, "trained_on": {"shape": meta["trained_on"]["shape"]}}))
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
        (("sample", "--run", "gone", "--out", "new"), "no checkpoint"),
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
