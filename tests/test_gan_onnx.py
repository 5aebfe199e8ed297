"""ONNX export: the file draws what the model draws, in HU, without torch, and says nothing of the machine that wrote it."""

import copy
import getpass
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT

from data.preprocess import from_unit, to_unit
from gan import onnx_export
from gan.conditions import Conditions
from gan.networks import BatchNorm, Generator, place
from gan.onnx_export import check_onnx, export_onnx
from gan.sampling import Model, sample

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

WINDOW = (-1000.0, 400.0)
ABOUT = {"version": "1.2.3", "licence": "ask the hospital"}
CLASSES = Conditions(("nodule", "ground-glass, part-solid"))
BY_DIAMETER = Conditions(("ground-glass", "nodule"), diameter=True)


def model_of(shape=(16, 16), conditions=Conditions(), seed=0) -> Model:  # noqa: B008
    """A generator of random weights and statistics, scaled so that its patches span the window."""
    generator = place(Generator(shape, channels=4, latent=8, conditions=conditions.size), "cpu", len(shape)).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for layer in generator.modules():
        if isinstance(layer, BatchNorm):
            for values, low, high in ((layer.weight, 0.5, 2), (layer.bias, -0.5, 1), (layer.running_mean, -0.1, 0.1)):
                values.uniform_(low, high, generator=random)
            layer.running_var.uniform_(1e-3, 1e-2, generator=random)
        elif hasattr(layer, "weight"):
            layer.weight.normal_(0, 0.05, generator=random)
    generator.layers[-1].weight.mul_(3)
    generator.bias.fill_(-0.2)
    return Model(generator, conditions, 7, f"{seed:064x}", {"spacing_mm": [0.7, 0.7], "unit": "HU"})


def session_of(file):
    return onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("shape", "conditions"),
    [((16, 16), Conditions()), ((24, 16), CLASSES), ((16, 16), BY_DIAMETER), ((4, 16, 16), Conditions()), ((8, 8, 8), BY_DIAMETER)],
    ids=["2-D", "classes", "diameter", "thick slices", "3-D"],
)
def test_the_file_draws_what_the_model_draws_in_any_batch(tmp_path, shape, conditions):
    model, file = model_of(shape, conditions), tmp_path / "generator.onnx"
    export_onnx(model, WINDOW, file, ABOUT)
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session, seeds = session_of(file), range(40)
    assert [given.name for given in session.get_inputs()] == ["z", "condition"][: 2 if conditions.size else 1]
    labels = np.resize(conditions.classes or [""], 40).tolist()
    condition = conditions.encode(labels, np.geomspace(2, 60, 40)) if conditions.size else None
    wanted = from_unit(np.concatenate(list(sample(model, seeds, condition)))[:, 0], WINDOW)
    assert wanted.std() > 50
    z = np.stack([np.random.default_rng(seed).standard_normal(8, dtype=np.float32) for seed in seeds])
    for rows in (slice(0, 1), slice(5, 8), slice(0, 40)):
        hu = session.run(["hu"], {"z": z[rows]} | ({} if condition is None else {"condition": condition[rows]}))[0]
        assert hu.dtype == np.int16
        assert hu.shape == wanted[rows].shape
        difference = np.abs(hu.astype(int) - wanted[rows])
        assert difference.max() <= 1
        assert np.mean(difference == 0) > 0.99
    agreement = check_onnx(model, file, WINDOW, seeds)
    assert (agreement.samples, agreement.largest_hu <= 1, agreement.equal_share > 0.99) == (40, True, True)


