"""All runs in one table, in `runs.json`, and with their files in the site, at addresses that do not change.

`{run-table}` is a plain table, rows of one spec together; where scripts run, `catalogue.mjs` lets readers sort, filter
and search it. The library behind that comes with the package itables; it is loaded on that page alone.
What a row says of a run's cases and its result is written in `results.yaml`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pandas as pd
import yaml
from docutils import nodes
from formulas import FormulaError, evaluate, fill, named
from jinja2 import Environment, FileSystemLoader
from runs import HINT, clipped, docname, model
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

from editlib.runs import analyses
from editlib.runs.compare import headline
from editlib.runs.manifest import Manifest
from editlib.text import duration, metric

COLUMNS = ("Analysis", "Run", "Result", "Cases", "Model", "Profile", "Date", "Duration", "Spec")
FILTERS = ("Analysis", "Model", "Profile")
LIBRARY = "dt_bundle.js"
WORDS = {
    "c_rome": "C-ROME", "p_rome": "P-ROME", "r_rome": "R-ROME", "rome": "ROME", "ft_l": "FT-L", "ft": "FT",
    "mend": "MEND", "memit": "MEMIT", "emmet": "EMMET", "alphaedit": "AlphaEdit", "encore": "ENCORE", "d4s": "D4S",
    "auc": "AUC", "rho": "Spearman's ρ", "qa": "questions",
    "cloze": "last word", "em_tf": "em_tf", "em_ar": "em_ar", "meng_2022": "meng-2022", "yang_2024": "yang-2024",
    "max_ratio": "highest, times unedited,", "last_ratio": "last, times unedited,", "testbed": "",
    "median_ratio": "median, times unedited,", "no_covariance": "without C",
    "gib": "GiB", "gflop": "10⁹ operations",
}  # fmt: skip


class Sortable(nodes.General, nodes.Element):
    """Where a table stands that readers can sort, filter and search."""


class Catalogue(Sortable):
    """Where the table of runs stands."""


class RunTable(SphinxDirective):
    """`{run-table}`: every run, those of one spec together, newest first; printed, their pages follow here."""

    def run(self) -> list[nodes.Node]:
        runs = self.config.runs.shown
        if not runs:
            return self.parse_text_to_nodes(f"There is no run yet: {HINT.format('pilot')}.")
        missing = sorted(set(analyses.names(Path(self.env.srcdir).parent)) - {run.analysis for run in runs})
        said = f"Not executed here: {', '.join(missing)}. `editlib run --all` executes every analysis."
        note = self.parse_text_to_nodes(said) if missing else []
        if self.env.app.builder.name != "singlehtml":
            return [Catalogue(), *note]
        pages = [docname(run) for run in runs]
        entries = [(None, page) for page in pages]
        return [
            Catalogue(),
            *note,
            addnodes.toctree(entries=entries, includefiles=pages, parent=self.env.docname, maxdepth=1),
        ]


def grouped(runs: Iterable[Manifest]) -> list[Manifest]:
    """Runs of one spec together, at the place of the first of them."""
    specs: dict[str, list[Manifest]] = {}
    for run in runs:
        specs.setdefault(run.spec, []).append(run)
    return [run for same in specs.values() for run in same]


# -- the table -----------------------------------------------------------------------------------------


def open_table(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write the table; the template escapes everything that a manifest says."""
    builder, config = translator.builder, translator.config
    runs = grouped(config.runs.shown)
    counts = Counter(run.spec for run in runs)
    rows = []
    for run in runs:
        cases, result = outcome(run, config.results)
        rows.append(
            {
                name: clipped(getattr(run, name))
                for name in ("analysis", "run", "profile", "finished", "seconds", "spec")
            }
            | {"page": builder.get_relative_uri(builder.current_docname, docname(run)), "published": run.published}
            | {"n": cases, "cases": "" if cases is None else clipped(metric("n", cases)), "result": clipped(result)}
            | {"model": clipped(model(run)), "duration": duration(run.seconds), "count": counts[run.spec]}
        )
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=False)
    template = environment.get_template("catalogue.html")
    translator.body.append(
        template.render(columns=COLUMNS, filters=FILTERS, rows=rows, specs=len(counts), damaged=config.runs.damaged)
    )


