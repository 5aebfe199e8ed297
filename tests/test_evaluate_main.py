"""`python -m evaluate` from folders to report, as a user runs it."""

import json

import numpy as np
import pytest

from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from evaluate.__main__ import _check_origin, read_cohort

WINDOW = (-1000.0, 400.0)


def write(path, splits, *, background=True, shape=(16, 16), spacing_mm=(0.7, 0.7), window=WINDOW, unit="HU", origin="real", seed=0):
    """A patch folder with lesions, and lesion-free patches, of the patients in splits: split -> how many."""
    path.mkdir()
    rng = np.random.default_rng(seed)
    classes = ("nodule", "background") if background else ("nodule",)
    writer = PatchWriter(path, PatchSpec(shape, spacing_mm, window, classes, unit, "background" if background else None, origin))
    distance = np.sqrt(sum(np.square(axis - (n - 1) / 2) for axis, n in zip(np.indices(shape), shape, strict=True)))
    for split, patients in splits.items():
        for p in range(patients):
            for label in [*classes, "nodule"]:
                hu = rng.normal(-850, 60, shape)
                if label == "nodule":
                    hu += 800 * (distance < rng.uniform(2, 5))
                patch = np.clip(np.rint(hu), -1000, 400).astype(np.int16)
                writer.add(Patch(patch, f"{split}-{p}", "s", label, split=split))
    writer.finish()
    return path


COHORT = {"train": 10, "validation": 6, "test": 8}
QUICK = ("--draws", "20", "--detector.steps", "15", "--detector.seeds", "1")


def synthetic(path, count=20, **changes):
    return write(path, {"synthetic": count}, background=False, origin="synthetic", seed=5, **changes)


def test_a_report_from_two_folders(command, tmp_path):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    done = command("evaluate", real, generated, "--out", tmp_path / "report", *QUICK)
    assert done.code == 0, done.err
    assert "report.json" in done.out
    assert "QUALITY: " in done.out
    assert "Fréchet distance (radiomics): " in done.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [one["part"] for one in report["verdicts"]] == ["quality", "memorisation", "usefulness", "privacy"]
    assert report["figures"]["frechet.radiomics"]["value"] == report["distances"][0]["value"]
    assert report["compared"]["training"] == {"patches": 20, "patients": 10}
    assert report["compared"]["held_out"] == {"patches": 16, "patients": 8}
    assert report["compared"]["synthetic"]["patches"] == 40
    assert set(report["detector"]["arms"]) == {"real", "real+classic", "real+classic+synthetic", "synthetic"}
    assert report["detector"]["threshold_from"] == "validation patients"
    assert report["detector"]["test_lesion_free"] == 8
    assert "frechet_inception_distance" not in report
    for text in (done.out.replace(str(tmp_path / "report"), ""), *[f.read_text() for f in (tmp_path / "report").iterdir()]):
        assert str(tmp_path) not in text


def test_augmented_copies_are_no_real_patches(command, tmp_path):
    write(tmp_path / "real", COHORT)
    assert command("data", "augment", "real", "--out", "augmented", "--factor", 3).code == 0
    found, notes = read_cohort(PatchFolder.open(tmp_path / "augmented"), PatchFolder.open(synthetic(tmp_path / "generated")), 0)
    assert found.compared.training.patches == 20
    np.testing.assert_array_equal(found.training.hu, read_cohort(PatchFolder.open("real"), PatchFolder.open("generated"), 0)[0].training.hu)
    assert any("Augmented copies" in note for note in notes)


@pytest.mark.usefixtures("no_figures")
def test_the_same_seed_gives_the_same_report(command, tmp_path):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    texts = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        done = command(
            "evaluate", real, generated, "--out", tmp_path / name, "--detector.run", "false", "--draws", "20", "--seed", seed, "--json"
        )
        assert done.code == 0, done.err
        texts.append(done.out)
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    assert json.loads(texts[0]) == json.loads((tmp_path / "one" / "report.json").read_text())


