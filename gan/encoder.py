"""Feature matching: a trained encoder that the user gives compares synthetic patches with real ones, batch by batch.

Shapes: N patches, 1 channel, *S = (H, W) or (D, H, W), float32 in [-1, 1]. The encoder is a ResNet in the form that
torchvision, MONAI, MedicalNet or RadImageNet publish. Its weights never change, and its file is read as tensors only,
so that no code in it can run.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from gan.networks import channels_last

if TYPE_CHECKING:
    from monai.networks.nets import ResNet

WIDEST = 1024
"""Channels of a stage's inner convolutions: twice what published ResNets have, and still quick to build."""

_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Where nn.Sequential(*resnet.children()) holds torchvision's layers: the names in RadImageNet's own files."""


class _Gray(NamedTuple):
    """What the weights expect of an image whose gray levels lie in [0, 1]: (gray - mean) / deviation, channel by channel."""

    name: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


_IMAGENET = _Gray("gray as ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CENTERED = _Gray("gray less ImageNet's mean", (0.406, 0.456, 0.485), (1.0, 1.0, 1.0))  # as monai.losses.PerceptualLoss feeds such weights
_UNIT = _Gray("gray in [-1, 1]", (0.5,), (0.5,))


class Encoder(nn.Module):
    """A ResNet without its head, for features of patches: frozen, batch normalisation by the statistics it was trained with.

    name: architecture, dimensions and what it is fed, for the run's record. sha256: of the weights file.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: ResNet, gray: _Gray, dims: int, channels: int, name: str, sha256: str):
        super().__init__()
        self.network, self.name, self.sha256 = network, name, sha256
        mean, deviation = (torch.tensor(values).expand(channels).view(1, channels, *[1] * dims) for values in (gray.mean, gray.deviation))
        self.register_buffer("scale", 0.5 / deviation)
        self.register_buffer("shift", (0.5 - mean) / deviation)
        self.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """(N, 1, *S) -> (N, 2 C) for the stem and each stage with C channels: their means over space, then their deviations.

        A stage that would be left with 1 pixel along an axis is not used, nor those after it: such a pixel has no
        deviation, and sees more padding than patch. So 32 x 32 pixels reach the third stage of a network of stride 32, and
        64 x 64 all four. Differentiable in x, which weights of three channels see three times.
        """
        net = self.network
        maps = net.act(net.conv1(x * self.scale + self.shift))
        found = [_mean_and_deviation(maps)]
        if not net.no_max_pool:
            maps = net.maxpool(maps)
        for stage, stride in ((net.layer1, 1), (net.layer2, 2), (net.layer3, 2), (net.layer4, 2)):
            if min(maps.shape[2:]) <= stride:
                break
            maps = stage(maps)
            found.append(_mean_and_deviation(maps))
        return found


def feature_matching_loss(encoder: Encoder, real: Tensor, synthetic: Tensor) -> Tensor:
    """How far the features of two batches (N, 1, *S) are apart on average: a scalar, 0 for equal batches, for the generator to lower.

    The squared difference of the batch means of each feature (Salimans et al. 2016, sec. 3.1), in units of the feature's
    variance over the real batch, averaged over a stage's features and then over stages. The features are those of a fixed,
    trained network, as in Johnson et al. 2016, sec. 3, but of the distribution instead of a pair of images: means and
    deviations over space, which place nothing. To the variance comes 1 % of the stage's mean square over the real batch:
    a feature that happens to be still in these patches would otherwise outweigh all others. No gradient reaches `real`.

    Two batches of N from one distribution are up to about 2 / N apart.
    """
    with torch.no_grad():
        wanted = encoder.features(real)
    stages = []
    for ours, theirs in zip(encoder.features(synthetic), wanted, strict=True):
        unit = theirs.var(0, correction=0) + 0.01 * theirs.square().mean()
        stages.append(((ours.mean(0) - theirs.mean(0)).square() / unit).mean())
    return torch.stack(stages).mean()


