"""The quality page: planted faults are found and named, clean folders give none, damaged tables are one line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.files import new_folder
from data.near_copies import NearCopy, NearCopySearch, best_match
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter
from data.quality import HU_MIN, Quality, Rows, SeriesRow, contact_rows, measure, outside_window, read_skipped, value_quantiles
from data.quality_figures import FRAME, GAP, contact_sheet, diameter_histograms, picture, value_histograms
from data.quality_page import _pairs, _scanners, _series_per_patient, _sheets
from data.quality_summary import confounded, summary_of

WINDOW = (-1000.0, 400.0)
SERIES = "series,patient,format,manufacturer,model,kernel,slices,rows,columns,pixel_mm,slice_step_mm,slice_thickness_mm\n"


def lung(shape, count, seed=0) -> np.ndarray:
    """int16 (count, *shape): blurred noise with some fine noise, like lung of so many places."""
    noise = np.random.default_rng(seed).normal(size=(2, count, *shape))
    blurred = ndimage.gaussian_filter(noise[0], (0,) + (1.5,) * len(shape))
    return np.rint(-600 + 150 * blurred / blurred.std() + 30 * noise[1]).clip(-1000, 400).astype(np.int16)


def write(path, hu, patients, *, labels=None, classes=("a", "b"), splits=None, padded=None, **spec):
    """A patch folder of these patches; series s-X of patient p-X."""
    spec = {"spacing_mm": (1.0,) * (hu.ndim - 1), "window": WINDOW, "background": None} | spec
    with new_folder(path) as folder:
        writer = PatchWriter(folder, PatchSpec(shape=hu.shape[1:], classes=classes, **spec))
        for n, patch in enumerate(hu):
            label = labels[n] if labels is not None else classes[n % len(classes)]
            split = splits[n] if splits is not None else "train"
            share = 0.0 if padded is None else padded[n]
            writer.add(Patch(patch, f"p-{patients[n]}", f"s-{patients[n]}", label, 5.0 + n % 7, split=split, padded=share))
        writer.finish()
    return PatchFolder.open(path)


def measured(folder: PatchFolder) -> tuple[Quality, str]:
    """The folder's quality, and its warnings as one text."""
    quality = measure(folder)
    return quality, " ".join(summary_of(folder.spec, quality).warnings)


@pytest.mark.parametrize("shape", [(32, 32), (17, 24, 20)])
def test_planted_copies_are_found_also_mirrored_and_shifted(tmp_path, shape):
    hu = lung(shape, 60)
    whole = lung([n + 4 for n in shape], 3, seed=1)
    inner, moved = (tuple(slice(k, k + n) for n in shape) for k in (2, 1))
    for n, axes in enumerate([(), (1,), tuple(range(len(shape)))]):
        hu[n] = whole[n][inner]
        hu[30 + n] = np.flip(whole[n][moved], axes)
    hu[40] = hu[41]  # of one patient
    patients = [str(n) for n in range(60)]
    patients[41] = "40"
    quality, warnings = measured(write(tmp_path / "p", hu, patients, splits=["test" if n == 30 else "train" for n in range(60)]))
    assert {(pair.first, pair.second) for pair in quality.near_copies.pairs} == {(0, 30), (1, 31), (2, 32)}
    assert {pair.mirrored for pair in quality.near_copies.pairs} == {(), (1,), tuple(range(len(shape)))}
    assert "3 pairs of near-identical patches under different patients (6 patients)" in warnings
    assert "1 pair lies in different splits" in warnings


@pytest.mark.parametrize(
    "make", [lambda: np.random.default_rng(0).integers(-1000, 400, (300, 16, 16)).astype(np.int16), lambda: lung((24, 24), 300)]
)
def test_independent_patches_are_no_copies(tmp_path, make):
    hu = make()
    quality, warnings = measured(write(tmp_path / "p", hu, [str(n) for n in range(len(hu))]))
    assert quality.near_copies.pairs == ()
    assert quality.near_copies.compared == 300
    assert warnings == ""


