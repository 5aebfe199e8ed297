"""How sample.py draws and writes: in parts, each whole, by one process or several, so that a job goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from data.command import now_and_then, progress
from data.commands.shared import counted
from gan.commands.shared import content_of, version

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import Namespace

    from data.patches import PatchSpec
    from data.synthetic import Part
    from gan.context import Origin
    from gan.drawing import Drawing
    from gan.processes import Processes
    from gan.sampling import Model
    from gan.selection import Tally, Watch

RECIPE = 2
"""To be raised whenever the same command draws or writes something else: parts of before are then not used."""
MANY = 20_000
"""Files from which on several processes write them."""


def draw_all(options: Namespace, drawing: Drawing, spec: PatchSpec, formats: Sequence[str], processes: Processes | None) -> None:
    """Draws and writes the parts that are not there yet, this process its share of them; the first one puts them together."""
    from data.files import resumable_folder

    manifest = _manifest(options, drawing, formats)
    job = hashlib.sha256(json.dumps([RECIPE, manifest], sort_keys=True).encode()).hexdigest()[:16]
    out = Path(options.out)
    if processes and not processes.first:
        _together(processes)
        _write_parts(drawing, spec, formats, out.parent / f".{out.name}.parts" / "parts" / job, options, processes)
        _together(processes)
        return
    with resumable_folder(out) as (folder, parts):
        (parts / job).mkdir(exist_ok=True)
        _together(processes)
        try:
            written = _write_parts(drawing, spec, formats, parts / job, options, processes)
            _together(processes)
            if options.pictures:
                _write_pictures(folder, drawing, spec)
            tally = _finish(folder, drawing, spec, formats, written, manifest)
        finally:
            for left in parts.glob("*/.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            for empty in parts.iterdir():
                if not any(empty.iterdir()):
                    empty.rmdir()
    if tally.rejected.total():
        print(tally.words())
    if drawing.truncation is not None:
        print(
            f"--trunc {drawing.truncation:g}: samples lie {manifest['truncation']['diversity']:.0%} as far from one another as without it"
        )
    print(
        f"{counted(len(drawing.seeds), 'synthetic patch')} in {out}, as {', '.join(['patch folder', *formats])}; look at {out}/preview.png"
    )
    print(f"next: python -m evaluate REAL_PATCHES {quote(str(out))} --out report")


def _manifest(options: Namespace, drawing: Drawing, formats: Sequence[str]) -> dict[str, Any]:
    """What sampling.json says, but for what was turned down. No path is in it."""
    from data.export import PNG_OFFSET

    anatomy = drawing.backgrounds.origin if drawing.backgrounds else None
    return {
        **claims_of(drawing.models, anatomy, drawing.request.like is not None),
        "models": [
            {
                "model_sha256": m.model_hash, "step": m.step, "share": share / sum(drawing.shares),
                "trained_on_sha256": m.trained_on.get("content_sha256"),
            } for m, share in zip(drawing.models, drawing.shares, strict=True)
        ],
        "average": options.average, "device": options.device, "seeds": options.seeds, "samples": len(drawing.seeds), "class": options["class"],
        "diameter": options.diameter, "match": content_of(options.match), "fill": drawing.request.fill, "reject": options.reject,
        "truncation": None if drawing.truncation is None else {"limit": drawing.truncation, "diversity": round(drawing.diversity(), 4)},
        "anatomy": anatomy, "backgrounds": content_of(options.backgrounds),
        "quality": drawing.quality, "dissimilar_to": content_of(options.dissimilar_to),
        "formats": list(formats), "png_level": f"{drawing.models[0].trained_on['unit']} + {PNG_OFFSET}", "version": version(),
    }  # fmt: skip


def claims_of(models: Sequence[Model], anatomy: Origin | None, matched: bool) -> dict[str, Any]:
    """What sampling.json says that follows from the models alone. anatomy: what was drawn into, None for whole patches."""
    from gan.context import privacy_of_composites

    guarantees = list(dict.fromkeys(privacy_of_composites(m.guarantee, anatomy) if anatomy else m.privacy for m in models))
    if any(m.guarantee for m in models) and matched:
        guarantees.append(
            "Classes and diameters were drawn as in a given patch folder; if it is the training patients', that is outside the guarantee."
        )
    return {
        "model_sha256": models[0].model_hash, "step": models[0].step, "trained_on_sha256": models[0].trained_on.get("content_sha256"),
        "privacy": " ".join(guarantees), "licence": " / ".join(dict.fromkeys(m.trained_on.get("licence", "") for m in models)) or None,
    }  # fmt: skip


def _write_parts(
    drawing: Drawing, spec: PatchSpec, formats: Sequence[str], parts: Path, options: Namespace, processes: Processes | None
) -> list[Path]:
    """Every part's folder, in order, of which this process has drawn its share of those that were not there."""
    from data.parallel import work_ahead
    from data.synthetic import write_part
    from gan.sampling import TILE

    total = len(drawing.seeds)
    size = max(TILE, min(1024, (1 << 22) // math.prod(spec.shape) // TILE * TILE))
    folders = [parts / f"{n:06d}" for n in range(math.ceil(total / size))]
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    mine = [n for n in range(rank, len(folders), count) if not folders[n].exists()]
    before = sum(folder.exists() for folder in folders)
    if before and rank == 0:
        print(f"{before} of {len(folders)} parts were drawn by an earlier run", file=sys.stderr)
    writers = options.processes or (len(os.sched_getaffinity(0)) if len(formats) * total >= MANY else 1)

    tell = now_and_then()

    def watch(tally: Tally) -> None:
        if tally.rejected.total():
            tell(f"so far {tally.words()}")

    def made() -> Iterator[Part]:
        for n in mine:
            yield _part(drawing, spec, formats, folders[n], n * size, min(size, total - n * size), watch)

    for _ in progress(work_ahead(write_part, made(), writers), "parts of samples", len(mine)):
        pass
    return folders


def _part(drawing: Drawing, spec: PatchSpec, formats: Sequence[str], folder: Path, first: int, count: int, watch: Watch) -> Part:
    """Some of the samples, drawn, with what is told of them."""
    from data.dicom_writing import in_words
    from data.preprocess import from_unit
    from data.synthetic import Part, Sample

    taken, asked, model_of, tally = drawing.part(first, count, watch)
    hu = from_unit(taken.patches[:, 0], spec.window)
    samples = [
        Sample(
            seed, int(taken.attempts[n]), drawing.models[model_of[n]].model_hash, str(asked.labels[n]) or spec.classes[0],
            float(asked.asked_mm[n]),
            {name: float(taken.measured[name][n]) for name in drawing.measured},
        ) for n, seed in enumerate(drawing.seeds[first : first + count])
    ]  # fmt: skip
    into = in_words(drawing.backgrounds.origin) if drawing.backgrounds else ""
    masks = masks_of(hu, taken.patches, taken.anatomy, asked.asked_mm, spec) if "seg" in formats else None
    return Part(folder, hu, samples, spec, formats, version(), tally.facts(), masks, into)


def masks_of(hu: np.ndarray, patches: np.ndarray, anatomy: np.ndarray | None, asked_mm: np.ndarray, spec: PatchSpec) -> np.ndarray:
    """bool (N, *S): the lesions of patches (N, 1, *S) in [-1, 1], which are hu (N, *S); by what was changed, where they were drawn into anatomy."""
    spacing = spec.spacing_mm or (1.0,) * len(spec.shape)
    if anatomy is not None:
        from gan.context import lesion_masks, scene_of

        return lesion_masks(patches, scene_of(anatomy, spacing, asked_mm))
    from evaluate.attributes import central_component

    return central_component(hu, spacing, spec.window)


def _finish(
    folder: Path, drawing: Drawing, spec: PatchSpec, formats: Sequence[str], parts: Sequence[Path], manifest: dict[str, Any]
) -> Tally:
    """One patch folder of all parts, its preview and sampling.json; what was turned down."""
    from data.export import write_folder_preview
    from data.synthetic import assemble
    from gan.selection import Tally

    tally = Tally()
    for facts in assemble(folder, spec, formats, parts, drawing.measured):
        tally.add(**facts)
    write_folder_preview(folder)
    (folder / "sampling.json").write_text(json.dumps({**manifest, "selection": tally.summary()}, indent=1) + "\n", encoding="utf-8")
    return tally


def _write_pictures(folder: Path, drawing: Drawing, spec: PatchSpec) -> None:
    """strips.png, from seed to seed; walk.gif, around four seeds at a time; growth.png, where the model can be asked for a diameter."""
    import numpy as np

    from data.animation import write_animation, write_strips
    from data.preprocess import from_unit
    from gan.interpolation import growth, strips, walk
    from gan.sampling import generate

    model, limit, steps, between = drawing.models[0], drawing.truncation, 8, 14
    seeds = list(drawing.seeds[:16])
    condition = drawing.asked(seeds).condition(model.conditions, np.arange(len(seeds)))

    def drawn(path: tuple[Any, np.ndarray | None]) -> np.ndarray:
        return from_unit(np.concatenate(list(generate(model, *path)))[:, 0], spec.window)

    def rows(which: slice) -> np.ndarray | None:
        return None if condition is None else condition[which]

    strip = drawn(strips(model, seeds[:9], steps, rows(slice(9)), limit))
    write_strips(strip.reshape(-1, steps, *spec.shape), spec.window, folder / "strips.png", spec.spacing_mm)
    groups = [slice(n, n + 4) for n in range(0, len(seeds) - 3, 4)] or [slice(0, 4)]
    walks = np.stack([drawn(walk(model, seeds[group], between, rows(group), limit)) for group in groups], axis=1)
    write_animation(walks, spec.window, folder / "walk.gif", spec.spacing_mm)
    if model.conditions.diameter:
        names = [name for name in model.conditions.classes or ("",) for _ in range(3)]
        grown = np.stack(
            [drawn(growth(model, [seeds[n % min(3, len(seeds))]], steps, name, truncation=limit)) for n, name in enumerate(names)]
        )
        write_strips(grown, spec.window, folder / "growth.png", spec.spacing_mm, names if any(names) else None)


def _together(processes: Processes | None) -> None:
    """Waits until all processes are here."""
    if processes:
        import torch

        processes.sum([torch.zeros(1, device=processes.device)])


def processes_of(options: Namespace) -> Processes | None:
    """The processes that draw, where there are several. Started here, or by torchrun."""
    if options.devices == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    if options.devices < 1:
        raise ValueError(f"--devices {options.devices}: want 1 or more")
    from gan.config import TrainingConfig
    from gan.processes import Processes

    return Processes(TrainingConfig(device=options.device, devices=options.devices))
