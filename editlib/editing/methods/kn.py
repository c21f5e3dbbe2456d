"""KN, knowledge neurons: those that a fact's old answer owes most to, found by integrated gradients (Dai et al. 2022).

    Attr(w) = w̄/m Σ_k ∂P(old | w = (k/m) w̄) / ∂w     ΔW[:, w] = λ₂ e(new) - λ₁ e(old) for Attr(w) > t max Attr

w̄ are the keys of a layer at the prompt's last token, one layer at a time, e the rows of the output embedding, and
answers are their first tokens. Where a request has no true target, the old answer is what the model says. Deviation: a
request has one prompt, so that neurons are not kept by how many paraphrases they serve in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import Change, LowRank
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import encode
from editlib.models.trace import trace

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class KnParams:
    """Hyper-parameters of KN."""

    steps: PositiveInt = 20  # m
    share: Annotated[float, Field(ge=0, le=1)] = 0.2  # t
    erase: float = 1.0  # λ₁
    write: float = 8.0  # λ₂


class Kn(Method):
    """KN."""

    name, hparams, several = "kn", KnParams, True
    paper, equation = "Dai et al. 2022, Knowledge Neurons in Pretrained Transformers", "equation 5 and section 5.2"

    def check(self, lm: LanguageModel, params: KnParams) -> dict[str, str]:
        """Raise `EditlibError` for a model whose embeddings are narrower than its blocks."""
        rows, outputs = lm.model.get_output_embeddings().weight.shape[1], len(lm.weight(0))
        if rows != outputs:
            raise EditlibError(
                f"kn adds rows of the output embedding, {rows} wide, to outputs {outputs} wide; use another method"
            )
        return {}

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: KnParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of every layer that has such neurons, the sum over requests; diagnostics have their numbers by request and
        layer. Raises `EditlibError` if a target cannot be located, or no neuron adds to the old answer."""
        lm, changes, counts = session.lm, dict[str, Change](), list[dict[int, int]]()
        for request in requests:
            attributed, old, new = attributions(lm, request, params.steps)
            chosen = attributed > params.share * attributed.max()
            if not attributed.max() > 0:
                raise EditlibError(f"no neuron of {lm.label} adds to the old answer of {request.text!r}; try rome")
            value = params.write * _embedding(lm, new) - params.erase * _embedding(lm, old)
            layers = chosen.any(1).nonzero()[:, 0].tolist()
            counts.append({layer: int(chosen[layer].sum()) for layer in layers})
            for layer in layers:
                name = f"{lm.layout.name(layer)}.weight"
                change = LowRank(value[:, None], chosen[layer].to(value)[:, None])
                changes[name] = changes[name] + change if name in changes else change
        return session.edit(
            self, requests, params, changes, {"steps": params.steps, "losses": [], "neurons": counts}
        ), state


def attributions(lm: LanguageModel, request: EditRequest, steps: int) -> tuple[Tensor, int, int]:
    """Integrated gradients of the old answer's probability over every layer's neurons, and the first tokens of the old
    and the new answer.  # (layers, d_in)"""
    new = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new, separator=request.separator)
    ids = torch.tensor([new.ids[: new.target]], device=lm.device)
    names = [lm.layout.name(layer) for layer in range(lm.num_layers)]
    with torch.no_grad(), trace(lm.model, *names) as seen:
        says = int(lm.model(ids).logits[0, -1].argmax())
    old = says
    if request.target_true:
        true = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_true,
                      separator=request.separator)  # fmt: skip
        old = true.wanted[0]
    gradients = [_integrated(lm, name, ids, widened(seen[name].input[0, -1]), old, steps) for name in names]
    return torch.stack(gradients), old, new.wanted[0]


def _integrated(lm: LanguageModel, name: str, ids: Tensor, key: Tensor, answer: int, steps: int) -> Tensor:
    """Attributions of one layer's neurons, `steps` points from none of the key to all of it in one pass.  # (d_in,)"""
    module = lm.model.get_submodule(name)
    points = (torch.arange(1, steps + 1, device=key.device)[:, None] / steps * key).requires_grad_()

    def scaled(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = inputs[0].view(steps, -1, inputs[0].shape[-1]).clone()
        rows[:, -1] = points.to(rows.dtype)
        return (rows.view_as(inputs[0]), *inputs[1:])

    handle = module.register_forward_pre_hook(scaled)
    try:
        with torch.enable_grad():
            logits = widened(lm.model(ids.expand(steps, -1)).logits[:, -1])
            (gradient,) = torch.autograd.grad(logits.softmax(-1)[:, answer].sum(), points)
    finally:
        handle.remove()
    return (key * gradient.mean(0)).detach()


def _embedding(lm: LanguageModel, token: int) -> Tensor:
    """A token's row of the output embedding.  # (d_out,)"""
    return widened(lm.model.get_output_embeddings().weight[token])
