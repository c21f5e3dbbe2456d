"""LocFT-BF: fine-tuning of one layer's down-projection, breadth first (Yang et al. 2026, Fine-tuning Done Right).

Epochs over all requests in shuffled batches, instead of one request until it is learnt, then the next. The loss of a
batch is the mean over requests of the mean NLL of the target and the end of text behind it; a batch below `stop_loss`
takes no step, an epoch below it is the last. Deviations from the released code: shuffled with a seed, and no token is
added for padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from editlib.data.request import EditRequest
from editlib.editing.change import Dense
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.ft import target_loss
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class LocFtParams:
    """Hyper-parameters of LocFT-BF; as released for Llama 3 8B, whose layer is 22 of 32."""

    layer: int
    steps: PositiveInt = 25  # epochs
    batch: PositiveInt = 100
    learning_rate: PositiveFloat = 5e-4  # Adam
    weight_decay: NonNegativeFloat = 0.0
    stop_loss: float = 1e-2
    seed: int = 0  # of the order in an epoch


class LocFt(Method):
    """LocFT-BF."""

    name, hparams, several = "locft-bf", LocFtParams, True
    paper, equation = "Yang et al. 2026, Fine-tuning Done Right in Model Editing", "released code, fine-tune.py"

    def layers(self, params: LocFtParams) -> tuple[int, ...]:
        """The one."""
        return (params.layer,)

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: LocFtParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of one layer; `losses` are the epochs' means. Raises `EditlibError` if a target cannot be located."""
        lm, rows = session.lm, [_ended(session.lm, request) for request in requests]
        delta = torch.zeros_like(widened(lm.weight(params.layer)), requires_grad=True)
        adam = torch.optim.Adam([delta], lr=params.learning_rate, weight_decay=params.weight_decay)
        generator, losses = torch.Generator().manual_seed(params.seed), list[float]()
        for _ in range(params.steps):
            order, epoch_losses = torch.randperm(len(rows), generator=generator), list[float]()
            for batch in order.split(params.batch):
                loss = target_loss(lm, params.layer, delta, [rows[i] for i in batch], "teacher-forced")
                epoch_losses += [loss.item()] * len(batch)
                if epoch_losses[-1] >= params.stop_loss:
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
            losses.append(sum(epoch_losses) / len(epoch_losses))
            if losses[-1] < params.stop_loss:
                break
        changes = {f"{lm.layout.name(params.layer)}.weight": Dense(delta.detach())}
        return session.edit(self, requests, params, changes, {"steps": len(losses), "losses": losses}), state


def _ended(lm: LanguageModel, request: EditRequest) -> Encoded:
    """A request with its target, and the end of text if there is a token for it."""
    row = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new, separator=request.separator)
    end = lm.tokenizer.eos_token_id
    return row if end is None else replace(row, ids=(*row.ids, end))
