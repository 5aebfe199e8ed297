"""Puts several reports side by side."""

from jsonargparse import ArgumentParser, Namespace

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


def run(options: Namespace) -> int:
    """Reads the reports, prints their table and what it says, and writes the page where one is asked for."""
    from data.files import new_folder
    from evaluate.side_by_side import check_comparable, in_words, read_report, to_markdown, to_table, to_text

    names = options.names.split(",") if options.names else [None] * len(options.reports)
    if len(names) != len(options.reports):
        raise ValueError(f"--names has {len(names)} names for {len(options.reports)} reports")
    reports = [read_report(path, name) for path, name in zip(options.reports, names, strict=True)]
    sentences = [*check_comparable(reports), *in_words(reports)]
    table = to_table(reports)
    print(to_text(table))
    print("\n" + "\n".join(f"- {sentence}" for sentence in sentences))
    if options.out:
        from evaluate.page import comparison_page

        with new_folder(options.out) as out:
            (out / "comparison.html").write_text(comparison_page(reports, sentences), encoding="utf-8")
            (out / "comparison.md").write_text(to_markdown(table, sentences), encoding="utf-8")
        print(f"\n{options.out}/comparison.html\n{options.out}/comparison.md")
    return 0
