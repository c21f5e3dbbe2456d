"""What the checkout that the book is built in says of a run: the command that repeats it, and what changed since."""

from __future__ import annotations

import hashlib
import shlex
from functools import cache
from pathlib import Path
from typing import Any

from runs import Run

from editlib.errors import EditlibError
from editlib.runs import analyses


def command(run: Run, root: Path) -> str:
    """The command line that executes a run again; says only the parameters that its profile does not."""
    words = ["editlib", "run", run.analysis, "--profile", run.profile]
    usual = values_of(run.analysis, run.profile, root)
    for name, value in run.parameters.items():
        if name not in usual or usual[name] != value:
            words += ["-p", name, typed(value)]
    return shlex.join(words)


@cache
def values_of(analysis: str, profile: str, root: Path) -> dict[str, Any]:
    """An analysis' parameters under a profile; empty if the checkout has neither, so that all are said."""
    try:
        return analyses.read(analysis, root).resolve(profile, {})
    except EditlibError:
        return {}


def typed(value: object) -> str:
    """A parameter as the command line takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def changed(run: Run, root: Path) -> list[str]:
    """What the run was made with that is otherwise in this checkout: the notebook, the package's code."""
    now = {"the notebook": notebook_hash(run.analysis, root), "the package's code": code_hash()}
    then = {"the notebook": run.manifest["inputs"]["notebook"], "the package's code": run.manifest["inputs"]["code"]}
    return [name for name in now if now[name] != then[name]]


@cache
def notebook_hash(analysis: str, root: Path) -> str:
    path = root / "notebooks" / f"{analysis}.py"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@cache
def code_hash() -> str:
    return analyses.code_hash(analyses.PACKAGE)
