"""MEMOIR: a residual memory beside one layer, of which each edit writes columns of its own (Wang et al. 2025).

    W x + Δ (x ∘ m_e)        m_e = π(the k columns where x̄ is furthest from b)

x̄ is the mean input over the prompt's tokens, b that over other texts, π a random order of the columns, e the edit whose
columns have most in common with the text's. An edit trains its own columns of Δ by plain gradient steps on its target.
Read in the re-implementation beside NAS. Deviations from it: a text is compared with the edits at every token, by the
tokens up to it, since a pass does not say where its prompt ends; there is no weight decay, which shrinks other edits'
columns too; k is a share of the columns; b is taken from the prefix contexts; a training ends by its loss alone; π is
kept with the edit.
"""

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
from editlib.editing.overlays.residual import Residual
from editlib.editing.stats import FirstPosition
from editlib.engine.prefixes import Flavour
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import Encoded

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class MemoirParams:
    """Hyper-parameters of MEMOIR; as published for Llama 3 8B, whose layer is 27 of 32."""

    layer: int
    mask_share: Annotated[float, Field(gt=0, le=1)] = 0.2857  # of the columns, an edit's own; 4,096 of 14,336
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.4  # share in common from which on a text is an edit's
    steps: PositiveInt = 30
    learning_rate: PositiveFloat = 1.0  # plain gradient steps
    clip: PositiveFloat = 1.0  # longest gradient
    stop_loss: float = 0.02
    seed: int = 0  # of the columns' order
    contexts: Flavour = "yang-2024"  # which stored prefix contexts are the other texts
    first_position: FirstPosition = "keep"  # drop: position 0 is never edited, and in no mean


class Memoir(Method):
    """MEMOIR."""

    name, hparams, several, weights, remembers = "memoir", MemoirParams, True, False, True
    paper, equation = "Wang et al. 2025, MEMOIR", "section 3"

    def layers(self, params: MemoirParams) -> tuple[int, ...]:
        """The one beside which the memory is."""
        return (params.layer,)

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: MemoirParams, state: State | None = None
    ) -> tuple[Edit, State]:
        """The memory with all requests up to now; diagnostics have each request's share of columns in common with the
        earlier edit it resembles most, and Δ's norm. Raises `EditlibError` if a target cannot be located, or for a
        state of another model or layer."""
        lm, module = session.lm, session.lm.layout.name(params.layer)
        memory = earlier(lm, state, self, Residual) or self.begin(session, params)
        if memory.module != module:
            raise EditlibError(f"this state's memory is beside {memory.module}, not {module}; begin with state=None")
        losses, alike = list[list[float]](), list[float | None]()
        for request in requests:
            row = encoded(lm, request, memory.skip)
            inputs = inputs_of(lm, module, row.ids[:-1])[None]
            alike.append(float(memory.nearest(inputs)[0][0, row.target - 1]) if len(memory.masks) else None)
            mask = memory.columns(inputs, memory.masks.shape[1])[0, row.target - 1]
            if not any(torch.equal(mask, known) for known in memory.masks):
                memory = replace(memory, masks=torch.cat([memory.masks, mask[None]]))
            delta, curve = _written(lm, memory, row, inputs, mask, params)
            memory, losses = replace(memory, delta=delta), [*losses, curve]
        numbers = {
            "steps": max(map(len, losses)), "losses": losses, "entries": len(memory.masks), "alike": alike,
            "memory_norm": float(memory.delta.norm()),
        }  # fmt: skip
        return overlaid(session, self, requests, params, memory, numbers)

    def begin(self, session: "Session", params: MemoirParams) -> Residual:
        """A memory of nothing."""
        lm, module, skip = session.lm, session.lm.layout.name(params.layer), int(params.first_position == "drop")
        d_out, d_in = lm.weight(params.layer).shape
        order = torch.randperm(d_in, generator=torch.Generator().manual_seed(params.seed))
        masks = torch.zeros(0, max(1, round(params.mask_share * d_in)), dtype=torch.int64, device=lm.device)
        delta = torch.zeros(d_out, d_in, device=lm.device)
        others = [inputs.mean(0) for inputs in other_inputs(session, module, params.contexts, skip)]
        background = torch.stack(others).mean(0) if others else delta.new_zeros(d_in)
        return Residual(module, skip, params.threshold, order.to(lm.device), background, masks, delta)


def _written(
    lm: LanguageModel, memory: Residual, row: Encoded, inputs: Tensor, mask: Tensor, params: MemoirParams
) -> tuple[Tensor, list[float]]:
    """Δ with an edit's columns trained, where each token's text goes the way it will go, and the loss of every step."""
    shares, edits = memory.nearest(inputs)
    used = inputs[0] * memory.allowed()[edits[0]] * (shares[0] >= memory.threshold)[:, None]
    own = memory.delta[:, mask].clone().requires_grad_()

    def whole() -> Tensor:
        return memory.delta.index_copy(1, mask, own)

    def loss() -> Tensor:
        moved = used @ whole().T
        return loss_with(lm, memory.module, row, lambda output: output + moved.to(output.dtype))

    sgd = torch.optim.SGD([own], lr=params.learning_rate)
    losses = list(descent([own], loss, params, sgd, params.clip))
    return whole().detach(), losses
