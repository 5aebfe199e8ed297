"""A trained generator as one ONNX file, for machines without torch: latents in, HU out.

To draw from it takes NumPy and onnxruntime alone: docs/sampling.md has the example. Row n of `hu` is the patch of seeds[n], but for a pixel
in 10,000 or so that rounds to the next HU, depending on the processor and the runtime.

The graph is written here node by node, not traced. The generator is a handful of layers: with its batch normalisation folded into the
weights, a matrix product and transposed convolutions. Traced, its file would be fixed to one batch size, carry file names and stack
traces of the machine that wrote it, and depend on the versions of torch and of its exporter. `check_onnx` says whether both agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import zip_longest
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan.checkpoint import write_atomically
from gan.conditions import KNOTS_MM
from gan.networks import BatchNorm, Generator, UpsamplingConvolution
from gan.sampling import TILE, Model, of_whole_patches, sample
from gan.trainer import latents

Window = tuple[float, float]

OPSET, IR_VERSION = 13, 7
"""The oldest that have all it takes (ONNX 1.8, of 2020), so that old runtimes read the file too."""

LATENT_RULE = "for each seed: numpy.random.default_rng(seed).standard_normal(latent, dtype=numpy.float32)"
CONDITION_RULE = (
    "one number a class, 1 for the one asked for, else 0; then one number a diameter knot, numpy.interp(log(mm), log(knots), row) "
    "for each row of the identity, all 0 for an unknown diameter"
)


@dataclass(frozen=True)
class Agreement:
    """What an ONNX file draws beside what its model draws. largest_hu: the largest difference, at most 1 from rounding. equal_share: of
    pixels, 0 to 1."""

    samples: int
    largest_hu: int
    equal_share: float


def export_onnx(model: Model, window: Window, file: Path, metadata: Mapping[str, str]) -> None:
    """Writes the generator, atomically; the same model gives the same bytes.

    Inputs: `z`, float32 (N, latent), and of a conditional model `condition`, float32 (N, K), as model.conditions encodes it; any N.
    Output: `hu`, int16 (N, *S), by the exact inverse of the window (low, high) in HU.
    metadata: what the file shall say besides what follows from the model and the window, such as its licence and this tool's version.
    Raises ValueError where onnx is not installed, OSError where the file cannot be written.
    """
    onnx = _needed("onnx")
    graph, generator = _Graph(onnx), of_whole_patches(model)
    inputs = {"z": generator.latent}
    drawn = "z"
    if generator.conditions:
        inputs["condition"] = generator.conditions
        drawn = graph.add("Concat", "z", "condition", axis=1)
    _add_window(graph, _add_generator(graph, drawn, generator), window)
    float32, int16 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT16
    described = onnx.helper.make_graph(
        graph.nodes,
        "generator",
        [onnx.helper.make_tensor_value_info(name, float32, ["N", size]) for name, size in inputs.items()],
        [onnx.helper.make_tensor_value_info("hu", int16, ["N", *_sides(generator)])],
        graph.arrays,
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    whole = onnx.helper.make_model(described, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lesiongan")
    onnx.helper.set_model_props(whole, dict(sorted({**metadata, **_metadata(model, window)}.items())))
    write_atomically(file, whole.SerializeToString(deterministic=True))


def check_onnx(model: Model, file: Path, window: Window, seeds: Sequence[int] = range(64)) -> Agreement:
    """Draws the seeds from the file with onnxruntime, on the CPU, and from the model, for all its classes and diameters by turns.

    Raises ValueError, naming the file, where it is damaged, another model's, or off by more than 1 HU anywhere.
    """
    onnxruntime = _needed("onnxruntime")
    content = file.read_bytes()
    known = model.conditions
    labels = [known.classes[n % len(known.classes)] if known.classes else "" for n in range(len(seeds))]
    condition = known.encode(labels, np.geomspace(KNOTS_MM[0], KNOTS_MM[-1], len(seeds))) if known.size else None
    with _errors_of(file):
        session = onnxruntime.InferenceSession(content, _quiet(onnxruntime), providers=["CPUExecutionProvider"])
        exported = session.get_modelmeta().custom_metadata_map.get("model_sha256")
    if exported != model.model_hash:
        raise ValueError(f"{file}: its model_sha256 is {exported}, not {model.model_hash}: another model's; export this one")
    largest, equal, pixels = 0, 0, 0
    for start, x in zip(range(0, len(seeds), TILE), sample(model, seeds, condition), strict=True):
        rows = slice(start, start + TILE)
        given = {"z": latents(seeds[rows], model.generator.latent).numpy()}
        if condition is not None:
            given["condition"] = condition[rows]
        with _errors_of(file):
            hu = session.run(["hu"], given)[0]
        wanted = _in_hu(x[:, 0], window)
        if hu.shape != wanted.shape:
            raise ValueError(f"{file}: patches of {hu.shape[1:]} pixels, where the model draws {wanted.shape[1:]}; export it again")
        difference = np.abs(hu.astype(np.int64) - wanted)
        largest, equal, pixels = max(largest, int(difference.max())), equal + int((difference == 0).sum()), pixels + hu.size
    if largest > 1:
        raise ValueError(f"{file}: up to {largest} HU from what the model draws, where rounding explains 1; export it again")
    return Agreement(len(seeds), largest, equal / pixels)


@dataclass
class _Graph:
    """Nodes in the order they run, and the arrays they take."""

    onnx: ModuleType
    nodes: list[Any] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)

    def add(self, operator: str, *inputs: str | np.ndarray, output: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of its output; an input is such a name or an array."""
        output = output or f"{operator}_{len(self.nodes)}"
        names = [given if isinstance(given, str) else self._array(f"{output}.{n}", given) for n, given in enumerate(inputs)]
        self.nodes.append(self.onnx.helper.make_node(operator, names, [output], **attributes))
        return output

    def _array(self, name: str, values: np.ndarray) -> str:
        self.arrays.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _add_generator(graph: _Graph, drawn: str, generator: Generator) -> str:
    """(N, latent + K) -> "x", float32 (N, *S) in [-1, 1], as Generator.forward computes it."""
    norm, *layers = [layer for layer in generator.layers if not isinstance(layer, nn.ReLU)]
    places, dims = prod(generator.start[1:]), len(generator.start) - 1
    scale, shift = (values.repeat_interleave(places) for values in _scale_and_shift(norm))
    weight = generator.project.weight.double() * scale[:, None]
    x = graph.add("Gemm", drawn, _float32(weight.t()), _float32(shift))
    x = graph.add("Reshape", x, np.array([-1, *generator.start], np.int64))
    for convolution, norm in zip_longest(layers[::2], layers[1::2]):
        assert isinstance(convolution, UpsamplingConvolution)
        scale, shift = _scale_and_shift(norm) if norm else (torch.ones_like(generator.bias), generator.bias)
        weight = convolution.kernel().double() * scale.view(-1, *[1] * dims)
        x = graph.add("Relu", x)
        x = graph.add("ConvTranspose", x, _float32(weight), _float32(shift), strides=convolution.stride, pads=[1] * 2 * dims)
    x = graph.add("Tanh", x)
    return graph.add("Squeeze", x, np.array([1], np.int64), output="x")


