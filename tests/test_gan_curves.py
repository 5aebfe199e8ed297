"""Learning curves: what is drawn of which metrics, and advice that names what is wrong and stays silent when nothing is."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan.advice import advice
from gan.curves import _shade_gap, write_curves
from gan.history import read_history


def healthy(t: float, rng: np.random.Generator) -> dict[str, float]:
    """The metrics of a good run at the share t of it, as runs on real nodules look: the estimate rises first, then sinks to a rest."""
    wasserstein = 15 * min(t / 0.03, 1) * math.exp(-8 * t) + 0.8
    noise = rng.standard_normal(6)
    return {
        "critic_loss": -wasserstein + 0.1 * noise[0],
        "generator_loss": -6 + 3 * noise[1],
        "wasserstein": wasserstein + 0.3 * noise[2],
        "wasserstein_held_out": wasserstein - 0.3 + 0.3 * noise[3],
        "penalty": 0.004 * math.exp(0.4 * noise[4]),
        "slope_norm": 1 + 0.03 * noise[4],
        "critic_gradient_norm": 9 * math.exp(0.3 * noise[0]),
        "generator_gradient_norm": 11 * math.exp(0.3 * noise[5]),
        "variety": min(0.2 + 20 * t, 1) + 0.03 * noise[1],
        "images_per_second": 500.0,
    }


def distances(t: float) -> dict[str, float]:
    return {
        "validation/frechet": 5 + 60 * math.exp(-6 * t), "validation/floor/frechet": 4.5,
        "validation/kernel": 0.2 + 9 * math.exp(-9 * t), "validation/floor/kernel": 0.05,
    }  # fmt: skip


def history(steps: int = 5000, change=lambda t: {}, change_distances=lambda t, found: found, every: int = 50) -> list[dict[str, float]]:
    """A run whose metrics are changed by change(t), and every tenth line's distances by change_distances(t, distances)."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(every, steps + 1, every):
        t = step / steps
        line = {"step": step, **healthy(t, rng), **change(t)}
        if step % (5 * every) == 0:
            line |= change_distances(t, distances(t))
        lines.append(line)
    return lines


def overfitted_distances(t: float, found: dict[str, float]) -> dict[str, float]:
    return {name: value * (1 if "floor" in name else 1 + 2 * max(t - 0.4, 0)) for name, value in found.items()}


