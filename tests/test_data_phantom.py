"""The procedural chest: is it a plausible CT, and are its lesions what the list says?"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from data import phantom, phantom_lesions, phantom_painting
from data.phantom import Patient, chest
from data.phantom_lesions import CLASSES
from data.phantom_painting import Grid
from data.preprocess import lung_mask
from data.volume import Lesion, Volume, spacing_of

SMALL = {"matrix": 96, "slice_mm": 10.0, "lesions": 3}


@pytest.fixture(scope="module")
def fine() -> tuple[Volume, list[Lesion]]:
    """Fine enough that a lesion's middle half holds several voxels in every direction."""
    return chest(np.random.default_rng(5), "1.2.3", matrix=192, slice_mm=3.0, lesions=12)


def around(volume: Volume, lesion: Lesion) -> tuple[tuple[slice, ...], np.ndarray]:
    """The box that holds a lesion, and its voxels' distances in mm from the centre, by the affine alone."""
    middle, reach = volume.index_of(lesion.center_mm), 1.1 * lesion.diameter_mm / np.array(volume.spacing_mm)
    low = np.maximum(middle - reach, 0).astype(int)
    high = np.minimum(middle + reach + 2, volume.hu.shape).astype(int)
    index = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"))
    points = np.einsum("xa,akji->xkji", volume.affine[:3, :3], index) + volume.affine[:3, 3, None, None, None]
    offset = points - np.array(lesion.center_mm)[:, None, None, None]
    return tuple(map(slice, low, high)), np.linalg.norm(offset, axis=0)


def test_same_seed_same_bytes_and_another_seed_another_patient():
    (one, its), (again, same), (other, theirs) = (chest(np.random.default_rng(s), "1", **SMALL) for s in (3, 3, 4))
    assert one.hu.tobytes() == again.hu.tobytes()
    assert one.affine.tobytes() == again.affine.tobytes()
    assert its == same
    assert its != theirs
    assert one.spacing_mm != other.spacing_mm


def test_no_patient_of_one_seed_is_a_patient_of_another(tmp_path, monkeypatch):
    drawn = []

    def noted(rng, series_uid, **options):
        drawn.append(rng.random())
        return Volume(np.zeros((1, 8, 8), np.int16), (1.0,) * 3, np.eye(4), series_uid), []

    monkeypatch.setattr(phantom, "chest", noted)
    for seed in range(4):
        (tmp_path / str(seed)).mkdir()
        for n in range(4):
            phantom.write_patient(tmp_path / str(seed), seed, n, lesions=1, matrix=64, slice_mm=5.0)
    assert len(set(drawn)) == 16


@pytest.mark.parametrize("seed", range(3))
def test_tissues_take_plausible_shares(seed):
    volume, _ = chest(np.random.default_rng(seed), "1", **SMALL)
    hu, voxel_ml = volume.hu, np.prod(volume.spacing_mm) / 1000
    assert hu.dtype == np.int16
    assert hu.shape[1:] == (96, 96)
    assert hu.min() >= -1024
    assert 300 < hu.max() <= 3071
    assert np.mean(hu[:, 0]) == pytest.approx(-1000, abs=15)
    lung_ml = voxel_ml * np.sum((hu > -960) & (hu < -750))
    body_ml = voxel_ml * np.sum(hu > -300)
    bone_ml = voxel_ml * np.sum(hu > 150)
    assert 2000 < lung_ml < 7000
    assert 6000 < body_ml < 16000
    assert 200 < bone_ml < 1500


def test_spacing_and_axes_are_those_of_the_affine(fine):
    volume, _ = fine
    assert volume.series_uid == "1.2.3"
    assert volume.spacing_mm == pytest.approx(spacing_of(volume.affine))
    assert volume.spacing_mm[0] == 3.0
    middle = (np.array(volume.hu.shape) - 1) / 2
    assert volume.point_at(middle) == pytest.approx((0, 0, 0), abs=1e-9)
    x, y, z = np.array(volume.point_at(middle + 1))
    assert min(x, y, z) > 0


