"""The patch folder: what goes in comes out, patients stay in one split, damage is noticed, nothing is half-written."""

import errno
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import patches as patches_module
from data.files import new_file, new_folder
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter, WindowedPatches, split_by_patient
from data.pseudonyms import Pseudonyms, read_or_make_key

SPEC = PatchSpec(shape=(4, 5), spacing_mm=(1.0, 1.0), window=(-1000.0, 400.0), classes=("nodule", "background"), background="background")


def hu(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-1000, 400, (4, 5)).astype(np.int16)


def write(path, count=10, spec=SPEC):
    with new_folder(path) as folder:
        writer = PatchWriter(folder, spec)
        for n in range(count):
            label = spec.classes[n % len(spec.classes)]
            writer.add(Patch(hu(n), f"p{n // 2}", f"s{n}", label, 5.5 if n % 2 else None, (1.0, -2.5, n) if n % 3 else None))
        writer.finish(split_by_patient({f"p{n // 2}" for n in range(count)}))
    return PatchFolder.open(path)


def test_reads_back_across_shards_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(patches_module, "SHARD_ROWS", 3)
    folder = write(tmp_path / "p")
    assert len(list((tmp_path / "p" / "shards").iterdir())) == 4
    order = [7, 0, 9, 3, 3]
    np.testing.assert_array_equal(folder.hu(order), np.stack([hu(n) for n in order]))
    row = folder.rows[7]
    assert (row.patient, row.series, row.label, row.diameter_mm, row.center_mm) == ("p3", "s7", "background", 5.5, (1.0, -2.5, 7.0))
    assert folder.rows[0].center_mm is None
    assert folder.spec == SPEC
    folder.verify()


def test_windowed_patches_are_what_networks_take(tmp_path):
    folder = write(tmp_path / "p")
    chosen = folder.select(classes=folder.lesion_classes)
    assert [folder.rows[n].label for n in chosen] == ["nodule"] * 5
    x = WindowedPatches(folder, chosen)[np.array([4, 1])]
    assert x.shape == (2, 1, 4, 5)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, 0], (hu(8) + 1000) / 700 - 1, atol=1e-6)


@given(st.sets(st.text(min_size=1), min_size=1, max_size=40), st.integers(0, 5))
def test_splits_are_whole_patients_in_the_asked_shares(patients, seed):
    splits = split_by_patient(sorted(patients), seed, validation=0.2, test=0.3)
    assert splits == split_by_patient(sorted(patients, reverse=True), seed, validation=0.2, test=0.3)
    assert set(splits) == patients
    if len(patients) > 20:
        assert len({tuple(split_by_patient(patients, other).items()) for other in range(4)}) > 1
    counts = {s: list(splits.values()).count(s) for s in ("train", "validation", "test")}
    assert counts["train"] >= 1
    if len(patients) >= 3:
        assert abs(counts["test"] - 0.3 * len(patients)) <= 1
        assert counts["validation"] >= 1


def test_fractions_that_leave_no_training_patient_are_refused():
    with pytest.raises(ValueError, match="leave some for training"):
        split_by_patient(["a"], validation=0.5, test=0.5)


def test_same_content_same_hash_and_any_change_is_noticed(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert a.content_hash == b.content_hash
    shard = tmp_path / "b" / "shards" / "00000.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its hash"):
        PatchFolder.open(tmp_path / "b").verify()


def spoil_json(folder):
    (folder / "dataset.json").write_text("{")


def spoil_version(folder):
    meta = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**meta, "version": 99}))


def spoil_field(folder):
    meta = json.loads((folder / "dataset.json").read_text())
    del meta["window"]
    (folder / "dataset.json").write_text(json.dumps(meta))


def spoil_table(folder):
    table = folder / "patches.csv"
    table.write_text(table.read_text().replace("nodule", "unheard-of"))


def spoil_shard(folder):
    shard = folder / "shards" / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:-20])


def spoil_pickle(folder):
    np.save(folder / "shards" / "00000.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("spoil", [spoil_json, spoil_version, spoil_field, spoil_table, spoil_shard, spoil_pickle])
def test_damaged_folders_are_refused_by_name(tmp_path, spoil):
    write(tmp_path / "p")
    spoil(tmp_path / "p")
    with pytest.raises(ValueError, match=str(tmp_path / "p")):
        PatchFolder.open(tmp_path / "p")


def test_not_a_patch_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such patch folder"):
        PatchFolder.open(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="not a patch folder"):
        PatchFolder.open(tmp_path)


@pytest.mark.parametrize("name", ["=cmd()", "../up", "a,b", "", "-x", "ä", "x" * 41])
def test_class_names_unfit_for_a_table_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="class name"):
        PatchWriter(tmp_path, PatchSpec(shape=(4, 5), spacing_mm=None, window=(-1000, 400), classes=(name,)))


def test_a_failed_folder_leaves_nothing_and_an_existing_one_is_kept(tmp_path):
    def fill_disk():
        with new_folder(tmp_path / "p") as folder:
            (folder / "half").write_text("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="the disk is full; nothing was kept"):
        fill_disk()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "p"):
        pass
    with pytest.raises(FileExistsError, match="exists already"), new_file(tmp_path / "p" / "mine"):
        pass
    assert (tmp_path / "p" / "mine").read_text() == "keep"


def test_pseudonyms_need_the_key_and_the_key_is_private(tmp_path):
    a = Pseudonyms(read_or_make_key(tmp_path / "a.key"))
    again = Pseudonyms(read_or_make_key(tmp_path / "a.key"))
    other = Pseudonyms(read_or_make_key(tmp_path / "b.key"))
    assert a.patient("Jane") == again.patient("Jane") != other.patient("Jane")
    assert a.patient("x")[2:] != a.series("x")[2:]
    assert (tmp_path / "a.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="16"):
        Pseudonyms(b"short")
