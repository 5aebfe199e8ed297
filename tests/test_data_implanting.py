"""Lesions carried into a scan's own voxels: against plain integration and closed forms; noise as around; nothing else is touched."""

import numpy as np
import pytest
from conftest import affine_of
from scipy.ndimage import gaussian_filter, map_coordinates

from data.implanting import carried, drawn, implant, matching_noise, noise_sd
from data.placing import Placed, Scan, scan_of
from data.volume import Volume, spacing_of

CUBE, ISOTROPIC = (32, 32, 32), (1.0, 1.0, 1.0)
SOLID_HU = 30


def balls(cubes, placed, edge_mm=2.0):
    """What a model of cubes of 1 mm draws, in its place: a ball of SOLID_HU with a soft edge, without noise of its own."""
    for cube, one in zip(cubes, placed, strict=True):
        axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in cube.shape), indexing="ij")
        inside = np.clip((one.diameter_mm / 2 - np.linalg.norm(axes, axis=0)) / edge_mm + 0.5, 0, 1)
        yield cube + ((SOLID_HU - cube) * inside).astype(np.float32), inside >= 0.5


def placed_at(volume: Volume, index, diameter_mm=10.0, stream=7) -> Placed:
    return Placed(0, 1, stream, "solid", diameter_mm, volume.point_at(np.array(index)), tuple(map(float, index)), 1)


def lung(spacing=(2.0, 0.8, 0.8), shape=(24, 64, 64), noise_hu=20.0, blur=0.8, seed=0) -> Volume:
    """Lung of -850 HU with noise that is correlated in the plane, and a floor of -1024 as scanners have it."""
    noise = (
        gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0, blur, blur))
        if blur
        else np.random.default_rng(seed).standard_normal(shape)
    )
    hu = np.clip(np.rint(-850 + noise_hu * noise / noise.std()), -1024, None).astype(np.int16)
    hu[0, 0, 0] = -1024
    affine = affine_of(spacing)
    return Volume(hu, spacing_of(affine), affine, "")


def bare_scan(volume: Volume, thickness_mm=None) -> Scan:
    """A scan whose lung nobody looks for."""
    return Scan(volume, volume.axial(), thickness_mm or volume.spacing_mm[0], np.zeros((1, 1, 1), np.float32), np.eye(4))


def set_into(scan: Scan, placed: Placed, draw=balls):
    """The axial HU with the lesion in it, and what is told of it."""
    hu = scan.axial.hu.copy()
    (lesion,) = drawn(scan, [placed], CUBE, ISOTROPIC, draw)
    return hu, implant(hu, scan, lesion, ISOTROPIC)


# --- from the model's voxels to the scan's ---


@pytest.mark.parametrize("spacing", [(8.0, 0.7, 0.6), (0.7, 0.5, 0.5), (2.5, 1.6, 1.4)])
@pytest.mark.parametrize("thicker", [1.0, 2.0, 0.25])
def test_a_voxel_gets_the_mean_over_what_it_shows(spacing, thicker):
    """Slices that touch, overlap, and leave gaps. The reference adds up the trilinear interpolation at many points of each voxel."""
    values = np.pad(np.random.default_rng(0).normal(size=(6, 7, 5)), 1)
    steps, index = (1.0, 1.1, 0.9), (4.3, 9.8, 10.4)
    volume = Volume(np.zeros((9, 20, 22), np.int16), spacing, affine_of(spacing), "")
    box, (got,) = carried(values[None], steps, index, volume, thicker * spacing[0])
    axes, counts = [], []
    for one, at, mm, step, extent, side in zip(box, index, spacing, steps, (thicker * spacing[0], *spacing[1:]), values.shape, strict=True):
        points = max(6, int(8 * extent / step))
        mm_of = (np.arange(one.start, one.stop) - at)[:, None] * mm + ((np.arange(points) + 0.5) / points - 0.5) * extent
        axes.append(mm_of.ravel() / step + (side - 1) / 2)
        counts += [one.stop - one.start, points]
    fine = map_coordinates(values, np.meshgrid(*axes, indexing="ij"), order=1, mode="grid-constant")
    want = fine.reshape(counts).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(got, want, atol=0.02)
    assert np.abs(want).max() > 0.1


