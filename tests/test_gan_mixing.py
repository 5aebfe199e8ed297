"""Real and synthetic patches in one dataset: the ratio, what each item is, and that no batch, order or process changes it."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from data.files import new_folder
from data.patches import Patch, PatchFolder, PatchSpec, PatchWriter, WindowedPatches
from gan.conditions import Conditions
from gan.mixing import MixedPatches
from gan.networks import Generator
from gan.sampling import Model, sample

PLAIN, CLASSES, BOTH = Conditions(), Conditions(("ggo", "solid")), Conditions(("ggo", "solid"), diameter=True)
LABELS = ["ggo"] * 9 + ["background"] * 20 + ["solid"] * 6


def model_of(conditions=PLAIN, shape=(16, 16), classes=("ggo", "solid"), **trained_on) -> Model:
    """Untrained, its weights large enough that every latent gives another patch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(shape, 4, 8, conditions.size).eval().requires_grad_(False)
    for weight in generator.parameters():
        weight.mul_(8)
    return Model(generator, conditions, 1, "0" * 64, {"shape": list(shape), "classes": list(classes), **trained_on})


def real_of(count, shape=(16, 16)) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, 1, *shape)).astype(np.float32)


def mixed(conditions=CLASSES, shape=(16, 16), labels=LABELS, **settings) -> MixedPatches:
    return MixedPatches(real_of(len(labels), shape), labels, model_of(conditions, shape), **settings)


def collected(dataset, **settings) -> dict[bytes, tuple]:
    """Every item that a loader gives, by its pixels."""
    found = {}
    for patches, labels, synthetic in DataLoader(dataset, **settings):
        for patch, label, drawn in zip(patches, labels, synthetic.tolist(), strict=True):
            found[patch.numpy().tobytes()] = (label if isinstance(label, str) else int(label), drawn)
    return found


@given(st.floats(0, 0.95), st.lists(st.integers(1, 60), min_size=3, max_size=3))
@settings(deadline=None, max_examples=25)
def test_the_share_is_that_of_each_class_and_real_patches_all_stay(share, counts):
    labels = np.repeat(["ggo", "solid", "background"], counts)
    dataset = MixedPatches(real_of(len(labels)), labels, model_of(CLASSES), share, cache_bytes=0)
    assert dataset.labels[: len(labels)] == labels.tolist()
    assert dataset.synthetic == [False] * len(labels) + [True] * (len(dataset) - len(labels))
    for name, count in zip(("ggo", "solid"), counts, strict=False):
        synthetic = dataset.labels.count(name) - count
        assert abs(synthetic - share * (synthetic + count)) <= 0.5 + 1e-9  # as near as whole patches come
    assert dataset.labels.count("background") == counts[2]


@pytest.mark.parametrize("shape", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("conditions", [PLAIN, CLASSES, BOTH])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_each_item_is_what_it_says(shape, conditions, cache_bytes):
    labels = LABELS if conditions.size else [{"ggo": 1, "solid": 1, "background": 0}[name] for name in LABELS]
    wanted = None if conditions.size else {1: "lesion"}
    dataset = mixed(conditions, shape, labels, wanted=wanted, share=0.5, first_seed=70, cache_bytes=cache_bytes)
    patches, found, synthetic = zip(*dataset, strict=True)
    x, real = torch.stack(patches).numpy(), real_of(len(labels), shape)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[: len(real)], real)
    assert (len(dataset), sum(synthetic)) == (50, 15)
    asked, seeds, condition = ["ggo"] * 9 + ["solid"] * 6, range(70, 85), None
    if conditions.size:
        diameters_mm = [5 + 15 * np.random.default_rng([seed, 2]).random() for seed in seeds]
        condition = conditions.encode(asked, diameters_mm)
        assert list(found) == labels + asked
    else:
        assert list(found) == labels + [1] * 15
    np.testing.assert_array_equal(x[len(real) :], np.concatenate(list(sample(model_of(conditions, shape), seeds, condition))))


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_no_batch_order_or_number_of_workers_changes_an_item(cache_bytes):
    dataset = mixed(BOTH, share=0.7, cache_bytes=cache_bytes)
    dataset.set_epoch(3)
    expected = {patch.numpy().tobytes(): (label, synthetic) for patch, label, synthetic in dataset}
    assert len(expected) == len(dataset) == 70
    order = torch.Generator().manual_seed(4)
    assert collected(dataset, batch_size=1) == expected
    assert collected(dataset, batch_size=13, shuffle=True, generator=order) == expected
    assert collected(dataset, batch_size=9, shuffle=True, generator=order, num_workers=2) == expected
    assert collected(pickle.loads(pickle.dumps(dataset)), batch_size=64) == expected  # as workers get it that are not forked
    assert collected(Subset(dataset, [57, 0, 57, 40]), batch_size=4).items() <= expected.items()


