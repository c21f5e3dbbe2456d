"""Analyses (`notebooks/<name>.py`): their typed parameters and profiles, and what a run of one depends on.

A notebook's header declares, under `jupyter: editlib:`, its `title`, its `profiles` (parameter values by
profile), and in `models`, `data` and `files` which parameters hold such names (files: `name=path` with commas
between). Its cell tagged `parameters` declares
the rest, one `name: type = default  # help` a line.
"""

import ast
import hashlib
import importlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from editlib.errors import EditlibError, unknown
from editlib.machine import without_paths

SCHEMA = 2  # of spec and manifest
PACKAGE = Path(__file__).parents[1]
SOURCES = (".py", ".json", ".jsonl", ".yaml")  # code and the data that is written by hand or generated with it
# What executes, lists and cites runs, but computes nothing in them: no number depends on it.
OUTSIDE = re.compile(r"(cli(_\w+)?|analyses|runs|manifest|citation|crate|compare|machine|download|__init__)\.py")
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Parameter:
    """One line `name: type = default  # help` of a notebook's parameters cell."""

    name: str
    types: tuple[str, ...]
    default: Value
    help: str

    @property
    def type(self) -> str:
        """The annotation as written."""
        return " | ".join(self.types)

    def parse(self, value: object) -> Value:
        """A value, or its text from the command line, in the annotated type; raises `EditlibError`."""
        for kind in (kind for kind in CONVERTERS if kind in self.types):
            with suppress(ValueError, TypeError, KeyError):
                return CONVERTERS[kind](value)
        raise EditlibError(f"parameter {self.name}={value!r} is no {self.type}; for example {self.default!r}")


@dataclass(frozen=True)
class Analysis:
    """A notebook with what its header declares; `models`, `data` and `files` name parameters."""

    name: str
    path: Path
    title: str
    parameters: Mapping[str, Parameter]
    profiles: Mapping[str, Mapping[str, Any]]
    models: tuple[str, ...]
    data: tuple[str, ...]
    files: tuple[str, ...]
    notebook: Any

    def resolve(self, profile: str, overrides: Mapping[str, object]) -> dict[str, Value]:
        """Every parameter: default, then profile, then override; raises `EditlibError` for an unknown one."""
        if profile not in self.profiles:
            raise EditlibError(f"profile {profile!r} is unknown; {self.name} has {', '.join(self.profiles) or 'none'}")
        given = {**self.profiles[profile], **overrides}
        stray = next((name for name in given if name not in self.parameters), None)
        if stray is not None:
            known = ", ".join(f"{p.name} ({p.type})" for p in self.parameters.values())
            raise EditlibError(f"parameter {stray!r} is unknown; {self.name} has {known}")
        return {p.name: p.parse(given.get(p.name, p.default)) for p in self.parameters.values()}


def _none(value: Any) -> None:
    if value is not None and value.lower() != "none":
        raise ValueError


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else {"true": True, "false": False}[value.lower()]


def _int(value: Any) -> int:
    if isinstance(value, bool | float):
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


CONVERTERS: dict[str, Callable[[Any], Value]] = {  # in the order they are tried: any text suits str
    "None": _none,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
}


def find_root(start: Path | None = None) -> Path:
    """The project that `start` (default: the working directory) is in; raises `EditlibError` outside one."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "_config.yml").is_file():
            return folder
    raise EditlibError(f"{here} is in no project; run this inside a clone of the project, or give --root")


def project(root: Path) -> dict[str, Any]:
    """Title, version, authors, licence and address of the project, from its CITATION.cff."""
    try:
        about = yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
        told = {key: str(about[key]) for key in ("title", "version", "license")}
        return told | {"authors": [_author(entry) for entry in about["authors"]], "url": str(about.get("url", ""))}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise EditlibError(f"{root / 'CITATION.cff'} cannot be read ({error!r}); restore it") from error


def _author(entry: Mapping[str, str]) -> str:
    return entry.get("name") or f"{entry['given-names']} {entry['family-names']}"


def names(root: Path) -> list[str]:
    """Names of the project's analyses."""
    return sorted(p.stem for p in root.glob("notebooks/*.py") if re.fullmatch(r"[a-z][a-z0-9-]*", p.stem))