@pytest.mark.parametrize("spacing", [(8.0, 0.646, 0.646), (1.25, 0.7, 0.7), (0.6, 0.5, 0.5), (3.0, 1.5, 1.4)])
def test_no_mass_is_lost_between_slices(spacing):
    values = np.random.default_rng(1).normal(size=(1, 20, 20, 20))
    volume = Volume(np.zeros((60, 90, 90), np.int16), spacing, affine_of(spacing), "")
    for index in ((30.0, 45.0, 45.0), (29.6, 44.2, 45.9)):
        _, carried_values = carried(values, ISOTROPIC, index, volume, spacing[0])
        assert carried_values.sum() * np.prod(spacing) == pytest.approx(values.sum(), rel=1e-9)


@pytest.mark.parametrize("off", [0.0, 0.5, 0.3])
def test_thick_slices_of_a_ball_have_its_caps_volumes(off):
    """Between heights a and b a ball of radius R holds pi (R^2 z - z^3 / 3) from a to b; on its axis, the part of the slice that it fills."""
    radius, thick = 7.0, 8.0
    axes = np.meshgrid(*[(np.arange(64) - 31.5) / 4] * 3, indexing="ij")
    ball = (np.linalg.norm(axes, axis=0) <= radius).astype(float)
    spacing = (thick, 0.5, 0.5)
    volume = Volume(np.zeros((7, 61, 61), np.int16), spacing, affine_of(spacing), "")
    box, (share,) = carried(ball[None], (0.25,) * 3, (3 + off, 30.0, 30.0), volume, thick)
    middles = (np.arange(box[0].start, box[0].stop) - 3 - off) * thick
    low, high = np.clip(middles - thick / 2, -radius, radius), np.clip(middles + thick / 2, -radius, radius)
    caps = np.pi * (radius**2 * (high - low) - (high**3 - low**3) / 3)
    np.testing.assert_allclose(share.sum(axis=(1, 2)) * thick * 0.25, caps, rtol=0.02, atol=1)
    axis = share[:, 30 - box[1].start, 30 - box[2].start]
    np.testing.assert_allclose(axis, (high - low) / thick, atol=0.02)


def test_a_lesion_at_the_scans_end_is_cut_off_there():
    volume = lung(shape=(6, 30, 30))
    box, (share,) = carried(np.ones((1, 10, 10, 10)), ISOTROPIC, (0.0, 0.0, 29.0), volume, 2.0)
    assert [one.start for one in box] == [0, 0, box[2].start]
    assert box[2].stop == 30
    assert share[0, 0, -1] == pytest.approx(1)


# --- into the scan ---


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 0.8), (8.0, 0.65, 0.65)])
def test_only_the_lesion_changes_and_it_is_where_and_as_large_as_asked(spacing):
    volume = lung(spacing)
    scan, index = bare_scan(volume), (11.3, 31.6, 30.2)
    placed = placed_at(volume, index, 12.0)
    hu, one = set_into(scan, placed)
    changed = hu != volume.hu
    axes = np.meshgrid(*((np.arange(n) - at) * mm for n, at, mm in zip(hu.shape, index, spacing, strict=True)), indexing="ij")
    beyond = [np.maximum(np.abs(axis) - (mm + 2) / 2, 0) for axis, mm in zip(axes, spacing, strict=True)]  # and the hat's reach
    assert not changed[np.linalg.norm(beyond, axis=0) > 6 + 1].any()
    assert changed.sum() > 100
    from_its_middle = (np.argwhere(changed) - volume.index_of(one.center_mm)) * spacing
    assert one.support_mm == pytest.approx(np.linalg.norm(from_its_middle, axis=1).max())
    np.testing.assert_allclose(one.center_mm, placed.center_mm, atol=0.2)
    assert one.diameter_mm == pytest.approx(12, abs=0.3)
    assert not one.mask[~changed[one.box]].any()
    assert one.mean_hu[0] == pytest.approx(-850, abs=10)
    full = hu[one.box][one.mask].mean()
    assert one.mean_hu[1] == full > -350


def test_two_lesions_side_by_side_are_added_and_each_is_as_it_is_alone():
    volume = lung()
    scan = bare_scan(volume)
    first, second = placed_at(volume, (8.0, 30.0, 20.0)), placed_at(volume, (8.0, 30.0, 42.0), stream=8)
    alone = [set_into(scan, one)[0] for one in (first, second)]
    hu = volume.hu.copy()
    for lesion in drawn(scan, [first, second], CUBE, ISOTROPIC, balls):
        implant(hu, scan, lesion, ISOTROPIC)
    np.testing.assert_array_equal(hu, np.where(alone[0] != volume.hu, alone[0], alone[1]))


