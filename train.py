"""`python train.py`: trains a WGAN-GP on a patch folder; the same command again resumes."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from data.command import command_parser, parse, run_command
from gan.config import NetworkConfig, TrainingConfig

STOPPED = 75
"""Exit code after Ctrl-C or SIGTERM: the step was finished and saved; the same command resumes (sysexits: EX_TEMPFAIL)."""

DEMO = Path("demo")
MAY_CHANGE = {"steps", "log_every", "samples_every", "checkpoint_every", "device"}
"""Settings that may differ when a run resumes: they do not change what a step computes."""

DESCRIPTION = """Train a WGAN-GP on the lesions of a patch folder (training patients only).
A step is one generator update. Running the same command again resumes the run, with the same result
as if it had never stopped. Without --data, a procedural demo cohort is made and trained on.

  python train.py --data patches --out run --training.steps 5000
  python train.py --data patches --out run --training.n_critic 2 --training.penalty_fraction 0.25 \\
                  --training.learning_rate 5e-4          faster on few cores
  python train.py --config run/config.yaml --data patches --out run2     the settings of another run

In the run folder: config.yaml, metrics.jsonl, samples/*.png (the same latents at every step),
checkpoints/ (tensors and readable JSON) and model_card.md. Next: python sample.py --run run --help

Exit codes: 0 all steps done, 2 bad input, 75 stopped by Ctrl-C or SIGTERM and saved."""


def main(arguments: Sequence[str]) -> int:
    """Reads the command line, composes patches, networks and run folder, trains."""
    stop = _StopOnSignal()
    parser = command_parser("python train.py", DESCRIPTION)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings")
    parser.add_argument("--data", type=str | None, default=None, help="patch folder; without it the demo cohort")
    parser.add_argument("--out", type=str, default="run", help="run folder, new or to resume")
    parser.add_class_arguments(TrainingConfig, "training")
    parser.add_class_arguments(NetworkConfig, "networks")
    parser.add_argument(
        "--wandb", type=Literal["off", "offline", "online"], default="off", help="online is the only one that uses the network"
    )
    options = parse(parser, arguments)

    from data.patches import PatchFolder, WindowedPatches
    from gan.networks import device_of, halvings
    from gan.tracker import Tracker
    from gan.training import train

    data = Path(options.data) if options.data else _demo_patches()
    folder = PatchFolder.open(data)
    halvings(folder.shape)
    device_of(options.training.device)
    folder.verify()
    indices = folder.select(splits=["train"], classes=folder.lesion_classes)
    if len(indices) == 0:
        raise ValueError(f"{data}: no lesion patch of a training patient in it")
    patients = len(set(folder.rows.names("patient", indices).tolist()))
    trained_on = {
        "shape": list(folder.shape), "spacing_mm": folder.spacing_mm and list(folder.spacing_mm), "window": list(folder.window),
        "unit": folder.unit, "classes": list(folder.lesion_classes), "patches": len(indices), "patients": patients,
        "content_sha256": folder.content_hash,
    }  # fmt: skip
    run = Path(options.out)
    config = {"networks": asdict(options.networks), "training": asdict(options.training)}
    _open_run(run, config, trained_on)
    steps = options.training.steps
    print(
        f"{len(indices)} lesion patches of {patients} training patients, {' x '.join(map(str, folder.shape))}; run folder {run}", flush=True
    )

    reached = train(
        WindowedPatches(folder, indices), folder.shape, options.networks, options.training, run, trained_on,
        tracker=lambda step: Tracker(run, step, {**config, "trained_on": trained_on}, options.wandb),
        on_samples=lambda step, x: _write_grid(run, step, x, folder.window),
        on_log=lambda step, metrics: print(_progress(step, steps, metrics), flush=True),
        should_stop=lambda: stop.asked,
        warn=lambda line: print(f"warning: {line}", file=sys.stderr),
    )  # fmt: skip
    if reached < steps:
        print(f"stopped at step {reached} of {steps}, saved; the same command resumes")
        return STOPPED
    _write_model_card(run, options, trained_on)
    print(f"all {reached} steps done; samples in {run / 'samples'}")
    formats = "png,nifti,dicom" if len(folder.shape) == 2 else "nifti,dicom"
    print(f"next: python sample.py --run {run} --out synthetic --seeds 0-255 --format {formats}")
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


def _demo_patches() -> Path:
    """The demo cohort's patch folder, made on first use by the commands the README shows."""
    from data.__main__ import main as data_command

    phantom, patches, key = DEMO / "phantom", DEMO / "patches", DEMO / "pseudonym.key"
    if not phantom.exists():
        data_command(["phantom", "--out", str(phantom), "--patients", "32", "--lesions", "18", "--seed", "0"])
    if not patches.exists():
        key.write_text("phantom patients need no secret\n")  # so the demo gives the same bytes to everybody
        data_command([
            "prepare", str(phantom), "--lesions", str(phantom / "annotations.csv"), "--out", str(patches),
            "--size", "32", "--spacing", "1.25", "--slices", "3", "--key", str(key),
        ])  # fmt: skip
    return patches


def _open_run(run: Path, config: dict, trained_on: dict) -> None:
    """Makes the run folder, or checks that what is there is this run. Raises ValueError naming what differs."""
    import yaml

    from gan.checkpoint import write_atomically

    file = run / "config.yaml"
    if not file.exists():
        if run.is_dir() and any(run.iterdir()):
            raise FileExistsError(f"{run}: exists and is not a run folder; choose another --out")
        run.mkdir(parents=True, exist_ok=True)
    else:
        try:
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            data_before = json.loads((run / "trained_on.json").read_text(encoding="utf-8"))
            settings_before = {(part, name): value for part in config for name, value in before[part].items()}
        except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: not a run's configuration ({' '.join(str(error).split())})") from None
        for part, values in json.loads(json.dumps(config)).items():
            for name, value in values.items():
                if name not in MAY_CHANGE and settings_before.get((part, name), value) != value:
                    raise ValueError(
                        f"{part}.{name} is {value}, but {run} was started with {settings_before[part, name]}; "
                        "use the same settings to resume, or another --out"
                    )
        if data_before != trained_on:
            raise ValueError(f"{run} was trained on other patches (their content hash differs); choose another --out")
    write_atomically(run / "trained_on.json", (json.dumps(trained_on, indent=1) + "\n").encode())
    write_atomically(file, yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False).encode())


def _write_grid(run: Path, step: int, x, window: tuple[float, float]) -> None:
    from data.export import write_preview
    from data.preprocess import from_unit

    (run / "samples").mkdir(exist_ok=True)
    write_preview(from_unit(x[:, 0], window), window, run / "samples" / f"step-{step:08d}.png")


def _progress(step: int, steps: int, metrics: dict[str, float]) -> str:
    minutes, seconds = divmod(round(metrics["eta_s"]), 60)
    return (
        f"step {step}/{steps}  Wasserstein {metrics['wasserstein']:.3f}  slope {metrics['slope_norm']:.2f}  "
        f"{metrics['images_per_second']:.0f} images/s  {minutes} min {seconds:02d} s left"
    )


def _write_model_card(run: Path, options, trained_on: dict) -> None:
    """What a reader must know before using the model: data, training, what it is not."""
    from gan.checkpoint import load_checkpoint, write_atomically

    t = options.training
    checkpoint = load_checkpoint(run)
    low, high = trained_on["window"]
    card = f"""# Model card

A WGAN-GP (Gulrajani et al. 2017) that draws CT patches of lesions. Its images are synthetic.

- model: SHA-256 {checkpoint.model_hash}, step {checkpoint.step}
- trained on: {trained_on["patches"]} patches of {trained_on["patients"]} patients, classes {", ".join(trained_on["classes"])};
  {" x ".join(map(str, trained_on["shape"]))} pixels, spacing {trained_on["spacing_mm"] or "unknown"} mm, window {low:g} to {high:g} {trained_on["unit"]};
  content SHA-256 {trained_on["content_sha256"]}
- training: batch {t.batch}, {t.n_critic} critic steps an update, penalty weight {t.penalty_weight:g} on {t.penalty_fraction:g} of the pairs,
  Adam {t.learning_rate:g} {tuple(t.betas)}, seed {t.seed}
- privacy: **no guarantee**. The model was trained without differential privacy and may remember training patients.
- use: research and training data for detectors, after an audit (`python -m evaluate`). Not for diagnosis.
"""
    write_atomically(run / "model_card.md", card.encode())


if __name__ == "__main__":
    run_command(main)