def _add_window(graph: _Graph, x: str, window: Window) -> None:
    """float32 in [-1, 1] -> "hu": what _in_hu computes, step by step."""
    low, high = window
    x = graph.add("Clip", x, np.array(-1, np.float32), np.array(1, np.float32))
    x = graph.add("Cast", x, to=graph.onnx.TensorProto.DOUBLE)
    x = graph.add("Add", x, np.array(1.0))
    x = graph.add("Mul", x, np.array((high - low) / 2))
    x = graph.add("Add", x, np.array(low, float))
    x = graph.add("Round", x)  # halves to even, as np.rint
    graph.add("Cast", x, to=graph.onnx.TensorProto.INT16, output="hu")


def _in_hu(x: np.ndarray, window: Window) -> np.ndarray:
    """float32 in [-1, 1] to int16 HU: data.preprocess.from_unit, which this package does not import."""
    low, high = window
    return np.rint((np.clip(x, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low).astype(np.int16)


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """float64 (maps,) each: batch normalisation in eval mode is x * scale + shift."""
    assert isinstance(norm, BatchNorm)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _float32(values: Tensor) -> np.ndarray:
    return values.detach().cpu().float().numpy()


def _sides(generator: Generator) -> list[int]:
    """S, a patch's sides in pixels."""
    steps = [layer.stride for layer in generator.layers if isinstance(layer, UpsamplingConvolution)]
    return [side * prod(axis) for side, axis in zip(generator.start[1:], zip(*steps, strict=True), strict=True)]


def _metadata(model: Model, window: Window) -> dict[str, str]:
    """What follows from the model and the window; lists are JSON."""
    return {
        "model_sha256": model.model_hash, "step": str(model.step), "latent": str(model.generator.latent), "z": LATENT_RULE,
        "classes": json.dumps(model.conditions.classes), "diameter_knots_mm": json.dumps(KNOTS_MM if model.conditions.diameter else []),
        "condition": CONDITION_RULE if model.conditions.size else "none",
        "shape": json.dumps(_sides(of_whole_patches(model))), "spacing_mm": json.dumps(model.trained_on.get("spacing_mm")),
        "window": json.dumps([float(end) for end in window]), "unit": str(model.trained_on.get("unit", "HU")),
        "privacy": model.privacy,
    }  # fmt: skip


@contextmanager
def _errors_of(file: Path) -> Iterator[None]:
    """Turns what onnxruntime raises into a ValueError of one line; its errors share no class of their own."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"{file}: damaged, or no ONNX file of this model ({cause}); export it again") from None


def _quiet(onnxruntime: ModuleType) -> Any:
    """Options of a session that leaves what goes wrong to its exceptions."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def _needed(package: str) -> ModuleType:
    """The package, imported. Raises ValueError where it is not installed."""
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"ONNX files need the package {package}: pip install 'lesiongan[onnx]'") from None
