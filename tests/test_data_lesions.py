"""Lesion lists as CSV: every row is read, or left out with its line and reason; and the RAS mistake is seen."""

import csv
import math
import pickle
import time

import numpy as np
import pytest
from conftest import affine_of, noise_volume
from hypothesis import given
from hypothesis import strategies as st

from data.lesion_list import BACKGROUND, ListConfig
from data.lesions import ras_suspected, read_lesions, write_annotations
from data.volume import Lesion, Volume, spacing_of

LUNA = "seriesuid,coordX,coordY,coordZ,diameter_mm,class\n"


def volume(affine=None, shape=(6, 20, 24)):
    affine = affine_of() if affine is None else affine
    return Volume(noise_volume(shape), spacing_of(affine), affine, "s")


def table(tmp_path, text, config=None):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    return read_lesions(tmp_path / "list.csv", config or ListConfig())


def located(listed, at=None):
    found = [one.locate(at or volume()) for one in listed]
    return [lesion for lesions, _ in found for lesion in lesions]


@given(
    st.dictionaries(
        st.from_regex(r"[0-9][0-9.]{0,20}[0-9]", fullmatch=True),
        st.lists(
            st.tuples(
                *[st.integers(-500_000, 500_000)] * 3, st.integers(300, 40_000), st.sampled_from(["lesion", "ground glass", "a_b-1."])
            ),
            min_size=1,
            unique=True,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read(tmp_path_factory, lists):
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    lesions = {uid: [Lesion((x / 1000, y / 1000, z / 1000), d / 100, label) for x, y, z, d, label in rows] for uid, rows in lists.items()}
    write_annotations(lesions, path)
    read = read_lesions(path, ListConfig())
    assert {uid: located(listed) for uid, listed in read.series.items()} == lesions
    assert read.problems == ()


def test_masks_beside_their_scans_in_any_case(tmp_path):
    from data.nifti import write_nifti

    for name in ("Case1", "Case1_Mask", "Case2", "Case2_SEG"):
        write_nifti(np.zeros((4, 4, 4), np.int16), np.eye(4), tmp_path / f"{name}.nii.gz")
    read = read_lesions(tmp_path, ListConfig())
    assert {name: listed[0].source.name for name, listed in read.series.items()} == {
        "Case1": "Case1_Mask.nii.gz",
        "Case2": "Case2_SEG.nii.gz",
    }


def test_candidates_are_nodules_and_background_without_a_diameter(tmp_path):
    read = table(tmp_path, "seriesuid,coordX,coordY,coordZ,class\n1.2,1,2,3,0\n1.2,4,5,6,1\n")
    assert located(read.series["1.2"]) == [Lesion((1, 2, 3), None, BACKGROUND), Lesion((4, 5, 6), None, "nodule")]
    named = table(tmp_path, "seriesuid,coordX,coordY,coordZ,class\n1.2,1,2,3,0\n1.2,4,5,6,1\n", ListConfig(classes=(("1", "solid"),)))
    assert [lesion.label for lesion in located(named.series["1.2"])] == [BACKGROUND, "solid"]


@pytest.mark.parametrize(
    "head", ["series,x,y,z,diameter", "SeriesUID,CoordX,CoordY,CoordZ,Diameter_mm", " image , x , y , z , diameter_mm "]
)
def test_columns_by_their_usual_names(tmp_path, head):
    assert located(table(tmp_path, f"{head}\na,1,2,3,4\n").series["a"]) == [Lesion((1, 2, 3), 4, "lesion")]


def test_files_are_named_by_their_stems_and_patients_are_told(tmp_path):
    read = table(tmp_path, "file,x,y,z,diameter,patient\nscans/one.nii.gz,1,2,3,4,P1\nscans\\two.mha,1,2,3,,P2\ntwo.mha,2,2,3,5,P3\n")
    assert set(read.series) == {"one", "two"}
    assert read.patients == {"one": "P1", "two": "P2"}
    assert located(read.series["two"]) == [Lesion((1, 2, 3), None, "lesion")]
    assert read.problems == ((4, "another patient than in an earlier row of its series"),)


def test_coordinates_in_ras_and_in_voxels(tmp_path):
    text = "series,x,y,z\na,1,2,3\n"
    assert located(table(tmp_path, text, ListConfig("ras")).series["a"]) == [Lesion((-1, -2, 3), None, "lesion")]
    (lesion,) = located(table(tmp_path, text, ListConfig("voxel")).series["a"])
    np.testing.assert_allclose(lesion.center_mm, (-30 + 0.8, -40 + 2 * 0.7, 100 + 3 * 2.5))  # i, j, k of affine_of()
    sagittal = affine_of()[:, [2, 1, 0, 3]]  # k to the left, i to the head
    (lesion,) = located(table(tmp_path, text, ListConfig("voxel")).series["a"], volume(sagittal))
    np.testing.assert_allclose(lesion.center_mm, (-30 + 3 * 0.8, -40 + 2 * 0.7, 100 + 2.5))


def test_the_class_from_another_column_by_its_values(tmp_path):
    config = ListConfig(class_from="texture", classes=(("1", "ground_glass"), ("5", "solid")))
    read = table(tmp_path, "series,x,y,z,texture,class\na,1,2,3,1,x\na,2,2,3,5.0,x\na,3,2,3,4,x\na,4,2,3,,x\n", config)
    assert [lesion.label for lesion in located(read.series["a"])] == ["ground_glass", "solid", "4"]
    assert read.problems == ((5, "class is missing"),)
    with pytest.raises(ValueError, match=r"no column texture in its first line to read the classes from$"):
        table(tmp_path, "series,x,y,z\na,1,2,3\n", config)


BAD_ROWS = {
    "1.2,1,2,three,4,solid": "a coordinate is not a finite number",
    "1.2,1,nan,3,4,solid": "a coordinate is not a finite number",
    "1.2,1,2,1e999,4,solid": "a coordinate is not a finite number",
    "1.2,1,2,1_0,4,solid": "a coordinate is not a finite number",
    "1.2,1,,3,4,solid": "a coordinate is missing",
    "1.2,=1+1,2,3,4,solid": "a coordinate is not a finite number",
    "1.2,1,2,3,0,solid": "the diameter is not between 0 and 500 mm",
    "1.2,1,2,3,-4,solid": "the diameter is not between 0 and 500 mm",
    "1.2,1,2,3,500,solid": "the diameter is not between 0 and 500 mm",
    "1.2,1,2,3,inf,solid": "the diameter is not a finite number",
    "1.2,1,2,3,4,=cmd|x": "class name is unfit",
    "1.2,1,2,3,4,Änne Müller": "class name is unfit",
    "1.2,1,2,3,4,": "class is missing",
    ",1,2,3,4,solid": "the series is missing",
    "1.2,1,2,3,4": "has not the 6 cells",
    "1.2,1,2,3,4,solid,": "has not the 6 cells",
    "1.2,9,9,9.0,9,solid": "the same lesion as in an earlier row",
}


def test_malformed_rows_are_left_out_with_line_and_reason(tmp_path):
    read = table(tmp_path, LUNA + "1.2,9,9,9,9,solid\n\n" + "\n".join(BAD_ROWS) + "\n1.2,8,8,8,8,solid\n")
    assert [lesion.diameter_mm for lesion in located(read.series["1.2"])] == [9, 8]
    assert [line for line, _ in read.problems] == list(range(4, 4 + len(BAD_ROWS)))
    for (row, wanted), (_, reason) in zip(BAD_ROWS.items(), read.problems, strict=True):
        assert wanted in reason, row
        assert "Müller" not in reason


UNREADABLE = {
    "empty": ("", "empty"),
    "head": (LUNA, "no lesion in it"),
    "columns": ("a,b\n1,2\n", "no column seriesuid"),
    "semicolons": (LUNA.replace(",", ";") + "1;1;2;3;4;x\n", "separated by commas"),
    "commas": (LUNA + '1.2,"1,5",2,3,4,solid\n', "line 2: a coordinate has a decimal comma"),
    "semicolons replaced": (LUNA + "1.2,1,5,2,5,3,5,4,solid\n", "line 2: has not the 6 cells .* a decimal comma, perhaps"),
    "names": (
        "SeriesInstanceUID,X,Y,Z\n1,1,1,1\n",
        r"no column seriesuid; want seriesuid,.*, or image,x,y,z\[,diameter,class,patient_id\], or image,mask\[,class\]$",
    ),
    "coordinates": ("seriesuid,coordX,coordY\n1,2,3\n", "no column coordX"),
    "twice": ("series,x,y,z,class,class\n1,1,1,1,a,b\n", "two columns of one name"),
    "row": (LUNA + "1.2,1,2,three,4,solid\n", "line 2: a coordinate is not a finite number"),
    "long": (LUNA + "9" * 200_000 + ",1,2,3,4,solid\n", "line 2: not CSV"),
    "quote": (LUNA + '1.2,1,2,3,4,solid\n1.3,1,2,3,4,"sol\n1.4,1,2,3,4,solid\n', "line 3: not CSV; a quote is missing"),
    "quotes": (LUNA + '1.2,1,2,3,4,"solid\n1.3,1,2,3,4,solid\n1.4,1,2,3,4,solid"\n', "line 2: a quoted cell goes over several lines"),
}


@pytest.mark.parametrize(("text", "cause"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_list_is_one_line(tmp_path, text, cause):
    with pytest.raises(ValueError, match=cause) as error:
        table(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/list.csv: ")
    assert "\n" not in str(error.value)


def test_other_encodings_and_places_are_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes((LUNA + "1,1,2,3,4,häm\n").encode("latin-1"))
    (tmp_path / "utf16.csv").write_text(LUNA + "1,1,2,3,4,x\n", encoding="utf-16")
    for name in ("latin.csv", "utf16.csv"):
        with pytest.raises(ValueError, match=f"{name}: not a CSV file in UTF-8; save it as one"):
            read_lesions(tmp_path / name, ListConfig())
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        read_lesions(tmp_path / "gone.csv", ListConfig())
    with pytest.raises(ValueError, match="name a CSV file itself"):
        read_lesions(tmp_path, ListConfig())


@pytest.mark.parametrize("bad", [{"coordinates": "lpi"}, {"readers": 0}, {"classes": (("1", "=x"),)}])
def test_options_are_checked(bad):
    with pytest.raises(ValueError, match="want"):
        ListConfig(**bad)


def test_points_go_to_other_processes_and_their_repr_tells_them_apart(tmp_path):
    one, two = (table(tmp_path, f"series,x,y,z\na,1,2,{z}\n").series["a"][0] for z in (3, 3.5))
    assert located([pickle.loads(pickle.dumps(one))]) == located([one])
    assert repr(one) == repr(pickle.loads(pickle.dumps(one)))
    assert repr(one) != repr(two)


def test_a_list_as_long_as_lunas_candidates_is_read_in_seconds(tmp_path):
    lines = [f"1.3.6.1.4.1.14519.5.2.1.{n // 850},{n % 613 - 300}.25,{n % 507}.5,-{n}.125,{int(n % 500 == 0)}\n" for n in range(75_000)]
    start = time.process_time()
    read = table(tmp_path, "seriesuid,coordX,coordY,coordZ,class\n" + "".join(lines))
    assert time.process_time() - start < 3  # a tenth of the list; measured: 0.2 s
    assert sum(len(located(listed)) for listed in read.series.values()) == len(lines)


def lungs():
    """Two balls of 50 mm radius, at x=-68 and x=80, y=60 and y=40, in an axial volume of 4 mm voxels; the table puts y=0 before the chest."""
    affine = affine_of((4.0, 4.0, 4.0), (-180.0, -60.0, -100.0))
    k, j, i = np.ogrid[:50, :60, :90]
    x, y, z = -180 + 4 * i, -60 + 4 * j, -100 + 4 * k
    mask = (x + 68) ** 2 + (y - 60) ** 2 + z**2 <= 50**2
    return mask | ((x - 80) ** 2 + (y - 40) ** 2 + z**2 <= 50**2), Volume(np.zeros(mask.shape, np.int16), (4.0, 4.0, 4.0), affine, "s")


def test_ras_is_suspected_only_where_turning_explains_every_lesion():
    mask, scan = lungs()
    true = [(-70.0, 100.0, 0.0), (-60.0, 95.0, 10.0), (-110.0, 70.0, 0.0)]
    turned = [(-x, -y, z) for x, y, z in true]
    assert not ras_suspected(true, mask, scan)
    assert ras_suspected(turned, mask, scan)
    assert not ras_suspected([*turned, true[0]], mask, scan)  # one lies in the lung as stated
    assert not ras_suspected([turned[0], (0.0, -110.0, 0.0)], mask, scan)  # half of them are off the lung either way
    assert not ras_suspected([], mask, scan)
    assert not ras_suspected([(1e300, 0.0, 0.0)], mask, scan)


@pytest.mark.parametrize(("y", "near"), [(112.9, True), (113.1, False)])
def test_lung_counts_up_to_5_mm_away(y, near):
    mask, scan = lungs()  # whose last voxel at x=-68, z=0 lies at y=108
    assert ras_suspected([(68.0, -y, 0.0)], mask, scan) == near
    assert not ras_suspected([(-68.0, y, 0.0)], mask, scan)


@pytest.mark.parametrize(("away", "near"), [(2.8, True), (3.0, False)])  # 4.85 and 5.2 mm
def test_lung_counts_up_to_5_mm_away_in_any_direction(away, near):
    mask = np.zeros((20, 20, 20), bool)
    mask[10, 10, 10] = True
    scan = Volume(np.zeros(mask.shape, np.int16), (1.0,) * 3, affine_of((1.0,) * 3, (20.0, 20.0, 0.0)), "s")
    x, y, z = scan.point_at(np.array([10, 10, 10]))
    assert ras_suspected([(-x - away, -y - away, z + away)], mask, scan) == near


def test_real_annotations(real_data):
    file = real_data / "ct-series" / "annotations.csv"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    read = read_lesions(file, ListConfig())
    assert set(read.series) == {row["seriesuid"] for row in rows}
    lesions = located(next(iter(read.series.values())))
    assert len(lesions) + len(read.problems) == len(rows)
    assert all(math.isclose(lesion.diameter_mm, float(row["diameter_mm"])) for lesion, row in zip(lesions, rows, strict=True))
