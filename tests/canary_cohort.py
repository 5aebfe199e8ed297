"""A small hospital's worth of input with canaries everywhere: scans in every format, lesion lists of every kind, what is no scan, pictures."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from canaries import UID_ROOT, plant
from conftest import affine_of, dicom_series
from PIL import Image, PngImagePlugin

from data.nifti import write_nifti

SHAPE, SPACING, ORIGIN = (8, 100, 120), (5.0, 2.5, 2.5), (-150.0, -120.0, 0.0)
PLACES = ((-62.5, 5.0, 17.5), (62.5, 5.0, 17.5), (62.5, 32.5, 12.5))
"""LPS mm of the lesions of every scan, balls of RADIUS."""
RADIUS = 10.0
SERIES, ZIPPED, GAPPED, RESCALED, TWO_PATIENTS, UNLISTED, MR = (f"{UID_ROOT}.{n}.2" for n in range(1, 8))
NIFTI, META, ZIPPED_META, ROTTEN = "CanaryNifti19930418", "CanaryMeta", "CanaryZippedMeta", "CanaryRotten"


def inside() -> np.ndarray:
    """uint8 (K, J, I): 1 in the lesions."""
    x, y, z = (o + s * np.arange(n) for o, s, n in zip(ORIGIN, SPACING[::-1], SHAPE[::-1], strict=True))
    squares = ((z[:, None, None] - c) ** 2 + (y[:, None] - b) ** 2 + (x - a) ** 2 for a, b, c in PLACES)
    return np.any([square <= RADIUS**2 for square in squares], axis=0).astype(np.uint8)


def chest(seed: int) -> np.ndarray:
    """int16 HU: a noisy body, two lungs and the lesions."""
    _, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = np.full(SHAPE, -1000) + np.random.default_rng(seed).integers(-20, 20, SHAPE)
    hu[np.broadcast_to(((j - 50) / 48) ** 2 + ((i - 60) / 58) ** 2 <= 1, SHAPE)] += 1040
    for middle in (35, 85):
        hu[np.broadcast_to((j - 50) ** 2 + (i - middle) ** 2 <= 21**2, SHAPE)] -= 890
    return np.where(inside(), 50 + 10 * seed, hu).astype(np.int16)


def dicom(folder: Path, number: int, **changes: object) -> list[Path]:
    """A chest as series UID_ROOT.number.2, full of canaries."""
    files = dicom_series(folder, chest(number), affine_of(SPACING, ORIGIN))
    for file in files:
        plant(file, number, **changes)
    return [file.rename(folder / f"CanaryFile{n}.dcm") for n, file in enumerate(files)]


def nifti(file: Path, values: np.ndarray) -> None:
    """NIfTI with canaries in each text field of its header, and in an extension."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(values, affine_of(SPACING, ORIGIN), file)
    image = nib.load(file)
    header = image.header
    header["descrip"], header["aux_file"], header["intent_name"] = b"CanaryDescrip 19431207", b"CanaryAuxFile", b"CanaryIntent"
    header["db_name"] = b"CanaryDbName"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"CanaryExtension 19431207"))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, header), file)


