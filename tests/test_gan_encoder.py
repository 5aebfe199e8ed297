"""The encoder has the features of the network its file came from, opens nothing that could run code, and its loss pulls distributions together."""

import hashlib
import pickle
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from monai.networks.nets import ResNet
from torch.nn import functional as F

from gan.encoder import feature_matching_loss, load_encoder

WIDTHS = [4, 6, 8, 10]
IMAGENET_MEAN, IMAGENET_DEVIATION = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def resnet(dims=2, channels=1, block="basic", layers=(1, 2, 1, 1), stride=2, seed=0, **options):
    """A small MONAI network as after training: its batch normalisations have statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ResNet(
            block, list(layers), WIDTHS, spatial_dims=dims, n_input_channels=channels, conv1_t_stride=stride, num_classes=3,
            **{"bias_downsample": False, **options},
        )  # fmt: skip
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def patches(shape=(32, 32), count=6, seed=1, dtype=torch.float32):
    return torch.rand(count, 1, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def maps_of(network, x):
    """What a MONAI network makes of an input at its stem and stages, batch normalisation and all."""
    x = network.act(network.bn1(network.conv1(x)))
    found = [x]
    x = x if network.no_max_pool else network.maxpool(x)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
        found.append(x)
    return found


def assert_features_are_of(maps, features):
    assert len(features) <= len(maps)
    for one, found in zip(maps, features, strict=False):
        flat = one.flatten(2)
        deviation = (flat.var(2, correction=0) + 1e-6).sqrt()
        torch.testing.assert_close(found, torch.cat([flat.mean(2), deviation], 1), rtol=1e-4, atol=1e-5)


def save(network_or_tensors, file):
    tensors = network_or_tensors if isinstance(network_or_tensors, dict) else network_or_tensors.state_dict()
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


@pytest.fixture
def encoder(tmp_path):
    return load_encoder(save(resnet(), tmp_path / "weights.pth"), 2)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (64, 64)),
        ({"layers": (2, 1, 1, 3)}, (64, 80)),
        ({"block": "bottleneck"}, (64, 64)),
        ({"shortcut_type": "A"}, (64, 64)),
        ({"bias_downsample": True, "stride": 1}, (32, 32)),
        ({"bias_downsample": True, "stride": 1, "block": "bottleneck"}, (32, 32)),
        ({"conv1_t_size": 3, "stride": 1, "no_max_pool": True}, (16, 16)),
        ({"dims": 3}, (64, 64, 64)),
        ({"dims": 3, "shortcut_type": "A", "channels": 3}, (33, 34, 35)),
        ({"dims": 3, "bias_downsample": True, "stride": 1}, (32, 32, 32)),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_features_are_those_of_the_network_in_the_file(tmp_path, options, shape, suffix):
    network = resnet(**options)
    encoder = load_encoder(save(network, tmp_path / f"weights{suffix}"), len(shape))
    x = patches(shape, 2)
    features = encoder.features(x)
    assert len(features) == 5
    assert_features_are_of(maps_of(network, x.expand(-1, options.get("channels", 1), *shape)), features)


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [("module.", None), ("encoder.", "state_dict"), ("module.backbone.", "model"), ("_orig_mod.", None), ("", "network")],
)
def test_prefixes_wrappers_heads_and_old_files_load_alike(tmp_path, prefix, wrap, encoder):
    tensors = {f"{prefix}{k}": v for k, v in resnet().state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors |= {"head.weight": torch.zeros(2, 2), "decoder.conv1.weight": torch.zeros(1)}
    found = load_encoder(save({"epoch": 3, wrap: tensors} if wrap else tensors, tmp_path / "other.pt"), 2)
    for a, b in zip(found.features(patches()), encoder.features(patches()), strict=True):
        assert torch.equal(a, b)


def test_half_precision_weights_load(tmp_path, encoder):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in resnet().state_dict().items()}
    found = load_encoder(save(halves, tmp_path / "half.safetensors"), 2).features(patches())
    for a, b in zip(found, encoder.features(patches()), strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_torchvision_sees_gray_three_times_as_imagenet_was_normalised(tmp_path):
    network = resnet(channels=3, block="bottleneck")
    encoder = load_encoder(save(network, tmp_path / "resnet.pth"), 2)
    x = patches((64, 64), 2)
    as_imagenet = ((x + 1) / 2 - IMAGENET_MEAN) / IMAGENET_DEVIATION
    assert_features_are_of(maps_of(network, as_imagenet), encoder.features(x))
    assert "3 channels" in encoder.name
    assert "ImageNet" in encoder.name


def test_radimagenet_numbers_its_layers_and_takes_gray_as_it_is(tmp_path):
    network = resnet(channels=3, block="bottleneck")
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    heads = {k: k.partition(".") for k in network.state_dict()}
    tensors = {f"backbone.{numbers[head]}.{rest}": network.state_dict()[k] for k, (head, _, rest) in heads.items() if head in numbers}
    encoder = load_encoder(save(tensors, tmp_path / "ResNet50.pt"), 2)
    x = patches((64, 64), 2)
    assert_features_are_of(maps_of(network, x.expand(-1, 3, -1, -1)), encoder.features(x))


def test_bottlenecks_from_keras_have_biases_and_stride_first(tmp_path):
    network = resnet(channels=3, block="bottleneck", bias_downsample=True)
    tensors = network.state_dict()
    rng = torch.Generator().manual_seed(5)
    convolutions = [k.removesuffix(".weight") for k, v in tensors.items() if v.ndim == 4]
    tensors |= {f"{name}.bias": torch.randn(len(tensors[f"{name}.weight"]), generator=rng) for name in convolutions}

    def unit(x, convolution, norm, stride=1):
        weight = tensors[f"{convolution}.weight"]
        x = F.conv2d(x, weight, tensors[f"{convolution}.bias"], stride, weight.shape[-1] // 2)
        mean, variance, gain, offset = (tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, variance, gain, offset)

    def block(x, at, stride):
        shortcut = unit(x, f"{at}.downsample.0", f"{at}.downsample.1", stride) if f"{at}.downsample.0.weight" in tensors else x
        x = unit(x, f"{at}.conv1", f"{at}.bn1", stride).relu()
        x = unit(x, f"{at}.conv2", f"{at}.bn2").relu()
        return (unit(x, f"{at}.conv3", f"{at}.bn3") + shortcut).relu()

    x = patches((64, 64), 2)
    maps = [unit((x + 1) / 2 - torch.tensor([0.406, 0.456, 0.485])[:, None, None], "conv1", "bn1", 2).relu()]
    y = F.max_pool2d(maps[0], 3, 2, 1)
    for n, blocks in enumerate((1, 2, 1, 1), 1):
        for b in range(blocks):
            y = block(y, f"layer{n}.{b}", 2 if n > 1 and b == 0 else 1)
        maps.append(y)
    assert_features_are_of(maps, load_encoder(save(tensors, tmp_path / "notop.pth"), 2).features(x))


@pytest.mark.parametrize(("options", "stride"), [({}, 2), ({"bias_downsample": True}, 1), ({"conv1_t_size": 3}, 1), ({"channels": 3}, 2)])
def test_what_the_file_leaves_open_is_told_in_the_name(tmp_path, options, stride):
    for layers, depth in (((1, 1, 1, 1), 10), ((2, 2, 2, 2), 18)):
        file = save(resnet(layers=layers, **options), tmp_path / "weights.pth")
        encoder = load_encoder(file, 2)
        assert encoder.name.startswith(f"resnet{depth}, 2-D, stride {stride} first")
        assert encoder.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    deep = load_encoder(save(resnet(block="bottleneck", layers=(3, 4, 6, 3)), tmp_path / "deep.pth"), 2)
    assert deep.name.startswith("resnet50")


@pytest.mark.parametrize(
    ("shape", "stages"), [((8, 8), 2), ((32, 32), 4), ((48, 96), 5), ((64, 64), 5), ((16, 64, 64), 3), ((16, 16, 16), 3), ((32, 32, 32), 4)]
)
def test_stages_that_would_see_a_single_pixel_are_left_out(tmp_path, shape, stages):
    encoder = load_encoder(save(resnet(len(shape)), tmp_path / "weights.pth"), len(shape))
    features = encoder.features(patches(shape, 3))
    assert [f.shape for f in features] == [(3, 2 * width) for width in [WIDTHS[0], *WIDTHS][:stages]]
    channels = [f.shape[1] // 2 for f in features]
    assert all((f[:, c:].amax(0) > 2e-3).any() for f, c in zip(features, channels, strict=True))


@pytest.mark.parametrize("options", [{}, {"shortcut_type": "A"}, {"block": "bottleneck"}, {"dims": 3, "shortcut_type": "A"}])
def test_the_gradient_in_the_patches_is_the_derivative(tmp_path, options):
    dims = options.get("dims", 2)
    encoder = load_encoder(save(resnet(**options), tmp_path / "weights.pth"), dims).double()
    real, x, direction = (patches([32] * dims, 3, seed, torch.float64) for seed in (1, 2, 3))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(feature_matching_loss(encoder, real, x), x)
    with torch.no_grad():
        ahead, behind = (feature_matching_loss(encoder, real, x + step * direction) for step in (1e-7, -1e-7))
    assert (gradient * direction).sum().item() == pytest.approx((ahead - behind).item() / 2e-7, rel=1e-4)


def test_only_synthetic_patches_get_a_gradient(encoder):
    real, synthetic = patches(seed=1).requires_grad_(), patches(seed=2).requires_grad_()
    feature_matching_loss(encoder, real, synthetic).backward()
    assert real.grad is None
    assert torch.isfinite(synthetic.grad).all()
    assert (synthetic.grad.flatten(1).abs().amax(1) > 0).all()
    assert list(encoder.parameters())
    assert not any(p.requires_grad for p in encoder.parameters())


def test_training_mode_and_other_patches_of_the_batch_change_nothing(encoder):
    x = patches()
    alone = encoder.features(x[:1])
    encoder.train()
    for one, together, again in zip(alone, encoder.features(x), encoder.features(x), strict=True):
        torch.testing.assert_close(one, together[:1], rtol=1e-4, atol=1e-5)
        assert torch.equal(together, again)


def test_loading_repeats_exactly_and_leaves_the_global_generator_alone(tmp_path, encoder):
    before = torch.random.get_rng_state()
    again = load_encoder(tmp_path / "weights.pth", 2)
    assert torch.equal(before, torch.random.get_rng_state())
    losses = {feature_matching_loss(one, patches(seed=1), patches(seed=2)).item() for one in (encoder, again, again)}
    assert len(losses) == 1


def test_the_loss_is_what_its_definition_says(encoder):
    real, synthetic = patches(count=5, seed=1), patches(count=3, seed=2) * 0.5
    stages = []
    for r, s in zip(encoder.features(real), encoder.features(synthetic), strict=True):
        r, s = r.double().numpy(), s.double().numpy()
        units = np.var(r, axis=0) + 0.01 * np.mean(r**2)
        stages.append(np.mean((r.mean(0) - s.mean(0)) ** 2 / units))
    assert feature_matching_loss(encoder, real, synthetic).item() == pytest.approx(np.mean(stages), rel=1e-4)


def test_equal_batches_have_no_loss_in_any_order(encoder):
    x = patches(count=16)
    assert feature_matching_loss(encoder, x, x).item() == 0
    assert feature_matching_loss(encoder, x, x.flip(0)).item() < 1e-9
    assert feature_matching_loss(encoder, x, 0.8 * x).item() > 1e-3


def test_batches_of_one_distribution_are_about_two_over_n_apart_and_others_further(encoder):
    losses = [feature_matching_loss(encoder, patches(count=32, seed=n), patches(count=32, seed=100 + n)).item() for n in range(20)]
    assert 0.1 < np.mean(losses) * 32 / 2 < 1.5  # below 1 by the share that is added to the variance
    other = feature_matching_loss(encoder, patches(count=32), patches(count=32, seed=5) * 0.9).item()
    assert other > 3 * max(losses)


def test_still_patches_and_flat_ones_have_a_finite_loss(encoder):
    flat = torch.full((2, 1, 32, 32), -1.0)
    x = (flat + 0.01).requires_grad_()
    loss = feature_matching_loss(encoder, flat, x)
    loss.backward()
    assert 0 < loss.item() < 1e3
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(feature_matching_loss(encoder, patches(count=1), patches(count=1, seed=3)))


@pytest.mark.parametrize("shape", [(32, 32), (16, 16, 16)])
def test_lowering_the_loss_moves_patches_to_the_real_distribution(tmp_path, shape):
    encoder = load_encoder(save(resnet(len(shape)), tmp_path / "weights.pth"), len(shape))
    real = 0.3 * patches(shape, 16) + 0.5  # bright, and of a third of the contrast
    x = patches(shape, 16, seed=2).requires_grad_()
    optimizer = torch.optim.Adam([x], 0.03)
    losses = []
    for _ in range(40):
        loss = feature_matching_loss(encoder, real, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    assert x.mean().item() > 0.05  # from 0


def refused(file, dims=2):
    with pytest.raises(ValueError, match=r"weights\.") as caught:
        load_encoder(file, dims)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"{file}: ")
    return told.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("layer2.0.conv1.weight", torch.zeros(6, 4, 3, 5), "layer2.0.conv1.weight is 6 x 4 x 3 x 5, expected 6 x 4 x 3 x 3 in a resnet12"),
        ("layer4.0.bn2.bias", None, "layer4.0.bn2.bias is missing"),
        ("layer1.0.bn1.running_mean", torch.zeros(0), "layer1.0.bn1.running_mean is empty"),
        ("conv1.weight", None, "conv1.weight is missing"),
        ("conv1.weight", torch.tensor(1.0), "conv1.weight is one number, expected 4 sides"),
        ("layer4.0.conv1.weight", torch.zeros(3), "layer4.0.conv1.weight is 3, expected 4 sides"),
        ("layer3.0.conv1.weight", None, "layer3.0.conv1.weight is missing"),
        ("layer3.0.conv1.weight", torch.zeros(1).expand(10**6, 1, 1, 1), "a stage of it has 1000000 channels"),
        ("conv1.weight", torch.zeros(4, 4, 7, 7), "it reads 4 channels, expected 1 or 3"),
        ("layer1.0.se.fc1.weight", torch.zeros(2, 4), "'layer1.0.se.fc1.weight' (2 x 4) has no place in a resnet12"),
        ("layer5.0.conv1.weight", torch.zeros(2, 4), "has no place in a resnet12"),
        ("layer1.0.a\nb", torch.zeros(2), r"'layer1.0.a\nb' (2) has no place"),
        ("layer1.7.conv1.weight", torch.zeros(4, 4, 3, 3), "has no place in a resnet14"),
        ("layer1.0.conv2.weight", torch.zeros(4, 4, 3, 3, dtype=torch.int8), "layer1.0.conv2.weight is torch.int8"),
        ("layer1.0.conv2.weight", torch.zeros(4, 4, 3, 3).to_sparse(), "layer1.0.conv2.weight is torch.float32 (torch.sparse_coo)"),
        ("bn1.weight", torch.tensor([1, float("nan"), 1, 1]), "bn1.weight holds numbers"),
        ("bn1.running_var", torch.tensor([1.0, -1, 1, 1]), "bn1.running_var holds numbers"),
        ("ema.layer1.0.conv1.weight", torch.zeros(4, 4, 3, 3), "2 ResNets in it"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, name, tensor, told):
    tensors = resnet().state_dict() | {name: tensor}
    if tensor is None:
        del tensors[name]
    assert told in refused(save(tensors, tmp_path / "weights.pth"))


def test_networks_of_other_dimensions_or_other_kinds_are_refused(tmp_path):
    file = save(resnet(dims=3), tmp_path / "weights.pth")
    assert refused(file, 2) == "conv1.weight is 4 x 1 x 7 x 7 x 7, expected 4 sides for 2-D patches; give the weights of a 2-D ResNet"
    save({"features.0.weight": torch.zeros(3)}, file)
    assert "no ResNet in it" in refused(file)
    save({"state_dict": resnet().state_dict(), "state_dict_ema": resnet().state_dict()}, file)
    assert "2 ResNets in it, starting at ['state_dict layer1.0.conv1.weight', 'state_dict_ema" in refused(file)
    torch.save(torch.zeros(3), file)
    assert "no ResNet in it" in refused(file)


def test_a_missing_file_says_what_to_give(tmp_path):
    for nothing in (tmp_path / "weights.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="give the weights of a ResNet"):
            load_encoder(nothing, 2)


class Exploit:
    """Unpickling this runs code, as a hostile weights file would."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the weights file was run')",))


def test_pickles_and_programs_are_refused_and_never_run(tmp_path):
    file = tmp_path / "weights.pth"
    for hostile in (Exploit(), {"state_dict": resnet().state_dict(), "note": Exploit()}, resnet()):
        torch.save(hostile, file)
        assert "torch.save(model.state_dict(), 'weights.pth')" in refused(file)
    file.write_bytes(pickle.dumps(Exploit()))
    assert "only tensors are read" in refused(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to retire TorchScript
        torch.jit.save(torch.jit.trace(torch.nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8)), file)
    assert "TorchScript" in refused(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, suffix):
    file = save(resnet(), tmp_path / f"weights{suffix}")
    whole = file.read_bytes()
    for damaged in (b"", b"not weights", whole[: len(whole) // 2], whole[:40]):
        file.write_bytes(damaged)
        assert refused(file)
