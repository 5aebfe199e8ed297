"""The catalogue of odd hospital input, read by lesiongan and by the readers that others use.

  python benchmarks/catalogue.py            every reader that is installed
  python benchmarks/catalogue.py --quick    every eighth case, without those built to exhaust memory

The cases are those of the tests (tests/catalogue.py), generated in a temporary folder; nothing is downloaded. Each
reader runs in a process of its own, of at most 12 GiB, which is started again after a crash or a hang; it is asked
only for the formats that it reads. One case ends as one of these:

  right     it gave the truth, or gave nothing where an error is right
  wrong     it gave volumes, none of which is the truth, or gave one where only an error is right, and went on as if
            all were well. A warning beside a wrong volume does not make it right: a pipeline goes on
  refused   it gave nothing, by an exception or an empty result, though the input is good
  crashed   the process died, or gave no answer in time

The rule favours the others: of several volumes that a reader gives for a folder one that is right is enough; axes
may come in any order and direction that fits the affine; HU may be float and off by rounding, up to 1; padding may
hold any value from -1000 HU down (from us: -1024); tilted slices may be stored sheared, refused, or resampled onto
a straight grid; where an odd file lies beside a good scan, the truth is the good scan, and nobody else has to tell of
the skip; a folder that holds nothing but a folder is opened for them. Three rules are strict, as the catalogue is: a gap
that is filled by interpolation is wrong, for what was not measured is not there; so is a scan read without a file that
was cut off or emptied, for it may be a slice short; and so are windowed pictures handed on, for what follows takes them for HU.

Readers that are not installed are listed as absent. MONAI's are asked through LoadImage, as users do: where the named one
fails it tries its others. SimpleITK takes every series that GDCM lists in a folder; the
pydicom loop is the usual one (files named .dcm, sorted by position along z, each slice's slope and intercept, spacing from
the first two); highdicom is asked for each series, dicom2nifti and dcm2niix for the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

Volumes = list[tuple[np.ndarray, np.ndarray]]
"""HU (K, J, I) and index-to-LPS affine, each."""

VERDICTS = ("right", "wrong", "refused", "crashed")
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SECONDS = 30
MEMORY = 12 << 30


# ---------------------------------------------------------------- readers: a path in, volumes out, or an exception


def nifti_files(folder: Path) -> Volumes:
    import nibabel as nib

    images = [nib.Nifti1Image.from_filename(file) for file in sorted(folder.glob("*.nii*"))]
    return [(np.asarray(image.dataobj).T, RAS @ image.affine[:, [2, 1, 0, 3]]) for image in images]


def lesiongan(source: Path, out: Path) -> Volumes:
    from data.__main__ import main

    main(["convert", str(source), str(out / "volume.nii.gz")])
    return nifti_files(out)


def monai(reader: str) -> Callable[[Path, Path], Volumes]:
    def read(source: Path, out: Path) -> Volumes:
        from monai.transforms import LoadImage

        image = LoadImage(reader=reader, image_only=True, dtype=np.float64)(str(source))
        return [(image.numpy().transpose(*reversed(range(image.ndim))), RAS @ np.asarray(image.affine, float)[:, [2, 1, 0, 3]])]

    return read


def simpleitk(source: Path, out: Path) -> Volumes:
    import SimpleITK as sitk

    if source.is_file():
        return [_from_sitk(sitk.ReadImage(str(source)))]
    volumes = []
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(source)):
        with contextlib.suppress(RuntimeError):
            files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(source), uid)
            volumes.append(_from_sitk(sitk.ReadImage(files if len(files) > 1 else files[0])))
    return volumes


def _from_sitk(image) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    affine = np.eye(4)
    if image.GetDimension() == 3:
        affine[:3, :3] = (np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing()))[:, ::-1]
        affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), affine


def pydicom_loop(source: Path, out: Path) -> Volumes:
    import pydicom

    slices = [pydicom.dcmread(file) for file in sorted(source.glob("*.dcm"))]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    hu = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    first, cosines = slices[0], np.array(slices[0].ImageOrientationPatient, float)
    origin = np.array(first.ImagePositionPatient, float)
    affine = np.eye(4)
    affine[:3, 0] = np.array(slices[1].ImagePositionPatient, float) - origin
    affine[:3, 1], affine[:3, 2] = cosines[3:] * float(first.PixelSpacing[0]), cosines[:3] * float(first.PixelSpacing[1])
    affine[:3, 3] = origin
    return [(hu, affine)]


def _by_series(source: Path) -> list[list[Path]]:
    """The files of each series: what a user of a library that wants one series has to find out alone.

    A file that is no DICOM, or of no series, is left out, unless its name says that it should be.
    """
    import pydicom

    series: dict[str, list[Path]] = {}
    for file in sorted(f for f in source.rglob("*") if f.is_file()):
        try:
            uid = str(pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID)
        except (pydicom.errors.InvalidDicomError, AttributeError):
            if file.suffix == ".dcm":
                raise
            continue
        series.setdefault(uid, []).append(file)
    return list(series.values())


def highdicom(source: Path, out: Path) -> Volumes:
    import highdicom as hd
    import pydicom

    volumes, errors = [], []
    for files in _by_series(source):
        try:
            if len(files) == 1 and "NumberOfFrames" in pydicom.dcmread(files[0], stop_before_pixels=True):
                volume = hd.imread(files[0]).get_volume()
            else:
                volume = hd.get_volume_from_series([pydicom.dcmread(file) for file in files])
            volumes.append((volume.array, volume.affine))
        except Exception as error:
            errors.append(error)
    if errors and not volumes:
        raise errors[0]
    return volumes


def dicom2nifti(source: Path, out: Path) -> Volumes:
    import dicom2nifti

    dicom2nifti.convert_directory(str(source), str(out), compression=False, reorient=False)
    return nifti_files(out)


def dcm2niix(source: Path, out: Path) -> Volumes:
    done = subprocess.run(["dcm2niix", "-z", "n", "-b", "n", "-o", str(out), str(source)], capture_output=True, timeout=SECONDS)
    if done.returncode < 0:
        os._exit(1)  # its crash is the reader's
    return nifti_files(out)


READERS: dict[str, tuple[Callable[[Path, Path], Volumes], str, tuple[str, ...]]] = {
    "lesiongan": (lesiongan, "lesiongan", ("dicom", "zip", "nifti", "metaimage")),
    "MONAI PydicomReader": (monai("PydicomReader"), "monai", ("dicom",)),
    "MONAI NibabelReader": (monai("NibabelReader"), "monai", ("nifti",)),
    "MONAI ITKReader": (monai("ITKReader"), "itk", ("dicom", "nifti", "metaimage")),
    "SimpleITK": (simpleitk, "SimpleITK", ("dicom", "nifti", "metaimage")),
    "pydicom loop": (pydicom_loop, "pydicom", ("dicom",)),
    "highdicom": (highdicom, "highdicom", ("dicom",)),
    "dicom2nifti": (dicom2nifti, "dicom2nifti", ("dicom",)),
    "dcm2niix": (dcm2niix, "dcm2niix", ("dicom",)),
}
"""Name: how it reads, the package or program it needs, and the formats."""


def version_of(package: str) -> str | None:
    """The installed version of a package or a program, None when it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if shutil.which(package) is None:
            return None
        return subprocess.run([package, "--version"], capture_output=True, text=True).stdout.split()[-1]


