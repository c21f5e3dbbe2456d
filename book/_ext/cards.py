"""Models in the book: the shipped ones from the cards beside their weights, others from what was measured of them.

`{model-cards} anchored control` makes a table: one row per entry, one column per model, differing recipe
entries in bold. A page `smollm2.md` with a file `smollm2.json` beside it quotes that file's entries, as it would those
of a run: `{{ smollm2_layers }}`.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from docutils import nodes
from runs import quote
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from editlib.text import flat


def read_card(name: str) -> dict[str, Any]:
    card = files("editlib") / "testbed" / name / "card.json"
    return dict(json.loads(card.read_text("utf-8")))


def rows_of(card: dict[str, Any]) -> dict[str, str]:
    """Entries by dotted name, values as text; of a curve (step -> value), its end."""
    rows: dict[str, str] = {}
    for key, value in flat(card).items():
        name, _, step = key.rpartition(".")
        rows |= {name: f"{spoken(value)} at the end"} if step.isdigit() else {key: spoken(value)}
    return rows


def spoken(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(spoken, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value).lower() if value in (None, True, False) else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def row(key: str, values: list[str]) -> str:
    shown = [f"{value[:12]}…" if key == "sha256" else value for value in values]
    if key.startswith("recipe.") and len(set(values)) > 1:
        shown = [f"**{value}**" for value in shown]
    return f"| `{key}` | " + " | ".join(shown) + " |"


class ModelCards(SphinxDirective):
    """`{model-cards} anchored control`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names = self.arguments[0].split()
        try:
            cards = [rows_of(read_card(name)) for name in names]
        except FileNotFoundError as missing:
            fix = "train the model with `editlib testbed train`"
            raise self.error(f"no card {missing.filename}: {fix}") from missing
        keys = [key for key in dict.fromkeys(key for card in cards for key in card) if key != "name"]
        lines = [f"| | {' | '.join(names)} |", "|:--" * (len(names) + 1) + "|"]
        lines += [row(key, [card.get(key, "–") for card in cards]) for key in keys]
        return self.parse_text_to_nodes("\n".join(lines))


def quote_cards(app: Sphinx, config: Config) -> None:
    """Let pages quote the entries of the JSON files beside them."""
    for path in Path(app.srcdir).glob("*.json"):
        if path.with_suffix(".md").is_file():
            card = json.loads(path.read_text("utf-8"))
            texts = {f"{path.stem}_{key}": quote(key, value) for key, value in card.items()}
            config.myst_substitutions = {**config.myst_substitutions, **texts}


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", quote_cards)
    app.add_directive("model-cards", ModelCards)
    return {"version": "1", "parallel_read_safe": True}
