"""What `python -m evaluate` can be told. Imports nothing heavy, so --help is quick."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DetectorConfig:
    """The downstream detector: a small ResNet trained once per arm and seed.

    Args:
        run: train the detector; it is most of the time an evaluation takes.
        steps: training steps of each arm and seed; 400 take about 7 s at 32 x 32 on one core.
        seeds: how often each arm is trained; 3 give a first idea, 5 or more a result to report.
        synthetic_share: share of the lesions in a batch that are synthetic, in that arm; above 0, at most 1.
    """

    run: bool = True
    steps: int = 400
    seeds: int = 3
    synthetic_share: float = 0.25

    def __post_init__(self) -> None:
        if self.steps < 10 or self.seeds < 1:
            raise ValueError(f"a detector needs 10 steps and 1 seed or more, got {self.steps} and {self.seeds}")
        if not 0 < self.synthetic_share <= 1:
            raise ValueError(f"detector.synthetic_share is above 0 and at most 1, got {self.synthetic_share:g}")


@dataclass(frozen=True)
class EvaluateConfig:
    """How to evaluate.

    Args:
        inception_weights: file with torch-fidelity's Inception weights; without it the torch hub cache is looked at. Nothing is downloaded.
        detector: the downstream detector.
        samples: most patches of a set that enter the comparisons; more are thinned at random.
        draws: resamplings behind each 95 % interval.
        suspects: pairs shown in the panel of possible copies.
        show_real: put real patches into the report's pictures; they are patient data.
        seed: of every random choice; the same seed on the same machine repeats the report.
        device: cpu, or cuda for the detector and the Inception network.
    """

    inception_weights: str | None = None
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    samples: int = 2000
    draws: int = 100
    suspects: int = 8
    show_real: bool = True
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.samples < 10 or self.draws < 10 or self.suspects < 0 or self.seed < 0:
            raise ValueError("samples and draws are 10 or more, suspects and seed 0 or more")
