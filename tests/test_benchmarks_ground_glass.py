"""The study of a rare class in 3-D, hardly trained, on made cubes: who judges whom, and that it goes on where it stopped."""

import numpy as np
import pytest
from conftest import benchmark

from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter


@pytest.fixture(scope="module")
def glass():
    yield from benchmark("ground_glass")


@pytest.fixture
def folder(tmp_path) -> PatchFolder:
    """24 patients with a nodule and two lesion-free cubes each; 6 of ground glass."""
    rng = np.random.default_rng(0)
    (tmp_path / "cubes").mkdir()
    classes = ("ground_glass", "part_solid", "solid", "background")
    writer = PatchWriter(tmp_path / "cubes", PatchSpec((8, 8, 8), (1.0, 1.0, 1.0), (-1000, 400), classes, background="background"))
    for n in range(24):
        for label in (classes[0 if n < 6 else 1 + n % 2], "background", "background"):
            hu = rng.integers(-900, -700, (8, 8, 8)).astype(np.int16)
            hu[2:6, 2:6, 2:6] += np.int16(400 * (label != "background"))
            writer.add(Patch(hu, f"p-{n:04d}", f"s-{n:04d}", label, 4.0 if label != "background" else None, split="train"))
    writer.finish()
    return PatchFolder.open(tmp_path / "cubes")


def test_every_cube_is_judged_by_detectors_that_never_saw_its_patient_and_work_is_kept(glass, folder, tmp_path, monkeypatch):
    effort = glass.Effort(steps=1, updates=1, samples=8, seeds=2)
    study = glass.Study(folder, tmp_path / "work", effort)
    for fold in range(glass.FOLDS):
        trained_on = {*study.patients[study.training(fold, *folder.classes)].tolist()}
        assert not trained_on & set(study.patients[study.fold == fold].tolist())
    assert [(study.labels[study.fold == fold] == glass.RARE).sum() for fold in range(glass.FOLDS)] == [2, 2, 2]
    found = glass.judged(study)
    others = np.isin(study.labels, ["part_solid", "solid"])
    for scores in found.values():
        assert scores.shape == (2, 72)
        assert np.isnan(scores[:, others]).all()
        assert np.isfinite(scores[:, ~others]).all()
    rows = glass.table(study, found)
    assert [row["arm"] for row in rows] == list(glass.ARMS)
    assert rows[0]["over_classic"] == [0, 0, 0]
    assert all(row["auroc"][1] <= row["auroc"][0] <= row["auroc"][2] for row in rows)
    assert sum(1 for _ in glass.lines(rows)) == 1 + len(rows)

    def again(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(glass, "train_detector", again)
    monkeypatch.setattr(glass, "Trainer", again)
    for arm, scores in glass.judged(glass.Study(folder, tmp_path / "work", effort)).items():
        np.testing.assert_array_equal(scores, found[arm])


def test_an_arm_that_tells_better_is_said_to(glass, folder, tmp_path):
    study = glass.Study(folder, tmp_path / "work", glass.Effort(seeds=4))
    wanted = np.isin(study.labels, [glass.RARE, "background"])
    lesion, rng = study.labels == glass.RARE, np.random.default_rng(0)
    noise = rng.standard_normal((4, len(lesion)))
    found = {arm: np.where(wanted, noise + (4.0 if arm == "+ context" else 1.0) * lesion, np.nan) for arm in glass.ARMS}
    rows = {row["arm"]: row for row in glass.table(study, found)}
    assert rows["+ context"]["over_classic"][1] > 0
    assert rows["+ pasted"]["over_classic"] == pytest.approx([0, 0, 0])
