"""How fast samples are drawn and written, beside what the generator's arithmetic alone would take.

  python benchmarks/sampling.py                           a few minutes
  python benchmarks/sampling.py --quick --json s.json     under a minute: the smallest size, few rounds

Networks of train.py's size with random weights, which take the same time as trained ones. Seconds are CPU time on one thread.

  arithmetic limit   the generator's multiply-adds at the best rate that a matrix product or convolution reaches here
  generator          its forward pass, 32 at a time
  drawn              gan.sampling.sample: latents from seeds and the same pass
  ONNX Runtime       the exported file, 32 at a time, in HU, where onnx and onnxruntime are installed
  png, nifti, dicom  a sample drawn and written in that format, in HU
  all three          drawn and written in all of them by sample.py itself, as a patch folder, with samples.csv and preview

and, in wall time, all of it by sample.py on one process and with two that write. Rates are medians over rounds in turns.
Ratios are times over the generator's, but generator_over_limit over the limit: 1 is best.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sample as sample_command
from benchmarks.step import Clock, Size, matrix_peak, networks, processor
from data.command import run_command
from data.patches import PatchSpec
from data.preprocess import from_unit
from data.synthetic import Part, Sample, write_formats
from gan.checkpoint import Checkpoint, save_checkpoint
from gan.conditions import Conditions
from gan.onnx_export import export_onnx
from gan.sampling import TILE, Model, sample

SIZES = tuple(map(Size.parse, ("32x32:32:64", "64x64:32:64", "32x32x32:16:32")))
WINDOW = (-1000.0, 400.0)
AT_ONCE = 256
ROUNDS, QUICK_ROUNDS = 9, 3


def model_of(size: Size) -> Model:
    generator = networks(size, torch.device("cpu"))[0].eval().requires_grad_(False)
    trained_on = {
        "shape": list(size.shape), "spacing_mm": [1.0] * size.dims, "window": list(WINDOW), "unit": "HU", "classes": ["nodule"], "licence": "none",
    }  # fmt: skip
    return Model(generator, Conditions(), 1, "0" * 64, trained_on)


def onnx_session(model: Model, place: Path) -> Callable[[], None] | None:
    """A call that draws AT_ONCE samples from the exported model; None where the packages are not there."""
    try:
        import onnxruntime

        export_onnx(model, WINDOW, place / "model.onnx", {})
    except (ImportError, ValueError):
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(place / "model.onnx"), options, providers=["CPUExecutionProvider"])
    z = np.random.default_rng(0).standard_normal((TILE, model.generator.latent), dtype=np.float32)

    def draw() -> None:
        for _ in range(AT_ONCE // TILE):
            session.run(None, {"z": z})

    return draw


def write(model: Model, spec: PatchSpec, formats: Sequence[str]) -> None:
    """Draws AT_ONCE samples and writes them in these formats."""
    hu = from_unit(np.concatenate(list(sample(model, range(AT_ONCE))))[:, 0], WINDOW)
    samples = [Sample(seed, 0, model.model_hash, "nodule", float("nan"), {}) for seed in range(AT_ONCE)]
    with tempfile.TemporaryDirectory() as place:
        write_formats(Path(place), Part(Path(place), hu, samples, spec, formats, "0", {}))


def by_command(run: Path, place: Path, count: int, formats: Sequence[str], processes: int) -> None:
    """The same by sample.py, a patch folder with all that belongs to it."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        sample_command.main([
            "--run", str(run), "--out", str(place / "out"), "--seeds", f"0-{count - 1}", "--format", ",".join(formats), "--processes", str(processes),
        ])  # fmt: skip
    shutil.rmtree(place / "out")


def measure(size: Size, rounds: int, clock: Clock, peak: float, place: Path) -> dict[str, Any]:
    """name -> images a second; the limit among them."""
    model = model_of(size)
    formats = ("png", "nifti", "dicom") if size.dims == 2 else ("nifti", "dicom")
    spec = PatchSpec(size.shape, (1.0,) * size.dims, WINDOW, ("nodule",), origin="synthetic")
    z = torch.randn(TILE, model.generator.latent)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.generator(z)
    multiply_adds = counter.get_total_flops() / 2 / TILE
    run = place / f"run-{'x'.join(map(str, size.shape))}"
    save_checkpoint(run, Checkpoint(
        1, {"networks": {"channels": size.channels, "latent": model.generator.latent}, "conditions": {}}, model.trained_on,
        {f"average.{name}": tensor for name, tensor in model.generator.state_dict().items()},
    ))  # fmt: skip

    @torch.no_grad()
    def forward() -> None:
        for _ in range(AT_ONCE // TILE):
            model.generator(z)

    forms: dict[str, Callable[[], object]] = {"generator": forward, "drawn": lambda: list(sample(model, range(AT_ONCE)))}
    if session := onnx_session(model, place):
        forms["ONNX Runtime"] = session
    forms |= {name: partial(write, model, spec, [name]) for name in formats}
    forms["all, sample.py"] = partial(by_command, run, place, 4 * AT_ONCE, formats, 1)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for n in range(rounds + 1):
        for name, form in forms.items():
            seconds = clock.seconds(form) / (4 if name.startswith("all") else 1)
            if n:
                times[name].append(seconds)
    rates = {"arithmetic limit": peak / multiply_adds}
    rates |= {name: AT_ONCE / statistics.median(seconds) for name, seconds in times.items()}
    walls = {}
    for processes in (1, 2):
        started = time.perf_counter()
        by_command(run, place, 16 * AT_ONCE, formats, processes)
        walls[f"sample.py, {processes} that write, wall"] = 16 * AT_ONCE / (time.perf_counter() - started)
    return {"rates": rates, "walls": walls, "multiply_adds": multiply_adds}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/sampling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the smallest size and few rounds")
    parser.add_argument("--json", type=Path, help="file to write ratios, rates and conditions to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes, clock = SIZES[:1] if options.quick else SIZES, Clock(torch.device("cpu"))
    peak, what = matrix_peak(sizes, torch.device("cpu"), clock)
    print(
        f"best rate here: {peak / 1e9:.0f} G multiply-adds/s ({what}); images a second ({clock.name}), time over the generator's",
        file=sys.stderr,
    )
    found, ratios = {}, dict[str, float]()
    with tempfile.TemporaryDirectory() as place:
        for size in sizes:
            found[str(size)] = one = measure(size, QUICK_ROUNDS if options.quick else ROUNDS, clock, peak, Path(place))
            rates = one["rates"]
            print(f"\n{size}, {one['multiply_adds'] / 1e6:.1f} M multiply-adds an image")
            for name, rate in (*rates.items(), *one["walls"].items()):
                print(f"{name:<34}{rate:>12,.0f}" + (f"{rates['generator'] / rate:>9.2f}" if name in rates else ""))
            over = {"generator_over_limit": rates["arithmetic limit"] / rates["generator"]}
            over |= {f"{name.split(',')[0].replace(' ', '_').lower()}_over_generator": rates["generator"] / rates[name] for name in rates}
            for name, ratio in over.items():
                if name not in ("arithmetic_limit_over_generator", "generator_over_generator"):
                    ratios[name] = max(ratios.get(name, 0.0), round(ratio, 3))
    print()
    for name, ratio in ratios.items():
        print(f"{name:<34}{ratio:>8.3f}")
    if options.json:
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__,
            "processor": processor(torch.device("cpu")), "cores": os.cpu_count(), "threads": 1, "peak_multiply_adds": peak, "sizes": found,
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