def read(name: str, root: Path) -> Analysis:
    """Read one analysis; raises `EditlibError` for an unknown name or a damaged notebook."""
    import jupytext

    if name not in (known := names(root)):
        raise unknown("analysis", name, known)
    path = root / "notebooks" / f"{name}.py"
    notebook = jupytext.read(path)
    header = notebook.metadata.get("editlib", {})
    source = next((c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])), "")
    parameters = {p.name: p for p in _read_parameters(source, path)}
    named = {key: tuple(header.get(key, ())) for key in ("models", "data", "files")}
    if stray := {name for group in named.values() for name in group} - parameters.keys():
        raise EditlibError(f"{path}: the header names parameter {min(stray)!r}, which does not exist; add it")
    title, profiles = header.get("title", name), header.get("profiles", {})
    return Analysis(name, path, title, parameters, profiles, **named, notebook=notebook)


def _read_parameters(source: str, path: Path) -> Iterator[Parameter]:
    lines = source.encode().splitlines()  # the parser counts columns in bytes
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value):
            raise EditlibError(
                f"{path}: write each parameter as `name: type = value  # help`, not {ast.unparse(node)!r}"
            )
        types = tuple(ast.unparse(node.annotation).split(" | "))
        if unknown := set(types) - CONVERTERS.keys():
            raise EditlibError(
                f"{path}: parameter {node.target.id} has type {min(unknown)}; use {', '.join(CONVERTERS)}"
            )
        comment = lines[(node.end_lineno or 1) - 1][node.end_col_offset :].decode().strip(" #")
        yield Parameter(node.target.id, types, ast.literal_eval(node.value), comment)


@dataclass(frozen=True)
class Plan:
    """What one run is asked to do; `parameters` may hold local paths, `shown` and `inputs` their names in `called`."""

    analysis: Analysis
    profile: str
    parameters: Mapping[str, Value]
    shown: Mapping[str, Value]
    called: Mapping[str, str]
    inputs: Mapping[str, Any]
    spec: str


def plan(name: str, *, root: Path, profile: str = "quick", parameters: Mapping[str, object] | None = None) -> Plan:
    """Resolve and hash all a run depends on; raises `EditlibError` for what is unknown or of a wrong type."""
    chosen = read(name, root)
    resolved = chosen.resolve(profile, parameters or {})
    values = {key: _absolute(key, value, chosen) for key, value in resolved.items()}
    inputs = {
        "notebook": hashlib.sha256(chosen.path.read_bytes()).hexdigest(),
        "code": code_hash(PACKAGE),
        "models": _fingerprints("models.folders", chosen.models, values),
        "data": _fingerprints("data.datasets", chosen.data, values),
        "files": _file_hashes(values[name] for name in chosen.files),
    }
    named = [str(values[name]) for name in (*chosen.models, *chosen.data) if values[name]]
    named += [path for name in chosen.files for _, path in _listed(values[name])]
    called = _names_of_paths([Path(path) for path in named if Path(path).is_absolute()], root)
    shown, inputs = without_paths((values, inputs), folders=[root], called=called)
    spec = short_hash({"schema": SCHEMA, "analysis": name, "parameters": shown, **inputs})
    return Plan(chosen, profile, values, shown, called, inputs, spec)


def _absolute(name: str, value: Value, chosen: Analysis) -> Value:
    """Paths of a model, of data or of files, valid from the run's folder too; other values as they are."""
    if name in chosen.files:
        return ",".join(f"{task}={Path(path).resolve()}" for task, path in _listed(value))
    named = name in chosen.models + chosen.data and isinstance(value, str) and not value.startswith("testbed")
    return str(Path(value).resolve()) if named and value and Path(str(value)).exists() else value  # type: ignore[arg-type]


def _names_of_paths(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Short names, all different, for paths outside the project: nobody else has them, and they may name people."""
    called: dict[str, str] = {}
    for path in dict.fromkeys(path for path in paths if not path.is_relative_to(root)):
        tails = ("/".join(path.parts[-n:]) for n in range(1, len(path.parts)))
        called[str(path)] = next(tail for tail in tails if tail not in called.values())
    return called


def _fingerprints(module: str, names: Iterable[str], values: Mapping[str, Value]) -> dict[str, str]:
    used = [str(values[name]) for name in names if values[name]]
    source = importlib.import_module(f"editlib.{module}") if used else None
    return {value: source.fingerprint(value) for value in used} if source else {}


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


def code_hash(package: Path) -> str:
    """sha256 over what the package computes with (sources, presets, prefix contexts, tasks), by relative path."""
    digest = hashlib.sha256()
    used = (
        p
        for p in package.rglob("*")
        if p.suffix in SOURCES and not OUTSIDE.fullmatch(p.relative_to(package).as_posix())
    )
    for path in sorted(used):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def short_hash(value: Any) -> str:
    """First 12 hex digits of the sha256 of canonical JSON: sorted keys, no spaces, UTF-8, no nan."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
