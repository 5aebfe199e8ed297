"""The README and docs/ as somebody follows them: commands, options and links that exist; and, slowly, every block run in the order of its page."""

import argparse
import importlib.util
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import jsonargparse
import pytest
from conftest import ROOT, benchmark
from test_gan_processes import TORCHRUN, finish
from torch.distributed.run import get_args_parser

from data.__main__ import COMMANDS
from data.command import joined_values

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]

NOT_RUN = {
    "make demo": "it makes an environment, and takes five minutes; its steps are those of the example in docs/auditing.md",
    "make test": "it would run this test",
    "pip install": "it needs a network",
    "torchrun --nnodes 4": "it needs four machines",
    "cuda": "it needs a GPU",
    "dask ": "it goes on until it is stopped",
    "--scheduler": "it needs a cluster; tests/test_data_parallel.py has one",
}
"""Commands, by what is in them, that are checked but not run, and why. Those within sentences are checked only, too."""

SMALLER = {
    r"-m data phantom": "--patients 8 --lesions 6 --matrix 128 --slice-mm 5 --processes 1",
    r"-m data prepare": "--processes 1",
    r"train\.py": "--training.steps 2 --training.batch 8 --networks.channels 4 --networks.latent 8 --training.device cpu",
    r"train\.py.*--privacy": "--privacy.critic_steps 4",
    r"--training\.devices 8": "--training.devices 2",
    r"sample\.py(?!.*--(into|verify|export) )": "--seeds 0-9 --reject false",
    r"sample\.py.*--fill": "--seeds 0 --fill 15",
    r"sample\.py.*--into": "--seeds 0-1",
    r"-m gan distil": "--channels 2 --steps 2",
    r"-m evaluate(?! (encoder|compare|froc|privacy) )": "--detector.steps 10 --detector.seeds 1 --draws 20 --samples 200",
    r"-m evaluate encoder": "--steps 100 --batch 8",
    r"-m evaluate privacy": "--canaries 20",
}
"""What is appended to commands in which something is found, to make them small: of an option given twice the last counts."""

NEEDS = {
    "README.md": "scans annotations.csv SERIES results.csv seriesuids.csv report-a=report report-b=report nodules context-3d",
    "docs/auditing.md": "patches synthetic real-pictures their-pictures results.csv annotations.csv annotations_excluded.csv seriesuids.csv",
    "docs/data.md": "",
    "docs/privacy.md": "patches public-run=plain-run run",
    "docs/sampling.md": "patches=plain run=plain-run context-3d SERIES annotations.csv",
    "docs/scaling.md": "scans annotations.csv patches run",
    "docs/training.md": "patches run",
}
"""What a page takes for there, and the name of its stand-in where that is another."""

STAND_INS = """
python -m data prepare scans --lesions annotations.csv --out patches --size 16 --spacing 3 --validation 0.25
python -m data prepare scans --lesions without-classes.csv --out plain --size 16 --spacing 3
python -m data prepare scans --lesions annotations.csv --out nodules --size 16 --spacing 2 --dims 3
python train.py --data patches --out run
python train.py --data plain --out plain-run
python train.py --data nodules --out context-3d --context.on true
python sample.py --run run --out synthetic
python -m evaluate patches synthetic --out report --detector.run false
"""


class Understood(Exception):
    """A program has read its options and would now begin."""


