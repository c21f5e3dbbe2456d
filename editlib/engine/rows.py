"""The texts of a search for v*: a request and its target behind every prefix context, then "{subject} is a"."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editlib.data.request import EditRequest
from editlib.engine.memory import budget, most_rows
from editlib.engine.passes import Passes, Past, Tokens, stateful
from editlib.engine.sites import Site
from editlib.engine.values import encode_contexts
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import Encoded, check_length, encode, prompt_ids


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


def batches(lm: LanguageModel, requests: Sequence[Sequence[Row]], site: Site) -> list[list[int]]:
    """Indices of requests in batches of like length, as large as memory allows."""
    groups = alike([max(row.live for row in rows) for rows in requests], waste=0.15)
    fitting = budget(lm.device) // max((_bytes(lm, rows, site) for rows in requests), default=1)
    size = max(1, min(most_rows(lm.device) // max(map(len, requests), default=1), fitting))
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def alike(lengths: Sequence[int], *, waste: float, most: int | None = None) -> list[list[int]]:
    """Indices of like lengths together, shortest first, with at most this share of padding.

    A group of several has at most `most` tokens, padding included.
    """
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        whole = lengths[i] * (len(groups[-1]) + 1) if groups else 0
        if not groups or real + lengths[i] < (1 - waste) * whole or (most is not None and whole > most):
            groups, real = [*groups, []], 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


def _bytes(lm: LanguageModel, rows: Sequence[Row], site: Site) -> int:
    """What a search of one request holds: the past twice, activations and their gradients, logits."""
    out, into = lm.weight(0).shape
    live, past = max(row.live for row in rows), max(row.encoded.last for row in rows)
    vocabulary: int = lm.model.config.get_text_config().vocab_size
    numbers = (lm.num_layers - site.below + 1) * (4 * past * out + live * (24 * out + 4 * into)) + 4 * vocabulary
    return numbers * len(rows) * max(4, lm.weight(0).element_size())
