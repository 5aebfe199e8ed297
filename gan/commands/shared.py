"""What train.py, sample.py and other commands make of a patch folder: sets to train on, what to draw into, diameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from data.patches import PatchFolder
    from gan.conditions import Conditions
    from gan.context import Backgrounds, Origin
    from gan.trainer import TrainingSet


def training_set(
    folder: PatchFolder, indices: np.ndarray, conditions: Conditions, balance: float = 0.0, diameters_mm: np.ndarray | None = None
) -> TrainingSet:
    """These patches in [-1, 1], with what the networks are told of each. diameters_mm (N,): of a context model, in place of those listed."""
    from data.patches import WindowedPatches
    from gan.conditions import drawing_weights
    from gan.trainer import TrainingSet

    rows = folder.rows
    labels, patients, ids = (rows.names(name, indices) for name in ("label", "patient", "id"))
    told_mm = rows.diameter_mm[indices] if diameters_mm is None else diameters_mm
    return TrainingSet(
        WindowedPatches(folder, indices),
        conditions.encode(labels.tolist(), told_mm) if conditions.size else None,
        drawing_weights(labels, balance) if len(indices) else None,
        patients,
        lambda n: f"patch {ids[n]} of patient {patients[n]} in {folder.path}",
        diameters_mm,
    )


def training_backgrounds(folder: PatchFolder, origin: Origin) -> Backgrounds:
    """The folder's lesion-free patches of training patients, to draw into: others may be held out to judge by. Raises ValueError for none."""
    from data.patches import WindowedPatches
    from gan.context import Backgrounds

    rows = folder.select(splits=["train"], classes=[folder.background] if folder.background else [])
    if not len(rows):
        raise ValueError(
            f"{folder.path}: no lesion-free patch of a training patient in it to draw into; see --background of python -m data prepare"
        )
    return Backgrounds(WindowedPatches(folder, rows), folder.spacing_mm, folder.shape, origin)


def lesion_diameters_mm(folder: PatchFolder, indices: np.ndarray) -> np.ndarray:
    """(N,), in mm (pixels, where the spacing is unknown): as listed, else as measured in the patch, else UNKNOWN_MM."""
    import numpy as np

    from gan.context import UNKNOWN_MM

    diameters = folder.rows.diameter_mm[indices].copy()
    unlisted = ~np.isfinite(diameters)
    found = measured_mm(folder, indices[unlisted])
    diameters[unlisted] = np.where(np.isfinite(found), found, UNKNOWN_MM)
    return diameters


def measured_mm(folder: PatchFolder, indices: np.ndarray) -> np.ndarray:
    """Diameters (N,) as measured in the patches, in mm or pixels; NaN where no lesion is found."""
    import numpy as np

    from evaluate.attributes import lesion_attributes

    spacing, found = folder.spacing_mm or (1.0,) * len(folder.shape), np.empty(len(indices))
    for first in range(0, len(indices), 1024):
        some = slice(first, first + 1024)
        found[some] = lesion_attributes(folder.hu(indices[some]), spacing, folder.window)["diameter_mm"]
    return found


def content_of(path: str | None) -> str | None:
    """The content hash of the patch folder of this name; None for none."""
    from data.patches import PatchFolder

    return None if path is None else PatchFolder.open(path).content_hash


def version() -> str:
    """Of lesiongan; "source" where it is not installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("lesiongan")
    except PackageNotFoundError:
        return "source"
