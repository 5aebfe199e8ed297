"""Clients of hospitals take what is sampled: an image archive (Orthanc, by C-STORE and by STOW-RS) and a validator (dciodvfy).

Each test is skipped, and says what to install, where its client is absent.
"""

import json
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import ExitStack
from email import message_from_bytes
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import pydicom
import pytest

from data.dicom_writing import Subject
from data.files import new_folder
from data.patches import Patch, PatchSpec, PatchWriter
from data.segmentation_writing import write_segmentation
from sample import main as sample
from train import main as train

INSTALL = "apt install orthanc orthanc-dicomweb dcmtk dicom3tools"
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")


def client(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin")
    if not found:
        pytest.skip(f"no {name}: {INSTALL}")
    return found


class Archive(NamedTuple):
    url: str
    dicom_port: int

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> bytes:
        request = Request(f"{self.url}/{path}", body, {name.replace("_", "-"): value for name, value in headers.items()})
        with urlopen(request, timeout=10) as answer:
            return answer.read()

    def count(self) -> int:
        return json.loads(self.ask("statistics"))["CountInstances"]

    def stored(self, image: pydicom.Dataset) -> pydicom.Dataset:
        """The archive's copy of it, by Orthanc's own interface."""
        (found,) = json.loads(self.ask("tools/lookup", image.SOPInstanceUID.encode()))
        return pydicom.dcmread(BytesIO(self.ask(found["Path"].lstrip("/") + "/file")))

    def retrieved(self, image: pydicom.Dataset) -> pydicom.Dataset:
        """The same by WADO-RS (PS3.18, 10.4): a multipart answer of one file."""
        path = f"dicom-web/studies/{image.StudyInstanceUID}/series/{image.SeriesInstanceUID}/instances/{image.SOPInstanceUID}"
        answer = self.ask(path, Accept='multipart/related; type="application/dicom"; transfer-syntax=*')
        (part,) = message_from_bytes(
            b"Content-Type: multipart/related; boundary=" + answer[2:].split(b"\r\n")[0] + b"\n\n" + answer
        ).get_payload()
        return pydicom.dcmread(BytesIO(part.get_payload(decode=True)))

    def c_store(self, files: list[Path]) -> None:
        program = client("storescu")  # of DCMTK, or of pynetdicom; the option: propose only what these files need
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout
        command = [program, "-R" if "dcmtk" in version else "-cx", "127.0.0.1", str(self.dicom_port), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")

    def stow(self, files: list[Path]) -> dict:
        """STOW-RS (PS3.18, 10.5); returns the answer, DICOM JSON."""
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file.read_bytes() + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return json.loads(self.ask("dicom-web/studies", body, Content_Type=kind, Accept="application/dicom+json"))


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A private Orthanc, gone after the tests."""
    program = client("Orthanc")
    plugin = next((file for place in PLUGINS for file in Path(place).glob("libOrthancDicomWeb.so*")), None)
    if plugin is None:
        pytest.skip(f"Orthanc has no DICOMweb: {INSTALL}")
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom = free_ports(2)
    config = {
        "StorageDirectory": str(folder / "store"), "HttpPort": http, "DicomPort": dicom, "AuthenticationEnabled": False,
        "Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    archive = Archive(f"http://127.0.0.1:{http}", dicom)
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            given_up = time.monotonic() + 60
            while not answers(archive):
                assert process.poll() is None and time.monotonic() < given_up, (folder / "log").read_text()  # noqa: PT018
                time.sleep(0.1)
            yield archive
        finally:
            process.kill()


def answers(archive: Archive) -> bool:
    try:
        return archive.count() == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with "flat" and "cube", two runs of one step each: what they draw is noise."""
    folder = tmp_path_factory.mktemp("runs")
    small = [
        "--training.steps",
        "1",
        "--training.n_critic",
        "1",
        "--training.batch",
        "4",
        "--networks.channels",
        "4",
        "--networks.latent",
        "8",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("gan.curves.write_curves", lambda metrics, picture: None)
        for name, spacing in (("flat", (0.7, 0.8)), ("cube", (2.5, 0.7, 0.8))):
            spec = PatchSpec((8,) * len(spacing), spacing, (-1000, 400), ("nodule",))
            with new_folder(f"{name}-patches") as patches:
                writer = PatchWriter(patches, spec)
                for n in range(8):
                    hu = np.random.default_rng(n).integers(-1000, 400, spec.shape).astype(np.int16)
                    writer.add(Patch(hu, f"p{n}", f"s{n}", "nodule", split="validation" if n == 7 else "train"))
                writer.finish()
            train(["--data", f"{name}-patches", "--out", name, *small])
    return folder


def sampled(runs: Path, model: str, seed: int, out: Path) -> list[Path]:
    """The DICOM files of one sample, in order of position."""
    sample(["--run", str(runs / model), "--out", str(out), "--seeds", str(seed), "--format", "dicom"])
    return sorted((out / "dicom").rglob("*.dcm"))


def segmented(files: list[Path], label: str, file: Path) -> Path:
    """What is brighter than the middle of the images, as their segmentation."""
    hu = np.stack([pydicom.dcmread(one).pixel_array for one in files])
    subject = Subject("segmented", "", "", "", "0" * 64, "1", (-1000, 400))
    write_segmentation(hu > np.median(hu), files, subject, label, file)
    return file


@pytest.mark.parametrize(("way", "seed"), [("c_store", 1), ("stow", 2)])
def test_an_archive_gives_back_what_it_was_given(archive, runs, tmp_path, way, seed):
    files = [*sampled(runs, "flat", seed, tmp_path / "flat"), *(cube := sampled(runs, "cube", seed, tmp_path / "cube"))]
    files.append(segmented(cube, "nodule", tmp_path / "seg.dcm"))
    assert len(files) == 1 + 8 + 1
    before = archive.count()
    answer = getattr(archive, way)(files)
    assert archive.count() - before == len(files)
    sent = [pydicom.dcmread(file) for file in files]
    if way == "stow":
        assert {item["00081155"]["Value"][0] for item in answer["00081199"]["Value"]} == {image.SOPInstanceUID for image in sent}
        assert "Value" not in answer.get("00081198", {}), answer  # Failed SOP Sequence
    for image in sent:
        for copy in (archive.stored(image), archive.retrieved(image)):
            np.testing.assert_array_equal(copy.pixel_array, image.pixel_array)
            assert copy == image  # every other attribute, UIDs included
    assert {image.SyntheticData for image in sent} == {"YES"}


def test_the_same_seed_is_one_instance_and_another_seed_another(archive, runs, tmp_path):
    before = archive.count()
    for n, (seed, instances) in enumerate([(5, 1), (5, 1), (6, 2)]):
        archive.c_store(sampled(runs, "flat", seed, tmp_path / str(n)))
        assert archive.count() - before == instances
    archive.stow(sampled(runs, "flat", 5, tmp_path / "again"))
    assert archive.count() - before == 2


@pytest.mark.parametrize("model", ["flat", "cube"])
def test_a_validator_finds_nothing_wrong(runs, tmp_path, model):
    files = sampled(runs, model, 3, tmp_path / "out")
    files.append(segmented(files, "nodule", tmp_path / "seg.dcm"))
    for file in files:
        done = subprocess.run([client("dciodvfy"), str(file)], capture_output=True, text=True, timeout=30)
        found = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Abort"))]
        assert [line for line in found if "(0x0008,0x001c)" not in line] == []  # Synthetic Data is younger than many a dictionary