def test_the_same_edge_and_the_same_empty_air_are_no_copies():
    hu = lung((32, 32), 40)
    hu[:20, :, 12:] = -1000  # the scan ends here
    hu[20:, :, 3:] = -1024
    search = NearCopySearch((32, 32), WINDOW)
    search.add(hu)
    assert search.find(np.arange(40)) == []


def test_best_match_is_the_correlation_over_the_overlap():
    a = np.random.default_rng(0).normal(size=(1, 9, 11)).astype(np.float32)
    b = np.random.default_rng(1).normal(size=(1, 1, 9, 11)).astype(np.float32)

    def cosine(y, x):
        one = a[0, max(0, y) : 9 + min(0, y), max(0, x) : 11 + min(0, x)]
        other = b[0, 0, max(0, -y) : 9 + min(0, -y), max(0, -x) : 11 + min(0, -x)]
        return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())

    expected = max(cosine(y, x) for y in range(-2, 3) for x in range(-2, 3))
    assert best_match(a, b)[0, 0] == pytest.approx(expected, rel=1e-5)


def test_values_are_counted_exactly(tmp_path):
    hu = np.full((3, 8, 8), -500, np.int16)
    hu[0, :4] = -1500
    hu[1, :2] = 900
    folder = write(tmp_path / "p", hu, "xyz", labels="aab")
    quality, warnings = measured(folder)
    assert quality.values["a"].sum() == 128
    assert outside_window(quality.values["a"], WINDOW) == (0.25, 0.125)
    assert value_quantiles(quality.values["a"], (0.1, 0.5, 1)) == [-1500, -500, 900]
    assert quality.values["b"][32768 - 500] == 64
    assert "17 % of the voxels lie below -1024 HU, down to -1500" in warnings
    assert "flattens 38 % of the voxels of class a (25 % to black, 12 % to white)" in warnings
    assert "fewer than 16 pixels" in quality.near_copies


def test_what_shows_as_black_or_white_is_at_the_windows_ends_and_beyond():
    counts = np.zeros(1 << 16, np.int64)
    counts[np.array([-1001, -1000, -999, 399, 400, 401]) - HU_MIN] = [1, 2, 4, 8, 16, 32]
    assert outside_window(counts, (-1000, 400)) == pytest.approx((3 / 63, 48 / 63))


def test_classes_patients_padding_and_spacing_are_warned_of(tmp_path):
    patients = ["0"] * 12 + [str(n) for n in range(1, 29)]
    splits = ["train"] * 20 + ["test"] * 20
    labels = ["a"] * 37 + ["b"] * 3
    folder = write(
        tmp_path / "p",
        lung((16, 16), 40),
        patients,
        labels=labels,
        classes=("a", "b", "c"),
        splits=splits,
        padded=[0.4] + [0.0] * 39,
        spacing_mm=None,
    )
    _, warnings = measured(folder)
    for words in (
        "Class c has no patches.", "Class b is absent from train.", "Class b has only 3 patients", "One patient (p-0) gives 30 %",
        "1 patch reaches outside the scan", "spacing of the pixels is unknown",
    ):  # fmt: skip
        assert words in warnings


def test_a_class_of_one_scanner_is_confounded_and_a_mixed_one_is_not(tmp_path):
    labels = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    folder = write(tmp_path / "p", lung((16, 16), 60), [str(n) for n in range(60)], labels=labels, classes=("a", "b", "c"))
    makers = ["Siemens"] * 20 + ["GE", "Siemens"] * 20
    table = "".join(f"s-{n},p-{n},DICOM,{makers[n]},M,{'' if n < 30 else 'B30f'},9,512,512,0.7,{5 if n == 0 else 1},1\n" for n in range(60))
    (folder.path / "series.csv").write_text(SERIES + table)
    quality, warnings = measured(folder)
    assert list(confounded(quality)) == [("a", "manufacturer", "Siemens", 1.0, 0.5)]
    assert "All patients of class a have the manufacturer Siemens, against 50 % of the other classes'" in warnings
    assert "1 of 60 series have slices more than 2.5 mm apart (up to 5 mm)" in warnings
    assert "Slice steps are mixed, 1 to 5 mm" in warnings


