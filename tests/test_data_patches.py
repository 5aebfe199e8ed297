"""The patch folder: what goes in comes out, patients stay in one split, damage is noticed, nothing is half-written."""

import dataclasses
import errno
import gc
import json
import os
import tracemalloc
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import patch_table
from data import patches as patches_module
from data.files import new_file, new_folder, whole_file
from data.patch_table import PatchRow
from data.patches import SPLITS, Patch, PatchFolder, PatchSpec, PatchWriter, WindowedPatches, split_by_patient
from data.pseudonyms import Pseudonyms, read_or_make_key

SPEC = PatchSpec(shape=(4, 5), spacing_mm=(1.0, 1.0), window=(-1000.0, 400.0), classes=("nodule", "background"), background="background")


def hu(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(-1000, 400, (4, 5)).astype(np.int16)


def write(path, count=10, spec=SPEC):
    splits = split_by_patient({f"p{n // 2}" for n in range(count)})
    with new_folder(path) as folder:
        writer = PatchWriter(folder, spec)
        for n in range(count):
            label, patient, centre = spec.classes[n % len(spec.classes)], f"p{n // 2}", (1.0, -2.5, n) if n % 3 else None
            writer.add(Patch(hu(n), patient, f"s{n}", label, 5.43 if n % 2 else None, centre, splits[patient], padded=n / 1000))
        writer.finish()
    return PatchFolder.open(path)


def test_reads_back_across_shards_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(patches_module, "SHARD_ROWS", 3)
    monkeypatch.setattr(patches_module, "OPEN_SHARDS", 2)
    folder = write(tmp_path / "p")
    assert len(list((tmp_path / "p" / "shards").iterdir())) == 4
    for order in ([7, 0, 9, 3, 3], range(10), [], [-1]):
        np.testing.assert_array_equal(folder.hu(order), np.stack([hu(n % 10) for n in order]) if len(order) else np.empty((0, 4, 5)))
    assert folder.spec == SPEC
    folder.verify()


def test_every_row_reads_back_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(patches_module, "SHARD_ROWS", 3)
    monkeypatch.setattr(patch_table, "_ROWS_AT_ONCE", 4)
    rows, splits = write(tmp_path / "p").rows, split_by_patient({f"p{n}" for n in range(5)})
    expected = [
        PatchRow(
            f"{n:06d}", f"p{n // 2}", f"s{n}", SPEC.classes[n % 2], 5.43 if n % 2 else None,
            (1.0, -2.5, float(n)) if n % 3 else None, n / 1000, splits[f"p{n // 2}"], n // 3, n % 3,
        )
        for n in range(10)
    ]  # fmt: skip
    assert list(rows) == [rows[n] for n in range(10)] == [rows[n - 10] for n in range(10)] == expected
    assert [type(value) for value in rows[1]] == [type(value) for value in expected[1]]
    for name in ("id", "patient", "series", "label", "split"):
        assert rows.names(name, np.array([8, 2])).tolist() == [getattr(expected[8], name), getattr(expected[2], name)]
    with pytest.raises(IndexError):
        rows[10]
    lines = (tmp_path / "p" / "patches.csv").read_text().splitlines()
    assert lines[1].split(",")[4:9] == ["", "", "", "", "0"]
    assert lines[2].split(",")[4:9] == ["5.43", "1.000", "-2.500", "1.000", "0.001"]


def test_select_is_the_plain_loop(tmp_path):
    folder = write(tmp_path / "p", 30)
    for splits in (SPLITS, ["train"], ["test", "validation"], ["synthetic"], ["no such split"]):
        for classes in (None, ["nodule"], ["background", "unheard-of"], []):
            wanted = SPEC.classes if classes is None else classes
            expected = [n for n, row in enumerate(folder.rows) if row.split in splits and row.label in wanted]
            chosen = folder.select(splits=iter(splits), classes=classes)
            assert (chosen.tolist(), chosen.dtype) == (expected, np.int64)


def test_a_shard_holds_at_most_its_bytes_and_at_least_one_patch(tmp_path, monkeypatch):
    monkeypatch.setattr(patches_module, "SHARD_BYTES", 90)  # two patches of 40 bytes
    assert np.bincount([row.shard for row in write(tmp_path / "p", 5).rows]).tolist() == [2, 2, 1]
    monkeypatch.setattr(patches_module, "SHARD_BYTES", 1)
    assert np.bincount([row.shard for row in write(tmp_path / "q", 3).rows]).tolist() == [1, 1, 1]


def grown(step, first, then):
    """Bytes gained by `then` steps after `first` ones."""
    for _ in range(first):
        step()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(then):
        step()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_writing_and_reading_take_no_more_memory_or_files_for_more_patches(tmp_path, monkeypatch):
    monkeypatch.setattr(patches_module, "SHARD_ROWS", 50)
    monkeypatch.setattr(patches_module, "OPEN_SHARDS", 3)
    monkeypatch.setattr(patch_table, "_ROWS_AT_ONCE", 50)
    writer, pixels, draws = PatchWriter(tmp_path, SPEC), hu(0), np.random.default_rng(0)
    tracemalloc.start()
    try:
        assert grown(lambda: writer.add(Patch(pixels, "p0", "s0", "nodule", split="train")), 60, 2000) < 20_000
        assert grown(lambda: writer.add(Patch(pixels, f"p{draws.random()}", "s", "nodule", split="synthetic")), 1, 2000) < 20_000
        writer.finish()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[1]
        folder = PatchFolder.open(tmp_path)
        assert tracemalloc.get_traced_memory()[1] - before < 250 * len(folder)  # on the way; what stays is less
        assert grown(lambda: folder.hu(draws.integers(len(folder), size=8)), 5, 100) < 20_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts the mapped files as Linux tells them")
def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(patches_module, "SHARD_ROWS", 1)
    monkeypatch.setattr(patches_module, "OPEN_SHARDS", 3)
    folder = write(tmp_path / "p", 20)
    for n in range(20):
        folder.hu([n])
        assert Path("/proc/self/maps").read_text().count(str(tmp_path)) == min(n + 1, 3)


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


@pytest.mark.parametrize("patients", ["abc", "abcdefghij"])
def test_no_split_that_was_asked_for_is_empty_however_small_its_share(patients):
    assert set(split_by_patient(patients, validation=0.01, test=0.01).values()) == {"train", "validation", "test"}
    assert set(split_by_patient(patients, validation=0, test=0).values()) == {"train"}


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


def spoil_deep_json(folder):
    (folder / "dataset.json").write_text("[" * 100_000)


def spoil_version(folder):
    meta = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**meta, "version": 99}))


