"""What the tests share: running a command as a user does, and small scans whose truth is known."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch load: on arrays this small, threads cost more than they bring

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from data.command import run_command
from data.dicom_writing import Subject, write_series

ROOT = Path(__file__).parent.parent


def benchmark(name: str) -> Iterator[ModuleType]:
    """benchmarks/NAME.py as a module, from its file: another package of that name may be installed. For a fixture."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """command("data", "prepare", ...) runs `python -m data prepare ...` in this process, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LESIONGAN_KEY", str(tmp_path / "secrets" / "pseudonym.key"))

    def run(name: str, *arguments: object) -> Result:
        module = importlib.import_module({"data": "data.__main__", "evaluate": "evaluate.__main__"}.get(name, name))
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run_command(module.main)
        return Result(int(exit_.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def no_curves(monkeypatch) -> None:
    """An empty file in place of a run's curves: drawing them takes a second, and is not what the test is about."""
    monkeypatch.setattr("gan.curves.write_curves", lambda metrics, picture: picture.write_bytes(b""))


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """A report's page with a dot in place of each figure: drawing them takes longer than the rest, and is not what the test is about."""
    dot = io.BytesIO()
    Image.new("L", (1, 1)).save(dot, "png")
    for name in ("attribute_distributions", "noise_and_gray_levels"):
        monkeypatch.setattr(f"evaluate.page.{name}", lambda *sets: dot.getvalue())


@pytest.fixture
def real_data() -> Path:
    """The folder of real CT data, $LESIONGAN_DATA; skips where it is absent."""
    folder = Path(os.environ.get("LESIONGAN_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set LESIONGAN_DATA")
    return folder


def noise_volume(shape=(6, 20, 24), seed=0) -> np.ndarray:
    """int16 HU without any symmetry, so that every flip, shift or swap shows."""
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


def affine_of(spacing=(2.5, 0.7, 0.8), origin=(-30.0, -40.0, 100.0)) -> np.ndarray:
    """Axial index-to-LPS affine: k to the head, j to the back, i to the left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
    affine[:3, 3] = origin
    return affine


def dicom_series(
    folder: Path, hu: np.ndarray | None = None, affine: np.ndarray | None = None, name="Doe^Jane", patient_id="JD-1"
) -> list[Path]:
    """Writes a series and returns its files in order of position."""
    hu = noise_volume() if hu is None else hu
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{k:03d}.dcm" for k in range(len(hu))]
    subject = Subject(patient_id, name, patient_id, "test series", "0" * 64, "test", (-1000, 400))
    write_series(hu, affine_of() if affine is None else affine, subject, files)
    return files
