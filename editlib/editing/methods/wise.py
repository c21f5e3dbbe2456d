"""WISE: side memories of one late layer, each of many edits, and a rule which texts use them (Wang et al. 2024).

    W x + Δ_m x    for the memory with the largest D_m among those with D_m >= ratio · the least D_m of its edits
    D_m = mean_t ‖Δ_m x_t‖

An edit trains a random part of the memory's entries, the same for all its edits and within a bound, by plain gradient
steps on its target and on margins: D of its prompt should be large, that of other texts small. A full memory is closed,
and several are merged by TIES (Yadav et al. 2023). Read in EasyEdit's code. Deviations from it: D is the mean over the
tokens up to each one (there one decision for a whole batch, and beyond 100 tokens the largest token's); the memory is
trained from the prompt's last token on, where it is sure to be used; other texts are the prefix contexts, all at each
step, the one that is moved most counting; there is no weight decay; a training ends by its loss alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.added import encoded, inputs_of, loss_with, other_inputs
from editlib.editing.methods.ft import descent
from editlib.editing.methods.overlaid import earlier, overlaid
from editlib.editing.overlays.side import Side
from editlib.editing.stats import FirstPosition
from editlib.engine.prefixes import Flavour
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import Encoded

if TYPE_CHECKING:
    from editlib.editing.session import Session

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class WiseParams:
    """Hyper-parameters of WISE; as released for Llama 2 7B, whose layer is 27 of 32."""

    layer: int
    mask_share: Share = 0.2  # of a memory's entries, that its edits write
    limit: PositiveFloat = 1.0  # largest |Δ| of any entry
    ratio: PositiveFloat = 0.88  # of the least D of a memory's edits, from which on a text uses it
    alpha: float = 5.0  # largest D of other texts, in the unit of the layer's output
    beta: float = 20.0  # least D of an edit's prompt
    gamma: float = 10.0  # least distance of the two
    steps: PositiveInt = 70
    learning_rate: PositiveFloat = 1.0  # plain gradient steps
    stop_loss: float = 0.02
    edits: PositiveInt = 500  # that a memory holds
    merged: PositiveInt = 2  # full memories that become one; 1 for none
    density: Share = 0.53  # of entries that TIES keeps
    seed: int = 0  # of the entries
    contexts: Flavour = "yang-2024"  # which stored prefix contexts are the other texts
    first_position: FirstPosition = "keep"  # drop: position 0 is never edited, and in no mean


class Wise(Method):
    """WISE."""

    name, hparams, several, weights, remembers = "wise", WiseParams, True, False, True
    paper, equation = "Wang et al. 2024, WISE", "sections 2.3 and 2.4"

    def layers(self, params: WiseParams) -> tuple[int, ...]:
        """The one beside which the memories are."""
        return (params.layer,)

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: WiseParams, state: State | None = None
    ) -> tuple[Edit, State]:
        """The memories with all requests up to now; diagnostics have D of each request's prompt and the largest of
        other texts, after it was trained, and the memories' norm. Raises `EditlibError` if a target cannot be located,
        for a prompt of position 0 alone where that is left alone, or for a state of another model or layer."""
        lm, module, skip = session.lm, session.lm.layout.name(params.layer), int(params.first_position == "drop")
        shape = lm.weight(params.layer).shape
        empty = Side(
            module, skip, params.ratio, (), torch.zeros(0, *shape, device=lm.device), torch.zeros(0, device=lm.device)
        )
        side = earlier(lm, state, self, Side) or empty
        if side.module != module:
            raise EditlibError(f"this state's memories are beside {side.module}, not {module}; begin with state=None")
        others = other_inputs(session, module, params.contexts, skip)
        losses, inside, outside = list[list[float]](), list[float](), list[float]()
        for request in requests:
            row = encoded(lm, request, skip)
            side = _opened(side, params)
            delta, within, beyond, curve = _written(lm, side, row, others, params)
            least = torch.cat([side.least[:-1], side.least[-1:].clamp(max=within)])
            deltas, edits = torch.cat([side.deltas[:-1], delta[None]]), (*side.edits[:-1], side.edits[-1] + 1)
            side = _merged(replace(side, deltas=deltas, least=least, edits=edits), params)
            losses, inside, outside = [*losses, curve], [*inside, within], [*outside, beyond]
        numbers = {
            "steps": max(map(len, losses)), "losses": losses, "entries": len(side.edits), "inside": inside,
            "outside": outside, "memory_norm": float(side.deltas.norm()),
        }  # fmt: skip
        return overlaid(session, self, requests, params, side, numbers)


def _opened(side: Side, params: WiseParams) -> Side:
    """With a memory that has room for an edit."""
    if side.edits and side.edits[-1] < params.edits:
        return side
    _, *shape = side.deltas.shape
    deltas = torch.cat([side.deltas, side.deltas.new_zeros(1, *shape)])
    return replace(side, deltas=deltas, least=torch.cat([side.least, side.least.new_tensor([math.inf])]),
                   edits=(*side.edits, 0))  # fmt: skip


def _merged(side: Side, params: WiseParams) -> Side:
    """With the last memories as one, where they are full and as many as are merged."""
    n = params.merged
    if n == 1 or side.edits[-n:] != (params.edits,) * n:
        return side
    deltas = torch.cat([side.deltas[:-n], ties(side.deltas[-n:], params.density)[None]])
    least = torch.cat([side.least[:-n], side.least[-n:].min()[None]])
    return replace(side, deltas=deltas, least=least, edits=(*side.edits[:-n], n * params.edits))


def ties(deltas: Tensor, density: float) -> Tensor:
    """One change of several (memories, d_out, d_in): of each its largest entries are kept, and at each place the mean
    of those that have the sign of their sum. Source: Yadav et al. 2023, TIES-Merging, section 4."""
    sizes = deltas.abs().flatten(1)
    floors = sizes.topk(max(1, round(density * sizes.shape[1])), dim=1).values[:, -1]
    kept = deltas.where(deltas.abs() >= floors[:, None, None], 0.0)
    agreeing = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return (kept * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def entries(params: WiseParams, shape: Sequence[int], memory: int) -> Tensor:
    """Which entries the edits of a memory write, by how many there were before it.  # (d_out, d_in), bool"""
    generator = torch.Generator().manual_seed(params.seed + memory)
    return torch.rand(*shape, generator=generator) < params.mask_share


