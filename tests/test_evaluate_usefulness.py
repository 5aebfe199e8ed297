"""Which detectors are trained on a cohort, and what is said of them; no training where scores can be had without."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from evaluate import detector
from evaluate.cohort import Cohort, PatchSet
from evaluate.config import ARMS, DEFAULT_ARMS, DetectorConfig
from evaluate.report import Compared, DetectorResult
from evaluate.scores import METRICS
from evaluate.usefulness import _made_rare, usefulness

WINDOW = (-1000.0, 400.0)


def patches(name, patients, label="solid", value=0, each=2):
    """Flat patches of one value, `each` a patient."""
    count = patients * each
    ids = np.array([f"{name}{n}" for n in range(count)])
    return PatchSet(
        np.full((count, 8, 8), value, np.int16), ids, np.full(count, label), np.repeat([f"{name}-p{i}" for i in range(patients)], each)
    )


def joined(*sets):
    return PatchSet(*(np.concatenate([getattr(one, field) for one in sets]) for field in ("hu", "ids", "labels", "patients")))


def lesions(name):
    """Solid lesions of ten patients, and glass of four others and of two of these."""
    both = replace(patches(name, 2, "glass", -300), ids=np.array([f"{name}g{n}" for n in range(4)]))
    return joined(patches(name, 10), patches(f"{name}-glass", 4, "glass", -300), both)


def cohort(validation=True):
    training, held_out = lesions("train"), lesions("test")
    of_validation = lesions("validation") if validation else training.take(np.arange(0))
    free = {
        "training": patches("train", 10, "none", -900),
        "validation": patches("validation", 10 if validation else 0, "none", -900),
        "held_out": patches("test", 10, "none", -900),
    }
    synthetic = patches("synthetic", 12, value=100, each=1)
    compared = Compared(training.size, held_out.size, "test split", synthetic.size, (8, 8), (0.7, 0.7), WINDOW, "HU", "a" * 64, "b" * 64, 0)
    return Cohort(training, of_validation, held_out, synthetic, free, compared)


def judged(monkeypatch, config, goodness, one=None):
    """A result whose detectors are not trained: each scores a patch by how dense it is times goodness of arm, validation or test, and noise."""

    def log_odds(trained, hu, window, device):
        arm, seed = trained
        where = "validation" if len(hu) == validation_patches else "test"
        rng = np.random.default_rng([seed, len(arm.name), len(hu)])
        return goodness(arm, where) * (hu[:, 0, 0] > -900) + rng.normal(0, 1, len(hu))

    one = one or cohort()
    one = replace(one, held_out=one.held_out.take(np.arange(len(one.held_out) - 1)))  # tells the sets apart
    validation_patches = len(one.validation) + len(one.background["validation"])
    monkeypatch.setattr(detector, "train_detector", lambda train, synthetic, window, arm, seed, recipe, tell: (tell(0), (arm, seed))[1])
    monkeypatch.setattr(detector, "log_odds_of", log_odds)
    told = []
    result = usefulness(one, config, "cpu", np.random.default_rng(0), told.append)
    assert isinstance(result, DetectorResult), result
    return result, told


def test_the_default_arms_stand_beside_classic_augmentation(monkeypatch):
    result, told = judged(monkeypatch, DetectorConfig(), lambda arm, where: 2 + arm.share)
    assert tuple(result.arms) == DEFAULT_ARMS
    assert result.compared_with == dict.fromkeys(("real", "real+classic+synthetic", "synthetic"), "real+classic")
    assert set(result.differences) == set(result.compared_with)
    assert all(set(row) == set(METRICS) for row in result.differences.values())
    assert (result.headline, result.headline_chosen_by) == ("real+classic+synthetic", "the only share asked for")
    assert result.shares == {"real": 0, "real+classic": 0, "real+classic+synthetic": 0.25, "synthetic": 1}
    assert list(result.classes) == ["glass", "solid"]
    assert (result.classes["glass"].patients, result.classes["solid"].patients) == (6, 10)
    assert set(result.classes["glass"].differences) == set(result.compared_with)
    assert sum(row.lesions for row in result.classes.values()) == result.test_lesions == 31
    assert told[1] == "detector 1 of 12: real, seed 1 of 3"
    assert result.notes == ()
    json.dumps(asdict(result), allow_nan=False)


def test_validation_patients_choose_the_share_even_where_test_patients_would_not(monkeypatch):
    config = DetectorConfig(arms="all", synthetic_share="0.5,0.1,0.25", seeds=2)
    best = {"validation": 0.1, "test": 0.5}
    result, _ = judged(monkeypatch, config, lambda arm, where: 3.0 if arm.share == best[where] else 0.5)
    assert result.headline == "real+classic+synthetic 0.1"
    assert "validation" in result.headline_chosen_by
    assert result.arms["real+classic+synthetic 0.5"]["auroc"].mean > result.arms[result.headline]["auroc"].mean
    assert list(result.arms) == [
        "real", "real+classic", "real+policy", "real+classic+synthetic 0.5", "real+classic+synthetic 0.1", "real+classic+synthetic 0.25",
        "synthetic", "ensemble of real+classic", "ensemble of real+classic+synthetic 0.1",
    ]  # fmt: skip
    assert result.compared_with["ensemble of real+classic+synthetic 0.1"] == "ensemble of real+classic"
    assert set(result.differences) == set(result.compared_with)
    assert "ensembles are about patients alone" in result.notes[0]


def test_without_validation_patients_nothing_is_chosen_by_test_patients(monkeypatch):
    config = DetectorConfig(synthetic_share=[0.5, 0.25], seeds=1)
    result, _ = judged(monkeypatch, config, lambda arm, where: 4 * arm.share, cohort(validation=False))
    assert result.headline == "real+classic+synthetic 0.25"
    assert "want of validation" in result.headline_chosen_by
    assert result.validation_auroc == {}
    assert "no validation patients" in result.threshold_from
    assert "One seed" in result.notes[0]


def test_without_mixed_arms_there_is_no_answer(monkeypatch):
    result, _ = judged(monkeypatch, DetectorConfig(arms="real,real+classic"), lambda arm, where: 1.0)
    assert result.headline is None
    assert list(result.arms) == ["real", "real+classic"]


def test_a_threshold_at_a_specificity_calls_that_share_of_validation_patients_free(monkeypatch):
    for wanted in (0.6, 0.9):
        config = DetectorConfig(threshold=f"specificity:{wanted}", seeds=8)
        result, _ = judged(monkeypatch, config, lambda arm, where: 1.0)
        assert result.arms["real"]["specificity"].mean == pytest.approx(wanted, abs=0.08)


def test_a_rare_class_keeps_whole_patients_and_everything_else():
    training = lesions("train")
    few, notes = _made_rare(training, DetectorConfig(rare="glass:2"), np.random.default_rng(0))
    more, _ = _made_rare(training, DetectorConfig(rare="glass:3"), np.random.default_rng(0))
    for found, count in ((few, 2), (more, 3)):
        glass = found.labels == "glass"
        kept = set(found.patients[glass])
        assert len(kept) == count
        assert set(found.ids[glass]) == set(training.ids[(training.labels == "glass") & np.isin(training.patients, list(kept))])
        assert (found.ids[~glass] == training.ids[training.labels != "glass"]).all()
    assert set(few.patients[few.labels == "glass"]) < set(more.patients[more.labels == "glass"])
    assert "2 of 6 training patients" in notes[0]
    other, _ = _made_rare(training, DetectorConfig(rare="glass:2"), np.random.default_rng(1))
    assert set(other.ids) != set(few.ids)


def test_a_rare_class_that_is_not_there_is_refused():
    for rare, message in (("cyst:3", "class 'cyst'; there are glass, solid"), ("glass:7", "7 training patients with glass")):
        with pytest.raises(ValueError, match=message):
            usefulness(cohort(), DetectorConfig(rare=rare), "cpu", np.random.default_rng(0), lambda words: None)


def test_says_why_there_is_no_detector():
    def said(one, **config):
        return usefulness(one, DetectorConfig(**config), "cpu", np.random.default_rng(0), lambda words: None)

    one = cohort()
    assert "not asked for" in said(one, run=False)
    assert "no lesion-free" in said(replace(one, background={}))
    assert "no held-out" in said(replace(one, held_out=one.held_out.take(np.arange(0))))
    assert "lesion-free patches in the held-out set, got 32 and 0" in said(
        replace(one, background=one.background | {"held_out": one.held_out.take(np.arange(0))})
    )


def test_the_same_seed_gives_the_same_result_and_the_callers_folder_is_used(tmp_path):
    config, told = DetectorConfig(arms="all", seeds=1, steps=10), []
    first, second = (usefulness(cohort(), config, "cpu", np.random.default_rng(0), told.append, keep=tmp_path / "parts") for _ in range(2))
    assert first == second
    assert len(list((tmp_path / "parts").iterdir())) == 5
    own = replace(config, keep=str(tmp_path / "own"), arms="real,real+classic")
    usefulness(cohort(), own, "cpu", np.random.default_rng(0), told.append, keep=tmp_path / "parts")
    assert len(list((tmp_path / "own").iterdir())) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"arms": "real"}, "real\\+classic is what the others"),
        ({"arms": "real+classic,ensemble"}, "ensemble needs"),
        ({"arms": "real+classic,more"}, "'more'"),
        ({"synthetic_share": "0.1,much"}, "0.1,much"),
        ({"synthetic_share": 0.0}, "above 0"),
        ({"synthetic_share": [0.5, 1.5]}, "at most 1"),
        ({"synthetic_share": []}, "above 0"),
        ({"threshold": "specificity:1"}, "between 0 and 1"),
        ({"threshold": "specificity:x"}, "between 0 and 1"),
        ({"threshold": "sensitivity:0.9"}, "between 0 and 1"),
        ({"rare": "nodule"}, "nodule:100"),
        ({"rare": "nodule:0"}, "nodule:100"),
        ({"rare": ":5"}, "nodule:100"),
        ({"seeds": 0}, "1 seed"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DetectorConfig(**settings)


def test_settings_as_a_user_writes_them():
    config = DetectorConfig(arms="ensemble,real+classic,real+classic+synthetic", synthetic_share="0.5,0.1,0.5", rare="ground:glass:20")
    assert config.arm_names == ("real+classic", "real+classic+synthetic", "ensemble")
    assert config.shares == (0.5, 0.1)
    assert config.rare_class == ("ground:glass", 20)
    assert DetectorConfig(arms="all").arm_names == ARMS
    assert DetectorConfig(threshold="specificity:0.9").specificity == 0.9