def of_scanners(a: list[str], b: list[str]) -> Quality:
    """Patients of two classes, one patch and series each, by their scanner's manufacturer."""
    count, ids = len(a) + len(b), np.arange(len(a) + len(b)).astype(str)
    labels, split = np.repeat(["a", "b"], [len(a), len(b)]), np.repeat("train", count)
    rows = Rows(np.arange(count), ids, labels, ids, ids, split, np.full(count, np.nan), np.zeros(count))
    series = tuple(SeriesRow(one, one, made, "", "", None, None, None) for one, made in zip(ids, [*a, *b], strict=True))
    return Quality(rows, 0, {}, series, None, "")


@pytest.mark.parametrize(
    ("alike", "others", "told"),
    [(40, (24, 16), True), (40, (25, 15), False), (7, (10, 10), True), (6, (10, 10), False)],  # 60 % or more; 1 in 128 or in 64
)
def test_a_scanner_common_elsewhere_or_shared_by_chance_confounds_nothing(alike, others, told):
    quality = of_scanners(["Siemens"] * alike, ["Siemens"] * others[0] + ["GE"] * others[1])
    assert [one[:3] for one in confounded(quality)] == [("a", "manufacturer", "Siemens")] * told


def test_augmented_copies_count_apart(tmp_path):
    hu = lung((16, 16), 30)
    hu[20:] = hu[:10]
    folder = write(tmp_path / "p", hu, [str(n) for n in range(30)])
    (folder.path / "augmentation.csv").write_text("id,source_id\n" + "".join(f"{n:06d},{n - 20:06d}\n" for n in range(20, 30)))
    quality, _ = measured(folder)
    assert (len(quality.rows), quality.augmented) == (20, 10)
    assert quality.near_copies.pairs == ()
    assert sum(counts.sum() for counts in quality.values.values()) == 20 * 256
    assert "10 augmented copies, not counted below" in summary_of(folder.spec, quality).lead


def test_contact_sheets_spread_over_the_patients(tmp_path):
    rows = measure(write(tmp_path / "p", lung((8, 8), 100), ["big"] * 60 + [str(n) for n in range(40)], classes=("a",))).rows
    shown = contact_rows(rows, "a")
    assert len(shown) == len(set(rows.patient[shown])) == 36
    rows = measure(write(tmp_path / "q", lung((8, 8), 60), ["x", "y"] * 30, classes=("a",))).rows
    shown = contact_rows(rows, "a")
    assert len(set(shown)) == 36
    assert (rows.patient[shown] == "p-x").sum() == 18


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_a_contact_sheet_goes_row_by_row_and_frames_what_it_is_told_to(shape):
    hu = np.full((5, *shape), 400, np.int16)
    hu.reshape(5, -1, 4, 5)[:, len(shape) - 2] = np.array([-1000, -650, -300, 50, 400])[:, None, None]  # of cubes the middle slice
    sheet = decoded(contact_sheet(hu, WINDOW, np.arange(5) == 3, columns=3))
    assert sheet.shape == (2 * (4 + GAP) + GAP, 3 * (5 + GAP) + GAP, 4)
    for n, gray in enumerate((0, 64, 128, 191, 255)):
        top, left = GAP + n // 3 * (4 + GAP), GAP + n % 3 * (5 + GAP)
        assert (sheet[top : top + 4, left : left + 5] == [gray] * 3 + [255]).all()
        assert tuple(sheet[top - 1, left + 2]) == (FRAME if n == 3 else (0, 0, 0, 0))


