"""Features kept on disk, under a name that follows from all they depend on.

    ROOT/<SHA-256>.npy     float64 (N, D), then a SHA-256 of name and content

The name is the hash of the extractor (name, weights, window, resize, spacing), of the code and libraries that measure, and of the
patches' bytes and shape: what changes any of these is measured anew, and nothing is ever out of date. Features are patients' data
like the patches they were taken of; only the user who wrote them may read the files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.features import Extractor
from evaluate.files import write_whole

_MEASURED_BY = ("features.py", "radiomics.py", "attributes.py", "simclr.py", "tensors.py")
_LIBRARIES = ("numpy", "scipy", "torch", "monai", "torch-fidelity")
_DIGEST = hashlib.sha256().digest_size


def cached(extractor: Extractor, root: str | Path, warn: Callable[[str], None] = lambda line: None) -> Extractor:
    """The same extractor, which looks into the folder `root` before it computes, and keeps there what it computed.

    A file that is not what was written is measured again and replaced, and a folder that cannot be written to only costs the
    time to measure: `warn` is told of both, in a line. Several processes may share the folder.
    Raises OSError when there is no such folder and it cannot be made.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)

    def compute(hu: NDArray) -> NDArray[np.float64]:
        key = feature_key(extractor, hu)
        file = root / f"{key}.npy"
        try:
            return _read(file.read_bytes(), key, len(hu))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            warn(f"{file}: not features as they were kept ({_told(error)}); they are measured again")
        features = np.ascontiguousarray(extractor.compute(hu))
        try:
            write_whole(file, _with_digest(features, key), 0o600)
        except OSError as error:
            warn(f"{file}: features are not kept ({_told(error)})")
        return features

    return replace(extractor, compute=compute)


def feature_key(extractor: Extractor, hu: NDArray) -> str:
    """SHA-256 over all that the features of these patches depend on, but for the device, which changes their last digits only."""
    hu = np.ascontiguousarray(hu)
    described = {
        "code": _code_hash(),
        "extractor": [extractor.name, extractor.weights_sha256, extractor.window, extractor.resize, extractor.spacing_mm],
        "columns": extractor.feature_names,
        "patches": [hu.dtype.str, hu.shape],
    }
    digest = hashlib.sha256(json.dumps(described).encode())
    digest.update(hu.data)
    return digest.hexdigest()


def _with_digest(features: NDArray[np.float64], key: str) -> bytes:
    whole = io.BytesIO()
    np.save(whole, features)
    content = whole.getvalue()
    return content + hashlib.sha256(key.encode() + content).digest()  # np.load takes no notice of what comes after the array


def _read(whole: bytes, key: str, patches: int) -> NDArray[np.float64]:
    """Raises ValueError or EOFError when the bytes are not those that were kept under this key."""
    content = whole[:-_DIGEST]
    if whole[-_DIGEST:] != hashlib.sha256(key.encode() + content).digest():
        raise ValueError("damaged or cut short")
    features = np.load(io.BytesIO(content), allow_pickle=False)
    if features.dtype != np.float64 or features.ndim != 2 or len(features) != patches:
        raise ValueError(f"holds {features.dtype}{features.shape}, want float64 features of {patches} patches")
    return features


@cache
def _code_hash() -> str:
    """Of the code that measures, to the letter, and of the versions of the libraries it calls."""
    digest = hashlib.sha256()
    for name in _MEASURED_BY:
        digest.update(Path(__file__).with_name(name).read_bytes())
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            digest.update(f"{name} {version(name)}\n".encode())
    return digest.hexdigest()


def _told(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
