"""A run folder: its settings, what was trained on, and the model card that goes with the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from gan.checkpoint import Checkpoint, load_checkpoint, write_atomically
from gan.conditions import Conditions
from gan.config import TrainingConfig
from gan.context import ORIGINS

MAY_CHANGE = {"steps", "log_every", "samples_every", "checkpoint_every", "not_finite", "device", "devices", "nodes"}
"""Settings that may differ when a run resumes: they do not change what a step computes."""

SAID_OF_THE_DATA = {"licence", "patients_known"}
"""What trained_on says besides what the patches are: runs of before these were recorded resume, and a licence may be mended."""

NOT_KNOWN = "the patients were not known: each picture or scan counts as one, so the patients held out may be among those trained on"
NO_GUARANTEE = "**no guarantee**. The model was trained without differential privacy and may remember training patients."
NOT_COVERED = """
  The promise is about the patch folder as it is: a patient is what its patches.csv calls one, and how the folder was split
  or enlarged may itself depend on who was in it.
  Not covered: validation and test patients; what an audit measures on training patients; the number of training patients, the
  names of the classes and the words on the licence, which are taken for public; weights that the run started from (--init-from),
  whose own patients have what that run promised; copies of the run folder that go on by themselves, whose spending adds up; and the file .privacy.json of the
  run folder, which stays with the data."""


def refuse_foreign(run: Path) -> None:
    """Raises FileExistsError for a folder that is neither empty nor a run, or a run that was killed in its first moment."""
    is_run = not run.is_dir() or (run / "config.yaml").exists()
    if not is_run and any(not file.name.startswith(".") and file.name != "trained_on.json" for file in run.iterdir()):
        raise FileExistsError(f"{run}: exists and is not a run folder; choose another --out")


def open_run(run: Path, config: Mapping[str, Any], trained_on: Mapping[str, Any]) -> None:
    """Says in the run folder what it is, or checks that what is there is this run. Raises ValueError naming what differs."""
    file, config = run / "config.yaml", json.loads(json.dumps(config))
    if file.exists():
        try:
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            data_before = json.loads((run / "trained_on.json").read_text(encoding="utf-8"))
            settings_before = {(part, name): value for part in config for name, value in before.get(part, {}).items()}
        except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file}: not a run's configuration ({' '.join(str(error).split())})") from None
        for part, values in config.items():
            for name, value in values.items():
                if name == "init_from" and value is None:  # resuming does not need the other run, which may be gone
                    values[name] = settings_before.get((part, name))
                elif name not in MAY_CHANGE and settings_before.get((part, name), value) != value:
                    raise ValueError(
                        f"{part}.{name} is {value}, but {run} was started with {settings_before[part, name]}; "
                        "use the same settings to resume, or another --out"
                    )
        if not isinstance(data_before, dict) or _patches_of(data_before) != _patches_of(trained_on):
            raise ValueError(f"{run} was trained on other patches (their content hash differs); choose another --out")
    write_atomically(run / "trained_on.json", (json.dumps(trained_on, indent=1) + "\n").encode())
    write_atomically(file, yaml.safe_dump(config, sort_keys=False).encode())


def _patches_of(trained_on: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in trained_on.items() if name not in SAID_OF_THE_DATA}


def licence_of(trained_on: Mapping[str, Any]) -> str:
    """The licence or terms of the training data, for a model card."""
    return trained_on.get("licence") or "not stated; find out before giving the model or its samples away"


def write_model_card(
    run: Path, training: TrainingConfig, trained_on: Mapping[str, Any], conditions: Conditions, warnings: Sequence[str]
) -> Checkpoint:
    """What a reader must know before using the newest checkpoint, which is returned: data, training, what it is not."""
    checkpoint = load_checkpoint(run)
    asked_for = ", ".join([*conditions.classes, *["a diameter in mm"] * conditions.diameter])
    of_all = "" if checkpoint.privacy_spent or checkpoint.step >= training.steps else f" of {training.steps}"
    low, high = trained_on["window"]
    spacing = f"{trained_on['spacing_mm']} mm" if trained_on["spacing_mm"] else "unknown"
    counts = ", ".join(f"{name} {count}" for name, count in trained_on.get("class_counts", {}).items())
    patches = (
        f"{trained_on['patches']} patches of {trained_on['patients']} patients ({counts})"
        if counts
        else f"{trained_on['patients']} patients"
    )
    content = f";\n  content SHA-256 {trained_on['content_sha256']}" if "content_sha256" in trained_on else ""
    best, private = checkpoint.best, checkpoint.privacy_spent
    chosen = (
        f"the step nearest to validation patients is {best['step']} ({best['measure']} {best['distance']:.2f})"
        if best
        else "no step was compared with validation patients"
    )
    warnings = warnings if trained_on.get("patients_known", True) else [NOT_KNOWN, *warnings]
    drawn = "CT patches of lesions. Its images are synthetic."
    if origin := checkpoint.config.get("context", {}).get("origin"):
        drawn = (
            f"lesions into lesion-free CT, in training that of {ORIGINS[origin]}. The lesions are synthetic; the\n"
            "anatomy around them is whatever it is given, as it is. A guarantee below covers the lesions, not that anatomy."
        )
    settings = {k: v for k, v in asdict(training).items() if k not in MAY_CHANGE}
    if private:  # its critic steps, and what they are made of, are the budget's
        settings = {"generator's batch": settings.pop("batch"), **{k: v for k, v in settings.items() if k != "n_critic"}}
    card = f"""# Model card

A WGAN-GP (Gulrajani et al. 2017) that draws {drawn}

- model: SHA-256 {checkpoint.model_hash}, step {checkpoint.step}{of_all}; {chosen}
- trained on: {patches};
  {" x ".join(map(str, trained_on["shape"]))} pixels, spacing {spacing}, window {low:g} to {high:g} {trained_on["unit"]}{content}
- licence or terms of the data: {licence_of(trained_on)}
- can be asked for: {asked_for or "nothing; it draws all classes as one"}
- training: {", ".join(f"{name} {value}" for name, value in settings.items())}
{"".join(f"- warning: {line}" + chr(10) for line in warnings)}- privacy: {private["sentence"] + NOT_COVERED if private else NO_GUARANTEE}
- use: research and training data for detectors, after an audit (`python -m evaluate`). Not for diagnosis.
"""
    write_atomically(run / "model_card.md", card.encode())
    return checkpoint
