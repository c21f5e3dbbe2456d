"""The header of a run's page: what was executed, how to repeat and cite it, what to download.

It rests on the manifest alone, which is checked here: a build stops at one that is not of its schema.
"""

from __future__ import annotations

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
from runs import Run, clipped, page_link, read_runs, spoken
from sphinx.application import Sphinx

from editlib.runs import citation
from editlib.runs.manifest import read_manifest

ACTIVE = re.compile(r"<\s*/?(script|iframe|object|embed|form|base|meta|link)\b|<[^>]*\son\w+\s*=|javascript:", re.I)
FILE_NAMES = {
    "index.ipynb": "Notebook", "manifest.json": "Manifest", "ro-crate-metadata.json": "RO-Crate",
    "citation.bib": "BibTeX",
}  # fmt: skip


def add_header(app: Sphinx, doctree: nodes.document) -> None:
    """Put what the manifest says below the title of a run's page."""
    book = Path(app.srcdir)
    runs = read_runs(book)
    run = next((run for run in runs if run.docname == app.env.docname), None)
    if run is None:
        return
    disarm(doctree)
    section = next(iter(doctree.findall(nodes.section)))
    address = app.config.html_theme_options.get("repository_url", "")
    section[1:1] = [*notices(run, book.parent), header(run, runs, address), folds(run, book)]


def disarm(doctree: nodes.document) -> None:
    """Show markup as text where a run's notebook has no use for it: HTML in its prose, scripts in its outputs."""
    for raw in list(doctree.findall(nodes.raw)):
        output = any("cell_output" in parent.get("classes", ()) for parent in ancestors(raw))
        if not output or ACTIVE.search(raw.astext()):
            raw.replace_self(
                nodes.literal("", raw.astext()) if is_inline(raw) else nodes.literal_block("", raw.astext())
            )