def test_classes_sheets_frame_the_patches_that_reach_beyond_the_scan(tmp_path):
    folder = write(tmp_path / "p", lung((8, 8), 6), "uvwxyz", labels=list("aaaabb"), padded=[0, 0.9, 0, 0.9, 0, 0])
    sheets = _sheets(folder, measure(folder).rows)
    assert [(one["label"], one["count"], one["of"], one["patients"], one["framed"]) for one in sheets] == [
        ("a", 4, 4, 4, 2),
        ("b", 2, 2, 2, 0),
    ]
    orange = [(decoded(one["image"])[0, GAP :: 8 + GAP] == FRAME).all(1).tolist() for one in sheets]
    assert orange == [[False, True, False, True], [False, False]]


def test_pairs_in_different_splits_come_first_and_the_first_patch_is_shown_as_it_matches(tmp_path):
    folder = write(tmp_path / "p", lung((8, 9), 4), "wxyz", splits=["train", "train", "test", "test"])
    found = (NearCopy(0, 1, 0.99, ()), NearCopy(0, 2, 0.9, (1,)), NearCopy(1, 3, 0.95, ()))
    pairs = _pairs(folder, measure(folder).rows, found)
    assert [(one["first"]["patient"], one["second"]["patient"], one["apart"]) for one in pairs] == [
        ("p-x", "p-z", True), ("p-w", "p-y", True), ("p-w", "p-x", False),
    ]  # fmt: skip
    first, second = (decoded(pairs[1][which]["image"]) for which in ("first", "second"))
    np.testing.assert_array_equal(first[:, ::-1], decoded(picture(folder.hu([0])[0], WINDOW)))
    np.testing.assert_array_equal(second, decoded(picture(folder.hu([2])[0], WINDOW)))


def test_scanners_and_patients_are_counted_once_each():
    made = [("A", "p1"), ("A", "p1"), ("A", "p2"), ("B", "p3"), ("B", "p4"), *[("C", "p5")] * 4]
    series = tuple(SeriesRow(f"s{n}", patient, maker, "", "", None, None, None) for n, (maker, patient) in enumerate(made))
    assert [(name[0], of, patients) for name, of, patients in _scanners(series)] == [("A", 3, 2), ("B", 2, 2), ("C", 4, 1)]
    ids, patients = np.array([f"s{n}" for n in range(9)] * 2), np.array([patient for _, patient in made] * 2)  # two patches a series
    nothing = np.zeros(18)
    assert _series_per_patient(Rows(nothing, ids, ids, patients, ids, ids, nothing, nothing)) == [(1, 3), (2, 1), (4, 1)]


def test_histograms_hold_every_voxel_and_every_lesion(monkeypatch):
    monkeypatch.setattr("data.quality_figures._saved", lambda figure, axis: axis)
    counts = np.zeros(1 << 16, np.int64)
    counts[np.array([-850, 30]) - HU_MIN] = 30_000, 10_000
    counts[20_000 - HU_MIN] = 1  # a stray voxel, which squeezes nothing
    (bars,) = value_histograms({"a": counts}, WINDOW, "HU").patches
    values, edges = bars.get_data()[:2]
    of = {hu: values[np.flatnonzero((edges[:-1] <= hu) & (hu < edges[1:]))].sum() for hu in (-850, 30)}
    assert of == {-850: pytest.approx(0.75, abs=1e-4), 30: pytest.approx(0.25, abs=1e-4)}
    assert edges[0] <= -1000 < 400 <= edges[-1] < 1000
    mm = {"a": np.array([4.0, 5.0, 6.0] * 100 + [90.0]), "b": np.array([7.0])}
    bars = [one.get_data() for one in diameter_histograms(mm).patches]
    assert [one.values.sum() for one in bars] == [301, 1]
    assert bars[0].values[-1] == 1  # the last holds what is larger
    assert bars[0].edges[-1] < 10


