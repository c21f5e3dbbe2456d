"""What methods share that learn a change of one module's output: its inputs, and the loss under the change."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from editlib.data.request import EditRequest
from editlib.engine.prefixes import Flavour
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode
from editlib.models.trace import Replace, trace

if TYPE_CHECKING:
    from editlib.editing.session import Session


def encoded(lm: LanguageModel, request: EditRequest, skip: int) -> Encoded:
    """A request with its target; raises `EditlibError` if its prompt is the `skip` tokens that are left alone."""
    row = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new, separator=request.separator)
    if row.target <= skip:
        raise EditlibError(
            f"prompt {request.text[:40]!r} has one token, and first_position='drop' leaves it alone; ask for 'keep'"
        )
    return row


@torch.no_grad()
def inputs_of(lm: LanguageModel, module: str, ids: tuple[int, ...]) -> Tensor:
    """What goes into a module at every token of a text.  # (tokens, d_in)"""
    with trace(lm.model, module, stop=True) as seen:
        lm.model(torch.tensor([ids], device=lm.device))
    return widened(seen[module].input[0])


def other_inputs(session: "Session", module: str, flavour: Flavour, skip: int) -> list[Tensor]:
    """The same of the prefix contexts, texts that no edit is about, but for `skip` first tokens."""

    def read() -> list[Tensor]:
        texts = [context.replace("{}", "").strip() for context in session.contexts(flavour)]
        rows = session.lm.tokenizer([text for text in texts if text], add_special_tokens=False)["input_ids"]
        return [inputs_of(session.lm, module, tuple(row))[skip:] for row in rows if len(row) > skip]

    return session.once(("other inputs", module, flavour, skip), read)


def loss_with(lm: LanguageModel, module: str, row: Encoded, change: Replace) -> Tensor:
    """Mean NLL of a request's target where a module's output (1, tokens but the last, d_out) is changed."""
    ids, wanted = (torch.tensor(part, device=lm.device) for part in (row.ids[:-1], row.wanted))
    with trace(lm.model, replace={module: change}):
        logits = lm.model(ids[None]).logits[0, row.predicting]
    return cross_entropy(widened(logits), wanted)
