"""LIDC-IDRI's XML: outlines of known area give known centres and diameters, and readers agree as in LUNA16."""

import pickle
import time
from collections import Counter

import numpy as np
import pytest
from conftest import affine_of
from scipy.ndimage import binary_dilation

from data.lesion_list import ListConfig
from data.lesions import read_lesions
from data.volume import Volume, spacing_of

SPACING, ORIGIN = (2.5, 0.5, 0.5), (-60.0, -50.0, -200.0)
UIDS = tuple(f"1.2.{k}" for k in range(10))


def scan(image_uids=UIDS, affine=None):
    affine = affine_of(SPACING, ORIGIN) if affine is None else affine
    return Volume(np.broadcast_to(np.int16(0), (10, 200, 240)), spacing_of(affine), affine, "9.9", image_uids)


def disc(row, column, radius):
    """bool (200, 240): the pixels within so many pixels of a place."""
    j, i = np.ogrid[:200, :240]
    return (j - row) ** 2 + (i - column) ** 2 <= radius**2


def outline(mask):
    """(row, column) of the first pixels outside a round mask, in order around it."""
    points = np.argwhere(binary_dilation(mask) & ~mask)
    middle = np.argwhere(mask).mean(axis=0)
    return points[np.argsort(np.arctan2(*(points - middle).T))]


