"""Writes the quality-control page of a patch folder."""

from __future__ import annotations

from data.command import progress

DESCRIPTION = """Write one HTML page on a patch folder, to look at before training.

Warnings first, then classes and patients, scanners, HU, contact sheets, near copies across patients, and what was left out.
The page needs no network and shows patches of real patients: keep it where their scans may be kept.

  python -m data report patches"""


def add_arguments(parser) -> None:
    """Its arguments and options."""
    parser.add_argument("patches", type=str, help="patch folder, as `prepare` or `import` makes it")
    parser.add_argument(
        "--out", type=str | None, default=None, help="HTML file; default quality.html in the folder. A page of this kind is replaced"
    )


def run(options) -> None:
    """Writes the page and prints its warnings and facts. Raises ValueError or OSError for what a user can mend."""
    from pathlib import Path

    from data.files import whole_file
    from data.patches import PatchFolder
    from data.quality import measure
    from data.quality_page import GENERATOR, to_html
    from data.quality_summary import summary_of

    folder = PatchFolder.open(options.patches)
    out = Path(options.out) if options.out else folder.path / "quality.html"
    if out.exists() and not (out.is_file() and GENERATOR.encode() in out.read_bytes()[:1000]):
        raise FileExistsError(f"{out}: exists already and is no page of this command; remove it or choose another --out")
    quality = measure(folder, progress)
    summary = summary_of(folder.spec, quality)
    page = to_html(folder, quality, summary)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        file.write(page.encode())
    print(summary.lead)
    for sentence in summary.warnings:
        print(f"  warning: {sentence}")
    for sentence in summary.facts:
        print(f"  {sentence}")
    print(f"page: {out}")
