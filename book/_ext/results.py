"""The numbers of the runs that pages quote: `{results-table}` shows those that claims and the table of runs rest on,
`results.json` holds all, each with its interval, model, method and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from catalogue import Sortable, numbers, outcome, skip
from docutils import nodes
from jinja2 import Environment, FileSystemLoader
from runs import clipped, docname, model
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

from editlib.editing.names import FILTERS, METHODS
from editlib.text import metric

COLUMNS = ("Analysis", "Model", "Method", "Number", "Value", "Interval", "Cases", "Run")
FILTERS_SHOWN = ("Analysis", "Model", "Method")
NAMES = {name.replace("-", "_"): name for name in (*METHODS, *FILTERS)}  # as metrics write them


class Results(Sortable):
    """Where the table stands."""


class ResultsTable(SphinxDirective):
    """`{results-table}`; not in print, where it would be the longest part."""

    def run(self) -> list[nodes.Node]:
        return [] if self.env.app.builder.name == "singlehtml" else [Results()]


def method(name: str) -> str:
    """The method that a metric's name speaks of, with its filter: `kept_hard_rome_rect` is about `rome+rect`."""
    parts, said = name.split("_"), list[str]()
    while parts:
        known = next((n for n in (3, 2, 1) if "_".join(parts[:n]) in NAMES), 0)
        if known:
            said.append(NAMES["_".join(parts[:known])])
        elif said:
            break
        parts = parts[known or 1 :]
    return "+".join(said)


def results(config: Config) -> list[dict[str, Any]]:
    """A row for every number of the runs that pages quote, by analysis and model."""
    quoted = {run.run: run for run in config.runs.quoted.values()}
    rows = []
    for run in sorted(quoted.values(), key=lambda run: (run.analysis, model(run))):
        about = {"analysis": run.analysis, "model": model(run), "cases": outcome(run, config.results)[0]}
        source = {"run": run.run, "spec": run.spec, "commit": run.git.commit, "published": run.published}
        source["page"] = f"{docname(run)}.html"
        for entry in numbers(run, config):
            if isinstance(value := entry["value"], int | float):
                of = {"interval_of": "share" if isinstance(value, int) else "value"} if "low" in entry else {}
                rows.append(about | {"method": method(entry["name"])} | entry | of | source)  # a count's is its share's
    return rows


def open_table(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write the table; the template escapes everything that a manifest says."""
    shown = []
    for row in filter(lambda row: row["leading"], results(translator.config)):
        value = metric(row["name"], row["value"])
        texts = {name: clipped(row[name]) for name in ("analysis", "model", "method", "words", "run")}
        texts["interval"] = row["text"].removeprefix(value).strip(" []")
        texts["of"] = "share " * (row.get("interval_of") == "share")
        texts["cases"] = "" if row["cases"] is None else metric("n", row["cases"])
        shown.append(texts | {"text": value, "value": row["value"], "page": row["page"]})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=False)
    template = environment.get_template("results.html")
    translator.body.append(template.render(columns=COLUMNS, filters=FILTERS_SHOWN, rows=shown))


def write_file(app: Sphinx, error: Exception | None) -> None:
    """Write `results.json`."""
    if not error and app.builder.format == "html":
        told = json.dumps({"results": results(app.config)}, ensure_ascii=False, indent=1)
        (Path(app.outdir) / "results.json").write_text(f"{told}\n", "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("catalogue")
    app.add_node(Results, html=(open_table, skip))
    app.add_directive("results-table", ResultsTable)
    app.connect("build-finished", write_file)
    return {"version": "1", "parallel_read_safe": True}
