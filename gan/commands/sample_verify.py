"""sample.py --verify: is a folder what a run draws?"""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from gan.commands.sample_request import backgrounds_of, seeds_of
from gan.commands.sample_writing import claims_of, masks_of
from gan.commands.shared import content_of

if TYPE_CHECKING:
    from jsonargparse import Namespace

VERIFIED = 16
"""Samples that are drawn again."""


def run(options: Namespace) -> int:
    """Draws some of a folder's samples again and compares pixels and files, byte by byte; 1 where they differ."""
    import numpy as np

    from data.dicom_writing import in_words
    from data.patches import PatchFolder
    from data.preprocess import from_unit
    from data.synthetic import Part, read_samples, strange_files, wrong_files
    from gan.drawing import draw
    from gan.sampling import load_model

    place = Path(options.verify)
    if place.is_dir() and not (place / "sampling.json").exists():
        raise ValueError(f"{place}: no sampling.json in it, so it was not drawn by sample.py")
    if (place / "lesions.csv").exists():
        raise ValueError(f"{place}: made with --into, which --verify does not know; make it again beside it, and compare the files")
    folder = PatchFolder.open(place)
    folder.verify()
    try:
        said = json.loads((folder.path / "sampling.json").read_text(encoding="utf-8"))
        formats, limit = list(said["formats"]), (said["truncation"] or {}).get("limit")
        average, steps = bool(said["average"]), {int(one["step"]) for one in said["models"]}
        hashes = [str(one["model_sha256"]) for one in said["models"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder.path}/sampling.json: not as sample.py wrote it ({type(error).__name__}: {error})") from None
    models = {}
    for run, step in product(options.run, sorted(steps)):
        with suppress(FileNotFoundError):  # the other runs have other steps
            one = load_model(Path(run), step, average=average, device=options.device)
            models[one.model_hash] = one
    samples = read_samples(folder.path)
    if [one.name for one in samples] != folder.rows.names("id").tolist():
        raise ValueError(f"{folder.path}/samples.csv: lists other samples than patches.csv; it was edited or is another folder's")
    places = np.unique(np.linspace(0, len(samples) - 1, VERIFIED).astype(int))
    chosen = [samples[n] for n in places]
    missing = {*hashes, *(one.model for one in chosen)} - set(models)
    if missing:
        raise ValueError(f"{folder.path}: drawn from the model {missing.pop()[:16]}..., which is in no --run given")
    options.anatomy = said.get("anatomy") or options.anatomy
    backgrounds = backgrounds_of(options, list(models.values()), folder.spec) if chosen else None
    if backgrounds and content_of(options.backgrounds) != said.get("backgrounds"):
        raise ValueError(
            f"--backgrounds {options.backgrounds}: the samples were drawn into another folder's patches (content hashes differ)"
        )
    drawn = []
    for one in chosen:
        model = models[one.model]
        condition = model.conditions.encode([one.label], [one.asked_mm]) if model.conditions.size else None
        drawn.append(draw(model, [one.seed], one.attempt, np.array([one.asked_mm]), condition, limit, backgrounds))
    patches, anatomy = np.concatenate([one for one, _ in drawn]), np.concatenate([free for _, free in drawn]) if backgrounds else None
    hu, asked_mm = from_unit(patches[:, 0], folder.window), np.array([one.asked_mm for one in chosen])
    masks = masks_of(hu, patches, anatomy, asked_mm, folder.spec) if "seg" in formats else None
    into = in_words(str(said.get("anatomy"))) if backgrounds else ""
    part = Part(folder.path, hu, chosen, folder.spec, formats, str(said.get("version")), {}, masks, into)
    redrawn = [one.name for one, stored, again in zip(chosen, folder.hu(places), hu, strict=True) if not np.array_equal(stored, again)]
    wrong = wrong_files(part)
    for name in redrawn:
        print(f"{name}: differs from what the model draws")
    for name, what in wrong:
        print(f"{name}: {what}")
    others = [f"{file}: belongs to no sample" for file in strange_files(folder.path, formats, folder.rows.names("id").tolist())]
    origin, matched = backgrounds.origin if backgrounds else None, said.get("match") is not None
    true = {**claims_of([models[one] for one in hashes], origin, matched), "samples": len(samples)}
    others += [
        f"sampling.json: {name} is not {value!r}, which is what the model and samples.csv say"
        for name, value in true.items()
        if said.get(name) != value
    ]
    if said.get("fill") is None and [one.seed for one in samples] != list(seeds_of(str(said.get("seeds")))):
        others.append("sampling.json: its seeds are not those of samples.csv")
    print("\n".join(others), end="\n" * bool(others))
    differ = {*redrawn, *(name for name, _ in wrong)}
    more = f"; {len(samples) - len(chosen):,} more were not drawn again" if len(samples) > len(chosen) else ""
    print(
        f"{len(chosen) - len(differ)} of {len(chosen)} samples drawn again are the same, byte by byte, as "
        f"{', '.join(['patches', *formats])}{more}"
    )
    if redrawn:
        print(
            f"note: kernels of another kind of processor or another version of torch round differently; these were drawn on {said.get('device')}"
        )
    return int(bool(differ or others))