def load_encoder(file: Path, dims: int) -> Encoder:
    """A ResNet's weights (.safetensors, or a .pt or .pth state dict) for patches of 2 or 3 dimensions, on the CPU.

    The network is monai.networks.nets.ResNet; blocks, widths and input channels (1 or 3) follow from the tensors. Names may
    have any prefix (module., backbone., encoder.), and what is not of the ResNet, such as a head or a decoder, is ignored.
    What the tensors leave open is filled in as those who publish such weights do it:

    - the first convolution: stride 2 and then pooling (torchvision, RadImageNet, MedicalNet); stride 1 where the shortcuts'
      convolutions have biases, which is MONAI's default for both; stride 1 and no pooling where it is 3 pixels wide, the form for small images;
    - shortcuts without weights are padded with zeros (He et al. 2016, option A; MedicalNet's ResNet-18 and 34), and pass
      gradients on, which MONAI's do not; strides of later stages are MONAI's where MedicalNet dilates;
    - bottlenecks whose convolutions have biases come from Keras, which strides in the first of them (RadImageNet's first release);
    - gray levels: ImageNet's mean and deviation for torchvision's form with three channels in 2-D, ImageNet's mean for
      Keras's, otherwise [-1, 1] as the patches are, which is also RadImageNet's own for its PyTorch files.

    Raises FileNotFoundError when there is no such file, and ValueError naming the file and the cause when it is not such a
    state dict: what is pickled otherwise (a whole model, TorchScript) is refused, not run.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give the weights of a ResNet (.safetensors, .pt or .pth)")
    content = file.read_bytes()
    try:
        tensors, numbered = _only_resnet(_read(content, safe=file.suffix == ".safetensors"))
        network, name = _network(tensors, dims)
        keras = network.conv1.bias is not None
        channels = network.conv1.in_channels
        torchvision = channels == 3 and dims == 2 and network.conv1.stride[0] == 2 and not numbered
        gray = _CENTERED if keras and channels == 3 else _IMAGENET if torchvision else _UNIT
        _fill(network, tensors, name)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    network.to(memory_format=channels_last(dims))  # type: ignore[call-overload]
    told = f"{name}, {dims}-D, stride {network.conv1.stride[0]} first, {channels} channel{'s' * (channels > 1)}, {gray.name}"
    return Encoder(network, gray, dims, channels, told, hashlib.sha256(content).hexdigest())


def _mean_and_deviation(maps: Tensor) -> Tensor:
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    variance, mean = torch.var_mean(maps, dim=tuple(range(2, maps.ndim)), correction=0)
    return torch.cat([mean, (variance + 1e-6).sqrt()], 1)  # the slope of a root has no end at 0


def _read(content: bytes, safe: bool) -> Any:
    """What a safetensors file holds, or else what torch.save wrote, as long as it is tensors and plain containers."""
    try:
        if safe:
            return safetensors.torch.load(content)
        with warnings.catch_warnings():  # torch warns of TorchScript before it refuses it
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file ({' '.join(str(error).split())[:120]})") from None
    except Exception:  # the unpickler raises many kinds; its messages advise to trust the file
        raise ValueError(
            "a pickled model, TorchScript or damaged; only tensors are read, since the rest could run code. Where the model loads, "
            "write torch.save(model.state_dict(), 'weights.pth') and give that file"
        ) from None


def _only_resnet(loaded: Any) -> tuple[dict[str, Tensor], bool]:
    """The tensors of the one ResNet in a state dict, or in a dict that holds one, by torchvision's names; and whether they were numbered."""
    found: dict[str, tuple[dict[str, Tensor], bool]] = {}
    for place, part in ({"": loaded, **loaded} if isinstance(loaded, Mapping) else {}).items():
        for first, numbers in (("layer1.0.conv1.weight", {}), ("4.0.conv1.weight", _NUMBERED)):
            for key in part if isinstance(part, Mapping) else ():
                if isinstance(key, str) and f".{key}".endswith(f".{first}"):
                    found[f"{place} {key}".strip()] = _below(key.removesuffix(first), part, numbers), bool(numbers)
    if not found:
        raise ValueError(
            "no ResNet in it, for no tensor is called layer1.0.conv1.weight, whatever stands before; "
            "give the state dict of a ResNet as torchvision or MONAI name its layers"
        )
    if len(found) > 1:
        raise ValueError(f"{len(found)} ResNets in it, starting at {list(found)}; write the one to use to a file of its own")
    return next(iter(found.values()))


