"""How fast a WGAN-GP trains: lesiongan's step beside the step as it is commonly written, on the same networks and weights.

  python benchmarks/step.py                            # four sizes, about a quarter of an hour on one CPU core
  python benchmarks/step.py --quick --json step.json   # one size in 2-D and one in 3-D, about a minute, no memory
  python benchmarks/step.py --sizes 48x48:32:64 --device cuda

What is timed is a training cycle: 5 critic steps, each with new synthetic patches that are detached and penalty 10, and one generator
step with the critic frozen, Adam (0, 0.9), float32. The forms take turns in one process, after one untimed turn:

  textbook                  Gulrajani et al. 2017, Algorithm 1, by double backward; memory layout and Adam as torch has them
  textbook, channels last   the same, channels last and with fused Adam
  masked slopes             the same, and leaky ReLUs that multiply by a mask, so that double backward drags no zeros
  lesiongan                 gan.losses: the same mathematics in rows that pass once each way
  lesiongan, quarter        the same, the penalty on a quarter of the pairs: another estimate of the same expectation

The first three are plain torch networks, as DCGANs are written. Their generator has transposed convolutions;
lesiongan's computes doubled pixels and a convolution of 3 as just those. Before anything is timed, the gradient of every parameter, given
the same patches, latents and mix, is compared with the textbook's in float64; where one is off by more than 1e-9 of its norm,
or by more than 2e-2 when computed in float32, nothing is timed.

Rates are real patches a second, 5 x batch / median time of a cycle (least to most). The clock is the process's CPU time on one
thread, which other programs on the machine hardly change, and wall time on several threads or a GPU. Multiply-adds
are those that the mathematics needs (see `multiply_adds`), not those that a form spends; their rate is
compared with the best of what matrix products and these networks' convolutions reach here. Memory is the peak over two cycles in a
process of its own: on a CPU what its resident set grew by beyond torch and data, on a GPU what torch allocated.
Ratios are rates over that of the faster textbook, the least over the sizes; above 1 is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from math import inf, prod
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.command import run_command
from gan.losses import critic_gradients, critic_loss_textbook, generator_loss
from gan.networks import Critic, Generator, UpsamplingConvolution, device_of, place, strides, widths

N_CRITIC = 5
PENALTY = 10.0
LATENT = 128
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-2}
"""Of gradients. In float32 rounding takes some units across the kink of their ReLU, and one such moves a gradient by 1e-3."""
CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
TEXTBOOKS = ("textbook", "textbook, channels last")
SAME_MATHEMATICS, QUARTER = "lesiongan", "lesiongan, quarter"


@dataclass(frozen=True)
class Size:
    """Patches (H, W) or (D, H, W), base channels of both networks, patches a step."""

    shape: tuple[int, ...]
    channels: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Of 64x64:32:64. Raises ValueError when it is none, or plain networks of stride 2 do not fit."""
        try:
            sides, channels, batch = text.split(":")
            size = cls(tuple(map(int, sides.split("x"))), int(channels), int(batch))
            halvings = {stride for layer in strides(size.shape) for stride in layer}
        except ValueError:
            raise ValueError(f"--sizes {text}: want SIDES:CHANNELS:BATCH, such as 64x64:32:64 or 32x32x32:16:8") from None
        if halvings != {2} or size.channels < 1 or size.batch < 1:
            raise ValueError(f"--sizes {text}: want sides that every layer halves, and channels and batch of 1 or more")
        return size

    @property
    def dims(self) -> int:
        return len(self.shape)

    @property
    def quarter(self) -> int:
        """Of the pairs."""
        return max(1, round(self.batch / 4))

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}:{self.channels}:{self.batch}"


SIZES = tuple(map(Size.parse, ("32x32:32:64", "64x64:32:64", "64x64:64:64", "32x32x32:16:8")))
QUICK_SIZES = (SIZES[0], SIZES[3])
BUDGET, QUICK_BUDGET = 60.0, 8.0
"""Seconds of cycles at each size."""


