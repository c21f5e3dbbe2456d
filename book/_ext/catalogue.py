"""All runs in one table, in `runs.json`, and with their files in the site, at addresses that do not change.

`{run-table}` is a plain table, rows of one spec together; where scripts run, `catalogue.mjs` lets readers sort, filter
and search it. The library behind that comes with the package itables; it is loaded on that page alone.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from runs import HINT, Run, clipped, read_runs, spoken
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

COLUMNS = ("Analysis", "Run", "Profile", "Model", "n", "Date", "Duration", "Spec")
FILTERS = ("Analysis", "Profile", "Model")
LIBRARY = "dt_bundle.js"


class Catalogue(nodes.General, nodes.Element):
    """Where the table stands."""


class RunTable(SphinxDirective):
    """`{run-table}`: every run, those of one spec together, newest first."""

    def run(self) -> list[nodes.Node]:
        if not read_runs(Path(self.env.srcdir)):
            return self.parse_text_to_nodes(f"There is no run yet: {HINT.format('pilot')}.")
        return [Catalogue()]


def grouped(runs: Iterable[Run]) -> list[Run]:
    """Runs of one spec together, at the place of the first of them."""
    specs: dict[str, list[Run]] = {}
    for run in runs:
        specs.setdefault(run.spec, []).append(run)
    return [run for same in specs.values() for run in same]


# -- the table -----------------------------------------------------------------------------------------


def open_table(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write the table; everything a manifest says goes through `escape`."""
    builder = translator.builder
    here: str = builder.current_docname
    runs = grouped(read_runs(Path(builder.srcdir)))
    counts = Counter(run.spec for run in runs)
    rows = [row(run, builder.get_relative_uri(here, run.docname), counts[run.spec]) for run in runs]
    head = "".join(f'<th scope="col"{" data-filter" * (name in FILTERS)}>{name}</th>' for name in COLUMNS)
    translator.body.append(
        '<div class="runs-table" tabindex="0" role="region" aria-label="Table of all runs">\n'
        f'<table class="table"><caption>{len(rows)} runs of {len(counts)} specs</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>\n"
        '<p>For machines: <a href="runs.json">runs.json</a></p>\n'
    )


def row(run: Run, address: str, count: int) -> str:
    """A row; cells that do not sort as they read say by what."""
    spec = f"<code>{escape(run.spec)}</code>" + f" ×{count}" * (count > 1)
    page = f'<a href="{escape(address)}"><code>{escape(run.id)}</code></a>' + " local" * run.local
    n = run.parameters.get("n")
    cells = [
        f'<th scope="row">{text(run.analysis)}</th>',
        f"<td>{page}</td>",
        f"<td>{text(run.profile)}</td>",
        f"<td>{text(run.model)}</td>",
        f'<td data-order="{escape(str(n or 0))[:20]}">{text(spoken("n", n)) if n is not None else ""}</td>',
        f'<td data-order="{escape(run.finished)}">{escape(run.date)}</td>',
        f'<td data-order="{float(run.manifest["seconds"])}">{escape(run.duration)}</td>',
        f'<td data-order="{escape(run.spec)}">{spec}</td>',
    ]
    return f"<tr{' class=same-spec' * (count > 1)}>{''.join(cells)}</tr>\n"


def text(value: str) -> str:
    return escape(clipped(value))


def skip(translator: HTML5Translator, node: nodes.Element) -> None:
    """The table has no children to close."""


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Load the table's script on its page alone."""
    if doctree is not None and next(iter(doctree.findall(Catalogue)), None):
        app.add_js_file("catalogue.mjs", type="module")


# -- files of the site ---------------------------------------------------------------------------------


def record(run: Run, book: Path) -> dict[str, Any]:
    """A run as `runs.json` tells it; addresses start at the site's root."""
    told = {name: run.manifest.get(name) for name in ("analysis", "title", "profile", "parameters", "spec", "run")}
    asked = {name: run.parameters.get(name) for name in ("model", "n", "seed")}
    done = {name: run.manifest.get(name) for name in ("started", "finished", "seconds", "metrics")}
    files = [f"{run.folder}/{name}" for name in files_of(book / run.folder)]
    return told | asked | done | {"published": not run.local, "page": f"{run.docname}.html", "files": files}


def files_of(folder: Path) -> Iterator[str]:
    """Every file of a run, relative to its folder."""
    yield from sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_files(app: Sphinx, error: Exception | None) -> None:
    """Write `runs.json`, and copy the runs' files and the table's library into the site."""
    if error or app.builder.format != "html":
        return
    book, site = Path(app.srcdir), Path(app.outdir)
    runs = read_runs(book)
    listed = {"runs": [record(run, book) for run in runs]}
    (site / "runs.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for run in runs:
        shutil.copytree(book / run.folder, site / run.folder, dirs_exist_ok=True)
    shutil.copy(library(), site / "_static" / LIBRARY)


def library() -> Path:
    """DataTables, as itables ships it; found without importing the package."""
    package = importlib.util.find_spec("itables")
    assert package and package.submodule_search_locations, "itables is part of editlib[book]"
    return Path(package.submodule_search_locations[0]) / "html" / LIBRARY


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("runs")
    app.add_node(Catalogue, html=(open_table, skip))
    app.add_directive("run-table", RunTable)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_files)
    return {"version": "1", "parallel_read_safe": True}
