"""Animations and strips: what a viewer decodes is every gray level of every frame."""

import numpy as np
import pytest
from PIL import Image

from data.animation import SIDE, write_animation, write_strips
from data.export import preview, write_preview

WINDOW = (-1000.0, 400.0)


def patches(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1100, 500, shape).astype(np.int16)


def decoded(file) -> tuple[np.ndarray, set, int]:
    """(frames, height, width) of gray levels, how long frames stay in ms, how often they are shown (0 for ever)."""
    frames, times = [], set()
    with Image.open(file) as picture:
        for n in range(picture.n_frames):
            picture.seek(n)
            rgb = np.asarray(picture.convert("RGB"))
            assert (rgb == rgb[..., :1]).all()
            frames.append(rgb[..., 0])
            times.add(picture.info["duration"])
        return np.stack(frames), times, picture.info["loop"]


@pytest.mark.parametrize("suffix", [".gif", ".png"])
@pytest.mark.parametrize("shape", [(5, 6, 32, 32), (4, 1, 48, 32), (3, 3, 16, 32, 32)])
def test_every_gray_level_of_every_frame_comes_back(tmp_path, suffix, shape):
    hu, file = patches(*shape), tmp_path / f"walk{suffix}"
    spacing = (2.5, 0.7, 0.8)[-(len(shape) - 2) :]
    write_animation(hu, WINDOW, file, spacing, frame_ms=70)
    found, times, loop = decoded(file)
    zoom, columns = (SIDE // 32 if shape[2] == 32 else 2, 4) if len(shape) == 4 else (1, None)
    np.testing.assert_array_equal(found, [preview(frame, WINDOW, spacing, columns=columns, zoom=zoom) for frame in hu])
    assert len(np.unique(found)) > 200
    assert (times, loop) == ({70}, 0)
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("suffix", [".gif", ".png"])
@pytest.mark.parametrize("seed", range(12))
def test_small_changes_and_missing_levels_come_back_too(tmp_path, suffix, seed):
    """Writers store only what changed, and may store only the levels that occur: neither may move a level."""
    rng = np.random.default_rng(seed)
    gray = rng.integers(0, rng.choice([3, 100, 200, 256]), (4, 1, 96, 96))
    gray[1:, :, : rng.integers(1, 95)] = gray[:1, :, :1]
    gray[2:][gray[2:] == gray.max() - 5] = 1
    gray[3, :, 50:52, 60] += 1
    gray[3, 0, 95, 95] = 0
    write_animation((gray - 128).astype(np.int16), (-128, 127), tmp_path / f"few{suffix}", (1, 1))
    np.testing.assert_array_equal(decoded(tmp_path / f"few{suffix}")[0][:, :96, :96], np.clip(gray[:, 0], 0, 255))


def test_frames_may_come_one_by_one(tmp_path):
    hu = patches(4, 2, 32, 32)
    write_animation(hu, WINDOW, tmp_path / "whole.gif")
    write_animation(iter(hu), WINDOW, tmp_path / "streamed.gif")
    assert (tmp_path / "whole.gif").read_bytes() == (tmp_path / "streamed.gif").read_bytes()


def test_a_failure_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    file = tmp_path / "walk.gif"
    write_animation(patches(3, 2, 32, 32), WINDOW, file)
    before = file.read_bytes()

    def save(self, out, **settings):
        out.write(b"half")
        raise OSError("no more")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="no more"):
        write_animation(patches(3, 2, 32, 32, seed=1), WINDOW, file)
    assert file.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


def test_what_is_no_animation_is_refused(tmp_path):
    hu = patches(3, 2, 32, 32)
    for arguments, words in [
        ((hu, WINDOW, tmp_path / "walk.mp4"), "a .gif or .png file"),
        ((hu[:0], WINDOW, tmp_path / "walk.gif"), "no frames"),
    ]:
        with pytest.raises(ValueError, match=words):
            write_animation(*arguments)
    for frame_ms in (0, 10, 85):
        with pytest.raises(ValueError, match="steps of 10"):
            write_animation(hu, WINDOW, tmp_path / "walk.gif", frame_ms=frame_ms)
    assert not list(tmp_path.iterdir())


def test_strips_are_rows(tmp_path):
    hu = patches(3, 5, 96, 96)
    write_strips(hu, WINDOW, tmp_path / "strips.png")
    with Image.open(tmp_path / "strips.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (3 * 97, 5 * 97)
    tile = shown[97 : 97 + 96, 4 * 97 : 4 * 97 + 96]
    np.testing.assert_allclose(tile, (np.clip(hu[1, 4], *WINDOW) + 1000) / 1400 * 255, atol=0.501)


def test_strips_have_names_and_3d_ones_their_axial_plane(tmp_path):
    hu = patches(2, 6, 16, 32, 32)
    write_strips(hu, WINDOW, tmp_path / "cubes.png", (2.5, 0.7, 0.8), ["7 to 8", "8 to 9"])
    write_preview(
        hu[:, :, 8].reshape(12, 32, 32), WINDOW, tmp_path / "planes.png", (0.7, 0.8), ["7 to 8"] * 6 + ["8 to 9"] * 6, columns=6, zoom=3
    )
    assert (tmp_path / "cubes.png").read_bytes() == (tmp_path / "planes.png").read_bytes()
    with pytest.raises(ValueError, match="1 names for 2 strips"):
        write_strips(hu, WINDOW, tmp_path / "cubes.png", None, ["7 to 8"])
