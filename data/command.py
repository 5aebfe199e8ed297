"""What all commands share: how options are read, how errors and progress are shown."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace, get_loader, set_loader
from rich.console import Console
from rich.progress import track

T = TypeVar("T")
_yaml = get_loader("yaml")

TERMINATED = 143
BAD_INPUT = 2
"""Exit code for input a user can mend; one line on stderr says what and how."""
MOST_SETTINGS, DEEPEST_SETTING = 10_000, 20


def command_parser(prog: str, description: str) -> ArgumentParser:
    """A parser that shows defaults, reads --config FILE.yaml, and refuses unknown keys and wrong types."""
    return ArgumentParser(prog=prog, description=description, formatter_class=LineKeepingFormatter, exit_on_error=False, allow_abbrev=False)


def program(name: str) -> str:
    """How train or sample is started: as the script of the current folder, a checkout, or as the module that is installed."""
    return f"python {name}.py" if Path(f"{name}.py").exists() else f"python -m {name}"


class Command(Protocol):
    """A module of a package's `commands`."""

    DESCRIPTION: str

    def add_arguments(self, parser: ArgumentParser) -> None: ...
    def run(self, options: Namespace) -> int | None: ...


def run_one_of(commands: Mapping[str, Command], parser: ArgumentParser, arguments: Sequence[str]) -> int | None:
    """Reads which of the commands is meant, and its options, and runs it."""
    subcommands = parser.add_subcommands(
        dest="command", metavar="COMMAND", title="arguments", description="", help="see above; COMMAND --help teaches it"
    )
    for name, command in commands.items():
        one = command_parser("", command.DESCRIPTION)
        command.add_arguments(one)
        subcommands.add_subcommand(name, one)
        one.prog = f"{parser.prog} {name}"
    options = parser.parse_args(list(arguments))
    return commands[options.command].run(options[options.command])


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The options, with each section as its dataclass. Raises ValueError for a section that is none."""
    set_loader("yaml", _settings_only, exceptions=(yaml.YAMLError,))
    try:
        return parser.instantiate(parser.parse_args(list(arguments)))
    except TypeError:
        raise ValueError("a section of the configuration is not a table of settings; --print_config shows how one looks") from None


def _settings_only(text: str) -> object:
    """YAML as jsonargparse reads it, but without `class_path`, for which it would import and run the named module.

    Nor may it hold, nest, or unfold by aliases of aliases, more than any configuration does: libyaml overflows its stack.
    """
    too_much = ValueError("a configuration has more or deeper values than there are settings; write out what its aliases (*) stand for")
    if len(re.findall(r"[\[{]|[-?]\s", text)) > MOST_SETTINGS:
        raise too_much
    try:
        value = _yaml(text)
    except RecursionError:
        raise too_much from None
    parts = [value]
    for _ in range(DEEPEST_SETTING):
        if any(isinstance(part, dict) and "class_path" in part for part in parts):
            raise ValueError("class_path in a configuration: settings are plain values here, code is never loaded")
        parts = list(islice(chain.from_iterable(map(_inside, parts)), MOST_SETTINGS + 1))
        if not parts:
            return value
        if len(parts) > MOST_SETTINGS:
            break
    raise too_much


def _inside(part: object) -> Iterable[object]:
    return part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()


class LineKeepingFormatter(DefaultHelpFormatter):
    """Help with defaults that keeps the line breaks of descriptions, so worked examples stay examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.strip().splitlines(keepends=True))


def joined_values(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--window -1000,400` turned into `--window=-1000,400`.

    argparse takes a value that starts with a minus and is not a plain number for an option.
    """
    joined: list[str] = []
    for argument in arguments:
        if re.fullmatch(r"-\d[\d.]*,.*", argument) and joined and joined[-1].startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs `main(arguments)` and exits: its own code, or BAD_INPUT after one line naming the cause."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # so that what is half-written is cleared away
    try:
        code = main(joined_values(sys.argv[1:])) or 0
    except ArgumentError as error:
        print(f"error: {_in_plain_words(one_line(error))}; --help lists what there is", file=sys.stderr)
        code = BAD_INPUT
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "memory" in str(error)):  # torch tells of memory in a RuntimeError
            raise
        print(f"error: not enough memory ({one_line(error)}); use fewer or smaller patches, or a smaller batch", file=sys.stderr)
        code = BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted: nothing was left half-written", file=sys.stderr)
        code = 130
    sys.exit(code)


def _in_plain_words(told: str) -> str:
    """What jsonargparse says of an option, without the types of Python."""
    told = re.sub(r"(?<=required: ).*", lambda names: re.sub(r"\b\w+\.(?=\w)", "", names[0]), told)
    told = re.sub(r'expected "command" to be one of .*', "no command given", told)
    found = re.fullmatch(r'Parser key "([\w.]+)": (.*?) (?:Got|Given) value: (.*)', told)
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list in brackets"}
    wanted = [kinds[name] for name in re.findall(r"<class '(\w+)'>", told) if name in kinds]
    wanted += [" or ".join(re.findall(r"'([^']*)'", choices)) for choices in re.findall(r"Literal\[(.*?)\]", told)]
    return f"--{found[1]} {found[3]}: want {' or '.join(dict.fromkeys(wanted))}" if found and wanted else told


def one_line(error: BaseException) -> str:
    """An exception's message as one line; an OSError's with its file."""
    if isinstance(error, OSError) and error.strerror:
        files = " -> ".join(str(f) for f in (error.filename, error.filename2) if f is not None)
        return f"{files}: {error.strerror}" if files else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def progress(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items, with a progress bar on stderr; where that is no terminal, a line every few seconds."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, description, total=total, console=console)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > 5 or (done == total and now - started > 2):
            print(f"{description}: {done}/{total}, {now - started:.0f} s", file=sys.stderr, flush=True)
            last = now


def now_and_then(every_s: float = 10) -> Callable[[str], None]:
    """A function that prints what it is told to stderr, but not more often than this, and never at once."""
    due = time.monotonic() + every_s

    def tell(words: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + every_s
            print(words, file=sys.stderr, flush=True)

    return tell


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """Yields a function to tell, in words, what begins: a spinner on a terminal's stderr, lines elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
    else:
        yield lambda words: print(words, file=sys.stderr, flush=True)


def time_left() -> Callable[[float, float], None]:
    """A function to be told (share done, seconds since the start): it says on stderr how long it will take, after some seconds, then every half minute."""
    due = 3.0

    def tell(progress: float, seconds: float) -> None:
        nonlocal due
        if seconds >= due and progress < 1:
            due = seconds + 30
            minutes, left = divmod(round(seconds * (1 - progress) / progress), 60)
            print(f"{progress:.0%} done, {minutes} min {left:02d} s left", file=sys.stderr, flush=True)

    return tell
