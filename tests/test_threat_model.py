"""docs/threat-model.md keeps its word: every test it names is there, every test file too, and the code opens nothing that could run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "threat-model.md").read_text()
NAMED = re.findall(r"(test_\w+)::(test_\w+)", PAGE)
SOURCES = [
    *(file for name in ("data", "gan", "evaluate") for file in (ROOT / name).rglob("*.py")),
    *map(ROOT.joinpath, ("train.py", "sample.py", "lesiongan.py")),
]

UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
"""Modules that run what a file says. Processes exchange their own objects by them, which is multiprocessing's and Dask's matter."""

PROGRAMS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.jit.load", "torch.hub.load"}


def named_in(file: Path) -> set[str]:
    """Its tests, but for those that `make test` leaves out."""
    tests = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {test.name for test in tests if "pytest.mark.slow" not in map(ast.unparse, test.decorator_list)}


def test_the_page_names_tests_at_all():
    assert len(set(NAMED)) > 50
    assert not re.findall(r"`test_\w+`", PAGE)  # a test is named with its file


def test_every_test_that_the_page_names_is_there():
    there = {file: named_in(ROOT / "tests" / f"{file}.py") for file, _ in NAMED}
    assert [f"{file}::{test}" for file, test in NAMED if test not in there[file]] == []


def faults(source: str) -> Iterator[str]:
    """What in the source could run what a file says, or let NumPy or torch do so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {one.arg: ast.unparse(one.value) for one in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        elif called in ("np.load", "np.lib.npyio.NpzFile") and given.get("allow_pickle") != "False":
            yield f"{called} without allow_pickle=False"
        elif (
            called in PROGRAMS
            or called.startswith("subprocess.")
            or (re.fullmatch(r"yaml\.\w+", called) and called not in ("yaml.safe_load", "yaml.safe_dump"))
        ):
            yield called


@pytest.mark.parametrize("source", [
    "import pickle", "from dill import load", "eval(text)", "os.system('x')", "subprocess.run(['x'])", "torch.load(file)", "torch.load(file, weights_only=False)",
    "np.load(file)", "np.load(file, allow_pickle=True)", "yaml.load(text, Loader)", "yaml.unsafe_load(text)", "torch.jit.load(file)", "torch.hub.load('a', 'b')",
])  # fmt: skip
def test_what_could_run_a_file_is_seen(source):
    assert list(faults(source))


def test_nothing_that_is_read_can_run():
    """But for TorchScript, which is a program and said to be one."""
    found = {str(file.relative_to(ROOT)): list(faults(file.read_text())) for file in SOURCES}
    assert len(found) > 100
    assert {name: what for name, what in found.items() if what} == {"evaluate/features.py": ["torch.jit.load"]}