class LeakyReLU(nn.LeakyReLU):
    def __init__(self) -> None:
        super().__init__(0.2)


class MaskedLeakyReLU(nn.Module):
    """A leaky ReLU whose slopes are constants to autograd."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            slopes = torch.where(x > 0, x.new_ones(()), x.new_full((), 0.2))
        return x * slopes


def plain_critic(size: Size, activation: type[nn.Module]) -> nn.Sequential:
    """(N, 1, *S) -> scores (N, 1)."""
    maps = widths(size.shape, size.channels)
    layers: list[nn.Module] = []
    for before, after in pairwise([1, *maps]):
        layers += [CONVOLUTION[size.dims](before, after, 4, 2, 1), activation()]
    features = maps[-1] * prod(side >> len(maps) for side in size.shape)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 1, bias=False))


def plain_generator(size: Size) -> nn.Sequential:
    """(N, LATENT) -> (N, 1, *S) in [-1, 1]."""
    maps = widths(size.shape, size.channels)[::-1]
    start = (maps[0], *(side >> len(maps) for side in size.shape))
    layers: list[nn.Module] = [BATCH_NORM[size.dims](maps[0]), nn.ReLU()]
    for before, after in pairwise(maps):
        layers += [TRANSPOSED[size.dims](before, after, 4, 2, 1, bias=False), BATCH_NORM[size.dims](after), nn.ReLU()]
    last = [TRANSPOSED[size.dims](maps[-1], 1, 4, 2, 1), nn.Tanh()]
    return nn.Sequential(nn.Linear(LATENT, prod(start), bias=False), nn.Unflatten(1, start), *layers, *last)


def networks(size: Size, device: torch.device) -> tuple[Generator, Critic]:
    """lesiongan's networks, float32, always the same. No bias is 0, so that one forgotten would show in the gradients."""
    torch.manual_seed(0)
    generator, critic = Generator(size.shape, size.channels, LATENT), Critic(size.shape, size.channels)
    with torch.no_grad():
        for parameter in (*generator.parameters(), *critic.parameters()):
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            parameter.copy_((parameter * 2**16).round() / 2**16)  # sums of a few, the plain kernels, are then exact
    return place(generator, device, size.dims), place(critic, device, size.dims)