def metaimage(file: Path, values: np.ndarray) -> None:
    """MetaImage, compressed, with canaries in its free fields."""
    head = {
        "ObjectType": "Image", "NDims": 3, "Comment": "CanaryComment 19431207", "Name": "CanaryMetaName", "PatientID": "CanaryMetaID",
        "AcquisitionDate": "19990816", "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "True",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "{} {} {}".format(*ORIGIN), "ElementSpacing": "{} {} {}".format(*SPACING[::-1]),
        "DimSize": "{} {} {}".format(*values.shape[::-1]), "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(f"{key} = {value}\n" for key, value in head.items()).encode() + zlib.compress(values.astype("<i2").tobytes()))


def write_scans(folder: Path) -> None:
    """Five scans that are good, in folders and archives; beside them one of each kind that is left out."""
    dicom(folder / "CanaryFolder" / "CanaryStudy", 1)
    loose = folder / "loose"
    with zipfile.ZipFile(folder / "CanaryArchive.zip", "w") as archive:
        archive.comment = b"CanaryArchiveComment"
        for file in dicom(loose / "zipped", 2, patient_id="90817263544536"):
            archive.write(file, f"CanaryMember/{file.name}")
        metaimage(loose / "a.mha", chest(9))
        archive.write(loose / "a.mha", f"../CanaryMember/{ZIPPED_META}.mha")
    shutil.rmtree(loose)
    nifti(folder / "CanaryVolumes" / f"{NIFTI}.nii.gz", chest(10))
    metaimage(folder / "CanaryVolumes" / f"{META}.mha", chest(11))
    write_what_is_left_out(folder / "CanarySkipped")


def write_what_is_left_out(folder: Path) -> None:
    dicom(folder / "CanaryGap", 3)[3].unlink()
    dicom(folder / "CanaryRescale", 4, RescaleType="US")
    for file in dicom(folder / "CanaryTwoPatients", 5)[4:]:
        plant(file, 5, patient_id="CanarySecondID")
    dicom(folder / "CanaryUnlisted", 6)
    dicom(folder / "CanaryMr", 7, Modality="MR", SOPClassUID=pydicom.uid.MRImageStorage)
    (whole,) = dicom(folder / "CanaryOdd", 8)[:1]
    for name, changes in {
        "CanaryLocalizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "CanaryModality": {"Modality": "CANARYMODALITY"},
        "CanaryClass": {"SOPClassUID": f"{UID_ROOT}.8.6"},
        "CanaryPdf": {"Modality": "OT", "SOPClassUID": pydicom.uid.EncapsulatedPDFStorage, "DocumentTitle": "CanaryDocumentTitle"},
    }.items():
        (folder / name).mkdir()
        shutil.copy(whole, folder / name / f"{name}.dcm")
        plant(folder / name / f"{name}.dcm", 8, **changes)
    content = whole.read_bytes()
    shutil.rmtree(folder / "CanaryOdd")
    for name, damaged in {
        "CanaryCutHeader.dcm": content[:900], "CanaryCutPixels.dcm": content[:-500], "CanaryEmpty.dcm": b"",
        "CanaryText.dcm": b"CanaryTextFile 19431207", "CanaryLetter.pdf": b"%PDF-1.4 CanaryLetter", "Thumbs.db": b"CanaryThumbs",
        "CanaryNotes.xml": b"<name>CanaryXml</name>", "CanaryDamaged.zip": b"PK\x03\x04CanaryZip", f"{ROTTEN}.nii.gz": b"CanaryRottenBytes",
        f"{ROTTEN}2.mha": b"CanaryKey = CanaryValue\nElementDataFile = LOCAL\n", "Canary\udce9tude.dcm": content[:900],
        "CanaryLength.dcm": content.replace(b"LO\x0f\0CanaryPatientID", b"LO\xff\xffCanaryPatientID"),
    }.items():  # fmt: skip
        (folder / f"Canary damaged {name}").mkdir()
        (folder / f"Canary damaged {name}" / name).write_bytes(damaged)


def write_points(file: Path) -> None:
    """A CSV with names in it, and rows that are wrong in each way."""
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm,class,patient_id,reader,read_on"]
    for uid in (
        SERIES,
        ZIPPED,
        NIFTI,
        META,
        ZIPPED_META,
        GAPPED,
        RESCALED,
        TWO_PATIENTS,
        MR,
        ROTTEN,
        f"{ROTTEN}2",
        f"{UID_ROOT}.8.2",
        f"{UID_ROOT}.99",
        "CanaryAbsent",
    ):
        person = f"CanaryListed{uid[-8:]}" if uid != SERIES else ""
        lines += [f"{uid},{x},{y},{z},{2 * RADIUS},solid,{person},CanaryReader^Zelda,19940709" for x, y, z in PLACES]
    lines += [
        f"{SERIES},CanaryNumber,5,17.5,20,solid,,CanaryReader,19940709", f"{SERIES},1,2,3,CanaryDiameter,solid,,,",
        f"{SERIES},1,2,3,20,=CanaryFormula(),,,", f"{SERIES},1,2,3,4,Canary class / with a slash,,,", f"{SERIES},1,2,CanaryShort",
        f"{META},1,2,3,4,solid,CanaryOtherPatient,,", f"{SERIES},900,5,17.5,20,solid,,CanaryOutside,", lines[1],
    ]  # fmt: skip
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_lidc(file: Path) -> None:
    """LIDC's XML with everything that names somebody; two readers mark the first lesion alike, each in two slices."""
    a, b, c = PLACES[0]
    column, row, middle = (round((at - o) / s) for at, o, s in zip((a, b, c), ORIGIN, SPACING[::-1], strict=True))
    corners = [(column + dx, row + dy) for dx, dy in ((-4, -4), (4, -4), (4, 4), (-4, 4), (-4, -4))]
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in corners)
    rois = "".join(
        f"<roi><imageZposition>{ORIGIN[2] + SPACING[0] * k}</imageZposition><imageSOP_UID>{UID_ROOT}.1.3.{k + 1}</imageSOP_UID>"
        f"<inclusion>TRUE</inclusion>{edges}</roi>" for k in (middle - 1, middle)
    )  # fmt: skip
    nodule = f"<unblindedReadNodule><noduleID>CanaryNodule</noduleID><characteristics><texture>5</texture></characteristics>{rois}</unblindedReadNodule>"
    broken = (
        "<unblindedReadNodule><noduleID>CanaryBroken</noduleID><roi><imageZposition>CanaryZ</imageZposition></roi></unblindedReadNodule>"
    )
    sessions = "".join(
        f"<readingSession><servicingRadiologistID>CanaryRadiologist{n}</servicingRadiologistID>{nodule}{broken}</readingSession>"
        for n in (1, 2)
    )
    file.parent.mkdir(parents=True)
    file.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?><!-- CanaryXmlComment --><LidcReadMessage uid="{UID_ROOT}.8" xmlns="http://www.nih.gov">'
        f"<ResponseHeader><MessageId>CanaryMessage</MessageId><DateRequest>1994-07-09</DateRequest><RequestingSite>CanarySite</RequestingSite>"
        f"<ServicingSite>CanaryServicing</ServicingSite><TaskDescription>CanaryTask</TaskDescription><CtImageFile>CanaryCtFile</CtImageFile>"
        f"<SeriesInstanceUid>{SERIES}</SeriesInstanceUid><StudyInstanceUID>{UID_ROOT}.1.1</StudyInstanceUID></ResponseHeader>"
        f"{sessions}</LidcReadMessage>",
        encoding="utf-8",
    )
    (file.parent / "CanaryDamaged.xml").write_text(f"<LidcReadMessage><a>CanaryA</b>{UID_ROOT}")
    (file.parent / "CanaryForeign.xml").write_text("<CanaryRoot>CanaryText</CanaryRoot>")


