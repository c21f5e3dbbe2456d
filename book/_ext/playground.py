"""`{playground}`: the twins in the reader's browser, and edits of them to try.

The models are written to `_static/playground/` from the package, the edits from `playground_edits.json`, which
`tools/playground_edits.py` computes; `playground.js` loads both when a reader asks, and never before. They are scripts,
not JSON, so that this works where the site is opened from a folder, too. Without JavaScript, and in print, there is a
picture.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cards import read_card
from docutils import nodes
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.axes import Axes
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from editlib.measuring.statistics import COLLAPSE_RATIO
from editlib.plot import METHOD_MARKS

HERE = Path(__file__).parent
SCRIPTS, STYLE = ("twin.js", "playground.js"), "playground.css"  # here, not in _static: all pages would load them
DASHES = {"rome": "-", "c-rome": "--", "fc-rome": ":"}
ALT = (
    "Perplexity of ten texts against the strength of an edit, on a log scale; above the anchored twin, below the "
    "control, and a column for each kind of subject. Only ROME's curve for a subject of one token at the start, on the "
    "anchored twin, leaves the unedited level, and soon passes the line of collapse."
)


# -- what is shipped -----------------------------------------------------------------------------------


def shortened(values: NDArray[np.float32]) -> str:
    """Of each float32 its upper three bytes, rounded, in base64: a quarter less to load, and a relative error of 2^-16.

    In half precision, perplexities of a collapsed twin would be more than 1e-3 off.
    """
    bits = values.astype("<f4").view("<u4") + np.uint32(0x80)  # rounds half up; the exponents of weights leave room
    return base64.b64encode(np.ascontiguousarray(bits.view("u1").reshape(-1, 4)[:, 1:]).tobytes()).decode()


def model(name: str) -> dict[str, Any]:
    """A twin's weights, (out, in), one after another, with name and size of each."""
    folder = Path(str(files("editlib") / "testbed" / name))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = load_file(folder / "model.safetensors")
    flat = {key: (value.T if conv1d(key, value) else value).ravel() for key, value in tensors.items()}
    sizes = [(key.removeprefix("transformer."), value.size) for key, value in flat.items()]
    data = shortened(np.concatenate(list(flat.values())))
    return {"heads": config["n_head"], "layers": config["n_layer"], "tensors": sizes, "data": data}


def conv1d(key: str, value: NDArray[np.float32]) -> bool:
    """Whether a weight is stored (in, out): all of GPT-2's matrices but its embeddings."""
    return value.ndim == 2 and ".h." in key


def merges() -> list[str]:
    """What the twins' tokenizer joins, in order; its vocabulary follows from it."""
    tokenizer = json.loads((files("editlib") / "testbed/anchored/tokenizer.json").read_text("utf-8"))
    return [" ".join(pair) for pair in tokenizer["model"]["merges"]]


@cache
def scripts(source: Path) -> dict[str, tuple[str, str]]:
    """The files to load by what they hold, each with its name and text."""
    edits = json.loads(source.read_text("utf-8"))
    for name, twin in edits["twins"].items():
        if twin["sha256"] != read_card(name)["sha256"]:
            raise ExtensionError(f"{source.name} is of another {name} twin: compute it with tools/playground_edits.py")
    held = {name: model(name) for name in edits["twins"]} | {"edits": edits | {"merges": merges()}}
    return {name: script(name, content) for name, content in held.items()}


def script(name: str, content: Mapping[str, Any]) -> tuple[str, str]:
    """A script that says something, under a name that changes with it."""
    text = f'(window.editlibPlayground ??= {{}})["{name}"] = {json.dumps(content, separators=(",", ":"))};\n'
    return f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:12]}.js", text


def megabytes(*sizes: int) -> str:
    return f"{sum(sizes) / 1e6:.1f} MB"


# -- the picture ---------------------------------------------------------------------------------------


def picture(edits: Mapping[str, Any]) -> str:
    """Curves over the strength for the first case of each kind, in the colour of the text around them."""
    cases = list({case["kind"]: case for case in reversed(edits["cases"])}.values())[::-1]
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "playground", "font.family": "sans-serif"}):
        figure, grid = plt.subplots(2, len(cases), figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
        for row, (name, twin) in zip(grid, edits["twins"].items(), strict=True):
            for axes, case in zip(row, cases, strict=True):
                draw(axes, edits["strengths"], twin["edits"][str(case["id"])]["methods"])
                axes.set_title(f"{name}: {case['kind']}", fontsize=10, loc="left")
        figure.supxlabel("Strength of the edit", fontsize=10)
        figure.supylabel("Perplexity of ten texts, times unedited", fontsize=10)
        grid[0][0].legend(fontsize=9, frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    drawn = written.getvalue()
    drawn = (
        drawn[drawn.index("<svg") :].replace("#000000", "currentColor").replace("<text", '<text fill="currentColor"')
    )
    return drawn.replace("<svg", f'<svg role="img" aria-label="{html.escape(ALT)}"', 1)


def draw(axes: Axes, strengths: list[float], methods: Mapping[str, Any]) -> None:
    for method, found in methods.items():
        color = METHOD_MARKS.get(method, ("#009e73",))[0]
        levels = np.array(found["curve"]) / found["curve"][0]
        axes.semilogy(strengths, levels, color=color, ls=DASHES[method], lw=2.2, label=method)
    axes.axhline(COLLAPSE_RATIO, color="#000000", lw=1, ls=(0, (4, 3)))
    axes.spines[["top", "right"]].set_visible(False)


# -- the book ------------------------------------------------------------------------------------------


class Playground(SphinxDirective):
    """`{playground}`: the picture, until a reader starts the twins."""

    def run(self) -> list[nodes.Node]:
        source = edits_of(self.env.app)
        self.env.note_dependency(str(source))
        edits, made = json.loads(source.read_text("utf-8")), scripts(source)
        drawn, sizes = picture(edits), {name: len(text) for name, (_, text) in made.items()}
        first, *others = edits["twins"]
        page = Environment(autoescape=True).from_string((HERE / "playground.html").read_text("utf-8"))
        shown = page.render(
            files=json.dumps({name: file for name, (file, _) in made.items()}), collapse=COLLAPSE_RATIO,
            twins=[first, *others], most=edits["strengths"][-1], picture=Markup(drawn),
            before=megabytes(len(drawn), *((HERE / name).stat().st_size for name in (*SCRIPTS, STYLE))),
            start=megabytes(sizes[first], sizes["edits"]), other=megabytes(*(sizes[name] for name in others)),
        )  # fmt: skip
        return [nodes.raw("", shown, format="html", classes=["playground-page"])]


def edits_of(app: Sphinx) -> Path:
    return Path(app.srcdir) / "playground_edits.json"


def ship(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """On the page of the playground alone, its scripts; beside them, the files that they load."""
    if doctree is None or not any("playground-page" in raw["classes"] for raw in doctree.findall(nodes.raw)):
        return
    folder = Path(app.outdir) / "_static/playground"
    folder.mkdir(parents=True, exist_ok=True)
    own = [(name, (HERE / name).read_text("utf-8")) for name in (*SCRIPTS, STYLE)]
    for name, text in (*own, *scripts(edits_of(app)).values()):
        (folder / name).write_text(text, "utf-8")
    for name in SCRIPTS:
        app.add_js_file(f"playground/{name}")
    app.add_css_file(f"playground/{STYLE}")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("playground", Playground)
    app.connect("html-page-context", ship)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
