"""Real and synthetic patches in one dataset, for training a detector: for users of the library, no command needs it.

Patches are float32 (1, *S) in [-1, 1]. Only patches to train on are to be mixed; what a detector is judged by stays real, and comes
from patients that the generator has not seen either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from gan.orders import diameters_of, natural_diameters
from gan.sampling import TILE, Model, sample
from gan.trainer import Patches

Label = int | str


class MixedPatches(Dataset[tuple[Tensor, Label, bool]]):
    """All real patches, then synthetic ones: item n is (patch, label, whether it is synthetic). Works with any DataLoader and sampler.

    real: float32 (N, 1, *S) in [-1, 1] at positions (N,), such as data.patches.WindowedPatches or an array, of the window and spacing
    that the model was trained on. labels: of each of them, whole numbers or names.

    share: of the synthetic patches among those of each label that has any, from 0 to below 1: the lesion classes keep the proportions
    they have, and a label that the model does not draw, such as a background, stays as it is.

    wanted: label -> the class the model draws for it, or several that take turns. By default each class that is a label is drawn for
    itself. A model that is asked for no class draws for one label only; the class given with it is not looked at.

    diameters_mm: the least and the largest, for a model that is asked for a diameter; by default as in training.

    Synthetic patch k of epoch e is the model's sample of seed first_seed + e * (synthetic patches) + k, in any batch, order or process.
    cache_bytes: where an epoch's synthetic patches take no more memory, they are drawn at once, before workers start; larger ones are
    drawn as they are asked for, TILE at a time, for which __getitems__ (whole batches) wastes least.

    labels, synthetic: lists, of every item, such as for a WeightedRandomSampler. Raises ValueError naming what does not fit.
    """

    def __init__(
        self, real: Patches, labels: Sequence[int] | Sequence[str] | np.ndarray, model: Model, share: float = 0.25, *,
        wanted: Mapping[Any, str | Sequence[str]] | None = None, diameters_mm: tuple[float, float] | None = None, first_seed: int = 0,
        cache_bytes: int = 2**30,
    ):  # fmt: skip
        if not 0 <= share < 1 or first_seed < 0:
            raise ValueError(f"want a share from 0 to below 1 and a first seed from 0, got {share:g} and {first_seed}")
        _check_real(real, len(labels), tuple(model.trained_on["shape"]))
        self.real, self.model, self.first_seed = real, model, first_seed
        self.labels: list[Label] = np.asarray(labels).tolist()
        self._classes: list[str] = []
        for label, classes in _wanted(wanted, model, self.labels[: len(real)]).items():
            count = round(share / (1 - share) * self.labels[: len(real)].count(label))
            self.labels += [label] * count
            self._classes += np.resize(classes, count).tolist()
        self.synthetic = [n >= len(real) for n in range(len(self.labels))]
        self._quantiles_mm = diameters_mm or natural_diameters(model.trained_on)
        if diameters_mm is not None and not (model.conditions.diameter and 0 < diameters_mm[0] <= diameters_mm[1]):
            cannot = "" if model.conditions.diameter else "; this model cannot be asked for a diameter"
            raise ValueError(f"diameters {diameters_mm}: want the least and the largest, in mm{cannot}")
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that outlive an epoch see the next
        shape = (len(self._classes), 1, *model.trained_on["shape"])
        self._cache = torch.empty(shape) if 4 * np.prod(shape, dtype=np.int64) <= cache_bytes else None
        self._cached_epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """From now on, the synthetic patches of this epoch, 0 or more. Call it between two passes of a DataLoader."""
        if epoch < 0:
            raise ValueError(f"epoch {epoch}: want 0 or more")
        self._epoch[0] = epoch
        if self._cache is not None and self._cached_epoch != epoch:
            for start in range(0, len(self._cache), TILE):
                tile = self._cache[start : start + TILE]
                tile.copy_(torch.from_numpy(self._drawn(np.arange(start, start + len(tile)))))
            self._cached_epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Label, bool]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Label, bool]]:
        """The items at these places; DataLoader asks for a batch at a time. Raises IndexError for one that is not there."""
        places = np.asarray(indices, dtype=np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < len(self)):
            raise IndexError(f"items {places.min()} to {places.max()} of {len(self)}")
        synthetic = places >= len(self.real)
        patches = torch.empty(len(places), 1, *self.model.trained_on["shape"])
        if not synthetic.all():
            patches[torch.from_numpy(~synthetic)] = torch.as_tensor(self.real[places[~synthetic]])
        if synthetic.any():
            patches[torch.from_numpy(synthetic)] = self._synthetic_patches(places[synthetic] - len(self.real))
        return [(patch, self.labels[n], self.synthetic[n]) for patch, n in zip(patches, places, strict=True)]

    def _synthetic_patches(self, numbers: np.ndarray) -> Tensor:
        """float32 (N, 1, *S), of this epoch."""
        if self._cache is not None and self._cached_epoch == int(self._epoch):  # not so in a worker that outlived an epoch
            return self._cache[torch.from_numpy(numbers)]
        return torch.from_numpy(self._drawn(numbers))

    def _drawn(self, numbers: np.ndarray) -> np.ndarray:
        if get_worker_info() is not None and next(self.model.generator.parameters()).is_cuda:
            raise ValueError("workers cannot use the GPU the model is on: load it with device='cpu', or let cache_bytes hold an epoch")
        first = self.first_seed + int(self._epoch) * len(self._classes)
        seeds, conditions, condition = [first + int(n) for n in numbers], self.model.conditions, None
        if conditions.size:
            condition = conditions.encode([self._classes[n] for n in numbers], diameters_of(seeds, self._quantiles_mm))
        return np.concatenate(list(sample(self.model, seeds, condition)))


def _check_real(real: Patches, labels: int, shape: tuple[int, ...]) -> None:
    """Raises ValueError when they are not patches like the model's."""
    if not len(real) or labels != len(real):
        raise ValueError(f"{labels} labels for {len(real)} real patches; want one each, and at least one")
    first = np.asarray(real[np.zeros(1, np.int64)])
    if first.shape != (1, 1, *shape):
        raise ValueError(f"real patches are {first.shape[1:]}, the model draws {(1, *shape)}; prepare them at the size it was trained on")
    if first.dtype != np.float32 or not abs(first).max() <= 1:
        raise ValueError(
            f"real patches are {first.dtype} up to {abs(first).max():g}; want float32 in [-1, 1], see data.patches.WindowedPatches"
        )


