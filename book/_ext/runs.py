"""Executed runs in the book: reading them, and quoting their numbers and figures on pages.

Everything comes from `runs/<analysis>/<run>/manifest.json`. A page quotes a run in three ways:

    {{ pilot_collapsed_first_share }}     a metric or parameter, formatted; {{ pilot_run }} links to the run
    ```{run-figure} pilot/scatter         a figure of that run; the first of an analysis also says which run it is
    ```{run-selector} pilot               which run that is and, folded, the others of the analysis

The run quoted for an analysis is its newest published `full` run; without one, its newest run. What a manifest says is
never trusted as markup: it is escaped before it becomes MyST, and otherwise goes into nodes as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from docutils import nodes
from folds import fold
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.directives.patches import Figure
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from editlib.runs.manifest import read_manifest

HINT = "execute one with `editlib run {} --profile quick`"
FOLDER = re.compile(r"runs/[a-z][a-z0-9-]*/(local-)?[0-9a-f]{12}")
MARKUP = re.compile(r"""([!-/:-@[-`{-~])""")  # what MyST may read as more than text, all of it punctuation
LONGEST = 200  # characters of a value that a page shows


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
    def spec(self) -> str:
        return str(self.manifest["spec"])

    @property
    def profile(self) -> str:
        return str(self.manifest["profile"])

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.manifest["parameters"])

    @property
    def model(self) -> str:
        """The model that the analysis is about; empty if it is about none."""
        return str(self.parameters.get("model") or "")

    @property
    def finished(self) -> str:
        return str(self.manifest["finished"])

    @property
    def date(self) -> str:
        return datetime.fromisoformat(self.finished).strftime("%Y-%m-%d")

    @property
    def duration(self) -> str:
        return spoken_duration(float(self.manifest["seconds"]))


def read_runs(book: Path) -> list[Run]:
    """Every run of the book, newest first."""
    found = (read_run(path, book) for path in book.glob("runs/*/*/manifest.json"))
    return sorted((run for run in found if run), key=lambda run: run.finished, reverse=True)


def read_run(path: Path, book: Path) -> Run | None:
    """The run of a manifest, or None in a folder that is not named as its manifest says; a build stops at a damaged
    one."""
    folder = path.parent.relative_to(book).as_posix()
    manifest = read_manifest(path.parent).record
    named = (f"runs/{manifest['analysis']}/{prefix}{manifest['run']}" for prefix in ("", "local-"))
    if not (FOLDER.fullmatch(folder) and folder in named):
        return None
    data = sorted(file.relative_to(path.parent).as_posix() for file in path.parent.glob("data/*.parquet"))
    about = (name for name in ("ro-crate-metadata.json", "citation.bib") if (path.parent / name).is_file())
    return Run(folder, manifest, ("index.ipynb", *data, "manifest.json", *about))


def quoted(runs: Iterable[Run]) -> dict[str, Run]:
    """The run that pages quote, by analysis."""

    def rank(run: Run) -> tuple[bool, bool, str]:
        return not run.local, run.profile == "full", run.finished

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


def clipped(value: object) -> str:
    """A value as one line of text, cut where it becomes too long to read."""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def escaped(value: object) -> str:
    """A value as MyST that reads as that text."""
    return MARKUP.sub(r"\\\1", clipped(value))


def link(run: Run) -> str:
    """A link to a run's page, in MyST."""
    return f"[{run.id}](/{run.docname}.ipynb)" + " (local, not published)" * run.local


def page_link(run: Run, text: str = "") -> pending_xref:
    """A link to a run's page, as a node."""
    about = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{run.docname}", "refexplicit": True}
    return pending_xref("", nodes.inline("", text or run.id), refwarn=True, **about)


def substitutions(run: Run) -> dict[str, str]:
    """What `{{ <analysis>_<name> }}` stands for."""
    values = {**run.parameters, "profile": run.profile, "date": run.date, **run.manifest["metrics"]}
    shown = {name: escaped(spoken(name, value)) for name, value in values.items()} | {"run": f"run {link(run)}"}
    return {f"{run.analysis.replace('-', '_')}_{name}": text for name, text in shown.items()}


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
        runs = read_runs(book)
        run = quoted(runs).get(analysis)
        path = f"{run.folder}/figures/{name}.png" if run else ""
        if not (run and (book / path).is_file()):
            raise self.error(f"no run of {analysis!r} has figures/{name}.png: {HINT.format(analysis)}")
        self.arguments[0] = f"/{path}"
        selected = self.env.temp_data.setdefault("runs_selected", set())  # of this page
        first = analysis not in selected
        selected.add(analysis)
        return [*super().run(), *([selector(run, runs)] if first else [])]


class RunSelector(SphinxDirective):
    """`{run-selector} pilot`: the quoted pilot run, and links to the others."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        runs = read_runs(Path(self.env.srcdir))
        run = quoted(runs).get(self.arguments[0])
        if run is None:
            raise self.error(f"there is no run of {self.arguments[0]!r}: {HINT.format(self.arguments[0])}")
        self.env.temp_data.setdefault("runs_selected", set()).add(run.analysis)
        return [selector(run, runs)]


def selector(run: Run, runs: Iterable[Run]) -> nodes.Node:
    """One line about a run; folded below it the analysis' other runs, newest of each model first."""
    others = [other for other in runs if other.analysis == run.analysis and other is not run]
    newest = {other.model: other for other in reversed(others)}.values()
    ordered = sorted(others, key=lambda other: other not in newest)
    line = nodes.paragraph("", "", nodes.Text("Shown here: run "), page_link(run), nodes.Text(about(run)))
    items = [nodes.list_item("", nodes.paragraph("", "", page_link(o), nodes.Text(about(o)))) for o in ordered]
    word = "run" if len(items) == 1 else "runs"
    folded = [fold(f"{len(items)} other {word}", nodes.bullet_list("", *items))] if items else []
    return nodes.container("", line, *folded, classes=["run-selector"])


def about(run: Run) -> str:
    """What tells a run from others of its analysis."""
    told = (clipped(run.model), run.profile, run.date, "local, not published" * run.local)
    return "".join(f" · {text}" for text in told if text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("folds")
    app.add_directive("run-figure", RunFigure)
    app.add_directive("run-selector", RunSelector)
    app.connect("config-inited", add_substitutions)
    return {"version": "1", "parallel_read_safe": True}
