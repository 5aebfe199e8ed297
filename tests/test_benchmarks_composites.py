"""Whether composites look right, hardly trained, on made patches: equal diameters, patients apart, and a table that says what was found."""

import numpy as np
import pytest
from conftest import benchmark
from PIL import Image

from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter


@pytest.fixture(scope="module")
def composites():
    yield from benchmark("composites")


@pytest.fixture(scope="module")
def sets(composites, tmp_path_factory):
    """60 patients, most of them to train with, each with two discs and three lesion-free patches of a gray level of their own."""
    place, rng = tmp_path_factory.mktemp("composites") / "patches", np.random.default_rng(0)
    place.mkdir()
    distance = np.hypot(*np.meshgrid(*[np.arange(32) - 15.5] * 2))
    writer = PatchWriter(place, PatchSpec((32, 32), None, (-1000, 400), ("other", "nodule"), background="other"))
    for n in range(60):
        for k in range(5):
            hu = -900 + 3 * n + rng.normal(0, 20, (32, 32)) + 900 * ((distance < rng.uniform(2, 5)) & (k < 2))
            split = "train" if n < 50 else "validation"
            writer.add(Patch(hu.astype(np.int16), f"p-{n:04d}", f"s-{n:04d}", ("nodule", "other")[k >= 2], split=split))
    writer.finish()
    composites.NODULES = 16
    return composites.Sets(PatchFolder.open(place), updates=2)


def test_composites_differ_from_their_background_in_the_middle_only_and_none_is_of_a_patient_who_gave_lesions(composites, sets):
    assert set(sets.composites) == set(composites.WAYS)
    distance = np.hypot(*np.meshgrid(*[np.arange(32) - 15.5] * 2))
    beyond = distance > composites.radius_mm(sets.diameters + 2)[:, None, None]  # what is pasted is of nearly that diameter
    for hu in sets.composites.values():
        assert hu.shape == sets.real.shape == sets.background.shape
        np.testing.assert_array_equal(hu[beyond], sets.background[beyond])
    levels = np.median(sets.background[:, :4], axis=(1, 2))  # a patient's own gray level tells whose background it is
    own = np.array([-900 + 3 * int(name.split("-")[1]) for name in sets.of_background])
    np.testing.assert_allclose(levels, own, atol=12)
    assert len(np.unique(sets.patients)) + sets.counts["groups"] == 60
    assert not set(sets.of_background.tolist()) - set(sets.patients.tolist())


def test_the_panel_has_a_block_for_each_way_and_a_row_says_what_differs(composites, sets, tmp_path):
    composites.write_panel(sets, tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as picture:
        assert picture.height >= 4 * 2 * 64
    found, kept = composites.edges(sets, "pasted")
    assert np.isfinite(kept)
    assert found.tests
    network = composites.apart(sets, "context", steps=2, seeds=1)
    assert 0 <= network.interval.low <= network.auroc <= network.interval.high <= 1
    row = {
        "way": "pasted", "auroc": [0.7, 0.6, 0.8], "noise_kept": 1.5, "differs": ["rim_hu", "noise_inside"], "seams": ["rim_hu"],
    }  # fmt: skip
    lines = list(composites.table([row], {"auroc": [0.5, 0.4, 0.6]}))
    assert "RIM_HU, noise_inside" in lines[1]
    assert lines[2].startswith("real halves")