def test_training_patients_only_gives_distances_and_a_warning(command, tmp_path):
    real, generated = write(tmp_path / "real", {"train": 1}), synthetic(tmp_path / "generated")
    done = command("evaluate", real, generated, "--out", tmp_path / "report", *QUICK)
    assert done.code == 0, done.err
    assert "NO held-out patients" in done.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["compared"]["held_out"] is None
    assert {d["reference"] for d in report["distances"]} == {"training"}
    assert all(isinstance(d["floor"], str) for d in report["distances"])
    assert "no held-out patients" in report["detector"]
    assert report["memorisation"]["membership"] is None


@pytest.mark.usefixtures("no_figures")
def test_validation_patients_stand_in_for_a_missing_test_split(command, tmp_path):
    real, generated = write(tmp_path / "real", {"train": 8, "validation": 8}), synthetic(tmp_path / "generated")
    done = command("evaluate", real, generated, "--out", tmp_path / "report", *QUICK)
    assert done.code == 0, done.err
    assert "for want of a test split" in done.out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["compared"]["held_out"]["patients"] == 8
    assert "no validation patients" in report["detector"]["threshold_from"]


def test_volumes_and_gray_levels_of_unknown_spacing(command, tmp_path):
    shared = {"shape": (8, 10, 10), "spacing_mm": None, "unit": "gray"}
    real, generated = write(tmp_path / "real", COHORT, background=False, **shared), synthetic(tmp_path / "generated", **shared)
    done = command("evaluate", real, generated, "--out", tmp_path / "report", *QUICK)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "lesion-free" in report["detector"]
    assert "read pixels" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (12, 16)}, "shape"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing"),
        ({"window": (-1350.0, 150.0)}, "window"),
        ({"unit": "gray"}, "unit"),
    ],
)
def test_refuses_folders_that_differ(command, tmp_path, changes, message):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated", **changes)
    done = command("evaluate", real, generated, "--out", tmp_path / "report")
    assert done.code == 2
    assert f"differ in {message}" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_refuses_a_set_without_lesions_missing_weights_and_a_used_folder(command, tmp_path):
    real, generated = write(tmp_path / "real", {"test": 5}), synthetic(tmp_path / "generated")
    done = command("evaluate", real, generated, "--out", tmp_path / "report")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "0 training lesion patches" in done.err
    cohort = write(tmp_path / "cohort", COHORT)
    done = command("evaluate", cohort, generated, "--out", tmp_path / "report", "--inception-weights", tmp_path / "none.pth")
    assert done.code == 2
    assert "no Inception weights" in done.err
    done = command("evaluate", cohort, generated, "--out", cohort)
    assert done.code == 2
    assert "exists already" in done.err
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


@pytest.mark.usefixtures("no_figures")
def test_gates_and_reports_side_by_side(command, tmp_path):
    real = write(tmp_path / "real", COHORT)
    quick = ("--detector.run", "false", "--draws", "20")
    done = command("evaluate", real, synthetic(tmp_path / "a"), "--out", "one", *quick, "--fail-if", "frechet.radiomics < 0")
    assert done.code == 0, done.err
    gates = ("--fail-if", "frechet.radiomics > 0", "--fail-if", "detector.delta.recall < 0")
    done = command("evaluate", real, synthetic(tmp_path / "b", 12), "--out", "two", *quick, *gates)
    assert done.code == 1
    assert "failed: frechet.radiomics > 0: it is " in done.err
    assert "failed: detector.delta.recall < 0: not measured" in done.err
    assert (tmp_path / "two" / "report.html").exists()
    done = command("evaluate", "compare", "one", "two", "--out", "both")
    assert done.code == 0, done.err
    assert "By radiomics, nearest first: " in done.out
    assert "differ in size (24, 40)" in done.out
    page = (tmp_path / "both" / "comparison.html").read_text()
    assert "<script" not in page
    assert "data:image/png" in page
    done = command("evaluate", "compare", "one", real)
    assert (done.code, done.err.count("\n")) == (2, 1)
    done = command("evaluate", real, tmp_path / "a", "--out", "three", "--fail-if", "frechet")
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.usefixtures("no_figures")
def test_an_encoder_of_ones_own_is_a_second_family(command, tmp_path):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    done = command("evaluate", "encoder", real, "--out", "encoder.safetensors", "--steps", 100, "--batch", 8)
    assert done.code == 0, done.err
    quick = ("--detector.run", "false", "--draws", "20", "--encoder", "encoder.safetensors", "--cache-root", "cache")
    reports = []
    for name in ("first", "again"):
        done = command("evaluate", real, generated, "--out", name, *quick)
        assert done.code == 0, done.err
        reports.append((tmp_path / name / "report.json").read_text())
    assert reports[0] == reports[1]  # the second from the cache
    assert {"frechet.radiomics", "frechet.simclr"} <= set(json.loads(reports[0])["figures"])
    assert list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("no_figures")
