"""The header of a run's page: what was executed, how to repeat and cite it, what to download.

It rests on the manifest alone, which is checked here: a build stops at one that is not of its schema.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from checkout import changed, command
from docutils import nodes
from folds import fold
from runs import clipped, docname, model, page_link
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

from editlib.runs import citation
from editlib.runs.analyses import where
from editlib.runs.manifest import Manifest
from editlib.text import duration, metric

ACTIVE = re.compile(
    r"<\s*/?(script|iframe|object|embed|form|base|meta|link)\b|<[^>]*\son\w+\s*=|javascript:|@import|url\s*\("
    r"|<[^>]*\s(src|srcset|poster|data|background|href)\s*=\s*[\"']?\s*(https?:)?//",  # of another server
    re.I,
)
SHOWN = ("text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain")
FILE_NAMES = {
    "index.ipynb": "Notebook", "manifest.json": "Manifest", "ro-crate-metadata.json": "RO-Crate",
    "citation.bib": "BibTeX",
}  # fmt: skip


def drop_unshown(app: Sphinx, page: str, source: list[str]) -> None:
    """Of what a run's notebook shows, keep the forms that need no script; say of the others which they were."""
    if run_of(app, page) is None:
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in (output for output in cell.get("outputs", ()) if "data" in output):
            data = output["data"]
            active = ACTIVE.search("".join(data.get("text/html", "")))
            output["data"] = {
                form: data[form] for form in SHOWN if form in data and not (active and form == "text/html")
            }
            if unshown := sorted(data.keys() - output["data"].keys()):
                plain = "".join(data.get("text/plain", ""))
                said = f"{plain}\n(The notebook has this as {', '.join(unshown)}, which a page cannot show.)".lstrip()
                output["data"]["text/plain"] = said
    source[0] = json.dumps(notebook)


def add_header(app: Sphinx, doctree: nodes.document) -> None:
    """Put what the manifest says below the title of a run's page, which the search and the navigation leave out."""
    run = run_of(app, app.env.docname)
    if run is None:
        return
    app.env.metadata[app.env.docname] |= {"orphan": True, "nosearch": True}
    disarm(doctree)
    section = next(iter(doctree.findall(nodes.section)))
    about = " · ".join(filter(None, (run.title, run.profile, model(run))))
    section[0] = nodes.title("", clipped(about))
    root, address = Path(app.srcdir).parent, app.config.html_theme_options.get("repository_url", "")
    section[1:1] = [*notices(run, root), header(run, app.config.runs.shown, address), folds(run, root)]


def run_of(app: Sphinx, page: str) -> Manifest | None:
    """The run whose page this is."""
    return next((run for run in app.config.runs.shown if docname(run) == page), None)


def disarm(doctree: nodes.document) -> None:
    """Show markup as text where a run's notebook has no use for it: HTML in its prose, scripts in its outputs, and
    anything that a page would fetch from another server."""
    for raw in list(doctree.findall(nodes.raw)):
        output = any("cell_output" in parent.get("classes", ()) for parent in ancestors(raw))
        if not output or ACTIVE.search(raw.astext()):
            inline = isinstance(raw.parent, nodes.TextElement)
            raw.replace_self((nodes.literal if inline else nodes.literal_block)("", raw.astext()))
    for image in [image for image in doctree.findall(nodes.image) if "://" in image["uri"]]:
        image.replace_self(nodes.literal("", image["uri"]))


