"""Private runs through the command line: what is said, what is released and what is not, what is refused, and what a kill cannot undo."""

import functools
import json
import re
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from test_end_to_end import SMALL, rows_of
from test_gan_private import ALLOWED
from test_gan_processes import TORCHRUN, finish

from data.files import new_folder
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from gan.checkpoint import load_checkpoint
from gan.config import PrivacyConfig
from gan.privacy import PrivacyPlan
from gan.run_folder import NOT_COVERED

TRAIN = ("train", "--data", "patches", *SMALL, "--training.log_every", 3, "--training.checkpoint_every", 6, "--training.samples_every", 6)
STEPS = ("--privacy.patients", 8, "--privacy.critic_steps", 12, "--privacy.n_critic", 3)
NOISE = ("--privacy.noise_multiplier", 4, *STEPS)
PRIVATE = (*TRAIN, *NOISE)
CLASSES = ("ground-glass", "solid")
PATIENTS, LICENCE = 24, "by contract with the clinic"
_exact = functools.cache(PrivacyPlan.epsilon)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No curves drawn, and each epsilon computed once: the same few come up in all of these runs."""
    monkeypatch.setattr("gan.curves.write_curves", lambda metrics, picture: None)
    monkeypatch.setattr(PrivacyPlan, "epsilon", lambda plan, steps: _exact(plan, steps))


def pseudonym(patient: int) -> str:
    return f"pseudonym-{patient:04d}-of-somebody"


def write_patches(path: Path, classes=CLASSES, unit="HU", rewritten: int | None = None, known: bool = True, **spec) -> None:
    """16 x 16 discs of 24 training patients, 8 for validation and 4 for the test, 20 to 29 patches each; one of them may be another's."""
    distance, draws = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2)), np.random.default_rng(0)
    with new_folder(path) as folder:
        writer = PatchWriter(folder, PatchSpec((16, 16), (1.0, 1.0), (-1000, 400) if unit == "HU" else (0, 255), classes, unit, **spec))
        for patient in range(36):
            split = "train" if patient < PATIENTS else "validation" if patient < 32 else "test"
            other = patient == rewritten
            for n in range(3 if other else 20 + patient % 10):
                radius = draws.uniform(2, 6)
                hu = np.where(distance < radius, 200 if other else (-500, 100)[n % 2], -850) + draws.normal(0, 30, (16, 16))
                hu = hu if unit == "HU" else np.clip((hu + 1000) / 6, 0, 255)
                label = classes[0 if other else n % len(classes)]
                writer.add(
                    Patch(hu.astype(np.int16), pseudonym(patient), f"series-{patient}", label, 2 * radius if known else None, None, split)
                )
        writer.finish()


@pytest.fixture
def patches(command):
    write_patches(Path("patches"), licence=LICENCE)
    return PatchFolder.open("patches")


def spent_by(run="run") -> int:
    return json.loads(Path(run, ".privacy.json").read_text())["spent"]


