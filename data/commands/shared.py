"""Options and tables that several commands have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal


def patch_arguments(parser, size: int) -> None:
    """The options of every command that makes patches; size: the default of --size, 0 to keep that of pictures."""
    parser.add_argument("--out", type=str, required=True, help="patch folder to make")
    parser.add_argument(
        "--size", type=int, default=size, help="pixels along a side of a patch" + ("" if size else "; 0 keeps the pictures'")
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the background patches")
    parser.add_argument("--validation", type=float, default=0.15, help="share of the patients held out to choose by")
    parser.add_argument("--test", type=float, default=0.25, help="share of the patients held out to report on")
    parser.add_argument(
        "--key",
        type=str | None,
        default=None,
        help="file with the pseudonym key, made if absent; default $LESIONGAN_KEY or ~/.config/lesiongan/pseudonym.key",
    )
    parser.add_argument(
        "--patients",
        type=Literal["each"] | None,
        default=None,
        help="each: no two pictures, files or studies that name no patient are of one person; otherwise the patients count as not known",
    )
    parser.add_argument(
        "--licence", type=str, default="", help="of the data, or its terms, in one line, such as 'CC BY 3.0'; stays with patches and models"
    )


def read_range(what: str, text: str, example: str) -> tuple[float, float]:
    """The two numbers of "low,high". Raises ValueError naming what it is and an example."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{what} {text!r}: want low,high{example}") from None
    return low, high


def read_window(text: str) -> tuple[float, float]:
    """A HU window from "low,high". Raises ValueError when it is none."""
    from data.preprocess import check_window

    return check_window(read_range("window", text, " in HU, such as -1000,400"))


def read_pseudonyms(key: str | None):
    """The pseudonyms under the key in this file, by default the user's own. Raises ValueError naming a file that holds none."""
    from data.pseudonyms import Pseudonyms, default_key_file, read_or_make_key

    file = Path(key) if key else default_key_file()
    if not file.exists():
        print(f"new pseudonym key in {file}: keep it, the same patient has the same pseudonym only under it")
    try:
        return Pseudonyms(read_or_make_key(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def print_table(patches: Counter[tuple[str, str]]) -> None:
    """Prints (split, class) -> patches, a line a split."""
    labels = sorted({label for _, label in patches})
    for split in ("train", "validation", "test"):
        counts = ", ".join(
            f"{patches[split, label]} {'of class ' if label[0].isdigit() else ''}{label}" for label in labels if patches[split, label]
        )
        print(f"  {split + ':':<12}{counts or 'none'}")


def counted(number: int, noun: str) -> str:
    """Such as "1 patient" and "2 patients"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('ch') else 's'}"
