"""Differential privacy of patients: what a plan guarantees, what a run has spent of it, and randomness nobody can predict.

Only the critic sees training patients. In each of its steps every one of N patients joins independently with probability q; the
gradient of each, over all their patches in the step, is shortened to at most the clip norm C; Gaussian noise with a standard deviation of
noise_multiplier x C is added to their sum (Abadi et al. 2016). All that is made from the critic's updates is as private as they are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from ssl import RAND_bytes
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gan.config import PrivacyConfig

if TYPE_CHECKING:
    from torch import Tensor

LEAST_NOISE, MOST_NOISE, MOST_EPSILON = 0.3, 1e4, 100
"""What a plan may be. With the least noise multiplier, one step that all patients join costs an epsilon of 19 (delta 1e-5)."""


@dataclass(frozen=True)
class PrivacyPlan:
    """What is done in every critic step, all of it public; epsilon follows.

    patients: N, the training patients. expected: B, how many of them join a step on average. patches: of each in a step. clip_norm: C,
    the longest gradient of a patient. noise_multiplier: sigma, the noise's standard deviation over C. delta: the chance left out of the
    guarantee. critic_steps: in the whole run. unit: what is added or removed, one patient with all their patches.
    """

    patients: int
    expected: int
    patches: int
    clip_norm: float
    noise_multiplier: float
    delta: float
    critic_steps: int
    unit: Literal["patient"] = "patient"

    def __post_init__(self) -> None:
        """Raises ValueError naming the first option that makes no sense."""
        delta = f"1e-12 (the accountant's precision) to below 1, best far below 1 / {self.patients} patients"
        noise = f"{LEAST_NOISE} or more, as less protects nobody; or give privacy.epsilon, and the noise follows"
        for option, value, sensible, want in (
            ("patients", self.expected, 1 <= self.expected <= self.patients, f"1 to {self.patients}, the training patients there are"),
            ("patches", self.patches, self.patches >= 1, "1 or more"),
            ("critic_steps", self.critic_steps, self.critic_steps >= 1, "1 or more"),
            ("clip_norm", self.clip_norm, 0 < self.clip_norm < math.inf, "a number above 0, such as 1"),
            ("noise_multiplier", self.noise_multiplier, LEAST_NOISE <= self.noise_multiplier < math.inf, noise),
            ("delta", self.delta, 1e-12 <= self.delta < 1, delta),
        ):
            if not sensible:
                raise ValueError(f"privacy.{option} is {value:g}, want {want}")

    @property
    def sample_rate(self) -> float:
        """q = B / N, a patient's chance to join a step."""
        return self.expected / self.patients

    @functools.cache  # noqa: B019 - plans are few and small
    def epsilon(self, steps: int) -> float:
        """What so many critic steps spend, by the composed privacy loss distribution (PLD) of the Poisson-sampled Gaussian.

        Neighbours differ by one patient, added or removed. Losses are laid on a grid such that epsilon can only grow (Doroshenko et al.
        2022); a grid of 1e-4 adds less than 0.1 % at epsilon 1. Takes 0.1 to 0.6 s for a plan worth having. Above 10 by a rough
        bound (Renyi accounting) the grid is coarser in proportion, as its size decides over time and memory; above 1000 it is the bound.
        """
        if steps == 0:
            return 0.0
        import dp_accounting
        from dp_accounting import pld, rdp

        step = dp_accounting.PoissonSampledDpEvent(self.sample_rate, dp_accounting.GaussianDpEvent(self.noise_multiplier))
        orders = [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256]  # whole ones: others do not always converge
        rough = float(rdp.RdpAccountant(orders).compose(step, steps).get_epsilon(self.delta))
        if rough > 1000:
            return rough
        accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, max(1e-4, 1e-5 * rough))
        return float(accountant.compose(step, steps).get_epsilon(self.delta))

    def sentence(self, steps: int) -> str:
        """The guarantee after so many critic steps, in one sentence; epsilon is rounded up."""
        epsilon = Decimal(self.epsilon(steps)).quantize(Decimal("0.01"), ROUND_CEILING)
        return (
            f"This run is differentially private with epsilon {epsilon} and delta {self.delta:g}, the unit being one {self.unit} with all "
            f"their patches, added or removed (PLD accountant of dp-accounting {importlib.metadata.version('dp-accounting')}; "
            f"{self.patients:,} training patients, of whom each joins a critic step with probability {self.expected} / {self.patients} = "
            f"{self.sample_rate:.4g}; noise multiplier {self.noise_multiplier:g}, clip norm {self.clip_norm:g}, {steps:,} critic steps so "
            "far); this covers the critic's updates and all that is made from them, which are the generator, its moving average and every "
            "sample drawn, but only for training patients, and what other runs on the same patients spend adds to it."
        )


