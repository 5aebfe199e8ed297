"""Windowing is exactly undone, cutting is exact on linear volumes, the lung mask finds lungs."""

import numpy as np
import pytest
from conftest import affine_of
from hypothesis import example, given
from hypothesis import strategies as st

from data.preprocess import check_window, cut, from_unit, lung_mask, outside_share, to_unit
from data.volume import AIR_HU, Volume

windows = st.tuples(st.integers(-2000, 3000), st.integers(1, 4000)).map(lambda t: (float(t[0]), float(t[0] + t[1])))


@given(windows, st.lists(st.integers(-3000, 8000), min_size=1, max_size=50))
def test_window_is_exactly_undone_inside_and_clips_outside(window, values):
    hu = np.array(values, np.int16)
    x = to_unit(hu, window)
    assert x.dtype == np.float32
    assert np.abs(x).max() <= 1 + 1e-6
    np.testing.assert_array_equal(from_unit(x, window), np.clip(hu, *window).astype(np.int16))


def test_what_lies_beyond_1_becomes_the_windows_end():
    np.testing.assert_array_equal(from_unit(np.array([-1.5, -1, 1, 1.01], np.float32), (-1000, 400)), [-1000, -1000, 400, 400])


@pytest.mark.parametrize("window", [(400.0, -1000.0), (0.0, 0.0), (-40000.0, 0.0), (0.0, float("nan"))])
def test_windows_that_make_no_sense_are_refused(window):
    with pytest.raises(ValueError, match="window"):
        check_window(window)


def linear_volume() -> Volume:
    """HU = 10 x + 7 y + 3 z + 5 at every voxel, which linear interpolation must reproduce."""
    affine = affine_of(spacing=(2.0, 0.5, 0.5), origin=(-10, -10, -10))
    index = np.stack(np.meshgrid(np.arange(12), np.arange(50), np.arange(48), indexing="ij"), -1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume(np.rint(points @ [10, 7, 3] + 5).astype(np.int16), (2.0, 0.5, 0.5), affine, "uid")


@given(st.tuples(st.floats(-4, 4), st.floats(-4, 4), st.floats(-6, 8)), st.floats(0.3, 0.8))
@example((0.0, 1 / 3, 0.0), 1 / 3)
def test_axial_patch_has_the_right_hu_at_the_right_place(centre, spacing):
    patch = cut(linear_volume(), centre, (8, 8), spacing)
    z = np.rint((centre[2] + 10) / 2) * 2 - 10  # the nearest slice
    offsets = (np.arange(8) - 3.5) * spacing
    expected = 10 * (centre[0] + offsets[None, :]) + 7 * (centre[1] + offsets[:, None]) + 3 * z + 5
    if abs((centre[2] + 10) / 2 % 1 - 0.5) > 1e-3:  # between two slices either is the nearest
        assert np.abs(patch - expected).max() <= 1.0


def test_cube_has_the_right_hu_at_the_right_place():
    patch = cut(linear_volume(), (1.0, -2.0, 0.3), (6, 8, 8), 0.6)
    z, y, x = (c + (np.arange(n) - (n - 1) / 2) * 0.6 for c, n in ((0.3, 6), (-2.0, 8), (1.0, 8)))
    expected = 10 * x[None, None] + 7 * y[None, :, None] + 3 * z[:, None, None] + 5
    assert np.abs(patch - expected).max() <= 1.0


@pytest.mark.parametrize("spacing", [0.57, 0.7, 0.83, 0.99])
def test_a_patch_that_is_the_whole_volume_keeps_its_border(spacing):
    affine = affine_of((spacing,) * 3, (-150.3, -171.7, 0.1))
    volume = Volume(np.full((32, 32, 32), 50, np.int16), (spacing,) * 3, affine, "uid")
    assert (cut(volume, volume.point_at(np.array([15.5] * 3)), (32, 32, 32), spacing) == 50).all()


def test_outside_the_volume_is_air():
    assert (cut(linear_volume(), (500, 0, 0), (8, 8), 1.0) == AIR_HU).all()
    edge = cut(linear_volume(), (-10, 0, 0), (8, 8), 0.5)
    assert (edge[:, :3] == AIR_HU).all()  # the fourth lies half a voxel outside: half air
    assert (edge[:, 4:] > -300).all()


def thorax() -> tuple[Volume, np.ndarray]:
    """A body with two round lungs, a vessel and a nodule on the wall; and the lungs as they should be found."""
    k, j, i = np.ogrid[:10, :120, :160]
    hu = np.full((10, 120, 160), -1000, np.int16)
    hu[np.broadcast_to(((j - 60) / 55) ** 2 + ((i - 80) / 75) ** 2 <= 1, hu.shape)] = 40
    left, right = (np.broadcast_to((j - 60) ** 2 + (i - c) ** 2 <= 28**2, hu.shape) for c in (45, 115))
    hu[left | right] = -850
    hu[:, 58:61, 40:43] = 30
    hu[4:6, 57:64, 17:22] = 20
    return Volume(hu, (5.0, 2.0, 2.0), affine_of((5.0, 2.0, 2.0)), "uid"), left | right


def test_lung_mask_is_the_lungs_with_vessels_and_wall_lesions():
    volume, lungs = thorax()
    found = lung_mask(volume)
    assert 2 * (found & lungs).sum() / (found.sum() + lungs.sum()) > 0.97
    assert found[5, 59, 41]
    assert found[4, 60, 20]


def test_a_pocket_of_air_is_no_lung():
    volume, lungs = thorax()
    volume.hu[2:6, 20:30, 75:85] = -900  # 8 ml, as in the oesophagus or the stomach
    assert not lung_mask(volume)[:, 20:30, 75:85].any()
    assert lung_mask(volume)[:, 60, 45].all()


def dice(found, truth):
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def test_gas_and_foam_are_no_lung():
    """Wind pipe, a stomach full of gas, and a table of foam that reaches the slice's edge."""
    volume, lungs = thorax()
    k, j, i = np.ogrid[:10, :120, :160]
    volume.hu[np.broadcast_to((j - 40) ** 2 + (i - 80) ** 2 <= 5**2, volume.hu.shape)] = -995
    volume.hu[:3][np.broadcast_to((j - 95) ** 2 + (i - 80) ** 2 <= 15**2, (3, 120, 160))] = -990
    volume.hu[:, 117:] = -900
    assert dice(lung_mask(volume), lungs) > 0.97
    assert not lung_mask(volume)[:, 38:43, 78:83].any()


def test_lung_that_the_field_of_view_cuts_off_is_lung():
    volume, lungs = thorax()
    inner = (slice(None), slice(None), slice(30, 130))  # through both lungs
    assert dice(lung_mask(Volume(volume.hu[inner], volume.spacing_mm, volume.affine, "uid")), lungs[inner]) > 0.97


def test_a_nodule_inside_the_lung_is_filled_the_diaphragm_is_not():
    volume, lungs = thorax()
    k, j, i = np.ogrid[:10, :120, :160]
    volume.hu[np.broadcast_to((j - 62) ** 2 + (i - 45) ** 2 + (2.5 * (k - 5)) ** 2 <= 8**2, volume.hu.shape)] = 30
    volume.hu[:4][np.broadcast_to((j - 62) ** 2 + (i - 115) ** 2 <= (18 - 3 * k[:4]) ** 2, (4, 120, 160))] = 50
    found = lung_mask(volume)
    assert found[5, 62, 45]
    assert not found[0, 62, 115]


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3.0), st.sampled_from([(9, 9), (5, 9, 9)]))
def test_resampling_never_leaves_the_range_of_the_scan_and_air(seed, spacing, shape):
    rng = np.random.default_rng(seed)
    hu = rng.integers(-900, 3000, (6, 20, 22)).astype(np.int16)
    volume = Volume(hu, (2.5, 0.7, 0.8), affine_of(), "uid")
    patch = cut(volume, volume.point_at(rng.uniform(-3, 24, 3)), shape, spacing)
    assert hu.max() >= patch.max()
    assert patch.min() >= AIR_HU