@pytest.mark.parametrize("window", [WINDOW, (-1024, 3071), (-160.5, 240.25), (-32768, 32767)])
def test_its_window_is_undone_bit_for_bit(tmp_path, window):
    file, head = tmp_path / "generator.onnx", tmp_path / "head.onnx"
    export_onnx(model_of(), window, file, ABOUT)
    onnx.utils.extract_model(file, head, ["x"], ["hu"])
    whole = np.arange(np.ceil(window[0]), window[1] + 1)
    x = np.concatenate([
        to_unit(whole, window), to_unit(whole + 0.5, window), np.random.default_rng(0).uniform(-1.1, 1.1, 9999), [-1, -0.0, 1, np.inf],
    ]).astype(np.float32)  # fmt: skip
    x = np.resize(x, (-(-len(x) // 256), 16, 16))
    np.testing.assert_array_equal(session_of(head).run(["hu"], {"x": x})[0], from_unit(x, window))


def test_same_model_same_bytes_and_nothing_of_this_machine(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    model, files = model_of(conditions=BY_DIAMETER), [tmp_path / "a.onnx", tmp_path / "elsewhere" / "b.onnx"]
    for file, metadata in zip(files, (ABOUT, dict(reversed(ABOUT.items()))), strict=True):
        export_onnx(copy.deepcopy(model), WINDOW, file, metadata)
    content = files[0].read_bytes()
    assert content == files[1].read_bytes()
    for told in (str(ROOT), str(tmp_path), "/home", "site-packages", ".py", "torch", f"/{getpass.getuser()}"):
        assert told.encode() not in content, told
    about = session_of(files[0]).get_modelmeta().custom_metadata_map
    assert about.items() >= ABOUT.items()
    assert (about["model_sha256"], about["window"], about["spacing_mm"]) == (model.model_hash, "[-1000.0, 400.0]", "[0.7, 0.7]")
    assert about["privacy"].startswith("no guarantee")
    assert "default_rng(seed)" in about["z"]
    export_onnx(model, WINDOW, files[1], {"model_sha256": "forged", **ABOUT})
    assert content == files[1].read_bytes()


@pytest.mark.parametrize("conditions", [Conditions(), CLASSES, BY_DIAMETER], ids=["plain", "classes", "diameter"])
def test_the_example_runs_without_torch(tmp_path, conditions):
    model = model_of(conditions=conditions)
    export_onnx(model, WINDOW, tmp_path / "model.onnx", ABOUT)
    example = re.search(
        r"```python\n(import json, numpy as np, onnxruntime\n.*?)```", (ROOT / "docs" / "sampling.md").read_text(), re.DOTALL
    )[1]
    code = f"import sys; sys.modules.update(torch=None, gan=None, onnx=None)\n{example}\nnp.save('hu.npy', hu)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    condition = conditions.encode(["nodule"] * 4, [8] * 4) if conditions.size else None
    wanted = from_unit(next(sample(model, range(4), condition))[:, 0], WINDOW)
    np.testing.assert_allclose(np.load(tmp_path / "hu.npy"), wanted, rtol=0, atol=1)


def damaged(content: bytes) -> dict[str, bytes]:
    """Files that are not what was exported, by name."""
    half = onnx.load_from_string(content)
    weights = next(array for array in half.graph.initializer if len(array.dims) == 4)
    weights.raw_data = bytes(len(weights.raw_data))
    return {
        "empty": b"", "text": b"not ONNX\n" * 99, "cut short": content[: len(content) // 2], "weights lost": half.SerializeToString(),
        "unknown operator": content.replace(b"Relu", b"Rely"),
    }  # fmt: skip


def test_a_damaged_or_foreign_file_is_told_in_one_line(tmp_path, capfd):
    model, file = model_of(), tmp_path / "generator.onnx"
    export_onnx(model, WINDOW, file, ABOUT)
    for name, content in damaged(file.read_bytes()).items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"export .*again$") as told:
            check_onnx(model, file, WINDOW, range(4))
        assert str(told.value).startswith(str(file)), name
        assert "\n" not in str(told.value), name
    export_onnx(model_of(seed=1), WINDOW, file, ABOUT)
    with pytest.raises(ValueError, match="another model's"):
        check_onnx(model, file, WINDOW, range(4))
    export_onnx(model, (-1000, 405), file, ABOUT)
    with pytest.raises(ValueError, match="HU from what the model draws"):
        check_onnx(model, file, WINDOW, range(4))
    export_onnx(replace(model_of((24, 16)), model_hash=model.model_hash), WINDOW, file, ABOUT)
    with pytest.raises(ValueError, match=r"patches of \(24, 16\) pixels"):
        check_onnx(model, file, WINDOW, range(4))
    with pytest.raises(FileNotFoundError):
        check_onnx(model, tmp_path / "absent.onnx", WINDOW)
    with pytest.raises(FileNotFoundError, match="absent"):
        export_onnx(model, WINDOW, tmp_path / "absent" / "generator.onnx", ABOUT)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("by", [1, 2])
def test_one_pixel_of_any_sample_counts(tmp_path, monkeypatch, by):
    """Off by 1, as from rounding, it is told; off by 2 the file is another model's, whatever the samples after it are like."""
    model, file, exact, drawn = model_of(), tmp_path / "generator.onnx", onnx_export._in_hu, []
    export_onnx(model, WINDOW, file, ABOUT)
    seeds = range(2 * onnx_export.TILE)
    agreed = check_onnx(model, file, WINDOW, seeds)

    def first_pixel_off(x, window):
        hu = exact(x, window)
        hu[0, 0, 0] += by * (not drawn)
        drawn.append(hu)
        return hu

    monkeypatch.setattr(onnx_export, "_in_hu", first_pixel_off)
    if by == 1:
        found = check_onnx(model, file, WINDOW, seeds)
        assert (found.samples, found.largest_hu) == (len(seeds), 1)
        assert found.equal_share == pytest.approx(agreed.equal_share - 1 / (len(seeds) * 256), abs=1e-9)
    else:
        with pytest.raises(ValueError, match="up to 2 HU from what the model draws"):
            check_onnx(model, file, WINDOW, seeds)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    model, file = model_of(), tmp_path / "generator.onnx"
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"package onnx: pip install 'lesiongan\[onnx\]'$"):
        export_onnx(model, WINDOW, file, ABOUT)
    with pytest.raises(ValueError, match=r"package onnxruntime: pip install"):
        check_onnx(model, file, WINDOW)
    assert not file.exists()
