"""Lesions in anatomy through the command line: training, resuming, composites, what is promised of them, and what is refused."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from test_end_to_end import QUICK_AUDIT, SMALL

from data.files import new_folder
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from data.preprocess import from_unit, to_unit
from gan.context import radius_mm

SHAPE, WINDOW = (16, 16), (-1000, 400)
CONTEXT = ("train", "--data", "patches", *SMALL, "--training.steps", 4, "--context.on", "true")


def write_patches(path, seed: int = 0, lesions: bool = True, listed: bool = True) -> None:
    """20 patients, each with two lesions of a known or unknown diameter, and three lesion-free patches of a scan with stripes."""
    rng = np.random.default_rng(seed)
    distance = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2))
    classes = ("lesion", "free") if lesions else ("free",)
    with new_folder(path) as folder:
        writer = PatchWriter(folder, PatchSpec(SHAPE, (1.0, 1.0), WINDOW, classes, background="free"))
        for patient in range(20):
            split = "train" if patient < 14 else "validation" if patient < 17 else "test"
            for n in range(5):
                lesion, diameter = n < 2 and lesions, float(rng.uniform(3, 7))
                hu = -850 + rng.normal(0, 30, SHAPE) + 60 * (np.arange(16) % 4 == patient % 4)
                hu = np.where((distance < diameter / 2) & lesion, 50, hu).astype(np.int16)
                name = f"pseudonym-{seed}-{patient:04d}"
                label = "lesion" if lesion else "free"
                writer.add(Patch(hu, name, f"series-{seed}-{patient:04d}", label, diameter if lesion and listed else None, split=split))
        writer.finish()


@pytest.fixture
def patches(tmp_path):
    write_patches(tmp_path / "patches")


def settings_of(folder) -> dict:
    return json.loads((folder / "sampling.json").read_text())


def test_from_patches_to_composites_that_can_be_drawn_again(command, patches, tmp_path, no_curves):
    done = command(*CONTEXT, "--out", "run")
    assert done.code == 0, done.err
    assert "draws them into 42 lesion-free patches of patients of the cohort" in done.out
    assert "into lesion-free CT, in training that of patients of the cohort" in (tmp_path / "run" / "model_card.md").read_text()
    drawn = command("sample", "--run", "run", "--backgrounds", "patches", "--out", "composites", "--seeds", "0-19", "--diameter", "4-6",
                    "--reject", "false", "--format", "png,dicom,seg")  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert command("sample", "--run", "run", "--backgrounds", "patches", "--verify", "composites").code == 0
    write_patches(tmp_path / "others", seed=1)
    other = command("sample", "--run", "run", "--backgrounds", "others", "--verify", "composites")
    assert (other.code, "the samples were drawn into another folder's patches" in other.err) == (2, True)
    folder = PatchFolder.open(tmp_path / "composites")
    said = settings_of(folder.path)
    assert (said["anatomy"], said["backgrounds"]) == ("cohort", PatchFolder.open(tmp_path / "patches").content_hash)
    image = pydicom.dcmread(tmp_path / "composites" / "dicom" / "seed-00000003.dcm")
    assert "lesions set into an acquired CT" in image.ContributingEquipmentSequence[0].ContributionDescription
    assert said["privacy"].startswith("no guarantee")
    real = PatchFolder.open(tmp_path / "patches")
    free = from_unit(to_unit(real.hu(real.select(splits=["train"], classes=["free"])), WINDOW), WINDOW)
    turned = np.concatenate([free, free[:, ::-1], free[:, :, ::-1], free[:, ::-1, ::-1]])
    distance = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2))
    beyond = distance > radius_mm(np.array(6.0))
    for n, composite in enumerate(folder.hu(range(20))):  # each is some training patient's lesion-free patch, but for its lesion
        (which, *_) = np.flatnonzero((turned[:, beyond] == composite[beyond]).all(1))
        segmentation = pydicom.dcmread(tmp_path / "composites" / "seg" / f"seed-{n:08d}.dcm")
        lesion, change = segmentation.pixel_array.astype(bool), np.abs(composite.astype(float) - turned[which])
        assert change[lesion].min() >= 0.9 * change[~lesion & (distance < 3)].max(initial=0)  # what is marked was changed most


def test_only_lesions_that_can_be_seen_are_kept(command, patches, tmp_path, no_curves, monkeypatch):
    assert command(*CONTEXT, "--out", "run").code == 0

    def drawn(name: str, visible: float):
        monkeypatch.setattr("gan.context.VISIBLE", visible)
        return command("sample", "--run", "run", "--backgrounds", "patches", "--out", name, "--seeds", "0-49")

    def rows(name: str) -> list[dict[str, str]]:
        with open(tmp_path / name / "samples.csv", newline="") as file:
            return list(csv.DictReader(file))

    assert drawn("all", 0).code == 0
    least = float(np.median([float(row["contrast"]) for row in rows("all")]))
    done = drawn("seen", least)
    assert done.code == 0, done.err
    again = [int(row["attempt"]) for row in rows("seen")]
    assert settings_of(tmp_path / "seen")["selection"]["rejected"] == {"contrast": sum(again)}
    assert f"turned down: {sum(again)} by contrast" in done.out
    for before, after, attempt in zip(rows("all"), rows("seen"), again, strict=True):
        assert float(after["contrast"]) >= least
        assert (attempt == 0) == (float(before["contrast"]) >= least)
        assert attempt or before == after
    assert command("sample", "--run", "run", "--backgrounds", "patches", "--verify", "seen").code == 0
    none = drawn("none", 3)
    assert (none.code, (tmp_path / "none").exists()) == (2, False)
    assert "hardly any sample is as asked for: 0 of" in none.err
    assert "by contrast" in none.err


def test_a_report_says_whose_anatomy_composites_show(command, patches, tmp_path, no_curves, no_figures):
    assert command(*CONTEXT, "--out", "run").code == 0
    assert command("sample", "--run", "run", "--backgrounds", "patches", "--out", "composites", "--seeds", "0-39").code == 0
    done = command("evaluate", "patches", "composites", "--out", "report", *QUICK_AUDIT)
    assert done.code == 0, done.err
    text = (tmp_path / "report" / "report.md").read_text()
    assert "These are composites: lesions drawn into lesion-free patches of patients of the cohort" in text
    assert "No guarantee: the anatomy around a lesion is that of patients of the cohort" in text


def test_a_run_goes_on_where_it_stopped_and_not_with_other_anatomy(command, patches, tmp_path, no_curves):
    write_patches(tmp_path / "phantoms", seed=1, lesions=False)
    assert command(*CONTEXT, "--out", "whole").code == 0
    half = [1 if n and CONTEXT[n - 1] == "--training.steps" else word for n, word in enumerate(CONTEXT)]
    assert command(*half, "--out", "halved").code == 0
    assert command(*CONTEXT, "--out", "halved").code == 0
    whole, halved = (sorted((tmp_path / name / "checkpoints").glob("*.safetensors"))[-1] for name in ("whole", "halved"))
    assert whole.read_bytes() == halved.read_bytes()
    other = command(*CONTEXT, "--context.backgrounds", "phantoms", "--context.origin", "phantom", "--out", "whole")
    assert other.code == 2
    assert "context.origin is phantom" in other.err


def test_a_private_run_draws_into_phantoms_only_and_promises_nothing_for_patients_anatomy(command, patches, tmp_path, no_curves):
    write_patches(tmp_path / "phantoms", seed=1, lesions=False)
    private = (*CONTEXT, "--privacy.noise_multiplier", 4, "--privacy.patients", 6, "--privacy.critic_steps", 4, "--privacy.n_critic", 2)
    refused = command(*private, "--out", "refused")
    assert refused.code == 2
    assert "drawn into patients' anatomy, which nothing protects" in refused.err
    phantoms = ("--context.backgrounds", "phantoms", "--context.origin", "phantom")
    done = command(*private, *phantoms, "--out", "private")
    assert done.code == 0, done.err
    promised = {}
    for name, options in {
        "nobody": ("--backgrounds", "phantoms", "--anatomy", "phantom"),
        "unsaid": ("--backgrounds", "phantoms"),
        "patients": ("--backgrounds", "patches", "--anatomy", "cohort"),
    }.items():
        drawn = command("sample", "--run", "private", *options, "--out", name, "--seeds", "0-7")
        assert drawn.code == 0, drawn.err
        promised[name] = settings_of(tmp_path / name)["privacy"]
    assert "no guarantee" not in promised["nobody"]
    assert "differentially private" in promised["nobody"]
    assert promised["unsaid"].startswith("no guarantee")
    assert promised["patients"].startswith("no guarantee: the anatomy around a lesion is that of patients of the cohort")


def test_whoever_of_the_models_knows_the_cohort_its_test_patients_anatomy_is_not_shown(patches, tmp_path):
    from gan.commands.sample_request import backgrounds_of

    folder = PatchFolder.open(tmp_path / "patches")
    hashes = {"other": None, "own": folder.content_hash}
    for models, anatomy, origin, free in (
        (("other", "own"), "public", "cohort", 42), (("other",), "cohort", "cohort", 42), (("other",), "public", "public", 42),
    ):  # fmt: skip
        asked = SimpleNamespace(backgrounds=folder.path, anatomy=anatomy, quality=None, pictures=False)
        known = [SimpleNamespace(context="cohort", trained_on={"content_sha256": hashes[name]}) for name in models]
        found = backgrounds_of(asked, known, folder.spec)
        assert (found.origin, len(found.patches)) == (origin, free)


def test_lesions_of_unlisted_diameter_are_measured(command, tmp_path, no_curves):
    from gan.commands.shared import lesion_diameters_mm

    write_patches(tmp_path / "patches", listed=False)
    write_patches(tmp_path / "truth")
    folder, truth = (PatchFolder.open(tmp_path / name) for name in ("patches", "truth"))
    rows = folder.select(classes=["lesion"])
    found, listed = lesion_diameters_mm(folder, rows), truth.rows.diameter_mm[rows]
    np.testing.assert_allclose(found, listed, atol=1.6)
    assert np.corrcoef(found, listed)[0, 1] > 0.9
    np.testing.assert_array_equal(lesion_diameters_mm(truth, rows), listed)
    assert command(*CONTEXT, "--out", "run").code == 0


def test_lesions_to_match_need_no_listed_diameter(command, tmp_path, no_curves):
    write_patches(tmp_path / "patches", listed=False)
    assert command(*CONTEXT, "--out", "run").code == 0
    drawn = command(
        "sample", "--run", "run", "--backgrounds", "patches", "--match", "patches", "--reject", "false", "--out", "alike", "--seeds", "0-9"
    )
    assert drawn.code == 0, drawn.err
    with open(tmp_path / "alike" / "samples.csv", newline="") as file:
        asked = [float(row["asked_mm"]) for row in csv.DictReader(file)]
    assert all(2 < mm < 9 for mm in asked)
    assert command("sample", "--run", "run", "--backgrounds", "patches", "--verify", "alike").code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--context.backgrounds", "nowhere", "--context.origin", "public"), "nowhere: no such patch folder"),
        (("--context.origin", "public"), "context.origin is public, and .*patches is the folder that is trained on"),
        (("--context.backgrounds", "others"), "context.origin is cohort, and .*others is not"),
        (("--context.backgrounds", "larger", "--context.origin", "public"), r"larger: its shape is \(24, 24\)"),
        (("--context.backgrounds", "ill", "--context.origin", "public"), "ill: no lesion-free patch"),
    ],
)
def test_anatomy_that_will_not_do_is_one_line(command, patches, tmp_path, options, told):
    write_patches(tmp_path / "others", seed=1)
    for name, shape, label in (("larger", (24, 24), "free"), ("ill", SHAPE, "lesion")):
        with new_folder(tmp_path / name) as folder:
            writer = PatchWriter(folder, PatchSpec(shape, (1.0, 1.0), WINDOW, ("lesion", "free"), background="free"))
            writer.add(Patch(np.zeros(shape, np.int16), "p", "s", label, split="train"))
            writer.finish()
    failed = command(*CONTEXT, *options, "--out", "run")
    assert failed.code == 2
    assert len(failed.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    import re

    assert re.search(told, failed.err)


def test_what_a_model_of_lesions_in_anatomy_cannot_do_is_one_line(command, patches, tmp_path, no_curves):
    assert command(*CONTEXT, "--out", "run").code == 0
    assert command("train", "--data", "patches", *SMALL, "--training.steps", 1, "--out", "plain").code == 0
    for arguments, told in (
        (("sample", "--run", "run", "--out", "x"), "name a patch folder with --backgrounds"),
        (("sample", "--run", "plain", "--backgrounds", "patches", "--out", "x"), "--backgrounds is for a model that draws lesions"),
        (("sample", "--run", "run", "--run", "plain", "--backgrounds", "patches", "--out", "x"), "draw"),
        (
            ("sample", "--run", "run", "--backgrounds", "patches", "--quality", 0.5, "--out", "x"),
            "--quality is for a model that draws whole",
        ),
        (("sample", "--run", "run", "--export", "x.onnx"), "draws lesions into anatomy cannot be exported"),
        (("evaluate", "privacy", "run", "patches", "--out", "x"), "draws lesions into anatomy"),
    ):
        failed = command(*arguments)
        assert failed.code == 2, arguments
        assert told in failed.err
        assert not (tmp_path / "x").exists()
