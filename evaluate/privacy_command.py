"""What `python -m evaluate privacy` can be told. Imports nothing heavy, so --help is quick."""

from typing import Literal

from jsonargparse import ArgumentParser

DESCRIPTION = """Attack a run: does it keep what differential privacy promises, and what does a run without it give away?

  python -m evaluate privacy run patches --out audit
  python -m evaluate privacy run patches --out audit --critic-steps 500            shorter, and against the epsilon of 500 steps
  python -m evaluate privacy run patches --out audit --canaries 1000               slower, and able to show more
  python -m evaluate privacy run patches --out audit --canary-kind held-out        real patients instead of crafted ones

RUN is a run folder of train.py and PATCHES the patch folder that it was trained on; neither is changed. A copy of the run is
trained, with the same settings and secrets of its own, on the training patients and on canaries: patients whom a fair coin puts in
or leaves out. Three attacks then try to tell who was in: by the critic's gradients (white box), by its scores, and by synthetic patches
alone (black box). How well they do proves a lower bound of epsilon, which must stay below what the accountant says of the steps
that are done; a bound of 0 means that nothing was shown, not that nothing leaks. In the folder --out:
  audit.html   to read: the verdict, the attacks, how it was done
  audit.json   the same numbers, at eight moments of the run
  bounds.png   the bounds under the accountant's epsilon, over the steps

A copy takes two to three times as long as the run did, and says how long after some seconds. An audit is outside the guarantee: its numbers
depend on training patients, so it stays where they do.

Exit codes: 0 done, 1 the guarantee is broken, 2 bad input, 130 or 143 interrupted, nothing left behind."""


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run", type=str, help="run folder of train.py")
    parser.add_argument("patches", type=str, help="patch folder that it was trained on")
    parser.add_argument("--out", type=str, required=True, help="folder to make")
    parser.add_argument("--canaries", type=int, default=100, help="patients to put in or leave out, 20 or more")
    parser.add_argument(
        "--canary-kind",
        type=Literal["crafted", "held-out"],
        default="crafted",
        help="crafted: pictures easy to remember; held-out: three quarters of the validation and test patients, at most",
    )
    parser.add_argument("--critic-steps", type=int | None, default=None, help="how many to train; without, as many as the run has done")
    parser.add_argument(
        "--look-every",
        type=int | None,
        default=None,
        help="critic steps from one look at gradients to the next; without, so that looking takes as long as training. 1 shows the most",
    )
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="where to compute")
    parser.add_argument(
        "--seed", type=int | None, default=None, help="for tests: coins and canaries follow from it; without, nobody can know them"
    )
