"""Gray-level pictures to patches: MedMNIST-style npz files, and folders of PNG or JPEG by class.

A gray level g of 0..max stands for HU = low + g / max (high - low) when the window (low, high) is
stated; otherwise the levels are kept as they are (16-bit ones minus 32768, to fit) and the unit is "gray".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

import numpy as np

from data.patches import Patch, PatchSpec, PatchWriter, check_label, split_by_patient
from data.preprocess import Window
from data.pseudonyms import Pseudonyms
from data.sources import memory_bytes

_NPZ_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ImportConfig:
    """How pictures become patches.

    window: the HU of black and white, None where unknown. size: side in pixels to resize to, None to keep.
    classes: names for an npz file's labels 0, 1, ...; background: which of them is lesion-free.
    separator: the patient is the part of a picture's file name before it; None: each picture is a patient.
    one_each: a picture that names no patient is known to be another patient's. licence: of the pictures, in words.
    synthetic: a generator made them; nobody's, and not to be split.
    """

    window: Window | None = None
    size: int | None = None
    spacing_mm: float | None = None
    classes: tuple[str, ...] | None = None
    background: str | None = None
    separator: str | None = None
    seed: int = 0
    validation: float = 0.15
    test: float = 0.25
    one_each: bool = False
    licence: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class Picture:
    """One gray picture, read when asked for: `gray()` is uint8 or uint16 (H, W) or (D, H, W). nameless: it names no patient."""

    gray: Callable[[], np.ndarray]
    label: str
    patient: str
    split: str | None
    nameless: bool


def import_pictures(
    source: Path, out: Path, config: ImportConfig, pseudonyms: Pseudonyms,
    track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> PatchWriter:  # fmt: skip
    """Writes the pictures of an npz file or a class-folder tree into the empty folder `out`.

    npz splits stay as they are; where validation or test patients are missing, whole training
    patients are moved there by the configured fractions. Raises ValueError naming what does not fit.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    pictures = _from_tree(source, config) if source.is_dir() else _from_npz(source, config)
    if config.synthetic:
        pictures = [replace(picture, split="synthetic", nameless=False) for picture in pictures]
    labels = list(config.classes or sorted({p.label for p in pictures}))
    if len(set(labels)) < len(labels):
        raise ValueError(f"classes {', '.join(labels)}: one name is there twice")
    if config.background is not None and config.background not in labels:
        raise ValueError(f"--background {config.background!r} is not one of the classes {', '.join(labels)}")
    first = pictures[0].gray()
    shape = (config.size,) * first.ndim if config.size else first.shape
    unit: Literal["HU", "gray"] = "HU" if config.window else "gray"
    window = config.window
    if window is None:
        window = (0, 255) if first.dtype == np.uint8 else (-32768, 32767)
    # by the patients' own names, so that the split does not change with the pseudonym key
    splits = split_by_patient({p.patient for p in pictures if not p.split}, config.seed, *_fractions(pictures, config))
    writer = PatchWriter(
        out,
        PatchSpec(
            shape=shape, spacing_mm=None if config.spacing_mm is None else (config.spacing_mm,) * len(shape), window=window,
            classes=tuple(labels), unit=unit, background=config.background,
            resampling="none" if shape == first.shape else "linear, smoothed before shrinking",
            licence=config.licence, patients_known=config.one_each or not any(p.nameless for p in pictures),
            origin="synthetic" if config.synthetic else "real",
        ),
    )  # fmt: skip
    for picture in track(pictures, len(pictures)):
        gray = picture.gray()
        if gray.shape != first.shape or gray.dtype != first.dtype:
            raise ValueError(f"{source}: one picture is {gray.dtype}{gray.shape}, the first is {first.dtype}{first.shape}")
        patient = pseudonyms.patient(picture.patient)
        split = picture.split or splits[picture.patient]
        writer.add(Patch(_values(gray, config.window, shape), patient, patient.replace("p-", "s-"), picture.label, split=split))
    writer.finish()
    return writer


def _fractions(pictures: Sequence[Picture], config: ImportConfig) -> tuple[float, float]:
    """Which shares of the patients still without a split go to validation and test."""
    given = {p.split for p in pictures}
    return (0 if "validation" in given else config.validation), (0 if "test" in given else config.test)


