"""What the checkout that the book is built in says of a run: the command that repeats it, and what changed since; and
what its history says of a file."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from editlib.errors import EditlibError
from editlib.runs import analyses
from editlib.runs.manifest import Manifest
from editlib.runs.reach import code_hash


def command(run: Manifest, root: Path) -> str:
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


def changed(run: Manifest, root: Path) -> list[str]:
    """What the run was made with that is otherwise in this checkout: the notebook, the code it computes with."""
    return [f"the {name}" for name, now in hashes(run.analysis, root).items() if now != getattr(run.inputs, name)]


@cache
def hashes(analysis: str, root: Path) -> dict[str, str]:
    """sha256 of an analysis' notebook and of the package's code that it uses; empty texts where there is none."""
    path = root / "notebooks" / f"{analysis}.py"
    if not path.is_file():
        return {"notebook": "", "code": ""}
    source = path.read_bytes()
    return {"notebook": hashlib.sha256(source).hexdigest(), "code": code_hash(source.decode("utf-8"))}


# -- its history ---------------------------------------------------------------------------------------


def git(root: Path, *words: str) -> str | None:
    """What git prints, without the line's end; None where it fails, or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, encoding="utf-8")
    except OSError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


@cache
def file_at(commit: str, path: str, root: Path) -> str | None:
    """A file as it was at a commit, empty if it was not there; None if the history does not reach so far."""
    if not re.fullmatch("[0-9a-f]{7,64}", commit) or git(root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        return None
    return git(root, "show", f"{commit}:{path}") or ""


def changes(path: str, root: Path) -> list[tuple[str, str]]:
    """The commits that changed a file, the last one first, each with its date; none if the history does not tell."""
    whole = git(root, "rev-parse", "--is-shallow-repository") == "false"
    told = (git(root, "log", "--format=%h %cs", "--", path) or "") if whole else ""
    return [(commit, day) for commit, day in (line.split() for line in told.splitlines())]
