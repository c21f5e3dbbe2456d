"""A run folder as a Process Run Crate 0.5 (https://w3id.org/ro/wfrun/process/0.5), readable without this project."""

import hashlib
import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rocrate.model import ContextEntity, File, SoftwareApplication
from rocrate.rocrate import ROCrate

NAME = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
VERSION = "1.1"  # of RO-Crate, which the profile builds on
SHA256 = {"sha256": "https://schema.org/sha256"}  # a term that RO-Crate 1.1 lacks
TYPES = {  # that not every machine knows
    ".bib": "application/x-bibtex",
    ".ipynb": "application/x-ipynb+json",
    ".parquet": "application/vnd.apache.parquet",
}
UNHASHED = ("manifest.json", "citation.bib")  # they name the run, whose id rests on this file


def add(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Describe a run's folder in a file of its own; returns the record with that file among the outputs."""
    others = {name: digest for name, digest in record["outputs"].items() if name != NAME}
    described = describe({**record, "outputs": others})
    text = json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / NAME).write_bytes(text.encode())
    return {**record, "outputs": others | {NAME: hashlib.sha256(text.encode()).hexdigest()}}


def describe(record: Mapping[str, Any]) -> dict[str, Any]:
    """The crate's JSON-LD, from a manifest that has no run id yet."""
    project = record["project"]
    crate = ROCrate(version=VERSION)
    crate.metadata.extra_contexts.append(SHA256)
    crate.name = f"{record['title']} ({record['profile']})"
    crate.description = f"One execution of the analysis {record['analysis']!r} of: {project['title']}"
    crate.datePublished = _offset(record["finished"])
    licence = project["license"]
    crate.license = crate.add(_entity(crate, f"https://spdx.org/licenses/{licence}", "CreativeWork", name=licence))
    names = ", ".join(record.get("authors") or project["authors"])
    people = crate.add(_entity(crate, "#authors", "Organization", name=names, **_address(project)))
    crate.root_dataset["author"] = crate.root_dataset["publisher"] = people
    about = {"name": "Process Run Crate", "version": PROFILE.rsplit("/", 1)[1]}
    crate.root_dataset["conformsTo"] = crate.add(_entity(crate, PROFILE, "CreativeWork", **about))
    results = [crate.add(_file(crate, path, digest)) for path, digest in sorted(record["outputs"].items())]
    for path in UNHASHED:
        crate.add(_file(crate, path))
    crate.root_dataset["mentions"] = crate.add_action(
        _software(crate, record),
        identifier="#execution",
        object=[*_parameters(crate, record), *_inputs(crate, record)],
        result=results,
        properties={
            "@type": "CreateAction",
            "name": f"Execution of {record['analysis']}, spec {record['spec']}",
            "description": f"{record['seconds']} s on {record['hardware']['cpu']}",
            "startTime": _offset(record["started"]),
            "endTime": _offset(record["finished"]),
            "actionStatus": "http://schema.org/CompletedActionStatus",
            "agent": {"@id": "#authors"},
        },
    )
    return dict(crate.metadata.generate())


def _entity(crate: ROCrate, identifier: str, kind: str, /, **properties: Any) -> ContextEntity:
    return ContextEntity(crate, identifier, properties={"@type": kind, "name": identifier} | properties)


def _file(crate: ROCrate, path: str, digest: str | None = None) -> File:
    suffix = path[path.rfind(".") :]
    kind = TYPES.get(suffix) or mimetypes.guess_type(path)[0] or "application/octet-stream"
    known = {"sha256": digest} if digest else {}
    return File(crate, None, path, properties={"name": path, "encodingFormat": kind} | known)


def _software(crate: ROCrate, record: Mapping[str, Any]) -> SoftwareApplication:
    project, commit = record["project"], record["git"]["commit"]
    about = {"name": "editlib", "softwareVersion": project["version"], "sha256": record["inputs"]["code"]}
    about |= _address(project) | ({"identifier": f"swh:1:rev:{commit}"} if commit else {})
    tool: SoftwareApplication = crate.add(SoftwareApplication(crate, project["url"] or "#editlib", properties=about))
    return tool


def _address(project: Mapping[str, Any]) -> dict[str, str]:
    return {"url": project["url"]} if project["url"] else {}


def _parameters(crate: ROCrate, record: Mapping[str, Any]) -> list[ContextEntity]:
    return [
        crate.add(_entity(crate, f"#parameter-{name}", "PropertyValue", name=name, value=str(value)))
        for name, value in record["parameters"].items()
    ]


def _inputs(crate: ROCrate, record: Mapping[str, Any]) -> list[ContextEntity]:
    """Models and data with their hash or commit; they lie outside the folder."""
    inputs = [(kind, *item) for kind in ("models", "data", "files") for item in record["inputs"][kind].items()]
    return [
        crate.add(_entity(crate, f"#{kind}-{number}", "CreativeWork", name=name, identifier=digest))
        for number, (kind, name, digest) in enumerate(inputs)
    ]


def _offset(time: str) -> str:
    """UTC as an offset, the only form that the profile's checker takes."""
    return time.removesuffix("Z") + "+00:00"
