"""Augmentation: what each change does follows from mathematics; the table makes every copy again, byte for byte."""

import csv
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, ScaleIntensityRange
from PIL import Image
from scipy import ndimage

from data.augment import SHARPEN_MM, AugmentConfig, Change, apply, draw
from data.augment_folder import CopyMaker, read_changes
from data.augment_transform import RandAugmentHU
from data.files import new_folder
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter

STILL = AugmentConfig(
    flip=False, turn=False, rotate_deg=0, zoom=(1, 1), crop=0, noise_hu=0, blur_mm=0, sharpen=0, hu_shift=0, hu_scale=0
)  # fmt: skip
SHAPES = st.sampled_from([(16, 16), (9, 14), (8, 8, 8), (5, 9, 7)])


def ct(shape=(16, 16), seed=0) -> np.ndarray:
    """int16 HU without any symmetry."""
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


def disc(radius: float, side=64) -> np.ndarray:
    """0 HU in air; a pixel that the edge crosses is partly filled."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return (1000 * np.clip(radius + 0.5 - np.hypot(y, x), 0, 1) - 1000).astype(np.int16)


@pytest.mark.parametrize("shape", [(16, 16), (5, 9, 9)])
def test_quarter_turns_and_flips_are_permutations(shape):
    hu = ct(shape)
    for turns in range(5):
        np.testing.assert_array_equal(apply(hu, Change(rotate_deg=90.0 * turns)), np.rot90(hu, turns, axes=(-2, -1)))
    every = tuple(range(hu.ndim))
    np.testing.assert_array_equal(apply(hu, Change(flip=every)), np.flip(hu))
    np.testing.assert_array_equal(apply(apply(hu, Change(flip=(1,))), Change(flip=(1,))), hu)
    np.testing.assert_array_equal(apply(hu, Change()), hu)


def test_a_small_turn_goes_the_same_way_as_a_quarter_turn():
    """Interpolated from 0 and from 90 degrees, 45 degrees must meet, inside the circle that no reflection reaches."""
    smooth = ndimage.gaussian_filter(ct((41, 41)).astype(float), 4)
    hu = ((smooth - smooth.mean()) / smooth.std() * 200 - 500).astype(np.int16)
    y, x = np.mgrid[:41, :41] - 20
    inside = np.hypot(y, x) < 19
    below, above = apply(hu, Change(rotate_deg=44.9)), apply(hu, Change(rotate_deg=45.1))
    assert np.abs(below.astype(int) - above)[inside].max() < 10
    reference = ndimage.rotate(hu.astype(float), 44.9, reshape=False, order=1)
    np.testing.assert_allclose(below[inside], reference[inside], atol=1)


def test_what_is_no_square_in_mm_is_turned_by_half_circles_and_turned_in_mm():
    hu = ct((9, 14))
    np.testing.assert_array_equal(apply(hu, Change(rotate_deg=180.0)), np.rot90(hu, 2))
    turns = {draw(np.random.default_rng(n), replace(STILL, turn=True), (16, 16), (1.0, 2.0)).rotate_deg for n in range(40)}
    assert turns == {0.0, 180.0}
    assert {draw(np.random.default_rng(n), replace(STILL, turn=True), (16, 16)).rotate_deg for n in range(40)} == {0.0, 90.0, 180.0, 270.0}
    # a bar of 24 mm along x has 24 mm along y after a quarter turn: 12 pixels of 2 mm, 24 of 1 mm
    bar = np.full((41, 41), -1000, np.int16)
    bar[:, 14:26] = 0
    bar[:19] = bar[22:] = -1000
    turned = apply(bar, Change(rotate_deg=90.0), (1.0, 2.0))
    assert abs((turned[:, 20] > -500).sum() - 24) <= 1


def test_zoom_stretches_a_ramp_and_a_disc():
    x = np.arange(33) - 16
    ramp = np.tile((x * 20 - 300).astype(np.int16), (33, 1))
    np.testing.assert_allclose(apply(ramp, Change(zoom=1.25))[16], x * 20 / 1.25 - 300, atol=0.5)
    area = [(apply(disc(14), Change(zoom=zoom)) / 1000 + 1).sum() for zoom in (1, 1.5, 0.75)]
    np.testing.assert_allclose(area, np.pi * 14**2 * np.array([1, 1.5**2, 0.75**2]), rtol=0.01)


def test_a_crop_is_a_zoom_beside_the_centre():
    x = np.arange(33) - 16
    ramp = np.tile((x * 20 - 300).astype(np.int16), (33, 1))
    low_end = Change(crop=0.2, crop_position=(0.0, -1.0))
    assert low_end.magnification == pytest.approx(1.25)
    # the crop begins at the patch's very edge, half a pixel before its first centre
    np.testing.assert_allclose(apply(ramp, low_end)[16][1:], ((x[1:] + 16.5) * 0.8 - 16.5) * 20 - 300, atol=0.5)
    whole = apply(ct((5, 9, 9)), Change(crop=0.3, zoom=0.7, crop_position=(0.0, 0.0, 0.0)))
    np.testing.assert_array_equal(whole, ct((5, 9, 9)))


def test_a_turned_border_is_reflected_not_black():
    assert (apply(np.full((16, 16), 40, np.int16), Change(rotate_deg=45.0, zoom=0.7)) == 40).all()


@pytest.mark.parametrize("spacing", [None, (2.0, 0.7, 0.7)])
def test_blur_is_scipys_and_keeps_the_mean(spacing):
    hu = ct((12, 16, 16))
    sigma = 0.6 / np.array(spacing or (1, 1, 1))
    blurred = apply(hu, Change(blur_mm=0.6), spacing)
    reference = ndimage.gaussian_filter(hu.astype(float), sigma)
    np.testing.assert_allclose(blurred, reference, atol=0.501)
    assert blurred.mean() == pytest.approx(hu.mean(), abs=0.1)
    sharp = apply(hu // 4, Change(sharpen=0.5), spacing)
    detail = hu // 4 - ndimage.gaussian_filter((hu // 4).astype(float), SHARPEN_MM / np.array(spacing or (1, 1, 1)))
    np.testing.assert_allclose(sharp, hu // 4 + 0.5 * detail, atol=0.501)


def test_noise_has_its_deviation_and_its_seed():
    flat = np.full((64, 64), -800, np.int16)
    noisy = apply(flat, Change(noise_hu=20.0, noise_seed=1))
    assert noisy.std() == pytest.approx(20, abs=0.1)
    assert abs(noisy.mean() + 800) < 2
    assert np.corrcoef(noisy[:, :-1].ravel(), noisy[:, 1:].ravel())[0, 1] > 0.2, "a reconstruction kernel gives noise a grain"
    assert not np.array_equal(noisy, apply(flat, Change(noise_hu=20.0, noise_seed=2)))


def test_shift_and_scale_are_exact_and_end_where_ct_ends():
    hu = np.array([[-1000, 0], [50, 3000]], np.int16)
    np.testing.assert_array_equal(apply(hu, Change(hu_scale=1.02, hu_shift=-10.0)), [[-1024, -10], [41, 3050]])
    np.testing.assert_array_equal(apply(hu, Change(hu_shift=100.0)), [[-900, 100], [150, 3071]])
    wide = np.array([[-2000, 0], [50, 9000]], np.int16)
    np.testing.assert_array_equal(apply(wide, Change(hu_shift=-30.0)), [[-2000, -30], [20, 8970]])


@given(SHAPES, st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_change_keeps_shape_and_type_and_geometry_invents_no_hu(shape, seed, known_spacing):
    hu, spacing = ct(shape, seed), (2.0, 0.8, 0.8)[-len(shape) :] if known_spacing else None
    change = draw(np.random.default_rng(seed), AugmentConfig(rotate_deg=180, zoom=(0.6, 1.8), crop=0.4), shape, spacing)
    moved = apply(hu, replace(change, blur_mm=0.0, sharpen=0.0, noise_hu=0.0, hu_scale=1.0, hu_shift=0.0), spacing)
    assert hu.min() <= moved.min() <= moved.max() <= hu.max()
    changed = apply(hu, change, spacing)
    assert (changed.shape, changed.dtype) == (shape, np.int16)
    assert changed.min() >= -1024
    assert apply(hu, change, spacing).tobytes() == changed.tobytes()


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_draws_stay_in_their_ranges(seed):
    config = AugmentConfig()
    change = draw(np.random.default_rng(seed), config, (16, 16))
    assert abs((change.rotate_deg + 45) % 90 - 45) <= config.rotate_deg + 1e-9
    assert config.zoom[0] <= change.zoom <= config.zoom[1]
    assert 0 <= change.crop <= config.crop
    assert 0 <= change.noise_hu <= config.noise_hu
    assert (change.blur_mm == 0) != (change.sharpen == 0)
    assert change.blur_mm <= config.blur_mm
    assert change.sharpen <= config.sharpen
    assert abs(change.hu_shift) <= config.hu_shift
    assert abs(change.hu_scale - 1) <= config.hu_scale + 1e-9
    assert draw(np.random.default_rng(seed), STILL, (16, 16)) == Change()


def test_a_patch_that_is_none_is_refused():
    with pytest.raises(ValueError, match="int16 patch"):
        apply(np.zeros((4, 4)), Change())
    with pytest.raises(ValueError, match="2 dimensions cannot have the flip"):
        apply(ct(), Change(flip=(2,)))


def test_on_the_fly_values_between_whole_hu_go_to_the_nearest():
    values = np.array([[[-0.6, -0.4, 0.4, 0.6], [10.6, -999.7, 399.5, 3.0]]], np.float32)
    np.testing.assert_array_equal(RandAugmentHU(prob=0.0)(values), np.rint(values))


@pytest.mark.parametrize("shape", [(16, 16), (5, 9, 9)])
def test_on_the_fly_equals_the_recorded_change(shape):
    augment = RandAugmentHU(AugmentConfig(), spacing_mm=(1.0,) * len(shape), prob=0.7)
    pipeline = Compose([augment, ScaleIntensityRange(-1000, 400, -1, 1)])
    pipeline.set_random_state(3)
    seen = []
    for n in range(8):
        hu = ct(shape, n)
        out = pipeline(torch.from_numpy(hu.astype(np.float32))[None])
        assert out.dtype == torch.float32
        np.testing.assert_allclose(np.asarray(out)[0], (apply(hu, augment.change, (1.0,) * len(shape)) + 1000) / 700 - 1, atol=1e-5)
        seen.append(augment.change)
    assert Change() in seen, "prob leaves some as they were"
    assert len(set(seen)) > 4
    pipeline.set_random_state(3)
    first = augment(ct(shape)[None].astype(np.float32))
    assert isinstance(first, np.ndarray)
    assert first.dtype == np.float32
    assert augment.change == pickle.loads(pickle.dumps(augment)).change
    np.testing.assert_array_equal(augment(ct(shape)[None], randomize=False), first)
    with pytest.raises(ValueError, match="one channel first"):
        augment(ct(shape))


# ---- the command ----


@pytest.fixture
def patches(tmp_path) -> Path:
    """patches: 12 of 4 patients, two of them for training, two classes."""
    spec = PatchSpec(
        (16, 16), (0.8, 0.8), (-1000.0, 400.0), ("nodule", "lung"), background="lung", licence="CC BY 3.0", patients_known=False
    )
    with new_folder(tmp_path / "patches") as folder:
        writer = PatchWriter(folder, spec)
        for n in range(12):
            label, split = ("nodule", "lung")[n % 2], ("train", "train", "validation", "test")[n // 3]
            diameter = None if n % 2 else 6.0
            writer.add(Patch(ct(seed=n), f"p{n // 3}", f"s{n // 3}", label, diameter, (1.0, 2.0, n), split=split, padded=0.25 * (n == 0)))
        writer.finish()
        (folder / "series.csv").write_text("series\n")
    return tmp_path / "patches"


def test_the_command_copies_training_patches_and_tells_how(command, patches):
    done = command("data", "augment", "patches", "--factor", 3, "--out", "out", "--seed", 5)
    assert done.code == 0, done.err
    assert "12 patches as they were and 12 changed copies" in done.out
    assert "next: python -m train --data out" in done.out
    source, folder = PatchFolder.open(patches), PatchFolder.open("out")
    folder.verify()
    assert folder.spec == source.spec
    assert Path("out/series.csv").read_text() == "series\n"
    of_id = {row.id: n for n, row in enumerate(folder.rows)}
    for n, row in enumerate(source.rows):
        place = of_id[row.id]
        assert folder.rows[place][:8] == row[:8]
        np.testing.assert_array_equal(folder.hu([place]), source.hu([n]))
    changes = read_changes(Path("out/augmentation.csv"))
    assert set(of_id) == {row.id for row in source.rows} | set(changes)
    assert set(changes) == {f"{n:06d}-a{copy}" for n in range(6) for copy in (1, 2)}
    for name, (source_id, change) in changes.items():
        (original,), (copy,) = folder.hu([of_id[source_id]]), folder.hu([of_id[name]])
        assert apply(original, change, folder.spacing_mm).tobytes() == copy.tobytes()
        assert not np.array_equal(original, copy)
        was, row = folder.rows[of_id[source_id]], folder.rows[of_id[name]]
        assert row[1:4] + row[5:8] == was[1:4] + was[5:8]
        assert row.split == "train"
        if was.diameter_mm:
            assert row.diameter_mm == pytest.approx(was.diameter_mm * change.magnification, abs=0.005)
    with Image.open("out/augmentation.png") as picture:
        assert picture.size == (3 * 17 * 8, 6 * 17 * 8)
    assert Path("out/preview.png").exists()


def test_copies_depend_on_the_seed_only(command, patches):
    arguments = ["data", "augment", "patches", "--classes", "nodule", "--out"]
    for out, more in {"a": (3,), "b": (3,), "five": (5,), "other": (3, "--seed", 1)}.items():
        done = command(*arguments, out, "--factor", *more)
        assert done.code == 0, done.err
    a, b, five, other = (PatchFolder.open(out) for out in ("a", "b", "five", "other"))
    assert a.content_hash == b.content_hash != other.content_hash
    assert {row.label for row in a.rows if "-a" in row.id} == {"nodule"}
    assert sum("-a" in row.id for row in a.rows) == 2 * 3
    place = {row.id: n for n, row in enumerate(five.rows)}
    np.testing.assert_array_equal(a.hu(range(len(a))), five.hu([place[row.id] for row in a.rows]))
    maker = pickle.loads(pickle.dumps(CopyMaker(patches, PatchFolder.open(patches).content_hash, AugmentConfig(), 2, 0, alone=False)))
    place = {row.id: n for n, row in enumerate(a.rows)}
    for index in (4, 0, 2):  # in any order, as other processes take them
        copies = np.stack([hu for hu, _ in maker(index)])
        np.testing.assert_array_equal(copies, a.hu([place[f"{index:06d}-a1"], place[f"{index:06d}-a2"]]))


@pytest.mark.slow
def test_two_processes_make_the_same_folder(command, patches):
    for processes in (1, 2):
        assert command("data", "augment", "patches", "--out", f"by-{processes}", "--processes", processes).code == 0
    assert PatchFolder.open("by-1").content_hash == PatchFolder.open("by-2").content_hash


def test_every_option_sets_the_change_of_its_name(command, patches, monkeypatch):
    found = []

    def caught(_source, _folder, config, *_rest):
        found.append(config)
        raise ValueError("enough")

    monkeypatch.setattr("data.augment_folder.augment_folder", caught)
    given = {"rotate_deg": 3.0, "crop": 0.01, "noise_hu": 4.0, "blur_mm": 0.2, "sharpen": 0.3, "hu_shift": 5.0, "hu_scale": 0.02}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    done = command("data", "augment", "patches", "--out", "out", "--no-turn", "--zoom", "0.9,1.2", *options)
    assert (done.code, done.err) == (2, "error: enough\n")
    assert found == [AugmentConfig(turn=False, zoom=(0.9, 1.2), **given)]


def test_options_reach_the_changes(command, patches):
    still = [f"--{name}=0" for name in ("rotate-deg", "crop", "noise-hu", "blur-mm", "sharpen", "hu-scale")]
    done = command("data", "augment", "patches", "--out", "out", "--no-flip", "--no-turn", "--zoom", "1,1", "--hu-shift", 30, *still)
    assert done.code == 0, done.err
    with open("out/augmentation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(abs(float(row["hu_shift"])) <= 30 for row in rows)
    assert len({row["hu_shift"] for row in rows}) == len(rows)
    assert {change for _, change in read_changes(Path("out/augmentation.csv")).values()} == {
        Change(hu_shift=float(row["hu_shift"])) for row in rows
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--factor", 1], "factor of 2 or more, got 1"),
        (["--classes", "nodule,cyst"], "no class 'cyst' in it, only nodule, lung"),
        (["--zoom", "1.2,0.9"], "low <= high"),
        (["--zoom", "big"], "zoom 'big'"),
        (["--crop", 0.9], "crop from 0 to 0.5, got 0.9"),
        (["--noise-hu", -1], "noise_hu from 0"),
        (["--hu-scale", 0.6], "hu_scale from 0 to 0.5"),
        (["--hu-shift", "nan"], "--hu_shift nan: want a number"),
        (["--seed", -1], "--seed >= 0"),
        (["--out", "patches"], "exists already"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(command, patches, arguments, told):
    done = command("data", "augment", "patches", *(["--out", "out"] if "--out" not in arguments else []), *arguments)
    assert done.code == 2
    assert told in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["patches"]


@pytest.mark.parametrize(
    ("spec", "split", "told"),
    [
        ({"origin": "synthetic"}, "synthetic", "holds synthetic patches"),
        ({"unit": "gray"}, "train", "holds gray levels, not HU"),
        ({}, "test", "no training patch of nodule"),
    ],
)
def test_a_folder_that_should_not_be_augmented_is_refused(command, tmp_path, spec, split, told):
    with new_folder(tmp_path / "patches") as folder:
        writer = PatchWriter(folder, PatchSpec((16, 16), None, (-1000.0, 400.0), ("nodule",), **spec))
        writer.add(Patch(ct(), "p", "s", "nodule", split=split))
        writer.finish()
    done = command("data", "augment", "patches", "--out", "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert told in done.err
    assert not Path("out").exists()


def test_gray_levels_can_still_be_moved_but_nothing_is_augmented_twice(command, tmp_path):
    with new_folder(tmp_path / "gray") as folder:
        writer = PatchWriter(folder, PatchSpec((16, 16), None, (0.0, 255.0), ("a",), unit="gray"))
        writer.add(Patch(ct() % np.int16(256), "p", "s", "a", split="train"))
        writer.finish()
    still = [f"--{name}=0" for name in ("noise-hu", "blur-mm", "sharpen", "hu-shift", "hu-scale")]
    assert command("data", "augment", "gray", "--out", "out", *still).code == 0
    hu = PatchFolder.open("out").hu([1, 2])
    assert hu.min() >= 0
    assert hu.max() <= 255
    again = command("data", "augment", "out", "--out", "again", *still)
    assert again.code == 2
    assert "augmented already (augmentation.csv)" in again.err


def test_a_damaged_table_of_changes_is_named(command, patches):
    assert command("data", "augment", "patches", "--out", "out", "--factor", 2).code == 0
    table = Path("out/augmentation.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], lines[2].rsplit(",", 1)[0] + ",x", *lines[3:]]))
    with pytest.raises(ValueError, match=r"augmentation\.csv: line 3"):
        read_changes(table)
