"""Edits in context: what stands before a text is chosen by the text (IKE, SERAC, SKEME).

A model that is laid over so is a language model like any other: what it says after some tokens follows from them
alone, being what the unedited model says after them behind the front that they choose. So teacher forcing and greedy
decoding agree, and every token of running text has a probability, each behind the front that the text before it
chooses. Fronts are kept as attention keys and values, not as tokens: positions in logits, labels and activations are
those of the text.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from re import escape, search
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad
from transformers.cache_utils import Cache, DynamicLayer

from editlib.editing.overlays.overlay import Overlay
from editlib.engine.passes import stateful
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import pad as padded
from editlib.models.tokens import prompt_ids

Pairs = list[tuple[Tensor, Tensor]]  # attention keys and values by layer
TOGETHER = 256  # texts that are embedded at once
Note = tuple[str, str, str]  # subject, relation and object


def embedded(lm: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Every text up to each of its tokens as a vector of length one: the mean of the model's own token embeddings, less
    that of all tokens; BOS is no part of a text.  # (texts, tokens, width) from ids and mask (texts, tokens)"""
    table: Tensor = lm.model.get_input_embeddings().weight
    real = mask * (ids != lm.tokenizer.bos_token_id) if lm.tokenizer.bos_token_id is not None else mask
    each = (widened(table[ids]) - widened(table.mean(0))) * real[..., None]
    return normalize(each.cumsum(1) / real.cumsum(1).clamp(min=1)[..., None], dim=-1)


def embedded_texts(lm: LanguageModel, texts: Sequence[str]) -> Tensor:
    """Whole texts as `embedded` has them.  # (texts, width)"""
    rows = [prompt_ids(lm.tokenizer, text) for text in texts]
    vectors = [_last(lm, rows[start : start + TOGETHER]) for start in range(0, len(rows), TOGETHER)]
    width = lm.model.get_input_embeddings().weight.shape[1]
    return torch.cat([torch.zeros(0, width, device=lm.device), *vectors])


def _last(lm: LanguageModel, rows: Sequence[tuple[int, ...]]) -> Tensor:
    last = torch.tensor([len(row) - 1 for row in rows], device=lm.device)
    return embedded(lm, *padded(rows, lm.device))[torch.arange(len(rows), device=lm.device), last]


