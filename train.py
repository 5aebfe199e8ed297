"""`python train.py`: trains a WGAN-GP on a patch folder; the same command again resumes."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import lesiongan  # noqa: F401  first: it ends with one line where another's package has the name of one of these
from data.command import command_parser, parse, program, run_command
from gan.commands.shared import lesion_diameters_mm, training_backgrounds, training_set
from gan.config import PRESETS, ContextConfig, NetworkConfig, PrivacyConfig, TrainingConfig

if TYPE_CHECKING:
    import numpy as np
    from jsonargparse import ArgumentParser

    from data.patches import PatchFolder
    from gan.checkpoint import Checkpoint
    from gan.conditions import Conditions
    from gan.context import Backgrounds
    from gan.encoder import Encoder
    from gan.privacy import PrivacyPlan
    from gan.private_trainer import PrivateTrainer
    from gan.trainer import Trainer, TrainingSet
    from gan.training import Hooks, Validation

STOPPED = 75
"""Exit code after Ctrl-C or SIGTERM: the step was finished and saved; the same command resumes (sysexits: EX_TEMPFAIL)."""

DEMO = Path("demo")

DESCRIPTION = """Train a WGAN-GP on the lesions of a patch folder (training patients only).
A step is one generator update. Running the same command again resumes the run, with the same result
as if it had never stopped. Without --data, a procedural demo cohort is made and trained on.

  python train.py --data patches --out run --dry-run            what it would take
  python train.py --data patches --out run                      train, or resume
  python train.py --data patches --out run2 --preset paper      with the settings of Gulrajani et al. 2017
  python train.py --config run/config.yaml --data patches --out run3            the settings of another run
  python train.py --data rare --out rare-run --init-from run --training.frozen_layers 1     few cases: from another run's weights
  python train.py --data patches --out run --training.devices 2                 two processes, or GPUs, on this machine
  torchrun --nproc-per-node 2 train.py --data patches --out run                 the same, started by torchrun
  python train.py --data patches --out private --privacy.epsilon 8              no patient can be told from the model
  python train.py --data patches --out context --context.on true                draws lesions into lesion-free anatomy

With several classes the model learns which is which (--networks.condition), and sample.py can be asked for one;
--training.balance 1 shows rare classes as often as others.

With --context.on true the model draws a lesion of a given diameter into a lesion-free patch and leaves the anatomy around it as it is, for
where lesions are few and lesion-free patches many: sample.py then takes --backgrounds PATCHES, or --into SERIES for a whole scan.

With --privacy.epsilon the run is differentially private for every training patient with all their patches: it says what that
means before it starts (--privacy.dry_run: only that), and ends before it would exceed its budget. docs/privacy.md explains.