def _wanted(wanted: Mapping[Any, str | Sequence[str]] | None, model: Model, labels: Sequence[Label]) -> dict[Label, list[str]]:
    """Label -> the classes to draw for it. Raises ValueError for what is no label, or what the model does not draw."""
    known = model.conditions.classes
    if wanted is None:
        drawn = known or model.trained_on["classes"]
        if not known and len(drawn) > 1:
            raise ValueError(f"this model cannot draw {', '.join(drawn)} apart; say with wanted={{label: 'any'}} which label all of it is")
        wanted = {name: name for name in drawn if name in set(labels)}
        if not wanted:
            raise ValueError("none of the labels is a class that the model draws; say with wanted={label: class} what to draw for which")
    asked = {label: [classes] if isinstance(classes, str) else list(classes) for label, classes in wanted.items()}
    for label, classes in asked.items():
        if label not in set(labels) or not classes:
            raise ValueError(f"wanted: {label!r} is none of the labels of the real patches, or has no class to draw")
        unknown = [name for name in classes if known and name not in known]
        if unknown:
            raise ValueError(f"class {unknown[0]!r} is not one that the model draws: {', '.join(known)}")
    if not known and len(asked) > 1:
        raise ValueError(f"this model cannot draw {', '.join(map(str, asked))} apart; want a single label")
    return asked
