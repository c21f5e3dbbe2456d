"""Show executed runs in the book: numbers, figures, one table, and a header on each run's page.

Everything comes from `runs/<analysis>/<run>/manifest.json`. A page quotes a run in three ways:

    {{ pilot_collapsed_first_share }}     a metric or parameter, formatted; {{ pilot_run }} links to the run
    ```{run-figure} pilot/scatter         a figure of that run
    ```{run-table}                        every run there is

The run quoted for an analysis is its newest published `full` run; without one, its newest run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.directives.patches import Figure
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

HINT = "execute one with `editlib run {} --profile quick`"
SHOWN_BY_NAME = ("model", "n", "method", "seed")  # parameters with a line of their own in the header


@dataclass(frozen=True)
class Run:
    """One folder of `book/runs`, as its manifest describes it."""

    folder: str  # relative to the book, e.g. runs/pilot/0123456789ab
    manifest: dict[str, Any]
    files: tuple[str, ...]  # what a reader can download, relative to the folder

    @property
    def local(self) -> bool:
        return Path(self.folder).name.startswith("local-")

    @property
    def docname(self) -> str:
        return f"{self.folder}/index"

    @property
    def analysis(self) -> str:
        return str(self.manifest["analysis"])

    @property
    def id(self) -> str:
        return str(self.manifest["run"])

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.manifest["parameters"])

    @property
    def date(self) -> str:
        return datetime.fromisoformat(self.manifest["finished"]).strftime("%Y-%m-%d")

    @property
    def duration(self) -> str:
        return spoken_duration(float(self.manifest["seconds"]))


def read_runs(book: Path) -> list[Run]:
    """Every run of the book, newest first."""
    runs = [read_run(path, book) for path in book.glob("runs/*/*/manifest.json")]
    return sorted(runs, key=lambda run: str(run.manifest["finished"]), reverse=True)


def read_run(path: Path, book: Path) -> Run:
    data = sorted(file.relative_to(path.parent).as_posix() for file in path.parent.glob("data/*.parquet"))
    folder = path.parent.relative_to(book).as_posix()
    return Run(folder, json.loads(path.read_text("utf-8")), ("index.ipynb", "manifest.json", *data))


def quoted(runs: Iterable[Run]) -> dict[str, Run]:
    """The run that pages quote, by analysis."""

    def rank(run: Run) -> tuple[bool, bool, str]:
        return not run.local, run.manifest["profile"] == "full", str(run.manifest["finished"])

    return {run.analysis: run for run in sorted(runs, key=rank)}  # the best one is last and stays


# -- words and numbers ---------------------------------------------------------------------------------


def spoken(name: str, value: Any) -> str:
    """A metric as a reader wants it: shares in per cent, three digits, thousands separated."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if name.endswith("_share"):
        return f"{100 * value:.3g} %"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spoken_duration(seconds: float) -> str:
    """`8.1 s`, `2 min 14 s`, `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def spoken_hardware(hardware: dict[str, Any]) -> str:
    parts = [f"{hardware['cpu']}, {hardware['cores']} cores", f"{hardware['memory_gib']:.0f} GiB"]
    return ", ".join(parts + [str(gpu) for gpu in hardware.get("gpus", [])])


def spoken_code(git: dict[str, Any]) -> str:
    commit = f"commit {git['commit'][:12]}" if git["commit"] else "no commit"
    return f"{commit}, with local changes" if git["dirty"] else commit


def link(run: Run) -> str:
    return f"[{run.id}](/{run.docname}.ipynb)" + " (local, not published)" * run.local


def substitutions(run: Run) -> dict[str, str]:
    """What `{{ <analysis>_<name> }}` stands for."""
    about = {"run": f"run {link(run)}", "profile": run.manifest["profile"], "date": run.date}
    values = {**run.parameters, **about, **run.manifest["metrics"]}
    prefix = run.analysis.replace("-", "_")
    return {f"{prefix}_{name}": spoken(name, value) for name, value in values.items()}


def add_substitutions(app: Sphinx, config: Config) -> None:
    runs = quoted(read_runs(Path(app.srcdir)))
    for run in runs.values():
        config.myst_substitutions.update(substitutions(run))
    if not runs:
        problem = "book/runs holds no run, so pages that quote one cannot be built: %s"
        logging.getLogger(__name__).warning(problem, HINT.format("pilot"))


# -- directives ----------------------------------------------------------------------------------------


class RunFigure(Figure, SphinxDirective):
    """`{run-figure} pilot/scatter`: figures/scatter.png of the quoted pilot run, with options of `figure`."""

    def run(self) -> list[nodes.Node]:
        analysis, name = self.arguments[0].split("/")
        book = Path(self.env.srcdir)
        run = quoted(read_runs(book)).get(analysis)
        path = f"{run.folder}/figures/{name}.png" if run else ""
        if not (path and (book / path).is_file()):
            raise self.error(f"no run of {analysis!r} has figures/{name}.png: {HINT.format(analysis)}")
        self.arguments[0] = f"/{path}"
        return list(super().run())


class RunTable(SphinxDirective):
    """`{run-table}`: every run, newest first, as a table."""

    def run(self) -> list[nodes.Node]:
        runs = read_runs(Path(self.env.srcdir))
        if not runs:
            return self.parse_text_to_nodes(f"There is no run yet: {HINT.format('pilot')}.")
        head = ["| Run | Analysis | Profile | Model | n | Date | Duration |", "|:--|:--|:--|:--|--:|:--|--:|"]
        table = self.parse_text_to_nodes("\n".join(head + [table_row(run) for run in runs]))
        return [nodes.container("", *table, classes=["runs-table"])]


def table_row(run: Run) -> str:
    model, n = (spoken(name, run.parameters.get(name, "")) for name in ("model", "n"))
    page = f"[{run.id}](/{run.docname}.ipynb)" + " local" * run.local
    cells = [page, run.analysis, run.manifest["profile"], model, n, run.date, run.duration]
    return "| " + " | ".join(cells) + " |"


# -- the header of a run's page ------------------------------------------------------------------------


def add_header(app: Sphinx, doctree: nodes.document) -> None:
    """Put what the manifest says below the title of a run's page."""
    runs = {run.docname: run for run in read_runs(Path(app.srcdir))}
    run = runs.get(app.env.docname)
    if run is None:
        return
    section = next(iter(doctree.findall(nodes.section)))
    section[1:1] = ([local_notice()] if run.local else []) + [header(run)]