def test_a_dark_lesion_stays_above_the_scans_floor():
    def cysts(cubes, placed):
        for cube, (hu, mask) in zip(cubes, balls(cubes, placed), strict=True):
            yield cube + (hu - cube) * np.float32(-0.3), mask

    volume = lung(noise_hu=30)
    hu, one = set_into(bare_scan(volume), placed_at(volume, (11.0, 31.0, 31.0), 14.0), cysts)
    assert hu.min() == -1024 == hu[one.box][one.mask].min()


def test_a_mask_in_slices_too_thick_to_be_filled_is_what_is_filled_most():
    volume = lung((8.0, 0.65, 0.65))
    for index, slices in (((11.0, 31.0, 31.0), 1), ((11.5, 31.0, 31.0), 2)):
        _, one = set_into(bare_scan(volume), placed_at(volume, index, 5.0))
        assert (one.slices, one.mask.sum() > 20 * slices) == (slices, True)
        assert one.diameter_mm == pytest.approx(5, abs=0.3)


# --- noise ---


@pytest.mark.parametrize("blur", [0, 0.6, 1.2])
def test_noise_is_measured_below_slopes_and_beside_vessels(blur):
    hu, everywhere = lung(noise_hu=20, blur=blur).hu.astype(float), np.ones((24, 64, 64), bool)
    flat = noise_sd(hu, everywhere)
    assert flat == pytest.approx({0: 19.7, 0.6: 18.6, 1.2: 15.8}[blur], rel=0.05)  # blurred, some of it counts as smooth
    assert noise_sd(hu + 2 * np.arange(64) + 3 * np.arange(64)[:, None], everywhere) == pytest.approx(flat, rel=0.02)
    hu[:, 30:33, :] = 40
    assert noise_sd(hu, hu < -500) == pytest.approx(flat, rel=0.05)
    assert np.isnan(noise_sd(hu, np.zeros(hu.shape, bool)))


@pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.8), (8.0, 0.65, 0.65), (1.0, 0.7, 0.7)])
@pytest.mark.parametrize("blur", [0, 0.6, 1.0])
@pytest.mark.parametrize("own_hu", [0, 15])
def test_a_lesion_has_the_noise_of_its_neighbourhood(spacing, blur, own_hu):
    """As the difference of two scans that differ in noise only tells it, free of the lesion's shape.

    The ball is drawn without noise in place of what was there: without more of it the lesion would have half to nine tenths of it.
    """
    grain = np.random.default_rng(9)

    def grainy(cubes, placed):
        for hu, mask in balls(cubes, placed):
            yield hu + np.where(mask, own_hu * grain.standard_normal(CUBE, dtype=np.float32), 0), mask

    volumes = [lung(spacing, noise_hu=25, blur=blur, seed=seed) for seed in (0, 1)]
    hu, told = zip(
        *(set_into(bare_scan(one), placed_at(one, (11.4, 31.0, 31.0), 16.0, n), grainy) for n, one in enumerate(volumes)), strict=True
    )
    box, inside = told[0].box, told[0].mask
    assert ((hu[0] - hu[1].astype(float))[box][inside] / np.sqrt(2)).std() == pytest.approx(25, rel=0.25)
    for one in told:
        around, before, after = one.noise_hu
        assert before == pytest.approx(around, rel=0.2)
        assert after == pytest.approx(around, rel=0.25)


@pytest.mark.parametrize(("lung_hu", "soft_hu", "wanted"), [(30, 10, 10), (10, 30, 10), (30, None, 30)])
def test_noise_is_the_lungs_or_that_of_soft_tissue_in_the_same_slices_where_it_is_less(lung_hu, soft_hu, wanted):
    """Lung has texture of its own. Soft tissue of other slices, and bone, ten times as noisy, say nothing; where there is none lung does."""
    volume = lung(noise_hu=lung_hu, blur=0)
    if soft_hu:
        noise = np.random.default_rng(3).normal(0, soft_hu, (24, 12, 64))
        volume.hu[11:13, :12] = np.rint(50 + noise[11:13])  # this and the bone lie beyond the lesion's cube
        for others in (slice(10), slice(13, None)):
            volume.hu[others, :12] = np.rint(50 + 10 * noise[others])
        volume.hu[:, 58:] = np.rint(800 + 10 * noise[:, 6:])
    hu, one = set_into(bare_scan(volume), placed_at(volume, (11.0, 36.0, 31.0), 14.0))
    around, _, after = one.noise_hu
    assert around == pytest.approx(wanted, rel=0.15)
    assert after == pytest.approx(wanted, rel=0.25)