@pytest.mark.parametrize("seed", range(8))
def test_outside_share_is_that_of_the_voxels_the_volume_does_not_contain(seed):
    rng = np.random.default_rng(seed)
    volume = Volume(np.zeros((7, 9, 8), np.int16), (2.5, 0.7, 0.8), affine_of((2.5, 0.7, 0.8), (0, 0, 0)), "1.2")
    centre, spacing = volume.point_at(rng.uniform(-2, 9, 3)), rng.uniform(0.5, 1.5)
    offsets = (np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3) - 2) * spacing / volume.spacing_mm
    inside = [volume.contains(volume.index_of(centre) + offset) for offset in offsets]
    assert outside_share(volume, centre, (5, 5, 5), spacing) == pytest.approx(1 - np.mean(inside))


def test_outside_share_counts_voxels_beyond_the_volume():
    volume = linear_volume()  # 12 x 50 x 48 voxels of 2 x 0.5 x 0.5 mm from (-10, -10, -10)
    assert outside_share(volume, (0, 0, 0), (8, 8), 1.0) == 0
    assert outside_share(volume, (-10.25, 2, 0), (8, 8), 0.5) == 0.5
    assert outside_share(volume, (500, 0, 0), (8, 8), 1.0) == 1
    assert outside_share(volume, (0, 0, -11), (4, 8, 8), 2.0) == 0.5


def test_no_lung_is_an_error():
    volume, _ = thorax()
    with pytest.raises(ValueError, match="no lung found"):
        lung_mask(Volume(np.full_like(volume.hu, 40), volume.spacing_mm, volume.affine, "uid"))