def plain_networks(size: Size, device: torch.device, last: bool, activation: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The same functions as plain networks. last: channels last."""
    plain, ours = (plain_generator(size).to(device), plain_critic(size, activation).to(device)), networks(size, device)
    for net, values in zip(plain, (plain_parameters(ours[0]), plain_parameters(ours[1])), strict=True):
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), values, strict=True):
                parameter.copy_(value)
        if last:
            place(net, device, size.dims)
    return plain


def plain_parameters(net: Generator | Critic) -> list[Tensor]:
    """What a plain network's parameters have to be to compute the same function, in its order, as functions of the net's own."""
    found: list[Tensor] = []
    if isinstance(net, Critic):
        for layer in net.layers:
            found += [pixels(layer.weight) if layer is net.layers[0] else layer.weight, layer.bias]
        return [*found, net.score.weight]
    for layer in net.layers:
        found += [layer.kernel()] if isinstance(layer, UpsamplingConvolution) else layer.parameters()
    return [net.project.weight, *found, net.bias]


def pixels(weight: Tensor) -> Tensor:
    """A kernel of 2 x 2 (x 2) cells, (A, 2 ** dims, 2, 2), as one of 4 x 4 (x 4) pixels, (A, 1, 4, 4)."""
    dims = weight.ndim - 2
    within_then_cell = weight.reshape(len(weight), *[2] * dims, *[2] * dims)
    order = [axis for n in range(1, dims + 1) for axis in (n + dims, n)]
    return within_then_cell.permute(0, *order).reshape(len(weight), 1, *[4] * dims)


def textbook_critic(critic: nn.Module, real: Tensor, synthetic: Tensor, mix: Tensor) -> None:
    """Leaves gradients in the critic's parameters, by double backward."""
    critic.zero_grad()
    critic_loss_textbook(critic, real, synthetic, mix, PENALTY).backward()


def textbook_generator(critic: nn.Module, synthetic: Tensor) -> None:
    """Leaves gradients in the parameters of the generator that drew `synthetic`, and none in the critic's."""
    critic.requires_grad_(False)
    (-critic(synthetic).mean()).backward()
    critic.requires_grad_(True)


def our_critic(critic: nn.Module, real: Tensor, synthetic: Tensor, mix: Tensor) -> None:
    """As `textbook_critic`, by lesiongan."""
    assert isinstance(critic, Critic)
    for parameter, gradient in critic_gradients(critic, real, synthetic, mix, PENALTY)[0].items():
        if gradient.stride() != parameter.stride():  # as gan.trainer does: the fused optimiser walks memory
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient


def our_generator(critic: nn.Module, synthetic: Tensor) -> None:
    """As `textbook_generator`, by lesiongan."""
    assert isinstance(critic, Critic)
    generator_loss(critic, synthetic).backward()


class Draws:
    """Real patches, latents and mixes, the same for every form."""

    def __init__(self, size: Size, device: torch.device):
        self.size, self.device = size, device
        self.random = torch.Generator(device).manual_seed(1)
        self.real = self.patches()

    def patches(self) -> Tensor:
        return torch.rand(self.size.batch, 1, *self.size.shape, generator=self.random, device=self.device) * 2 - 1

    def latents(self) -> Tensor:
        return torch.randn(self.size.batch, LATENT, generator=self.random, device=self.device)

    def mix(self, pairs: int) -> Tensor:
        return torch.rand(pairs, 1, *[1] * self.size.dims, generator=self.random, device=self.device)


class Form:
    """One way to write the step."""

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        penalised: int,
        fused: bool | None,
        backward_critic: Callable[[nn.Module, Tensor, Tensor, Tensor], None],
        backward_generator: Callable[[nn.Module, Tensor], None],
    ):
        self.generator, self.critic = networks
        self.penalised, self.backward_critic, self.backward_generator = penalised, backward_critic, backward_generator
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.0, 0.9), fused=fused) for net in networks
        )

    @classmethod
    def textbook(cls, size: Size, device: torch.device, last: bool, activation: type[nn.Module]) -> Form:
        plain = plain_networks(size, device, last, activation)
        return cls(plain, size.batch, True if last else None, textbook_critic, textbook_generator)

    @classmethod
    def ours(cls, size: Size, device: torch.device, penalised: int) -> Form:
        return cls(networks(size, device), penalised, True, our_critic, our_generator)

    def cycle(self, draws: Draws) -> None:
        """N_CRITIC critic steps and one generator step."""
        for _ in range(N_CRITIC):
            with torch.no_grad():
                synthetic = self.generator(draws.latents())
            self.backward_critic(self.critic, draws.real, synthetic, draws.mix(self.penalised))
            self.critic_optimizer.step()
        self.generator.zero_grad()
        self.backward_generator(self.critic, self.generator(draws.latents()))
        self.generator_optimizer.step()


FORMS: dict[str, Callable[[Size, torch.device], Form]] = {
    TEXTBOOKS[0]: lambda size, device: Form.textbook(size, device, False, LeakyReLU),
    TEXTBOOKS[1]: lambda size, device: Form.textbook(size, device, True, LeakyReLU),
    "masked slopes": lambda size, device: Form.textbook(size, device, True, MaskedLeakyReLU),
    SAME_MATHEMATICS: lambda size, device: Form.ours(size, device, size.batch),
    QUARTER: lambda size, device: Form.ours(size, device, size.quarter),
}


