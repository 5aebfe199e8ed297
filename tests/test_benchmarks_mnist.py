"""The MNIST benchmark: its IDX reader against hand-written bytes, its judges, and the whole of it on a few made images."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import benchmark

from data.command import run_command
from evaluate.distances import frechet_distance
from evaluate.features import Extractor

CPU = torch.device("cpu")
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
HEADER = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3])
"""Of two images of 2 x 3 pixels."""


@pytest.fixture(scope="module")
def mnist():
    yield from benchmark("mnist")


def idx(values: np.ndarray) -> bytes:
    """As an IDX file has them, without the reader's code."""
    sides = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sides + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, training, test, end: str = "", dot: bool = False) -> Path:
    folder.mkdir()
    for name, values in zip(NAMES, (training.images, training.labels, test.images, test.labels), strict=True):
        content = gzip.compress(idx(values)) if end == ".gz" else idx(values)
        (folder / ((name.replace("-idx", ".idx") if dot else name) + end)).write_bytes(content)
    return folder


@pytest.fixture
def made(mnist, tmp_path) -> Path:
    return write_mnist(tmp_path / "made", mnist.drawn_digits(200, 0), mnist.drawn_digits(50, 1))


def test_idx_of_hand_written_bytes(mnist, tmp_path):
    file = tmp_path / "images"
    file.write_bytes(HEADER + bytes(range(250, 256)) + bytes(range(6)))
    want = [[[250, 251, 252], [253, 254, 255]], [[0, 1, 2], [3, 4, 5]]]
    assert mnist.read_idx(file, 3).tolist() == want
    file.write_bytes(gzip.compress(file.read_bytes()))  # told by its content, whatever its name
    assert mnist.read_idx(file, 3).tolist() == want
    file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 1, 1]) + bytes(257))
    assert mnist.read_idx(file, 1).shape == (257,)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dot", [False, True])
