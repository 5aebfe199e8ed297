"""Trains an encoder on a patch folder's training patients."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from data.command import time_left

DESCRIPTION = """Train an encoder on a patch folder's training patients: features of your own lesions, learned without labels (SimCLR).

  python -m evaluate encoder patches --out encoder.safetensors
  python -m evaluate encoder patches --out encoder.safetensors --steps 3000 --device cuda
  python -m evaluate patches synthetic --out report --encoder encoder.safetensors      a second family of features, beside radiomics

PATCHES is the patch folder of `python -m data prepare` that the generator was trained on. The encoder sees its training split only, lesions
and lesion-free patches, and learns that two views of a patch (mirrored, turned, cropped, noisy) belong together and patches of different
patients do not. The defaults take a few minutes at 32 x 32 pixels on 2 cores; time grows with the number of voxels, so give cubes a GPU.

The file holds weights and what they were trained on (size, window, counts, a hash), nobody's images or names. It is still a model of
patients, trained without differential privacy: it stays where they do. The same seed gives the same file on the same CPU.

Exit codes: 0 done, 2 bad input, 130 or 143 interrupted, nothing left behind."""


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("patches", type=str, help="patch folder of real patients")
    parser.add_argument("--out", type=str, required=True, help="file to write, such as encoder.safetensors")
    parser.add_argument("--steps", type=int, default=1000, help="training steps; 100 or more")
    parser.add_argument("--batch", type=int, default=128, help="patches of a step, each seen twice; 8 or more, and more teach better")
    parser.add_argument("--seed", type=int, default=0, help="of the weights at the start and of every draw")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to train")


def run(options: Namespace) -> int:
    """Reads the patch folder, trains, and writes the encoder. Raises ValueError or OSError, before anything is read, for options that cannot be met."""
    if options.steps < 100 or options.batch < 8 or options.seed < 0:
        raise ValueError(f"--steps {options.steps}, --batch {options.batch}, --seed {options.seed}: want 100, 8 and 0 or more")
    out = Path(options.out)
    if out.exists():
        raise FileExistsError(f"{out}: exists already; remove it or choose another --out")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} into; make it, or choose another --out")

    import numpy as np
    import torch

    from data.patches import PatchFolder
    from data.quality import scanned_rows
    from evaluate.simclr import load_encoder, save_encoder, train_encoder

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but no GPU is visible; use cpu")
    folder = PatchFolder.open(options.patches)
    folder.verify()
    rows = scanned_rows(folder)
    mine = rows.split == "train"
    hu, patients = folder.hu(rows.index[mine]), rows.patient[mine].tolist()
    encoder = train_encoder(
        hu, patients, folder.spacing_mm, folder.window, np.random.default_rng(options.seed),
        steps=options.steps, batch=options.batch, device=options.device, tell=time_left(),
    )  # fmt: skip
    trained = {
        "shape": hu.shape[1:], "spacing_mm": folder.spacing_mm, "window": folder.window, "unit": folder.unit,
        "steps": options.steps, "batch": options.batch, "seed": options.seed, "patches": len(hu), "patients": len(set(patients)),
        "trained_on_sha256": folder.content_hash,
    }  # fmt: skip
    save_encoder(out, encoder, trained)
    _, _, sha256 = load_encoder(out)  # read back as the evaluation will
    print(f"{out}: {trained['patches']:,} patches of {trained['patients']:,} training patients, SHA-256 {sha256}")
    return 0