# ---------------------------------------------------------------- judging, in the reader's process


def judge(case, reader: str, folder: Path) -> tuple[str, str]:
    """One of VERDICTS, and a few words of why."""
    source, truth = case.write(folder / "scan")
    (folder / "out").mkdir()
    while source.is_dir() and reader != "lesiongan" and len(inside := list(source.iterdir())) == 1 and inside[0].is_dir():
        source = inside[0]
    try:
        volumes = READERS[reader][0](source, folder / "out")
        if not volumes:
            raise ValueError("it gave no volume")
    except BaseException as error:  # every library has its own kinds; some call sys.exit
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return ("right", "") if "E" in case.outcome else ("refused", why)
    if truth is None:
        return "wrong", f"gave a volume of {' x '.join(map(str, volumes[0][0].shape))}"
    wrongs = [_difference(truth, hu, affine, exact=reader == "lesiongan") for hu, affine in volumes]
    return ("right", "") if "" in wrongs else ("wrong", wrongs[0])


def _difference(truth, hu: np.ndarray, affine: np.ndarray, exact: bool) -> str:
    try:
        return truth.difference(hu, affine, 0 if exact else 1)
    except (ValueError, np.linalg.LinAlgError) as error:  # an affine that is none
        return str(error)


def work(reader: str) -> None:
    """Reads names of cases and folders from stdin, and answers each on what was stdout: libraries may write to that."""
    from catalogue import CASES

    cases = {case.name: case for case in CASES}
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        name, folder = json.loads(line)
        print(json.dumps(judge(cases[name], reader, Path(folder))), file=answers, flush=True)


