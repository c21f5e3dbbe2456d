"""`{editing-methods}`: the editing methods in one table, from `METHODS` itself."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from editlib.editing.method import Method
from editlib.editing.methods import METHODS

HEAD = ("Name", "Source", "Equation", "Requests at once", "One after another", "Writes")
CITED = {  # keys of references.bib
    "ft": "zhu2020modifying", "ft-l": "zhu2020modifying", "mend": "mitchell2022fast", "rome": "meng2022locating",
    "c-rome": "yang-etal-2024-fall", "p-rome": "gupta2024rebuilding", "r-rome": "gupta2024rebuilding",
    "memit": "meng2023mass", "emmet": "gupta2024unified", "memit-seq": "fang2025alphaedit",
    "encore": "gupta2025lifelong", "alphaedit": "fang2025alphaedit", "nas": "liu2026norm", "rlsedit": "wang2026beyond",
    "d4s": "huang2024reasons", "locft-bf": "yang2026finetuning", "lora": "hu2022lora", "kn": "dai2022knowledge",
    "coachhook": "li2024consecutive", "grace": "hartvigsen2023aging", "memoir": "wang2025memoir",
    "wise": "wang2024wise", "serac": "mitchell2022memory", "skeme": "zeng2024fame", "ike": "zheng2023edit",
}  # fmt: skip


def row(method: Method) -> tuple[str, ...]:
    """The cells of a method."""
    key = CITED.get(method.name)
    return (
        f"`{method.name}`",
        f"{{cite}}`{key}`" if key else method.paper,
        method.equation,
        "several" if method.several else "one",
        "remembers" if method.remembers else "each on the last",
        "weights" if method.weights else "nothing",
    )


class EditingMethods(SphinxDirective):
    """`{editing-methods}`."""

    def run(self) -> list[nodes.Node]:
        rows = [HEAD, (":--",) * len(HEAD), *map(row, METHODS.values())]
        return self.parse_text_to_nodes("\n".join(f"| {' | '.join(cells)} |" for cells in rows))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("editing-methods", EditingMethods)
    return {"version": "1", "parallel_read_safe": True}