def test_every_way_the_files_are_named(mnist, tmp_path, end, dot):
    sets = {"training": mnist.drawn_digits(30, 0), "test": mnist.drawn_digits(12, 1)}
    folder = write_mnist(tmp_path / "made", *sets.values(), end, dot)
    for part, want in sets.items():
        found = mnist.read_mnist(folder, part, 1000)
        assert (found.images == want.images).all()
        assert (found.labels == want.labels).all()
        few = mnist.read_mnist(folder, part, 5)
        assert (few.images == want.images[:5]).all()
        assert (few.labels == want.labels[:5]).all()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "begins with nothing"),
        (b"\x93NUMPY", "begins with 93 4e 55 4d"),
        (b"\x80\x04K\x01.", "begins with 80 04 4b 01"),  # a pickle
        (HEADER[:3] + b"\x01" + HEADER[4:], "want 00 00 08 03"),  # labels
        (HEADER[:2] + b"\x0d" + HEADER[3:], "want 00 00 08 03"),  # float32
        (HEADER[3::-1] + HEADER[4:] + bytes(12), "begins with 03 08 00 00"),  # little-endian
        (HEADER[:9], "header alone"),
        (HEADER, "16 bytes, but the header says 2 x 2 x 3, 28 in all"),
        (HEADER + bytes(11), "27 bytes"),
        (HEADER + bytes(13), "29 bytes"),
        (HEADER[:4] + b"\xff" * 12 + bytes(12), "4294967295 x 4294967295"),  # a product that 64 bits cannot hold
        (gzip.compress(HEADER + bytes(12), mtime=0)[:-9], "damaged gzip file"),
        (gzip.compress(HEADER + bytes(12), mtime=0)[:12], "damaged gzip file"),
        (gzip.compress(HEADER + bytes(12), mtime=0)[:-6] + b"\0" * 6, "damaged gzip file"),  # the check sum
        (gzip.compress(HEADER + bytes(12), mtime=0) + b"more", "damaged gzip file"),
        (gzip.compress(HEADER + bytes(11), mtime=0), "27 bytes"),
    ],
)
def test_damaged_files_are_refused_by_name(mnist, tmp_path, content, cause):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=cause) as refused:
        mnist.read_idx(file, 3)
    assert str(refused.value).startswith(f"{file}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "values", "cause"),
    [
        (NAMES[0], np.zeros((200, 32, 32)), "200 x 32 x 32 pixels"),
        (NAMES[0], np.zeros((0, 28, 28)), "0 x 28 x 28 pixels"),
        (NAMES[1], np.zeros(199), "199 labels for the 200 images of train-images"),
        (NAMES[1], np.full(200, 10), "label 10"),
        (NAMES[3], np.zeros((50, 1)), "want 00 00 08 01"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(mnist, made, name, values, cause):
    (made / name).write_bytes(idx(values))
    with pytest.raises(ValueError, match=cause) as refused:
        mnist.read_mnist(made, "training" if name.startswith("train") else "test", 1000)
    assert str(refused.value).startswith(f"{made / name}: ")


def test_a_missing_file_is_named_and_where_to_fetch_it(mnist, made):
    (made / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte: not there.*ossci-datasets"):
        mnist.read_mnist(made, "test", 1000)


def test_every_image_is_a_patient_framed_and_named_by_its_digit(mnist):
    digits = mnist.drawn_digits(20, 0)
    data = mnist.training_set(digits)
    assert data.patches.shape == (20, 1, 32, 32)
    assert data.patches.dtype == np.float32
    assert np.rint((data.patches[:, 0, 2:-2, 2:-2] + 1) * 127.5).astype(np.uint8).tolist() == digits.images.tolist()
    assert data.patches.sum() == pytest.approx(data.patches[:, 0, 2:-2, 2:-2].sum() - 20 * (32 * 32 - 28 * 28))
    assert len(set(data.patients)) == 20
    assert (data.condition == np.eye(10)[digits.labels]).all()


class Painter(torch.nn.Module):
    """Paints a patch as bright as the digit it is asked for, 0 to 9 over the whole range."""

    def __init__(self):
        super().__init__()
        self.latent, self.none = 3, torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, condition):
        return (condition.argmax(1) / 4.5 - 1).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)


def test_samples_are_balanced_and_carry_the_digit_they_were_asked_for(mnist):
    samples = mnist.drawn_by(Painter(), 1010, 0)
    assert samples.images.shape == (1010, 28, 28)
    assert np.bincount(samples.labels).tolist() == [101] * 10
    assert (samples.images == np.rint(samples.labels * (255 / 9))[:, None, None]).all()


def test_the_classifier_learns_labels_that_mean_something_and_no_others(mnist, monkeypatch):
    monkeypatch.setattr(mnist, "BATCH", 32)
    training, test = mnist.drawn_digits(600, 0), mnist.drawn_digits(300, 1)
    shuffled = mnist.Digits(training.images, np.random.default_rng(0).permutation(training.labels))
    assert mnist.accuracy(training, test, 40, 0, CPU) > 0.5
    assert mnist.accuracy(shuffled, test, 40, 0, CPU) < 0.25


def test_ratios_are_the_median_of_ours_over_the_published(mnist):
    runs = [{"accuracy": 0.972, "fid_test": 26.6}, {"accuracy": 0.9, "fid_test": 10.0}, {"accuracy": 0.99, "fid_test": 90.0}]
    want = {"errors_over_dpgan": 0.5, "fid_over_dpgan": 2.0, "errors_over_dpdm": 1.474, "fid_over_dpdm": 5.32}
    assert mnist.ratios(runs) == want
    assert set(mnist.ratios([{"accuracy": 0.9}])) == {"errors_over_dpgan", "errors_over_dpdm"}


def pooled(images):
    return images.reshape(len(images), 4, 7, 4, 7).mean((2, 4)).reshape(len(images), 16)


def test_end_to_end(mnist, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mnist, "BATCH", 32)
    monkeypatch.setattr(mnist, "QUICK", mnist.Sizes((150, 40), 4, 16, 3, 40, 3))
    monkeypatch.setattr(mnist, "inception", lambda file, window, device: Extractor("pooled", "5ha", window, "none", True, (), pooled))
    file, picture = tmp_path / "mnist.json", tmp_path / "mnist.png"
    files = ["--mnist", str(made), "--inception-weights", "weights.pth", "--json", str(file), "--picture", str(picture)]
    mnist.main(["--quick", "--device", "cpu", "--epsilon", "1", "--seeds", "2", *files])
    out, err = capsys.readouterr()
    assert "FID of 40 samples to 40 test or 150 training images, by pooled (SHA-256 5ha)" in out
    assert "seed 1: 3 of 3 critic steps" in err
    found = json.loads(file.read_text())
    assert found["ratios"] == {}  # a few images are not what was published
    conditions = found["conditions"]
    assert conditions["images"] == {"training": 150, "test": 40}
    assert [run["critic_steps"] for run in conditions["runs"]] == [3, 3]
    assert conditions["plan"]["patients"] == 150
    assert conditions["plan"]["patches"] == 1
    assert 0.99 < conditions["epsilon_spent"] <= 1
    assert conditions["training"]["mirror"] is False  # a mirrored digit is none
    training, test = (mnist.read_mnist(made, part, most).images for part, most in (("training", 150), ("test", 40)))
    assert conditions["training_images"]["fid_test"] == pytest.approx(frechet_distance(pooled(training), pooled(test)))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_inception_weights_the_table_says_that_there_is_no_fid(mnist):
    digits = mnist.drawn_digits(20, 0)
    judge = mnist.Judge(digits, digits, 2, None, CPU)
    scores = judge.scores(digits, 0)
    assert set(scores) == {"accuracy"}
    lines = list(mnist.table([scores], judge, 20))
    assert lines[0].startswith("no FID was computed")
    assert [line.split()[-3:-1] for line in lines[2:4]] == [["-", "-"]] * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "ossci-datasets.s3.amazonaws.com/mnist/"),
        (["--mnist", "nowhere"], "nowhere/train-images-idx3-ubyte: not there"),
        (["--quick", "--seeds", "0"], "--seeds of 1 or more"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(mnist, monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(sys, "argv", ["mnist.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        run_command(mnist.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
    assert line.startswith("error: ")
    assert told in line