def _values(gray: np.ndarray, window: Window | None, shape: tuple[int, ...]) -> np.ndarray:
    """int16 of `shape`: HU by the window, or the gray levels themselves."""
    top = float(np.iinfo(gray.dtype).max)
    values = gray.astype(np.float64)
    if gray.shape != shape:
        from skimage.transform import resize

        values = resize(values, shape, order=1, anti_aliasing=True, preserve_range=True, mode="edge")
    if window is not None:
        values = window[0] + values / top * (window[1] - window[0])
    elif gray.dtype == np.uint16:
        values = values - 32768
    return np.rint(values).astype(np.int16)


def _from_npz(source: Path, config: ImportConfig) -> list[Picture]:
    try:
        with ZipFile(source) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > memory_bytes():
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than the memory can hold")
        with open(source, "rb") as content, np.lib.npyio.NpzFile(content, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (ValueError, BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{source}: not an npz file of plain arrays ({error})") from None
    pictures: list[Picture] = []
    owner: dict[str, str] = {}
    for prefix, split in _NPZ_SPLITS.items():
        if f"{prefix}_images" not in arrays:
            continue
        images, labels = arrays[f"{prefix}_images"], arrays.get(f"{prefix}_labels")
        nameless = f"{prefix}_groups" not in arrays
        groups = arrays.get(f"{prefix}_groups", np.array([f"{prefix} {n}" for n in range(len(images))]))
        if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] == 3):
            raise ValueError(
                f"{source}: {prefix}_images is {images.dtype}{images.shape}; want gray uint8 or uint16 (N, H, W) or (N, D, H, W)"
            )
        if labels is None or labels.size != len(images) or len(groups) != len(images):
            raise ValueError(f"{source}: {prefix}_images has {len(images)} pictures; its labels or groups do not fit")
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ValueError(f"{source}: {prefix}_labels must be whole numbers from 0")
        if config.classes and labels.max() >= len(config.classes):
            raise ValueError(f"{source}: label {labels.max()} has no name among --classes {','.join(config.classes)}")
        for n, (image, label, group) in enumerate(zip(images, labels.ravel(), groups.ravel(), strict=True)):
            if owner.setdefault(str(group), split) != split:
                raise ValueError(
                    f"{source}: the patient (group) of {prefix}_images[{n}] is in both {owner[str(group)]} and {split}; "
                    "splits must not share patients"
                )
            name = config.classes[label] if config.classes else str(label)
            # training patients stay open: some of them may be needed for validation or test
            pictures.append(Picture(partial(np.asarray, image), name, str(group), None if split == "train" else split, nameless))
    if not pictures:
        raise ValueError(f"{source}: no train_images, val_images or test_images in it")
    return pictures


def _from_tree(source: Path, config: ImportConfig) -> list[Picture]:
    pictures = []
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        for file in sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES):
            patient = _patient_of(file, config.separator) if config.separator else f"{folder.name}/{file.name}"
            pictures.append(Picture(partial(_read_gray, file), check_label(folder.name), patient, None, not config.separator))
    if not pictures:
        raise ValueError(f"{source}: no folder in it holds PNG or JPEG files; want one folder a class")
    return pictures


def _patient_of(file: Path, separator: str) -> str:
    """What stands before the separator in its name. Raises ValueError where there is none: each such picture would be a known patient's of its own."""
    patient, there, _ = file.stem.partition(separator)
    if not (patient and there):
        raise ValueError(f"{file}: no {separator!r} behind a patient in its name, which --separator says; name all files alike")
    return patient


def _read_gray(file: Path) -> np.ndarray:
    """uint8 or uint16 (H, W). Raises ValueError for a colour picture or a damaged file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.mode not in ("L", "I;16", "I;16B", "I"):
                raise ValueError(f"{file}: mode {image.mode}, want 8- or 16-bit gray")
            values = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a whole picture ({error})") from None
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"{file}: gray levels {values.min()} to {values.max()}, want 8 or 16 bits")
    return values if values.dtype == np.uint8 else values.astype(np.uint16)
