"""The house rule: data, gan and evaluate never import one another; only the entry points compose them."""

import ast
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from data.command import program, time_left

PACKAGES = {"data", "gan", "evaluate"}


def is_entry_point(file: Path) -> bool:
    return file.name == "__main__.py" or file.parent.name == "commands"


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_do_not_import_one_another(package):
    files = [f for f in (ROOT / package).rglob("*.py") if not is_entry_point(f)]
    assert files
    for file in files:
        crossed = imported(file) & (PACKAGES - {package} | {"train", "sample"})
        assert not crossed, f"{file} imports {crossed}"


def test_nothing_but_entry_points_imports_a_command():
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py") if not is_entry_point(f)]
    assert not [f for f in files if re.search(r"^\s*(from|import) \w+\.commands\b", f.read_text(), re.MULTILINE)]


def test_only_the_tracker_imports_wandb():
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")] + [ROOT / "train.py", ROOT / "sample.py"]
    assert [f.name for f in files if "wandb" in imported(f)] == ["tracker.py"]


@pytest.mark.parametrize("command", [["-m", "data"], ["train.py"], ["sample.py"], ["-m", "evaluate"], ["-m", "gan"]])
def test_help_teaches_without_loading_torch(command):
    code = f"import sys, runpy; sys.argv = ['x', '--help']\ntry:\n runpy.{'run_module' if command[0] == '-m' else 'run_path'}({command[-1]!r}, run_name='__main__')\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
    assert "Exit codes" in done.stdout
    # an option whose text starts with its type has no text
    assert not re.findall(r"^  --\S+(?: \S+)?\s+\(type: ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "--training.steps", "many"), "--training.steps many: want a whole number"),
        (("train", "--preset", "papr"), "--preset papr: want default or paper"),
        (("train", "--training.step", "3"), "unrecognized arguments: --training.step 3"),  # nor is it taken for --training.steps
        (("train", "--training.betas", "3"), "--training.betas 3: want a list in brackets"),
        (("sample", "--run", "run", "--trunc", "much"), "--trunc much: want a number"),
        (("data", "prepare", "x", "--lesion", "y"), "unrecognized arguments: --lesion y"),
        (("data", "prepare"), "the following arguments are required: "),
        (("data",), "no command given"),
    ],
)
def test_what_an_option_wants_is_told_without_the_types_of_python(command, arguments, told):
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {told}")
    assert done.err.endswith("; --help lists what there is\n")
    assert "class" not in done.err


def test_what_to_run_next_is_what_can_be_run_here(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert program("train") == "python train.py"
    monkeypatch.chdir(tmp_path)
    assert program("train") == "python -m train"


def test_the_time_left_is_what_the_rest_takes_at_the_pace_so_far(capsys):
    tell = time_left()
    for done, seconds in ((0.01, 1), (0.25, 10), (0.5, 20), (0.6, 41), (1, 100)):
        tell(done, seconds)
    assert capsys.readouterr().err == "25% done, 0 min 30 s left\n60% done, 0 min 27 s left\n"


def started(module: str, folder: Path, *first: Path) -> subprocess.CompletedProcess:
    """`python -m MODULE --help` in a folder, as from an installation that Python finds after `first`."""
    path = os.pathsep.join(map(str, [*first, ROOT]))
    return subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.mark.parametrize(("module", "name"), [("train", "evaluate"), ("train", "gan"), ("gan", "evaluate"), ("evaluate", "data")])
@pytest.mark.parametrize("place", ["here", "installed"])
def test_another_package_of_our_name_is_told_in_one_line(tmp_path, module, name, place):
    """In the current folder, or installed where Python looks first, as Hugging Face's evaluate would be."""
    (tmp_path / "here").mkdir()
    theirs = tmp_path / place / name / "__init__.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("raise SystemExit('code of another package was run')\n")
    done = started(module, tmp_path / "here", *[tmp_path / "installed"] * (place == "installed"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: Python finds another `{name}`, {theirs.resolve()}, where lesiongan's, in {ROOT}, is wanted; ")


def test_a_file_of_our_name_is_told_and_python_can_be_told_not_to_look_here(tmp_path):
    (tmp_path / "data.py").write_text("raise SystemExit('code of another program was run')\n")
    done = started("train", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another `data`" in done.stderr
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-P", "-m", "train", "--help"], cwd=tmp_path, env=path, capture_output=True).returncode == 0


@pytest.mark.parametrize("module", ["data", "evaluate"])
def test_folders_of_files_that_have_our_names_do_no_harm(tmp_path, module):
    """A hospital's scans lie in a folder called data more often than not."""
    for name in ("data", "gan", "evaluate", "train", "sample"):
        (tmp_path / name / "scans").mkdir(parents=True)
        (tmp_path / name / "scans" / "1.dcm").touch()
    done = started(module, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("last", ["ours", "theirs"])
def test_an_installation_over_ours_is_told(tmp_path, last):
    """pip writes one package's files over another's without a word; whose `__init__.py` is there was installed last."""
    shutil.copy(ROOT / "lesiongan.py", tmp_path)
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", tmp_path / name)
    theirs = b"__version__ = '0.4.6'\n"
    if last == "theirs":
        (tmp_path / "evaluate" / "__init__.py").write_bytes(theirs)
    listed, digest = tmp_path / "evaluate-0.4.6.dist-info", base64.urlsafe_b64encode(hashlib.sha256(theirs).digest()).decode().rstrip("=")
    listed.mkdir()
    (listed / "METADATA").write_text("Metadata-Version: 2.1\nName: evaluate\nVersion: 0.4.6\n")
    (listed / "RECORD").write_text(f"evaluate/__init__.py,sha256={digest},{len(theirs)}\n")
    done = subprocess.run([sys.executable, "-c", "import lesiongan"], cwd=tmp_path, capture_output=True, text=True)
    if last == "ours":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: evaluate 0.4.6 has overwritten lesiongan's `evaluate` in {tmp_path.resolve()}; ")
