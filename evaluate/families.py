"""Which families of features judge a cohort: two or more, since no generator should be ranked on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluate.config import EvaluateConfig
from evaluate.feature_cache import cached
from evaluate.features import Extractor, inception, radiomics, torchscript
from evaluate.report import Compared


def families(compared: Compared, config: EvaluateConfig, warn: Callable[[str], None]) -> tuple[list[Extractor], tuple[str, ...]]:
    """The extractors that the configuration names or finds, radiomics first, and notes on them; warn is told of a damaged cache.

    Raises FileNotFoundError for a file that was asked for and is not there, ValueError for one that is something else.
    """
    shape, window, notes = compared.shape, compared.window, list[str]()
    found = [radiomics(compared.spacing_mm or (1.0,) * len(shape), window)]
    if config.encoder is not None:
        from evaluate.simclr import simclr

        found.append(simclr(config.encoder, shape, compared.spacing_mm, window, config.device))
        if found[-1].trained_on_sha256 != compared.real_sha256:
            notes.append("The encoder was trained on another patch folder: held-out patients here may be among its training patients.")
    found += [torchscript(path, shape, window, config.device) for path in config.torchscript]
    try:
        found.append(inception(config.inception_weights, window, config.device))
    except FileNotFoundError:
        if config.inception_weights is not None:
            raise
        notes.append("No Inception weights were given or found in torch hub's cache, so there is no FID.")
    if len({one.name for one in found}) < len(found):
        raise ValueError(f"two extractors have one name ({', '.join(one.name for one in found)}); rename a file")
    if config.cache_root is not None:
        if Path(config.cache_root).exists() and not Path(config.cache_root).is_dir():
            raise NotADirectoryError(f"{config.cache_root}: a file; --cache-root is a folder that keeps features")
        found = [cached(one, Path(config.cache_root), warn) for one in found]
    return found, tuple(notes)
