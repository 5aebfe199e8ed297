"""Kept features are those of exactly these patches and this extractor, whatever happens to the files."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from evaluate import feature_cache as module
from evaluate.feature_cache import cached, feature_key
from evaluate.features import Extractor, radiomics
from evaluate.files import write_whole

WINDOW = (-1000.0, 400.0)


def patches(seed=0, n=6, shape=(8, 10)):
    return np.random.default_rng(seed).integers(-1000, 400, (n, *shape)).astype(np.int16)


class Counting:
    """An extractor of two features, and how often it computed."""

    def __init__(self, **changed):
        self.computed = 0
        self.extractor = replace(
            Extractor("mean and sd", "5ha", WINDOW, "none", False, ("mean", "sd"), self.compute, (0.7, 0.7)), **changed
        )

    def compute(self, hu):
        self.computed += 1
        flat = hu.reshape(len(hu), -1)
        return np.stack([flat.mean(1), flat.std(1)], axis=1)


def test_features_are_computed_once(tmp_path):
    one, warnings = Counting(), []
    extractor = cached(one.extractor, tmp_path / "new" / "cache", warnings.append)
    assert replace(extractor, compute=one.compute) == one.extractor
    first, again = extractor.compute(patches()), extractor.compute(patches().copy())
    assert (first == one.compute(patches())).all()
    assert (again == first).all()
    assert again.dtype == np.float64
    assert again.flags.writeable
    assert one.computed == 2  # once for the cache, once just now
    other_process = Counting()
    assert (cached(other_process.extractor, tmp_path / "new" / "cache").compute(patches()) == first).all()
    assert other_process.computed == 0
    assert not warnings


def test_radiomics_come_back_to_the_last_digit(tmp_path):
    extractor = radiomics((0.7, 0.8), WINDOW)
    kept = cached(extractor, tmp_path)
    assert (kept.compute(patches()) == extractor.compute(patches())).all()
    assert (kept.compute(patches()) == extractor.compute(patches())).all()
    assert feature_key(extractor, patches()) != feature_key(radiomics((0.7, 0.7), WINDOW), patches())


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "others"},
        {"weights_sha256": None},
        {"window": (-1000.0, 401.0)},
        {"resize": "bilinear to 299 x 299"},
        {"feature_names": ("mean", "spread")},
        {"spacing_mm": (0.7, 0.8)},
        {"spacing_mm": None},
    ],
)
def test_another_extractor_is_another_key(changed):
    assert feature_key(Counting().extractor, patches()) != feature_key(Counting(**changed).extractor, patches())


def test_other_patches_or_code_are_another_key(monkeypatch):
    extractor, hu = Counting().extractor, patches()
    one_voxel = hu.copy()
    one_voxel[3, 2, 1] += 1
    others = [one_voxel, hu[::-1], hu[:5], hu.reshape(6, 10, 8), hu.astype(np.int32), hu.view(np.uint16), hu[:0]]
    keys = {feature_key(extractor, other) for other in [hu, *others]}
    assert len(keys) == 8
    assert feature_key(extractor, np.asfortranarray(hu)) in keys  # how they lie in memory does not matter
    assert len({feature_key(extractor, other) for other in [hu, *others]} & keys) == 8
    monkeypatch.setattr(module, "_code_hash", lambda: "of newer code")
    assert feature_key(extractor, hu) not in keys


def damaged_files(whole):
    flipped = bytearray(whole)
    flipped[140] ^= 1
    return {"empty": b"", "cut": whole[:-1], "short": whole[:20], "flipped": bytes(flipped), "foreign": b"\x80\x04K\x01." * 30}


@pytest.mark.parametrize("how", ["empty", "cut", "short", "flipped", "foreign"])
def test_a_damaged_file_is_measured_again_and_replaced(tmp_path, how):
    one, warnings = Counting(), []
    extractor = cached(one.extractor, tmp_path, warnings.append)
    features = extractor.compute(patches())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damaged_files(whole)[how])
    assert (extractor.compute(patches()) == features).all()
    assert one.computed == 2
    assert len(warnings) == 1
    assert "measured again" in warnings[0]
    assert "\n" not in warnings[0]
    assert file.read_bytes() == whole
    assert (extractor.compute(patches()) == features).all()
    assert one.computed == 2


def test_a_whole_file_under_the_wrong_name_is_not_believed(tmp_path):
    one, warnings = Counting(), []
    extractor = cached(one.extractor, tmp_path, warnings.append)
    extractor.compute(patches(0))
    (file,) = tmp_path.iterdir()
    file.rename(tmp_path / f"{feature_key(one.extractor, patches(1))}.npy")
    assert (extractor.compute(patches(1)) == one.compute(patches(1))).all()
    assert len(warnings) == 1


def test_features_that_are_no_longer_features_are_not_believed(tmp_path):
    one, warnings = Counting(), []
    hu = patches()
    key = feature_key(one.extractor, hu)
    for wrong in (np.zeros((5, 2)), np.zeros((6, 2), np.float32), np.zeros(6)):
        (tmp_path / f"{key}.npy").write_bytes(module._with_digest(wrong, key))
        assert cached(one.extractor, tmp_path, warnings.append).compute(hu).any()
    assert len(warnings) == 3


def test_a_folder_that_takes_no_file_costs_only_time(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    one, warnings = Counting(), []
    monkeypatch.setattr(os, "fsync", full)
    features = cached(one.extractor, tmp_path, warnings.append).compute(patches())
    assert (features == one.compute(patches())).all()
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileExistsError):
        cached(Counting().extractor, tmp_path / "file")


def test_only_the_user_may_read_features(tmp_path):
    cached(Counting().extractor, tmp_path).compute(patches())
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.suffix == ".npy"
    assert (np.load(file, allow_pickle=False) == Counting().compute(patches())).all()


def test_many_writers_leave_one_whole_file(tmp_path):
    contents = [bytes([n]) * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_whole(tmp_path / "one", content) for _ in range(10)], contents))
    assert (tmp_path / "one").read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["one"]


def test_those_who_compute_the_same_at_one_time_share_one_file(tmp_path):
    def measure(_):
        return cached(Counting().extractor, tmp_path).compute(patches(2, 500))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(measure, range(12)))
    assert all((features == found[0]).all() for features in found)
    assert len(list(tmp_path.iterdir())) == 1
