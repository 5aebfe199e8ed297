"""The house rule: data, gan and evaluate never import one another; only the entry points compose them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = {"data", "gan", "evaluate"}
ENTRY_POINTS = {"data/__main__.py", "evaluate/__main__.py", "gan/__main__.py"}


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
    files = [f for f in (ROOT / package).rglob("*.py") if str(f.relative_to(ROOT)) not in ENTRY_POINTS]
    assert files
    for file in files:
        crossed = imported(file) & (PACKAGES - {package} | {"train", "sample"})
        assert not crossed, f"{file} imports {crossed}"


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
