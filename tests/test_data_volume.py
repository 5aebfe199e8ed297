"""Geometry: however a scan is stored, the HU at a point in the patient stay the same."""

import itertools

import numpy as np
import pytest
from conftest import affine_of, noise_volume

from data.volume import Volume, spacing_of


def stored(turn: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same scan with its axes permuted and flipped."""
    hu, affine = noise_volume(), affine_of()
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(turn, flips, strict=True)):
        step[old, new] = -1 if flip else 1
        if flip:
            step[old, 3] = hu.shape[old] - 1
    turned = hu.transpose(turn)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    return Volume(turned, spacing_of(affine @ step), affine @ step, "uid")


@pytest.mark.parametrize("turn", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True), (True, True, True)])
def test_axial_undoes_any_storage_order(turn, flips):
    axial = stored(turn, flips).axial()
    np.testing.assert_array_equal(axial.hu, noise_volume())
    np.testing.assert_allclose(axial.affine, affine_of())
    np.testing.assert_allclose(axial.spacing_mm, (2.5, 0.7, 0.8))


def test_index_and_point_are_inverse_and_follow_the_affine():
    volume = stored((0, 1, 2), (False, False, False))
    assert volume.point_at(np.array([2, 3, 4])) == pytest.approx((-30 + 4 * 0.8, -40 + 3 * 0.7, 100 + 2 * 2.5))
    np.testing.assert_allclose(volume.index_of(volume.point_at(np.array([1.5, 2.25, 3]))), [1.5, 2.25, 3])


def test_contains_counts_half_a_voxel_at_the_border():
    volume = stored((0, 1, 2), (False, False, False))
    assert volume.contains(np.array([-0.4, 0, 23.4]))
    assert not volume.contains(np.array([-0.6, 0, 0]))
    assert not volume.contains(np.array([0, 0, 23.6]))


def test_thinned_keeps_every_nth_voxel_where_it_was():
    volume = Volume(noise_volume((6, 20, 24)), (2.5, 0.7, 0.8), affine_of(), "uid")
    thin = volume.thinned(2.4)
    assert thin.hu.shape == (6, 7, 8)
    assert thin.spacing_mm == pytest.approx((2.5, 2.1, 2.4))
    np.testing.assert_array_equal(thin.hu, volume.hu[:, 1::3, 1::3])
    assert thin.point_at(np.array([2, 3, 4])) == pytest.approx(volume.point_at(np.array([2, 10, 13])))


@pytest.mark.parametrize("turn", list(itertools.permutations(range(3))))
def test_what_is_written_into_an_axial_view_is_written_where_it_is_stored(turn):
    volume = stored(turn, (True, False, True))
    values = volume.hu.copy()
    volume.axial_view(values)[2:4, 5, 6:9] = 2000
    expected = volume.axial().hu.copy()
    expected[2:4, 5, 6:9] = 2000
    np.testing.assert_array_equal(volume.axial_view(values), expected)
    assert (values != volume.hu).sum() == 6
