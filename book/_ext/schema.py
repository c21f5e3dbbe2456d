"""`{manifest-fields}`: every field of `manifest.json` in one table, from its JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from editlib.runs.manifest import json_schema

Schema = dict[str, Any]


def fields(named: Schema, group: str = "Record", place: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, type and meaning of each field of a group, groups before their fields; `named` has all groups."""
    for name, told in named[group]["properties"].items():
        inner = told["$ref"].rpartition("/")[2] if "$ref" in told else ""
        about = named[inner] if inner else told
        yield f"{place}{name}", spoken(about), about.get("description", "")
        if inner:
            yield from fields(named, inner, f"{place}{name}.")


def spoken(schema: Schema) -> str:
    """The type of a field in a few words."""
    if "anyOf" in schema:
        return " or ".join(spoken(option) for option in schema["anyOf"])
    if schema["type"] == "array":
        return f"list of {spoken(schema['items'])}"
    if schema["type"] == "object":
        values = schema["additionalProperties"]
        return f"by name: {spoken(values)}" if isinstance(values, dict) else "group"
    return SHAPES.get(schema.get("pattern", "")) or str(schema["type"])


SHAPES = {
    "^[0-9a-f]{12}$": "12 hex digits",
    "^[0-9a-f]{64}$": "sha256",
    r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$": "time",
}


class ManifestFields(SphinxDirective):
    """`{manifest-fields}`."""

    def run(self) -> list[nodes.Node]:
        rows = [f"| `{name}` | {kind} | {about} |" for name, kind, about in fields(json_schema()["$defs"])]
        return self.parse_text_to_nodes("\n".join(["| Field | Type | Meaning |", "|:--|:--|:--|", *rows]))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("manifest-fields", ManifestFields)
    return {"version": "1", "parallel_read_safe": True}
