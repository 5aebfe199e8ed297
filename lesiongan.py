"""Ends with one line where `data`, `gan` or `evaluate` is somebody else's package, or what they need is not installed.

The names are common: Hugging Face has an `evaluate`, many a project a `data`, and `python -m` looks into the current folder first. What
composes the packages imports this before them: its own name is nobody else's. A folder without `__init__.py`, such as one of scans called
`data`, does no harm. Where Python finds another's package in place of the one that was asked for, nothing of ours runs, and nothing of ours
can tell.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
BAD_INPUT = 2


def clash(name: str) -> str:
    """Why the package of this name is not ours, and what to do, in one line; "" where it is."""
    spec = find_spec(name)
    if spec is not None and spec.origin is None:  # a folder without __init__.py, behind which an editable installation finds ours
        spec = find_spec(f"{name}.__main__")
    found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
    if found is None or found.parent != HERE / name:
        return (
            f"Python finds {f'another `{name}`, {found},' if found else f'no `{name}`'} where lesiongan's, in {HERE}, is wanted; "
            "python -P leaves the current folder out, or give lesiongan an environment of its own (python -m venv)"
        )
    if other := _overwritten_by(name):
        return (
            f"{other} has overwritten lesiongan's `{name}` in {HERE}; give lesiongan an environment of its own (python -m venv), for the "
            "two cannot share one"
        )
    return ""


def _overwritten_by(name: str) -> str:
    """The distribution of that name, with its version, whose `__init__.py` lies where ours was installed."""
    try:
        other = distribution(name)
    except PackageNotFoundError:
        return ""
    ours = HERE / name / "__init__.py"
    digest = base64.urlsafe_b64encode(hashlib.sha256(ours.read_bytes()).digest()).decode().rstrip("=")
    theirs = [file for file in other.files or () if file.as_posix() == f"{name}/__init__.py" and file.hash and file.hash.value == digest]
    return f"{name} {other.version}" if theirs and Path(str(theirs[0].locate())).resolve() == ours else ""


for _name in ("numpy", "yaml", "jsonargparse", "rich", "torch"):
    if find_spec(_name) is None:
        print(
            f"error: this Python ({sys.executable}) has no {_name}; use the environment that lesiongan was installed into, in a checkout "
            "`. .venv/bin/activate`, which `make demo` makes",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
for _name in ("data", "gan", "evaluate"):
    if _why := clash(_name):
        print(f"error: {_why}", file=sys.stderr)
        sys.exit(BAD_INPUT)