def escape_title(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """For print, the theme repeats a page's title as if it were HTML."""
    if "pagetitle" in context:
        context["pagetitle"] = escape(context["pagetitle"])


def ancestors(node: nodes.Node) -> Iterable[Any]:
    while node.parent is not None:
        yield (node := node.parent)


def notices(run: Manifest, root: Path) -> list[nodes.Node]:
    """What a reader should know before citing the run."""
    said: list[nodes.Node] = []
    if not run.published:
        text = "Local run, not published: it is on this machine only. Do not cite it."
        said.append(nodes.attention("", nodes.paragraph("", text)))
    if what := changed(run, root):
        verb = "have" if len(what) > 1 else "has"
        text = (
            f"Made by older code: {' and '.join(what)} {verb} changed since. Executing it again may give other numbers."
        )
        said.append(nodes.paragraph("", text, classes=["run-older"]))
    return said


def header(run: Manifest, runs: Iterable[Manifest], address: str) -> nodes.Node:
    """The facts, most important first, and the downloads."""
    n, seed, hardware = run.parameters.get("n"), run.parameters.get("seed"), run.hardware
    drawn = [f"n = {metric('n', n)}"] * (n is not None) + [f"seed {seed}"] * (seed is not None)
    machine = [f"{hardware.cpu}, {hardware.cores} cores", f"{hardware.memory_gib:.0f} GiB", *hardware.gpus]
    files = [f"{run.analysis}-{run.run}.zip", "index.ipynb", *sorted(f for f in run.outputs if f.endswith(".parquet"))]
    files += [name for name in FILE_NAMES if name != "index.ipynb" and (run.folder / name).is_file()]
    facts: dict[str, list[nodes.Node]] = {
        "Model": listed(dict.fromkeys([*filter(None, [model(run)]), *run.inputs.models])),
        "Data": listed([*run.inputs.data, *run.inputs.files]),
        "Drawn": [nodes.Text(clipped(", ".join(drawn)))] if drawn else [],
        "Executed": [nodes.Text(clipped(f"{run.finished[:10]}, in {duration(run.seconds)}, profile {run.profile}"))],
        "Hardware": [nodes.Text(clipped(", ".join(machine)))],
        "Run": [nodes.literal("", run.run)],
        "Spec": [nodes.literal("", run.spec), nodes.Text(" "), *same_spec(run, runs)],
        "Source": source(run, address),
        "Download": separated([link for file in files for link in downloads(run, file)]),
        "Beside it": separated([elsewhere("compare.html?a=" + run.run, run, "compare with another run"),
                                elsewhere("runs.html?analysis=" + run.analysis, run, f"all runs of {run.analysis}")]),
    }  # fmt: skip
    fields = [field(name, content) for name, content in facts.items() if content]
    return nodes.container("", nodes.field_list("", *fields), classes=["run-header"])


def same_spec(run: Manifest, runs: Iterable[Manifest]) -> list[nodes.Node]:
    """Links to the runs that were asked the same."""
    others = [other for other in runs if other.spec == run.spec and other is not run]
    if not others:
        return [nodes.Text("(its only run)")]
    return [nodes.Text("also run as "), *separated([page_link(other) for other in others])]


def source(run: Manifest, address: str) -> list[nodes.Node]:
    """The notebook's source at the commit it was executed at; a link where the repository's address is known."""
    commit, path = run.git.commit, source_path(run)
    if not commit:
        return []
    text = f"{path} at commit {commit[:12]}"
    place = nodes.reference("", text, refuri=f"{address}/blob/{quote(commit)}/{path}") if address else nodes.Text(text)
    return [place, nodes.Text(", with local changes" * bool(run.git.dirty))]


def source_path(run: Manifest) -> str:
    return f"notebooks/{run.analysis}.py"


class Download(nodes.reference):
    """A link that saves a file under a name of its own."""


def open_download(translator: HTML5Translator, node: Download) -> None:
    about = {"href": node["refuri"], "download": node["named"]}
    translator.body.append(translator.starttag(node, "a", "", CLASS="download", **about))


def close_download(translator: HTML5Translator, node: Download) -> None:
    translator.body.append("</a>")


def downloads(run: Manifest, file: str) -> list[nodes.Node]:
    """Links to a file that the site keeps beside the page, and to the same table as CSV; saved, they name the run."""
    path = Path(file)
    if path.suffix == ".zip":
        return [Download("", "Everything (zip)", refuri=quote(file), named=file)]
    text = FILE_NAMES.get(file) or f"Data: {path.name}"
    name = f"{run.run}-{path.name}" if file != "index.ipynb" else f"{run.analysis}-{run.run}.ipynb"
    links: list[nodes.Node] = [Download("", text, refuri=quote(file), named=name)]
    if path.suffix == ".parquet":
        table = path.with_suffix(".csv")
        links.append(Download("", f"{table.name}", refuri=quote(table.as_posix()), named=f"{run.run}-{table.name}"))
    return links


def elsewhere(address: str, run: Manifest, text: str) -> nodes.reference:
    """A link from a run's page to one at the top of the site."""
    return nodes.reference("", text, refuri="../" * docname(run).count("/") + address, internal=True)


def folds(run: Manifest, root: Path) -> nodes.Node:
    """What some readers want: repeat the run, cite it, see every parameter."""
    known = where(root)
    citations = [code(citation.bibtex(run, known), "bibtex"), code(citation.apa(run, known))]
    fields = [field(clipped(name), [nodes.literal("", clipped(value))]) for name, value in run.parameters.items()]
    parts = [
        fold("Rerun this", *again(run, root), classes=["run-again"]),
        fold("Cite this analysis", *citations, classes=["run-cite"]),
        fold(f"All {len(fields)} parameters", nodes.field_list("", *fields), classes=["run-parameters"]),
    ]
    return nodes.container("", *parts, classes=["run-folds"])


def again(run: Manifest, root: Path) -> list[nodes.Node]:
    """The command that repeats a run, and how to get at the code it was made with."""
    commit, blocks = run.git.commit, list[nodes.Node]()
    if commit:
        lines = ["git", "show", f"{commit}:{source_path(run)}"], ["git", "checkout", commit]
        said = nodes.paragraph("", "The notebook as it was, and all the code as it was:")
        blocks = [said, *(code(shlex.join(line), "bash") for line in lines)]
    return [code(command(run, root), "bash"), *blocks]


def code(text: str, language: str = "text") -> nodes.literal_block:
    """Text with a copy button."""
    return nodes.literal_block(text, text, language=language)


def listed(names: Iterable[str]) -> list[nodes.Node]:
    return separated([nodes.literal("", clipped(name)) for name in names])


def separated(items: list[nodes.Node]) -> list[nodes.Node]:
    """The items with a space between them, so that lines can break there."""
    return [node for item in items for node in (item, nodes.Text(" "))][:-1]


def field(name: str, content: list[nodes.Node]) -> nodes.field:
    body = nodes.field_body("", nodes.paragraph("", "", *content))
    return nodes.field("", nodes.field_name("", name), body)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("runs")
    app.add_node(Download, html=(open_download, close_download))
    app.connect("source-read", drop_unshown)
    app.connect("doctree-read", add_header, priority=100)  # before titles are collected
    app.connect("html-page-context", escape_title, priority=900)
    return {"version": "1", "parallel_read_safe": True}
