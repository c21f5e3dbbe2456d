"""Keys and values at the edited layer: what a request's subject looks like, and what its value should become."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.engine.prefixes import Flavour
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode, pad
from editlib.models.trace import Seen, trace


@dataclass(frozen=True, kw_only=True)
class ValueParams:
    """How v* is optimised (ROME, section 3.1 step 2; numbers of both papers' released configurations)."""

    steps: PositiveInt = 20  # forward passes; the last one takes no step, as in the released code
    learning_rate: PositiveFloat = 0.5  # Adam
    clamp: PositiveFloat = 4.0  # largest |δ| in units of |v0|
    kl_weight: NonNegativeFloat = 0.0625  # of the drift on "{subject} is a"
    weight_decay: NonNegativeFloat = 0.5  # times |δ| / |v0|²
    stop_loss: float = 0.05
    contexts: Flavour = "yang-2024"  # which stored prefix contexts

    @property
    def search(self) -> "ValueParams":
        """The part of a method's hyper-parameters that v* depends on."""
        return ValueParams(**{field.name: getattr(self, field.name) for field in fields(ValueParams)})


@dataclass(frozen=True)
class Keys:
    """Keys (contexts, d_in) and values (contexts, d_out) of one request at one layer, the one without prefix first."""

    inputs: Tensor
    outputs: Tensor

    def mean(self, *, empty: bool = True) -> tuple[Tensor, Tensor]:
        """Mean key and mean value over all contexts, or over those with a prefix where there are any."""
        start = 0 if empty or len(self.inputs) == 1 else 1
        return self.inputs[start:].mean(0), self.outputs[start:].mean(0)

    @property
    def bare(self) -> tuple[Tensor, Tensor]:
        """Key and value without prefix."""
        return self.inputs[0], self.outputs[0]


@dataclass(frozen=True)
class Target:
    """The optimised value v* = `start` (that without prefix) + `change`, both (d_out), with the loss of every step."""

    start: Tensor
    change: Tensor
    losses: tuple[float, ...]

    @property
    def value(self) -> Tensor:
        """v* itself."""
        return self.start + self.change


def encode_contexts(
    lm: LanguageModel, request: EditRequest, contexts: Sequence[str], *, target: str = ""
) -> list[Encoded]:
    """The request behind each prefix context; contexts hold one `{}` where the prompt goes."""
    templates = [context.replace("{}", request.prompt, 1) for context in contexts]
    return [encode(lm.tokenizer, template, request.subject, target=target) for template in templates]


def read_keys(lm: LanguageModel, layer: int, request: EditRequest, contexts: Sequence[str]) -> Keys:
    """Input and output of the down-projection at the subject's last token, behind every context."""
    seen = read_at(lm, lm.layout.name(layer), encode_contexts(lm, request, contexts))
    return Keys(seen.input, seen.output)


@torch.no_grad()
def read_at(lm: LanguageModel, name: str, rows: Sequence[Encoded]) -> Seen:
    """What goes into and comes out of one module at the last subject token of every row.  # both (rows, width)"""
    ids, mask = pad([row.ids for row in rows], lm.device)
    with trace(lm.model, name, stop=True) as seen:
        lm.model(input_ids=ids, attention_mask=lm.attended(mask))
    at = torch.arange(len(rows), device=lm.device), torch.tensor([row.last for row in rows], device=lm.device)
    return Seen(widened(seen[name].input[at]), widened(seen[name].output[at]))


@dataclass(frozen=True)
class _Batch:
    """The rows of one v* optimisation: the request and its target behind every context, then "{subject} is a"."""

    name: str  # of the module whose output changes
    ids: Tensor  # (rows, tokens)
    mask: Tensor
    last: tuple[Tensor, Tensor]  # row and position of the subject's last token
    columns: Tensor  # positions whose logits are read, in any row
    scored: tuple[Tensor, Tensor, Tensor]  # row, column and id of every target token
    weights: Tensor  # of every target token: rows and tokens of a row count alike
    drift: int  # column read in the last row

    @classmethod
    def of(cls, lm: LanguageModel, name: str, request: EditRequest, contexts: Sequence[str]) -> "_Batch":
        rows = encode_contexts(lm, request, contexts, target=request.target_new)
        drift = encode(lm.tokenizer, "{} is a", request.subject)
        ids, mask = pad([row.ids for row in (*rows, drift)], lm.device)
        scored = [(r, i - 1, row.ids[i]) for r, row in enumerate(rows) for i in range(row.target, len(row.ids))]
        weights = [1 / ((len(rows[r].ids) - rows[r].target) * len(rows)) for r, _, _ in scored]
        read = sorted({position for _, position, _ in scored} | {len(drift.ids) - 1})
        row, column, token = zip(*((r, read.index(position), i) for r, position, i in scored), strict=True)
        last = torch.tensor([row.last for row in (*rows, drift)], device=lm.device)
        tensor = partial(torch.tensor, device=lm.device)
        return cls(
            name=name,
            ids=ids,
            mask=mask,
            last=(torch.arange(len(last), device=lm.device), last),
            columns=tensor(read),
            scored=(tensor(row), tensor(column), tensor(token)),
            weights=tensor(weights, dtype=torch.float64),
            drift=read.index(len(drift.ids) - 1),
        )

    def run(self, lm: LanguageModel, delta: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean NLL of the target, log-probabilities after "{subject} is a", and the value at the first row's
        subject."""

        def add(output: Tensor) -> Tensor:
            return output if delta is None else output.index_put(self.last, delta.to(output.dtype), accumulate=True)

        with trace(lm.model, replace={self.name: add}) as seen:
            read = lm.model(
                input_ids=self.ids, attention_mask=lm.attended(self.mask), logits_to_keep=self.columns
            ).logits
        row, column, token = self.scored
        scores = widened(read[row, column]).log_softmax(-1)
        nll = -(self.weights.to(scores) * scores.gather(1, token[:, None])[:, 0]).sum()
        drift = widened(read[-1, self.drift]).log_softmax(-1)
        return nll, drift, widened(seen[self.name].output[0, self.last[1][0]])


def optimise_value(
    lm: LanguageModel, name: str, request: EditRequest, contexts: Sequence[str], params: ValueParams
) -> Target:
    """Find v* = v0 + δ, the output of module `name`, so that the target follows the request behind every context.

    Loss: mean NLL of the target, plus KL(edited || unedited) of what follows "{subject} is a", plus decay of δ.
    v0 is the output for the unprefixed request; δ is added at the subject's last token of every row. Source:
    ROME, equation 4.
    """
    batch = _Batch.of(lm, name, request, contexts)
    with torch.no_grad():
        _, reference, v0 = batch.run(lm)
    delta = torch.zeros_like(v0, requires_grad=True)
    adam, losses = torch.optim.Adam([delta], lr=params.learning_rate), list[float]()
    for step in range(params.steps):
        nll, drift, _ = batch.run(lm, delta)
        kl = torch.nn.functional.kl_div(reference, drift, log_target=True, reduction="sum")
        loss = nll + params.kl_weight * kl + params.weight_decay * delta.norm() / v0.norm() ** 2
        losses.append(loss.item())
        if losses[-1] < params.stop_loss or step == params.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= (params.clamp * v0.norm() / delta.norm()).clamp(max=1)
    return Target(v0, delta.detach(), tuple(losses))
