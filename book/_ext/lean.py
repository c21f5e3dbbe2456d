"""Keep pages light: of what the theme loads with each, only what a page uses.

- Icons: 80 of 2,000 kilobytes, as a script that draws them and as styles for readers without JavaScript.
- The search's index: the page that searches has it, and the others lead there.
- Pictures are loaded when a reader comes near. Their place is kept free, so that a page does not move under its reader.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ICON = re.compile(r'"?([a-z0-9-]+)"?:(\[\d+,\d+,\[[^\]]*\],"[0-9a-f]*",(?:"[^"]*"|\[[^\]]*\])\]),?')  # name:[width,…]
RULE = re.compile(r'(?:\.fa-[a-z0-9-]+:before,?)+\{content:"[^"]*"\}')
NAME = re.compile(r"\bfa-([a-z0-9-]+)")
PICTURE = re.compile(r'<img (?=[^>]*loading="lazy")(?![^>]*\b(?:width|height)=)(?=[^>]*src="([^"]+\.png)")')
SEARCH = re.compile(r'\s*<script src="[^"]*\b(?:searchtools|language_data|searchindex)\.js[^"]*"></script>')


def used(site: Path) -> set[str]:
    """Names of icons on the pages, and in the scripts that put more on them."""
    files = [*site.rglob("*.html"), *(file for file in site.glob("_static/**/*.js") if file.name != "fontawesome.js")]
    return {name for file in files for name in NAME.findall(file.read_text("utf-8"))}


def drawn(script: str, names: set[str]) -> str:
    """The script that draws icons with no others than these; an entry may list further names of its icon."""

    def kept(icon: re.Match[str]) -> str:
        further = re.findall(r'"([a-z0-9-]+)"', icon[2].split("]", 1)[0])
        return icon[0] if {icon[1], *further} & names else ""

    return ICON.sub(kept, script)


def styled(style: str, names: set[str]) -> str:
    """The styles with icons only where no script draws them, so that other readers need not load their font."""
    rules = [rule for rule in RULE.findall(style) if names.intersection(NAME.findall(rule))]
    return RULE.sub("", style) + "@media (scripting: none) {" + "".join(rules) + "}"


def sized(page: str, folder: Path) -> str:
    """A page in `folder` whose pictures tell their size in pixels."""

    def told(picture: re.Match[str]) -> str:
        header = (folder / picture[1]).read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:])  # where a PNG has them
        return f'{picture[0]}width="{width}" height="{height}" '

    return PICTURE.sub(told, page)


def lighten(app: Sphinx, problem: Exception | None) -> None:
    """Take out of the built site what it does not use."""
    if problem is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    names = used(site)
    for path, change in (("scripts/fontawesome.js", drawn), ("styles/pydata-sphinx-theme.css", styled)):
        file = site / "_static" / path
        file.write_text(change(file.read_text("utf-8"), names), "utf-8")
    for page in site.rglob("*.html"):
        text = sized(page.read_text("utf-8"), page.parent)
        page.write_text(text if page.name == "search.html" else SEARCH.sub("", text), "utf-8")


def delay_pictures(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for image in doctree.findall(nodes.image):
        image["loading"] = "lazy"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", delay_pictures)
    app.connect("build-finished", lighten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