def outcome(run: Manifest, results: Mapping[str, Mapping[str, str]]) -> tuple[int | None, str]:
    """How many cases a run is about, and its result in a few words; None and empty where it does not say."""
    told = results.get(run.analysis, {})
    for sentence in (told[name] for name in ("result", "otherwise") if name in told):
        with suppress(FormulaError):
            result = fill(sentence, run.metrics)
            return (int(evaluate(told["cases"], run.metrics)) if "cases" in told else None), result
    return None, ""


def skip(translator: HTML5Translator, node: nodes.Element) -> None:
    """The table has no children to close."""


def add_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Load the script of tables on their pages alone."""
    if doctree is not None and next(iter(doctree.findall(Sortable)), None):
        app.add_js_file("catalogue.mjs", type="module")


# -- files of the site ---------------------------------------------------------------------------------


def record(run: Manifest, config: Config) -> dict[str, Any]:
    """A run as `runs.json` tells it; addresses start at the site's root."""
    told = {name: run.record[name] for name in ("analysis", "title", "profile", "parameters", "spec", "run")}
    done = {name: run.record[name] for name in ("started", "finished", "seconds", "metrics")}
    cases, result = outcome(run, config.results)
    asked = {"model": model(run) or None, "cases": cases, "seed": run.parameters.get("seed")}
    page, files = docname(run), sorted(path for path in run.folder.rglob("*") if path.is_file())
    addresses = [f"{page.removesuffix('index')}{path.relative_to(run.folder).as_posix()}" for path in files]
    about = {"result": result, "numbers": numbers(run, config), "published": run.published, "page": f"{page}.html"}
    return told | asked | done | about | {"files": addresses}


def numbers(run: Manifest, config: Config) -> list[dict[str, Any]]:
    """What a run measured, in words too; `leading` are those that the table of runs and the claims speak of."""
    spoken = config.results.get(run.analysis, {}).values()
    audited = config.audits if isinstance(config.audits, list) else []
    rules = (rule for audit in audited for rule in audit.claim.rules.values() if rule.analysis == run.analysis)
    leading = named(run.metrics, *spoken, *(f"{rule.executed} {rule.holds}" for rule in rules))
    return [
        entry | {"words": words(entry["name"]), "leading": entry["name"] in leading} for entry in headline(run.metrics)
    ]


def words(name: str) -> str:
    """The name of a metric as one says it: `max_ratio_c_rome` is `highest, times unedited, C-ROME`."""
    parts, said = name.split("_"), list[str]()
    while parts:
        size = next((size for size in (2, 1) if "_".join(parts[:size]) in WORDS), 0)
        said.append(WORDS["_".join(parts[:size])] if size else parts[0])
        parts = parts[size or 1 :]
    return " ".join(filter(None, said)).removesuffix(",")


def read_results(app: Sphinx, config: Config) -> None:
    """What `results.yaml` says, once for a build."""
    path = Path(app.srcdir) / "results.yaml"
    config.results = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}


def write_files(app: Sphinx, error: Exception | None) -> None:
    """Write `runs.json`, and into the site the runs' files, each run as one archive, its tables as CSV too, and the
    library of the table."""
    if error or app.builder.format != "html":
        return
    site = Path(app.outdir)
    listed = {"runs": [record(run, app.config) for run in app.config.runs.shown]}
    (site / "runs.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for run in app.config.runs.shown:
        folder = site / Path(docname(run)).parent
        shutil.copytree(run.folder, folder, dirs_exist_ok=True)
        with ZipFile(folder / f"{run.analysis}-{run.run}.zip", "w", ZIP_DEFLATED) as archive:
            for path in sorted(run.folder.rglob("*")):
                archive.write(path, f"{run.analysis}-{run.run}/{path.relative_to(run.folder).as_posix()}")
        for table in run.folder.glob("data/*.parquet"):
            pd.read_parquet(table).to_csv(folder / f"data/{table.stem}.csv", index=False)
    shutil.copy(library(), site / "_static" / LIBRARY)


def library() -> Path:
    """DataTables, as itables ships it; found without importing the package."""
    package = importlib.util.find_spec("itables")
    assert package and package.submodule_search_locations, "itables is part of editlib[book]"
    return Path(package.submodule_search_locations[0]) / "html" / LIBRARY


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("claims")
    app.add_config_value("results", {}, "")
    app.add_node(Catalogue, html=(open_table, skip))
    app.add_directive("run-table", RunTable)
    app.connect("config-inited", read_results)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_files)
    return {"version": "1", "parallel_read_safe": True}