def test_workers_that_outlive_an_epoch_see_the_next():
    for cache_bytes in (0, 2**20):
        dataset = mixed(share=0.5, cache_bytes=cache_bytes)
        loader = DataLoader(dataset, batch_size=10, num_workers=1, persistent_workers=True)
        for epoch in (0, 1, 0, 7):
            dataset.set_epoch(epoch)
            found = torch.cat([patches for patches, _, _ in loader])
            assert torch.equal(found, torch.stack([patch for patch, _, _ in dataset]))
            assert torch.equal(found[35:], next_samples(epoch))


def next_samples(epoch) -> torch.Tensor:
    seeds = range(15 * epoch, 15 * epoch + 15)
    return torch.from_numpy(
        np.concatenate(list(sample(model_of(CLASSES), seeds, CLASSES.encode(["ggo"] * 9 + ["solid"] * 6, [math.nan] * 15))))
    )


def test_one_label_may_stand_for_several_classes_in_turn():
    labels = np.array([0] * 10 + [1] * 5)
    dataset = MixedPatches(real_of(15), labels, model_of(CLASSES), 0.5, wanted={1: ("solid", "ggo")})
    assert dataset.labels[15:] == [1] * 5
    condition = CLASSES.encode(["solid", "ggo", "solid", "ggo", "solid"], [math.nan] * 5)
    expected = next(sample(model_of(CLASSES), range(5), condition))
    np.testing.assert_array_equal(torch.stack([dataset[n][0] for n in range(15, 20)]), expected)


def test_diameters_are_those_asked_for_or_trained_on():
    model = model_of(BOTH, diameter_deciles_mm=[4.0, 4.0])
    labels = ["ggo"] * 4
    for settings_, mm in [({}, 4.0), ({"diameters_mm": (24.0, 24.0)}, 24.0)]:
        dataset = MixedPatches(real_of(4), labels, model, 0.5, **settings_)
        expected = next(sample(model, range(4), BOTH.encode(labels, [mm] * 4)))
        np.testing.assert_array_equal(torch.stack([patch for patch, _, _ in dataset])[4:], expected)


def test_a_share_of_0_is_the_real_patches_alone():
    dataset = mixed(share=0)
    assert len(dataset) == len(LABELS)
    assert not any(dataset.synthetic)
    assert len(collected(dataset, batch_size=8)) == len(LABELS)


