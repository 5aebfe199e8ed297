"""No name, id, UID, date or path of a patient reaches an output, a log, a tracker or a checkpoint: planted everywhere, searched for everywhere.

All of it lies in a folder that is itself named after a patient, so an absolute path in an output is found as well.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import importlib
import io
import json
import os
import shutil
import signal
import sys
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from canaries import UID_ROOT, leaks, leaks_in, patterns, plant
from conftest import Result, affine_of, dicom_series
from PIL import Image, PngImagePlugin

from data.command import run_command
from data.nifti import write_nifti
from data.patches import PatchFolder

SHAPE, SPACING, ORIGIN = (8, 100, 120), (5.0, 2.5, 2.5), (-150.0, -120.0, 0.0)
PLACES = ((-62.5, 5.0, 17.5), (62.5, 5.0, 17.5), (62.5, 30.0, 12.5))
CUT = ["--size", 16, "--spacing", 2.5, "--processes", 1, "--validation", 0.2, "--test", 0.2]


def chest(seed: int) -> np.ndarray:
    """int16 HU: a noisy body, two lungs, a ball in each of PLACES."""
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu = np.full(SHAPE, -1000) + np.random.default_rng(seed).integers(-20, 20, SHAPE)
    hu[np.broadcast_to(((j - 50) / 48) ** 2 + ((i - 60) / 58) ** 2 <= 1, SHAPE)] += 1040
    for c in (35, 85):
        hu[np.broadcast_to((j - 50) ** 2 + (i - c) ** 2 <= 21**2, SHAPE)] -= 890
    hu[balls() > 0] = 111 + seed
    return hu.astype(np.int16)


def balls() -> np.ndarray:
    """uint8: 1 inside the lesions."""
    points = np.stack(np.meshgrid(*(o + s * np.arange(n) for o, s, n in zip(ORIGIN[::-1], SPACING, SHAPE, strict=True)), indexing="ij"), -1)
    inside = [np.linalg.norm(points[..., ::-1] - place, axis=-1) <= 10 for place in PLACES]
    return np.any(inside, axis=0).astype(np.uint8)


def series(folder: Path, number: int, **changes: object) -> str:
    """A chest as a DICOM series full of canaries; its UID."""
    files = dicom_series(folder, chest(number), affine_of(SPACING, ORIGIN))
    for n, file in enumerate(files):
        plant(file, number, **changes)
        file.rename(folder / f"CanaryFile{n}.dcm")
    return f"{UID_ROOT}.{number}.2"