def test_the_page_through_the_command_line(command, tmp_path):
    hu = lung((20, 20), 40)
    hu[39] = hu[0]
    folder = write(tmp_path / "secret-place" / "p", hu, [str(n) for n in range(40)], splits=["train"] * 30 + ["test"] * 10)
    (folder.path / "series.csv").write_text(SERIES + 's-0,p-0,DICOM,<b>Acme & Co,"M,1",K,9,512,512,0.7,2.5,\n')
    (folder.path / "skipped.csv").write_text(
        "kind,id,count,reason\nfile,,7,no CT image\nseries,s-1,1,a slice is missing\nseries,s-2,1,a slice is missing\n"
    )
    done = command("data", "report", folder.path)
    assert done.code == 0, done.err
    assert done.out.startswith("40 real patches, 2 classes, of 40 patients with 40 series.")
    assert "warning: 1 pair of near-identical patches" in done.out
    page = (folder.path / "quality.html").read_text()
    assert "secret-place" not in page
    assert str(tmp_path) not in page
    assert "&lt;b&gt;Acme &amp; Co" in page
    assert '<td class="n">2</td><td>series</td><td>a slice is missing</td>' in page
    assert "patches of real patients" in page
    assert "<script" not in page
    assert "http" not in page
    assert page.count('class="pair apart"') == 1
    assert command("data", "report", folder.path).code == 0  # its own page is replaced
    (tmp_path / "mine.html").write_text("<p>mine")
    refused = command("data", "report", folder.path, "--out", "mine.html")
    assert refused.code == 2
    assert "is no page of this command" in refused.err
    assert (tmp_path / "mine.html").read_text() == "<p>mine"


@pytest.mark.parametrize(
    ("shape", "spec", "words"),
    [
        ((16, 18, 20), {"classes": ("a",)}, "the middle slice of each"),
        ((16, 16), {"unit": "gray", "window": (0, 255), "classes": ("a",)}, "gray levels, not HU"),
        ((16, 16), {"classes": ("none",), "background": "none"}, "every patch is lesion-free"),
        ((16, 16), {"patients_known": False}, "The patients are not known"),
        ((16, 16), {"origin": "synthetic"}, "The patches of this folder are synthetic"),
    ],
)
def test_any_kind_of_folder_has_a_page(command, tmp_path, shape, spec, words):
    splits = ["synthetic"] * 6 if spec.get("origin") == "synthetic" else None
    write(tmp_path / "p", lung(shape, 6), "uvwxyz", splits=splits, **spec)
    done = command("data", "report", "p", "--out", "page.html")
    assert done.code == 0, done.err
    page = (tmp_path / "page.html").read_text()
    assert words in page
    assert ("real patients" in page) == ("origin" not in spec)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("series.csv", "series,patient\ns,p\n", "has no column format"),
        ("series.csv", SERIES + "s-u,p-u,DICOM,GE,M,K,9,512,512,zero,1,1\n", "line 2: pixel_mm 'zero' is no length"),
        ("series.csv", SERIES + "s-u,p-u,DICOM\n", "line 2: want 12 cells"),
        ("skipped.csv", "kind,id,count,reason\nfile,,-3,why\n", "line 2: count '-3'"),
        ("skipped.csv", b"kind,id,count,reason\n\xff,,1,why\n", "not a CSV table in UTF-8"),
        ("augmentation.csv", "id,source_id\n" + "".join(f"{n:06d},x\n" for n in range(6)), "lists every patch"),
    ],
)
def test_a_damaged_table_is_one_line(command, tmp_path, name, text, words):
    folder = write(tmp_path / "p", lung((8, 8), 6), "uvwxyz")
    (folder.path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    done = command("data", "report", "p")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert words in done.err
    assert name in done.err
    assert not (folder.path / "quality.html").exists()


def test_reasons_are_added_up(tmp_path):
    (tmp_path / "s.csv").write_text("kind,id,count,reason\nrow,3,1,odd\nrow,4,2,odd\nfile,,1,odd\n")
    assert read_skipped(tmp_path / "s.csv") == {("row", "odd"): 3, ("file", "odd"): 1}
    assert read_skipped(tmp_path / "none.csv") is None
