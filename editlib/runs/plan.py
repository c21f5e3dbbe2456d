"""What one run is asked to do, and the hash of all it depends on: its spec."""

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from editlib.errors import EditlibError
from editlib.machine import without_paths
from editlib.runs.analyses import Analysis, Value, read
from editlib.runs.manifest import SCHEMA, short_hash
from editlib.runs.reach import PACKAGE, PRESETS, code_hash, files_of


@dataclass(frozen=True)
class RunPlan:
    """What one run is asked to do; `parameters` may hold local paths, `shown` and `inputs` their names in `called`."""

    analysis: Analysis
    profile: str
    parameters: Mapping[str, Value]
    shown: Mapping[str, Value]
    called: Mapping[str, str]
    inputs: Mapping[str, Any]
    spec: str


def plan(name: str, *, root: Path, profile: str = "quick", parameters: Mapping[str, object] | None = None) -> RunPlan:
    """Resolve and hash all a run depends on; raises `EditlibError` for what is unknown or of a wrong type."""
    chosen = read(name, root)
    resolved = chosen.resolve(profile, _own(chosen, profile, parameters or {}) | dict(parameters or {}))
    if {"tasks", "files", "limit"} & (parameters or {}).keys():  # told now: models do them last
        _check_tasks(resolved)
    values = {key: _absolute(key, value, chosen) for key, value in resolved.items()}
    source = chosen.path.read_bytes()
    models = _fingerprints("models.names", chosen.models, values)
    try:
        inputs = {
            "notebook": hashlib.sha256(source).hexdigest(),
            "code": code_hash(source.decode("utf-8"), PACKAGE),
            "presets": _preset_hash(source.decode("utf-8"), models),
            "models": models,
            "data": _fingerprints("data.datasets", chosen.data, values),
            "files": _file_hashes(values[name] for name in chosen.files),
        }
    except SyntaxError as error:
        raise EditlibError(f"{chosen.path}, line {error.lineno}: {error.msg}; correct it") from error
    named = [str(values[name]) for name in (*chosen.models, *chosen.data) if values[name]]
    named += [path for name in chosen.files for _, path in _listed(values[name])]
    called = _names_of_paths([Path(path) for path in named if Path(path).is_absolute()], root)
    shown, inputs = without_paths((values, inputs), folders=[root], called=called)
    spec = short_hash({"schema": SCHEMA, "analysis": name, "parameters": shown, **inputs})
    return RunPlan(chosen, profile, values, shown, called, inputs, spec)


def _own(chosen: Analysis, profile: str, given: Mapping[str, object]) -> dict[str, object]:
    """What another model than the testbed's has in place of what is the testbed's and not given: a notebook's defaults
    and profiles are written for its first model."""
    model = given.get("model")
    if "model" not in chosen.models or not isinstance(model, str):
        return {}
    own = importlib.import_module("editlib.data.sources").own
    usual = chosen.resolve(profile, {})
    return {name: own(model, text) for name, text in usual.items() if name not in given and isinstance(text, str)}


def _check_tasks(resolved: Mapping[str, Value]) -> None:
    """Raise `EditlibError` for tasks that could not be done with any model."""
    tasks = [task for task in str(resolved.get("tasks") or "").split(",") if task]
    if tasks:
        check = importlib.import_module("editlib.measuring.tasks").check_tasks
        check(tasks, limit=resolved.get("limit"), files=dict(_listed(resolved.get("files"))))


def _absolute(name: str, value: Value, chosen: Analysis) -> Value:
    """Paths of a model, of data or of files, valid from the run's folder too; other values as they are."""
    if name in chosen.files:
        return ",".join(f"{task}={Path(path).resolve()}" for task, path in _listed(value))
    if not (value and isinstance(value, str)) or name not in chosen.models + chosen.data:
        return value
    if name in chosen.models:
        packaged = {folder.name for folder in (PACKAGE / "models/packaged").iterdir()}
        known = value in packaged or (PACKAGE / value / "model.safetensors").is_file()
    else:
        sources = importlib.import_module("editlib.data.sources")
        known = value in (*sources.SOURCES, *sources.SHIPPED)
    return value if known or not Path(value).exists() else str(Path(value).resolve())


def _names_of_paths(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Short names, all different, for paths outside the project: nobody else has them, and they may name people."""
    called: dict[str, str] = {}
    for path in dict.fromkeys(path for path in paths if not path.is_relative_to(root)):
        tails = ("/".join(path.parts[-n:]) for n in range(1, len(path.parts)))
        numbered = (f"{path.name}-{n}" for n in count(2))
        called[str(path)] = next(tail for tail in chain(tails, numbered) if tail not in called.values())
    return called


def _fingerprints(module: str, names: Iterable[str], values: Mapping[str, Value]) -> dict[str, str]:
    used = [str(values[name]) for name in names if values[name]]
    source = importlib.import_module(f"editlib.{module}") if used else None
    return {value: source.fingerprint(value) for value in used} if source else {}


def _preset_hash(notebook: str, models: Iterable[str]) -> str | None:
    """sha256 of the presets for models of these types, of all where a type is not known; None if none are read."""
    path = next((path for path in files_of(notebook, PACKAGE) if path.name == PRESETS), None)
    if path is None:
        return None
    presets = json.loads(path.read_text("utf-8"))
    folders = map(importlib.import_module("editlib.models.names").locate, models)
    types = {json.loads((f / "config.json").read_text("utf-8")).get("model_type") if f else None for f in folders}
    fitting = {name: told for name, told in presets.items() if None in types or told["shape"][0] in types}
    return hashlib.sha256(json.dumps(fitting, sort_keys=True).encode()).hexdigest()


def _listed(value: Value) -> list[tuple[str, str]]:
    """`name=path,name=path` in pairs; raises `EditlibError` for an entry without `=`."""
    entries = [entry for entry in str(value or "").split(",") if entry]
    wrong = next((entry for entry in entries if "=" not in entry), None)
    if wrong is not None:
        raise EditlibError(f"file {wrong!r} has no name; write name=path, with commas between several")
    return [tuple(entry.split("=", 1)) for entry in entries]  # type: ignore[misc]


def _file_hashes(values: Iterable[Value]) -> dict[str, str]:
    try:
        return {n: hashlib.sha256(Path(p).read_bytes()).hexdigest() for value in values for n, p in _listed(value)}
    except OSError as error:
        raise EditlibError(f"file {error.filename} cannot be read ({error.strerror}); correct its path") from error
