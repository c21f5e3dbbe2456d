"""Many independent edits at once, exact: v* for a batch of requests, perplexities of a batch of edits.

An edit of one layer changes nothing below it and, at a subject, nothing before the subject's last token. So lower
blocks run once, earlier tokens are kept as attention keys and values, prefix contexts are run once for all requests,
the head reads only what is scored, and no weight is written. Everything equals the plain path (`values`,
`perplexity`) but for the order of floating-point sums.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from editlib.data.request import EditRequest
from editlib.engine.memory import budget, most_logits, most_rows
from editlib.engine.passes import Passes, Past, Start, Tokens
from editlib.engine.perplexity import Perplexity
from editlib.engine.values import Keys, KlPosition, Target, ValueParams, encode_contexts
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode, encode_texts, prompt_ids

log = logging.getLogger(__name__)

CHECK = 5  # steps between two looks at which requests are done; in between, the device is not waited for
Replace = dict[str, Callable[[Tensor], Tensor]]


# -- where a change enters -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where a change enters: what block `below - 1` puts out, or the module `changed` of a block that is run again.

    The latter is for blocks that do more than add their MLP's output, such as those with a norm behind it.
    """

    below: int  # blocks skipped
    changed: str | None

    @property
    def above(self) -> int:
        """The first block that is changed by its input alone."""
        return self.below + (self.changed is not None)

    def enter(self, base: Tensor | None, change: Tensor) -> tuple[Start | None, Replace]:
        """How to start from kept outputs (rows, tokens, width) with a change of the first tokens (rows, n, width)."""

        def add(output: Tensor) -> Tensor:
            n = change.shape[1]
            return torch.cat([output[:, :n] + change.to(output.dtype), output[:, n:]], 1)

        if base is None:
            return None, {self.changed: add} if self.changed else {}
        if self.changed is None:
            return Start(self.below, add(base)), {}
        return Start(self.below, base), {self.changed: add}


@torch.no_grad()
def site_of(passes: Passes, layer: int) -> Site:
    """Where a change of a layer's down-projection enters; found by making two and looking behind the block."""
    lm, tokens = passes.lm, Tokens.of(passes.lm, [[0, 0]])
    name, down = f"{lm.layout.blocks}.{layer}", lm.layout.name(layer)

    def behind(change: float) -> Tensor:
        run = passes.run(tokens, names=[name], replace={down: lambda output: output + change})
        return widened(run.seen[name].output)

    plain = behind(0.0)
    size = float(plain.abs().max()) + 1
    adds = all(torch.allclose(behind(n * size) - plain, torch.tensor(n * size).to(plain), rtol=0.05) for n in (1, 3))
    return Site(layer + 1, None) if adds else Site(layer, down)


def layer_of(lm: LanguageModel, name: str) -> int:
    """The layer that a block, or a module or weight in one, belongs to."""
    return int(name.removeprefix(f"{lm.layout.blocks}.").split(".")[0])


def kept_name(lm: LanguageModel, site: Site) -> list[str]:
    """The module whose output a pass from this site starts with; none where no block is skipped."""
    return [f"{lm.layout.blocks}.{site.below - 1}"] if site.below else []


# -- keys and values --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefixes:
    """Prefix contexts run once: their token ids, and their past; row 0 is no context at all."""

    contexts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    past: Past


@torch.no_grad()
def run_prefixes(passes: Passes, contexts: Sequence[str]) -> Prefixes:
    """Run what stands before the `{}` of every context."""
    texts = [context[: context.index("{}")].rstrip() for context in contexts]
    ids = ((), *(prompt_ids(passes.lm.tokenizer, text) for text in texts))
    tokens = Tokens.of(passes.lm, [row or (0,) for row in ids])
    real = torch.tensor([[bool(row)] for row in ids], device=passes.lm.device) & tokens.mask.bool()
    new = passes.run(tokens, above=0).new
    return Prefixes(tuple(contexts), ids, passes.nothing(len(ids)).with_new(Past(new.layers, real.long())))


