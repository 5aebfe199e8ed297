"""`python sample.py --into`: a whole scan with synthetic lesions, from the command line; what cannot be is one line, and leaves nothing behind.

The network is untrained, and but for one test a ball stands in for what a generator would draw into a cube.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from canary_cohort import dicom as canary_dicom
from conftest import ROOT, dicom_series
from test_data_implanting import SOLID_HU
from test_end_to_end_sample import CLASSES, SENTENCE, files_in, said_of, write_run

from data.lesions import write_annotations
from data.phantom import chest
from data.placing import read_scan
from data.preprocess import to_unit
from gan.conditions import Conditions
from gan.context import ContextGenerator
from gan.networks import Generator
from gan.sampling import candidates, load_model

ASKED, SHAPE = Conditions(CLASSES, diameter=True), (32, 32, 32)
WINDOW = (-1000.0, 400.0)


def write_cubes(run, shape=SHAPE, conditions=ASKED, classes=CLASSES, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {"average": Generator(shape, 4, 8, conditions.size)}
    write_run(run, networks, conditions, shape=shape, classes=classes, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs, and a phantom's series with its list."""
    place = tmp_path_factory.mktemp("clinic-of-dr-example")
    write_cubes(place / "run")
    write_cubes(place / "private", spent=SENTENCE)
    write_cubes(place / "plain", conditions=Conditions(), classes=("nodule",), diameter_deciles_mm=None, licence="")
    write_cubes(place / "flat", (16, 16))
    write_cubes(place / "gray", unit="gray")
    write_cubes(place / "nowhere", spacing_mm=None)
    volume, lesions = chest(np.random.default_rng(3), "", matrix=128, slice_mm=5.0, lesions=3)
    files = dicom_series(place / "series", volume.hu, volume.affine)
    write_annotations({pydicom.dcmread(files[0]).SeriesInstanceUID: lesions}, place / "list.csv")
    return place


