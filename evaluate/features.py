"""Feature extractors: patches in HU to vectors, each with a name, its window and its weights' hash.

Patches are int16 HU, (N, H, W) or (N, D, H, W); features are float64 (N, D). Real and synthetic
patches go through one extractor, so they see the same window and the same resize.
"""

import hashlib
import importlib
import io
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.radiomics import radiomic_features

INCEPTION = "inception-v3"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
RADIOMICS = "radiomics"
BATCH = 256  # patches measured at a time, so memory does not grow with the set


@dataclass(frozen=True)
class Extractor:
    """A way to turn patches into vectors, with all that a distance must say about it.

    window: the (low, high) HU that features see. resize: what is done to the size of a patch.
    weights_sha256: of the weights file; None where there are no weights. feature_names: one per
    column, or empty when columns have no names. unit_scale: True when features have one scale;
    False when their units differ, and a real set's mean and spread must standardise them.
    """

    name: str
    weights_sha256: str | None
    window: tuple[float, float]
    resize: str
    unit_scale: bool
    feature_names: tuple[str, ...]
    compute: Callable[[NDArray], NDArray[np.float64]]


def radiomics(spacing_mm: Sequence[float], window: tuple[float, float]) -> Extractor:
    """Intensity, layout, edge, texture and shape features without weights; see `radiomics.py`."""

    def named(hu: NDArray) -> dict[str, NDArray[np.float64]]:
        return radiomic_features(hu, spacing_mm, window)

    def compute(hu: NDArray) -> NDArray[np.float64]:
        return _in_batches(lambda some: np.stack(list(named(some).values()), axis=1), hu, BATCH)

    names = tuple(named(np.zeros((1, *[16] * len(spacing_mm)), np.int16)))
    return Extractor(RADIOMICS, None, window, "none", False, names, compute)


def inception(weights_path: str | Path | None, window: tuple[float, float], device: str = "cpu") -> Extractor:
    """The 2048 features of the standard FID: torch-fidelity's port of the 2015 TensorFlow Inception.

    HU through the window to 8-bit gray, repeated over RGB; resized to 299 x 299 inside the network
    (bilinear, as TensorFlow 1 did). Of a 3-D patch, the middle slice.
    weights_path: the weights file; None takes it from torch hub's cache. Nothing is downloaded.

    Raises FileNotFoundError when there is no such file, ValueError when it holds something else,
    and ValueError when torch-fidelity is not installed.
    """
    import torch

    path = Path(weights_path) if weights_path else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no Inception weights at {path}; fetch {INCEPTION_FILE} from torch-fidelity's releases and give its path")
    network = _inception_network(path).to(device)

    def some_features(hu: NDArray) -> NDArray[np.float64]:
        gray = torch.from_numpy(to_gray(middle_slice(hu), window)).to(device)
        with torch.inference_mode():
            (features,) = network(gray[:, None].expand(-1, 3, -1, -1))
        return features.double().cpu().numpy()

    return Extractor(
        name=INCEPTION,
        weights_sha256=_sha256(path),
        window=window,
        resize="bilinear to 299 x 299, as TensorFlow 1",
        unit_scale=True,
        feature_names=(),
        compute=partial(_in_batches, some_features, batch=32),
    )


def to_gray(hu: NDArray, window: tuple[float, float]) -> NDArray[np.uint8]:
    """HU of any shape to 8-bit gray: the window's ends are 0 and 255, what lies outside is clipped."""
    low, high = window
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def middle_slice(patches: NDArray) -> NDArray:
    """(N, H, W) as it is; of (N, D, H, W) the slice in the middle of D."""
    return patches if patches.ndim == 3 else patches[:, patches.shape[1] // 2]


def _in_batches(function: Callable[[NDArray], NDArray[np.float64]], hu: NDArray, batch: int) -> NDArray[np.float64]:
    if not len(hu):
        raise ValueError("no patches to take features of; the set is empty")
    return np.concatenate([function(hu[start : start + batch]) for start in range(0, len(hu), batch)])


def _inception_network(path: Path):
    module = _inception_module()
    weights = _tensors_of(path)
    # Given a path, the class would read it with a loader that runs code from a pickle. So it is
    # made to "download" instead, and the download to be the tensors that were read safely.
    download, module.load_state_dict_from_url = module.load_state_dict_from_url, lambda *_, **__: weights
    try:
        network = module.FeatureExtractorInceptionV3(INCEPTION, ["2048"], verbose=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of the FID Inception ({str(error).splitlines()[0]})") from None
    finally:
        module.load_state_dict_from_url = download
    return network


def _tensors_of(path: Path):
    import torch

    try:
        with warnings.catch_warnings():  # torch warns of a foreign pickle before it refuses it
            warnings.simplefilter("ignore")
            weights = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many kinds on what is no pickle
        raise ValueError(f"{path}: not a weights file ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(weights, dict):
        raise ValueError(f"{path}: holds a {type(weights).__name__}, expected a state dict of tensors")
    return weights


def _inception_module() -> Any:
    module = "torch_fidelity.feature_extractor_inceptionv3"
    spec = find_spec("torch_fidelity")
    if spec is None:
        raise ValueError("Inception features need torch-fidelity; pip install --no-deps torch-fidelity")
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, AttributeError):
        # torch_fidelity's __init__ imports torchvision, whose compiled parts do not load beside a
        # CPU build of torch. The Inception needs none of it: import it beside an __init__ not run.
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["torch_fidelity"] = package
        try:
            return importlib.import_module(module)
        finally:
            del sys.modules["torch_fidelity"]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
