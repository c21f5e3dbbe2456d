"""Analyses (`notebooks/<name>.py`): their titles, typed parameters and profiles.

A notebook's header declares, under `jupyter: editlib:`, its `title`, its `profiles` (parameter values by
profile), and in `models`, `data` and `files` which parameters hold such names (files: `name=path` with commas
between). Its cell tagged `parameters` declares
the rest, one `name: type = default  # help` a line.
"""

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from editlib.errors import EditlibError, hint, unknown
from editlib.runs.citation import Where

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
            known = ", ".join(self.profiles) or "none"
            raise EditlibError(f"profile {profile!r} is unknown; {hint(profile, self.profiles)}{self.name} has {known}")
        given = {**self.profiles[profile], **overrides}
        stray = next((name for name in given if name not in self.parameters), None)
        if stray is not None:
            known = ", ".join(f"{p.name} ({p.type})" for p in self.parameters.values())
            raise EditlibError(f"parameter {stray!r} is unknown; {hint(stray, self.parameters)}{self.name} has {known}")
        return {p.name: p.parse(given.get(p.name, p.default)) for p in self.parameters.values()}


def _none(value: Any) -> None:
    if value is not None and str(value).lower() != "none":
        raise ValueError


def _bool(value: Any) -> bool:
    return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]


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
    with _citation(root) as about:
        told = {key: str(about[key]) for key in ("title", "version", "license")}
        return told | {"authors": [_author(entry) for entry in about["authors"]], "url": str(about.get("url", ""))}


def where(root: Path) -> Where:
    """The site's address (`url`), DOI and SWHID of the project (`doi`, `identifiers`), from its CITATION.cff as it is
    now; nothing is known where there is none."""
    if not (root / "CITATION.cff").is_file():
        return Where()
    with _citation(root) as about:
        known = {entry["type"]: str(entry["value"]) for entry in about.get("identifiers", [])}
        doi = str(about.get("doi", known.get("doi", "")))
        return Where(site=str(about.get("url", "")).rstrip("/"), doi=doi, swhid=known.get("swh", ""))


@contextmanager
def _citation(root: Path) -> Iterator[dict[str, Any]]:
    """What CITATION.cff says; raises `EditlibError` if it, or something of it inside the block, cannot be read."""
    try:
        yield yaml.safe_load((root / "CITATION.cff").read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise EditlibError(f"{root / 'CITATION.cff'} cannot be read ({error!r}); restore it") from error


def _author(entry: Mapping[str, str]) -> str:
    return entry.get("name") or f"{entry['given-names']} {entry['family-names']}"


def names(root: Path) -> list[str]:
    """Names of the project's analyses."""
    return sorted(p.stem for p in root.glob("notebooks/*.py") if re.fullmatch(r"[a-z][a-z0-9-]*", p.stem))


class Header(BaseModel):
    """What a notebook says of itself under `editlib`; a key may stand there with nothing behind it."""

    title: Annotated[str, Field(coerce_numbers_to_str=True)] | None = None
    models: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None
    profiles: dict[str, dict[str, Any] | None] | None = None


def read(name: str, root: Path) -> Analysis:
    """Read one analysis; raises `EditlibError` for an unknown name or a damaged notebook."""
    import jupytext

    if name not in (known := names(root)):
        raise unknown("analysis", name, known)
    path = root / "notebooks" / f"{name}.py"
    try:
        notebook = jupytext.reads(path.read_text("utf-8"), fmt="py")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EditlibError(f"{path} cannot be read ({' '.join(str(error).split())}); correct it") from error
    try:
        header = Header.model_validate(notebook.metadata.get("editlib") or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("editlib", *first["loc"])))
        raise EditlibError(
            f"{path}: {where} in the header is {first['input']!r}: {first['msg']}; correct it"
        ) from error
    source = next((c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])), "")
    parameters = {p.name: p for p in _read_parameters(source, path)}
    named = {"models": header.models or (), "data": header.data or (), "files": header.files or ()}
    if stray := {name for group in named.values() for name in group} - parameters.keys():
        raise EditlibError(f"{path}: the header names parameter {min(stray)!r}, which does not exist; add it")
    profiles = {key: values or {} for key, values in (header.profiles or {}).items()}
    return Analysis(name, path, header.title or name, parameters, profiles, **named, notebook=notebook)


def _read_parameters(source: str, path: Path) -> Iterator[Parameter]:
    lines = source.encode().splitlines()  # the parser counts columns in bytes
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise EditlibError(f"{path}: the parameters cell is no Python ({error.msg}); correct it") from error
    for node in tree.body:
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
        try:
            default = ast.literal_eval(node.value)
        except (ValueError, TypeError) as error:
            text = ast.unparse(node.value)
            raise EditlibError(f"{path}: the default of {node.target.id} is {text}; write a plain value") from error
        yield Parameter(node.target.id, types, default, comment)
