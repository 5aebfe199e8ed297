"""`python -m evaluate`: two patch folders in, report.json and report.html out; further commands in `commands`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import lesiongan  # noqa: F401  first: it ends with one line where another's package has the name of one of these
from data.command import command_parser, parse, run_command, stages
from evaluate.commands import compare, encoder, froc, privacy
from evaluate.config import EvaluateConfig

if TYPE_CHECKING:
    from data.patches import PatchFolder
    from data.quality import Rows
    from evaluate.cohort import Cohort, PatchSet

COMMANDS = {"compare": compare, "encoder": encoder, "froc": froc, "privacy": privacy}
DESCRIPTION = """Judge synthetic lesion patches: how good, how new, how useful.

  python -m evaluate patches synthetic --out report
  python -m evaluate patches synthetic --out quick --detector.run false
  python -m evaluate patches synthetic --out full --detector.seeds 5 --inception-weights weights-inception-2015-12-05-6726825d.pth
  python -m evaluate patches synthetic --out two --encoder encoder.safetensors --cache-root cache      two families of features
  python -m evaluate patches synthetic --out gate --fail-if 'memorisation.copies > 0' --fail-if 'verdict.quality == bad'
  python -m evaluate compare --help       several reports side by side
  python -m evaluate encoder --help       train features of one's own on the training patients
  python -m evaluate froc --help          a detector of your own on whole scans: free-response ROC and LUNA16's score
  python -m evaluate privacy --help       attack a run: does it keep what differential privacy promises?

REAL is a patch folder of `python -m data prepare`, SYNTHETIC one of `python sample.py`, or of another generator's pictures by
`python -m data import --synthetic true`. Quality is judged against the patients
of REAL's test split, whom the generator never saw; copies are looked for among its training patients. In the folder --out:
  report.html   to read: four verdicts (quality, memorisation, usefulness, privacy) with evidence and doubt; pictures, distances, copies, detector
  report.md     verdicts and figures, for a ticket
  report.json   the same numbers; frechet_inception_distance and its kin only with Inception weights
The page shows patches of real patients; --show_real false leaves them out.