def _below(prefix: str, part: Mapping[Any, Any], numbers: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a ResNet's stem and stages that have this prefix, without it, and named instead of numbered."""
    tensors = {}
    for key, tensor in part.items():
        if isinstance(key, str) and isinstance(tensor, Tensor) and key.startswith(prefix):
            head, _, rest = key.removeprefix(prefix).partition(".")
            head = numbers.get(head, "") if numbers else head
            if re.fullmatch(r"conv1|bn1|layer\d+", head):
                tensors[f"{head}.{rest}"] = tensor
    return tensors


def _network(tensors: Mapping[str, Tensor], dims: int) -> tuple[ResNet, str]:
    """The network that these tensors are of, with weights of its own as yet, and its name, such as resnet18."""
    from monai.networks.nets import ResNet  # heavy, and few runs have an encoder

    firsts = {name: _shape(tensors, name) for name in ("conv1.weight", *(f"layer{n}.0.conv1.weight" for n in range(1, 5)))}
    for name, shape in firsts.items():
        if len(shape) != dims + 2:
            raise ValueError(
                f"{name} is {_sides(shape)}, expected {dims + 2} sides for {dims}-D patches; give the weights of a {dims}-D ResNet"
            )
    stem, *stages = firsts.values()
    if stem[1] not in (1, 3):
        raise ValueError(f"conv1.weight is {_sides(stem)}: it reads {stem[1]} channels, expected 1 or 3; CT patches have one")
    if (widest := max(shape[0] for shape in stages)) > WIDEST:
        raise ValueError(f"a stage of it has {widest} channels, expected up to {WIDEST}; give an ordinary ResNet")
    blocks = [sum(re.fullmatch(rf"layer{n}\.\d+\.conv1\.weight", name) is not None for name in tensors) for n in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in tensors
    biased = "layer2.0.downsample.0.bias" in tensors
    keras = bottleneck and "conv1.bias" in tensors
    small = max(stem[2:]) <= 3
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        network = ResNet(
            block="bottleneck" if bottleneck else "basic",
            layers=blocks,
            block_inplanes=[shape[0] for shape in stages],
            spatial_dims=dims,
            n_input_channels=stem[1],
            conv1_t_size=stem[2:],  # type: ignore[arg-type]
            conv1_t_stride=1 if small or (biased and not keras) else 2,
            no_max_pool=small,
            shortcut_type="B" if any(".downsample." in name for name in tensors) else "A",
            feed_forward=False,
            bias_downsample=biased,
        )
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        block: Any = stage[0]
        if isinstance(block.downsample, functools.partial):
            block.downsample = _PaddedShortcut(block.downsample.keywords["planes"], block.stride)
        if keras:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    if keras:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.bias = nn.Parameter(torch.zeros(module.out_channels))
    return network, f"resnet{(3 if bottleneck else 2) * sum(blocks) + 2}"


class _PaddedShortcut(nn.Module):
    """Every stride-th pixel, and channels of 0 up to `planes`."""

    def __init__(self, planes: int, stride: int):
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[(slice(None), slice(None), *[slice(None, None, self.stride)] * (x.ndim - 2))]
        return F.pad(x, [0, 0] * (x.ndim - 2) + [0, self.planes - x.shape[1]])


def _fill(network: ResNet, tensors: Mapping[str, Tensor], name: str) -> None:
    """Gives the network these weights, each batch normalisation multiplied into the convolution before it."""
    wanted = {key: tuple(own.shape) for key, own in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    for key in tensors:
        if key not in wanted and not key.endswith("num_batches_tracked"):
            raise ValueError(f"{key!r} ({_sides(_shape(tensors, key))}) has no place in a {name}; give an ordinary ResNet")
    values: dict[str, Tensor] = {}
    for key, shape in wanted.items():
        if (got := _shape(tensors, key)) != shape:
            raise ValueError(f"{key} is {_sides(got)}, expected {_sides(shape)} in a {name}")
        if not tensors[key].is_floating_point() or tensors[key].layout != torch.strided:
            raise ValueError(
                f"{key} is {tensors[key].dtype} ({tensors[key].layout}), expected floating point; give weights that are not quantised"
            )
        values[key] = tensors[key].float()
        if not bool(torch.isfinite(values[key]).all()) or (key.endswith("running_var") and bool((values[key] < 0).any())):
            raise ValueError(f"{key} holds numbers that no trained network has (infinite, or a variance below 0); the file is damaged")
    for norm, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            before = re.sub(r"bn(\d)$", r"conv\1", norm) if "bn" in norm else re.sub(r"1$", "0", norm)
            gain, offset, mean, variance = (values[f"{norm}.{part}"].double() for part in _STATISTICS)
            weight, bias = values[f"{before}.weight"].double(), values.get(f"{before}.bias")
            fused = fuse_conv_bn_weights(weight, bias, mean, variance, module.eps, gain, offset)
            convolution = network.get_submodule(before)
            convolution.weight, convolution.bias = (nn.Parameter(tensor.detach().float()) for tensor in fused)
            network.set_submodule(norm, nn.Identity())


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{name} is missing; give the whole state dict of a ResNet with batch normalisation")
    if not tensors[name].numel():
        raise ValueError(f"{name} is empty; give the whole state dict of a ResNet")
    return tuple(tensors[name].shape)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
