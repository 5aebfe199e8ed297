"""Extractors: independent of batches, symmetric in HU, and Inception only with its weights."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from evaluate.features import INCEPTION, INCEPTION_FILE, _inception_module, inception, radiomics, to_gray
from evaluate.radiomics import radiomic_features

WINDOW = (-1000.0, 400.0)


def patches(seed, n, shape=(20, 24)):
    return np.random.default_rng(seed).integers(-1200, 600, (n, *shape)).astype(np.int16)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((20, 24), (0.7, 0.7)), ((10, 12, 14), (1.2, 0.7, 0.7)), ((5, 5), (1.0, 1.0))])
def test_radiomics_are_finite_named_and_of_each_patch_alone(shape, spacing_mm):
    extractor = radiomics(spacing_mm, WINDOW)
    hu = patches(0, 300, shape)
    hu[0] = -1000  # flat patches are where variances divide by 0
    together = extractor.compute(hu)
    assert together.shape == (300, len(extractor.feature_names))
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    alone = np.concatenate([extractor.compute(hu[n : n + 1]) for n in (0, 7, 280)])
    assert alone == pytest.approx(together[[0, 7, 280]], rel=1e-9, abs=1e-9)


def test_radiomics_see_hu_through_the_window_only():
    hu = patches(0, 8)
    extractor = radiomics((0.7, 0.7), WINDOW)
    assert (extractor.compute(hu) == extractor.compute(np.clip(hu, -1000, 400))).all()
    assert (extractor.compute(hu) != extractor.compute((hu // 2).astype(np.int16))).any()


def test_cooccurrence_equals_scikit_image():
    from skimage.feature import graycomatrix, graycoprops

    hu = patches(1, 3)
    found = radiomic_features(hu, (1.0, 1.0), WINDOW)
    for n, patch in enumerate(hu):
        gray = (np.clip(patch, *WINDOW) + 1000) / 1400
        levels = np.minimum((gray * 16).astype(np.uint8), 15)
        counts = graycomatrix(levels, [1], [0, np.pi / 2], levels=16, symmetric=True).sum((2, 3))
        matrix = (counts / counts.sum())[:, :, None, None]
        for name in ("contrast", "homogeneity", "energy", "correlation"):
            assert found[f"cooccurrence_{name}"][n] == pytest.approx(graycoprops(matrix, name)[0, 0])


def test_intensity_equals_scipy():
    from scipy import stats

    hu = np.clip(patches(2, 4), *WINDOW).astype(np.int16)
    flat = hu.reshape(4, -1).astype(float)
    found = radiomic_features(hu, (1.0, 1.0), WINDOW)
    assert found["mean"] == pytest.approx(flat.mean(1))
    assert found["skewness"] == pytest.approx(stats.skew(flat, axis=1))
    assert found["kurtosis"] == pytest.approx(stats.kurtosis(flat, axis=1, fisher=False))
    shares = [np.histogram(row, 32, WINDOW)[0] / row.size for row in flat]
    assert found["entropy"] == pytest.approx([stats.entropy(s, base=2) for s in shares])


def test_a_ramp_has_its_slope_and_a_checkerboard_its_frequency():
    ramp = np.broadcast_to(np.arange(32) * 10 - 900, (1, 32, 32)).astype(np.int16)
    found = radiomic_features(ramp, (1.0, 2.0), WINDOW)
    assert found["gradient_mean"] == pytest.approx(10 / 2)
    assert found["gradient_sd"] == pytest.approx(0, abs=1e-9)
    board = (-300 + 50 * (np.indices((1, 32, 32)).sum(0) % 2 * 2 - 1)).astype(np.int16)
    found = radiomic_features(board, (1.0, 1.0), WINDOW)
    bands = [found[f"band{n}_log_energy"][0] for n in range(6)]
    assert int(np.argmax(bands)) == 5


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


def test_inception_loads_the_file_and_ignores_the_batch(weights):
    path, network = weights
    extractor = inception(path, WINDOW)
    hu = patches(3, 34, (16, 16))[[0, 1, 2, 33]]
    features = extractor.compute(hu)
    assert features.shape == (4, 2048)
    assert features.dtype == np.float64
    assert extractor.name == INCEPTION
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    gray = torch.from_numpy(to_gray(hu, WINDOW))[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = network(gray)[0].numpy()
    assert features == pytest.approx(expected, rel=1e-4, abs=1e-6)
    alone = np.concatenate([extractor.compute(hu[n : n + 1]) for n in range(4)])
    assert alone == pytest.approx(features, rel=1e-4, abs=1e-6)
    assert np.ptp(features, axis=0).max() > 1e-4


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