Interrupted, the same command goes on where it stopped. Exit codes: 0 done, 1 a --fail-if holds, 2 bad input, 130 or 143 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and both folders, evaluates, writes the report; or does what another command does."""
    if arguments and arguments[0] in COMMANDS:
        other = COMMANDS[arguments[0]]
        parser = command_parser(f"python -m evaluate {arguments[0]}", other.DESCRIPTION)
        other.add_arguments(parser)
        return other.run(parse(parser, arguments[1:]))
    parser = command_parser("python -m evaluate", DESCRIPTION)
    parser.add_argument("real", type=str, help="patch folder of real patients")
    parser.add_argument("synthetic", type=str, help="patch folder of synthetic patches")
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--json", action="store_true", help="print report.json instead of the summary")
    parser.add_argument(
        "--fail-if",
        type=str,
        action="append",
        help="exit with 1 where this holds, such as 'detector.delta.recall < 0', 'memorisation.copies > 0' or 'verdict.quality == bad'; may be repeated",
    )
    parser.add_argument(
        "--inception-weights",
        "--feature-extractor-weights-path",
        type=str | None,
        default=None,
        help="file with torch-fidelity's Inception weights; without it torch hub's cache is looked at, and nothing is downloaded",
    )
    parser.add_argument(
        "--torchscript",
        type=str,
        action="append",
        default=[],
        help="TorchScript file whose output is a feature vector; may be repeated. It is a program: only from a source you trust",
    )
    parser.add_argument(
        "--cache-root",
        type=str | None,
        default=None,
        help="folder that keeps features by content, so that the next report need not compute them again",
    )
    parser.add_class_arguments(EvaluateConfig, as_group=False, skip={"inception_weights", "torchscript", "cache_root"})
    parser.add_argument("--config", action="config", help="YAML file with these options")
    options = parse(parser, arguments)
    config = EvaluateConfig(**{field.name: options[field.name] for field in fields(EvaluateConfig)})

    from data.files import resumable_folder
    from data.patches import PatchFolder
    from evaluate.audit import audit, is_guarantee
    from evaluate.families import families
    from evaluate.key_figures import Gate, key_figures
    from evaluate.page import to_html
    from evaluate.report_text import in_lines, to_json, to_markdown
    from evaluate.verdict import verdicts_of

    gates = [Gate.parse(text) for text in options.fail_if or ()]
    real, synthetic = PatchFolder.open(options.real), PatchFolder.open(options.synthetic)
    for folder in (real, synthetic):
        folder.verify()
    _check_comparable(real, synthetic)
    drawn = _manifest(synthetic)
    _check_origin(drawn, real, synthetic)
    cohort, notes = read_cohort(real, synthetic, config.seed)
    guarantee = str(drawn.get("privacy") or "")
    notes = (*notes, *(_privacy_notes(guarantee) if is_guarantee(guarantee) else ()), *_composite_notes(drawn))
    if config.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("device is cuda, but no GPU is visible; use cpu")
    extractors, missing = families(cohort.compared, config, lambda line: print(f"warning: {line}", file=sys.stderr))
    with resumable_folder(options.out) as (out, parts), stages() as tell:
        report, pictures = audit(cohort, extractors, config, (*notes, *missing), tell, parts, privacy=guarantee)
        tell("writing the report")
        text = json.dumps(to_json(report), indent=1, allow_nan=False)
        (out / "report.json").write_text(text + "\n", encoding="utf-8")
        (out / "report.html").write_text(to_html(report, pictures, config.show_real), encoding="utf-8")
        (out / "report.md").write_text(to_markdown(report), encoding="utf-8")
    if options.json:
        print(text)
    else:
        for line in (*in_lines(report), *(f"\nNote: {note}" for note in report.notes)):
            print(line)
        print(f"\n{options.out}/report.html\n{options.out}/report.json\n{options.out}/report.md")
    figures, levels = key_figures(report), {str(one.part): str(one.level) for one in verdicts_of(report)}
    failed = [why for gate in gates if (why := gate.fails(figures, levels))]
    for why in failed:
        print(f"failed: {why}", file=sys.stderr)
    return 1 if failed else 0


def _manifest(synthetic: PatchFolder) -> dict[str, Any]:
    """What sample.py says of the samples; empty for those that another tool drew."""
    file = synthetic.path / "sampling.json"
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("want a JSON object")
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not as sample.py wrote it ({' '.join(str(error).split())[:100]}); sample again") from None


def _privacy_notes(guarantee: str) -> tuple[str, ...]:
    """What differential privacy promises of the samples, and that this report is no part of it."""
    outside = (
        "This report is outside that guarantee: whatever is measured on training patients here (memorisation, attributes, distances, the "
        "detector) tells of them, without noise. It stays with those who may see the patients' data, and choosing between private runs by it "
        "spends privacy that no accountant counts."
    )
    return f"The samples come with a guarantee. {guarantee}", outside


def _composite_notes(drawn: Mapping[str, Any]) -> tuple[str, ...]:
    """Whose anatomy lesions were drawn into, where they were."""
    from gan.context import ORIGINS

    if not (anatomy := drawn.get("anatomy")):
        return ()
    return (
        f"These are composites: lesions drawn into lesion-free patches of {ORIGINS.get(anatomy, ORIGINS['unknown'])}, shown as they are. "
        "Distances and the search for copies compare whole patches, anatomy and all.",
    )


def read_cohort(real: PatchFolder, synthetic: PatchFolder, seed: int) -> tuple[Cohort, tuple[str, ...]]:
    """The sets to compare, and notes on what is unusual about them.

    Held-out patients are the test split; with no lesion in it, the validation split.
    Raises ValueError if the folders cannot be compared or a set is empty.
    """
    from data.quality import scanned_rows
    from evaluate.cohort import Cohort
    from evaluate.report import Compared

    # patches as they were scanned: augmented copies are left out
    real_set, synthetic_set = (partial(_patches, folder, scanned_rows(folder)) for folder in (real, synthetic))
    lesions, notes = real.lesion_classes, []
    if (real.path / "augmentation.csv").exists():
        notes.append("Augmented copies in the real folder are left out: patches are compared as they were scanned.")
    training = real_set("train", lesions)
    validation = real_set("validation", lesions)
    held_out, source = real_set("test", lesions), "test split"
    held_out_split = "test"
    if not len(held_out) and len(validation):
        held_out, source, held_out_split = validation, "validation split, for want of a test split", "validation"
        notes.append("There is no lesion in the test split: the validation patients stand in for it, and no threshold comes from them.")
        validation = real_set("test", lesions)
    if not len(held_out):
        source = "none"
        notes.append(
            "The real folder has training patients only: no floor, no control for copies and no detector. Prepare more patients, or "
            "more of them held out."
        )
    drawn_classes, generated_from = [c for c in synthetic.classes if c != real.background], "split synthetic"
    generated = synthetic_set("synthetic", drawn_classes)
    if not len(generated):
        generated, generated_from = synthetic_set("train", drawn_classes), "training split"
    for name, folder, one in (("training", real, training), ("synthetic", synthetic, generated)):
        if len(one) < 2:
            raise ValueError(
                f"{folder.path}: {len(one)} {name} lesion patches, and 2 or more are needed; check the split and class columns of its patches.csv"
                + (f" ({real.background} is the lesion-free class)" if real.background in folder.classes else "")
            )
    free = [real.background] if real.background is not None else []
    validation_split = "test" if held_out_split == "validation" else "validation"
    background = {
        "training": real_set("train", free),
        "validation": real_set(validation_split, free),
        "held_out": real_set(held_out_split, free),
    }
    if synthetic.spec.origin == "real":
        notes.append(
            "The second folder says that its patches are real: where this report says synthetic, read the real lesions of its "
            f"{generated_from}."
        )
    if others := sorted(set(generated.labels.tolist()) - set(lesions)):
        notes.append(
            f"No real lesion here is of class {', '.join(others)}: synthetic ones of it count as lesions, and are not compared by class."
        )
    compared = Compared(
        training=training.size,
        held_out=held_out.size if len(held_out) else None,
        held_out_from=source,
        synthetic=generated.size,
        shape=real.shape,
        spacing_mm=real.spacing_mm,
        window=real.window,
        unit=real.unit,
        real_sha256=real.content_hash,
        synthetic_sha256=synthetic.content_hash,
        seed=seed,
    )
    return Cohort(training, validation, held_out, generated, background if free else {}, compared), tuple(notes)


def _check_origin(drawn: Mapping[str, Any], real: PatchFolder, synthetic: PatchFolder) -> None:
    """Raises ValueError for folders in the wrong order, and when a generator was trained on another folder.

    Its training patients may be held out in this one.
    """
    if real.spec.origin == "synthetic":
        raise ValueError(f"{real.path} holds synthetic patches; the folder of real patients comes first, the synthetic one second")
    listed = drawn.get("models")
    stated = [drawn, *(one for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict))]
    if any(one.get("trained_on_sha256") not in (None, real.content_hash) for one in stated):
        raise ValueError(
            f"{synthetic.path} was drawn by a model trained on another patch folder than {real.path}; its training patients may be "
            "held-out patients here, so audit it against the folder it was trained on"
        )


def _check_comparable(real: PatchFolder, synthetic: PatchFolder) -> None:
    if name := real.spec.misfit(synthetic.spec):
        told, ours, theirs = name.replace("_mm", " (mm)"), getattr(real, name), getattr(synthetic, name)
        raise ValueError(
            f"real and synthetic patches differ in {told}: {ours} and {theirs}; evaluate against the folder that the generator was trained on, or "
            "import pictures again by the real folder's --size, --window and --spacing"
        )


def _patches(folder: PatchFolder, rows: Rows, split: str, classes: Sequence[str]) -> PatchSet:
    """The patches of a folder in these rows, this split and these classes."""
    import numpy as np

    from evaluate.cohort import PatchSet

    chosen = np.flatnonzero((rows.split == split) & np.isin(rows.label, list(classes)))
    return PatchSet(folder.hu(rows.index[chosen]), rows.id[chosen], rows.label[chosen], rows.patient[chosen])


if __name__ == "__main__":
    run_command(main)
