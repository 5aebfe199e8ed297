"""SimCLR: an encoder that learns, without labels, what tells one lesion from another in the user's own patches.

Chen et al. 2020: two random views of a patch are drawn together, and away from the views of other patches. Here "other" means of
another patient: the patches around one lesion show the same thing. Patches are int16 HU (N, H, W) or (N, D, H, W); the network sees
float32 (N, 1, *S) in [-1, 1] and ends at 64 features. Only training patients may be given: what the encoder has seen of held-out ones
would flatter them. What views of a patch differ in it learns to overlook, such as noise of 35 HU: `radiomics.py` sees that.

The file is safetensors, so reading it runs no code: MONAI's names for the tensors, and one JSON text that says what it was
trained on, never whom. `train.py --encoder` reads it too. It is still a model of patients' images, trained without differential privacy:
it stays where they do.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from monai.networks.nets import ResNet
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from evaluate.features import Extractor, in_batches
from evaluate.files import write_whole
from evaluate.tensors import channels_last, thinned_before, to_unit

SIMCLR = "simclr"
FORMAT = {"format": "lesiongan encoder", "version": 1}
CHANNELS = (8, 16, 32, 64)
EMBEDDING = 32
TEMPERATURE = 0.2
LEAST_PATIENTS = 2

SMALLEST_CROP = 0.7  # of a patch's side; smaller ones would hide the lesion's size
SHIFT = 0.05  # of the window's half-width: 35 HU for a window of 1400
NOISE = 0.05  # standard deviation at most, of the same

_KEY = "encoder"  # one entry: safetensors writes several in any order, and the file would not be the same twice


def train_encoder(
    hu: NDArray[np.int16],
    patients: Sequence[str],
    spacing_mm: Sequence[float] | None,
    window: tuple[float, float],
    rng: np.random.Generator,
    *,
    steps: int = 1000,
    batch: int = 128,
    device: str = "cpu",
    tell: Callable[[float, float], None] = lambda progress, seconds: None,
) -> ResNet:
    """The encoder after so many steps of `batch` patches, each in two views; (B, 1, *S) -> (B, 64), in eval mode, on the CPU.

    patients: N ids, one a patch. tell(share done, seconds since the start) is called after each step. All draws come from rng, so
    on one CPU and number of threads the same rng gives the same weights.

    Raises ValueError for fewer than 2 patients, whose patches would have nothing to be told from, or patches too small.
    """
    _, numbers = np.unique(np.asarray(patients), return_inverse=True)
    if len(hu) != len(numbers) or numbers.max(initial=-1) + 1 < LEAST_PATIENTS:
        raise ValueError(
            f"{len(hu)} patches of {numbers.max(initial=-1) + 1} patients, want those of {LEAST_PATIENTS} or more: "
            "an encoder learns to tell patients' lesions apart; prepare more training patients"
        )
    if min(hu.shape[-2:]) < 8:
        raise ValueError(f"patches are {hu.shape[1:]}, want 8 or more voxels across: an encoder halves them three times")
    dims = hu.ndim - 1
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(int(rng.integers(2**63)))
        encoder = _network(dims)
        head = nn.Sequential(nn.Linear(CHANNELS[-1], CHANNELS[-1]), nn.ReLU(), nn.Linear(CHANNELS[-1], EMBEDDING))
    both = nn.Sequential(encoder, head).to(device, memory_format=channels_last(dims)).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(both.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=max(steps, 2))
    turns = exchangeable_axes(hu.shape[1:], spacing_mm)
    started = time.monotonic()
    for step in range(1, steps + 1):
        rows = rng.integers(len(hu), size=batch)
        patches = to_unit(hu[rows], window, device)
        seen = torch.cat([view(patches, turns, rng), view(patches, turns, rng)])
        first, second = both(seen[:, None]).chunk(2)
        loss = nt_xent(first, second, torch.from_numpy(numbers[rows]).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        tell(step / steps, time.monotonic() - started)
    return encoder.cpu().eval()


def nt_xent(first: Tensor, second: Tensor, patients: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """How badly each view finds the other one of its patch among the views of other patients: a scalar, 0 or more.

    first, second: (B, K), row b of both from patch b; patients: int (B,). Chen et al. 2020, Eq. 1, over the 2 B views, in cosine
    similarity; views of one patient are no negatives for each other.
    """
    z = F.normalize(torch.cat([first, second]), dim=1)
    whose = patients.repeat(2)
    partner = torch.arange(len(z), device=z.device).roll(len(first))
    counts = whose[:, None] != whose[None, :]
    counts[torch.arange(len(z), device=z.device), partner] = True
    return F.cross_entropy((z @ z.T / temperature).masked_fill(~counts, -torch.inf), partner)


def view(patches: Tensor, turns: Sequence[tuple[int, int]], rng: np.random.Generator) -> Tensor:
    """A random view of each of (B, *S) in [-1, 1], of the same shape and range: what must not change the features.

    Mirrored, turned by quarters, cropped to 70-100 % of each side and enlarged again, made denser or less dense by up to 5 % of the
    window's half-width, with noise. turns: pairs of axes of S that may change places.
    """
    count, dims = len(patches), patches.ndim - 1
    places = np.zeros((count, dims, dims))  # output axis -> input axis, with a sign for a mirrored one
    order = np.tile(np.arange(dims), (count, 1))
    for a, b in turns:
        swapped = rng.random(count) < 0.5
        order[swapped, a], order[swapped, b] = order[swapped, b], order[swapped, a]
    np.put_along_axis(places, order[:, :, None], rng.choice([-1.0, 1.0], (count, dims, 1)), axis=2)
    side = rng.uniform(SMALLEST_CROP, 1, count)
    corner = (1 - side)[:, None] * rng.uniform(-1, 1, (count, dims))
    # affine_grid's coordinates run the other way: the last axis first.
    affine = np.concatenate([side[:, None, None] * places[:, ::-1, ::-1], corner[:, ::-1, None]], axis=2)
    grid = F.affine_grid(torch.from_numpy(affine.astype(np.float32)), [count, 1, *patches.shape[1:]], align_corners=False)
    seen = F.grid_sample(patches[:, None], grid.to(patches.device), padding_mode="border", align_corners=False)[:, 0]
    alike = (count, *[1] * dims)
    shift = rng.uniform(-SHIFT, SHIFT, alike).astype(np.float32)
    noise = rng.uniform(0, NOISE, alike).astype(np.float32) * rng.standard_normal(patches.shape, dtype=np.float32)
    return (seen + torch.from_numpy(shift + noise).to(seen.device)).clamp(-1, 1)


def exchangeable_axes(shape: Sequence[int], spacing_mm: Sequence[float] | None) -> list[tuple[int, int]]:
    """Pairs of axes with the same size and spacing: a quarter turn between them is again a patch of this kind."""
    spacing = [1.0] * len(shape) if spacing_mm is None else spacing_mm
    pairs = itertools.combinations(range(len(shape)), 2)
    return [(a, b) for a, b in pairs if shape[a] == shape[b] and abs(spacing[a] - spacing[b]) < 1e-3 * spacing[a]]


def save_encoder(path: str | Path, encoder: ResNet, trained: Mapping[str, Any]) -> None:
    """Writes the encoder and what it says of its training, plain values; the file is there whole or not at all.

    trained holds at least shape, spacing_mm and window, which `simclr` compares, and never whose patches they were. Raises OSError.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    told = {**FORMAT, "channels": CHANNELS, **trained, "tensors_sha256": _hash_of(tensors)}
    content = safetensors.torch.save(tensors, {_KEY: json.dumps(told)})
    write_whole(Path(path), content)


