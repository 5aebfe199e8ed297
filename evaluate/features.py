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
    spacing_mm: along each axis of the patches; None where features do not depend on it.
    trained_on_sha256: content hash of the patch folder whose training patients it learned from; None where it says of none.
    """

    name: str
    weights_sha256: str | None
    window: tuple[float, float]
    resize: str
    unit_scale: bool
    feature_names: tuple[str, ...]
    compute: Callable[[NDArray], NDArray[np.float64]]
    spacing_mm: tuple[float, ...] | None = None
    trained_on_sha256: str | None = None


def radiomics(spacing_mm: Sequence[float], window: tuple[float, float]) -> Extractor:
    """Intensity, layout, edge, texture and shape features without weights; see `radiomics.py`."""

    def named(hu: NDArray) -> dict[str, NDArray[np.float64]]:
        return radiomic_features(hu, spacing_mm, window)

    def compute(hu: NDArray) -> NDArray[np.float64]:
        return in_batches(lambda some: np.stack(list(named(some).values()), axis=1), hu, BATCH)

    names = tuple(named(np.zeros((1, *[16] * len(spacing_mm)), np.int16)))
    return Extractor(RADIOMICS, None, window, "none", False, names, compute, tuple(spacing_mm))


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
        compute=partial(in_batches, some_features, batch=32),
    )


def torchscript(path: str | Path, shape: Sequence[int], window: tuple[float, float], device: str = "cpu") -> Extractor:
    """The features of any TorchScript file, such as an export of RadImageNet's weights.

    A TorchScript file is a program, and this runs it: give one only from a source you trust. It is handed float32 gray levels, 0 at the
    window's lower end and 1 at its upper one, of patches as large as they are: (N, 1, H, W), or (N, 3, H, W) with the gray
    repeated where it refuses one channel; of 3-D patches (N, 1 or 3, D, H, W), or the middle slice where it refuses these. What else it
    wants (another size, another scale) belongs into the module before it is exported. It returns (N, D), or maps (N, D, *M)
    whose means over space are taken, in eval mode, for each patch on its own. shape: of a patch, (H, W) or (D, H, W).

    Raises FileNotFoundError when there is no such file, and ValueError naming it when it is no TorchScript (a pickle is refused, never
    opened), takes no such patches, or returns something else, NaN or infinity, or features that change with the other patches of a batch.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such TorchScript file")
    content = path.read_bytes()
    try:
        with warnings.catch_warnings():  # torch says that torch.export replaces it; the files are there all the same
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except Exception as error:  # RuntimeError mostly, but what the reader raises of a foreign file is no promise
        told = str(error).splitlines()[0].partition(". ")[0][:160]
        raise ValueError(
            f"{path}: not a TorchScript file ({told}); a state dict or a pickled model is none: "
            "load it where it was made, and write torch.jit.trace(model.eval(), example).save(...)"
        ) from None

    def run(form: _Form, hu: NDArray) -> NDArray[np.float64]:
        low, high = window
        gray = (np.clip(middle_slice(hu) if form.sliced else hu, low, high).astype(np.float32) - low) / np.float32(high - low)
        x = torch.from_numpy(gray).to(device)[:, None]
        with torch.inference_mode():
            try:
                found = module(x.expand(-1, form.channels, *x.shape[2:]).contiguous())
            except Exception as error:  # a program may raise anything; what it says comes after the lines of code it quotes
                raise _Refused(f"{path}: fails on patches ({_last_line(error)})") from None
            if not isinstance(found, torch.Tensor) or found.is_complex() or found.ndim < 2 or len(found) != len(hu):
                what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
                raise ValueError(f"{path}: returns {what} for {len(hu)} patches, want numbers of shape (N, D) or (N, D, H, W)")
            features = found.double().flatten(2).mean(2) if found.ndim > 2 else found.double()
        if not features.numel() or not bool(torch.isfinite(features).all()):
            raise ValueError(f"{path}: returns NaN or infinity, or nothing at all, as features of patches")
        return features.cpu().numpy()

    form = _form_of(path, run, tuple(shape), window)
    return Extractor(
        name=f"torchscript:{path.stem}",
        weights_sha256=hashlib.sha256(content).hexdigest(),
        window=window,
        resize="none, of the middle slice" if form.sliced else "none",
        unit_scale=True,
        feature_names=(),
        compute=partial(in_batches, partial(run, form), batch=32),
    )


class _Refused(ValueError):
    """A module does not take what it was given."""


@dataclass(frozen=True)
class _Form:
    """What a module is given: 1 or 3 channels, whole patches or their middle slice."""

    channels: int
    sliced: bool


def _form_of(
    path: Path, run: Callable[[_Form, NDArray], NDArray[np.float64]], shape: tuple[int, ...], window: tuple[float, float]
) -> _Form:
    """The first form the module takes, tried on noise: zeros may divide by their own spread."""
    two = np.random.default_rng(0).uniform(*window, (2, *shape))
    for sliced in (False,) if len(shape) == 2 else (False, True):
        for channels in (1, 3):
            form = _Form(channels, sliced)
            try:
                together = run(form, two)
            except _Refused as error:
                refusal = error
                continue
            alone = np.concatenate([run(form, one[None]) for one in two])
            if alone.shape != together.shape or np.abs(alone - together).max() > 1e-3 * np.abs(together).max():
                raise ValueError(
                    f"{path}: features of a patch change with the other patches of its batch, or from one call to the next; "
                    "export the model in eval mode, model.eval()"
                )
            return form
    raise ValueError(f"{refusal}, with 1 channel and with 3, at {' x '.join(map(str, shape))}; give a module for patches of this size")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ")[:160] if lines else type(error).__name__


def to_gray(hu: NDArray, window: tuple[float, float]) -> NDArray[np.uint8]:
    """HU of any shape to 8-bit gray: the window's ends are 0 and 255, what lies outside is clipped."""
    low, high = window
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def middle_slice(patches: NDArray) -> NDArray:
    """(N, H, W) as it is; of (N, D, H, W) the slice in the middle of D."""
    return patches if patches.ndim == 3 else patches[:, patches.shape[1] // 2]


def in_batches(function: Callable[[NDArray], NDArray[np.float64]], hu: NDArray, batch: int) -> NDArray[np.float64]:
    """The function's rows for all patches, so many patches at a time. Raises ValueError when there is no patch."""
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
        raise ValueError(
            f"{path}: not a weights file, a state dict saved by torch ({type(error).__name__}); a TorchScript file goes with --torchscript"
        ) from None
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