def write_segmentation(file: Path, ct: Path) -> None:
    """A DICOM segmentation of the lesions, with names in every label and description."""
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence("CanaryAlgorithm", codes.cid7162.ArtificialIntelligence, "CanaryVersion")
    segments = [
        SegmentDescription(
            number, label, codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Nodule, SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm, tracking_uid=f"{UID_ROOT}.8.9{number}", tracking_id="CanaryTracking",
        ) for number, label in ((1, "CanaryLabel"), (2, "CanaryOther's label"))
    ]  # fmt: skip
    pixels = np.stack([inside(), inside()], axis=-1)
    pixels[:, :, 60:, 0], pixels[:, :, :60, 1] = 0, 0
    images = sorted((pydicom.dcmread(slice_) for slice_ in ct.iterdir()), key=lambda image: image.InstanceNumber)
    image = Segmentation(
        images, pixels, SegmentationTypeValues.BINARY, segments, f"{UID_ROOT}.8.10", 1, f"{UID_ROOT}.8.11", 1, "CanaryMaker", "CanaryModel",
        "CanaryVersion", "CanarySerial", content_description="CanaryContentDescription", content_creator_name="Canary^Creator",
        content_label="CANARYLABEL", series_description="CanarySegSeries",
    )  # fmt: skip
    file.parent.mkdir(parents=True)
    image.save_as(file)
    shutil.copy(file, file.with_name("CanaryCut.dcm"))
    file.with_name("CanaryCut.dcm").write_bytes(file.read_bytes()[:1500])


def write_pictures(folder: Path) -> None:
    """PNG and JPEG pictures with names, dates and notes inside, in class folders; and an npz with names for groups."""
    rng = np.random.default_rng(0)
    for label in ("solid", "cystic"):
        for n in range(5):
            place = folder / "CanaryTree" / label / f"CanaryWard{n}"
            place.mkdir(parents=True)
            picture = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
            notes = PngImagePlugin.PngInfo()
            notes.add_text("Author", "CanaryPngText")
            notes.add_text("Comment", "CanaryPngPacked 19431207", zip=True)
            notes.add_itxt("Title", "CanaryPngInternational", zip=True)
            picture.save(place / f"CanaryPicture{n}-19930418_a.png", pnginfo=notes)
            exif = Image.Exif()
            exif[0x010E], exif[0x9003] = "CanaryExif", "1943:12:07 23:59:48"
            picture.save(place / f"CanaryPicture{n}-19930418_b.jpg", exif=exif, comment=b"CanaryJpegComment")
    gray = rng.integers(0, 256, (12, 16, 16), dtype=np.uint8)
    groups = np.array([f"CanaryGroup{n // 2}" for n in range(12)])
    np.savez(
        folder / "CanarySet.npz",
        train_images=gray,
        train_labels=np.arange(12) % 2,
        train_groups=groups,
        CanaryArray=np.array(["CanaryNote"]),
    )