def test_a_page_without_real_patches_shows_no_copy_of_one_either(command, tmp_path):
    real = write(tmp_path / "real", COHORT)
    folder = PatchFolder.open(real)
    spec = PatchSpec(folder.shape, folder.spacing_mm, folder.window, ("nodule",), origin="synthetic")
    (tmp_path / "generated").mkdir()
    writer = PatchWriter(tmp_path / "generated", spec)
    lesions = folder.select(splits=["train"], classes=["nodule"])[:12]
    for n, hu in enumerate(folder.hu(lesions)):
        writer.add(Patch(hu if n < 3 else hu[::-1] // 2 - 300, f"s-{n}", "s", "nodule", split="synthetic"))
    writer.finish()
    done = command("evaluate", real, "generated", "--out", "report", "--detector.run", "false", "--draws", "20", "--show_real", "false")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "report" / "report.json").read_text())["memorisation"]
    copies = {one["patch"] for one in found["copies"]}
    assert {"000000", "000001", "000002"} <= copies
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Real (held-out" not in page
    assert 'alt="Nearest' not in page
    assert "not shown: a copy" in page
    assert not [one for one in copies if f"Synthetic patch {one}" in page]


def test_a_class_that_no_real_lesion_has_is_told(tmp_path):
    real, generated = write(tmp_path / "real", COHORT), tmp_path / "generated"
    generated.mkdir()
    writer = PatchWriter(generated, PatchSpec((16, 16), (0.7, 0.7), WINDOW, ("nodule", "tumor"), origin="synthetic"))
    for n, label in enumerate(("tumor", "nodule", "tumor")):
        writer.add(Patch(np.full((16, 16), n, np.int16), f"s-{n}", "s", label, split="synthetic"))
    writer.finish()
    _, notes = read_cohort(PatchFolder.open(real), PatchFolder.open(generated), 0)
    assert [note for note in notes if "of class tumor" in note]
    _, notes = read_cohort(PatchFolder.open(real), PatchFolder.open(synthetic(tmp_path / "usual")), 0)
    assert not [note for note in notes if "of class" in note]


@pytest.mark.usefixtures("no_figures")
def test_copies_of_held_out_patients_are_listed_too(command, tmp_path):
    real, generated = PatchFolder.open(write(tmp_path / "real", COHORT)), tmp_path / "generated"
    generated.mkdir()
    writer = PatchWriter(generated, PatchSpec(real.shape, real.spacing_mm, real.window, ("nodule",), origin="synthetic"))
    rows = real.select(splits=["test"], classes=["nodule"])[:12]
    for n, hu in enumerate(real.hu(rows)):
        writer.add(Patch(hu[:, ::-1], f"s-{n}", "s", "nodule", split="synthetic"))
    writer.finish()
    gate = ("--fail-if", "memorisation.held_out_copies > 0", "--fail-if", "verdict.memorisation != bad")
    done = command("evaluate", real.path, generated, "--out", "report", "--detector.run", "false", "--draws", "20", *gate)
    assert (done.code, done.err.count("failed: ")) == (1, 1)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Suspected copies of held-out patches" in page
    assert "which nobody copied" not in page
    for id_ in real.rows.names("id", rows):
        assert f"<td>{id_}</td>" in page


def test_a_misspelt_gate_is_told_before_the_work(command, tmp_path):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    for gate in ("verdict.qualty == bad", "verdict.quality == Bad", "frechet.radiomics > nan"):
        done = command("evaluate", real, generated, "--out", "report", "--fail-if", gate)
        assert (done.code, done.err.count("\n")) == (2, 1), gate
        assert gate in done.err
    assert not (tmp_path / "report").exists()


def test_folders_in_the_wrong_order_are_told(command, tmp_path):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    done = command("evaluate", generated, real, "--out", "report")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "the folder of real patients comes first" in done.err


@pytest.mark.usefixtures("no_figures")
def test_what_was_left_out_is_told(command, tmp_path):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    done = command("evaluate", real, generated, "--out", "report", "--detector.run", "false", "--draws", "20", "--samples", "30")
    assert done.code == 0, done.err
    told = "Only 30 of 40 synthetic patches, drawn at random, were compared and searched for copies"
    for text in (done.out, *[f.read_text() for f in (tmp_path / "report").iterdir()]):
        assert told in text


PROMISE = "This run is differentially private with epsilon 8 and delta 1e-05."
NONE = "no guarantee: trained without differential privacy"


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(("said", "level"), [(PROMISE, "good"), (f"{PROMISE} {NONE}", "doubt"), (f"{NONE} {PROMISE}", "doubt")])
def test_samples_of_two_models_have_a_guarantee_when_both_do(command, tmp_path, said, level):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    (generated / "sampling.json").write_text(json.dumps({"privacy": said}))
    done = command("evaluate", real, generated, "--out", "report", "--detector.run", "false", "--draws", "10")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert {one["part"]: one["level"] for one in report["verdicts"]}["privacy"] == level


@pytest.mark.parametrize(
    "drawn",
    [
        "[]", "{", pytest.param("[" * 5000, id="deep"), '{"trained_on_sha256": "0"}',
        '{"models": [{"trained_on_sha256": null}, {"trained_on_sha256": "0"}]}',
    ],
)  # fmt: skip
def test_refuses_samples_of_other_patients_and_damaged_words_on_them(command, tmp_path, drawn):
    real, generated = write(tmp_path / "real", COHORT), synthetic(tmp_path / "generated")
    (generated / "sampling.json").write_text(drawn)
    done = command("evaluate", real, generated, "--out", "report")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "trained on another patch folder" in done.err or "not as sample.py wrote it" in done.err


def test_samples_of_these_patients_and_other_real_patients_are_let_through(tmp_path):
    real, generated = (PatchFolder.open(one) for one in (write(tmp_path / "real", {"train": 1}), synthetic(tmp_path / "generated", 1)))
    mine = real.content_hash
    for drawn in ({}, {"trained_on_sha256": mine}, {"models": [{"trained_on_sha256": mine}, {"trained_on_sha256": None}]}):
        _check_origin(drawn, real, generated)
    _check_origin({}, real, PatchFolder.open(write(tmp_path / "others", {"train": 1}, seed=1)))  # which a note tells


@pytest.mark.usefixtures("no_figures")
def test_reports_that_cannot_be_compared_are_named(command, tmp_path):
    real, quick = write(tmp_path / "real", COHORT), ("--detector.run", "false", "--draws", "10")
    for name in ("one", "two"):
        assert command("evaluate", real, synthetic(tmp_path / f"{name}-patches"), "--out", name, *quick).code == 0
    file = tmp_path / "two" / "report.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"verdicts": [{"part": "memorisation", "level": "bad"}]}))
    done = command("evaluate", "compare", "one", "two")
    assert done.code == 0, done.err
    assert "- two: the verdict on memorisation is bad." in done.out

    def told(changed):
        file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        done = command("evaluate", "compare", "one", "two", "--out", "both")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert not (tmp_path / "both").exists()
        return done.err

    assert "two/report.json: not a report" in told(file.read_text()[:5000])
    assert "its version is 1" in told(whole | {"version": 1})
    assert "two/report.json: not a report" in told(whole | {"compared": {"real_sha256": whole["compared"]["real_sha256"]}})
    assert "two/report.json: not a report" in told(whole | {"figures": {"frechet.radiomics": {"value": "near"}}})
    other = [d | {"measure": d["measure"] | {"weights_sha256": "1"}} for d in whole["distances"]]
    assert "radiomics has other weights" in told(whole | {"distances": other})