class Block(NamedTuple):
    """What stands between two fences: commands where no language is named, else python, or text."""

    line: int
    section: int
    language: str
    text: str

    def commands(self) -> Iterator[tuple[int, str]]:
        """Line and command: continued lines joined, without comments, and without an explanation after two spaces or more."""
        for match in re.finditer(r"(?:.*\\\n)*.+", self.text):
            said = re.split(r"\s{2,}(?![-\s])", re.sub(r"\\\n\s*", "", match[0]))[0].strip()  # what begins with a minus is no explanation
            if said[0] != "#":
                yield self.line + self.text.count("\n", 0, match.start()), said


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(text.count("\n", 0, at.start(2)) + 1, text.count("\n## ", 0, at.start()), at[1], at[2]) for at in found]


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def code(page: str) -> list[str]:
    """What stands in backquotes within sentences."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


SAID = {f"{page}:{line}": said for page in PAGES for block in blocks(page) if not block.language for line, said in block.commands()}
"""Every command, by its place."""


def called(words: list[str]) -> object:
    """What the main function returns that `python ...` calls."""
    _, first, *rest = [word for word in words if word != "-P"]
    named, *rest = rest if first == "-m" else [first.removesuffix(".py"), *rest]
    name, *arguments = joined_values([f"{named}.__main__" if (ROOT / named).is_dir() else named, *rest])
    if not name.startswith("benchmarks/"):
        return importlib.import_module(name).main(arguments)
    with contextmanager(benchmark)(name.removeprefix("benchmarks/")) as module, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [first, *arguments])
        return module.main(*[arguments] * len(inspect.signature(module.main).parameters))


def understand(said: str, complete: bool = True) -> None:
    """Lets the program that a command names read its options, and stops there. complete: it has all that it must be given."""
    words = shlex.split(re.sub(r"^(\w+=\S+ )+", "", said))

    def only_read(parser: argparse.ArgumentParser, *arguments: object, **options: object) -> None:
        patch.undo()
        try:
            parser.parse_args(*arguments, **options)
        except jsonargparse.ArgumentError as error:
            if complete or not re.search("required|not provided", str(error)):
                raise
        raise Understood

    if words[0] == "python":
        with pytest.MonkeyPatch.context() as strict, pytest.MonkeyPatch.context() as patch:
            whole_names = property(lambda _: False, lambda *_: None)  # argparse takes an option by its first letters, too
            strict.setattr(argparse.ArgumentParser, "allow_abbrev", whole_names, raising=False)
            for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
                patch.setattr(kind, "parse_args", only_read)
            with pytest.raises(Understood):
                called(words)
    elif words[0] == "torchrun" and (complete or ".py" in said):
        options = get_args_parser().parse_args(words[1:])
        understand(shlex.join(["python", options.training_script, *options.training_script_args]), complete)
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        known = [*project["optional-dependencies"], *(re.split("[>=]", one)[0] for one in project["dependencies"])]
        named = re.search(r"\[([\w,]+)\]$|[\w.]+$", words[2])
        assert set((named[1] or named[0]).split(",")) <= {*known, "lesiongan", "."}
    elif words[0] == "dask":
        assert importlib.util.find_spec("distributed")
    elif complete:
        assert words[0] == "printf", f"{said}: not known here; a block of something else than commands begins with ```text"


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_command_is_understood_by_its_program(said):
    understand(said)


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_are_understood(page):
    for span in code(page):
        if re.match(r"(\w+=\S+ )*(python|torchrun|pip|make) ", span):
            understand(re.sub(r" N\b", " 1", re.sub(r" (--help|\.\.\.)", "", span)), complete=False)


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option of every program, by its --help, and torchrun's that are named."""
    programs = ["train.py", "sample.py", "-m gan distil", "-m evaluate", *(f"-m data {name}" for name in COMMANDS)]
    programs += [f"-m evaluate {name}" for name in ("compare", "encoder", "froc", "privacy")]
    programs += [f"benchmarks/{file.name}" for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text()]
    with redirect_stdout(io.StringIO()) as told:
        for program in programs:
            with pytest.raises(SystemExit):
                called(["python", *program.split(), "--help"])
    listed = "\n".join(re.findall("^  -.*", told.getvalue(), re.MULTILINE))
    return {*re.findall(r"(?<!\S)--[\w.-]+", listed), "--nnodes", "--nproc-per-node", "--run-path"}


@pytest.mark.parametrize("page", PAGES)
def test_options_that_are_named_exist(page, options):
    assert {option.rstrip(".") for span in code(page) for option in re.findall(r"(?<!\S)--\w[\w.-]+", span)} <= options