@pytest.fixture
def into(command, place, monkeypatch):
    """into("run", "out", ...) sets lesions into the phantom's series; `into.asked` is what the generator was asked for."""
    monkeypatch.chdir(place)

    def implant(model, backgrounds, diameters_mm, z, condition):
        assert (backgrounds.dtype, backgrounds.shape[1:]) == (np.float32, (1, *SHAPE))
        assert np.abs(backgrounds).max() <= 1
        assert len(backgrounds) == len(diameters_mm) == len(z)
        run.asked.append((np.asarray(diameters_mm), z, condition))
        unseen = run.unseen(len(run.asked))
        away = np.linalg.norm(np.meshgrid(*[np.arange(32) - 15.5] * 3, indexing="ij"), axis=0)
        for background, mm in zip(backgrounds, diameters_mm, strict=True):
            inside = np.clip((mm / 2 - away) / 2 + 0.5, 0, 1).astype(np.float32)
            patch = background + inside * (to_unit(np.array(SOLID_HU), WINDOW) - background)
            yield (background if unseen else patch)[None], inside[None] >= 0.5

    def context_model(*arguments, **options):
        model = load_model(*arguments, **options)
        object.__setattr__(model, "context", run.context)
        return model

    monkeypatch.setattr("gan.sampling.implant", implant)
    monkeypatch.setattr("gan.sampling.load_model", context_model)

    def run(runs, out, *options, series="series", fails=False):
        names = [argument for name in runs.split() for argument in ("--run", name)]
        done = command("sample", *names, *(("--out", out) if out else ()), *(("--into", series) if series else ()), *options)
        assert (done.code != 0) == fails, done.err
        return done

    run.asked, run.context, run.unseen = [], True, lambda call: False
    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def rows_of(out):
    with open(out / "lesions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_lesions_are_set_into_a_scan_as_asked_for(into, out):
    done = into("run", out, "--count", 2, "--class", "solid", "--diameter", "8-12", "--seeds", "0-2", "--lesions", "list.csv", "--format", "nifti",
                "--anatomy", "phantom")  # fmt: skip
    assert "3 series with 6 synthetic lesions" in done.out
    assert f"next: python -m data prepare {out}/dicom --lesions {out}/annotations.csv --background 0 --out patches" in done.out
    assert sorted(os.listdir(out)) == ["annotations.csv", "dicom", "lesions.csv", "nifti", "preview.png", "sampling.json", "seg"]
    assert [len(os.listdir(out / name)) for name in ("dicom", "dicom/1", "seg", "nifti")] == [3, 47, 6, 3]
    rows, said = rows_of(out), said_of(out)
    mm = np.array([float(row["asked_mm"]) for row in rows])
    assert ((mm >= 8) & (mm <= 12)).all()
    assert len(set(mm)) == 6
    np.testing.assert_allclose([float(row["diameter_mm"]) for row in rows], mm, rtol=0.05)
    assert {row["class"] for row in rows} == {"solid"}
    (asked,) = into.asked
    np.testing.assert_allclose(asked[0], mm, atol=1e-3)
    np.testing.assert_array_equal(asked[2], ASKED.encode(["solid"] * 6, asked[0]))
    assert (said["lesions_of_the_scan"], said["anatomy"], said["count"], said["formats"]) == (
        "listed: 3", "phantom", 2, ["dicom", "seg", "nifti"],
    )  # fmt: skip
    assert (out.parent / "out").stat().st_mode & 0o777 == 0o755


def test_what_a_generator_draws_is_in_the_series_and_all_else_is_the_scan(command, place, out):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {"average": ContextGenerator(SHAPE, 4, 8, ASKED.size)}  # untrained, it turns what is there half gray
    write_run(out.parent / "context", networks, ASKED, shape=SHAPE, classes=CLASSES, context="cohort")
    done = command("sample", "--run", out.parent / "context", "--into", place / "series", "--diameter", "9-12", "--count", 2, "--out", out)
    assert done.code == 0, done.err
    assert said_of(out)["privacy"].startswith("no guarantee")
    before, after = (read_scan(str(folder)).stored for folder in (place / "series", out / "dicom"))
    changed = np.argwhere(before.hu != after.hu)
    rows = rows_of(out)
    centers = [before.index_of(tuple(float(row[f"{axis}_mm"]) for axis in "xyz")) for row in rows]
    away = np.stack([np.linalg.norm((changed - centre) * before.spacing_mm, axis=1) for centre in centers])
    reach = np.array([float(row["support_mm"]) for row in rows])
    assert (away <= reach[:, None] + 0.01).any(0).all()
    assert ((away <= 5).sum(1) > 10).all()
    assert (reach < 20).all()
    for row in rows:
        assert float(row["mean_after_hu"]) > float(row["mean_before_hu"]) + 100


def test_a_series_follows_from_its_seed_and_its_first_lesion_has_the_samples_latent(into, out, tmp_path, place):
    into("run", out, "--seeds", "3,4", "--count", 2)
    into("private", tmp_path / "one", "--seeds", 4, "--count", 2)  # the same tensors, so the same model
    assert rows_of(tmp_path / "one") == rows_of(out)[2:]
    assert files_in(tmp_path / "one" / "dicom" / "4") == files_in(out / "dicom" / "4")
    z = into.asked[0][1]
    np.testing.assert_array_equal(z[[0, 2]], candidates([3, 4], 0, 8))
    assert len({tuple(row.tolist()) for row in z}) == 4
    assert said_of(tmp_path / "one")["privacy"].startswith("no guarantee: the anatomy around a lesion is that of patients of whom nothing")
    assert SENTENCE in said_of(tmp_path / "one")["privacy"]
    into("run", tmp_path / "fewer", "--seeds", 4)
    assert rows_of(tmp_path / "fewer") == rows_of(out)[2:3]


def test_a_lesion_that_cannot_be_seen_is_drawn_again_and_what_never_can_be_is_one_line(into, out):
    into.unseen = lambda call: call == 1
    done = into("run", out, "--seeds", "3,4", "--diameter", 9)
    assert said_of(out)["selection"] == {"drawn": 4, "taken": 2, "rejected": {"contrast": 2}, "acceptance": 0.5}
    assert "2 of 4 candidates taken (0.5); turned down: 2 by contrast" in done.out
    np.testing.assert_array_equal(into.asked[1][1], candidates([3, 4], 1, 8))
    into.unseen = lambda call: True
    failed = into("run", out.parent / "never", "--seeds", 3, "--diameter", 9, fails=True)
    assert (failed.code, len(failed.err.strip().splitlines()[-1:])) == (2, 1)
    assert (
        "error: seed 3, lesion 1: none of 50 candidates is as asked for; in all, 0 of 50 candidates taken (0); turned down: 50 by contrast"
        in failed.err
    )
    assert not (out.parent / "never").exists()


def test_without_wishes_sizes_are_those_of_training_or_usual_ones(into, out, tmp_path):
    """The deciles of the run, 5 to 11 mm; this scan shows none below two of its pixels."""
    into("run", out, "--seeds", "0-1", "--count", 8)
    mm = np.array([float(row["asked_mm"]) for row in rows_of(out)])
    assert ((mm >= 4.78) & (mm <= 11)).all()
    assert {row["class"] for row in rows_of(out)} == set(CLASSES)
    done = into("plain", tmp_path / "plain")
    (row,) = rows_of(tmp_path / "plain")
    assert (row["seed"], row["class"], 6 <= float(row["asked_mm"]) <= 12) == ("0", "nodule", True)
    assert into.asked[-1][2] is None
    assert "nobody stated the licence" in done.err
    assert "no --lesions given; what lesions the scan has are not stayed away from" in done.err


def test_no_path_and_no_patient_is_in_what_is_written(into, out, place, tmp_path):
    canary_dicom(tmp_path / "CanaryPatient", 1)
    into(f"{place}/run", out, "--diameter", 9, series=tmp_path / "CanaryPatient")
    for name, content in files_in(out).items():
        for secret in (b"clinic-of-dr-example", b"canary", str(ROOT).encode(), str(tmp_path).encode()):
            assert secret.lower() not in content.lower(), name


def test_a_model_that_cannot_do_it_is_one_line_that_says_which_can(into, out):
    for run, context, cause in (
        ("run", False, "run: cannot draw into given surroundings; train one that can: python -m train --context.on true"),
        ("flat", True, "flat: draws 2-D patches, and --into needs cubes: data prepare --dims 3, then train.py --context.on true"),
        ("gray", True, "gray: --into needs a model of HU whose spacing was stated"),
        ("nowhere", True, "nowhere: --into needs a model of HU whose spacing was stated"),
    ):
        into.context = context
        done = into(run, out, fails=True)
        assert (done.code, done.err) == (2, f"error: {cause}\n")
    assert os.listdir(out.parent) == []


def test_bad_input_is_one_line_and_leaves_nothing(into, place, tmp_path):
    for n in (1, 2):
        dicom_series(
            tmp_path / "two" / str(n), np.random.default_rng(n).integers(-1000, 400, (6, 20, 24)).astype(np.int16), patient_id=f"JD-{n}"
        )
    dicom_series(tmp_path / "water", np.full((5, 40, 40), 20, np.int16))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.doc").write_text("keep")
    cases = [
        ((), "two", "two: holds 2 series; name a folder or file that holds one"),
        ((), "water", "water: no lung found"),
        ((), "gone", "gone: no such file or folder"),
        (("--lesions", "gone.csv"), None, "gone.csv: no such file or folder"),
        (("--diameter", 3), None, "--diameter 3: with pixels of 2.39 mm and slices of 5 mm every 5 mm, this scan shows lesions of 4.79 mm and more"),
        (("--diameter", "3-9"), None, "--diameter 3: "),
        (("--diameter", "9-30"), None, "--diameter 30: the model's cube holds lesions of up to 20 mm"),
        (("--diameter", "large"), None, "--diameter large: want mm"),
        (("--count", 300, "--diameter", 20), None, "seed 0: too little room in the lung: "),
        (("--trunc", 0), None, "--trunc 0: want a number of standard deviations above 0"),
        (("--trunc", -1), None, "--trunc -1: want"),
        (("--count", 0), None, "--count 0: want 1 or more lesions for each seed"),
        (("--class", "cyst"), None, "--class cyst: this model can be asked for ground-glass, solid"),
        (("--match", "patches"), None, "--match does not go with --into"),
        (("--fill", 5), None, "--fill does not go with --into"),
        (("--quality", 0.5), None, "--quality does not go with --into"),
        (("--dissimilar-to", "patches"), None, "--dissimilar-to does not go with --into"),
        (("--shares", "1"), None, "--shares does not go with --into"),
        (("--verify", "patches"), None, "--out does not go with --verify"),
        (("--export", "model.onnx"), None, "--out does not go with --export"),
        (("--pictures", "true"), None, "--pictures does not go with --into"),
        (("--reject", "false"), None, "--reject does not go with --into"),
        (("--devices", 2), None, "--devices does not go with --into"),
        (("--run", "private"), None, "--into takes one model"),
        (("--step", "5,6"), None, "--into takes one model"),
        (("--format", "png"), None, "--format png holds 2-D patches only"),
        (("--format", "gif"), None, "--format 'gif': want png, nifti, dicom, seg"),
        (("--anatomy", "mine"), None, "--anatomy mine: want cohort or public or phantom or unknown"),
        (("--out", tmp_path / "there"), None, "there: exists already"),
    ]  # fmt: skip
    for options, series, cause in cases:
        done = into(
            "run", None if "--out" in options else tmp_path / "new", *options, series=tmp_path / series if series else "series", fails=True
        )
        lines = [line for line in done.err.splitlines() if not line.startswith(("warning: ", "note: "))]
        assert (done.code, len(lines), cause in done.err) == (2, 1, True), (options, done.err)
        assert sorted(os.listdir(tmp_path)) == ["there", "two", "water"], options
    assert os.listdir(tmp_path / "there") == ["thesis.doc"]
    for options, cause in (
        (("--count", 2), "--count belongs to --into"),
        (("--lesions", "list.csv"), "--lesions belongs to --into"),
        (("--anatomy", "phantom"), "--anatomy says whose scan --into names, or whose patches --backgrounds does"),
    ):
        done = into("run", tmp_path / "new", *options, series=None, fails=True)
        assert (done.code, done.err.count("\n"), cause in done.err) == (2, 1, True)


def test_a_stop_half_way_leaves_nothing(into, out, monkeypatch):
    written = []

    def stopped(*arguments, **options):
        written.append(arguments)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.scan_writing.write_segmentation", stopped)
    done = into("run", out, "--seeds", "0-9", fails=True)
    assert (done.code, "the disk is full" in done.err) == (2, True)
    assert os.listdir(out.parent) == []


def test_what_is_written_can_be_told_by_its_manifest(into, out):
    into("run", out, "--seeds", "0-1", "--trunc", 1.5)
    said = json.loads((out / "sampling.json").read_text())
    assert (said["seeds"], said["diameter"], said["truncation"], said["step"], said["licence"]) == ("0-1", "natural", 1.5, 5, "CC BY 4.0")
    assert said["model_sha256"] == load_model(Path("run")).model_hash
    assert "2.25." not in json.dumps(said)
    np.testing.assert_array_equal(into.asked[0][1], candidates([0, 1], 0, 8, 1.5))