def spoil_old(folder):
    meta = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**meta, "version": 1}))


def spoil_field(folder):
    meta = json.loads((folder / "dataset.json").read_text())
    del meta["window"]
    (folder / "dataset.json").write_text(json.dumps(meta))


def spoil_shard(folder):
    shard = folder / "shards" / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:-20])


def spoil_pickle(folder):
    np.save(folder / "shards" / "00000.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("spoil", [spoil_json, spoil_deep_json, spoil_version, spoil_field, spoil_shard, spoil_pickle])
def test_damaged_folders_are_refused_by_name(tmp_path, spoil):
    write(tmp_path / "p")
    spoil(tmp_path / "p")
    with pytest.raises(ValueError, match=str(tmp_path / "p")):
        PatchFolder.open(tmp_path / "p")


def test_a_folder_made_before_licences_were_recorded_opens_with_the_same_hash(tmp_path):
    stated = dataclasses.replace(SPEC, licence="CC BY 3.0", patients_known=False)
    new, plain = write(tmp_path / "new", spec=stated), write(tmp_path / "plain")
    assert (new.spec, new.content_hash) == (stated, plain.content_hash)
    described = tmp_path / "new" / "dataset.json"
    meta = json.loads(described.read_text())
    assert (meta.pop("licence"), meta.pop("patients_known")) == ("CC BY 3.0", False)
    described.write_text(json.dumps(meta))
    old = PatchFolder.open(tmp_path / "new")
    old.verify()
    assert old.spec == SPEC
    for fact in ({"licence": None}, {"licence": "two\nlines"}, {"patients_known": "false"}):
        described.write_text(json.dumps({**meta, **fact}))
        with pytest.raises(ValueError, match=f"dataset.json: .*{next(iter(fact))}"):
            PatchFolder.open(tmp_path / "new")


@pytest.mark.parametrize("licence", ["two\nlines", "x" * 201, "right \u202e left"])
def test_a_licence_is_one_short_line(tmp_path, licence):
    with pytest.raises(ValueError, match="want one line of at most 200"):
        PatchWriter(tmp_path, dataclasses.replace(SPEC, licence=licence))


def test_a_folder_of_the_first_version_is_to_be_made_again(tmp_path):
    write(tmp_path / "p")
    spoil_old(tmp_path / "p")
    with pytest.raises(ValueError, match="p: this patch folder was made by an older version; prepare it again"):
        PatchFolder.open(tmp_path / "p")


LINE_8 = "000006,p3,s6,nodule,,,,,0.006,{split},0,6"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("000006,p3,s6,unheard-of,,,,,0,{split},0,6", "line 8: unknown split, class or place"),
        ("000006,p3,s6,nodule,,,,,0,tests,0,6", "line 8: unknown split, class or place"),
        ("000006,p3,s6,nodule,,,,,0,{split},-1,6", "line 8: unknown split, class or place"),
        ("000006,p3,s6,nodule,,,,,0,{split},0,six", "line 8: unknown split, class or place"),
        (f"000006,p3,s6,nodule,,,,,0,{{split}},0,{1 << 31}", "line 8: unknown split, class or place"),
        (f"000006,p3,s6,nodule,,,,,0,{{split}},{1 << 70},0", "line 8: unknown split, class or place"),
        ("000006,p3,s6,nodule,,,,,0,{split},0,10", "patch 10 of shard 0 is missing"),
        ("000006,p3,s6,nodule,wide,,,,0,{split},0,6", "line 8: could not convert string to float: 'wide'"),
        ("000006,p3,s6,nodule,nan,,,,0,{split},0,6", "line 8: diameter_mm must be a number"),
        ("000006,p3,s6,nodule,,1,2,1e999,0,{split},0,6", "line 8: center_z_mm must be a number"),
        ("000006,p3,s6,nodule,,1,2,,0,{split},0,6", "line 8: the centre needs x, y and z"),
        ("000006,p3,s6,nodule,,,,,,{split},0,6", "line 8: padded must be a share"),
        ("000006,p3,s6,nodule,,,,,1.5,{split},0,6", "line 8: padded must be a share"),
        ("000006,p3,s6,nodule,,,,,0,{split},0", "line 8: want 12 cells"),
        ("000006,p3,s6,nodule,,,,,0,{split},0,6,7", "line 8: want 12 cells"),
        ("", "line 8: want 12 cells"),
        ("000006,,s6,nodule,,,,,0,{split},0,6", "line 8: patient must have 1 to 64 plain characters"),
        ("000006,p3,sä,nodule,,,,,0,{split},0,6", "line 8: series must have 1 to 64 plain characters"),
        ("0" * 65 + ",p3,s6,nodule,,,,,0,{split},0,6", "line 8: id must have 1 to 64 plain characters"),
        ("0" * 200_000, "near line 8: not a CSV file"),
        ("\udcff", "not a CSV file in UTF-8"),
        ("000003,p3,s6,nodule,,,,,0,{split},0,6", "line 8: id 000003 is there twice"),
        ("000009,p3,s6,nodule,,,,,0,{split},0,6", "line 11: id 000009 is there twice"),
        ("000006,p3,s6,nodule,,,,,0,synthetic,0,6", "line 9: patient p3 is in the splits synthetic and {split}; splits must not share"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_its_line(tmp_path, monkeypatch, row, told):
    monkeypatch.setattr(patch_table, "_ROWS_AT_ONCE", 4)
    split = write(tmp_path / "p").rows[6].split
    table = tmp_path / "p" / "patches.csv"
    whole = table.read_text()
    assert LINE_8.format(split=split) in whole
    table.write_bytes(whole.replace(LINE_8.format(split=split), row.format(split=split)).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=told.format(split=split)) as error:
        PatchFolder.open(tmp_path / "p")
    assert str(tmp_path / "p") in str(error.value)


def test_a_patient_in_two_splits_is_refused_whichever_comes_first(tmp_path):
    write(tmp_path / "p")
    table = tmp_path / "p" / "patches.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    for pair in permutations(SPLITS, 2):
        for line, split in zip(lines[7:9], pair, strict=True):  # both of p3
            line[9] = split
        table.write_text("\n".join(map(",".join, lines)) + "\n")
        with pytest.raises(ValueError, match=r"patient p3 is in the splits .* splits must not share"):
            PatchFolder.open(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"split": "tests"}, "split 'tests' is not one of train"),
        ({"split": ""}, "split '' is not one of train"),
        ({"split": "test"}, "patient p0 would be in the splits train and test"),
        ({"label": "unheard-of"}, "class 'unheard-of' is not one of"),
        ({"hu": hu(0).astype(np.int32)}, r"patch is int32\(4, 5\)"),
        ({"hu": hu(0)[:2]}, r"patch is int16\(2, 5\)"),
        ({"diameter_mm": float("nan")}, "diameter nan"),
        ({"center_mm": (1.0, float("inf"), 0.0)}, "inf"),
        ({"padded": 1.2}, "padded 1.2"),
        ({"padded": float("nan")}, "padded nan"),
        ({"id": "=cmd()"}, "id '=cmd"),
        ({"patient": "p" * 65}, "patient 'ppp"),
        ({"series": ""}, "series ''"),
    ],
)
def test_a_patch_that_does_not_fit_leaves_the_writer_as_it_was(tmp_path, change, told):
    good = {"hu": hu(0), "patient": "p0", "series": "s0", "label": "nodule", "split": "train"}
    writer = PatchWriter(tmp_path, SPEC)
    writer.add(Patch(**good))
    with pytest.raises(ValueError, match=told):
        writer.add(Patch(**{**good, **change}))
    writer.add(Patch(**{**good, "patient": "p1", "split": "test", "label": "background"}))
    writer.finish()
    assert [row.id for row in PatchFolder.open(tmp_path).rows] == ["000000", "000001"]
    assert writer.patches == {("train", "nodule"): 1, ("test", "background"): 1}
    assert writer.patients == {"p0": "train", "p1": "test"}