def local_notice() -> nodes.Node:
    text = "Local run, not published: it is on this machine only. Do not cite it."
    return nodes.attention("", nodes.paragraph("", text))


def header(run: Run) -> nodes.Node:
    lines: dict[str, list[nodes.Node]] = {
        "Run": [nodes.literal("", run.id), nodes.Text("  spec "), nodes.literal("", run.manifest["spec"])],
        "Analysis": [nodes.Text(f"{run.analysis}, profile {run.manifest['profile']}")],
        "Parameters": parameter_nodes(run.parameters),
        "Executed": [nodes.Text(f"{run.date}, in {run.duration}")],
        "Hardware": [nodes.Text(spoken_hardware(run.manifest["hardware"]))],
        "Code": [nodes.Text(spoken_code(run.manifest["git"]))],
        "Files": separated([download(file, run.docname) for file in run.files]),
    }
    fields = [field(name, content) for name, content in lines.items()]
    return nodes.container("", nodes.field_list("", *fields), classes=["run-header"])


def parameter_nodes(parameters: dict[str, Any]) -> list[nodes.Node]:
    names = [*(name for name in SHOWN_BY_NAME if name in parameters)]
    names += sorted(set(parameters) - set(names))
    return separated([nodes.literal("", f"{name}={parameters[name]}") for name in names])


def separated(items: list[nodes.Node]) -> list[nodes.Node]:
    """The items with a space between them, so that lines can break there."""
    return [node for item in items for node in (item, nodes.Text(" "))][:-1]


def field(name: str, content: list[nodes.Node]) -> nodes.field:
    body = nodes.field_body("", nodes.paragraph("", "", *content))
    return nodes.field("", nodes.field_name("", name), body)


def download(file: str, docname: str) -> nodes.Node:
    """A link that copies the file into the site; `file` stands beside the page."""
    return download_reference("", "", nodes.literal("", Path(file).name), reftarget=file, refdoc=docname)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("run-figure", RunFigure)
    app.add_directive("run-table", RunTable)
    app.connect("config-inited", add_substitutions)
    app.connect("doctree-read", add_header, priority=100)  # before titles and downloads are collected
    return {"version": "1", "parallel_read_safe": True}