def test_a_detector_trains_on_patches_of_a_folder(tmp_path):
    """Bright lesions on dark ground and none: a linear detector learns them from half synthetic batches, and tells held-out real ones."""
    rng, there = np.random.default_rng(0), np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2)) < 4

    def write(writer, split, count):
        for n in range(count):
            hu = rng.normal(-850, 60, (16, 16)) + there * 700 * (n % 2)
            writer.add(Patch(hu.astype(np.int16), f"p{split}{n}", f"s{n}", ["background", "ggo"][n % 2], split=split))

    with new_folder(tmp_path / "patches") as path:
        writer = PatchWriter(path, PatchSpec((16, 16), (1.0, 1.0), (-1000, 400), ("ggo", "background"), background="background"))
        write(writer, "train", 48)
        write(writer, "test", 40)
        writer.finish()
    folder = PatchFolder.open(tmp_path / "patches")
    training, test = (folder.select(splits=[split]) for split in ("train", "test"))
    labels = [int(name == "ggo") for name in folder.rows.names("label", training)]
    model = model_of(classes=["ggo"])
    model.generator.layers[-1].weight.zero_()  # a generator that draws a gray like that of a lesion, everywhere
    model.generator.bias.fill_(0.3)
    dataset = MixedPatches(WindowedPatches(folder, training), labels, model, 0.5, wanted={1: "ggo"})
    assert (len(dataset), sum(dataset.labels), sum(dataset.synthetic)) == (72, 48, 24)
    weight, losses = torch.zeros(257, requires_grad=True), []
    loader = DataLoader(dataset, batch_size=24, shuffle=True, generator=torch.Generator().manual_seed(0))

    def scores(x, weight):
        return x.flatten(1) @ weight[:256] + weight[256]

    for _ in range(10):
        for x, label, _ in loader:
            loss = F.binary_cross_entropy_with_logits(scores(x, weight), label.float())
            (slope,) = torch.autograd.grad(loss, weight)
            weight.data -= 0.05 * slope
            losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.5 * losses[0]
    with torch.no_grad():
        found = scores(torch.from_numpy(WindowedPatches(folder, test)[np.arange(40)]), weight) > 0
    truth = [name == "ggo" for name in folder.rows.names("label", test)]
    assert np.mean(found.numpy() == truth) > 0.95


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"share": 1.0}, "share from 0 to below 1"),
        ({"share": -0.1}, "share from 0 to below 1"),
        ({"share": math.nan}, "share from 0 to below 1"),
        ({"first_seed": -1}, "first seed from 0"),
        ({"labels": LABELS[:-1]}, "34 labels for 35 real patches"),
        ({"real": real_of(35, (16, 32))}, r"real patches are \(1, 16, 32\), the model draws \(1, 16, 16\)"),
        ({"real": real_of(35)[:, 0]}, "real patches are"),
        ({"real": 400 * real_of(35)}, r"want float32 in \[-1, 1\]"),
        ({"real": real_of(35).astype(float)}, "float64"),
        ({"wanted": {"ggo": "cyst"}}, "class 'cyst' is not one that the model draws: ggo, solid"),
        ({"wanted": {"cyst": "ggo"}}, "'cyst' is none of the labels"),
        ({"wanted": {"ggo": ()}}, "no class to draw"),
        ({"labels": [0] * 35}, "none of the labels is a class"),
        ({"diameters_mm": (5.0, 9.0)}, "cannot be asked for a diameter"),
        ({"model": model_of(BOTH), "diameters_mm": (9.0, 5.0)}, "the least and the largest"),
        ({"model": model_of(PLAIN)}, "cannot draw ggo, solid apart"),
        ({"model": model_of(PLAIN), "labels": ["ggo"] * 35}, "cannot draw ggo, solid apart"),
        ({"model": model_of(PLAIN), "wanted": {"ggo": "ggo", "solid": "solid"}}, "cannot draw ggo, solid apart"),
        ({"model": model_of(PLAIN, classes=["cyst"])}, "none of the labels is a class"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings_, words):
    with pytest.raises(ValueError, match=words) as error:
        MixedPatches(**{"real": real_of(35), "labels": LABELS, "model": model_of(CLASSES), **settings_})
    assert "\n" not in str(error.value)


def test_places_and_epochs_that_are_not_there():
    dataset = mixed()
    for n in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[n]
    with pytest.raises(ValueError, match="epoch -1"):
        dataset.set_epoch(-1)
    assert dataset.__getitems__([]) == []
