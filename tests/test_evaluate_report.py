"""What a report must carry, and that its page needs nothing else."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from evaluate.attributes import lesion_attributes
from evaluate.audit import Pictures, audit
from evaluate.cohort import Cohort, PatchSet
from evaluate.comparison import confused_classes
from evaluate.config import DetectorConfig, EvaluateConfig
from evaluate.features import INCEPTION, Extractor, radiomics
from evaluate.intervals import Floor, Interval
from evaluate.key_figures import key_figures
from evaluate.page import to_html
from evaluate.report import Compared, Distance, Measure
from evaluate.report_text import conventional_keys, in_lines, to_json, to_markdown
from evaluate.summary import limits_of, number

WINDOW = (-1000.0, 400.0)
MEASURE = Measure("radiomics", None, WINDOW, "none", 44, True)
FLOOR = Floor(1.0, 0.5, 1.5, 40, 2.0)


def distance(**changes):
    known = {
        "metric": "frechet", "measure": MEASURE, "reference": "held-out", "real_samples": 80, "real_patients": 20,
        "synthetic_samples": 100, "value": 2.0, "interval": Interval(1.5, 2.5), "floor": FLOOR,
    }  # fmt: skip
    return Distance(**{**known, **changes})


@pytest.mark.parametrize("field", ["metric", "measure", "reference", "real_samples", "synthetic_samples", "value", "interval", "floor"])
def test_a_distance_cannot_be_made_without(field):
    known = {name: getattr(distance(), name) for name in Distance.__dataclass_fields__}
    del known[field]
    with pytest.raises(TypeError, match=field):
        Distance(**known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor": None}, "floor"), ({"floor": ""}, "floor"), ({"interval": None}, "interval"), ({"synthetic_samples": 0}, "sample counts"),
        ({"real_samples": 1}, "sample counts"), ({"real_patients": 0}, "and its patients"), ({"value": math.nan}, "finite"), ({"value": math.inf}, "finite"),
    ],
)  # fmt: skip
def test_a_distance_refuses_what_is_missing(changes, message):
    with pytest.raises(ValueError, match=message):
        distance(**changes)
    assert distance(floor="only one held-out patient").floor


def test_a_measure_names_its_extractor_and_inception_its_weights():
    with pytest.raises(ValueError, match="extractor"):
        replace(MEASURE, extractor="")
    with pytest.raises(ValueError, match="SHA-256"):
        replace(MEASURE, extractor=INCEPTION)
    for window in ((400.0, -1000.0), (400.0, 400.0)):
        with pytest.raises(ValueError, match="window"):
            replace(MEASURE, window=window)


def test_only_inception_is_called_fid():
    assert distance().title == "Fréchet distance (radiomics)"
    fid = replace(MEASURE, extractor=INCEPTION, weights_sha256="ab")
    assert distance(measure=fid).title == "Fréchet inception distance (FID)"
    assert distance(measure=fid, metric="kernel").title == "Kernel inception distance (KID)"
    assert distance(measure=fid, metric="recall").title == "Recall (inception-v3)"


def lesion_set(seed, patients, each, split, labels=("solid", "glass")):
    rng = np.random.default_rng(seed)
    count = patients * each
    y, x = np.indices((16, 16)) - 7.5
    radius = rng.uniform(2, 5, (count, 1, 1))
    hu = np.where(np.hypot(y, x) < radius, rng.uniform(-200, 100, (count, 1, 1)), -850) + rng.normal(0, 30, (count, 16, 16))
    label = np.array(labels)[(rng.random(count) < 0.3).astype(int)]
    ids = np.array([f"{split}{n}" for n in range(count)])
    return PatchSet(hu.clip(-1000, 400).astype(np.int16), ids, label, np.repeat([f"{split}-p{i}" for i in range(patients)], each))


@pytest.fixture(scope="module")
def audited():
    """A whole audit with two extractors, the second posing as Inception with features from elsewhere."""
    training, held_out, synthetic = lesion_set(0, 15, 4, "train"), lesion_set(1, 12, 4, "test"), lesion_set(2, 70, 1, "seed")
    synthetic.hu[3] = training.hu[9]
    empty = training.take(np.arange(0))
    compared = Compared(
        training.size, held_out.size, "test split", synthetic.size, (16, 16), (0.7, 0.7), WINDOW, "HU", "a" * 64, "b" * 64, 0
    )
    cohort = Cohort(training, empty, held_out, synthetic, {}, compared)
    posing = Extractor(INCEPTION, "c" * 64, WINDOW, "none", True, (), lambda hu: hu[:, ::4, ::4].reshape(len(hu), -1) / 100)
    config = EvaluateConfig(draws=20, detector=DetectorConfig(run=True), suspects=4)
    return audit(cohort, [radiomics((0.7, 0.7), WINDOW), posing], config, ("a note",), lambda step: None)


def test_every_distance_of_an_audit_is_complete(audited):
    report, _ = audited
    assert {d.metric for d in report.distances} == {
        "frechet", "kernel", "sliced_wasserstein", "energy", "gaussian_mmd", "precision", "recall", "density", "coverage",
    }  # fmt: skip
    for d in report.distances:
        assert isinstance(d.interval, Interval)
        assert isinstance(d.floor, Floor) == (d.reference == "held-out")
        assert d.synthetic_samples == 70
    assert [row.label for row in report.classes] == ["glass", "solid"]
    assert report.classes[0].real.patients <= report.classes[1].real.patients
    assert [(one.patch, one.real, one.exact) for one in report.memorisation.copies] == [("seed3", "train9", True)]
    assert report.memorisation.suspects[0].synthetic == "seed3"
    assert report.memorisation.suspects[0].training == "train9"
    assert "lesion-free" in report.detector


@pytest.mark.parametrize(("nearer", "confused"), [(40, ["a"]), (39, ["a"]), (38, []), (0, [])])
def test_a_class_is_confused_where_all_draws_but_one_say_so(monkeypatch, nearer, confused):
    of_a = [(1.0, 0.5 if n < nearer else 2.0) for n in range(40)]  # from synthetic a to real a and to real b
    values = iter(np.array(of_a + [(1.0, 0.0)] * 40).ravel().tolist())
    monkeypatch.setattr("evaluate.comparison.frechet_distance", lambda real, synthetic: next(values))
    labels, x = np.repeat(["a", "b"], 10), np.zeros((20, 3))
    patches = PatchSet(x.astype(np.int16), np.arange(20).astype(str), labels, np.arange(20).astype(str))
    found = confused_classes(x, x, patches, patches, np.random.default_rng(0), draws=40)
    assert [(one.label, one.nearest) for one in found] == [(label, "b") for label in confused]


def test_json_has_conventional_keys_for_inception_alone(audited):
    report, _ = audited
    plain = json.loads(json.dumps(to_json(report), allow_nan=False))
    fid = next(d for d in report.distances if d.metric == "frechet" and d.measure.extractor == INCEPTION and d.reference == "held-out")
    assert plain["frechet_inception_distance"] == fid.value
    assert {"kernel_inception_distance_mean", "kernel_inception_distance_std", "precision", "recall", "density", "coverage"} <= set(plain)
    assert (plain["kernel_inception_distance_mean"], plain["kernel_inception_distance_std"]) == report.kernel_over_subsets
    assert all(d["measure"]["window"] == [-1000, 400] and d["floor"] for d in plain["distances"])
    without = replace(report, distances=tuple(d for d in report.distances if d.measure.extractor != INCEPTION))
    assert conventional_keys(without) == {}
    assert "frechet_inception_distance" not in to_json(without)


def test_the_page_stands_alone_and_describes_its_pictures(audited, request):
    report, pictures = audited
    page = to_html(report, pictures)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "url(" not in page
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 4 + 3 * 4 + 2 * 4  # grids, attributes, artefacts; suspects, and held-out ones beside them
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    for sentence in ("Fréchet inception distance (FID)", "Fréchet distance (radiomics)", "a note", "What this cannot say"):
        assert sentence in page
    request.getfixturevalue("no_figures")
    without = to_html(report, pictures, show_real=False)
    assert len(re.findall(r"<img ", without)) == 3 + 3  # the suspect that is a copy shows a patient


@pytest.mark.usefixtures("no_figures")
def test_text_from_a_folder_cannot_become_markup(audited):
    report, pictures = audited
    hostile = replace(report, classes=(replace(report.classes[0], label="<script>alert(1)</script>"),), notes=("<b>bold</b>",))
    page = to_html(hostile, pictures)
    assert "<script>" not in page
    assert "<b>bold" not in page


def test_words_follow_the_numbers(audited):
    report, _ = audited
    text = "\n".join(in_lines(report))
    assert "70 synthetic lesion patches were compared with 48 real lesion patches of 12 held-out patients" in text
    assert "MEMORISATION: Contains copies of patients" in text
    assert "seed3 is train9, voxel for voxel" in text
    assert any("12 held-out patients" in limit for limit in limits_of(report))
    for sentence in text.split("\n  - "):
        assert sentence.splitlines()[0].split("1 ")[-1] in to_markdown(report)
    gray = replace(report, compared=replace(report.compared, unit="gray", spacing_mm=None))
    assert any("gray levels" in limit for limit in limits_of(gray))
    assert any("pixels" in limit for limit in limits_of(gray))


def test_the_figures_in_markdown_have_their_intervals_and_the_sets_their_hashes(audited):
    report, _ = audited
    text, known = to_markdown(report), [(name, one) for name, one in key_figures(report).items() if one.low is not None]
    assert len(known) > 5
    for name, one in known:
        assert f"| {name} | {number(one.value)} | {number(one.low)} to {number(one.high)} |\n" in text
    assert text.endswith(f"content hashes: real {'a' * 64}, synthetic {'b' * 64}.\n")


def test_attributes_that_were_never_measured_do_not_break_the_page(audited):
    report, pictures = audited
    flat = np.full((3, 16, 16), -850, np.int16)
    nothing = lesion_attributes(flat, (0.7, 0.7), WINDOW)
    blank = Pictures(pictures.real, pictures.synthetic, nothing, nothing, [], [])
    assert "Copies were not looked for: none." in to_html(replace(report, memorisation="none"), blank)
