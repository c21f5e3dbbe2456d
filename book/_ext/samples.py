"""`{run-samples} smollm2/aftermath`: what a model wrote before and after edits, from the table of texts in that run."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

from docutils import nodes
from runs import quoted_run
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from editlib.runs.manifest import Manifest

LEADING = "edit"  # the first column of such a table


def rows(run: Manifest) -> list[dict[str, str]]:
    """The table's rows by column, as text; none if no cell shows one."""
    notebook = json.loads((run.folder / "index.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            names, *body = table("".join(output.get("data", {}).get("text/html", ""))) or [[]]
            if names[:1] == [LEADING]:
                return [dict(zip(names, row, strict=True)) for row in body]
    return []


def table(markup: str) -> list[list[str]]:
    """The cells of each row, as text."""
    found = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", markup, re.S))
    return [[unescape(re.sub("<[^>]+>", "", cell)).strip() for cell in row] for row in found]


def told(sample: dict[str, str]) -> nodes.container:
    """One edit and what was written."""
    (_, title), *facts = sample.items()
    items = [
        nodes.definition_list_item("", nodes.term("", name), nodes.definition("", nodes.paragraph("", text)))
        for name, text in facts
    ]
    return nodes.container("", nodes.rubric("", title), nodes.definition_list("", *items), classes=["sample"])


class RunSamples(SphinxDirective):
    """`{run-samples} smollm2/aftermath`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        found = rows(quoted_run(self, self.arguments[0]))
        if not found:
            raise self.error(f"the run called {self.arguments[0]!r} shows no table that begins with {LEADING!r}")
        return [nodes.container("", *map(told, found), classes=["samples"])]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("run-samples", RunSamples)
    return {"version": "1", "parallel_read_safe": True}