def written(lines, folder: Path) -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def drawn(lines, folder: Path, monkeypatch) -> dict[str, list[str]]:
    """Title of each panel that write_curves draws -> what its legend says."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *rest, **named: (figures.append(figure), save(figure, *rest, **named))[1])
    write_curves(written(lines, folder), folder / "curves.png")
    return {axis.get_title(): [text.get_text() for text in axis.get_legend().get_texts()] for axis in figures[0].axes if axis.axison}


def test_all_metrics_are_drawn_at_a_readable_size_with_the_best_step_named(tmp_path, monkeypatch):
    lines = history(steps=300, every=1)
    lines[-1] |= {"validation/frechet/cystic": 7.0, "augment_probability": 0.2, "epsilon": 2.0, "n_critic": 15}
    lines[-2] |= {"augment_probability": 0.1, "epsilon": 1.0, "n_critic": 10}
    panels = drawn(lines, tmp_path, monkeypatch)
    assert panels == {
        "Wasserstein estimate": ["training patients", "held-out patients", "gap"],
        "Distance to held-out patients": ["frechet, best 5.15 at step 300", "kernel, best 0.201 at step 300"],
        "Distance to held-out patients, by class: frechet": ["cystic, best 7 at step 300"],
        "Losses": ["critic", "generator"],
        "Slope of the critic": ["slope", "wanted"],
        "Gradient penalty": ["penalty, before its weight"],
        "Gradients of the parameters": ["critic", "generator"],
        "Variety of the samples": ["samples", "as real patches"],
        "Privacy spent": ["epsilon so far"],
        "Critic steps for an update": ["critic steps"],
        "Augmentation": ["of changing a patch"],
        "Speed": ["speed"],
    }
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1200, 6 * 280)


def test_same_metrics_same_bytes_and_nothing_else_changes(tmp_path):
    import matplotlib

    style = dict(matplotlib.rcParams)
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for picture in pictures:
        write_curves(written(history(steps=1000), tmp_path), picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert dict(matplotlib.rcParams) == style
    with Image.open(pictures[0]) as picture:
        assert set(picture.info) == {"dpi"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png", "metrics.jsonl"]


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 50, "wasserstein": 1.0}],
        [{"step": 50, "wasserstein_held_out": 1.0, "validation/kernel": -0.01, "validation/floor/kernel": -0.02}],
        [{"step": 1, "penalty": 0.0, "slope_norm": math.nan}, {"step": 2, "critic_loss": math.inf, "slope_norm": 1.0}],
        [{"step": n, "wasserstein": (-10.0) ** n, "slope_norm": 10.0**n, "critic_gradient_norm": 0.0} for n in range(9)],
    ],
    ids=["one line", "below zero", "not finite", "explosion"],
)
def test_odd_metrics_are_drawn(tmp_path, lines):
    write_curves(written(lines, tmp_path), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] == 1200


def test_damaged_lines_are_passed_over(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        b'{"step": 100, "wasserstein": 2.0, "note": "text", "flag": true}\n\n[1]\n7\n{"wasserstein": 3}\n{"step": "x"}\n{"step": NaN}\n\xff\xfe\n'
        + b"[" * 5000
        + b"\n"
        b'{"step": 50, "wasserstein": 1}\n{"step": 100, "wasserstein": 4.0}\n{"step": 150, "wasser'
    )
    assert read_history(file) == [{"step": 50, "wasserstein": 1}, {"step": 100, "wasserstein": 4.0}]


def test_before_anything_is_logged_there_is_no_picture(tmp_path):
    write_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    write_curves(written([{"step": 3}], tmp_path), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    assert advice(read_history(tmp_path / "missing.jsonl")) == []


@pytest.mark.parametrize("steps", [500, 5000, 100_000])
def test_a_healthy_run_gets_no_advice_at_any_step(steps):
    lines = history(steps, every=max(50, steps // 100))
    assert [advice(lines[:n]) for n in range(len(lines) + 1) if advice(lines[:n])] == []


BROKEN = {
    "diverges: the critic's slope is 40": history(change=lambda t: {"slope_norm": 1 + 39 * (t > 0.3)}),
    "diverges: the critic's loss": history(change=lambda t: {"critic_loss": 10 * 1000**t, "slope_norm": math.nan}),
    "the samples get worse": history(
        change=lambda t: {"wasserstein_held_out": 0.8 - 4 * t, "wasserstein": 0.8 + 4 * t}, change_distances=overfitted_distances
    ),
    "more real than held-out patches": history(change=lambda t: {"wasserstein_held_out": -6, "wasserstein": 7}),
    "hardly more real than samples": history(change=lambda t: {"wasserstein_held_out": 0.8 - t, "wasserstein": 0.8 + 4 * t}),
    "Mode collapse": history(change=lambda t: {"variety": 0.9 - 0.8 * (t > 0.5)}),
    "Nothing is learned": history(change=lambda t: {"slope_norm": 0.05, "wasserstein": 0.1}),
    "no longer learns": history(change=lambda t: {"generator_gradient_norm": 10 if t < 0.6 else 1e-6}),
    "the best checkpoint is that of step 1500": history(
        change_distances=lambda t, found: {name: 10.0 + (name != "validation/floor") * 10 * abs(t - 0.3) for name in found}
    ),
}


@pytest.mark.parametrize("words", BROKEN)
def test_what_is_wrong_is_named(words):
    (told,) = advice(BROKEN[words])
    assert words in told


def test_one_measure_alone_or_noise_is_no_reason_to_stop():
    rng = np.random.default_rng(0)
    one = history(change_distances=lambda t, found: found | {"validation/frechet": 5 + 5 * abs(t - 0.3)})
    noisy = history(
        change_distances=lambda t, found: {name: value * (1 + 0.1 * rng.standard_normal()) for name, value in distances(1).items()}
    )
    assert advice(one) == advice(noisy) == []


@pytest.mark.parametrize(("name", "odd"), [("slope_norm", 40.0), ("slope_norm", 0.05), ("variety", 0.1), ("generator_gradient_norm", 1e-6)])
def test_a_sign_that_does_not_last_is_no_alarm(name, odd):
    usual = {"slope_norm": 1.0, "variety": 0.9, "generator_gradient_norm": 10.0}
    assert advice(history(change=lambda t: usual | ({name: odd} if round(100 * t) == 90 else {}))) == []


def test_the_shaded_gap_is_where_training_patients_score_higher():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    _shade_gap(axis, [{"step": n, "wasserstein": 2.0 if n < 5 else 0.0, "wasserstein_held_out": 1.0} for n in range(10)])
    steps = np.concatenate([path.vertices[:, 0] for path in axis.collections[0].get_paths()])
    assert (steps.min(), steps.max()) == (0, 4)


def test_a_gap_alone_is_no_alarm():
    assert advice(history(change=lambda t: {"wasserstein_held_out": 0.8 + t, "wasserstein": 0.8 + 4 * t})) == []


def test_what_follows_from_divergence_is_not_told_too():
    (told,) = advice(history(change=lambda t: {"slope_norm": 50, "variety": 0, "wasserstein_held_out": -100}))
    assert "diverges" in told
