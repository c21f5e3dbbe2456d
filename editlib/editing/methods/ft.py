"""Fine-tuning of one layer's down-projection: FT, and FT-L, which keeps every entry within a bound of its old value.

Two objectives by name. `last-position` is the released codes' (ROME, MEMIT and both papers): every token of the target
is scored where the first one belongs. `teacher-forced` scores each where it belongs. Sources: Zhu et al. 2020,
Modifying Memories in Transformer Models; ROME (Meng et al. 2022), appendix E.1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from editlib.data.request import EditRequest
from editlib.editing.change import Dense
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode, pad

if TYPE_CHECKING:
    from editlib.editing.session import Session

Objective = Literal["teacher-forced", "last-position"]


@dataclass(frozen=True, kw_only=True)
class FtParams:
    """Hyper-parameters of FT."""

    layer: int
    steps: PositiveInt = 25
    learning_rate: PositiveFloat = 5e-4  # Adam
    objective: Objective = "teacher-forced"
    stop_loss: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class FtlParams(FtParams):
    """Hyper-parameters of FT-L."""

    limit: PositiveFloat = 5e-4  # largest |Δ| of any entry


class Ft(Method):
    """FT."""

    name, hparams, several = "ft", FtParams, True
    paper, equation = "Zhu et al. 2020, Modifying Memories", "equation 2, no bound"

    def layers(self, params: FtParams) -> tuple[int, ...]:
        """The one."""
        return (params.layer,)

    def limit(self, params: FtParams) -> float | None:
        """The bound of every entry of Δ."""
        return None

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: FtParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of one layer; raises `EditlibError` if a subject or a target cannot be located."""
        lm, limit = session.lm, self.limit(params)
        rows = [encode(lm.tokenizer, r.prompt, r.subject, target=r.target_new, separator=r.separator) for r in requests]
        delta = torch.zeros_like(widened(lm.weight(params.layer)), requires_grad=True)
        losses = list[float]()
        for loss in descent([delta], lambda: target_loss(lm, params.layer, delta, rows, params.objective), params):
            losses.append(loss)
            if limit is not None:
                with torch.no_grad():
                    delta.clamp_(-limit, limit)
        changes = {f"{lm.layout.name(params.layer)}.weight": Dense(delta.detach())}
        return session.edit(self, requests, params, changes, {"steps": len(losses), "losses": losses}), state


class Ftl(Ft):
    """FT-L."""

    name, hparams, equation = "ft-l", FtlParams, "equation 2, L-infinity bound"

    def limit(self, params: FtlParams) -> float:  # type: ignore[override]
        """The bound of every entry of Δ."""
        return params.limit


def descent(
    weights: Sequence[Tensor],
    loss: Callable[[], Tensor],
    params: Any,
    optimizer: torch.optim.Optimizer | None = None,
    clip: float = math.inf,
) -> Iterator[float]:
    """Steps on a loss, Adam's where no other optimizer is given, of gradients no longer than `clip`; each time the loss
    before the step. One below `stop_loss` takes none and is the last."""
    optimizer = optimizer or torch.optim.Adam(weights, lr=params.learning_rate)
    for _ in range(params.steps):
        current = loss()
        if current.item() < params.stop_loss:
            yield current.item()
            return
        optimizer.zero_grad()
        current.backward()
        if clip < math.inf:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        yield current.item()


def target_loss(lm: LanguageModel, layer: int, delta: Tensor, rows: Sequence[Encoded], objective: Objective) -> Tensor:
    """Mean over requests of the mean NLL of their target's tokens, under W + Δ."""
    ids, mask = pad([row.ids for row in rows], lm.device)
    module = lm.down(layer)
    weight = (widened(lm.weight(layer)) + delta).to(lm.weight(layer).dtype)
    changed = {f"{lm.layout.name(layer)}.weight": weight.T if isinstance(module, Conv1D) else weight}
    logits = functional_call(lm.model, changed, (), {"input_ids": ids, "attention_mask": lm.attended(mask)}).logits
    losses = list[Tensor]()
    for i, row in enumerate(rows):
        target = torch.arange(row.target, len(row.ids), device=logits.device)
        at = target - 1 if objective == "teacher-forced" else torch.full_like(target, row.target - 1)
        losses.append(torch.nn.functional.cross_entropy(widened(logits[i, at]), ids[i, target]))
    return torch.stack(losses).mean()
