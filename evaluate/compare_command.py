"""What `python -m evaluate compare` can be told. Imports nothing heavy, so --help is quick."""

from jsonargparse import ArgumentParser

DESCRIPTION = """Put several reports side by side: which generator is nearer to real patients, and is the difference more than chance?

  python -m evaluate compare report-a report-b report-c
  python -m evaluate compare report-a report-b --out comparison        also a page with every figure and its interval

Each REPORT is the folder that `python -m evaluate` wrote, or its report.json; they must be of the same real patches. A difference
counts where the 95 % intervals do not overlap. Families of features (radiomics, Inception, an encoder) rank for themselves, and where
they disagree, that is said. In the folder --out: comparison.html, comparison.md.

Exit codes: 0 done, 2 bad input."""


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("reports", type=str, nargs="+", help="folders of `python -m evaluate`, or their report.json")
    parser.add_argument("--out", type=str | None, default=None, help="folder to make, for the page")
    parser.add_argument(
        "--names", type=str | None, default=None, help="what to call the reports, with commas; without, their folders' names"
    )
