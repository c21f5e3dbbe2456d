"""Keys and values at the edited layer: what a request's subject looks like, and what its value should become."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.engine.passes import Passes, Past, Tokens, stateful
from editlib.engine.prefixes import Flavour
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, check_length, encode, pad, prompt_ids
from editlib.models.trace import Seen, trace

KlPosition = Literal["end", "subject"]


@dataclass(frozen=True, kw_only=True)
class ValueParams:
    """How v* is optimised (ROME, section 3.1 step 2; numbers of both papers' released configurations)."""

    steps: PositiveInt = 20  # forward passes; the last one takes no step, as in the released code
    learning_rate: PositiveFloat = 0.5  # Adam
    clamp: PositiveFloat = 4.0  # largest |δ| in units of |v0|
    kl_weight: NonNegativeFloat = 0.0625  # of the drift of what follows "{subject} is a"
    weight_decay: NonNegativeFloat = 0.5  # times |δ| / |v0|²
    stop_loss: float = 0.05
    # ends a search, too: so many steps, not in a row, at which the target is likeliest behind every prefix; 0 for never
    stop_hits: NonNegativeInt = 0
    contexts: Flavour = "yang-2024"  # which stored prefix contexts
    kl_position: KlPosition = "end"  # of "{subject} is a"; the released codes read it at the subject's last token

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
    """The request behind each prefix context, which holds one `{}` where the prompt goes; raises `EditlibError` for one
    that the model does not take whole."""
    templates = [context.replace("{}", request.prompt, 1) for context in contexts]
    separator = request.separator
    rows = [encode(lm.tokenizer, text, request.subject, target=target, separator=separator) for text in templates]
    check_length(lm, templates, [row.ids for row in rows])
    return rows


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
class Prefixes:
    """Prefix contexts with the token ids of what stands before their `{}`; there are none before row 0.

    They are run once for all requests, but by models whose passes must run every token.
    """

    contexts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, lm: LanguageModel, contexts: Sequence[str]) -> "Prefixes":
        """Encode contexts."""
        texts = [context[: context.index("{}")].rstrip() for context in contexts]
        ids = [() if stateful(lm) else prompt_ids(lm.tokenizer, text) for text in texts]
        return cls(tuple(contexts), ((), *ids))

    @torch.no_grad()
    def run(self, passes: Passes) -> Past:
        """The past of every row."""
        tokens = Tokens.of(passes.lm, [row or (0,) for row in self.ids])
        real = torch.tensor([[bool(row)] for row in self.ids], device=passes.lm.device) & tokens.mask.bool()
        past = passes.nothing(len(self.ids))
        return past.with_new(Past(passes.run(tokens, above=0).new.past_key_values, real.long()))


@dataclass(frozen=True)
class Row:
    """A text of a search."""

    encoded: Encoded
    prefix: int  # row of the prefixes' past that it stands behind
    skipped: int  # tokens that this covers
    first: int  # index of the first token that is run in every step: the subject's last, if all before can be kept

    @property
    def end(self) -> int:
        """Tokens that are run: the last of a target is only predicted."""
        return len(self.encoded.ids) - self.targeted

    @property
    def targeted(self) -> bool:
        """Whether it has a target, or is "{subject} is a"."""
        return self.encoded.target < len(self.encoded.ids)

    @property
    def live(self) -> int:
        """Tokens run in every step."""
        return self.end - self.first


def rows_of(lm: LanguageModel, request: EditRequest, prefixes: Prefixes) -> tuple[Row, ...]:
    """The rows of a request's search; no pass is run.

    Raises `EditlibError` if subject or target cannot be located, or the request is too long for the model.
    """
    encoded = [
        *encode_contexts(lm, request, prefixes.contexts, target=request.target_new),
        encode(lm.tokenizer, "{} is a", request.subject),
    ]
    check_length(lm, [request.subject], [encoded[-1].ids])
    whole, rows = stateful(lm), list[Row]()
    for text, prefix in zip(encoded, [*range(1, len(prefixes.ids)), 1], strict=True):
        ids, first = prefixes.ids[prefix], 0 if whole else text.last
        fits = text.ids[: len(ids)] == ids and len(ids) <= text.last
        rows.append(Row(text, prefix, len(ids), first) if fits else Row(text, 0, 0, first))
    return tuple(rows)