@dataclass(frozen=True)
class Row:
    """A text of a search: its tokens, how many of them a prefix's past covers, and which prefix that is."""

    encoded: Encoded
    skipped: int
    prefix: int

    @property
    def end(self) -> int:
        """Tokens that are run: the last of a target is only predicted."""
        ids = self.encoded.ids
        return len(ids) - 1 if self.encoded.target < len(ids) else len(ids)

    @property
    def live(self) -> int:
        """Tokens from the subject's last one on."""
        return self.end - self.encoded.last


def rows_of(lm: LanguageModel, request: EditRequest, prefixes: Prefixes) -> tuple[Row, ...]:
    """The request and its target behind every context, then "{subject} is a".

    Raises `EditlibError` if subject or target cannot be located.
    """
    texts = encode_contexts(lm, request, prefixes.contexts, target=request.target_new)
    drift = encode(lm.tokenizer, "{} is a", request.subject)
    found = [_row(text, i + 1, prefixes.ids[i + 1]) for i, text in enumerate(texts)]
    return (*found, _row(drift, 1, prefixes.ids[1]))


def _row(encoded: Encoded, prefix: int, ids: tuple[int, ...]) -> Row:
    """A row behind a prefix's past if its tokens are those the text begins with, else behind nothing."""
    fits = encoded.ids[: len(ids)] == ids and len(ids) <= encoded.last
    return Row(encoded, len(ids), prefix) if fits else Row(encoded, 0, 0)


