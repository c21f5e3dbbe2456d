"""`{run-compare}`: two runs side by side, chosen by the reader, filled by `compare.mjs` from what the site holds."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FORM = """<form class="compare-form" hidden>
<div><label for="run-of">Analysis</label><select id="run-of" name="analysis" class="form-select"></select></div>
<div><label for="run-a">Run A</label><select id="run-a" name="a" class="form-select"></select></div>
<div><label for="run-b">Run B</label><select id="run-b" name="b" class="form-select"></select></div>
</form>
<p id="compare-status" role="status">The comparison needs a script, which did not run. \
Open this page through a web server (<code>python -m http.server -d _build/html</code>), with scripts allowed.</p>
<div id="comparison"></div>
"""


class RunCompare(SphinxDirective):
    """`{run-compare}`: the form and the place for its answer."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", FORM, format="html", classes=["run-compare"])]


def add_script(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Load the script on the page of the form alone."""
    if doctree is not None and any("run-compare" in raw["classes"] for raw in doctree.findall(nodes.raw)):
        app.add_js_file("compare.mjs", type="module")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("run-compare", RunCompare)
    app.connect("html-page-context", add_script)
    return {"version": "1", "parallel_read_safe": True}
