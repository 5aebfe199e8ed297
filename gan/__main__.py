"""`python -m gan`: what can be done with a trained model besides drawing from it."""

from __future__ import annotations

from collections.abc import Sequence

import lesiongan  # noqa: F401  first: it ends with one line where another's package has the name of one of these
from data.command import command_parser, run_command, run_one_of
from gan.commands import distil

COMMANDS = {"distil": distil}

DESCRIPTION = """Work on trained models.

  distil    train a small generator that draws what a trained run draws, for machines without a GPU

A worked example:
  python train.py --data patches --out run
  python -m gan distil run --channels 8 --out small
  python sample.py --run small --out synthetic --seeds 0-255

Exit codes: 0 done, 2 bad input (one line says what and why), 130 or 143 interrupted: nothing is left half-written."""


def main(arguments: Sequence[str]) -> int | None:
    """Reads the command line and runs one of the commands."""
    return run_one_of(COMMANDS, command_parser("python -m gan", DESCRIPTION), arguments)


if __name__ == "__main__":
    run_command(main)