def differences(size: Size, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """How far each form's worst gradient is from the textbook's in float64, relative to its norm, for the same patches."""
    references: dict[int, list[Tensor]] = {}
    found: dict[str, float] = {}
    for name, make in FORMS.items():
        form = make(size, device)
        if form.penalised not in references:
            references[form.penalised] = gradients(FORMS[TEXTBOOKS[0]](size, device), size, device, torch.float64, form.penalised)
        compared = zip(gradients(form, size, device, dtype, form.penalised), references[form.penalised], strict=True)
        found[name] = max(float((gradient - reference).norm() / reference.norm()) for gradient, reference in compared)
    return found


def gradients(form: Form, size: Size, device: torch.device, dtype: torch.dtype, penalised: int) -> list[Tensor]:
    """Of both networks, float64, computed in `dtype`; a plain network's carried back to the parameters that its own are made of."""
    draws = Draws(size, device)
    synthetic, mix, z = draws.patches(), draws.mix(penalised), draws.latents()
    form.generator.to(dtype)
    form.critic.to(dtype)
    form.backward_critic(form.critic, draws.real.to(dtype), synthetic.to(dtype), mix.to(dtype))
    form.backward_generator(form.critic, form.generator(z.to(dtype)))
    found: list[Tensor] = []
    for net, ours in zip((form.generator, form.critic), networks(size, device), strict=True):
        here = [gradient.detach().double() for gradient in (p.grad for p in net.parameters()) if gradient is not None]
        found += here if type(net) is type(ours) else torch.autograd.grad(plain_parameters(ours.double()), list(ours.parameters()), here)
    return found


def multiply_adds(size: Size, penalised: int) -> float:
    """What the mathematics of a cycle needs for each real patch, when so many pairs of a batch are penalised.

    F and G stand for a forward pass of critic and generator, F1 and G1 for that of their first layers. A critic step draws a synthetic
    patch, G; takes real, synthetic and interpolate forward, 3 F, and back to the first layer's output, 3 F - 3 F1, the interpolate
    to the image, F1; takes one more row forward, F; and makes three rows' weight gradients, 3 F. That is G + 10 F - 2 F1, of
    which a pair without penalty saves 4 F. A generator step is G, the critic there and back, 2 F, and gradients, 2 G - G1.
    """
    critic, generator = plain_critic(size, LeakyReLU), plain_generator(size).eval()
    patch, z = torch.zeros(1, 1, *size.shape), torch.zeros(1, LATENT)
    f, f1, g, g1 = (forward_multiply_adds(*one) for one in ((critic, patch), (critic[0], patch), (generator, z), (generator[0], z)))
    return g + (6 + 4 * penalised / size.batch) * f - 2 * f1 + (3 * g - g1 + 2 * f) / N_CRITIC


@torch.no_grad()
def forward_multiply_adds(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        net(x)
    return int(counter.get_total_flops()) // 2


class Clock:
    """Seconds that something takes: of CPU time on one thread of a CPU, else of wall time."""

    def __init__(self, device: torch.device):
        self.device = device
        on_one_thread = device.type == "cpu" and torch.get_num_threads() == 1
        self.name, self._now = ("CPU time", time.process_time) if on_one_thread else ("wall time", time.perf_counter)

    def seconds(self, action: Callable[[], object]) -> float:
        self._wait()
        start = self._now()
        action()
        self._wait()
        return self._now() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@torch.no_grad()
def matrix_peak(sizes: Sequence[Size], device: torch.device, clock: Clock) -> tuple[float, str]:
    """The most multiply-adds a second that a matrix product or one of the critics' convolutions reaches here, and which does."""
    best = 0.0, ""

    def attempt(what: str, work: float, action: Callable[[], object]) -> None:
        nonlocal best
        action()
        best = max(best, (work / min(clock.seconds(action) for _ in range(3)), what))

    for n in (512, 1024, 2048) if device.type == "cpu" else (2048, 4096, 8192):
        a, b = torch.randn(2, n, n, device=device)
        attempt(f"matrix product of {n}", float(n) ** 3, partial(torch.mm, a, b))
    for size in sizes:
        x = torch.randn(3 * size.batch, 1, *size.shape, device=device)
        for layer in place(plain_critic(size, LeakyReLU), device, size.dims):
            if isinstance(layer, CONVOLUTION[size.dims]):
                what = f"convolution from {layer.in_channels} to {layer.out_channels} channels in {size}"
                attempt(what, forward_multiply_adds(layer, x), partial(layer, x))
            x = layer(x)
    return best


def set_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def peak_memory(form: str, size: Size, device: torch.device, threads: int, tf32: bool) -> float | None:
    """MiB, to be called in a process of its own. None on a CPU of a system other than Linux."""
    torch.set_num_threads(threads)
    set_tf32(tf32)
    tiny = Size((16,) * size.dims, 4, 4)
    FORMS[form](tiny, device).cycle(Draws(tiny, device))  # loads the code that a cycle needs
    draws = Draws(size, device)
    before = resident("VmRSS")
    made = FORMS[form](size, device)
    for _ in range(2):
        made.cycle(draws)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before


def resident(key: str) -> float | None:
    """MiB of this process now (VmRSS) or at most so far (VmHWM), as Linux tells it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(key)), None)


def memory_of_all(size: Size, device: torch.device, tf32: bool) -> dict[str, float | None]:
    """MiB by form."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        return {name: pool.submit(peak_memory, name, size, device, torch.get_num_threads(), tf32).result() for name in FORMS}


def measure(
    size: Size, device: torch.device, tf32: bool, clock: Clock, budget: float
) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """How far each form's gradients are from the textbook's, in float64 and float32, and the seconds of its cycles.

    As many rounds as fit the budget in seconds, but 3. Raises ValueError when gradients differ.
    """
    set_tf32(False)
    apart = {str(dtype).removeprefix("torch."): differences(size, device, dtype) for dtype in TOLERANCES}
    for found, tolerance in zip(apart.values(), TOLERANCES.values(), strict=True):
        if not max(found.values()) <= tolerance:
            raise ValueError(
                f"{size}: gradients differ ({', '.join(f'{name} {d:.1e}' for name, d in found.items())}), so times say nothing"
            )
    set_tf32(tf32)
    forms = {name: make(size, device) for name, make in FORMS.items()}
    draws = Draws(size, device)
    for form in forms.values():
        form.cycle(draws)
    times: dict[str, list[float]] = {name: [] for name in forms}
    while min(map(len, times.values())) < 3 or sum(map(sum, times.values())) < budget:
        for name, form in forms.items():
            times[name].append(clock.seconds(partial(form.cycle, draws)))
    return apart, times


def rates(size: Size, times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Real patches a second by form."""
    return {name: N_CRITIC * size.batch / statistics.median(seconds) for name, seconds in times.items()}


def over_textbook(rate: Mapping[str, float]) -> dict[str, float]:
    """Each form's rate over that of the faster textbook."""
    return {name: one / max(rate[textbook] for textbook in TEXTBOOKS) for name, one in rate.items()}


def table(size: Size, times: Mapping[str, Sequence[float]], apart: Mapping[str, Mapping[str, float]],
          memory: Mapping[str, float | None], peak: float) -> Iterator[str]:  # fmt: skip
    """What was measured at a size, in words."""
    rate = rates(size, times)
    over = over_textbook(rate)
    yield ""
    yield (
        f"{' x '.join(map(str, size.shape))}, {size.channels} channels, batch {size.batch}: {len(times[SAME_MATHEMATICS])} rounds; "
        f"gradients apart by {', '.join(f'{max(found.values()):.1e} in {dtype}' for dtype, found in apart.items())} at most"
    )
    yield f"{'':<26}{'patches/s':>10}{'least - most':>19}{'ratio':>8}{'of peak':>9}{'MiB':>8}{'M multiply-adds/patch':>23}"
    for name, seconds in times.items():
        work = multiply_adds(size, size.quarter if name == QUARTER else size.batch)
        spread = " - ".join(f"{N_CRITIC * size.batch / most:.1f}" for most in (max(seconds), min(seconds)))
        mib = memory.get(name)
        yield (
            f"{name:<26}{rate[name]:>10.1f}{spread:>19}{over[name]:>8.2f}{rate[name] * work / peak:>9.0%}"
            f"{'-' if mib is None else f'{mib:.0f}':>8}{work / 1e6:>23.1f}"
        )


def summary(found: Mapping[Size, Mapping[str, float]]) -> dict[str, float]:
    """The least over the sizes of our ratios, for 2-D and 3-D."""
    ratios: dict[str, float] = {}
    for dims, same, part in ((2, "same_mathematics", "sub_batch_penalty"), (3, "three_d", "three_d_sub_batch_penalty")):
        of_dims = [over for size, over in found.items() if size.dims == dims]
        for key, form in ((same, SAME_MATHEMATICS), (part, QUARTER)):
            least = min((over[form] for over in of_dims), default=inf)
            if least < inf:
                ratios[key] = round(least, 3)
    return ratios


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python benchmarks/step.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes unless told otherwise, fewer rounds, no memory")
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help=f"SIDES:CHANNELS:BATCH; default {' '.join(map(str, SIZES))}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; default %(default)s, torch's own choice")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu; cuda: in float32, and again with TF32")
    parser.add_argument("--json", type=Path, help="file to write ratios, times and conditions to")
    options = parser.parse_args(arguments)
    sizes = [Size.parse(text) for text in options.sizes] if options.sizes else list(QUICK_SIZES if options.quick else SIZES)
    if options.threads < 1:
        raise ValueError("want --threads of 1 or more")
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    device = device_of(options.device)
    clock = Clock(device)
    ratios: dict[str, float] = {}
    details: dict[str, dict[str, object]] = {}
    for tf32 in (False, True) if device.type == "cuda" else (False,):
        precision = "tf32" if tf32 else "float32"
        set_tf32(tf32)
        peak, reached_by = matrix_peak(sizes, device, clock)
        print(f"{processor(device)}, threads: {options.threads}, {precision}, rates by {clock.name}")
        print(f"peak: {peak / 1e9:.1f} G multiply-adds/s, by a {reached_by}", flush=True)
        details[precision] = {"peak_multiply_adds_per_second": peak, "peak_reached_by": reached_by}
        over: dict[Size, dict[str, float]] = {}
        for size in sizes:
            apart, times = measure(size, device, tf32, clock, QUICK_BUDGET if options.quick else BUDGET)
            memory = {} if options.quick else memory_of_all(size, device, tf32)
            over[size] = over_textbook(rates(size, times))
            for line in table(size, times, apart, memory, peak):
                print(line, flush=True)
            details[precision][str(size)] = {
                "patches_per_second": rates(size, times), "over_textbook": over[size], "seconds": times, "peak_memory_mib": memory,
                "gradients_apart": apart, "multiply_adds_per_patch": {"penalty on all": multiply_adds(size, size.batch), "on a quarter": multiply_adds(size, size.quarter)},
            }  # fmt: skip
        ratios |= {f"tf32_{name}" if tf32 else name: ratio for name, ratio in summary(over).items()}
    print()
    for name, ratio in ratios.items():
        print(f"{name:<32}{ratio:>8.3f}")
    if options.json:
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "torch": torch.__version__, "processor": processor(device),
            "cores": os.cpu_count(), "threads": options.threads, "clock": clock.name, "n_critic": N_CRITIC, "sizes": list(map(str, sizes)),
            **details,
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
