"""1-LI: as little of an update as makes the edit hold, on the line from the unedited weights (Brown et al. 2023).

    W(α) = W + α Δ

Rule: the least α of 1/n, 2/n, ... 1 at which every token of every target is the model's first choice behind its prompt,
each behind the true ones before it; 1 if there is none. The paper edits one layer and weighs accuracy on edits against
robustness elsewhere; its own rule was not to be had. This one keeps all accuracy on the edit, and no more. An update of
several layers is scaled as a whole.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, PositiveInt

from editlib.editing.edit import Edit
from editlib.editing.methods.filters.filter import Filter, Found, Kept
from editlib.models.tokens import encode, pad

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class LineParams:
    """Hyper-parameters of 1-LI."""

    li_points: PositiveInt = 20  # n
    li_alpha: Annotated[float, Field(ge=0, le=1)] | None = None  # this α, without a search


class Line(Filter):
    """1-LI."""

    name, hparams = "1-li", LineParams
    paper, equation = "Brown et al. 2023, Robustness of Edited Neural Networks", "interpolation of one layer"

    def filtered(self, session: "Session", edit: Edit, params: LineParams, kept: Kept) -> Found:
        """Δ times α, and whether the edit holds there."""
        points = [(i + 1) / params.li_points for i in range(params.li_points)]
        tried = points if params.li_alpha is None else [params.li_alpha]
        least = next((alpha for alpha in tried if holds(session, edit.scaled(alpha))), None)
        alpha = tried[-1] if least is None else least
        return edit.scaled(alpha).changes, {"li_alpha": alpha, "li_held": least is not None}


@torch.no_grad()
def holds(session: "Session", edit: Edit) -> bool:
    """Whether under an edit every token of its targets is the first choice; no pass below the layer of an edit of one
    down-projection but the first time."""
    lm, requests = session.lm, edit.requests
    rows = [encode(lm.tokenizer, r.prompt, r.subject, target=r.target_new, separator=r.separator) for r in requests]
    at = [(i, position) for i, row in enumerate(rows) for position in range(len(row.ids))[row.predicting]]
    wanted = torch.tensor([token for row in rows for token in row.wanted], device=lm.device)
    logits = session.logits(edit)
    if logits:
        return bool((logits([row.ids for row in rows], at).argmax(-1) == wanted).all())
    ids, mask = pad([row.ids for row in rows], lm.device)
    row, position = torch.tensor(at, device=lm.device).T
    with edit.applied(lm):
        predicted = lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits[row, position]
    return bool((predicted.argmax(-1) == wanted).all())