def plan_for(config: PrivacyConfig, patients: int) -> PrivacyPlan:
    """The plan that the options `privacy` ask for, with so many training patients; takes a few seconds where epsilon is given.

    config: epsilon, delta, noise_multiplier, clip_norm, patients (in a step), patches, critic_steps; epsilon or noise_multiplier is 0, not
    given. The noise for an epsilon is the least that keeps to it, to 0.2 %, in four digits. With 0 patients in a step an eighth of all are
    expected, 16 to 128. Raises ValueError naming the option.
    """
    epsilon, noise = config.epsilon, config.noise_multiplier
    if (epsilon == 0) == (noise == 0):
        raise ValueError(f"privacy.epsilon is {epsilon:g} and privacy.noise_multiplier {noise:g}; give one, and the other follows from it")
    expected = config.patients or min(patients, max(16, min(128, patients // 8)))
    plan = PrivacyPlan(patients, expected, config.patches, config.clip_norm, noise or 1.0, config.delta, config.critic_steps)
    epsilon = epsilon or plan.epsilon(plan.critic_steps)
    if not 0 < epsilon <= MOST_EPSILON:
        raise ValueError(f"the epsilon of the run is {epsilon:g}, want above 0 to {MOST_EPSILON}; set privacy.epsilon, 1 to 10 is usual")
    return plan if noise else replace(plan, noise_multiplier=_least_noise(plan, epsilon))


def _least_noise(plan: PrivacyPlan, epsilon: float) -> float:
    """The least noise multiplier, in four digits, with which plan.critic_steps spend at most epsilon; ValueError if none is enough."""
    from scipy.optimize import brentq

    @functools.cache
    def excess(noise: float) -> float:
        spent = replace(plan, noise_multiplier=noise).epsilon(plan.critic_steps)
        return math.log(max(spent, 1e-9) / epsilon)

    if excess(MOST_NOISE) > 0:
        told = f"privacy.epsilon {epsilon:g} is out of reach with {plan.patients} patients and {plan.critic_steps} critic steps"
        raise ValueError(f"{told}; allow a larger epsilon, fewer privacy.critic_steps, or fewer privacy.patients in a step")
    if excess(LEAST_NOISE) <= 0:
        return LEAST_NOISE
    ends = math.log(LEAST_NOISE), math.log(MOST_NOISE)  # between them, nearly a straight line
    noise = math.exp(brentq(lambda log_noise: excess(max(math.exp(log_noise), LEAST_NOISE)), *ends, xtol=2e-4))
    while excess(rounded := float(f"{noise:.4g}")) > 0:  # by rounding, or by the root's tolerance
        noise *= 1.0003
    return rounded


def warnings(plan: PrivacyPlan, parameters: int) -> list[str]:
    """What to expect of a plan, in a sentence or two each, for a critic with so many parameters."""
    epsilon, noise, told = plan.epsilon(plan.critic_steps), plan.noise_multiplier, []
    if plan.patients < 1000:
        told.append(
            f"{plan.patients} training patients are few for differential privacy: samples will look poor, as a critic step's noise is "
            f"{noise * math.sqrt(parameters) / plan.expected:.2g} times as long as the averaged gradient may be. A thousand or more help, "
            "or a start from weights of public or phantom patches (--init-from), or a larger privacy.epsilon."
        )
    if noise < 0.5:
        told.append(f"A noise multiplier of {noise:g} hides little of a patient who joins a step; 0.5 or more is usual.")
    if epsilon > 10:
        told.append(f"An epsilon of {epsilon:.3g} protects little: whether a patient took part may show in the model; 1 to 10 is usual.")
    if plan.delta * plan.patients >= 1:
        told.append(f"A delta of {plan.delta:g} would allow to publish one of {plan.patients} patients as they are; 1e-5 is usual.")
    return told


def poisson(count: int, rate: float, source: Callable[[int], bytes] = RAND_bytes) -> np.ndarray:
    """int (J,): which of `count` join, in ascending order, each independently with probability rate, from 0 to 1, to within 2^-53.

    The source is OpenSSL's generator, seeded by the system: whoever has seen some of its output can compute no more of it, and it is
    ten times as fast as os.urandom. NumPy's and torch's generators are not made for that, however they are seeded: from enough of their
    output their state can be solved for, and for one who knows the noise there is none.
    """
    return np.flatnonzero((np.frombuffer(source(8 * count), "<u8") >> 11) < rate * 2.0**53)


def gaussian(count: int, source: Callable[[int], bytes] = RAND_bytes) -> Tensor:
    """float64 (count,) on the CPU: standard normal numbers from a secure source (see poisson).

    Add them to the gradients in float64 and round the sum to float32. Floating-point numbers have gaps: some sums can come about with one
    patient but not without, which the last digits then give away (Mironov 2012; for Box-Muller, Holohan & Braghin 2021). So each number
    is the sum of two, from 252 random bits of its own, too many to solve for (ibid., sec. 5.1; of each Box-Muller pair the second number
    is never shown), and rounding hides the digits that are left.
    """
    import torch

    numbers = torch.empty(count, dtype=torch.float64)
    for part in numbers.split(2**15):  # fits a core's cache
        words = np.frombuffer(source(32 * len(part)), "<u8").reshape(4, -1) >> 1  # 63 bits, as signed numbers convert much faster
        uniform = torch.from_numpy(words.view(np.int64).astype(np.float64)).add_(0.5).mul_(2.0**-63)  # above 0, so finite below
        radius, angle = uniform[:2].log_().neg_().sqrt_(), uniform[2:].mul_(2 * math.pi)  # sqrt(-2 log u) / sqrt(2), for they are two
        torch.sum(radius.mul_(angle.cos_()), 0, out=part)
    return numbers


class Ledger:
    """What a run has spent, in RUN/.privacy.json: known even when it was killed after something was shown and before the next checkpoint.

    spent: critic steps whose result was shown anywhere, be it in a line of metrics, a grid or a checkpoint. A resumed run counts on from
    here, not from its checkpoint: steps it does again are spent again. The file holds the hash of the patches, from which one who has
    a guess at all of them could tell that it is right: only its owner can read it, and it stays where the patches are.
    """

    def __init__(self, run: Path, plan: PrivacyPlan, cohort: str, must_exist: bool = False):
        """Opens the ledger of the run folder, or begins one. cohort: SHA-256 of the content of the patch folder.

        must_exist: whether the run has shown something before, such as a checkpoint. Raises ValueError for a missing or damaged
        ledger, and for another plan or other patches than it was begun with.
        """
        self._file, self._plan, self._cohort, self.spent = run / ".privacy.json", plan, cohort, 0
        if self._file.exists():
            self.spent = self._read()
        elif must_exist:
            raise self._unknown("missing")
        self._write()

    def spend(self, total: int) -> None:
        """To be called before anything is shown: so many critic steps are spent in all, and on the disk when this returns.

        Raises ValueError for fewer than before or more than planned, and OSError when it cannot be written; then nothing may be shown.
        """
        most = self._plan.critic_steps
        if not self.spent <= total <= most:
            raise ValueError(f"{self._file}: {total} critic steps, want {self.spent}, spent before, to {most}, privacy.critic_steps")
        self.spent = total
        self._write()

    def _write(self) -> None:
        from gan.checkpoint import write_atomically

        meta = {"format": "lesiongan privacy ledger 1", "plan": asdict(self._plan), "cohort": self._cohort, "spent": self.spent}
        write_atomically(self._file, (json.dumps({**meta, "sha256": _hash_of(meta)}, indent=1) + "\n").encode(), mode=0o600)

    def _read(self) -> int:
        try:
            meta = json.loads(self._file.read_text(encoding="utf-8"))
            if meta.pop("sha256") != _hash_of(meta):
                raise ValueError("its content does not fit its SHA-256")
            plan, cohort, spent = dict(meta["plan"]), meta["cohort"], int(meta["spent"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._unknown(f"damaged ({type(error).__name__}: {error})") from None
        for name, value in asdict(self._plan).items():
            if plan.get(name) != value:
                option = {"patients": "the number of training patients", "expected": "privacy.patients"}.get(name, f"privacy.{name}")
                raise ValueError(
                    f"{option} is {value}, but {self._file.parent} was started with {plan.get(name)}; use the same patches and settings "
                    "(privacy.noise_multiplier may follow from privacy.epsilon), or another --out"
                )
        if cohort != self._cohort:
            raise ValueError(f"{self._file.parent} was trained on other patches (their content hash differs); choose another --out")
        return spent

    def _unknown(self, why: str) -> ValueError:
        return ValueError(f"{self._file}: {why}, so what the run has spent is unknown; restore the file, or choose another --out")


def _hash_of(meta: dict[str, Any]) -> str:
    """SHA-256 of what the file says, however it is laid out."""
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()
