"""`python -m evaluate`: two patch folders in, report.json and report.html out; `python -m evaluate privacy`: a run in, its audit out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import lesiongan  # noqa: F401  first: it ends with one line where another's package has the name of one of these
from data.command import command_parser, parse, run_command, stages
from evaluate import compare_command, encoder_command, froc_command, privacy_command
from evaluate.config import EvaluateConfig

if TYPE_CHECKING:
    import numpy as np

    from data.patches import PatchFolder
    from data.quality import Rows
    from evaluate.cohort import Cohort, PatchSet
    from evaluate.key_figures import Gate
    from evaluate.privacy_report import PrivacyReport
    from gan.canaries import Canaries
    from gan.conditions import Conditions
    from gan.trainer import Trainer, TrainingSet

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

REAL is a patch folder of `python -m data prepare`, SYNTHETIC one of `python sample.py`. Quality is judged against the patients
of REAL's test split, whom the generator never saw; copies are looked for among its training patients. In the folder --out:
  report.html   to read: four verdicts (quality, memorisation, usefulness, privacy) with evidence and doubt; pictures, distances, copies, detector
  report.md     verdicts and figures, for a ticket
  report.json   the same numbers; frechet_inception_distance and its kin only with Inception weights
The page shows patches of real patients; --show_real false leaves them out.

Interrupted, the same command goes on where it stopped. Exit codes: 0 done, 1 a --fail-if holds, 2 bad input, 130 or 143 interrupted."""


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and both folders, evaluates, writes the report; or what `compare`, `encoder`, `froc` or `privacy` does."""
    others = {"privacy": privacy, "compare": compare, "encoder": encoder, "froc": froc}
    if arguments and arguments[0] in others:
        return others[arguments[0]](arguments[1:])
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
    _check_gates(gates)
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


def _check_gates(gates: Sequence[Gate]) -> None:
    """Raises ValueError for a verdict that there is not: before hours of work, not after. Figures depend on what can be measured."""
    from evaluate.verdict import Part

    parts = [f"verdict.{part}" for part in get_args(Part)]
    for gate in gates:
        if gate.name.startswith("verdict.") and gate.name not in parts:
            raise ValueError(f"--fail-if {gate.text!r}: no such verdict; there are {', '.join(parts)}")


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
            f"real and synthetic patches differ in {told}: {ours} and {theirs}; evaluate against the folder that the generator was trained on"
        )


def _patches(folder: PatchFolder, rows: Rows, split: str, classes: Sequence[str]) -> PatchSet:
    """The patches of a folder in these rows, this split and these classes."""
    import numpy as np

    from evaluate.cohort import PatchSet

    chosen = np.flatnonzero((rows.split == split) & np.isin(rows.label, list(classes)))
    return PatchSet(folder.hu(rows.index[chosen]), rows.id[chosen], rows.label[chosen], rows.patient[chosen])


def encoder(arguments: Sequence[str]) -> int:
    """Reads a patch folder and trains an encoder on its training patients."""
    parser = command_parser("python -m evaluate encoder", encoder_command.DESCRIPTION)
    encoder_command.add_arguments(parser)
    options = parse(parser, arguments)
    encoder_command.check(options)

    from data.patches import PatchFolder
    from data.quality import scanned_rows

    folder = PatchFolder.open(options.patches)
    folder.verify()
    rows = scanned_rows(folder)
    mine = rows.split == "train"
    patches = encoder_command.TrainingPatches(
        folder.hu(rows.index[mine]), rows.patient[mine].tolist(), folder.spacing_mm, folder.window, folder.unit, folder.content_hash
    )
    print(encoder_command.run(options, patches, _progress_lines()))
    return 0


def compare(arguments: Sequence[str]) -> int:
    """Reads several reports and puts them side by side."""
    parser = command_parser("python -m evaluate compare", compare_command.DESCRIPTION)
    compare_command.add_arguments(parser)
    options = parse(parser, arguments)

    from data.files import new_folder
    from evaluate.side_by_side import check_comparable, in_words, read_report, to_markdown, to_table, to_text

    names = options.names.split(",") if options.names else [None] * len(options.reports)
    if len(names) != len(options.reports):
        raise ValueError(f"--names has {len(names)} names for {len(options.reports)} reports")
    reports = [read_report(path, name) for path, name in zip(options.reports, names, strict=True)]
    sentences = [*check_comparable(reports), *in_words(reports)]
    table = to_table(reports)
    print(to_text(table))
    print("\n" + "\n".join(f"- {sentence}" for sentence in sentences))
    if options.out:
        from evaluate.page import comparison_page

        with new_folder(options.out) as out:
            (out / "comparison.html").write_text(comparison_page(reports, sentences), encoding="utf-8")
            (out / "comparison.md").write_text(to_markdown(table, sentences), encoding="utf-8")
        print(f"\n{options.out}/comparison.html\n{options.out}/comparison.md")
    return 0


def froc(arguments: Sequence[str]) -> int:
    """Reads a detector's candidates and the nodules that are there; prints the free-response ROC."""
    parser = command_parser("python -m evaluate froc", froc_command.DESCRIPTION)
    froc_command.add_arguments(parser)
    options = parse(parser, arguments)

    from data.files import new_folder
    from evaluate.froc_report import to_text

    with new_folder(options.out) if options.out else nullcontext() as out:
        report = froc_command.run(options)
        if out:
            froc_command.write(report, out)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(to_text(report))
    if options.out:
        print(f"\n{options.out}/froc.json\n{options.out}/froc.csv\n{options.out}/froc.png")
    return 0