def roi(k, points, inclusion="TRUE", uid=None):
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for y, x in points)
    return (
        f"<roi><imageZposition>{ORIGIN[2] + k * SPACING[0]}</imageZposition><imageSOP_UID>{uid or UIDS[k]}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def nodule(*rois, texture=None):
    rated = f"<characteristics><subtlety>4</subtlety><texture>{texture}</texture></characteristics>" if texture else ""
    return f"<unblindedReadNodule><noduleID>Nodule 001</noduleID>{rated}{''.join(rois)}</unblindedReadNodule>"


def ball(row=100, column=120, radius=16, middle=5, texture=None):
    """A nodule whose discs in three images are those of a ball, the largest in the middle."""
    discs = {k: disc(row, column, (radius**2 - ((k - middle) * 5) ** 2) ** 0.5) for k in range(middle - 1, middle + 2)}
    return nodule(*(roi(k, outline(mask)) for k, mask in discs.items()), texture=texture)


def reading(*sessions, series="9.9", root="LidcReadMessage", head=""):
    sessions = "".join(
        f"<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>anonymous</servicingRadiologistID>{marks}"
        "<nonNodule><nonNoduleID>3</nonNoduleID><imageZposition>-190.0</imageZposition><imageSOP_UID>1.2.4</imageSOP_UID>"
        "<locus><xCoord>5</xCoord><yCoord>5</yCoord></locus></nonNodule></readingSession>"
        for marks in sessions
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{head}<{root} uid="1.3.6" xmlns="http://www.nih.gov" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<ResponseHeader><Version>1.8.1</Version><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{sessions}</{root}>"
    )


def located(tmp_path, *sessions, at=None, **options):
    (tmp_path / "reading.xml").write_text(reading(*sessions), encoding="utf-8")
    read = read_lesions(tmp_path / "reading.xml", ListConfig(**options))
    ((one,),) = read.series.values()
    return one.locate(at or scan())


@pytest.mark.parametrize("radius", [4, 9.5, 16, 30])
def test_a_disc_has_its_centre_and_diameter(tmp_path, radius):
    mask = disc(80, 100, radius)
    (lesion,), notes = located(tmp_path, nodule(roi(3, outline(mask))), readers=1)
    assert lesion.diameter_mm == pytest.approx(2 * np.sqrt(mask.sum() / np.pi) * 0.5)  # every pixel of it, and no other
    assert lesion.diameter_mm == pytest.approx(2 * radius * 0.5, rel=0.02)
    np.testing.assert_allclose(lesion.center_mm, (-60 + 50, -50 + 40, -200 + 7.5))
    assert (lesion.label, notes) == ("lesion", Counter())


def test_the_largest_image_gives_the_diameter_and_all_pixels_the_centre(tmp_path):
    squares = {2: [(10, 10), (10, 31), (31, 31), (31, 10)], 3: [(10, 10), (10, 21), (21, 21), (21, 10), (10, 10)]}  # corners alone
    (lesion,), _ = located(tmp_path, nodule(*(roi(k, points) for k, points in squares.items())), readers=1)
    assert lesion.diameter_mm == pytest.approx(2 * np.sqrt(400 / np.pi) * 0.5)
    np.testing.assert_allclose(lesion.center_mm[2], -200 + 2.5 * (2 * 400 + 3 * 100) / 500)
    np.testing.assert_allclose(lesion.center_mm[0], -60 + 0.5 * (20.5 * 400 + 15.5 * 100) / 500)


def test_an_exclusion_is_taken_off(tmp_path):
    whole, hole = disc(100, 120, 20), disc(100, 128, 6)
    (lesion,), _ = located(tmp_path, nodule(roi(4, outline(whole)), roi(4, outline(hole), "FALSE")), readers=1)
    left = whole & ~hole
    assert lesion.diameter_mm == pytest.approx(2 * np.sqrt(left.sum() / np.pi) * 0.5)
    np.testing.assert_allclose(lesion.center_mm[0], -60 + 0.5 * np.argwhere(left)[:, 1].mean())


def test_three_of_four_readers_make_a_nodule(tmp_path):
    sessions = [ball(texture=5), ball(column=124, radius=14, texture=4), ball(row=104, texture=5), ""]
    (lesion,), notes = located(tmp_path, *sessions, class_from="texture", classes=(("5", "solid"),))
    np.testing.assert_allclose(lesion.center_mm, (-60 + (60 + 62 + 60) / 3, -50 + (50 + 50 + 52) / 3, -187.5), atol=1e-9)
    assert lesion.diameter_mm == pytest.approx((16 + 14 + 16) / 3, rel=0.01)
    assert (lesion.label, notes) == ("solid", Counter())
    assert located(tmp_path, *sessions, readers=4) == ([], {"nodule that fewer readers marked than asked, left out": 1})


def test_marks_apart_by_more_than_their_radii_are_two_nodules(tmp_path):
    near, far = [ball(column=100), ball(column=131)], [ball(column=100), ball(column=133)]  # radii of 16 pixels
    assert len(located(tmp_path, *near, readers=1)[0]) == 1
    assert len(located(tmp_path, *far, readers=1)[0]) == 2
    assert located(tmp_path, *far, readers=2)[1].total() == 2


def test_one_readers_marks_are_not_agreement(tmp_path):
    found, notes = located(tmp_path, ball() + ball(column=126) + ball(row=106), readers=2)
    assert (found, notes.total()) == ([], 3)
    joined = [ball(column=110) + ball(column=130), ball()]  # the second reader's mark joins two of the first's
    assert located(tmp_path, *joined, readers=3) == ([], {"nodule that fewer readers marked than asked, left out": 1})
    assert len(located(tmp_path, *joined, readers=2)[0]) == 1


def test_the_median_of_two_is_the_lower_and_no_rating_no_class(tmp_path):
    options = {"class_from": "texture", "readers": 2}
    assert located(tmp_path, ball(texture=2), ball(texture=5), **options)[0][0].label == "2"
    assert located(tmp_path, ball(), ball(texture=3), **options)[0][0].label == "3"
    assert located(tmp_path, ball(), ball(), **options) == ([], {"nodule without the characteristic that holds its class, left out": 1})


def test_small_nodules_and_non_nodules_are_ignored(tmp_path):
    (tmp_path / "small.xml").write_text(reading(nodule(roi(3, [(50, 60)])), nodule(roi(3, [(50, 60), (50, 61)]))))
    with pytest.raises(ValueError, match=r"small\.xml: no nodule with an outline"):
        read_lesions(tmp_path / "small.xml", ListConfig(readers=1))


def test_marks_on_images_of_another_series_are_left_out_and_counted(tmp_path):
    stray = nodule(roi(4, outline(disc(100, 120, 10))), roi(5, outline(disc(100, 120, 9)), uid="7.7"))
    found, notes = located(tmp_path, stray, ball(), readers=1)
    assert len(found) == 1
    assert list(notes.values()) == [1]
    assert "imageSOP_UID" in next(iter(notes))


def test_slices_are_found_by_uid_in_any_order_and_by_position_without(tmp_path):
    upright, _ = located(tmp_path, ball(middle=3), readers=1)
    downward = affine_of((-2.5, 0.5, 0.5), (-60.0, -50.0, -177.5))  # slices stored from the head down
    for at in (scan(()), scan(UIDS[::-1], downward), scan((), downward)):
        (lesion,), _ = located(tmp_path, ball(middle=3), readers=1, at=at)
        np.testing.assert_allclose(lesion.center_mm, upright[0].center_mm)
    below = affine_of(SPACING, (-60.0, -50.0, 0.0))
    found, notes = located(tmp_path, ball(), readers=1, at=scan((), below))
    assert (found, notes.total()) == ([], 1)
    rows_up = affine_of((2.5, -0.5, 0.5), ORIGIN)
    found, notes = located(tmp_path, ball(), readers=1, at=scan((), rows_up))
    assert (found, notes.total()) == ([], 1)
    assert "rows and columns" in next(iter(notes))


def test_a_folder_with_foreign_damaged_and_repeated_files(tmp_path):
    folder = tmp_path / "lidc"
    (folder / "a" / "b").mkdir(parents=True)
    whole = reading(ball(), ball(), ball())
    files = {
        "a/069.xml": whole, "a/b/070.xml": whole,  # the same again
        "a/b/071.xml": reading(ball(), series="8.8"), "a/b/072.xml": reading(ball(radius=14), series="8.8"),
        "x-ray.xml": reading(root="IdriReadMessage"), "other.xml": "<html/>", "cut.xml": whole[:-200], "empty.xml": "",
        "unnamed.xml": reading(ball(), series=""), "scan.dcm": "not read",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
    read = read_lesions(folder, ListConfig())
    assert set(read.series) == {"9.9", "8.8"}
    assert len(pickle.loads(pickle.dumps(read.series["9.9"]))[0].locate(scan())[0]) == 1
    reasons = Counter(reason for _, reason in read.problems)
    assert len(read.problems) == 6
    assert reasons["a reading of chest X-rays (IdriReadMessage), not of a CT"] == 1
    assert reasons["another reading of a series that is read already"] == 1
    assert reasons["not a whole XML file"] == 2


ENTITIES = '<!DOCTYPE LidcReadMessage [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;"><!ENTITY x SYSTEM "file:///etc/passwd">]>\n'
EDGE = "<edgeMap><xCoord>{}</xCoord><yCoord>5</yCoord></edgeMap>"


def odd(xs):
    return reading(nodule(roi(3, []).replace("</inclusion>", "</inclusion>" + "".join(map(EDGE.format, xs)))))


HOSTILE = {
    "entities": (reading(ball(), head=ENTITIES), "DOCTYPE"),
    "deep": ("<LidcReadMessage>" + "<a>" * 100_000 + "</a>" * 100_000 + "</LidcReadMessage>", "names no series"),
    "wide": (odd([5, 60_000, 8]), "outline or image position is damaged"),
    "huge": (odd(["9" * 40, "9" * 40]), "outline or image position is damaged"),
    "negative": (odd([-5, 7, 9]), "outline or image position is damaged"),
    "text": (odd(["=1+1", 7, 9]), "outline or image position is damaged"),
    "binary": ("\0\1\2", "not a whole XML file"),
}


@pytest.mark.parametrize(("text", "cause"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, text, cause):
    (tmp_path / "bad.xml").write_text(text)
    start = time.monotonic()
    with pytest.raises(ValueError, match=cause) as error:
        read_lesions(tmp_path / "bad.xml", ListConfig())
    assert str(error.value).startswith(f"{tmp_path}/bad.xml: ")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5


def test_a_doctype_in_utf_16_is_seen(tmp_path):
    (tmp_path / "bad.xml").write_text(reading(ball(), head=ENTITIES).replace("UTF-8", "UTF-16"), encoding="utf-16")
    with pytest.raises(ValueError, match="DOCTYPE"):
        read_lesions(tmp_path / "bad.xml", ListConfig())


def test_an_unknown_characteristic_is_named(tmp_path):
    (tmp_path / "reading.xml").write_text(reading(ball()))
    with pytest.raises(ValueError, match="no characteristic 'colour'"):
        read_lesions(tmp_path / "reading.xml", ListConfig(class_from="colour"))
