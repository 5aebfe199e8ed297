"""The benchmark of distances compares values before it tells a time. It times nothing here."""

import json

import pytest
from conftest import benchmark


@pytest.fixture
def distances(monkeypatch):
    for module in benchmark("distances"):
        monkeypatch.setattr(module, "QUICK_SIZES", (60, 300))
        monkeypatch.setattr(module, "QUICK_STREAMED", 2000)
        yield module


def test_tables_and_json(distances, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distances, "stream", streamed)
    file = tmp_path / "distances.json"
    distances.main(["--quick", "--dimensions", "40", "--json", str(file)])
    found = json.loads(file.read_text())
    ours = {"frechet", "frechet_of_statistics"}
    assert {f"{name}_over_pytorch_fid" for name in ours} <= set(found["ratios"])
    assert set(found["conditions"]["seconds"]) == {"60", "300"}
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["conditions"]["stream"] == {"1000": {"MiB": 1.0, "cpu_seconds": 2.0}, "2000": {"MiB": 1.0, "cpu_seconds": 2.0}}
    assert "300 samples, seconds" in capsys.readouterr().out


def streamed(vectors, dimensions):
    return 1.0, 2.0


def test_the_stream_is_of_as_many_vectors_as_were_asked_for(distances):
    mebibytes, seconds = distances.stream(2000, 8)
    assert seconds > 0


def test_different_values_are_not_timed(distances, tmp_path, monkeypatch, capsys):
    right = distances.frechet_distance
    monkeypatch.setattr(distances, "frechet_distance", lambda x, y: right(x, y) * (1 + 1e-5))
    with pytest.raises(ValueError, match="say nothing"):
        distances.main(["--quick", "--dimensions", "40", "--json", str(tmp_path / "distances.json")])
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out