# ---------------------------------------------------------------- running


class Worker:
    """A reader's process, started again when it died or hung."""

    def __init__(self, reader: str):
        self.reader = reader
        self.process: subprocess.Popen[str] | None = None

    def ask(self, name: str, folder: Path) -> tuple[str, str]:
        if self.process is None:
            command = [sys.executable, __file__, "--worker", self.reader]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdin  # both are pipes
        assert self.process.stdout
        self.process.stdin.write(json.dumps([name, str(folder)]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        answer = self.process.stdout.readline() if ready else ""
        if answer:
            verdict, why = json.loads(answer)
            return verdict, why
        self.stop()
        return "crashed", "the process died" if ready else f"no answer in {SECONDS} s"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def run(reader: str, cases: list) -> dict[str, tuple[str, str]]:
    """The verdict on each case, by its name."""
    worker = Worker(reader)
    verdicts = {}
    try:
        for case in cases:
            with tempfile.TemporaryDirectory(prefix="catalogue-") as folder:
                verdicts[case.name] = worker.ask(case.name, Path(folder))
    finally:
        worker.stop()
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every eighth case")
    parser.add_argument("--json", metavar="FILE", help="write ratios, counts and each verdict")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), metavar="NAME", help="only these")
    parser.add_argument("--verbose", action="store_true", help="name each case that a reader does not get right")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker)
        return
    from catalogue import CASES

    chosen = [case for n, case in enumerate(CASES) if not options.quick or (n % 8 == 0 and not case.bounded)]
    versions = {reader: version_of(READERS[reader][1]) for reader in options.readers}
    results = {}
    print(f"{'reader':<30}{'cases':>7}{'right':>7}{'wrong':>7}{'refused':>9}{'crashed':>9}")
    for reader, version in versions.items():
        if version is None:
            print(f"{reader:<30} absent")
            continue
        results[reader] = run(reader, [case for case in chosen if case.kind in READERS[reader][2]])
        count = Counter(verdict for verdict, _ in results[reader].values())
        print(
            f"{f'{reader} {version}':<30}{count.total():>7}{count['right']:>7}{count['wrong']:>7}{count['refused']:>9}{count['crashed']:>9}",
            flush=True,
        )
        for name, (verdict, why) in results[reader].items():
            if options.verbose and verdict != "right":
                print(f"    {verdict:<8} {name}: {why}")
    print("\nwrong: a volume that is not the truth, or one where only an error is right; refused: good input; judged as the docstring says")
    if options.json:
        Path(options.json).write_text(json.dumps(summary(results, versions, len(chosen)), indent=1) + "\n")


def summary(results: dict[str, dict[str, tuple[str, str]]], versions: dict[str, str | None], cases: int) -> dict:
    """Ratios, ours over each peer's: the share of silently wrong volumes on the cases that both were asked."""
    ratios = {}
    for reader, verdicts in results.items():
        theirs = sum(verdict == "wrong" for verdict, _ in verdicts.values())
        if reader != "lesiongan" and theirs and "lesiongan" in results:
            ours = sum(results["lesiongan"][name][0] == "wrong" for name in verdicts)
            ratios[f"silently wrong volumes: lesiongan / {reader}"] = ours / theirs
    counts = {reader: {v: sum(verdict == v for verdict, _ in found.values()) for v in VERDICTS} for reader, found in results.items()}
    wrongs = {reader: {name: v for name, v in found.items() if v[0] != "right"} for reader, found in results.items()}
    conditions = {"cases": cases, "seconds a case": SECONDS, "memory in bytes": MEMORY, "versions": versions}
    return {"ratios": ratios, "counts": counts, "not right": wrongs, "conditions": conditions}


if __name__ == "__main__":
    main()