def test_a_folder_without_patches_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no patch to write"):
        PatchWriter(tmp_path, SPEC).finish()


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

    with pytest.raises(OSError, match="the disk is full"):
        fill_disk()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "p"):
        pass
    with pytest.raises(FileExistsError, match="exists already"), new_file(tmp_path / "p" / "mine"):
        pass
    assert (tmp_path / "p" / "mine").read_text() == "keep"


def test_a_whole_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    file, sync, synced = tmp_path / "f", os.fsync, []

    def noted(descriptor):
        synced.append((os.fstat(descriptor).st_size, file.read_bytes()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    file.write_bytes(b"before")
    with whole_file(file) as out:
        out.write(b"x" * 1000)
    assert synced == [(1000, b"before")]
    assert [(one.name, one.stat().st_size) for one in tmp_path.iterdir()] == [("f", 1000)]


def test_pseudonyms_need_the_key_and_the_key_is_private(tmp_path):
    a = Pseudonyms(read_or_make_key(tmp_path / "a.key"))
    again = Pseudonyms(read_or_make_key(tmp_path / "a.key"))
    other = Pseudonyms(read_or_make_key(tmp_path / "b.key"))
    assert a.patient("Jane") == again.patient("Jane") != other.patient("Jane")
    assert a.patient("x")[2:] != a.series("x")[2:]
    assert (tmp_path / "a.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ValueError, match="64 hexadecimal"):
        Pseudonyms(b"short")