def metrics_of(run="run") -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def files_in(folder) -> dict[str, bytes]:
    """Every file but the run's ledger and lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file() and file.name not in (".privacy.json", ".lock")
    }


def secrets_of(folder: PatchFolder) -> dict[str, str]:
    """Regular expressions for what must not be found anywhere: the hash of the patches, paths, pseudonyms, and counts of patches."""
    training = folder.select(splits=["train"])
    found = {"hash": folder.content_hash, "path": re.escape(str(Path.cwd())), "pseudonym": r"pseudonym-\d|series-\d"}
    counts = {"patches": len(training), "all": len(folder)}
    for name in folder.classes:
        counts[name] = int((folder.rows.names("label", training) == name).sum())
    for split in ("validation", "test"):
        counts[split] = len(folder.select(splits=[split]))
    return found | {f"count of {name}": rf"(?<![\w.]){count}(?![\w.])" for name, count in counts.items()}


def assert_tells_nothing(what: str, said: str, secrets: dict[str, str], numbers: bool = True) -> None:
    said = re.sub(r"\d+ images/s", "", said)  # a speed is any number
    for name, expression in secrets.items():
        if numbers or not name.startswith("count"):
            assert not re.search(expression, said), (what, name)


def test_a_run_within_a_budget(command, patches, monkeypatch):
    looked_at, hu = [], PatchFolder.hu
    monkeypatch.setattr(PatchFolder, "hu", lambda folder, indices: looked_at.append(np.asarray(indices)) or hu(folder, indices))
    run = (*TRAIN, "--privacy.epsilon", 8, *STEPS, "--out", "run")
    done = command(*run)
    assert done.code == 0, done.err
    plan, sentence, begun = (
        done.out.index(part) for part in ("privacy plan: 24 patients", "This run is differentially private", "run folder")
    )
    assert plan < sentence < begun < done.out.index("step 1, critic step 3")
    assert "8 expected in a critic step (q = 0.3333), 2 patches of each" in done.out
    assert done.out.count("warning: 24 training patients are few") == 1
    assert set(np.concatenate(looked_at)) <= set(patches.select(splits=["train"]))  # no pixel of a validation patient was read

    lines = metrics_of()
    assert set().union(*lines) == ALLOWED
    epsilons = [line["epsilon"] for line in lines]
    assert epsilons == sorted(epsilons)
    assert 7.97 < epsilons[-1] <= 8
    assert [line["critic_steps"] for line in lines] == [3, 6, 9, 12]
    spent = load_checkpoint(Path("run")).privacy_spent
    assert (spent["critic_steps"], spent["epsilon"], spent["plan"]["critic_steps"]) == (12, epsilons[-1], 12)
    assert "epsilon 8.00 and delta 1e-05" in spent["sentence"]
    assert "24 training patients" in spent["sentence"]
    card = Path("run/model_card.md").read_text()
    assert f"privacy: {spent['sentence']}{NOT_COVERED}" in card
    assert "no guarantee" not in card
    assert f"- licence or terms of the data: {LICENCE}\n" in card
    assert spent["sentence"] in done.out.splitlines()
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["privacy"] == asdict(PrivacyConfig(epsilon=8.0, patients=8, critic_steps=12, n_critic=3))
    assert spent_by() == 12

    before, ledger = files_in("run"), Path("run/.privacy.json").read_bytes()
    done = command(*run)
    assert done.code == 0, done.err
    assert "all 4 steps done" in done.out
    assert files_in("run") == before
    assert Path("run/.privacy.json").read_bytes() == ledger
    monkeypatch.setattr("gan.privacy._least_noise", lambda plan, epsilon: 5.0)
    for options, cause in (
        ((*TRAIN, "--privacy.epsilon", 7, *STEPS), "privacy.epsilon is 7.0, but run was started with 8.0"),
        ((*TRAIN, "--privacy.epsilon", 8, *STEPS), "privacy.noise_multiplier is 5.0, but run was started with"),  # another accountant's
        (TRAIN, "privacy.epsilon is 0.0, but run was started with 8.0"),
    ):
        done = command(*options, "--out", "run")
        assert (done.code, done.err.count("\n"), cause in done.err) == (2, 1, True), done.err
    assert files_in("run") == before
    assert Path("run/.privacy.json").read_bytes() == ledger


def test_nothing_told_is_of_a_patient(command, patches):
    secrets = secrets_of(patches)
    done = command(*PRIVATE, "--networks.condition", "class+diameter", "--out", "run")
    assert done.code == 0, done.err
    assert_tells_nothing("what was said", done.out + done.err, secrets)
    assert stat.S_IMODE(Path("run/.privacy.json").stat().st_mode) == 0o600
    assert json.loads(Path("run/.privacy.json").read_text())["cohort"] == patches.content_hash
    assert {file.name for file in Path("run").rglob(".*")} == {".lock", ".privacy.json"}
    trained_on = json.loads(Path("run/trained_on.json").read_text())
    assert trained_on == {
        "shape": [16, 16], "spacing_mm": [1, 1], "window": [-1000, 400], "unit": "HU", "classes": list(CLASSES), "patients": PATIENTS,
        "patients_known": True, "licence": LICENCE,
    }  # fmt: skip
    assert load_checkpoint(Path("run")).trained_on == trained_on
    sentence, shares = load_checkpoint(Path("run")).privacy_spent["sentence"], {}
    for wanted in ("natural", "balanced", "solid"):
        done = command("sample", "--run", "run", "--out", wanted, "--class", wanted, "--seeds", "0-79", "--format", "png,nifti,dicom")
        assert done.code == 0, done.err
        assert_tells_nothing("what was said", done.out + done.err, secrets)
        said = json.loads(Path(wanted, "sampling.json").read_text())
        assert (said["privacy"], said["trained_on_sha256"]) == (sentence, None)
        shares[wanted] = np.mean([row["class"] == "solid" for row in rows_of(wanted)])
    assert shares["natural"] == shares["balanced"] == pytest.approx(0.5, abs=0.2)
    assert shares["solid"] == 1
    text = {".json", ".jsonl", ".yaml", ".md", ".csv"}
    for folder in ("run", *shares):
        for name, content in files_in(folder).items():
            assert_tells_nothing(
                f"{folder}/{name}", content.decode("latin-1"), secrets, numbers=folder == "run" and Path(name).suffix in text
            )


def test_another_patient_in_their_place_changes_no_file_but_by_noise(command, patches):
    write_patches(Path("others"), rewritten=5, licence=LICENCE)
    steady = ("--privacy.adaptive", "false", "--networks.condition", "class+diameter")
    runs = {}
    for data in ("patches", "others"):
        assert command(*PRIVATE, *steady, "--data", data, "--out", f"run-{data}").code == 0
        runs[data] = files_in(f"run-{data}")
    one, other = runs.values()
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith("checkpoints") and name.endswith("json"):
            described = [json.loads(files[name]) for files in (one, other)]
            assert all(len({*meta.pop("sha256"), *meta.pop("tensors_sha256")}) > 1 for meta in described)
            assert described[0] == described[1]
        elif name in ("config.yaml", "trained_on.json"):
            assert one[name] == other[name]
        else:
            assert len(one[name].split(b"\n")) == len(other[name].split(b"\n")) or not name.endswith((".jsonl", ".md"))
    done = command(*PRIVATE, *steady, "--data", "others", "--out", "run-patches")
    assert (done.code, done.err.count("\n"), "trained on other patches" in done.err) == (2, 1, True), done.err
    for folder in (patches, PatchFolder.open("others")):
        assert folder.content_hash not in done.err


def test_a_dry_run_says_what_the_budget_means_and_writes_nothing(command, patches):
    before = files_in(".")
    done = command(*PRIVATE, "--privacy.dry_run", "true", "--out", "new")
    assert done.code == 0, done.err
    for part in (
        "privacy plan: 24 patients",
        "noise multiplier 4, 12 critic steps",
        "12 critic steps so far",
        "warning: 24 training patients",
    ):
        assert part in done.out
    assert_tells_nothing("what was said", done.out + done.err, secrets_of(patches))
    assert files_in(".") == before
    assert not Path("new").exists()
    done = command(*PRIVATE, "--dry-run", "--out", "new")
    assert done.code == 0, done.err
    assert "images/s" in done.out
    assert_tells_nothing("what was said", done.out + done.err, secrets_of(patches))
    assert files_in(".") == before
    assert not Path("new").exists()


def test_what_would_break_the_guarantee_is_refused_in_one_line(command, patches, monkeypatch):
    write_patches(Path("gray"), unit="gray")
    write_patches(Path("unknown"), patients_known=False)
    monkeypatch.setattr("gan.encoder.load_encoder", lambda path, dims: object())  # a real one is read before anything else is looked at
    plain = ("--training.steps", 1, "--out", "plain")
    assert command(*TRAIN, *plain).code == 0
    assert command(*PRIVATE, "--out", "run").code == 0
    new = ("--out", "new")
    cases = [
        ((*TRAIN, *new, "--privacy.epsilon", 8, *NOISE), "privacy.epsilon is 8 and privacy.noise_multiplier 4; give one"),
        ((*PRIVATE, *new, "--encoder", "resnet.pth"), "--encoder cannot go with privacy: "),
        ((*PRIVATE, *new, "--training.balance", 0.5), "training.balance cannot go with privacy: "),
        ((*PRIVATE, *new, "--training.augment", 0.5), "training.augment cannot go with privacy: "),
        ((*PRIVATE, *new, "--training.not_finite", "skip"), "training.not_finite cannot go with privacy: "),
        ((*PRIVATE, *new, "--data", "gray"), "the window cannot go with privacy: "),
        ((*PRIVATE, *new, "--data", "unknown"), "a folder whose patients are not known cannot go with privacy: "),
        ((*PRIVATE, *new, "--data", "unknown", "--privacy.dry_run", "true"), "or with --patients each"),
        ((*PRIVATE, *new, "--init-from", "run"), "--init-from run cannot go with privacy: that run is private"),
        ((*PRIVATE, *new, "--init-from", "plain"), "--init-from plain cannot go with privacy: that run was trained on the same patients"),
        ((*TRAIN, *new, "--privacy.epsilon", 1e-4, *STEPS), "privacy.epsilon 0.0001 is out of reach with 24 patients"),
        ((*TRAIN, *new, "--privacy.epsilon", -1, *STEPS), "epsilon of the run is -1, want above 0"),
        ((*PRIVATE, *new, "--privacy.delta", 0), "privacy.delta is 0, want"),
        ((*PRIVATE, *new, "--privacy.delta", 2), "privacy.delta is 2, want"),
        ((*PRIVATE, *new, "--privacy.patients", 25), "privacy.patients is 25, want 1 to 24"),
        ((*PRIVATE, *new, "--privacy.n_critic", 0), "privacy.n_critic is 0"),
        ((*TRAIN, *new, "--privacy.dry_run", "true"), "privacy.dry_run wants a budget"),
        ((*PRIVATE, "--out", "plain", "--training.steps", 2), "privacy.noise_multiplier is 4.0, but plain was started with 0.0"),
        ((*PRIVATE, "--out", "run", "--privacy.noise_multiplier", 5), "privacy.noise_multiplier is 5.0, but run was started with 4.0"),
        ((*PRIVATE, "--out", "run", "--privacy.critic_steps", 24), "privacy.critic_steps is 24, but run was started with 12"),
        ((*PRIVATE, "--out", "run", "--privacy.clip_norm", 2), "privacy.clip_norm is 2.0, but run was started with 1.0"),
        ((*PRIVATE, "--out", "run", "--privacy.delta", 1e-6), "privacy.delta is 1e-06, but run was started with 1e-05"),
    ]  # fmt: skip
    before = {run: files_in(run) for run in ("run", "plain")}
    for case, cause in cases:
        done = command(*case)
        assert (done.code, done.err.count("\n"), cause in done.err) == (2, 1, True), (case, done.err)
        assert_tells_nothing(cause, done.err, secrets_of(patches), numbers=False)
        assert not Path("new").exists(), case
    assert {run: files_in(run) for run in before} == before
    ledger = Path("run/.privacy.json")
    whole = ledger.read_text()
    for content, cause in ((None, "missing"), (whole[:-20], "damaged"), (whole.replace('"spent": 12', '"spent": 3'), "damaged")):
        ledger.unlink() if content is None else ledger.write_text(content)
        done = command(*PRIVATE, "--out", "run")
        assert (done.code, done.err.count("\n"), f".privacy.json: {cause}" in done.err) == (2, 1, True), done.err
        assert ledger.exists() == (content is not None)
    ledger.write_text(whole)
    assert command(*PRIVATE, "--out", "run").code == 0


def test_a_private_run_can_start_from_others_weights_and_has_its_whole_budget(command, patches):
    write_patches(Path("phantoms"), classes=("solid", "cystic"), rewritten=3)
    assert command(*TRAIN, "--data", "phantoms", "--training.steps", 2, "--out", "phantom-run").code == 0
    done = command(*PRIVATE, "--init-from", "phantom-run", "--training.frozen_layers", 1, "--out", "run")
    assert done.code == 0, done.err
    assert "phantom-run: 100% of the weights are those of step 2 of the other run" in done.out
    assert done.out.index("phantom-run: 100%") < done.out.index("privacy plan")
    before, after = load_checkpoint(Path("phantom-run"), "best"), load_checkpoint(Path("run"))
    assert (before.tensors["critic.layers.0.weight"] == after.tensors["critic.layers.0.weight"]).all()
    assert (before.tensors["critic.layers.1.weight"] != after.tensors["critic.layers.1.weight"]).any()
    assert (metrics_of()[0]["critic_steps"], after.privacy_spent["critic_steps"]) == (3, 12)
    assert 0 < metrics_of()[0]["epsilon"] < after.privacy_spent["epsilon"]
    assert "weights that the run started from" in Path("run/model_card.md").read_text()
    done = command(*PRIVATE, "--training.frozen_layers", 1, "--out", "run")  # going on does not need the other run
    assert done.code == 0, done.err
    assert yaml.safe_load(Path("run/config.yaml").read_text())["start"]["init_from"] == before.model_hash


def wait_for_lines(process, count: int) -> None:
    deadline, metrics = time.monotonic() + 240, Path("run/metrics.jsonl")
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= count):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_killed_run_has_shown_stays_spent(command, patches):
    options = [
        *PRIVATE, "--training.log_every", 1, "--training.samples_every", 1, "--training.checkpoint_every", 9, "--privacy.critic_steps", 3000,
        "--out", "run",
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, options[1:])], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_for_lines(process, 2)
        process.kill()
        process.communicate()
    shown, spent = metrics_of()[-1]["critic_steps"], spent_by()
    saved = load_checkpoint(Path("run")) if list(Path("run").glob("checkpoints/*.json")) else None
    assert shown >= 6
    assert spent >= max(shown, 3 * len(list(Path("run/samples").glob("*.png"))), saved.privacy_spent["critic_steps"] if saved else 0)
    done = command(*options, "--training.steps", (saved.step if saved else 0) + 2)
    assert done.code == 0, done.err
    assert [line["critic_steps"] for line in metrics_of()][-2:] == [spent + 3, spent + 6]
    assert spent_by() == load_checkpoint(Path("run")).privacy_spent["critic_steps"] == spent + 6


@pytest.mark.slow
def test_two_processes_share_one_budget(command, patches):
    """Their patients and noise are test_gan_private's matter."""
    options = [*PRIVATE[1:], "--training.checkpoint_every", 3]
    said = finish(*TORCHRUN, ROOT / "train.py", *options, "--training.steps", 2, "--out", "run")
    assert said.count("privacy plan") == said.count("all 2 steps done") == 1
    assert spent_by() == 6
    assert command("train", *options, "--training.steps", 3, "--out", "run").code == 0
    said = finish(*TORCHRUN, ROOT / "train.py", *options, "--out", "run")
    assert said.count("all 4 steps done") == 1
    assert spent_by() == 12
    assert [line["critic_steps"] for line in metrics_of()] == [3, 6, 9, 12]