def batches(lm: LanguageModel, rows: Sequence[Sequence[Row]], site: Site) -> list[list[int]]:
    """Indices of requests in batches of like length, as large as memory allows."""
    if not rows:
        return []
    groups = _alike([max(row.live for row in request) for request in rows], waste=0.15)
    fitting = budget(lm.device) // max(_bytes(lm, request, site) for request in rows)
    size = max(1, min(most_rows(lm.device) // max(map(len, rows)), fitting))
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def _bytes(lm: LanguageModel, rows: Sequence[Row], site: Site) -> int:
    """What a search of one request holds: the past twice, activations and their gradients, logits."""
    out, into = lm.weight(0).shape
    live, past = max(row.live for row in rows), max(row.encoded.last for row in rows)
    vocabulary: int = lm.model.config.get_text_config().vocab_size
    numbers = (lm.num_layers - site.below + 1) * (4 * past * out + live * (24 * out + 4 * into)) + 4 * vocabulary
    return numbers * len(rows) * max(4, lm.weight(0).element_size())


@dataclass(frozen=True)
class Live:
    """The rows of some searches from the subject's last token on, and where their losses are read."""

    tokens: Tokens
    past: Past
    base: Tensor | None  # (rows, tokens, width): what the pass starts with, where it skips blocks
    owner: Tensor  # (rows,) the search each row belongs to
    scored: Tensor  # (targets' tokens, 3): row, column, id
    weights: Tensor  # of every target token: rows and tokens of a row count alike
    drift: Tensor  # (searches, 2): row, column

    def only(self, wanted: Tensor) -> "Live":
        """The rows of some searches, given as a mask over all."""
        rows = wanted[self.owner].nonzero()[:, 0]
        renumbered = torch.full_like(self.owner, -1)
        renumbered[rows] = torch.arange(len(rows), device=rows.device)
        scored, drift = (_rows_renumbered(pairs, renumbered) for pairs in (self.scored, self.drift))
        return Live(
            self.tokens.take(rows), self.past.take(rows), None if self.base is None else self.base[rows],
            self.owner[rows], scored, self.weights[renumbered[self.scored[:, 0]] >= 0], drift,
        )  # fmt: skip

    def losses(self, passes: Passes, site: Site, delta: Tensor) -> tuple[Tensor, Tensor]:
        """NLL of every search's target, and log-probabilities read in "{subject} is a", of searches with rows here."""
        start, changes = site.enter(self.base, delta[self.owner][:, None])
        at = torch.cat([self.scored[:, :2], self.drift])
        read = at[:, 0], at[:, 1]
        run = passes.run(self.tokens, self.past, start=start, replace=changes, at=read, above=site.above)
        logits = widened(run.logits)
        nll = cross_entropy(logits[: len(self.scored)], self.scored[:, 2], reduction="none") * self.weights.to(logits)
        owners = self.owner[self.scored[:, 0]]
        return torch.zeros(len(delta)).to(nll).index_add(0, owners, nll), logits[len(self.scored) :].log_softmax(-1)


def _rows_renumbered(pairs: Tensor, renumbered: Tensor) -> Tensor:
    rows = renumbered[pairs[:, 0]]
    return torch.cat([rows[:, None], pairs[:, 1:]], 1)[rows >= 0]


@dataclass(frozen=True)
class Found:
    """What a batch of searches gives for one request."""

    keys: Keys
    target: Target


def search(
    passes: Passes,
    site: Site,
    layer: int,
    name: str,
    batch: Sequence[Sequence[Row]],
    prefixes: Prefixes,
    params: ValueParams,
) -> list[Found]:
    """Keys and values of a layer, and v* as output of module `name`, for a batch of requests given by their rows."""
    live, keys, values, starts = _read(passes, site, layer, name, batch, prefixes, params.kl_position)
    changes, losses = optimise(passes, site, live, starts, params)
    contexts = len(prefixes.contexts)
    pairs = zip(keys.split(contexts), values.split(contexts), starts, changes, losses, strict=True)
    return [Found(Keys(k, v), Target(start, change, tuple(curve))) for k, v, start, change, curve in pairs]


@torch.no_grad()
def _read(
    passes: Passes,
    site: Site,
    layer: int,
    name: str,
    batch: Sequence[Sequence[Row]],
    prefixes: Prefixes,
    kl_position: KlPosition,
) -> tuple[Live, Tensor, Tensor, Tensor]:
    """What follows the prefixes, run up to the site and, before the subject's last token, above it too.

    Live rows; keys, values (both requests x contexts); v0 (requests).
    """
    lm, rows = passes.lm, [row for request in batch for row in request]
    device, down, kept = lm.device, lm.layout.name(layer), kept_name(lm, site)
    tokens = Tokens.of(lm, [row.encoded.ids[row.skipped : row.end] for row in rows])
    past = prefixes.past.take(torch.tensor([row.prefix for row in rows], device=device))
    seen = passes.run(tokens, past, names=[down, name, *kept], stop=True).seen
    base = seen[kept[0]].output if kept else None
    last = torch.tensor([row.encoded.last - row.skipped for row in rows], device=device)
    here = torch.arange(len(rows), device=device)
    columns = torch.arange(tokens.ids.shape[1], device=device)
    earlier = _earlier(passes, site, tokens, past, last, base)
    length = torch.tensor([row.live for row in rows], device=device)
    offsets = torch.arange(max(row.live for row in rows), device=device)
    index = here[:, None], (last[:, None] + offsets).clamp(max=len(columns) - 1)
    live = _live(
        rows, [len(request) for request in batch],
        Tokens(tokens.ids[index], (offsets < length[:, None]).long()),
        earlier, None if base is None else base[index], kl_position,
    )  # fmt: skip
    ends = torch.tensor([len(request) for request in batch], device=device).cumsum(0)
    stated = torch.ones(len(rows), dtype=torch.bool, device=device)
    stated[ends - 1] = False  # "{subject} is a" is no context
    firsts = torch.cat([ends[:1] * 0, ends[:-1]])
    at_last = {module: (widened(s.input[here, last]), widened(s.output[here, last])) for module, s in seen.items()}
    return live, at_last[down][0][stated], at_last[down][1][stated], at_last[name][1][firsts]


def _earlier(passes: Passes, site: Site, tokens: Tokens, past: Past, last: Tensor, base: Tensor | None) -> Past:
    """The past with the tokens before `last` in the blocks that a pass from the site runs."""
    width = int(last.max())
    if not width:
        return past
    before = (torch.arange(width, device=last.device) < last[:, None]).long()
    start = None if base is None or site.below == passes.lm.num_layers else Start(site.below, base[:, :width])
    new = passes.run(Tokens(tokens.ids[:, :width], before), past, start=start, above=site.above).new
    return past.with_new(new, first=site.below)


def _live(
    rows: Sequence[Row],
    sizes: Sequence[int],
    tokens: Tokens,
    past: Past,
    base: Tensor | None,
    kl_position: KlPosition,
) -> Live:
    device = tokens.ids.device
    owner = [i for i, size in enumerate(sizes) for _ in range(size)]
    scored, weights, drift = [], [], []
    for r, row in enumerate(rows):
        target = range(row.encoded.target, len(row.encoded.ids))
        scored += [(r, i - 1 - row.encoded.last, row.encoded.ids[i]) for i in target]
        weights += [1 / (len(target) * (sizes[owner[r]] - 1)) for _ in target]
        drift += [] if target else [(r, 0 if kl_position == "subject" else row.live - 1)]
    return Live(
        tokens, past, base, torch.tensor(owner, device=device), torch.tensor(scored, device=device),
        torch.tensor(weights, dtype=torch.float64, device=device), torch.tensor(drift, device=device),
    )  # fmt: skip


def optimise(
    passes: Passes, site: Site, live: Live, starts: Tensor, params: ValueParams
) -> tuple[Tensor, list[list[float]]]:
    """δ of every search (searches, width) and its losses; each search has its own Adam state and its own end.

    Loss: mean NLL of the target, plus KL(edited || unedited) of what follows "{subject} is a" or its subject, plus
    decay of δ. A search that is done is no longer changed, and dropped at the next look. Source: ROME, equation 4.
    """
    delta = torch.zeros_like(starts, requires_grad=True)
    adam, size = torch.optim.Adam([delta], lr=params.learning_rate), starts.norm(dim=1)
    active = torch.ones(len(starts), dtype=torch.bool, device=starts.device)
    curve, counted, reference = list[Tensor](), list[Tensor](), torch.empty(0)
    for step in range(params.steps):
        nll, drift = live.losses(passes, site, delta)
        if not step:
            reference = drift.detach()
        members = live.owner[live.drift[:, 0]]
        kl = kl_div(reference[members], drift, log_target=True, reduction="none").sum(-1)
        loss = nll.index_add(0, members, params.kl_weight * kl) + params.weight_decay * delta.norm(dim=1) / size**2
        curve, counted = [*curve, loss.detach()], [*counted, active]
        active = active & ~(loss.detach() < params.stop_loss)
        if step == params.steps - 1:
            break
        if step % CHECK == CHECK - 1:
            remaining = int(active.sum())
            log.info("searching v*: step %d of at most %d, %d searches left", step + 1, params.steps, remaining)
            if not remaining:
                break
            live = live.only(active) if 2 * remaining <= len(members) else live
        adam.zero_grad()
        loss.where(active, torch.zeros_like(loss)).sum().backward()
        before = delta.detach().clone()
        adam.step()
        with torch.no_grad():
            bound = (params.clamp * size / delta.norm(dim=1)).clamp(max=1)
            delta.copy_((delta * bound[:, None]).where(active[:, None], before))
    return delta.detach(), _curves(torch.stack(curve), torch.stack(counted))


def _curves(losses: Tensor, counted: Tensor) -> list[list[float]]:
    """Losses of every search up to its end, from (steps, searches)."""
    lengths = counted.sum(0).tolist()
    return [column[:length] for column, length in zip(losses.T.tolist(), lengths, strict=True)]


# -- perplexity -------------------------------------------------------------------------------------------


PARTS = slice(None, -1), slice(1, None)  # what is run of a text, and what is predicted


@dataclass(frozen=True)
class Bucket:
    """Texts of like length, with what the blocks below a site make of them."""

    index: list[int]  # of the texts
    tokens: Tokens  # all but the last one
    targets: Tensor  # all but the first one, (texts, tokens)
    base: Tensor | None
    keys: Tensor | None  # (texts, tokens, d_in) of the edited layer, if one is


@dataclass(frozen=True)
class Corpus:
    """Texts whose lower blocks have run, sorted by length."""

    site: Site
    counts: tuple[int, ...]  # scored tokens of each text
    buckets: tuple[Bucket, ...]


@torch.no_grad()
def run_texts(passes: Passes, site: Site, texts: Sequence[str], *, layer: int | None = None) -> Corpus:
    """Run texts up to a site; with `layer`, keep its keys too. Raises `EditlibError` as `perplexity` does."""
    rows = encode_texts(passes.lm, texts)
    return Corpus(site, tuple(len(row) - 1 for row in rows), tuple(_buckets(passes, site, rows, layer)))


def _buckets(passes: Passes, site: Site, rows: Sequence[Sequence[int]], layer: int | None) -> Iterator[Bucket]:
    kept = kept_name(passes.lm, site)
    down = [] if layer is None else [passes.lm.layout.name(layer)]
    for index in _alike([len(row) for row in rows], waste=0.05):
        tokens, targets = (Tokens.of(passes.lm, [rows[i][part] for i in index]) for part in PARTS)
        seen = passes.run(tokens, names=[*kept, *down], stop=True).seen if kept or down else {}
        yield Bucket(
            index,
            tokens,
            targets.ids,
            seen[kept[0]].output if kept else None,
            widened(seen[down[0]].input) if down else None,
        )


def _alike(lengths: Sequence[int], *, waste: float) -> list[list[int]]:
    """Indices of like lengths together, shortest first, with at most this share of padding."""
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or real + lengths[i] < (1 - waste) * lengths[i] * (len(groups[-1]) + 1):
            groups, real = [*groups, []], 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


Change = tuple[Tensor, Tensor]  # of the edited layer: left (d_out, r), right (d_in, r)


@torch.no_grad()
def perplexities(passes: Passes, corpus: Corpus, changes: Sequence[Change]) -> list[Perplexity]:
    """Perplexity of texts under each change of the layer whose keys the corpus holds, several changes a pass."""
    losses = np.zeros((len(changes), len(corpus.counts)))
    for bucket in corpus.buckets:
        share = max(1, most_logits(passes.lm.device) // (bucket.tokens.ids.numel() * passes.vocabulary))
        for first in range(0, len(changes), share):
            batch = changes[first : first + share]
            moved = torch.cat([_moved(bucket, change) for change in batch])
            losses[first : first + len(batch), bucket.index] = _scored(passes, corpus.site, bucket, moved)
    return [Perplexity(row, np.array(corpus.counts)) for row in losses]


@torch.no_grad()
def perplexity_above(passes: Passes, corpus: Corpus) -> Perplexity:
    """Perplexity of texts under the weights as they are now, given that those below the corpus' site are unchanged."""
    losses = np.zeros(len(corpus.counts))
    for bucket in corpus.buckets:
        still = torch.zeros(len(bucket.index), 0, 1 if bucket.base is None else bucket.base.shape[-1])
        losses[bucket.index] = _scored(passes, corpus.site, bucket, still.to(passes.lm.device))[0]
    return Perplexity(losses, np.array(corpus.counts))


def _scored(passes: Passes, site: Site, bucket: Bucket, moved: Tensor) -> NDArray[np.float64]:
    """Summed loss of every text of a bucket under changes of its first tokens' outputs.  # (changes, texts)"""
    texts = len(bucket.index)
    n = len(moved) // texts
    tokens = bucket.tokens.take(torch.arange(texts, device=moved.device).repeat(n))
    start, replaced = site.enter(None if bucket.base is None else bucket.base.repeat(n, 1, 1), moved)
    row, column = tokens.real
    logits = widened(passes.run(tokens, start=start, replace=replaced, at=tokens.real, above=site.above).logits)
    losses = cross_entropy(logits, bucket.targets[row % texts, column], reduction="none").double()
    summed = torch.zeros(n * texts, dtype=torch.float64, device=row.device).index_add(0, row, losses)
    return summed.view(n, texts).cpu().numpy()


def _moved(bucket: Bucket, change: Change) -> Tensor:
    """What a change adds to the edited layer's output.  # (texts, tokens, d_out)"""
    assert bucket.keys is not None  # texts were run with `layer`
    left, right = change
    return (bucket.keys @ right.to(bucket.keys)) @ left.to(bucket.keys).T