def test_left_back_and_head_are_where_lps_says(fine):
    """The heart is on the left, the spine at the back, the wind pipe above the lungs' roots."""
    hu = fine[0].hu
    k, j, i = (n // 2 for n in hu.shape)
    soft, bone, air = (hu > 0) & (hu < 100), hu > 150, hu < -900
    lower = soft[k - 17 : k - 4, j - 21 : j + 4]
    assert lower[..., i : i + 43].sum() > 1.5 * lower[..., i - 43 : i].sum()
    assert bone[:, j:, i - 10 : i + 10].sum() > 3 * bone[:, :j, i - 10 : i + 10].sum()
    pipe = air[:, j - 5 : j + 12, i - 5 : i + 5].mean(axis=(1, 2))
    assert pipe[-12:].min() > 0.2
    assert pipe[:k].max() < 0.05


def test_classes_take_turns_and_diameters_stay_in_range():
    for seed in range(2):
        _, three = chest(np.random.default_rng(seed), "1", **SMALL)
        assert sorted(lesion.label for lesion in three) == sorted(CLASSES)
        assert all(phantom_lesions.DIAMETER_MM[0] <= lesion.diameter_mm <= phantom_lesions.DIAMETER_MM[1] for lesion in three)


def test_lesions_lie_in_the_lung(fine):
    """The body is drawn before the lesions, so the same seed gives the lung they went into."""
    volume, lesions = fine
    rng = np.random.default_rng(5)
    patient = Patient.draw(rng)
    _, lung = phantom.body(rng, patient, patient.grid(192, 3.0))
    assert len(lesions) == 12
    for lesion in lesions:
        box, distance = around(volume, lesion)
        assert lung[box][distance < lesion.diameter_mm / 2].mean() > 0.98


@pytest.mark.parametrize(("seed", "matrix", "slice_mm"), [(5, 192, 3.0), (6, 128, 8.0), (7, 320, 5.0)])
def test_the_lung_mask_finds_the_lungs_that_were_drawn(seed, matrix, slice_mm):
    volume, _ = chest(np.random.default_rng(seed), "1", matrix=matrix, slice_mm=slice_mm, lesions=9)
    rng = np.random.default_rng(seed)
    patient = Patient.draw(rng)
    _, drawn = phantom.body(rng, patient, patient.grid(matrix, slice_mm))
    found, lung = lung_mask(volume), drawn > 0.5
    assert 2 * (found & lung).sum() / (found.sum() + lung.sum()) > 0.95  # Dice


def test_lesions_keep_apart_and_from_the_edge_of_a_crowded_ball():
    """They go 2 mm from the edge and 5 mm from each other, give or take the jitter of 1 mm along each axis."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-50, 50, (20000, 3))
    room = phantom_lesions.Room(points, 50 - np.linalg.norm(points, axis=1))
    lesions = phantom_lesions.place_lesions(rng, room, 18)
    centers, radii = np.array([x.center_mm for x in lesions]), np.array([x.diameter_mm / 2 for x in lesions])
    gaps = cdist(centers, centers) - radii[:, None] - radii
    assert gaps[~np.eye(18, dtype=bool)].min() > 5 - 2 * np.sqrt(3)
    assert (50 - np.linalg.norm(centers, axis=1) - radii).min() > 2 - np.sqrt(3)


def test_the_hu_at_a_centre_are_those_of_its_class(fine):
    """For lesions of three slices and more: slices average smaller ones with what is around them."""
    volume, lesions = fine
    large = [lesion for lesion in lesions if lesion.diameter_mm > 3 * volume.spacing_mm[0]]
    assert {lesion.label for lesion in large} == set(CLASSES)
    for lesion in large:
        box, distance = around(volume, lesion)
        hu, radius = volume.hu[box], lesion.diameter_mm / 2
        core = hu[distance < radius / 2]
        if lesion.label == "solid":
            assert -100 < core.mean() < 200
        elif lesion.label == "ground_glass":
            assert -720 < np.median(core) < -350
        else:
            wall = hu[np.abs(distance - radius + 0.7) < 1]
            assert np.median(core) < -890
            assert np.median(wall) > np.median(core) + 80


def test_a_solid_lesion_ends_at_its_radius(fine):
    """The median over directions falls half way from nodule to lung at diameter_mm / 2."""
    volume, lesions = fine
    for lesion in lesions:
        if lesion.label == "solid":
            box, distance = around(volume, lesion)
            shells = np.arange(0.75, lesion.diameter_mm, 0.75)
            profile = [np.median(volume.hu[box][np.abs(distance - at) < 0.9]) for at in shells if at > 1.5]
            edge = shells[shells > 1.5][np.argmax(np.array(profile) < -410)]
            assert edge == pytest.approx(lesion.diameter_mm / 2, abs=1.5)


def test_too_many_lesions_are_an_error_that_says_how_many_fit():
    with pytest.raises(ValueError, match=r"400 lesions asked for.*room for \d+; ask for fewer"):
        chest(np.random.default_rng(0), "1", matrix=96, slice_mm=10.0, lesions=400)


@pytest.mark.parametrize(("near", "far"), [(0.3, 0.3), (1.0, 0.25), (6.0, 6.0)])
def test_tubes_fill_their_volume(near, far):
    """A cone frustum holds pi h (r^2 + r s + s^2) / 3, whatever the voxels."""
    grid = Grid((20, 64, 64), (5.0, 1.3, 1.3))
    ends = [-13.0, 9.0, -31.0, 17.0, -12.0, 28.0]
    length = np.linalg.norm(np.subtract(ends[3:], ends[:3]))
    fraction = phantom_painting.fill(np.array([[*ends, near, far]]), grid, samples=32)
    want = np.pi * length * (near**2 + near * far + far**2) / 3
    assert fraction.sum() * 5 * 1.3**2 == pytest.approx(want, rel=0.03)
    assert fraction.max() <= 1


def test_a_tree_without_balance_is_the_minimum_spanning_tree_and_with_much_a_star():
    points = np.random.default_rng(0).uniform(0, 100, (60, 3))
    wires = cdist(points, points)
    parent, order = phantom.grow_tree(points, 0.0)
    assert sorted(order) == list(range(60))
    assert wires[np.arange(60), parent].sum() == pytest.approx(minimum_spanning_tree(wires).sum())
    between, _ = phantom.grow_tree(points, 0.45)
    star, _ = phantom.grow_tree(points, 1e6)
    assert not star.any()
    lengths = [wires[np.arange(60), tree].sum() for tree in (parent, between, star)]
    assert lengths[0] < lengths[1] < lengths[2]


@pytest.mark.parametrize("edge_mm", [0.5, 4.0])
def test_a_voxel_whose_middle_lies_on_a_surface_is_half_full(edge_mm):
    away = np.array([-1, -0.5, -0.25, 0, 0.25, 0.5, 1])  # of its width
    np.testing.assert_allclose(phantom_painting.within(away * edge_mm, edge_mm), [1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_texture_has_mean_0_and_variance_1():
    grid = Grid((40, 128, 128), (5.0, 1.3, 1.3))
    field = phantom_painting.texture(np.random.default_rng(0), grid, 4.0)
    assert field.mean() == pytest.approx(0, abs=0.05)
    assert field.var() == pytest.approx(1, abs=0.05)
    assert np.mean(field[:, :, 1:] * field[:, :, :-1]) > 0.8


def test_lobes_leave_the_mean_radius():
    rng = np.random.default_rng(1)
    opacity = phantom_painting.blob(rng, 8.0, 0.1, 0.5)
    way = phantom_painting.directions(rng, 4000)
    step = 0.02
    radii = sum(opacity(r * way) * step for r in np.arange(step / 2, 14, step))
    assert radii.mean() == pytest.approx(8, rel=0.01)
    assert radii.std() > 0.2


def test_vessels_show_through_ground_glass():
    grid = Grid((9, 41, 41), (2.0, 1.0, 1.0))
    hu = np.full(grid.shape, -860, np.float32)
    hu[:, :, 20] = phantom_painting.BLOOD_HU
    lesion = Lesion((0.0, 0.0, 0.0), 12.0, "ground_glass")
    room = phantom_lesions.Room(np.zeros((1, 3)), np.zeros(1))
    phantom_lesions.paint_ground_glass(np.random.default_rng(0), hu, grid, lesion, room)
    assert hu[4, 20, 20] == phantom_painting.BLOOD_HU
    assert -650 < hu[4, 20, 18] < -410
    assert hu[4, 20, 40] == -860