def _written(
    lm: LanguageModel, side: Side, row: Encoded, others: Sequence[Tensor], params: WiseParams
) -> tuple[Tensor, float, float, list[float]]:
    """The last memory's change after an edit, D of the edit's prompt and of the other text it moves most, and the loss
    of every step."""
    inputs = inputs_of(lm, side.module, row.ids[:-1])
    asked = torch.arange(len(inputs), device=lm.device)[:, None] >= row.target - 1
    own = side.deltas[-1].clone().requires_grad_()
    mask = entries(params, own.shape, sum(side.edits) // params.edits).to(own.device)

    def distances(change: Tensor) -> tuple[Tensor, Tensor]:
        within, *moved = ((x @ change.T).norm(dim=-1).mean() for x in (inputs[side.skip : row.target], *others))
        return within, torch.stack([within.new_zeros(()), *moved]).max()

    def loss() -> Tensor:
        change = own.where(mask, 0.0)
        within, beyond = distances(change)
        margins = (beyond - within + params.gamma, beyond - params.alpha, params.beta - within)
        moved = (inputs @ change.T) * asked
        said = loss_with(lm, side.module, row, lambda output: output + moved.to(output.dtype))
        return said + torch.stack(margins).clamp(min=0).sum()

    losses = list[float]()
    for each in descent([own], loss, params, torch.optim.SGD([own], lr=params.learning_rate)):
        losses.append(each)
        with torch.no_grad():
            own.clamp_(-params.limit, params.limit)
    within, beyond = (float(each) for each in distances(own.detach()))
    return own.detach(), within, beyond, losses
