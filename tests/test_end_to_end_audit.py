"""`python -m evaluate privacy` as a user runs it: what it says of runs with a guarantee, without one, and with one that is broken."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.files import new_folder
from data.patches import Patch, PatchSpec, PatchWriter
from evaluate.privacy_audit import ERROR, one_run_bound
from evaluate.privacy_report import ATTACKS, OUTSIDE, AuditedMoment, PrivacyReport, audited_moment, nearest_scores, to_json
from gan import private_trainer
from gan.checkpoint import load_checkpoint, save_checkpoint

SMALL = ("--networks.channels", 4, "--networks.latent", 8, "--training.batch", 8, "--training.samples_every", 0, "--training.device", "cpu")
PRIVATE = (
    "--privacy.epsilon",
    1,
    "--privacy.patients",
    12,
    "--privacy.critic_steps",
    24,
    "--privacy.n_critic",
    6,
    "--training.learning_rate",
    1e-4,
)
AUDIT = ("--canaries", 60, "--seed", 1)


def write_patches(path, patients=(30, 20, 10), shape=(16, 16), classes=("ground-glass", "solid")):
    """Discs of so many training, validation and test patients, one to three of each."""
    distance, rng = np.sqrt(sum((np.indices(shape) - 7.5) ** 2)), np.random.default_rng(0)
    with new_folder(path) as folder:
        writer = PatchWriter(folder, PatchSpec(shape, (1.0,) * len(shape), (-1000, 400), classes))
        for split, count in zip(("train", "validation", "test"), patients, strict=True):
            for patient in range(count):
                for n in range(1 + patient % 3):
                    hu = np.where(distance < rng.uniform(2, 6), 100, -850) + rng.normal(0, 40, shape)
                    writer.add(
                        Patch(
                            hu.astype(np.int16),
                            f"pseudonym-{split}-{patient}",
                            "series",
                            classes[(patient + n) % len(classes)],
                            8.0,
                            None,
                            split,
                        )
                    )
        writer.finish()
    return path


@pytest.fixture
def trained(command, tmp_path, monkeypatch):
    """trained(options) -> a run on the patches, by train.py."""
    monkeypatch.setattr("gan.curves.write_curves", lambda metrics, picture: None)
    monkeypatch.setattr("gan.canaries.SAMPLES", 100)
    write_patches(tmp_path / "patches")

    def train(*options):
        done = command("train", "--data", "patches", "--out", "run", *SMALL, *options)
        assert done.code == 0, done.err
        return tmp_path / "run"

    return train


def content(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_private_run_is_not_refuted_and_not_touched(command, tmp_path, trained):
    run = trained(*PRIVATE)
    before, data = content(run), content(tmp_path / "patches")
    done = command("evaluate", "privacy", "run", "patches", "--out", "audit", *AUDIT)
    assert done.code == 0, done.err
    assert (content(run), content(tmp_path / "patches")) == (before, data)
    assert "Every bound is below what the accountant says, epsilon" in done.out
    assert OUTSIDE in done.out
    assert "training a copy of run: 24 critic steps on 30 patients and 60 canaries" in done.err
    assert sorted(file.name for file in (tmp_path / "audit").iterdir()) == ["audit.html", "audit.json", "bounds.png"]
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert report["broken"] is False
    assert report["settings"]["canaries"] == 60
    assert report["settings"]["patches_of_a_canary"] == 2
    assert report["settings"]["sample_rate"] == 12 / 30
    steps = [moment["critic_steps"] for moment in report["moments"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == 24
    last = report["moments"][-1]
    assert 0.9 < last["accountant"] <= 1
    assert [one["name"] for one in last["attacks"]] == list(ATTACKS)
    for one in last["attacks"]:
        assert 0 <= one["epsilon"] <= last["accountant"] < one["cap"]
        assert one["auroc_interval"]["low"] <= one["auroc"] <= one["auroc_interval"]["high"]
        assert one["confidence"] == pytest.approx(1 - 0.05 / 3)
        assert one["tpr_at_1_percent_fpr"] is None  # fewer than 100 are out
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("data:image/png") == 1
    for text in (done.out, done.err, page, json.dumps(report)):
        assert "pseudonym" not in text
        assert str(tmp_path) not in text


def test_a_run_that_leaves_out_its_noise_is_caught(command, tmp_path, trained, monkeypatch):
    trained(*PRIVATE, "--privacy.epsilon", 0.5)
    monkeypatch.setattr(private_trainer, "gaussian", lambda count: torch.zeros(count, dtype=torch.float64))
    done = command("evaluate", "privacy", "run", "patches", "--out", "audit", "--look-every", 1, *AUDIT)
    assert done.code == 1, done.err
    assert "THE GUARANTEE IS BROKEN: the accountant says epsilon 0.5 after 24 critic steps" in done.out
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert report["broken"] is True
    assert "THE GUARANTEE IS BROKEN" in (tmp_path / "audit" / "audit.html").read_text()


def test_a_run_without_privacy_gives_its_canaries_away(command, tmp_path, trained):
    write_patches(tmp_path / "few", patients=(10, 3, 3))
    trained("--training.steps", 150, "--training.batch", 32, "--networks.channels", 16, "--networks.condition", "none", "--data", "few")
    done = command("evaluate", "privacy", "run", "few", "--out", "audit", "--look-every", 10, "--canaries", 30, "--seed", 1)
    assert done.code == 0, done.err
    assert "The run has no guarantee, and the attacks show an epsilon of" in done.out
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    last = report["moments"][-1]
    assert len(report["moments"]) == 8
    assert last["accountant"] is None
    assert last["critic_steps"] == 150
    assert max(one["auroc"] for one in last["attacks"]) > 0.8


def test_real_patients_as_canaries_and_fewer_steps(command, tmp_path, trained):
    trained(*PRIVATE)
    done = command("evaluate", "privacy", "run", "patches", "--out", "audit", "--canary-kind", "held-out", "--critic-steps", 12)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert report["settings"]["canaries"] == 22  # three quarters of 30
    assert report["settings"]["seed"] is None
    assert report["settings"]["noise_multiplier"] > 1
    assert report["moments"][-1]["critic_steps"] == 12
    assert report["moments"][-1]["accountant"] < 0.9  # of these steps, at the run's own noise


def test_refuses_what_cannot_be_audited(command, tmp_path, trained):
    trained(*PRIVATE)
    write_patches(tmp_path / "larger", shape=(32, 32))
    write_patches(tmp_path / "fewer", patients=(29, 1, 1))
    student = load_checkpoint(tmp_path / "run")
    save_checkpoint(tmp_path / "student", replace(student, config={"networks": student.config["networks"]}))
    (tmp_path / "none").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for arguments, told in (
        (("none", "patches"), "none: no run there; train.py --data PATCHES --out RUN trains one"),
        (
            ("student", "patches"),
            "student: distilled from another run and never trained on patients; audit the run that it was distilled from",
        ),
        (("patches", "run"), "run: a run, not a patch folder; sample.py draws one from it"),
        (("run", "larger"), "run was trained on other patches than larger: shape [16, 16], here [32, 32]; give the folder of its --data"),
        (("run", "fewer"), "run was trained on other patches than fewer: patients 30, here 29"),
        (("run", "patches", "--canaries", 19), "--canaries is 19, want 20 or more"),
        (("run", "patches", "--critic-steps", 25), "--critic-steps is 25, want 1 to 24, as many as run has done"),
        (("run", "patches", "--look-every", 0), "--look-every is 0, want 1 or more"),
        (("run", "patches", "--canary-kind", "mine"), "canary_kind"),
        (("run", "patches", "--out", "full"), "full: exists already"),
    ):
        done = command("evaluate", "privacy", "--out", "audit", *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert told in done.err
        assert not (tmp_path / "audit").exists()
    (tmp_path / "run" / "config.yaml").write_text("privacy: 3")
    done = command("evaluate", "privacy", "run", "patches", "--out", "audit")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "run: its newest checkpoint and config.yaml do not describe it" in done.err
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


def test_too_few_patients_to_be_canaries(command, tmp_path, trained):
    write_patches(tmp_path / "few", patients=(30, 10, 10))
    done = command("train", "--data", "few", "--out", "few-run", *SMALL, *PRIVATE)
    assert done.code == 0, done.err
    done = command("evaluate", "privacy", "few-run", "few", "--out", "audit", "--canary-kind", "held-out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "few has 20 validation and test patients, and three quarters of them are fewer than 20 canaries" in done.err


def test_help_teaches_the_attack(command):
    done = command("evaluate", "privacy", "--help")
    assert done.code == 0
    assert "python -m evaluate privacy run patches --out audit" in done.out
    assert "Exit codes: 0 done, 1 the guarantee is broken" in done.out
    assert "python -m evaluate privacy --help" in command("evaluate", "--help").out


def test_a_bound_above_the_accountants_epsilon_breaks_the_guarantee_at_the_end_only():
    included = np.arange(200) % 2 == 0
    right, wrong = included + np.linspace(0, 0.1, 200), np.random.default_rng(0).random(200)

    def moment(steps, accountant, scores):
        return audited_moment(
            steps, accountant, dict.fromkeys(ATTACKS, wrong) | {"critic": scores}, included, 1e-5, np.random.default_rng(0)
        )

    caught = PrivacyReport((moment(10, 0.5, wrong), moment(20, 1.0, right)), {})
    assert [attack.name for attack in caught.broken] == ["critic"]
    assert "critic's scores" in caught.verdict
    kept = PrivacyReport((moment(10, 0.5, right), moment(20, 9.0, right)), {})
    assert not kept.broken
    assert "epsilon 9 after 20 critic steps (gradients 0.00, critic 3" in kept.verdict
    bound = kept.moments[-1].attacks[1].epsilon
    for accountant, broken in ((bound, False), (math.nextafter(bound, 0), True)):
        assert bool(PrivacyReport((replace(kept.moments[-1], accountant=accountant),), {}).broken) == broken
    none = PrivacyReport((moment(20, math.inf, right),), {})
    assert not none.broken
    assert json.loads(to_json(none))["moments"][0]["accountant"] is None
    assert isinstance(none.moments[0], AuditedMoment)


def test_the_bounds_of_a_moment_hold_together():
    included = np.arange(200) % 2 == 0
    right = included + np.linspace(0, 0.1, 200)
    found = audited_moment(20, 9.0, dict.fromkeys(ATTACKS, right), included, 1e-5, np.random.default_rng(0)).attacks
    part = one_run_bound(right, included, 1e-5, ERROR / 3).epsilon  # Bonferroni: each has its part of the error
    assert [attack.epsilon for attack in found] == [part] * 3
    assert part < one_run_bound(right, included, 1e-5).epsilon
    assert {attack.confidence for attack in found} == {1 - ERROR / 3}


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (8, 16, 16)])
def test_copies_of_a_patient_among_synthetic_patches_are_near(shape):
    rng = np.random.default_rng(0)
    patches = [rng.normal(0, 1, (n, *shape)) for n in rng.integers(1, 4, 30)]
    reference = rng.normal(0, 1, (200, *shape))
    synthetic = np.concatenate([rng.normal(0, 1, (200, *shape)), *[one + rng.normal(0, 0.1, one.shape) for one in patches[:15]]])
    scores = nearest_scores(patches, synthetic, reference)
    assert scores.shape == (30,)
    assert scores[:15].min() > scores[15:].max()
