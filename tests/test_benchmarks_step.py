"""The step benchmark compares what is equal, counts what is spent, and refuses to time what differs. It times nothing here."""

import json

import pytest
import torch
from conftest import benchmark
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@pytest.fixture(scope="module")
def step():
    yield from benchmark("step")


class MultiplyAdds(TorchDispatchMode):
    """Counts those of matrix products and convolutions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.count += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        return out


@pytest.mark.parametrize("text", ["32x32:4:8", "16x16x16:2:8"])
def test_lesiongan_spends_what_the_mathematics_needs_and_the_textbook_more(step, text):
    size, device = step.Size.parse(text), torch.device("cpu")
    spent = {}
    for name, make in step.FORMS.items():
        form, draws = make(size, device), step.Draws(size, device)
        with MultiplyAdds() as counted:
            form.cycle(draws)
        spent[name] = counted.count / (step.N_CRITIC * size.batch)
    needed = step.multiply_adds(size, size.batch)
    assert spent[step.SAME_MATHEMATICS] == needed
    assert spent[step.QUARTER] == step.multiply_adds(size, size.quarter)
    assert all(spent[textbook] > 1.1 * needed for textbook in step.TEXTBOOKS)


def test_tables_and_json(step, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "QUICK_BUDGET", 0.0)
    file = tmp_path / "step.json"
    step.main(["--quick", "--sizes", "16x16:4:4", "16x16x16:2:4", "--json", str(file)])
    found = json.loads(file.read_text())
    assert set(found["ratios"]) == {"same_mathematics", "sub_batch_penalty", "three_d", "three_d_sub_batch_penalty"}
    for size in ("16x16:4:4", "16x16x16:2:4"):
        seconds = found["conditions"]["float32"][size]["seconds"]
        assert {name: len(rounds) for name, rounds in seconds.items()} == dict.fromkeys(step.FORMS, 3)
    assert "16 x 16 x 16, 2 channels, batch 4: 3 rounds" in capsys.readouterr().out


def test_different_gradients_are_not_timed(step, tmp_path, monkeypatch):
    right = step.our_generator
    monkeypatch.setattr(step, "matrix_peak", lambda sizes, device, clock: (1.0, "nothing"))
    monkeypatch.setattr(step, "our_generator", lambda critic, synthetic: right(critic, synthetic * (1 + 1e-6)))
    with pytest.raises(ValueError, match="gradients differ"):
        step.main(["--quick", "--sizes", "16x16:4:4", "--json", str(tmp_path / "step.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["64x64:32", "64:64:32", "64x64:0:32", "24x24:8:8x", "16x64x64:8:8"])
def test_sizes_that_are_none_are_refused(step, text):
    with pytest.raises(ValueError, match="--sizes"):
        step.Size.parse(text)
