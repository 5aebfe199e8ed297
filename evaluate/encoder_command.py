"""What `python -m evaluate encoder` can be told, and what it does. Imports nothing heavy, so --help is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


@dataclass(frozen=True)
class TrainingPatches:
    """What an encoder is trained on: int16 HU (N, *S) of the training split, the patient of each, and what the folder says of them."""

    hu: NDArray[np.int16]
    patients: Sequence[str]
    spacing_mm: tuple[float, ...] | None
    window: tuple[float, float]
    unit: str
    content_sha256: str


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("patches", type=str, help="patch folder of real patients")
    parser.add_argument("--out", type=str, required=True, help="file to write, such as encoder.safetensors")
    parser.add_argument("--steps", type=int, default=1000, help="training steps; 100 or more")
    parser.add_argument("--batch", type=int, default=128, help="patches of a step, each seen twice; 8 or more, and more teach better")
    parser.add_argument("--seed", type=int, default=0, help="of the weights at the start and of every draw")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to train")


def check(options: Any) -> None:
    """Raises ValueError or OSError for options that cannot be met; before anything is read."""
    if options.steps < 100 or options.batch < 8 or options.seed < 0:
        raise ValueError(f"--steps {options.steps}, --batch {options.batch}, --seed {options.seed}: want 100, 8 and 0 or more")
    out = Path(options.out)
    if out.exists():
        raise FileExistsError(f"{out}: exists already; remove it or choose another --out")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder to write {out.name} into; make it, or choose another --out")


def run(options: Any, patches: TrainingPatches, tell: Callable[[float, float], None]) -> str:
    """Trains the encoder and writes it to options.out; returns what to print. tell(share done, seconds since the start): after each step.

    Raises ValueError for patches of one patient or too small ones, or a GPU that is not there, and OSError when the file cannot be written.
    """
    check(options)

    import numpy as np
    import torch

    from evaluate.simclr import load_encoder, save_encoder, train_encoder

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but no GPU is visible; use cpu")
    rng = np.random.default_rng(options.seed)
    encoder = train_encoder(
        patches.hu, patches.patients, patches.spacing_mm, patches.window, rng,
        steps=options.steps, batch=options.batch, device=options.device, tell=tell,
    )  # fmt: skip
    trained = {
        "shape": patches.hu.shape[1:], "spacing_mm": patches.spacing_mm, "window": patches.window, "unit": patches.unit,
        "steps": options.steps, "batch": options.batch, "seed": options.seed, "patches": len(patches.hu),
        "patients": len(set(patches.patients)), "trained_on_sha256": patches.content_sha256,
    }  # fmt: skip
    save_encoder(options.out, encoder, trained)
    _, _, sha256 = load_encoder(options.out)  # read back as the evaluation will
    return f"{options.out}: {trained['patches']:,} patches of {trained['patients']:,} training patients, SHA-256 {sha256}"
