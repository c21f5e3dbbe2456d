"""`manifest.json` of a run: what it says, its JSON Schema, and whether the folder still is as it says.

`spec` hashes what was asked (analysis, parameters, notebook, code, models, data); `run` hashes the whole manifest,
outputs' hashes included, so a run's id vouches for every file of its folder.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from editlib.errors import EditlibError
from editlib.runs.analyses import Value
from editlib.runs.citation import bibtex

SCHEMA = 3  # of new manifests and of specs; manifests of schema 2 are read, listed, cited and verified too
NAME, CITATION = "manifest.json", "citation.bib"
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]  # the beginning of a sha256
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class InputsOfTwo:
    """What a run of schema 2 depends on beside its parameters, as sha256."""

    __pydantic_config__ = Strict
    notebook: Annotated[Sha256, Field(description="Of the notebook's source.")]
    code: Annotated[Sha256, Field(description="Of the package's modules and data that the notebook computes with.")]
    models: Annotated[Mapping[str, str], Field(description="By name or path; sha256 of a folder's files, or commit.")]
    data: Annotated[Mapping[str, Sha256], Field(description="By name or path.")]
    files: Annotated[Mapping[str, Sha256], Field(description="Local questions of downstream tasks, by name.")]


@dataclass(frozen=True, kw_only=True)
class Inputs(InputsOfTwo):
    """What the run depends on beside its parameters, as sha256."""

    presets: Annotated[
        Sha256 | None, Field(description="Of the presets for models of these types; null if none are read.")
    ]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The software the run was executed with."""

    __pydantic_config__ = Strict
    python: Annotated[str, Field(description="Version.")]
    platform: Annotated[str, Field(description="System and processor family.")]
    packages: Annotated[Mapping[str, str], Field(description="Version by name, of every installed package.")]
    lock: Annotated[Sha256 | None, Field(description="Of constraints.txt.")]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine the run was executed on."""

    __pydantic_config__ = Strict
    cpu: Annotated[str, Field(description="Name of the processor.")]
    cores: Annotated[int, Field(description="Logical ones.")]
    threads: Annotated[int | None, Field(description="OMP_NUM_THREADS; null for as many as cores.")]
    memory_gib: Annotated[float, Field(description="Main memory, in GiB.")]
    gpus: Annotated[Sequence[str], Field(description="Name and driver of each, where models were on one.")]


@dataclass(frozen=True, kw_only=True)
class Git:
    """The checkout the run was executed in; null where git does not know."""

    __pydantic_config__ = Strict
    commit: Annotated[str | None, Field(description="Of HEAD when the run started.")]
    dirty: Annotated[bool | None, Field(description="Whether files outside book/runs differed from the commit.")]


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a citation of the run names, from CITATION.cff."""

    __pydantic_config__ = Strict
    title: Annotated[str, Field(description="Of the project.")]
    version: Annotated[str, Field(description="Of the project.")]
    authors: Annotated[Sequence[str], Field(description="Names, in their order.")]
    license: Annotated[str, Field(description="SPDX identifier.")]
    url: Annotated[str, Field(description="Address of the project; empty if unknown.")]


@dataclass(frozen=True, kw_only=True)
class RecordOfTwo:
    """One execution of an analysis, in the form of schema 2."""

    __pydantic_config__ = Strict
    schema: Annotated[Literal[2], Field(description="Version of this form.")]
    analysis: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", description="Name of the notebook.")]
    title: Annotated[str, Field(description="Of the analysis.")]
    profile: Annotated[str, Field(description="Set of parameter values that was asked for, before single ones.")]
    parameters: Annotated[Mapping[str, Value], Field(description="Every parameter, defaults included.")]
    spec: Annotated[Id, Field(description="Hash of what was asked.")]
    run: Annotated[Id, Field(description="Hash of this file but for this entry.")]
    inputs: InputsOfTwo
    environment: Environment
    hardware: Hardware
    git: Git
    project: Project
    started: Annotated[Time, Field(description="UTC.")]
    finished: Annotated[Time, Field(description="UTC.")]
    seconds: Annotated[float, Field(description="Duration of the notebook.")]
    cells: Annotated[Sequence[float], Field(description="Seconds of each code cell.")]
    outputs: Annotated[Mapping[str, Sha256], Field(description="By path, of every file but this and citation.bib.")]
    metrics: Annotated[
        Mapping[str, bool | int | float | str], Field(description='Headline numbers; "inf", "-inf" and "nan" are text.')
    ]


