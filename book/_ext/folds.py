"""A part of a page that opens on request, as the browser's own `<details>`: no script, works with the keyboard."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


class Fold(nodes.General, nodes.Element):
    """The folded part; its first child is a `FoldTitle`."""


class FoldTitle(nodes.General, nodes.TextElement):
    """The line that is always seen."""


def fold(title: str, *content: nodes.Node, **attributes: Any) -> Fold:
    return Fold("", FoldTitle("", title), *content, **attributes)


def open_fold(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(translator.starttag(node, "details"))


def close_fold(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append("</details>\n")


def open_title(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(translator.starttag(node, "summary", ""))


def close_title(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append("</summary>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_node(Fold, html=(open_fold, close_fold))
    app.add_node(FoldTitle, html=(open_title, close_title))
    return {"version": "1", "parallel_read_safe": True}