def privacy(arguments: Sequence[str]) -> int:
    """Reads the command line, a run and its patches, trains a copy with canaries and attacks it; 1 when its guarantee is broken."""
    parser = command_parser("python -m evaluate privacy", privacy_command.DESCRIPTION)
    privacy_command.add_arguments(parser)
    options = parse(parser, arguments)

    import numpy as np

    from data.files import new_folder
    from data.patches import PatchFolder
    from evaluate.privacy_report import bounds_picture, to_html, to_text
    from evaluate.privacy_report import to_json as audit_json
    from gan.canaries import coins, critic_steps_of, look_every, untrained_copy
    from gan.checkpoint import load_checkpoint
    from gan.conditions import Conditions
    from gan.networks import device_of
    from gan.private_trainer import PrivateTrainer

    run, folder = Path(options.run), PatchFolder.open(options.patches)
    checkpoint = load_checkpoint(run, warn=lambda line: print(f"warning: {line}", file=sys.stderr))
    if "training" not in checkpoint.config:
        raise ValueError(f"{run}: distilled from another run and never trained on patients; audit the run that it was distilled from")
    if "context" in checkpoint.config:
        raise ValueError(f"{run}: draws lesions into anatomy, which this attack does not know how to do")
    _check_trained_on(run, checkpoint.trained_on, folder)
    done = critic_steps_of(checkpoint)
    steps = done if options.critic_steps is None else options.critic_steps
    if not 1 <= steps <= done:
        raise ValueError(f"--critic-steps is {steps}, want 1 to {done}, as many as {run} has done")
    if options.look_every is not None and options.look_every < 1:
        raise ValueError(f"--look-every is {options.look_every}, want 1 or more")
    device_of(options.device)
    conditions = Conditions.of(checkpoint.config.get("conditions", {}))
    balance = checkpoint.config["training"]["balance"]
    data, held_out = (
        _training_set(folder, folder.select(splits=[split], classes=folder.lesion_classes), conditions, balance)
        for split in ("train", "validation")
    )
    patients = len(set(data.patients if data.patients is not None else ()))
    attacker = np.random.default_rng(options.seed)
    with new_folder(options.out) as out:
        trainer = untrained_copy(run, checkpoint, steps, int(attacker.integers(2**31)), options.device)
        plan = trainer.plan if isinstance(trainer, PrivateTrainer) else None
        copies = plan.patches if plan else round(len(data.patches) / patients)  # as many as others have
        canaries, reference = _canaries(folder, options.canary_kind, options.canaries, copies, conditions, attacker)
        every = options.look_every or look_every(trainer, canaries)
        settings = {
            "canaries": len(canaries), "canary_kind": options.canary_kind, "patches_of_a_canary": copies if canaries.copies > 1 else None,
            "critic_steps": steps, "look_every": every, "training_patients": patients, "delta": plan.delta if plan else 1e-5,
            "sample_rate": plan and plan.sample_rate, "noise_multiplier": plan and plan.noise_multiplier, "clip_norm": plan and plan.clip_norm,
            "model_sha256": checkpoint.model_hash, "seed": options.seed,
        }  # fmt: skip
        print(
            f"training a copy of {run}: {steps:,} critic steps on {patients} patients and {len(canaries)} canaries, of whom a "
            f"coin leaves out half; gradients are looked at every {every} steps",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        included = coins(len(canaries), options.seed)
        validation = held_out if len(held_out.patches) else None
        report = attack(trainer, data, canaries, reference, included, every, settings, attacker, validation, _progress_lines())
        (out / "audit.json").write_text(audit_json(report), encoding="utf-8")
        picture = bounds_picture(report)
        (out / "bounds.png").write_bytes(picture)
        (out / "audit.html").write_text(to_html(report, picture), encoding="utf-8")
    print(f"{to_text(report)}\n\n{options.out}/audit.html\n{options.out}/audit.json\n{options.out}/bounds.png")
    return int(bool(report.broken))


def attack(
    trainer: Trainer, data: TrainingSet, canaries: Canaries, reference: np.ndarray, included: np.ndarray, every: int,
    settings: Mapping[str, Any], rng: np.random.Generator, held_out: TrainingSet | None = None,
    tell: Callable[[float, float], None] = lambda progress, seconds: None, moments: int = 8,
) -> PrivacyReport:  # fmt: skip
    """Trains with the canaries that are in, and attacks at so many moments. settings: told in the report; delta is among them.

    reference: float32 (N, 1, *S), real patches of nobody who was trained on, or crafted ones of no canary.
    """
    from evaluate.privacy_report import PrivacyReport, audited_moment, nearest_scores
    from gan.canaries import attacked

    patches, found = [canaries.patches[positions, 0] for positions in canaries.of_each()], []
    for moment in attacked(trainer, data, canaries, included, every, moments, rng, held_out, tell):
        nearest = nearest_scores(patches, moment.synthetic[:, 0], reference[:, 0])
        scores = {"gradients": moment.gradient_scores, "critic": moment.critic_scores, "nearest": nearest}
        found.append(audited_moment(moment.critic_steps, moment.epsilon, scores, included, settings["delta"], rng))
    return PrivacyReport(tuple(found), settings)


def _check_trained_on(run: Path, trained_on: Mapping[str, Any], folder: PatchFolder) -> None:
    """Raises ValueError when the run was trained on other patches, as far as it says which."""
    indices = folder.select(splits=["train"], classes=folder.lesion_classes)
    here = {
        "shape": list(folder.shape), "spacing_mm": folder.spacing_mm and list(folder.spacing_mm), "window": list(folder.window),
        "unit": folder.unit, "classes": list(folder.lesion_classes), "patients": len(set(folder.rows.names("patient", indices).tolist())),
        "content_sha256": folder.content_hash,
    }  # fmt: skip
    for name, value in here.items():
        if trained_on.get(name, value) != value:
            raise ValueError(
                f"{run} was trained on other patches than {folder.path}: {name} {trained_on[name]}, here {value}; give the folder of its --data"
            )


def _training_set(folder: PatchFolder, indices: np.ndarray, conditions: Conditions, balance: float = 0.0) -> TrainingSet:
    from data.patches import WindowedPatches
    from gan.conditions import drawing_weights
    from gan.trainer import TrainingSet

    labels = folder.rows.names("label", indices)
    condition = conditions.encode(labels.tolist(), folder.rows.diameter_mm[indices]) if conditions.size else None
    weights = drawing_weights(labels, balance) if len(indices) else None
    return TrainingSet(WindowedPatches(folder, indices), condition, weights, folder.rows.names("patient", indices))


def _canaries(
    folder: PatchFolder, kind: str, most: int, copies: int, conditions: Conditions, rng: np.random.Generator
) -> tuple[Canaries, np.ndarray]:
    """The canaries, and patches of others, float32 (N, 1, *S), to compare with. Raises ValueError for fewer than 20."""
    import numpy as np

    from evaluate.privacy_audit import LEAST
    from gan.canaries import Canaries, crafted, crafted_pictures

    if most < LEAST:
        raise ValueError(f"--canaries is {most}, want {LEAST} or more: fewer show next to nothing")
    if kind == "crafted":
        return crafted(most, copies, folder.shape, conditions, rng), crafted_pictures(1000, folder.shape, rng)
    indices = folder.select(splits=["validation", "test"], classes=folder.lesion_classes)
    names, patients = np.unique(folder.rows.names("patient", indices), return_inverse=True)
    order, count = rng.permutation(len(names))[patients], min(most, 3 * len(names) // 4)
    if count < LEAST:
        raise ValueError(
            f"{folder.path} has {len(names)} validation and test patients, and three quarters of them are fewer than {LEAST} canaries; prepare more, "
            "or use crafted ones (--canary-kind crafted)"
        )
    rows = np.argsort(order, kind="stable")
    mine, others = rows[order[rows] < count], rows[order[rows] >= count]
    found = _training_set(folder, indices[mine], conditions)
    everything = np.arange(len(mine))
    reference = _training_set(folder, indices[others[:1000]], conditions).patches
    return Canaries(np.asarray(found.patches[everything]), order[mine], found.condition), np.asarray(reference[np.arange(len(reference))])


def _progress_lines() -> Callable[[float, float], None]:
    """Says on stderr how long it will take: once after a few seconds, then every half minute."""
    due = 3.0

    def tell(progress: float, seconds: float) -> None:
        nonlocal due
        if seconds >= due and progress < 1:
            due = seconds + 30
            minutes, left = divmod(round(seconds * (1 - progress) / progress), 60)
            print(f"{progress:.0%} done, {minutes} min {left:02d} s left", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    run_command(main)