@dataclass(frozen=True, kw_only=True)
class Record(RecordOfTwo):
    """One execution of an analysis."""

    schema: Annotated[Literal[3], Field(description="Version of this form.")]  # type: ignore[assignment]
    inputs: Inputs
    hparams: Annotated[
        Mapping[str, Mapping[str, Mapping[str, Any]]],
        Field(description="Hyper-parameters that edits were made with, resolved: by model, then by method."),
    ]
    moments: Annotated[
        Mapping[str, Mapping[str, int | float | str]],
        Field(
            description="By model: how second moments of keys were read (tokens, window, first_position, source, "
            "tokens_per_dimension)."
        ),
    ]
    sources: Annotated[
        Mapping[str, str], Field(description="Where a model's folder is from, by its name, as told when publishing.")
    ]
    authors: Annotated[
        Sequence[str], Field(description="Who executed it, as told when publishing; empty for the project's authors.")
    ]


ADDED = tuple(Record.__dataclass_fields__.keys() - RecordOfTwo.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class Manifest(RecordOfTwo):
    """A record and the folder it lies in; what schema 2 lacks is empty."""

    schema: Literal[2, 3]  # type: ignore[assignment]
    hparams: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, int | float | str]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    authors: Sequence[str] = ()
    folder: Path

    @property
    def published(self) -> bool:
        """Whether the run has its final name."""
        return not self.folder.name.startswith("local-")

    @property
    def record(self) -> dict[str, Any]:
        """The content of `manifest.json`."""
        absent = {"folder", *(ADDED if self.schema == 2 else ())}
        return {key: value for key, value in asdict(self).items() if key not in absent}

    @property
    def digest(self) -> str:
        """The sha256 that the run's id is the beginning of."""
        return full_hash({key: value for key, value in self.record.items() if key != "run"})

    def difference(self) -> str | None:
        """The first file that is not as the run's id says, or None; the manifest itself is checked first."""
        if run_id(self.record) != self.run or self.folder.name.removeprefix("local-") != self.run:
            return NAME
        if _read(self.folder / NAME) != as_text(self.record):
            return NAME
        if _read(self.folder / CITATION) != bibtex(self):
            return CITATION
        if (link := symbolic_link(self.folder)) is not None:
            return link
        hashes = hash_files(self.folder)
        return next((f for f in sorted({*hashes, *self.outputs}) if hashes.get(f) != self.outputs.get(f)), None)


def run_id(record: Mapping[str, Any]) -> str:
    """The id of a manifest, from everything in it but the id."""
    return short_hash({key: value for key, value in record.items() if key != "run"})


def short_hash(value: Any) -> str:
    """First 12 hex digits of `full_hash`."""
    return full_hash(value)[:12]


def full_hash(value: Any) -> str:
    """sha256 of canonical JSON: sorted keys, no spaces, UTF-8, no nan."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def as_text(record: Mapping[str, Any]) -> str:
    """The text of `manifest.json`."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a run but manifest and citation, by relative path."""
    named = {folder / NAME, folder / CITATION}  # these hold the id, which rests on the others
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in named)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def symbolic_link(folder: Path) -> str | None:
    """A file or folder of a run that stands for one elsewhere, which no hash of the run can vouch for, or None."""
    links = (path for path in folder.rglob("*") if path.is_symlink())
    return min((path.relative_to(folder).as_posix() for path in links), default=None)


def write(record: Mapping[str, Any], folder: Path) -> Manifest:
    """Write `manifest.json` and `citation.bib` of a finished run, whose id is made here."""
    named = {**record, "run": run_id(record)}
    (folder / NAME).write_text(as_text(named), "utf-8")
    manifest = read_manifest(folder)
    (folder / CITATION).write_text(bibtex(manifest), "utf-8")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a run folder; raises `EditlibError` if it cannot be read or is not of the schema."""
    try:
        record = json.loads((folder / NAME).read_text("utf-8"))
        checked = _form().validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "schema"  # it begins with the schema it was read as
        reason = f"{folder} has no valid manifest ({where}: {first['msg']}); restore it or execute the analysis again"
        raise EditlibError(reason) from error
    except (OSError, ValueError) as error:
        raise EditlibError(f"{folder} has no readable manifest ({error}); restore or remove it") from error
    return Manifest(**{name: getattr(checked, name) for name in type(checked).__dataclass_fields__}, folder=folder)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `manifest.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_form().json_schema()}


@cache
def _form() -> TypeAdapter[Record | RecordOfTwo]:
    return TypeAdapter(Annotated[Record | RecordOfTwo, Field(discriminator="schema")])


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")  # not read_text, which hides a changed line ending
    except (OSError, UnicodeDecodeError):
        return None