@dataclass(frozen=True)
class Fronts(Overlay):
    """What may stand before a text, and how a text chooses.

    It takes the `most` fronts whose keys are nearest, by exp(-‖q - k‖²) of its embedding q, both mapped by `metric`
    where there is one; of those, only such as are more alike than `least`, if given, and, if they have to be `named`,
    whose subject the text names. `notes` say what each front is about.
    """

    fronts: tuple[str, ...]
    keys: Tensor  # (n, width)
    notes: tuple[Note, ...] = ()
    named: bool = False
    least: float | None = None
    most: int = 1
    metric: Tensor | None = None  # (width, r)

    def similarity(self, queries: Tensor) -> Tensor:
        """exp(-‖q - k‖²) of queries (m, width).  # (m, n)"""
        keys = self.keys.to(queries)
        if self.metric is not None:
            queries, keys = (each @ self.metric.to(queries) for each in (queries, keys))
        return (-torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist").square()).exp()

    def choose(self, lm: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
        """Numbers of the fronts that texts up to each of their tokens take, -1 for none, the nearest last.  # (texts,
        tokens, at most `most`) from ids and mask (texts, tokens)"""
        texts, tokens = ids.shape
        if not self.fronts:
            return ids.new_full((texts, tokens, 1), -1)
        similarities = self.similarity(embedded(lm, ids, mask).flatten(0, 1)).view(texts, tokens, -1)
        if self.named:
            named = self._named(lm, ids, mask)[:, None]  # (texts, 1, n)
            similarities = similarities.where(torch.arange(tokens, device=ids.device)[None, :, None] >= named, -1.0)
        best = similarities.topk(min(self.most, len(self.fronts)), dim=-1)
        taken = best.values > (-0.5 if self.least is None else self.least)
        return best.indices.where(taken, -1).flip(-1)

    def _named(self, lm: LanguageModel, ids: Tensor, mask: Tensor) -> Tensor:
        """The first token at which a text has named the subject of each front, or its length.  # (texts, n)"""
        begins = mask.argmax(1, keepdim=True)  # behind padding, where a model generates
        return begins + torch.tensor([self._first(lm, row[real]) for row, real in zip(ids, mask > 0, strict=True)]).to(
            ids
        )

    def _first(self, lm: LanguageModel, row: Tensor) -> list[int]:
        """The token of a text, and of those before it, that names each subject first, or one behind the last."""

        def names(subject: str, end: int) -> bool:
            text = str(lm.tokenizer.decode(row[:end]))
            return search(rf"(?<!\w){escape(subject)}(?!\w)", text) is not None

        whole, first = str(lm.tokenizer.decode(row)), dict[str, int]()
        for subject in {subject for subject, *_ in self.notes}:
            there = subject in whole and names(subject, len(row))
            ends = range(1, len(row) + 1) if there else range(0)
            first[subject] = bisect_left(ends, True, key=partial(names, subject)) if there else len(row)
        return [first[subject] for subject, *_ in self.notes]

    @contextmanager
    def laid(self, lm: LanguageModel) -> Iterator[None]:
        """Run every text behind what it chooses.

        Inside, `EditlibError` for a text that is too long with its front, for passes that begin with attention keys of
        their own, and for activations of texts that are run behind several fronts. Raises it at once for a model whose
        blocks keep something else of earlier tokens.
        """
        if stateful(lm):
            raise EditlibError(
                f"{lm.label} ({type(lm.model).__name__}) cannot be edited in context: its blocks keep other things of "
                "earlier tokens than attention keys and values; use a method that writes weights"
            )
        decoder = lm.model.get_decoder()
        behind = Behind(lm, decoder.forward)

        def forward(input_ids: Tensor | None = None, **options: Any) -> Any:
            if input_ids is None or options.get("past_key_values") is not None:
                raise EditlibError(
                    f"{lm.label} is edited in context, and can only be given whole texts as tokens; leave the edit's "
                    "block first"
                )
            mask = options.get("attention_mask")
            chosen = self.choose(lm, input_ids, torch.ones_like(input_ids) if mask is None else mask)
            choices, number = chosen.flatten(0, 1).unique(dim=0, return_inverse=True)
            if len(choices) > 1 and lm.hooked(lm.layout.blocks):
                raise EditlibError(
                    f"activations of {lm.label} cannot be read here: these texts stand behind several fronts, and run "
                    "once behind each; leave the edit's block first"
                )
            texts = ["".join(self.fronts[i] for i in choice if i >= 0) for choice in choices.tolist()]
            runs = [behind(text, input_ids, **options) for text in texts]
            made, here = runs[0], number.view(*input_ids.shape, 1)
            for i, run in enumerate(runs[1:], start=1):
                made.last_hidden_state = run.last_hidden_state.where(here == i, made.last_hidden_state)
            return made

        decoder.forward = forward
        try:
            yield
        finally:
            del decoder.forward


class Behind:
    """A decoder's passes behind a text, whose attention keys and values are made once for the weights as they are."""

    def __init__(self, lm: LanguageModel, inner: Any) -> None:
        self.lm, self.inner = lm, inner
        self.kept = dict[tuple[str, int], Pairs]()

    def __call__(self, front: str, ids: Tensor, **options: Any) -> Any:
        """The decoder's output for tokens (texts, n) behind a front; as it is behind none."""
        if not front:
            return self.inner(ids, **options)
        pairs, (texts, n) = self._pairs(front), ids.shape
        length, limit = pairs[0][0].shape[2], self.lm.max_length
        if limit is not None and length + n > limit:
            raise EditlibError(
                f"a text of {n} tokens stands behind {length} of an edit in context, {self.lm.label} takes {limit} in "
                "all; shorten it, or give the edit fewer demonstrations"
            )
        mask = options.pop("attention_mask", None)
        mask = torch.ones_like(ids) if mask is None else mask.clone()
        first = mask.argmax(1, keepdim=True)
        opens = ids.gather(1, first) == self.lm.tokenizer.bos_token_id  # texts begin with the front now
        mask.scatter_(1, first, mask.gather(1, first) * ~opens)
        places = {"position_ids": length + (mask.cumsum(1) - 1).clamp(min=0)}
        layers = [_layer(keys.expand(texts, -1, -1, -1), values.expand(texts, -1, -1, -1)) for keys, values in pairs]
        options |= places | {"past_key_values": Cache(layers=layers), "use_cache": True}
        made = self.inner(ids, attention_mask=pad(mask, (length, 0), value=1), **options)
        made.past_key_values = None
        return made

    def _pairs(self, front: str) -> Pairs:
        """Attention keys and values of a front, made anew when weights have been written."""
        key = front, sum(parameter._version for parameter in self.lm.model.parameters())
        if key not in self.kept:
            ids = torch.tensor([prompt_ids(self.lm.tokenizer, front)], device=self.lm.device)
            cache = Cache(layers=[DynamicLayer() for _ in range(self.lm.num_layers)])
            with torch.no_grad():
                self.inner(ids, past_key_values=cache, use_cache=True)
            self.kept[key] = [(layer.keys, layer.values) for layer in cache.layers]
        return self.kept[key]


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    return layer