def load_encoder(path: str | Path) -> tuple[ResNet, dict[str, Any], str]:
    """The encoder in eval mode, what the file says of its training, and the file's SHA-256.

    Raises FileNotFoundError when there is no such file, ValueError naming it when it is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; train an encoder with `python -m evaluate encoder --help`")
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        told = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][_KEY])
        if {name: told.get(name) for name in FORMAT} != FORMAT or told["channels"] != list(CHANNELS):
            raise ValueError(f"want {FORMAT['format']}, version {FORMAT['version']}, of {CHANNELS} channels")
        shape, (low, high), spacing = told["shape"], told["window"], told["spacing_mm"]
        if not (low < high and len(shape) in (2, 3) and (spacing is None or len(spacing) == len(shape))):
            raise ValueError("its shape, spacing and window do not fit together")
        if told["tensors_sha256"] != _hash_of(tensors):
            raise ValueError("its tensors are not those that were written")
        encoder = _network(len(shape))
        encoder.load_state_dict(tensors)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not an encoder of `python -m evaluate encoder`, or damaged ({' '.join(str(error).split())[:120]}); train it again"
        ) from None
    return encoder.eval(), told, hashlib.sha256(content).hexdigest()


def simclr(
    path: str | Path, shape: Sequence[int], spacing_mm: Sequence[float] | None, window: tuple[float, float], device: str = "cpu"
) -> Extractor:
    """The 64 features of an encoder of `python -m evaluate encoder`, for patches of the shape, spacing and window that it was trained on.

    Raises FileNotFoundError or ValueError as `load_encoder` does, and ValueError when it was trained on other patches.
    """
    encoder, told, sha256 = load_encoder(path)
    ours = {"shape": tuple(shape), "spacing_mm": spacing_mm and tuple(spacing_mm), "window": tuple(window)}
    for name, value in ours.items():
        theirs = told[name] and tuple(told[name])
        if theirs != value:
            raise ValueError(f"{path}: trained on patches of {name} {theirs}, here {value}; train one on this patch folder")
    network = encoder.to(device, memory_format=channels_last(len(shape)))  # type: ignore[call-overload]

    @torch.inference_mode()
    def some_features(hu: NDArray) -> NDArray[np.float64]:
        return network(to_unit(hu, window, device)[:, None]).double().cpu().numpy()

    return Extractor(
        name=SIMCLR,
        weights_sha256=sha256,
        window=window,
        resize="none",
        unit_scale=True,
        feature_names=(),
        compute=partial(in_batches, some_features, batch=256),
        trained_on_sha256=told.get("trained_on_sha256"),
    )


def _network(dims: int) -> ResNet:
    """An untrained ResNet-10 that keeps the patch's size up to its second stage; input (B, 1, *S), output (B, 64)."""
    network = ResNet(
        block="basic",
        layers=[1, 1, 1, 1],
        block_inplanes=list(CHANNELS),
        spatial_dims=dims,
        n_input_channels=1,
        conv1_t_size=3,
        conv1_t_stride=1,
        no_max_pool=True,
        feed_forward=False,
    )
    thinned_before(network)
    return network


def _hash_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
