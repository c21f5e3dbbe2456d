"""Perplexity as the papers define it (mean over sentences of each sentence's perplexity) and corpus level."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from editlib.engine.memory import alike, budget, most_logits
from editlib.engine.passes import At, Passes, Start, Tokens
from editlib.engine.sites import Site, run_below
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import encode_texts

BATCH_TOKENS = 4096  # with padding, at most, unless logits allow fewer


@dataclass(frozen=True)
class Protocol:
    """How texts are read: behind a BOS token or not, and whole or in windows that begin `stride` tokens apart.

    Of a window, what the one before it did not hold is scored, as in the documentation of transformers.
    """

    bos: bool = False
    stride: int | None = None


PAPERS = Protocol()


@dataclass(frozen=True)
class Perplexity:
    """Summed negative log-likelihood (nats) and number of scored tokens of each text, in the texts' order."""

    losses: NDArray[np.float64]
    counts: NDArray[np.int64]
    protocol: Protocol = PAPERS
    tokens: tuple[NDArray[np.float64], ...] = ()  # losses of each text's scored tokens, where they were asked for

    @property
    def per_sentence(self) -> NDArray[np.float64]:
        """Each text's exp(mean loss); inf and nan are results and stay."""
        with np.errstate(over="ignore"):
            return np.exp(self.losses / self.counts)

    @property
    def mean(self) -> float:
        """The papers' perplexity: arithmetic mean of the texts' perplexities (Butterfly Effect, slides p. 8)."""
        return float(self.per_sentence.mean())

    @property
    def corpus(self) -> float:
        """exp of the mean loss over all tokens."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.losses.sum() / self.counts.sum()))


def perplexity(
    lm: LanguageModel,
    texts: Sequence[str],
    *,
    bos: bool = False,
    stride: int | None = None,
    tokens: bool = False,
    batch_tokens: int = BATCH_TOKENS,
) -> Perplexity:
    """Perplexity of a model on texts, no special token added, first token not scored, losses in fp32.

    With `bos` each text stands behind the tokenizer's BOS token, and its first token is scored too. With `stride` a
    text may be longer than the model's context: it is read in windows that begin so many tokens apart. With `tokens`
    each token's loss is kept. Texts run in batches of similar length, at most `batch_tokens` tokens with padding.
    Raises `EditlibError` for no texts, a text of fewer than two tokens, or one longer than the model's context.
    """
    lm.require_causal()
    protocol = Protocol(bos, stride)
    cut(lm, texts, protocol)  # what is wrong with texts is told before a pass
    passes = Passes.of(lm, plain=True)
    corpus = run_texts(passes, Site(0), texts, protocol=protocol, batch_tokens=batch_tokens)
    return perplexity_above(passes, corpus, tokens=tokens)


# -- texts whose lower blocks have run -----------------------------------------------------------------------


@dataclass(frozen=True)
class Bucket:
    """Windows of like length, with what the blocks below a site make of them."""

    texts: Tensor  # (scored tokens,) the text each belongs to
    tokens: Tokens  # all but each window's last one
    at: At  # where the scored tokens are predicted: window and column
    wanted: Tensor  # (scored tokens,) their ids
    base: Tensor | None = None
    keys: Tensor | None = None  # (windows, tokens, d_in) of the edited layer, if one is


@dataclass(frozen=True)
class Corpus:
    """Texts whose lower blocks have run, or, if memory is too small for what they give, are run when it is needed."""

    site: Site
    layer: int | None  # whose keys are needed
    counts: NDArray[np.int64]  # scored tokens of each text
    protocol: Protocol
    buckets: tuple[Bucket, ...]
    kept: bool

    def filled(self, passes: Passes) -> Iterator[Bucket]:
        """All buckets, with what the lower blocks make of them."""
        return (bucket if self.kept else _run(passes, self.site, self.layer, bucket) for bucket in self.buckets)


@torch.no_grad()
def run_texts(
    passes: Passes,
    site: Site,
    texts: Sequence[str],
    *,
    layer: int | None = None,
    protocol: Protocol = PAPERS,
    batch_tokens: int = BATCH_TOKENS,
) -> Corpus:
    """Run texts up to a site; with `layer`, keep its keys too. Raises `EditlibError` as `perplexity` does."""
    lm, out, into = passes.lm, *passes.lm.weight(0).shape
    windows = cut(lm, texts, protocol)
    most = min(batch_tokens, most_logits(lm.device) // passes.vocabulary)
    groups = alike([len(ids) for _, ids, _ in windows], waste=0.05, most=most)
    buckets = [_bucket(lm, [windows[i] for i in group]) for group in groups]
    width = (out if site.below else 0) + (into if layer is not None else 0)
    held = sum(bucket.tokens.ids.numel() for bucket in buckets) * width * max(4, lm.weight(0).element_size())
    kept = held <= budget(lm.device)
    filled = (_run(passes, site, layer, bucket) for bucket in buckets)
    counts = np.bincount([i for i, *_ in windows], [len(ids) - 1 - column for _, ids, column in windows])
    return Corpus(site, layer, counts.astype(int), protocol, tuple(filled if kept else buckets), kept)


def cut(lm: LanguageModel, texts: Sequence[str], protocol: Protocol) -> list[tuple[int, list[int], int]]:
    """All texts' windows: text, ids, and the first column that predicts a token to be scored."""
    windows, stride = list[tuple[int, list[int], int]](), protocol.stride
    for text, ids in enumerate(encode_texts(lm, texts, bos=protocol.bos, whole=stride is None)):
        size, seen = lm.max_length or len(ids), 0
        if stride is not None and not 1 <= stride <= size:
            raise EditlibError(f"stride={stride} is out of range; windows of {lm.label} begin 1 to {size} tokens apart")
        for begin in range(0, len(ids), stride or size):
            window, column = ids[begin : begin + size], max(seen - begin - 1, 0)
            if len(window) - 1 > column:
                windows.append((text, window, column))
            seen = begin + len(window)
    return windows