In the run folder: config.yaml, metrics.jsonl, curves.png, samples/*.png (the same latents at every step),
checkpoints/ (tensors and readable JSON) and model_card.md. Next: python sample.py --run run --help

Exit codes: 0 all steps done, 2 bad input, 75 stopped by Ctrl-C or SIGTERM and saved."""


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, composes patches, networks and run folder, trains."""
    stop, options = _StopOnSignal(), _options(arguments)

    from data.patches import PatchFolder
    from gan.checkpoint import locked
    from gan.context import ORIGINS
    from gan.networks import device_of, strides
    from gan.privacy import Ledger
    from gan.private_trainer import PrivateTrainer
    from gan.run_folder import open_run, refuse_foreign
    from gan.trainer import Trainer
    from gan.training import train
    from gan.transfer import start_from

    if not options.data:
        print("note: no --data given, so this is the demo, on procedural phantoms", file=sys.stderr, flush=True)
    folder = PatchFolder.open(Path(options.data) if options.data else demo_patches(DEMO))
    strides(folder.shape)
    options.training = options.training.settled(folder.shape)
    device_of(options.training.device)
    folder.verify()
    context, private = options.context.on, options.privacy.on
    conditions = _conditions(folder, options.networks.condition, context)
    training_set = _patches(folder, "train", conditions, options.training.balance, measured=context)
    held_out = None if private else _patches(folder, "validation", conditions, measured=context)
    if len(training_set.patches) == 0:
        raise ValueError(f"{folder.path}: no lesion patch of a training patient in it")
    if options.training.augment and held_out is not None and len(held_out.patches) == 0:
        raise ValueError(f"training.augment goes by validation patients, and {folder.path} has none; leave it out")
    trained_on = _trained_on(folder, training_set, private)
    backgrounds, backgrounds_hash = _backgrounds(folder, options.context) if context else (None, None)
    encoder, start = _others_weights(options, len(folder.shape))
    if private and os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        print(f"{trained_on['patients']} training patients; solving for the noise that keeps the budget ...", flush=True)
    plan = _plan(options, folder, trained_on["patients"], start) if private or options.privacy.dry_run else None
    config = {
        "networks": asdict(options.networks), "training": asdict(options.training), "privacy": asdict(options.privacy),
        "context": {"on": context, "origin": options.context.origin, "backgrounds": None},
        "start": {
            "encoder_sha256": encoder and encoder.sha256, "init_from": start and start.model_hash, "backgrounds_sha256": backgrounds_hash,
        },
    }  # fmt: skip

    trainer = (
        PrivateTrainer(folder.shape, options.networks, options.training, options.privacy, plan, conditions, backgrounds=backgrounds)
        if plan
        else Trainer(folder.shape, options.networks, options.training, conditions.size, encoder=encoder, backgrounds=backgrounds)
    )
    say = print if trainer.processes.first else lambda *_, **__: None
    say(_what(training_set, folder, held_out, conditions), flush=True)
    if backgrounds:
        say(f"draws them into {len(backgrounds.patches)} lesion-free patches of {ORIGINS[backgrounds.origin]}", flush=True)
    if start:
        say(f"{options.init_from}: {start_from(trainer, conditions, start)}", flush=True)
        if private:
            say(
                f"warning: nothing is promised to the patients that {options.init_from} was trained on; none of them may be among these",
                flush=True,
            )
    if isinstance(trainer, PrivateTrainer):
        say(_promise(trainer), flush=True)
    run = Path(options.out)
    refuse_foreign(run)
    if options.dry_run or options.privacy.dry_run:
        if options.dry_run:
            _dry_run(trainer, training_set, say)
        return 0
    with locked(run) if trainer.processes.first else nullcontext():
        if trainer.processes.first:
            open_run(run, config, trained_on)
        if isinstance(trainer, PrivateTrainer):
            seen_before = any([*(run / "checkpoints").glob("*.json"), *run.glob("metrics.jsonl")])
            trainer.spend_before(Ledger(run, trainer.plan, folder.content_hash, seen_before) if trainer.processes.first else None)
        validate = _validation(folder, training_set, held_out) if trainer.processes.first and held_out is not None else None
        hooks = _hooks(run, options, folder, validate, {**config, "trained_on": trained_on}, conditions, stop)
        say(f"run folder {run}", flush=True)
        train(trainer, training_set, held_out, conditions, options.networks, run, trained_on, hooks)
        trainer.processes.close()
        return _ended(run, trainer, trained_on, conditions) if trainer.processes.first else 0


def _options(arguments: Sequence[str]) -> Any:
    """The command line and the configuration file, on top of the preset that either of them names."""
    parser = command_parser("python train.py", DESCRIPTION)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument(
        "--preset", type=Literal["default", "paper"], default="default", help="training settings to start from; others given go before them"
    )
    parser.add_argument("--data", type=str | None, default=None, help="patch folder; without it the demo cohort")
    parser.add_argument("--out", type=str, default="run", help="run folder, new or to resume")
    parser.add_argument("--init-from", type=str | None, default=None, help="run folder whose weights to start from, as far as they fit")
    parser.add_argument(
        "--encoder", type=str | None, default=None, help="ResNet weights whose features samples are to match (.safetensors or .pth)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be trained, and how long it would take")
    parser.add_class_arguments(TrainingConfig, "training")
    parser.add_class_arguments(NetworkConfig, "networks")
    parser.add_class_arguments(ContextConfig, "context")
    parser.add_class_arguments(PrivacyConfig, "privacy")
    parser.add_argument(
        "--wandb", type=Literal["off", "offline", "online"], default="off", help="online is the only one that uses the network"
    )
    for name in ("encoder_sha256", "init_from", "backgrounds_sha256"):  # a run's config.yaml has them; the options are what counts
        parser.add_argument(f"--start.{name}", type=str | None, default=None, help=SUPPRESS)
    preset = _preset(arguments)
    _start_from_preset(parser, preset)
    options = parse(parser, arguments)
    if options.preset != preset:  # it stands in a configuration file
        _start_from_preset(parser, options.preset)
        options = parse(parser, arguments)
    return options


def _others_weights(options: Any, dims: int) -> tuple[Encoder | None, Checkpoint | None]:
    """What --encoder and --init-from name: an encoder, and the best checkpoint of another run."""
    from gan.checkpoint import load_checkpoint
    from gan.encoder import load_encoder

    encoder = load_encoder(Path(options.encoder), dims) if options.encoder else None
    return encoder, load_checkpoint(Path(options.init_from), "best") if options.init_from else None


def _plan(options: Any, folder: PatchFolder, patients: int, start: Checkpoint | None) -> PrivacyPlan:
    """What the budget buys with these patients. Raises ValueError for a setting that would break the guarantee."""
    from gan.privacy import plan_for

    if not options.privacy.on:
        raise ValueError("privacy.dry_run wants a budget to plan for: give privacy.epsilon too, such as 8")
    training = options.training
    for setting, broken, why in (
        ("--encoder", options.encoder, "feature matching shows the generator real patches"),
        ("training.balance", training.balance, "it goes by how often classes occur, which tells of patients; each class is drawn equally often"),
        ("training.augment", training.augment, "it goes by scores of real patches"),
        ("training.not_finite", training.not_finite == "skip", "whether a step is skipped would tell of patients; theirs never are"),
        ("a folder whose patients are not known", not folder.spec.patients_known,
         "it would be promised to pictures or scans; make the folder again with patient ids (import: *_groups or --separator, prepare: "
         "column patient_id), or with --patients each if no patient has two of them"),
        ("the window", folder.unit != "HU", "gray levels of unknown origin may have been scaled by the patients' own; import with --window"),
        ("--context.on", options.context.on and options.context.origin not in ("public", "phantom"),
         "lesions are drawn into patients' anatomy, which nothing protects; give --context.backgrounds of public data or phantoms, and its origin"),
        (f"--init-from {options.init_from}", start and start.privacy_spent, "that run is private: its critic is not to be used again"),
        (f"--init-from {options.init_from}", start and start.trained_on.get("content_sha256") == folder.content_hash,
         "that run was trained on the same patients, without privacy"),
    ):  # fmt: skip
        if broken:
            raise ValueError(f"{setting} cannot go with privacy: {why}")
    return plan_for(options.privacy, patients)


def _promise(trainer: PrivateTrainer) -> str:
    """The plan and the guarantee, before anything is spent."""
    from gan.privacy import warnings

    plan = trainer.plan
    parameters = sum(p.numel() for p in trainer.critic.parameters() if p.requires_grad)
    return "\n".join([
        f"privacy plan: {plan.patients} patients, {plan.expected} expected in a critic step (q = {plan.sample_rate:.4g}), {plan.patches} patches of "
        f"each; clip norm {plan.clip_norm:g}, noise multiplier {plan.noise_multiplier:g}, {plan.critic_steps} critic steps, delta {plan.delta:g}",
        f"after all of them: {plan.sentence(plan.critic_steps)}",
        *(f"warning: {line}" for line in warnings(plan, parameters)),
    ])  # fmt: skip


def _ended(run: Path, trainer: Trainer, trained_on: dict[str, Any], conditions: Conditions) -> int:
    """Says how the run ended and what is next; the exit code."""
    from gan.run_folder import write_model_card

    reached, training, spent = trainer.step, trainer.config, trainer.privacy_spent
    if trainer.progress < 1:
        part = f"{trainer.progress:.0%} of the budget's critic steps" if spent else f"of {training.steps}"
        print(f"stopped at step {reached}{', ' if spent else ' '}{part}, saved; the same command resumes")
        return STOPPED
    best = write_model_card(run, training, trained_on, conditions, _advice(run)).best  # anew: the licence may have been mended
    print(f"all {reached} steps done; samples in {run / 'samples'}, learning curves in {run / 'curves.png'}")
    if spent:
        print(spent["sentence"])
    if best:
        print(f"nearest to validation patients: step {best['step']} ({best['measure']} {best['distance']:.2f}); sample.py takes it")
    formats = "png,nifti,dicom" if len(trained_on["shape"]) == 2 else "nifti,dicom"
    into = " --backgrounds PATCHES" if trainer.backgrounds else ""
    print(f"next: {program('sample')} --run {quote(str(run))}{into} --out synthetic --seeds 0-255 --format {formats}")
    return 0


class _StopOnSignal:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop after the step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping after this step ...", flush=True)


def _preset(arguments: Sequence[str]) -> str:
    """The value of --preset, wherever it stands: it decides the defaults that the parser starts from."""
    joined = [f"{a}={b}" if a == "--preset" else a for a, b in pairwise([*arguments, ""])]
    return next((a.partition("=")[2] for a in joined if a.startswith("--preset=")), "default")


def _start_from_preset(parser: ArgumentParser, preset: str) -> None:
    parser.set_defaults({f"training.{name}": value for name, value in PRESETS.get(preset, {}).items()})


def demo_patches(place: Path) -> Path:
    """The demo cohort's patch folder in this folder, made on first use by the commands the README shows."""
    from data.__main__ import main as data_command
    from data.commands.phantom import LICENCE

    phantom, patches, key = place / "phantom", place / "patches", place / "pseudonym.key"
    if os.environ.get("RANK") and not patches.exists():
        raise ValueError("the processes of torchrun would all make the demo cohort at once; give --data")
    if not phantom.exists():
        data_command(["phantom", "--out", str(phantom), "--patients", "32", "--lesions", "18", "--seed", "0"])
    if not patches.exists():
        key.write_text("0" * 64)  # phantom patients need no secret, and the demo gives the same bytes to everybody
        data_command([
            "prepare", str(phantom), "--lesions", str(phantom / "annotations.csv"), "--out", str(patches),
            "--size", "32", "--spacing", "1.25", "--slices", "3", "--key", str(key), "--licence", LICENCE,
        ])  # fmt: skip
    return patches


def _conditions(folder: PatchFolder, wanted: str, context: bool) -> Conditions:
    """What samples can be asked for; of a context model always a diameter. Raises ValueError when the patch folder does not know it."""
    from gan.conditions import Conditions

    classes, names = folder.lesion_classes, wanted.split("+")
    if "class" in names and len(classes) < 2:
        raise ValueError(f"networks.condition is {wanted}, and {folder.path} has one lesion class, {classes[0]}")
    by_class = "class" in names or (wanted == "auto" and len(classes) > 1)
    return Conditions(classes if by_class else (), "diameter" in names or context, by_support=context)


def _patches(folder: PatchFolder, split: str, conditions: Conditions, balance: float = 0.0, measured: bool = False) -> TrainingSet:
    """The lesion patches of one split, with what the networks are told of each. measured: diameters that are not listed are measured."""
    import numpy as np

    indices = folder.select(splits=[split], classes=folder.lesion_classes)
    diameters = lesion_diameters_mm(folder, indices) if measured else None
    listed = folder.rows.diameter_mm[indices]
    if conditions.diameter and diameters is None and not np.isfinite(listed).any() and len(indices):
        raise ValueError(f"networks.condition asks for diameters, and no {split} patch of {folder.path} has one")
    return training_set(folder, indices, conditions, balance, diameters)


def _backgrounds(folder: PatchFolder, config: ContextConfig) -> tuple[Backgrounds, str]:
    """What lesions are drawn into, and the content hash of its folder. Raises ValueError for a folder that does not fit, or holds none."""
    from data.patches import PatchFolder

    other = PatchFolder.open(config.backgrounds) if config.backgrounds else folder
    if name := other.spec.misfit(folder.spec):
        raise ValueError(
            f"{other.path}: its {name} is {getattr(other, name)}, that of {folder.path} {getattr(folder, name)}; they do not fit"
        )
    mine = other.content_hash == folder.content_hash
    if mine != (config.origin == "cohort"):
        raise ValueError(
            f"context.origin is {config.origin}, and {other.path} {'is' if mine else 'is not'} the folder that is trained on; say whose its patients "
            "are: cohort for those of --data, else public, phantom or unknown"
        )
    if not mine:
        other.verify()
    return training_backgrounds(other, config.origin), other.content_hash


def _trained_on(folder: PatchFolder, data: TrainingSet, private: bool) -> dict[str, Any]:
    """What the patches were, never whose. private: only what does not change with one patient more, besides their number."""
    import numpy as np

    indices = data.patches.indices  # type: ignore[attr-defined]
    labels, counts = np.unique(folder.rows.names("label", indices), return_counts=True)
    diameters = folder.rows.diameter_mm[indices] if data.diameters_mm is None else data.diameters_mm
    known = diameters[np.isfinite(diameters)]
    tenths = np.percentile(known, range(10, 100, 10)) if len(known) >= 20 else []
    public = {
        "shape": list(folder.shape), "spacing_mm": folder.spacing_mm and list(folder.spacing_mm), "window": list(folder.window),
        "unit": folder.unit, "classes": list(folder.lesion_classes), "patients": len(set(np.asarray(data.patients).tolist())),
        "patients_known": folder.spec.patients_known, "licence": folder.spec.licence,
    }  # fmt: skip
    return public if private else {
        **public, "patches": len(indices), "class_counts": dict(zip(labels.tolist(), counts.tolist(), strict=True)),
        "diameter_deciles_mm": [round(float(mm) * 2) / 2 for mm in tenths], "content_sha256": folder.content_hash,
    }  # fmt: skip


def _what(data: TrainingSet, folder: PatchFolder, held_out: TrainingSet | None, conditions: Conditions) -> str:
    if held_out is None:
        return f"{len(set(data.patients))} training patients, {' x '.join(map(str, folder.shape))}"  # type: ignore[arg-type]
    asked = (
        f"; learns {', '.join([*conditions.classes, *['diameter'] * conditions.diameter])}"
        if conditions.classes or conditions.diameter
        else ""
    )
    return (
        f"{len(data.patches)} lesion patches of {len(set(data.patients))} training patients, {' x '.join(map(str, folder.shape))}, "  # type: ignore[arg-type]
        f"and {len(held_out.patches)} of {len(set(held_out.patients))} validation patients to compare with{asked}"  # type: ignore[arg-type]
    )


def _hooks(
    run: Path, options: Any, folder: PatchFolder, validate: Callable[[np.ndarray, np.ndarray], Validation] | None, config: dict[str, Any],
    conditions: Conditions, stop: _StopOnSignal,
) -> Hooks:  # fmt: skip
    """What the loop tells us: grids, distances, curves, the model card and lines of progress."""
    from data.export import write_preview
    from data.preprocess import from_unit
    from gan.tracker import Tracker
    from gan.training import Hooks

    steps, said = options.training.steps, set[str]()

    def show(step: int, x: np.ndarray, labels: list[str] | None) -> None:
        (run / "samples").mkdir(exist_ok=True)
        write_preview(from_unit(x[:, 0], folder.window), folder.window, run / "samples" / f"step-{step:08d}.png", folder.spacing_mm, labels)

    def saved(step: int) -> None:
        from gan.curves import write_curves
        from gan.run_folder import write_model_card

        advice = _advice(run)
        write_model_card(run, options.training, config["trained_on"], conditions, advice)
        write_curves(run / "metrics.jsonl", run / "curves.png")
        for line in advice:
            if line.split(":")[0] not in said:
                said.add(line.split(":")[0])
                print(f"warning: {line}", file=sys.stderr, flush=True)

    return Hooks(
        tracker=lambda step: Tracker(run, step, config, options.wandb),
        samples=show,
        log=lambda step, metrics: print(_progress(step, steps, metrics), flush=True),
        validate=validate,
        saved=saved,
        should_stop=lambda: stop.asked,
        warn=lambda line: print(f"warning: {line}", file=sys.stderr),
    )


def _validation(folder: PatchFolder, data: TrainingSet, held_out: TrainingSet):
    """Measures samples against validation patients; None, said in one line, where there are too few."""
    import numpy as np

    from data.preprocess import from_unit
    from evaluate.validation import ValidationDistances
    from gan.training import Validation

    training, validation = (one.patches.indices for one in (data, held_out))  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    scale = rng.choice(training, min(len(training), 1000), replace=False)
    there = rng.choice(validation, min(len(validation), 1000), replace=False)
    labels, patients = (folder.rows.names(name, there).tolist() for name in ("label", "patient"))
    try:
        distances = ValidationDistances(folder.hu(scale), folder.hu(there), labels, patients, folder.spacing_mm, folder.window, rng)
    except ValueError as error:
        print(f"no distances while training, and no best step: {error}")
        return None
    drawn_for = folder.rows.names("label", validation)

    def validate(x: np.ndarray, positions: np.ndarray) -> Validation:
        metrics = distances(from_unit(x[:, 0], folder.window), drawn_for[positions].tolist())
        return Validation(metrics[f"validation/{distances.measure}"], distances.measure, metrics)

    return validate


def _advice(run: Path) -> list[str]:
    from gan.advice import advice
    from gan.history import read_history

    return advice(read_history(run / "metrics.jsonl"))


def _progress(step: int, steps: int, metrics: dict[str, float]) -> str:
    minutes, seconds = divmod(round(metrics["eta_s"]), 60)
    held_out = f" (held out {metrics['wasserstein_held_out']:.3f})" if "wasserstein_held_out" in metrics else ""
    distance = next((f"  {name} {value:.2f}" for name, value in metrics.items() if name.startswith("validation/")), "")
    if "epsilon" in metrics:
        return (
            f"step {step}, critic step {metrics['critic_steps']:.0f}  epsilon {metrics['epsilon']:.3f}  {metrics['n_critic']:.0f} critic steps an "
            f"update  {metrics['images_per_second']:.0f} images/s  {minutes} min {seconds:02d} s left"
        )
    wasserstein, slope = (metrics.get(name, math.nan) for name in ("wasserstein", "slope_norm"))  # absent where not finite
    return (
        f"step {step}/{steps}  Wasserstein {wasserstein:.3f}{held_out}  slope {slope:.2f}  "
        f"{metrics['images_per_second']:.0f} images/s  {minutes} min {seconds:02d} s left{distance}"
    )


def _dry_run(trainer: Trainer, data: TrainingSet, say) -> None:
    """Does a few steps, keeps nothing, and says what the whole run would take."""
    import resource

    import torch

    from gan.training import in_memory

    data = in_memory(data, trainer)
    for name, net in (("generator", trainer.generator), ("critic", trainer.critic)):
        say(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    trainer.update(data)
    started, first, shown, progress = time.perf_counter(), trainer.step, trainer.shown, trainer.progress
    while trainer.progress < 1 and (trainer.step < first + 3 or (time.perf_counter() - started < 3 and trainer.step < first + 50)):
        trainer.update(data)
    spent = time.perf_counter() - started
    whole = spent / (trainer.progress - progress) if trainer.progress > progress else 0.0
    if trainer.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    say(
        f"on {trainer.processes.count} {trainer.device.type} process(es): {(trainer.shown - shown) / spent:.0f} images/s, "
        f"{spent / max(trainer.step - first, 1) * 1000:.0f} ms a step, {memory:.0f} MiB of memory a process"
    )
    what = f"{trainer.config.steps} steps" if trainer.privacy_spent is None else "all critic steps of the budget"
    say(f"{what} would take {whole / 60:.0f} minutes" if whole >= 120 else f"{what} would take {whole:.0f} seconds")


if __name__ == "__main__":
    run_command(main)
