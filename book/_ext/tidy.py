"""Repairs of what other extensions write into the pages."""

from __future__ import annotations

import logging
from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from myst_parser.config.main import MdParserConfig
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Nothing here runs code in the page, and Thebe's scripts, added twice, fail on every one."""
    scripts = context["script_files"]
    context["script_files"] = [script for script in scripts if "thebe" not in str(script).lower()]


def name_toggles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """The arrows that unfold the navigation say to a screen reader what they do."""
    generate = context["generate_toctree_html"]

    def named(*options: Any, **named_options: Any) -> str:
        html = str(generate(*options, **named_options))
        return html.replace("<summary><span", '<summary aria-label="Pages below"><span')

    context["generate_toctree_html"] = named


def name_factories(app: Sphinx, *event: Any) -> tuple[str | None, str | None]:
    """A default that a dataclass makes anew prints as `<factory>`, which is not Python; `...` is."""
    signature, returns = event[-2:]
    return signature and signature.replace("<factory>", "..."), returns


def describe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Tell search engines and link previews what a page is about: its title, and its first paragraph."""
    if page == app.config.root_doc:
        context["docstitle"] = ""  # it is this page's title already
    if doctree is None:
        return
    about = next((text for part in doctree.findall(nodes.paragraph) if (text := " ".join(part.astext().split()))), "")
    told = {"og:title": app.env.titles[page].astext(), "og:site_name": app.config.html_title, "og:type": "article"}
    tags = [f'<meta property="{name}" content="{escape(str(value))}" />' for name, value in told.items()]
    tags += [
        f'<meta {name}="{key}" content="{escape(about[:200])}" />'
        for name, key in (("name", "description"), ("property", "og:description"))
    ]
    context["metatags"] = context.get("metatags", "") + "\n".join(tags)


def is_short(record: logging.LogRecord) -> bool:
    """MyST says its whole configuration, with the name of every number that a page can quote."""
    return not any(isinstance(part, MdParserConfig) for part in record.args or ())


def show_formula(translator: HTML5Translator, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw themselves; as it is written where it is not understood."""
    inline = isinstance(node, nodes.math)
    written = node.astext()
    try:
        drawn = convert(written, display="inline" if inline else "block")
    except Exception:  # the converter's errors have no name in common
        drawn = f"<code>{escape(written)}</code>"
    translator.body.append(translator.starttag(node, "span" if inline else "div", "", CLASS="math") + drawn)
    translator.body.append("</span>" if inline else "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", name_toggles, priority=900)
    app.connect("html-page-context", describe, priority=900)
    app.connect("autodoc-process-signature", name_factories)
    logging.getLogger("sphinx.myst_parser.sphinx_ext.main").addFilter(is_short)
    app.add_html_math_renderer("mathml", (show_formula, None), (show_formula, None))
    return {"version": "1", "parallel_read_safe": True}
