"""sample.py --into: lesions in a whole scan, a series for each seed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from data.command import now_and_then, program, progress
from data.commands.shared import counted
from gan.commands.sample_request import between_of, models_of, refuse_beside, seeds_of, spec_of, warn_of_licence
from gan.commands.sample_writing import claims_of
from gan.commands.shared import version

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import Namespace

    from data.implanting import Draw
    from data.patches import PatchSpec
    from data.placing import Order, Placed, Scan
    from gan.sampling import Model
    from gan.selection import Tally

TRIES = 50
"""Of a lesion, until one can be seen."""


def run(options: Namespace) -> int:
    """Sets lesions into a whole scan, a series for each seed."""
    from data.files import new_folder
    from data.implanting import drawn
    from data.placing import place_lesions, read_scan
    from data.scan_writing import Composer, facts, write_composites
    from gan.selection import Tally

    (model,) = models_of(options)
    spec = spec_of(options.run[0], model)
    if len(spec.shape) != 3:
        raise ValueError(
            f"{options.run[0]}: draws 2-D patches, and --into needs cubes: data prepare --dims 3, then train.py --context.on true"
        )
    if not model.context:
        raise ValueError(f"{options.run[0]}: cannot draw into given surroundings; train one that can: {program('train')} --context.on true")
    if spec.unit != "HU" or spec.spacing_mm is None:
        raise ValueError(f"{options.run[0]}: --into needs a model of HU whose spacing was stated")
    with new_folder(options.out) as folder:
        scan = read_scan(options.into, options.lesions, lambda line: print(f"warning: {line}", file=sys.stderr))
        if not scan.listed:
            print(
                "note: no --lesions given; what lesions the scan has are not stayed away from, nor listed in annotations.csv",
                file=sys.stderr,
            )
        warn_of_licence([model])
        placed = place_lesions(scan, _lesion_orders(options, model, spec, scan))
        composer = Composer(scan, model.model_hash, version(), spec.window, spec.spacing_mm, options.anatomy, "nifti" in options.format)
        tally = Tally()
        lesions = drawn(scan, placed, spec.shape, spec.spacing_mm, _drawn_into(model, spec, options.trunc, tally))
        series = len({one.seed for one in placed})
        done = list(progress(write_composites(folder, composer, lesions), "series", series))
        manifest = {
            **claims_of([model], options.anatomy, matched=False),
            "average": options.average, "device": options.device, "seeds": options.seeds, "count": options.count,
            "class": options["class"], "diameter": options.diameter, "truncation": options.trunc, "selection": tally.summary(),
            "formats": ["dicom", "seg", *(["nifti"] if composer.nifti else [])], **facts(composer, done),
            "version": version(),
        }  # fmt: skip
        (folder / "sampling.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if tally.rejected.total():
        print(tally.words())
    print(f"{series} series with {counted(len(placed), 'synthetic lesion')} in {options.out}; look at {options.out}/preview.png")
    out = quote(options.out)
    print(f"next: python -m data prepare {out}/dicom --lesions {out}/annotations.csv --background 0 --out patches")
    return 0


def check(options: Namespace, formats: Sequence[str]) -> None:
    """Raises ValueError for what does not go with --into, or not without it."""
    if not options.into:
        for name, usual in (("count", 1), ("lesions", None)):
            if options[name] != usual:
                raise ValueError(f"--{name} belongs to --into, which names the scan to set lesions into")
        if options.anatomy != "unknown" and not options.backgrounds:
            raise ValueError("--anatomy says whose scan --into names, or whose patches --backgrounds does; give one of them")
        return
    unset = dict.fromkeys(("backgrounds", "match", "fill", "quality", "dissimilar_to", "shares", "verify", "export"))
    refuse_beside("into", options, {**unset, "pictures": False, "reject": True, "devices": 1})
    if len(options.run) > 1 or "," in options.step:
        raise ValueError("--into takes one model; name one --run and one --step")
    if "png" in formats:
        raise ValueError("--format png holds 2-D patches only; with --into dicom and seg are written, and nifti if named")
    if options.count < 1:
        raise ValueError(f"--count {options.count}: want 1 or more lesions for each seed")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("--into is the work of one process; start it without torchrun")


def _lesion_orders(options: Namespace, model: Model, spec: PatchSpec, scan: Scan) -> list[Order]:
    """Class and diameter of every lesion of every seed. Raises ValueError for what the model or the scan's spacing cannot show."""
    import numpy as np

    from data.placing import Order, check_diameter
    from gan.context import largest_mm
    from gan.orders import Request, check_request, diameters_of, orders, seed_of

    assert spec.spacing_mm is not None
    most_mm = largest_mm(spec.shape, spec.spacing_mm)
    request = Request(options["class"], between_of(options.diameter))
    check_request(request, model.conditions)
    usual_mm = np.clip(model.trained_on.get("diameter_deciles_mm") or (6.0, 12.0), scan.least_mm, most_mm).tolist()
    between_mm = request.between_mm or usual_mm
    for mm in (between_mm[0], between_mm[-1]):
        check_diameter(scan, mm, most_mm)
    wanted = [(seed, n) for seed in seeds_of(options.seeds) for n in range(1, options.count + 1)]
    streams = [seed_of(*one) for one in wanted]
    labels = orders(request, model.conditions, model.trained_on, spec.spacing_mm, streams).labels
    return [
        Order(seed, n, stream, str(label) or spec.classes[0], float(mm))
        for (seed, n), stream, label, mm in zip(wanted, streams, labels, diameters_of(streams, between_mm), strict=True)
    ]


def _drawn_into(model: Model, spec: PatchSpec, truncation: float | None, tally: Tally) -> Draw:
    """What draws lesions into cubes of HU: of each the first try that can be seen."""
    import numpy as np

    from data.preprocess import to_unit
    from gan.context import CONTRAST, seen_in
    from gan.sampling import candidates, implant
    from gan.selection import select

    def draw(cubes: np.ndarray, placed: Sequence[Placed]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        assert spec.spacing_mm is not None
        streams = np.array([one.stream for one in placed], dtype=object)
        backgrounds, mm = to_unit(cubes, spec.window)[:, None], np.array([one.diameter_mm for one in placed])
        condition = model.conditions.encode([one.label for one in placed], mm) if model.conditions.size else None
        masks, tell = np.zeros(cubes.shape, bool), now_and_then()

        def candidate(rows: np.ndarray, attempt: int) -> np.ndarray:
            z = candidates(streams[rows].tolist(), attempt, model.generator.latent, truncation)
            drawn = list(implant(model, backgrounds[rows], mm[rows], z, None if condition is None else condition[rows]))
            masks[rows] = np.concatenate([mask for _, mask in drawn])
            return np.concatenate([patches for patches, _ in drawn])

        def told(row: int) -> str:
            return f"seed {placed[row].seed}, lesion {placed[row].number}"

        tests = {CONTRAST: seen_in(backgrounds, spec.spacing_mm, mm)}
        taken = select(len(placed), candidate, tests, tally, told, TRIES, lambda tally: tell(f"so far {tally.words()}"))
        for patch, background, cube, mask in zip(taken.patches, backgrounds, cubes, masks, strict=True):
            yield cube + (patch - background)[0] * ((spec.window[1] - spec.window[0]) / 2), mask

    return draw