def escape_title(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """For print, the theme repeats a page's title as if it were HTML."""
    if "pagetitle" in context:
        context["pagetitle"] = escape(context["pagetitle"])


def ancestors(node: nodes.Node) -> Iterable[Any]:
    while node.parent is not None:
        yield (node := node.parent)


def is_inline(node: nodes.Node) -> bool:
    return isinstance(node.parent, nodes.TextElement)


def notices(run: Run, root: Path) -> list[nodes.Node]:
    """What a reader should know before citing the run."""
    said: list[nodes.Node] = []
    if run.local:
        text = "Local run, not published: it is on this machine only. Do not cite it."
        said.append(nodes.attention("", nodes.paragraph("", text)))
    if what := changed(run, root):
        verb = "have" if len(what) > 1 else "has"
        text = (
            f"Made by older code: {' and '.join(what)} {verb} changed since. Executing it again may give other numbers."
        )
        said.append(nodes.paragraph("", text, classes=["run-older"]))
    return said


def header(run: Run, runs: Iterable[Run], address: str) -> nodes.Node:
    """The facts, most important first, and the downloads."""
    manifest, n, seed = run.manifest, run.parameters.get("n"), run.parameters.get("seed")
    drawn = [f"n = {spoken('n', n)}"] * (n is not None) + [f"seed {seed}"] * (seed is not None)
    facts: dict[str, list[nodes.Node]] = {
        "Model": listed(manifest["inputs"]["models"]),
        "Data": listed([*manifest["inputs"]["data"], *manifest["inputs"]["files"]]),
        "Drawn": [nodes.Text(clipped(", ".join(drawn)))] if drawn else [],
        "Executed": [nodes.Text(clipped(f"{run.date}, in {run.duration}, profile {run.profile}"))],
        "Hardware": [nodes.Text(clipped(spoken_hardware(manifest["hardware"])))],
        "Run": [nodes.literal("", run.id)],
        "Spec": [nodes.literal("", run.spec), nodes.Text(" "), *same_spec(run, runs)],
        "Source": source(run, address),
        "Download": separated([download(run, file) for file in run.files]),
        "Beside it": separated([elsewhere("compare.html?a=" + run.id, run, "compare with another run"),
                                elsewhere("runs.html?analysis=" + run.analysis, run, f"all runs of {run.analysis}")]),
    }  # fmt: skip
    fields = [field(name, content) for name, content in facts.items() if content]
    return nodes.container("", nodes.field_list("", *fields), classes=["run-header"])


def spoken_hardware(hardware: dict[str, Any]) -> str:
    parts = [f"{hardware['cpu']}, {hardware['cores']} cores", f"{hardware['memory_gib']:.0f} GiB"]
    return ", ".join(parts + [str(gpu) for gpu in hardware.get("gpus", [])])


def same_spec(run: Run, runs: Iterable[Run]) -> list[nodes.Node]:
    """Links to the runs that were asked the same."""
    others = [other for other in runs if other.spec == run.spec and other is not run]
    if not others:
        return [nodes.Text("(its only run)")]
    return [nodes.Text("also run as "), *separated([page_link(other) for other in others])]


def source(run: Run, address: str) -> list[nodes.Node]:
    """The notebook's source at the commit it was executed at; a link where the repository's address is known."""
    commit, path = run.manifest["git"]["commit"], source_path(run)
    if not commit:
        return []
    text = f"{path} at commit {commit[:12]}"
    place = nodes.reference("", text, refuri=f"{address}/blob/{quote(commit)}/{path}") if address else nodes.Text(text)
    return [place, nodes.Text(", with local changes" * bool(run.manifest["git"]["dirty"]))]


def source_path(run: Run) -> str:
    return f"notebooks/{run.analysis}.py"


def download(run: Run, file: str) -> nodes.reference:
    """A link to a file that the site keeps beside the page."""
    text = FILE_NAMES.get(file) or f"Data: {Path(file).name}"
    return nodes.reference("", text, refuri=file, internal=True, classes=["download"])


def elsewhere(address: str, run: Run, text: str) -> nodes.reference:
    """A link from a run's page to one at the top of the site."""
    return nodes.reference("", text, refuri="../" * run.docname.count("/") + address, internal=True)


def folds(run: Run, book: Path) -> nodes.Node:
    """What some readers want: repeat the run, cite it, see every parameter."""
    cited = read_manifest(book / run.folder)
    citations = [code(citation.bibtex(cited), "bibtex"), code(citation.apa(cited))]
    parameters = parameter_list(run.parameters)
    parts = [
        fold("Rerun this", *again(run, book.parent), classes=["run-again"]),
        fold("Cite this analysis", *citations, classes=["run-cite"]),
        fold(f"All {len(parameters)} parameters", parameters, classes=["run-parameters"]),
    ]
    return nodes.container("", *parts, classes=["run-folds"])


def again(run: Run, root: Path) -> list[nodes.Node]:
    """The command that repeats a run, and how to get at the code it was made with."""
    commit, blocks = run.manifest["git"]["commit"], list[nodes.Node]()
    if commit:
        lines = ["git", "show", f"{commit}:{source_path(run)}"], ["git", "checkout", commit]
        said = nodes.paragraph("", "The notebook as it was, and all the code as it was:")
        blocks = [said, *(code(shlex.join(line), "bash") for line in lines)]
    return [code(command(run, root), "bash"), *blocks]


def code(text: str, language: str = "text") -> nodes.literal_block:
    """Text with a copy button."""
    return nodes.literal_block(text, text, language=language)


def parameter_list(parameters: dict[str, Any]) -> nodes.field_list:
    fields = [field(clipped(name), [nodes.literal("", clipped(value))]) for name, value in parameters.items()]
    return nodes.field_list("", *fields)


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
    app.connect("doctree-read", add_header, priority=100)  # before titles are collected
    app.connect("html-page-context", escape_title, priority=900)
    return {"version": "1", "parallel_read_safe": True}
