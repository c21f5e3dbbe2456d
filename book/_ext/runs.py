"""Executed runs in the book: reading them, and quoting their numbers and figures on pages.

Everything comes from the manifests of `runs/<analysis>/<run>/`, which are read once for a build. A page quotes a run in
three ways:

    {{ pilot_collapsed_first_share }}     a metric or parameter, formatted; {{ pilot_run }} links to the run,
    {{ pilot_some_share_of_one.percent }} and a number that its name does not call a share can be shown in per cent
    ```{run-figure} pilot/scatter         a figure of that run, and where it comes from; the first of an analysis also
                                          has the others
    ```{run-selector} pilot               which run that is and, folded, the others of the analysis

Runs of one analysis differ in their settings, above all in their model. `quoted.yaml` gives settings a name, and that
name before the analysis quotes a run that has them: `{{ smollm2_pilot_cases }}`, `{run-figure} smollm2/pilot/scatter`,
`{run-selector} smollm2/pilot`. Without a name it is a run with the settings called `main`. Of several the newest
published `full` run is quoted; without one, the newest.

What a manifest says is never trusted as markup: it is escaped before it becomes MyST, and otherwise goes into nodes as
text.

A folder that holds no run (left behind by a killed process, or damaged) is left out of the site, and the page of all
runs says so. With EDITLIB_PUBLISHED_ONLY set, so are local runs: that is how the public site is built.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from checkout import command
from docutils import nodes
from folds import fold
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.directives.patches import Figure
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from editlib.errors import EditlibError
from editlib.runs.folders import run_folders
from editlib.runs.manifest import NAME, Manifest, read_manifest, symbolic_link
from editlib.text import metric, percent

MAIN = "main"  # the settings of runs that pages quote without a name
HINT = "execute one with `editlib run {} --profile quick`"
FIGURE_TYPES = ("svg", "png")
MARKUP = re.compile(r"""([!-/:-@[-`{-~])""")  # what MyST may read as more than text, all of it punctuation
LONGEST = 200  # characters of a value that a page shows

Settings = Mapping[str, list[Any]]  # the values that each of some parameters may have


@dataclass(frozen=True)
class Runs:
    """What `book/runs` holds."""

    shown: tuple[Manifest, ...] = ()  # newest first
    damaged: dict[str, str] = field(default_factory=dict)  # why a folder is no run, by its path in the book
    quoted: dict[str, Manifest] = field(default_factory=dict)  # by what pages call it: pilot, smollm2/pilot


def read_runs(book: Path, *, published_only: bool = False) -> Runs:
    """Every run of a book; of folders whose name begins with a dot, nothing is said."""
    shown, damaged = [], {}
    for folder in run_folders(book.parent):
        if published_only and folder.name.startswith("local-"):
            continue
        try:
            if link := symbolic_link(folder):
                raise EditlibError(f"{link} stands for a file elsewhere")
            run = read_manifest(folder)
            if (folder.parent.name, folder.name.removeprefix("local-")) != (run.analysis, run.run):
                raise EditlibError(f"its {NAME} is that of run {run.run} of {run.analysis}")
            if not (folder / "index.ipynb").is_file():
                raise EditlibError("it has no index.ipynb")
            shown.append(run)
        except EditlibError as error:
            place = folder.relative_to(book).as_posix()
            damaged[place] = str(error).replace(str(folder), "it")
    shown.sort(key=lambda run: run.finished, reverse=True)
    return Runs(tuple(shown), damaged, quoted(shown, read_settings(book)))


def read_settings(book: Path) -> dict[str, Settings]:
    """The settings that have a name; where the book has no such file, any run is one of the main settings."""
    path = book / "quoted.yaml"
    return yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {MAIN: {}}


def quoted(runs: Iterable[Manifest], settings: Mapping[str, Settings]) -> dict[str, Manifest]:
    """The best run of each analysis and settings, by what pages call it."""
    best = sorted(runs, key=lambda run: (run.published, run.profile == "full", run.finished))
    return {  # of one name the last stays
        called(run.analysis, name): run
        for name, asked in settings.items()
        for run in best
        if all(run.parameters.get(key) in values for key, values in asked.items())
    }


def called(analysis: str, settings: str = MAIN) -> str:
    """What pages call the run of an analysis that has some settings."""
    return analysis if settings == MAIN else f"{settings}/{analysis}"


def docname(run: Manifest) -> str:
    return f"runs/{run.analysis}/{run.folder.name}/index"


def model(run: Manifest) -> str:
    """The model that the analysis is about; empty if it is about none."""
    return str(run.parameters.get("model") or "")


# -- words and numbers ---------------------------------------------------------------------------------


def clipped(value: object) -> str:
    """A value as one line of text, cut where it becomes too long to read."""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def escaped(value: object) -> str:
    """A value as MyST that reads as that text."""
    return MARKUP.sub(r"\\\1", clipped(value))


class Quoted(str):
    """A metric or parameter as MyST; a number also in per cent."""

    percent: str


def quote(name: str, value: Any) -> Quoted:
    text = Quoted(escaped(metric(name, value)))
    if isinstance(value, int | float):
        text.percent = escaped(percent(value))
    return text


def link(run: Manifest) -> str:
    """A link to a run's page, in MyST."""
    return f"[{run.run}](/{docname(run)}.ipynb)" + " (local, not published)" * (not run.published)


def page_link(run: Manifest, text: str = "") -> pending_xref:
    """A link to a run's page, as a node."""
    about = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{docname(run)}", "refexplicit": True}
    return pending_xref("", nodes.inline("", text or run.run), refwarn=True, **about)


def substitutions(name: str, run: Manifest) -> dict[str, str]:
    """What `{{ <analysis>_<metric> }}` stands for, with all metrics and parameters of the run that pages call so."""
    values = {**run.parameters, "profile": run.profile, "date": run.finished[:10], **run.metrics}
    shown = {key: quote(key, value) for key, value in values.items()} | {"run": f"run {link(run)}"}
    return {f"{re.sub('[-/]', '_', name)}_{key}": text for key, text in shown.items()}


# -- once for a build ----------------------------------------------------------------------------------


def find_runs(app: Sphinx, config: Config) -> None:
    """Read the runs, leave out of the site every folder that is not shown, and let pages quote the rest."""
    book = Path(app.srcdir)
    config.runs = read_runs(book, published_only=bool(os.environ.get("EDITLIB_PUBLISHED_ONLY")))
    shown = {run.folder for run in config.runs.shown}
    left_out = (path.relative_to(book).as_posix() for path in book.glob("runs/*/*") if path not in shown)
    config.exclude_patterns = [*config.exclude_patterns, *(re.sub(r"([[*?])", r"[\1]", path) for path in left_out)]
    pages = (path for kind in ("md", "ipynb") for path in book.rglob(f"*.{kind}") if "runs" not in path.parts[:-1])
    words = {word for page in pages for word in re.findall(r"\w+", page.read_text("utf-8"))}
    known = (pair for name, run in config.runs.quoted.items() for pair in substitutions(name, run).items())
    used = {key: text for key, text in known if key in words}  # MyST copies all that there are for each page
    config.myst_substitutions = {**config.myst_substitutions, **used}
    if not config.runs.shown:
        problem = "book/runs holds no run, so pages that quote one cannot be built: %s"
        logging.getLogger(__name__).warning(problem, HINT.format("pilot"))


# -- directives ----------------------------------------------------------------------------------------


class RunFigure(Figure, SphinxDirective):
    """`{run-figure} pilot/scatter`: the figure of that name of the quoted pilot run, with options of `figure`."""

    def run(self) -> list[nodes.Node]:
        called, _, name = self.arguments[0].rpartition("/")
        run = quoted_run(self, called)
        files = (f"figures/{name}.{kind}" for kind in FIGURE_TYPES)
        file = next((file for file in files if file in run.outputs), None)
        if not file:
            raise self.error(f"run {run.run} of {called!r} has no figure {name!r}")
        self.arguments[0] = f"/runs/{run.analysis}/{run.folder.name}/{file}"
        first = called not in self.env.temp_data.get("runs_selected", ())
        made_by = origin(run, Path(self.env.srcdir).parent)
        return [*super().run(), made_by, *(selected(self, called) if first else [])]


def origin(run: Manifest, root: Path) -> nodes.Node:
    """Where a figure comes from; folded, the command that makes it again."""
    told = [f"run {run.run}", f"commit {(run.git.commit or 'unknown')[:12]}", f"notebook {run.analysis}"]
    data = [*run.inputs.data, *(Path(file).name for file in run.inputs.files)]
    title = " · ".join([*told, *([f"data {', '.join(map(clipped, data))}"] if data else [])])
    again = nodes.literal_block(text := command(run, root), text, language="bash")
    whole = nodes.paragraph("", "", page_link(run, "Its page"), nodes.Text(" has its data. To make it again:"))
    return nodes.container("", fold(title, whole, again), classes=["run-origin"])


class RunSelector(SphinxDirective):
    """`{run-selector} pilot`: the quoted pilot run, and links to the others."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return selected(self, self.arguments[0])


def quoted_run(directive: SphinxDirective, called: str) -> Manifest:
    """The run that pages call so."""
    run: Manifest | None = directive.config.runs.quoted.get(called)
    if run:
        return run
    analysis = called.rpartition("/")[2]
    raise directive.error(
        f"no run is called {called!r} by quoted.yaml: {HINT.format(analysis)}, with the settings there"
    )


def selected(directive: SphinxDirective, called: str) -> list[nodes.Node]:
    """Which run pages call so; noted, so that a page says it once."""
    directive.env.temp_data.setdefault("runs_selected", set()).add(called)  # of this page
    return [selector(quoted_run(directive, called), directive.config.runs.shown)]


def selector(run: Manifest, runs: Iterable[Manifest]) -> nodes.Node:
    """One line about a run; folded below it the analysis' other runs, newest of each model first."""
    others = [other for other in runs if other.analysis == run.analysis and other is not run]
    newest = {model(other): other for other in reversed(others)}.values()
    ordered = sorted(others, key=lambda other: other not in newest)
    line = nodes.paragraph("", "", nodes.Text("Shown here: run "), page_link(run), nodes.Text(about(run)))
    items = [nodes.list_item("", nodes.paragraph("", "", page_link(o), nodes.Text(about(o)))) for o in ordered]
    word = "run" if len(items) == 1 else "runs"
    folded = [fold(f"{len(items)} other {word}", nodes.bullet_list("", *items))] if items else []
    return nodes.container("", line, *folded, classes=["run-selector"])


def about(run: Manifest) -> str:
    """What tells a run from others of its analysis."""
    told = (clipped(model(run)), clipped(run.profile), run.finished[:10], "local, not published" * (not run.published))
    return "".join(f" · {text}" for text in told if text)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("folds")
    app.add_config_value("runs", Runs(), "")
    for name in ("myst_parser.sphinx_ext.main", "myst_nb.sphinx_ext"):  # both print every substitution there is
        logging.getLogger(name).setLevel("WARNING")
    app.add_directive("run-figure", RunFigure)
    app.add_directive("run-selector", RunSelector)
    app.connect("config-inited", find_runs)
    return {"version": "1", "parallel_read_safe": True}
