"""What an audit of a run's privacy found: the attacks' bounds beside the accountant's epsilon, over the steps of the run.

At each of some moments three attacks score every canary; a bound above what the accountant says refutes the guarantee. The
three bounds of a moment hold together at 95 %; the verdict is that of the last moment.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from evaluate.privacy_audit import ERROR, AttackResult, attack_result, calibrated_nearest

ATTACKS = {
    "gradients": "gradients of each critic step (white box)",
    "critic": "critic's scores of each canary",
    "nearest": "nearest synthetic patches (black box)",
}
OUTSIDE = "An audit is done on training patients and canaries and is itself outside the guarantee."
SIDE = 8
"""Pixels that a side is averaged down to for the black-box attack."""
COLOURS = ("#d55e00", "#0072b2", "#009e73")  # told apart by colour-blind readers too


@dataclass(frozen=True)
class AuditedMoment:
    """After so many critic steps: the accountant's epsilon, infinite without privacy, and each of ATTACKS."""

    critic_steps: int
    accountant: float
    attacks: tuple[AttackResult, ...]


@dataclass(frozen=True)
class PrivacyReport:
    """The moments of an audit, in their order, and with what settings it was made."""

    moments: tuple[AuditedMoment, ...]
    settings: Mapping[str, Any]

    @property
    def broken(self) -> tuple[AttackResult, ...]:
        """The attacks whose bound is above what the accountant says, at the end."""
        last = self.moments[-1]
        return tuple(attack for attack in last.attacks if attack.epsilon > last.accountant)

    @property
    def verdict(self) -> str:
        """One sentence."""
        last = self.moments[-1]
        if self.broken:
            worst = max(self.broken, key=lambda attack: attack.epsilon)
            return (
                f"THE GUARANTEE IS BROKEN: the accountant says epsilon {last.accountant:.3g} after {last.critic_steps:,} critic steps, and an "
                f"attack by {ATTACKS[worst.name]} shows {worst.epsilon:.3g} or more, at 95 %."
            )
        bounds = ", ".join(f"{attack.name} {attack.epsilon:.2f}" for attack in last.attacks)
        if math.isinf(last.accountant):
            return f"The run has no guarantee, and the attacks show an epsilon of {max(a.epsilon for a in last.attacks):.2f} or more ({bounds})."
        return f"Every bound is below what the accountant says, epsilon {last.accountant:.3g} after {last.critic_steps:,} critic steps ({bounds})."


def audited_moment(
    critic_steps: int, accountant: float, scores: Mapping[str, ArrayLike], included: ArrayLike, delta: float, rng: np.random.Generator
) -> AuditedMoment:
    """The bounds of these attacks' scores, (m,) each by a name of ATTACKS; included: bool (m,). Raises ValueError as one_run_bound does."""
    error = ERROR / len(scores)  # Bonferroni: all of them hold at 95 %
    found = (attack_result(name, one, included, delta, rng, error) for name, one in scores.items())
    return AuditedMoment(critic_steps, accountant, tuple(found))


def nearest_scores(patches: Sequence[NDArray], synthetic: NDArray, reference: NDArray) -> NDArray[np.float64]:
    """Scores (m,) of `calibrated_nearest` by low-resolution pixels, each scaled by the reference's mean and spread.

    patches: of each canary, (n_i, *S); synthetic, reference: (N, *S).
    """
    features = [_low_resolution(one) for one in (synthetic, reference)]
    mean, spread = features[1].mean(0), features[1].std(0).clip(min=1e-6)
    scaled = [(one - mean) / spread for one in features]
    return calibrated_nearest([(_low_resolution(one) - mean) / spread for one in patches], *scaled)


def _low_resolution(patches: NDArray) -> NDArray[np.float64]:
    """(N, *S) -> (N, D): the means of blocks, about SIDE of them along each side."""
    found = np.asarray(patches, np.float64)
    for axis in range(1, found.ndim):
        edges = np.linspace(0, found.shape[axis], min(SIDE, found.shape[axis]) + 1).round().astype(int)
        sizes = np.diff(edges).reshape([-1 if n == axis else 1 for n in range(found.ndim)])
        found = np.add.reduceat(found, edges[:-1], axis=axis) / sizes
    return found.reshape(len(found), -1)


def to_json(report: PrivacyReport) -> str:
    """Every number. What is infinite or not measured is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    told = {
        "verdict": report.verdict, "broken": bool(report.broken), "outside_the_guarantee": OUTSIDE, "settings": report.settings,
        "moments": [asdict(moment) for moment in report.moments],
    }  # fmt: skip
    return json.dumps(plain(told), indent=1, allow_nan=False) + "\n"


HEADER = ("attack", "epsilon at least", "a perfect attack would show", "AUROC (95 %)", "found at 1 % false alarms (95 %)")


def rows(moment: AuditedMoment) -> list[tuple[str, ...]]:
    """The table of a moment, under HEADER."""
    return [
        (
            ATTACKS[attack.name], f"{attack.epsilon:.2f}", f"{attack.cap:.2f}",
            f"{attack.auroc:.2f} ({attack.auroc_interval.low:.2f} to {attack.auroc_interval.high:.2f})",
            "not measured: 100 canaries have to be out"
            if attack.tpr_interval is None
            else f"{attack.tpr_at_1_percent_fpr:.1%} ({attack.tpr_interval.low:.1%} to {attack.tpr_interval.high:.1%})",
        )
        for attack in moment.attacks
    ]  # fmt: skip


def to_text(report: PrivacyReport) -> str:
    """The verdict and the last moment's table, for a terminal."""
    cells = [HEADER, *rows(report.moments[-1])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join([report.verdict, "", *lines, "", OUTSIDE])


def to_html(report: PrivacyReport, picture: bytes) -> str:
    """One page that needs nothing else. picture: that of `bounds_picture`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    source = Markup("data:image/png;base64," + base64.b64encode(picture).decode())
    return environment.get_template("privacy.html.jinja").render(
        report=report, last=report.moments[-1], header=HEADER, rows=rows, picture=source, outside=OUTSIDE, attacks=ATTACKS
    )


def bounds_picture(report: PrivacyReport) -> bytes:
    """PNG: over critic steps, each attack's bound under the accountant's epsilon, and its AUROC."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [moment.critic_steps for moment in report.moments]
    accountant = [moment.accountant for moment in report.moments]
    if math.isfinite(accountant[-1]):
        left.plot(steps, accountant, color="black", linestyle="--", marker=".", label="accountant: at most")
    left.axhline(report.moments[-1].attacks[0].cap, color="gray", linestyle=":", label="a perfect attack would show")
    for attacks, colour in zip(zip(*(moment.attacks for moment in report.moments), strict=True), COLOURS, strict=True):
        name = ATTACKS[attacks[0].name]
        left.plot(steps, [attack.epsilon for attack in attacks], color=colour, marker=".", label=f"at least, {name}")
        right.plot(steps, [attack.auroc for attack in attacks], color=colour, marker=".", label=name)
        intervals = [attack.auroc_interval for attack in attacks]
        right.fill_between(steps, [i.low for i in intervals], [i.high for i in intervals], color=colour, alpha=0.15, linewidth=0)
    right.axhline(0.5, color="gray", linestyle=":", label="guessing")
    left.set(title="epsilon", xlabel="critic steps", ylim=(0, None))
    right.set(title="AUROC, canaries in against those out", xlabel="critic steps", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.spines[["right", "top"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
