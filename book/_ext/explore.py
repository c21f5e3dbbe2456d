"""Let readers look closer: beside a picture, a button that loads the data behind it as an interactive plot.

`closeups.PLOTS` names the pictures this is done for, on every page that shows one: `{run-figure} pilot/scatter`, and
the page of the run itself. The data is written to `_static/explore/<analysis>-<picture>.<run>.js`, beside Bokeh's
script; `explore.js` fetches both when a reader asks, and never before. They are scripts, not JSON, so that this works
where the site is opened from a folder, too. Without JavaScript, and in print, the picture is all there is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from bokeh import __version__ as bokeh_version
from bokeh.util.paths import bokehjs_path
from closeups import PLOTS
from docutils import nodes
from sphinx.application import Sphinx

PICTURE = re.compile(r"(runs/([^/]+)/[^/]+)/figures/([^/]+)\.(?:png|svg)$")  # folder, analysis, picture


class Explorable(nodes.General, nodes.Element):
    """A picture that can be explored; its attributes are what `explore.js` reads."""


def open_tag(writer: Any, node: Explorable) -> None:
    data = {f"data-{name}": node[name] for name in ("explore", "about", "run")}
    writer.body.append(writer.starttag(node, "div", CLASS="explore", **data))


def close_tag(writer: Any, node: Explorable) -> None:
    writer.body.append("</div>\n")


def add_explorers(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Wrap the pictures of a page that can be explored, and write what that needs."""
    if app.builder.format != "html":
        return
    for image, folder, name in list(pictures(doctree, page)):
        file = write(Path(app.srcdir) / folder, name, Path(app.outdir) / "_static/explore")
        own = page == f"{folder}/index"
        run = "" if own else app.builder.get_relative_uri(page, f"{folder}/index")
        shown = image.parent if isinstance(image.parent, nodes.reference) else image
        wrapped = Explorable("", explore=file, about=image.get("alt", name), run=run)
        shown.replace_self(wrapped)
        wrapped += shown


def pictures(doctree: nodes.document, page: str) -> Iterator[tuple[nodes.image, str, str]]:
    """Pictures that can be explored, each with its run's folder and its key in `PLOTS`.

    They are figures of a run, known by their path, and on a run's own page what a cell shows that saves one.
    """
    for shown in doctree.findall(nodes.figure):
        for image in shown.findall(nodes.image):
            found = PICTURE.search(image["uri"])
            if found and f"{found[2]}/{found[3]}" in PLOTS:
                yield image, found[1], f"{found[2]}/{found[3]}"
    for name in PLOTS:
        analysis, picture = name.split("/")
        for cell in doctree.findall(nodes.container) if page.startswith(f"runs/{analysis}/") else ():
            if cell.get("nb_element") == "cell_code" and f"figures/{picture}." in cell.astext():
                yield from ((image, page.removesuffix("/index"), name) for image in cell.findall(nodes.image))


def write(run: Path, name: str, folder: Path) -> str:
    """Write the data of a picture, and Bokeh's script unless it is there; returns the data's name, without `.js`."""
    file = f"{name.replace('/', '-')}.{run.name}"
    script = folder / f"bokeh-{bokeh_version}.min.js"
    folder.mkdir(parents=True, exist_ok=True)
    if not script.exists():
        shutil.copyfile(Path(bokehjs_path(dev=False)) / "js/bokeh.min.js", script)
    text = drawn(run, name, script.name)
    (folder / f"{file}.js").write_text(f'(window.editlibExplore ??= {{}})["{file}"] = {text};\n', "utf-8")
    return file


@cache  # several pages show the same picture
def drawn(run: Path, name: str, script: str) -> str:
    """The data of a picture as JSON."""
    return json.dumps(vars(PLOTS[name](run)) | {"script": script}, allow_nan=False, separators=(",", ":"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(Explorable, html=(open_tag, close_tag))
    app.connect("doctree-resolved", add_explorers)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