def headings(page: Path) -> set[str]:
    """As links name them."""
    found = re.findall("^#+ (.+)$", prose(str(page.relative_to(ROOT))), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_pictures_and_files_are_there(page):
    for target in re.findall(r"\]\((?!https:)([^)\s]+)\)", prose(page)):
        name, _, heading = target.partition("#")
        file = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert file.is_file(), target
        assert not heading or heading in headings(file), target
    for name in code(page):
        assert (ROOT / name).is_file() or not re.fullmatch(r"(data|gan|evaluate|benchmarks|tests|docs)/[\w/]+\.(py|md)", name), name


def test_the_table_of_dependencies_is_that_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w.-]+", one)[0] for one in chain(project["dependencies"], *project["optional-dependencies"].values())}
    listed = re.findall(r"^\| `([\w.-]+)`(?: \([^|]*\))? \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == wanted


def test_the_tables_above_are_of_these_pages():
    assert [part for part in NOT_RUN if not any(part in said for said in SAID.values())] == []
    assert [pattern for pattern in SMALLER if not any(re.search(pattern, said) for said in SAID.values())] == []
    assert {page for page in PAGES if blocks(page)} == set(NEEDS)
    assert {block.language for page in PAGES for block in blocks(page)} == {"", "python", "text"}


# --- and run ---


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder with what pages take for there."""
    shelf = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shelf)
        patch.setenv("LESIONGAN_KEY", str(shelf / "pseudonym.key"))
        run("python -m data phantom --out scans", set())
        shutil.copytree("scans/patient-0000", "SERIES")
        table = Path("scans/annotations.csv").read_text()
        series = sorted(set(re.findall(r"^[\d.]+", table, re.MULTILINE)))
        for name, content in {
            "annotations.csv": table, "annotations_excluded.csv": table, "results.csv": table.replace("diameter_mm", "probability"),
            "seriesuids.csv": "\n".join(["seriesuid", *series, ""]), "without-classes.csv": re.sub(",[a-z_]*$", "", table, flags=re.MULTILINE),
        }.items():  # fmt: skip
            Path(name).write_text(content)
        for said in STAND_INS.strip().splitlines():
            run(said, set())
        for name, digits in (("real-pictures", 1), ("their-pictures", 2)):  # as if patients had several
            shutil.copytree("synthetic/png", Path(name) / "nodule")
            for n, file in enumerate(sorted(Path(name).rglob("*.png"))):
                file.rename(file.with_name(f"{n % 5 if digits == 1 else n}_{n}.png"))
    return shelf


def run(said: str, named: set[str]) -> None:
    """Runs a command as it stands, but smaller. What is there already gives way to what it makes, unless earlier commands have named it."""
    print(f"$ {said}")
    more = [word for pattern, options in SMALLER.items() if re.search(pattern, said) for word in options.split()]
    words = [os.path.expandvars(word) for word in [*shlex.split(said), *more]]
    for option, made in pairwise(words):
        if option in ("--out", "--cubes", "--export") and Path(made).exists() and (made not in named or "train.py" in words):
            shutil.rmtree(made) if Path(made).is_dir() else Path(made).unlink()
    named |= set(words)
    scripts = [ROOT / word if word.endswith(".py") else word for word in words]
    if words[0] == "torchrun":
        finish(*TORCHRUN, *scripts[3:])  # with two processes
    elif {"--training.devices", "--devices"} & set(words):
        finish(*scripts[1:])
    elif words[0] == "python":
        assert called(words) in (None, 0, *[1] * ("--fail-if" in words)), said
    else:
        subprocess.run(said, shell=True, check=True)


def run_blocks(page: str, on_public_data: bool) -> None:
    named: dict[int, set[str]] = defaultdict(set)
    variables: dict[str, object] = {}  # one block of Python goes on where the one before it stopped
    for block in blocks(page):
        if ("$DATA" in block.text or "benchmarks/" in block.text) != on_public_data:
            continue
        for _, said in () if block.language else block.commands():
            if not any(part in said for part in NOT_RUN):
                run(said, named[block.section])
        if block.language == "python":
            exec(compile(block.text, f"{page}, line {block.line}", "exec"), variables)


@pytest.mark.slow
@pytest.mark.parametrize("page", NEEDS)
def test_the_blocks_of_a_page_run_in_order(page, shelf, command):
    for name in NEEDS[page].split():
        here, _, there = name.partition("=")
        source = shelf / (there or here)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, here)
    run_blocks(page, on_public_data=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in NEEDS if "$DATA" in (ROOT / page).read_text()])
def test_its_blocks_on_public_data_run_in_order(page, real_data, command, monkeypatch):
    for name in ("DATA", "LESIONGAN_DATA"):
        monkeypatch.setenv(name, str(real_data.resolve()))
    run_blocks(page, on_public_data=True)
