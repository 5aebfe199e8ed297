"""`python -m data`: the commands that make, convert, cut and import CT data."""

from __future__ import annotations

from collections.abc import Sequence

import lesiongan  # noqa: F401  first: it ends with one line where what we need is not installed
from data.command import command_parser, run_command, run_one_of
from data.commands import augment, convert, phantom, pictures, prepare, report

DESCRIPTION = """Turn CT into patches of HU that a GAN can train on.

  phantom   make a procedural chest-CT cohort: real DICOM series and a lesion list
  prepare   cut lesion patches out of DICOM, NIfTI or MetaImage scans
  import    make patches from an npz file or from folders of PNG or JPEG pictures
  augment   add changed copies of the training patches: moved, and as another scanner would show them
  convert   write one series as HU NIfTI, with its true geometry
  report    write one page on a patch folder to look at before training

A worked example, from nothing to patches:
  python -m data phantom --out phantom --patients 8 --seed 0
  python -m data prepare phantom --lesions phantom/annotations.csv --out patches --size 32 --spacing 1.25

Exit codes: 0 done, 2 bad input (one line says which file and why), 130 or 143 interrupted: nothing is left
half-written, and `prepare` goes on where it was when run again."""

COMMANDS = {"phantom": phantom, "prepare": prepare, "import": pictures, "augment": augment, "convert": convert, "report": report}


def main(arguments: Sequence[str]) -> int | None:
    """Reads the command line and runs one of the commands."""
    return run_one_of(COMMANDS, command_parser("python -m data", DESCRIPTION), arguments)


if __name__ == "__main__":
    run_command(main)
