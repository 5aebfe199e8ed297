"""How long a CT series takes to read, and to cut patches from: lesiongan beside the tools people use, on the same files.

  python benchmarks/readers.py                     # a phantom series of 300 slices of 512 x 512, and $LESIONGAN_DATA's real one
  python benchmarks/readers.py --quick --json readers.json

Every tool runs in this one process, in turns, each after one untimed round (OMP_NUM_THREADS=1 keeps them to one thread); the median of the rounds counts.
The files are in the page cache ("warm"), and once more each tool reads after they were dropped from it ("cold"), as
far as the system allows. Peers give a volume of HU at its own spacing; MONAI's pipeline also resamples it to 1 mm, as
it must before patches can be cut; lesiongan cuts 16 patches of 64 x 64 at 1 mm, eight of them lesion-free, with its lung mask.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

from data.cohort import find_volumes
from data.cutting import CutConfig, cut_series, read_volume
from data.dicom_writing import Subject, write_series
from data.lesion_tables import Points
from data.phantom import chest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 slices of 256 x 256 and fewer rounds: under a minute")
    parser.add_argument("--json", type=Path, help="file to write ratios and conditions to")
    options = parser.parse_args()
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    warnings.simplefilter("ignore")
    logging.disable()  # of decoders that a peer would like to have
    with tempfile.TemporaryDirectory() as place:
        folders = {"phantom": phantom_series(Path(place) / "phantom", options.quick)}
        real = Path(os.environ.get("LESIONGAN_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "ct-series"
        if real.is_dir():
            folders["real"] = next(folder for folder in sorted(real.iterdir()) if folder.is_dir())
        found = {name: measure(name, folder, rounds=3 if options.quick else 5) for name, folder in folders.items()}
    if options.json:
        ratios = {
            f"{name}_{what}_over_{'_'.join(peer.lower().replace('+', 'and').split())}": round(times[peer]["warm"] / times[ours]["warm"], 3)
            for name, times in found.items()
            for ours, what in (("lesiongan, volume", "read"), ("lesiongan, 16 patches", "cut"))
            for peer in times
            if not peer.startswith("lesiongan")
        }
        conditions = {"date": str(date.today()), "python": platform.python_version(), "machine": platform.machine(),
                      "cores": os.cpu_count(), "threads": 1, "seconds": found}  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n")


def phantom_series(folder: Path, quick: bool) -> Path:
    """An uncompressed series of a procedural chest, pixels repeated to the matrix of a hospital scan."""
    volume, _ = chest(np.random.default_rng(0), "phantom", matrix=256, slice_mm=5.0, lesions=3)
    slices, repeat = (60, 1) if quick else (300, 2)
    hu = volume.hu.repeat(repeat, 1).repeat(repeat, 2)
    hu = hu[np.linspace(0, len(hu) - 1, slices).astype(int)]
    affine = volume.affine.copy()
    affine[:3, 1:3] /= repeat
    affine[:3, 0] *= len(volume.hu) / slices
    folder.mkdir()
    subject = Subject("0", "PHANTOM", "0", "benchmark", "phantom", "1", (-1000, 400))
    write_series(np.ascontiguousarray(hu), affine, subject, [folder / f"{k:04d}.dcm" for k in range(slices)])
    return folder


def measure(name: str, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Prints and returns seconds by tool, warm (median) and cold (one reading)."""
    files = sorted(folder.glob("*.dcm"))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    tools = {what: tool for what, tool in tools_for(folder).items() if runs(what, tool)}
    times: dict[str, list[float]] = {what: [] for what in tools}
    for _ in range(rounds):
        for what, tool in tools.items():
            times[what].append(seconds(tool))
    found = {what: {"warm": statistics.median(times[what]), "cold": cold(tools[what], files)} for what in tools}
    print(f"\n{name}: {len(files)} slices, {megabytes:.0f} MB")
    print(f"{'':<34}{'warm, s':>9}{'ms a slice':>12}{'cold, s':>9}{'MB/s warm':>11}")
    for what, one in sorted(found.items(), key=lambda pair: pair[1]["warm"]):
        print(f"{what:<34}{one['warm']:>9.3f}{one['warm'] / len(files) * 1e3:>12.2f}{one['cold']:>9.3f}{megabytes / one['warm']:>11.0f}")
    return found


def runs(what: str, tool: Callable[[], object]) -> bool:
    """Whether a tool is there; its first, untimed round."""
    try:
        tool()
    except ImportError as error:
        print(f"{what}: not installed ({error.name})")
        return False
    return True


def seconds(tool: Callable[[], object]) -> float:
    start = time.perf_counter()
    tool()
    return time.perf_counter() - start


def cold(tool: Callable[[], object], files: list[Path]) -> float:
    """Once, after the files were dropped from the page cache; NaN where the system does not allow that."""
    if not hasattr(os, "posix_fadvise"):
        return float("nan")
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return seconds(tool)


def tools_for(folder: Path) -> dict[str, Callable[[], object]]:
    """Each tool as a function of nothing, given the same folder."""
    files = [str(file) for file in sorted(folder.glob("*.dcm"))]

    def read_bytes() -> None:
        for file in files:
            Path(file).read_bytes()

    def ours_read() -> None:
        (series,), _ = find_volumes([folder])
        read_volume(series)

    def ours_cut() -> None:
        (series,), _ = find_volumes([folder])
        cut_series(series, [lesions], CutConfig())

    def pydicom_loop() -> np.ndarray:
        import pydicom

        slices = sorted((pydicom.dcmread(file) for file in files), key=lambda s: float(s.ImagePositionPatient[2]))
        return np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices]).astype(np.int16)

    def simpleitk() -> np.ndarray:
        import SimpleITK as sitk

        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return sitk.GetArrayFromImage(reader.Execute())

    def monai(spacing: bool) -> object:
        from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Spacing

        steps = [LoadImage(image_only=True, reader="PydicomReader"), EnsureChannelFirst()]
        return Compose([*steps, Spacing((1.0, 1.0, 1.0))] if spacing else steps)(str(folder))

    def highdicom() -> object:
        import highdicom as hd
        import pydicom

        return hd.get_volume_from_series([pydicom.dcmread(file) for file in files])

    (series,), _ = find_volumes([folder])
    volume = read_volume(series)
    middle = np.array(volume.hu.shape) / 2
    centres = [volume.point_at(middle * (1 + 0.05 * n, 1, 0.6)) for n in range(-4, 4)]
    lesions = Points(np.array(centres), np.full(len(centres), 8.0), ("lesion",) * len(centres))
    return {
        "reading the bytes only": read_bytes,
        "lesiongan, volume": ours_read,
        "lesiongan, 16 patches": ours_cut,
        "pydicom loop": pydicom_loop,
        "SimpleITK series reader": simpleitk,
        "highdicom": highdicom,
        "MONAI LoadImage": lambda: monai(False),
        "MONAI LoadImage + Spacing": lambda: monai(True),
    }


if __name__ == "__main__":
    main()
