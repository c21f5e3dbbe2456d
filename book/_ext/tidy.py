"""Three repairs of what other extensions write into the pages."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


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


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", name_toggles, priority=900)
    app.connect("autodoc-process-signature", name_factories)
    return {"version": "1", "parallel_read_safe": True}
