"""Extractors: independent of batches, symmetric in HU, Inception only with its weights, TorchScript only when it is that."""

import hashlib
import importlib
import os
import pickle
import sys
import types
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

from evaluate.distances import frechet_distance
from evaluate.features import INCEPTION, INCEPTION_FILE, _inception_module, inception, to_gray, torchscript

WINDOW = (-1000.0, 400.0)


def patches(seed, n, shape=(20, 24)):
    return np.random.default_rng(seed).integers(-1200, 600, (n, *shape)).astype(np.int16)


def test_gray_levels_meet_the_ends_of_the_window():
    hu = np.array([-2000, -1000, -300, 400, 3000], np.int16)
    assert to_gray(hu, WINDOW).tolist() == [0, 0, 128, 255, 255]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights of the FID Inception's architecture, and the network they came from."""
    module = _inception_module()
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Its class only takes weights; the empty network's own are as random as any.
        kept = module.FeatureExtractorInceptionV3.load_state_dict
        download = module.load_state_dict_from_url
        module.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
        module.load_state_dict_from_url = lambda *_, **__: None
        try:
            network = module.FeatureExtractorInceptionV3("any", ["2048"], verbose=False)
        finally:
            module.FeatureExtractorInceptionV3.load_state_dict = kept
            module.load_state_dict_from_url = download
        for weight in network.parameters():
            if weight.ndim == 4:  # torch's own scale would let the signal fade over 94 layers
                torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture(scope="module")
def inception_sets(weights):
    """The extractor, two unlike sets of patches, its features of both, and those of torch-fidelity's own network."""
    path, network = weights
    extractor = inception(path, WINDOW)
    sets = [np.where(np.indices((12, 12)).sum(0) % step, patches(step, n, (12, 12)), -700).astype(np.int16) for step, n in ((2, 5), (3, 6))]
    return extractor, sets, [extractor.compute(hu) for hu in sets], [own_features(network, hu) for hu in sets]


def own_features(network, hu):
    gray = torch.from_numpy(to_gray(hu, WINDOW))[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        return network(gray)[0].double().numpy()


def test_inception_features_are_torch_fidelitys_whatever_the_batch(weights, inception_sets):
    path, _ = weights
    extractor, sets, ours, theirs = inception_sets
    assert extractor.name == INCEPTION
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for features, expected in zip(ours, theirs, strict=True):
        assert features.shape == (len(expected), 2048)
        assert features.dtype == np.float64
        assert features == pytest.approx(expected, rel=1e-4, abs=1e-6)
    alone = np.concatenate([extractor.compute(sets[0][n : n + 1]) for n in (0, 4)])
    assert alone == pytest.approx(ours[0][[0, 4]], rel=1e-4, abs=1e-6)
    assert np.ptp(ours[0], axis=0).max() > 1e-4


def peer(monkeypatch, package, name, missing):
    """A module of another package, without what it imports but what its arithmetic does not need."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed")
    bare = types.ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, package, bare)
    for other in missing:
        monkeypatch.setitem(sys.modules, other, MagicMock())
    with monkeypatch.context() as alone:
        alone.delitem(sys.modules, f"{package}.{name}", raising=False)
        module = importlib.import_module(f"{package}.{name}")
    monkeypatch.delitem(sys.modules, f"{package}.{name}", raising=False)
    return module


def torch_fidelity_fid(monkeypatch, x, y):
    metric = peer(monkeypatch, "torch_fidelity", "metric_fid", ["torch_fidelity.utils"])
    statistics = [metric.fid_features_to_statistics(torch.from_numpy(one)) for one in (x, y)]
    return metric.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def pytorch_fid_fid(monkeypatch, x, y):
    missing = ["torchvision", "torchvision.transforms", "pytorch_fid.inception"]
    score = peer(monkeypatch, "pytorch_fid", "fid_score", missing)
    with warnings.catch_warnings():  # of SciPy, on how it is called
        warnings.simplefilter("ignore", DeprecationWarning)
        return score.calculate_frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


def test_the_distance_of_inception_features_is_the_one_that_others_compute(inception_sets, monkeypatch):
    _, _, ours, theirs = inception_sets
    # Of 2048 features only some: both compute roots of D x D matrices, and pytorch-fid's needs more patches than features.
    for columns, their_value in ((60, torch_fidelity_fid), (3, pytorch_fid_fid)):
        most = np.argsort(theirs[0].std(0))[-columns:]
        expected = their_value(monkeypatch, *(features[:, most] for features in theirs))
        assert frechet_distance(*(features[:, most] for features in ours)) == pytest.approx(expected, rel=1e-3)
        assert expected > 0


def test_real_inception_weights_give_torch_fidelitys_own_value(monkeypatch):
    given = os.environ.get("LESIONGAN_INCEPTION_WEIGHTS")
    path = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        pytest.skip(f"no real Inception weights: LESIONGAN_INCEPTION_WEIGHTS names no file, and torch hub's cache has no {INCEPTION_FILE}")
    extractor = inception(path, WINDOW)
    sets = [patches(seed, 20, (32, 32)) // (seed + 1) for seed in (0, 1)]
    network = _inception_module().FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(path), verbose=False)
    theirs = [own_features(network, hu) for hu in sets]
    ours = [extractor.compute(hu) for hu in sets]
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4, abs=1e-5)
    assert frechet_distance(*ours) == pytest.approx(torch_fidelity_fid(monkeypatch, *theirs), rel=1e-3)


def test_inception_takes_the_middle_slice_of_a_volume(weights):
    extractor = inception(weights[0], WINDOW)
    volume = patches(4, 1, (5, 16, 16))
    assert extractor.compute(volume) == pytest.approx(extractor.compute(volume[:, 2]), rel=1e-5)


def test_inception_without_its_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=INCEPTION_FILE):
        inception(None, WINDOW)
    text = tmp_path / "weights.pth"
    text.write_text("not weights")
    with pytest.raises(ValueError, match="not a weights file"):
        inception(text, WINDOW)
    torch.save({"conv": torch.zeros(3)}, text)
    with pytest.raises(ValueError, match="not the weights of the FID Inception"):
        inception(text, WINDOW)


class Exploit:
    """Unpickling this runs code, as a hostile weights file would."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the weights file was run')",))