def _bucket(lm: LanguageModel, windows: Sequence[tuple[int, list[int], int]]) -> Bucket:
    tokens, targets = (Tokens.of(lm, [ids[part] for _, ids, _ in windows]) for part in (slice(-1), slice(1, None)))
    text, first = (torch.tensor(column, device=lm.device) for column in list(zip(*windows, strict=True))[::2])
    row, column = tokens.real
    scored = column >= first[row]
    row, column = row[scored], column[scored]
    return Bucket(text[row], tokens, (row, column), targets.ids[row, column])


def _run(passes: Passes, site: Site, layer: int | None, bucket: Bucket) -> Bucket:
    """A bucket with what the blocks below a site make of it."""
    base, keys = run_below(passes, site, bucket.tokens, layer=layer)
    return replace(bucket, base=base, keys=keys)


# -- scoring -------------------------------------------------------------------------------------------------

Change = Callable[[Tensor], Tensor]  # from the edited layer's keys (..., d_in) to what its output gains (..., d_out)


@torch.no_grad()
def perplexities(passes: Passes, corpus: Corpus, changes: Sequence[Change]) -> list[Perplexity]:
    """Perplexity of texts under each change of the layer whose keys the corpus holds, several changes a pass."""
    losses = torch.zeros(len(changes), len(corpus.counts), dtype=torch.float64, device=passes.lm.device)
    for bucket in corpus.filled(passes):
        assert bucket.keys is not None  # texts were run with `layer`
        together = max(1, most_logits(passes.lm.device) // (len(bucket.wanted) * passes.vocabulary))
        for first in range(0, len(changes), together):
            moved = torch.cat([change(bucket.keys) for change in changes[first : first + together]])
            each = _losses(passes, corpus.site, bucket, moved)
            losses[first : first + together].index_add_(1, bucket.texts, each)
    return [Perplexity(row, corpus.counts, corpus.protocol) for row in losses.cpu().numpy()]


@torch.no_grad()
def perplexity_above(passes: Passes, corpus: Corpus, *, tokens: bool = False) -> Perplexity:
    """Perplexity of texts under the weights as they are now, given that those below the corpus' site are unchanged."""
    texts, losses = [], []
    for bucket in corpus.filled(passes):
        still = torch.zeros(len(bucket.tokens.ids), 0, 1 if bucket.base is None else bucket.base.shape[-1])
        losses.append(_losses(passes, corpus.site, bucket, still.to(passes.lm.device))[0].cpu().numpy())
        texts.append(bucket.texts.cpu().numpy())
    text, loss = np.concatenate(texts), np.concatenate(losses)
    each = tuple(loss[text == i] for i in range(len(corpus.counts))) if tokens else ()
    return Perplexity(np.bincount(text, loss).astype(float), corpus.counts, corpus.protocol, each)


def _losses(passes: Passes, site: Site, bucket: Bucket, moved: Tensor) -> Tensor:
    """Loss of every scored token of a bucket under changes of its first tokens' outputs.  # (changes, scored tokens)

    Logits are made of no more tokens at once than memory should hold, be it by running the head by itself.
    """
    rows = len(bucket.tokens.ids)
    n, (row, column) = len(moved) // rows, bucket.at
    tokens = bucket.tokens.take(torch.arange(rows, device=moved.device).repeat(n))
    start, changed = site.enter(None if bucket.base is None else bucket.base.repeat(n, 1, 1), moved)
    at = torch.cat([row + i * rows for i in range(n)]), column.repeat(n)
    wanted, size = bucket.wanted.repeat(n), max(1, most_logits(moved.device) // passes.vocabulary)
    run = partial(passes.run, tokens, start=start, changed=changed, above=site.above)
    if len(wanted) <= size or passes.streams:
        logits = (run(at=some).logits for some in zip(at[0].split(size), at[1].split(size), strict=True))
    else:
        top = passes.lm.num_layers
        last = f"{passes.lm.layout.blocks}.{top - 1}"
        hidden = run(at=at, names=[last], stop=True).seen[last].output[at]
        logits = (_head(passes, Start(top, some[None])) for some in hidden.split(size))
    pieces = zip(logits, wanted.split(size), strict=True)
    return torch.cat([cross_entropy(widened(x), y, reduction="none").double() for x, y in pieces]).view(n, -1)


def _head(passes: Passes, start: Start) -> Tensor:
    """Logits of every token of one row, from what the last block puts out.  # (tokens, vocabulary)"""
    ones = torch.ones(start.hidden.shape[:2], dtype=torch.long, device=start.hidden.device)
    tokens = Tokens(ones, ones)
    return passes.run(tokens, start=start, at=tokens.real).logits
