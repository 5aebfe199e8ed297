"""What the metrics of a run warn of, in words."""

from __future__ import annotations

import numpy as np

from gan.history import OVERALL, History, distances, points

LINES, START = 10, 500
"""No advice on fewer lines of metrics; nor, but for divergence, on fewer than twice as many, or before this step."""


def advice(history: History) -> list[str]:
    """What the metrics warn of, in a sentence or two each: divergence, no learning, overfitting, collapse, a best step long past.

    The first two are said alone, as the rest follows from them. A false alarm costs trust, so each rule wants clear signs that last over
    the last quarter of the run. The thresholds rest on 14 runs of 320 to 2,500 steps at 32 x 32 (nodules of LUNA16, phantom lesions),
    of which each rule says what was seen; of the healthy ones nothing is said at any step. What a line starts with, up to its colon,
    names what is wrong and stays the same as the run goes on.
    """
    if len(history) < LINES:
        return []
    if told := _divergence(history):
        return [told]
    if len(history) < 2 * LINES or history[-1]["step"] < START:
        return []
    if told := _no_learning(history):
        return [told]
    return [told for rule in (_overfitting, _collapse, _past_best) if (told := rule(history))]


def _divergence(history: History) -> str | None:
    """The critic's slope: at most 1.9 at any step of a healthy run; without a penalty, or at a learning rate of 0.05, 15 to 200,000."""
    slope = _between(history, "slope_norm")
    first, last = (np.abs(_between(history, "critic_loss", *quarter)) for quarter in ((0.0, 0.25), (0.75, 1.0)))
    if len(slope) and slope.min() > 3:
        sign = f"the critic's slope is {np.median(slope):.3g} where 1 is wanted"
    elif not len(slope) and len(first) and len(last) and np.median(last) > 100 * np.median(first):
        sign = "the critic's loss has grown a hundredfold"
    else:
        return None
    return f"Training diverges: {sign}. Start anew with a lower training.learning_rate, and with a training.penalty_weight of 10 if it is lower."


def _overfitting(history: History) -> str | None:
    """The gap between training and held-out patients, over the highest estimate of the run: at most 0.03 with 648 training patches and 0.11
    with 463, up to 0.5 with 48 and 0.9 with 12.

    With 48 the samples got worse by validation while it grew; with 12 held-out patches came to score far below samples; with 48 cubes
    of 32 voxels a side they scored as samples from step 500.
    """
    gaps = []
    for quarter in ((0.5, 0.75), (0.75, 1.0)):
        train, held_out = (_between(history, name, *quarter) for name in ("wasserstein", "wasserstein_held_out"))
        if not len(train) or not len(held_out):
            return None
        gaps.append(np.median(train) - np.median(held_out))
    estimate, highest = np.median(train), np.max(_between(history, "wasserstein", 0))
    if gaps[1] < max(estimate / 2, highest / 4):
        return None
    if gaps[1] > 1.1 * gaps[0] and _worse(history, 0.25, 0.02):
        sign = "the samples get worse by validation"
    elif np.median(held_out) < -max(estimate, 0) / 2:
        sign = "takes samples for more real than held-out patches"
    elif gaps[1] > 0.75 * estimate:
        sign = "takes held-out patches for hardly more real than samples"
    else:
        return None
    return (
        f"The critic knows the training patients by heart: it scores them {gaps[1]:.3g} above held-out ones, and {sign}. Use the best "
        "checkpoint; next time train on more patients, with --training.augment 0.5, or for fewer steps."
    )


def _collapse(history: History) -> str | None:
    """Variety, of squared distances: in healthy runs 0.01 to 0.04 at the start, above 0.3 from step 160 on at the latest, then 0.6 to 1.2.
    Collapse was seen only without a penalty, 0.0004 to 0.01 over hundreds of steps, together with divergence.
    """
    variety = _between(history, "variety")
    if len(variety) and variety.max() < 0.3:
        return (
            f"Mode collapse: samples differ from one another only {np.median(variety):.2f} as much as real patches do. Start anew with a lower "
            "training.learning_rate or more critic steps (training.n_critic)."
        )
    return None


def _no_learning(history: History) -> str | None:
    """The critic's slope: 0.04 at the start, above 0.6 from step 20 on in runs that learn; at learning rates of 1e-6 and 1e-7 still 0.05.
    The generator's gradient: 2 to 140 in runs that learn, where it vanished 0.01 after 2,500 (a learning rate of 0.05).
    """
    slope, gradient = (_between(history, name) for name in ("slope_norm", "generator_gradient_norm"))
    if len(slope) and slope.max() < 0.3:
        return (
            f"Nothing is learned: the critic is flat, with a slope of {np.median(slope):.2g} where 1 is wanted, and tells real from synthetic no "
            "better than at the start. Start anew with a higher training.learning_rate."
        )
    if len(gradient) and gradient.max() < 1e-3 * np.max(_between(history, "generator_gradient_norm", 0)):
        return (
            f"The generator no longer learns: its gradient has vanished ({np.median(gradient):.1e} of "
            f"{np.max(_between(history, 'generator_gradient_norm', 0)):.1e}). Start anew with a lower training.learning_rate."
        )
    return None


def _past_best(history: History) -> str | None:
    if not _worse(history, 0.5, 0.05):
        return None
    name, measure, _ = distances(history)[OVERALL][0]
    steps, values = points(history, name)
    return (
        f"Past its best: the distance to held-out patients ({measure}) has been worse than its best for more than half of the run. "
        f"Stop here; the best checkpoint is that of step {steps[np.argmin(values)]:.0f}."
    )


def _worse(history: History, since: float, by: float) -> bool:
    """Whether every validation distance was best before the last `since` of the run, and is worse by this share in its last quarter."""
    verdicts = []
    for name, _, floor in distances(history).get(OVERALL, ()):
        steps, values = points(history, name)
        best, late = int(np.argmin(values)), _between(history, name)
        margin = by * max([abs(values[best]), *_between(history, floor, 0)])
        long_past = _share(history, steps)[best] < 1 - since
        verdicts.append(bool(long_past and len(late) >= 3 and np.median(late) > values[best] + margin))
    return bool(verdicts) and all(verdicts)


def _share(history: History, steps: np.ndarray) -> np.ndarray:
    """How far into the run steps are: 0 at its first line, 1 at its last."""
    first, last = history[0]["step"], history[-1]["step"]
    return (steps - first) / max(last - first, 1)


def _between(history: History, name: str, start: float = 0.75, stop: float = 1.0) -> np.ndarray:
    """A metric's values between two shares of the run, by default in its last quarter."""
    steps, values = points(history, name)
    share = _share(history, steps)
    return values[(share >= start) & (share <= stop)]
