"""Changed patches on the fly: the Changes of data/augment.py as a MONAI transform, for training pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type

from data.augment import AugmentConfig, Change, apply, draw


class RandAugmentHU(RandomizableTransform):
    """Changes a patch of HU (1, *shape), NumPy array or tensor, anew at every call; returns its kind, in whole HU.

    prob: how often a patch is changed at all. After a call, `change` is what was drawn:
    `apply(patch, change, spacing_mm)` gives the same HU again. Windowing comes after it, not before.
    """

    def __init__(self, config: AugmentConfig | None = None, spacing_mm: Sequence[float] | None = None, prob: float = 1.0):
        super().__init__(prob)
        self.config = config or AugmentConfig()
        self.spacing_mm = None if spacing_mm is None else tuple(spacing_mm)
        self.change = Change()

    def randomize(self, data: Any) -> None:
        """Draws the Change for a patch (1, *shape)."""
        super().randomize(None)
        rng = np.random.default_rng(self.R.randint(2**32, dtype=np.uint32))
        self.change = draw(rng, self.config, data.shape[1:], self.spacing_mm) if self._do_transform else Change()

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """The changed patch. randomize: False repeats the last Change. Raises ValueError when img is not (1, *shape) of HU."""
        if img.ndim not in (3, 4) or img.shape[0] != 1:
            raise ValueError(f"want one channel first, (1, H, W) or (1, D, H, W), got {tuple(img.shape)}")
        if randomize:
            self.randomize(img)
        values = np.asarray(img.detach().cpu() if hasattr(img, "detach") else img)[0]
        changed = apply(np.rint(values).astype(np.int16), self.change, self.spacing_mm)
        return convert_to_dst_type(changed[None], dst=img)[0]