@pytest.mark.parametrize("blur", [0, 0.6, 1.0])
def test_added_noise_has_the_size_and_the_grain_of_what_is_around(blur):
    volume = lung(noise_hu=25, blur=blur)
    hu, everywhere = volume.hu, np.ones(volume.hu.shape, bool)
    around = noise_sd(hu, everywhere)
    noise = matching_noise(np.random.default_rng(1), hu, everywhere, around, 0.0)
    assert noise_sd(noise, everywhere) == pytest.approx(around, rel=0.06)

    def grain(values):  # of neighbours, their smooth part left out as there
        rough = values - gaussian_filter(values.astype(float), (0, 3, 3))
        return np.corrcoef(rough[:, :, 1:].ravel(), rough[:, :, :-1].ravel())[0, 1]

    assert grain(noise) == pytest.approx(grain(hu), abs=0.1)
    assert np.abs(noise.mean()) < 1
    half = matching_noise(np.random.default_rng(1), hu, everywhere, around, 0.8 * around)
    assert noise_sd(half, everywhere) == pytest.approx(0.6 * around, rel=0.06)


def test_a_vessel_does_not_shine_through():
    """It lies in one slice of 8 mm; a cube of 1 mm, interpolated between slices, holds three quarters of it."""
    volume = lung((8.0, 0.65, 0.65), noise_hu=10)
    volume.hu[11, 30:33, :] = 40
    hu, one = set_into(bare_scan(volume), placed_at(volume, (11.0, 31.0, 31.0), 16.0))
    vessel, beside = hu[11, 30:33, 25:38], hu[11, 35:38, 25:38]
    assert abs(vessel.mean() - beside.mean()) < 40 < (40 + 850) / 4


def test_no_noise_is_added_where_there_is_enough_or_where_nothing_is_known():
    hu = lung().hu
    for wanted, there in ((10, 10), (10, 12), (float("nan"), 3), (10, float("nan"))):
        assert not matching_noise(np.random.default_rng(0), hu, np.ones(hu.shape, bool), wanted, there).any()


def test_noise_follows_from_the_lesions_own_seed():
    volume = lung()
    first, again, other = (set_into(bare_scan(volume), placed_at(volume, (11.0, 31.0, 31.0), 14.0, stream))[0] for stream in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


# --- what a model may not draw ---


@pytest.mark.parametrize(
    ("draw", "cause"),
    [
        (lambda cubes, placed: ((cube, np.zeros(CUBE, bool)) for cube in cubes), "the model drew no lesion"),
        (lambda cubes, placed: ((cube, np.ones(CUBE, bool)) for cube in cubes), "the model drew no lesion"),
        (lambda cubes, placed: ((cube + 5, np.ones(CUBE, bool)) for cube in cubes), "reaches the border of its cube"),
    ],
)
def test_a_model_that_breaks_its_promise_is_one_line(draw, cause):
    volume = lung()
    with pytest.raises(ValueError, match=rf"^seed 0, lesion 1, 10\.0 mm: .*{cause}"):
        set_into(bare_scan(volume), placed_at(volume, (11.0, 31.0, 31.0)), draw)


def test_cubes_are_drawn_some_at_a_time_in_order():
    volume, sizes = lung(), []
    placed = [placed_at(volume, (11.0, 31.0, 20.0 + n / 5), 8.0 + n / 20) for n in range(70)]

    def counting(cubes, some):
        sizes.append(len(cubes))
        return balls(cubes, some)

    assert [one.placed for one in drawn(bare_scan(volume), placed, CUBE, ISOTROPIC, counting)] == placed
    assert sizes == [32, 32, 6]


def test_no_lung_is_no_scan():
    with pytest.raises(ValueError, match="no lung found"):
        scan_of(Volume(np.zeros((9, 20, 22), np.int16), (1.0, 1.0, 1.0), affine_of((1.0, 1.0, 1.0)), ""))