def test_a_weights_file_cannot_run_code(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(Exploit(), path)
    with pytest.raises(ValueError, match="not a weights file"):
        inception(path, WINDOW)
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(ValueError, match="not a weights file"):
        inception(path, WINDOW)


def script(path, module, example=None):
    """A TorchScript file, as an exporter of some years writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(module) if example is None else torch.jit.trace(module, example)
        torch.jit.save(made, path)
    return path


def small_network(channels, dims=2, *last):
    convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(convolution(channels, 6, 3), norm(6), nn.ReLU(), *last)
    network[1].running_mean += 0.1
    return network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [[], [nn.AdaptiveAvgPool2d(1)], [nn.AdaptiveAvgPool2d(1), nn.Flatten()]])
def test_torchscript_gives_the_networks_own_features_of_the_window(tmp_path, channels, last):
    network = small_network(channels, 2, *last)  # saved in training mode: the extractor must leave it
    path = script(tmp_path / "radnet.pt", network)
    extractor = torchscript(path, (16, 20), WINDOW)
    hu = patches(0, 70, (16, 20))
    features = extractor.compute(hu)
    gray = torch.from_numpy(((np.clip(hu, *WINDOW) + 1000) / 1400).astype(np.float32))
    with torch.inference_mode():
        expected = network.eval()(gray[:, None].expand(-1, channels, -1, -1))
    expected = expected.flatten(2).mean(2) if expected.ndim == 4 else expected
    assert features == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-6)
    assert (extractor.name, extractor.window, extractor.resize) == ("torchscript:radnet", WINDOW, "none")
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    alone = np.concatenate([extractor.compute(hu[n : n + 1]) for n in (0, 31, 69)])
    assert alone == pytest.approx(features[[0, 31, 69]], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_torchscript_sees_a_volume_whole_or_its_middle_slice(tmp_path, channels):
    volumes = patches(1, 5, (7, 12, 12))
    whole = torchscript(script(tmp_path / "3d.pt", small_network(channels, 3)), (7, 12, 12), WINDOW)
    assert whole.resize == "none"
    assert whole.compute(volumes).shape == (5, 6)
    assert (whole.compute(volumes) != whole.compute(volumes[:, ::-1])).any()
    path = script(tmp_path / "2d.pt", small_network(channels))
    flat = torchscript(path, (7, 12, 12), WINDOW)
    assert flat.resize == "none, of the middle slice"
    assert flat.compute(volumes) == pytest.approx(torchscript(path, (12, 12), WINDOW).compute(volumes[:, 3]))


def test_torchscript_that_was_traced_takes_its_own_size_only(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 5)).eval()
    path = script(tmp_path / "traced.pt", network, torch.zeros(1, 1, 16, 16))
    assert torchscript(path, (16, 16), WINDOW).compute(patches(0, 3, (16, 16))).shape == (3, 5)
    with pytest.raises(ValueError, match=r"traced\.pt: fails on patches .*at 20 x 20"):
        torchscript(path, (20, 20), WINDOW)


class FromTheBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, training=True).flatten(1)


class ByChance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, True).flatten(1)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Logarithm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 2).log().flatten(1)


class Imaginary(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.complex(x, x).flatten(1)


class OneNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


class Refusal(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] < 9:
            raise ValueError("nine channels or none")
        return x


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (FromTheBatch(), "change with the other patches of its batch"),
        (ByChance(), "from one call to the next"),
        (Pair(), "returns a tuple for 2 patches"),
        (Logarithm(), "returns NaN or infinity"),
        (Imaginary(), "returns torch.complex64"),
        (OneNumber(), r"returns torch.float32 \(\) for 2 patches"),
        (Refusal(), "nine channels or none"),
    ],
)
def test_torchscript_that_gives_no_features_is_refused_in_one_line(tmp_path, module, told):
    path = script(tmp_path / "odd.pt", module)
    with pytest.raises(ValueError, match=told) as error:
        torchscript(path, (8, 8), WINDOW)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_torchscript_is_refused_and_never_unpickled(tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(FileNotFoundError, match="no such TorchScript file"):
        torchscript(path, (8, 8), WINDOW)
    for write in (
        lambda: torch.save(nn.Linear(2, 2).state_dict(), path),
        lambda: torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False),
        lambda: torch.save(Exploit(), path),
        lambda: path.write_bytes(pickle.dumps(Exploit())),
        lambda: zipfile.ZipFile(path, "w").writestr("inner/data.txt", "no program"),
        lambda: path.write_text("text"),
        lambda: path.write_bytes(b""),
    ):
        write()
        with pytest.raises(ValueError, match=r"weights\.pt: not a TorchScript file") as error:
            torchscript(path, (8, 8), WINDOW)
        assert "\n" not in str(error.value)
