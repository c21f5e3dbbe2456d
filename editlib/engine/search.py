"""Many independent searches for v* at once, exact.

A change of one layer changes nothing below it and, at a subject, nothing before the subject's last token. So lower
blocks run once, earlier tokens are kept as attention keys and values, prefix contexts are run once for all requests,
the head reads only what is scored, and no weight is written. Everything equals whole forward passes but for the order
of floating-point sums. Models whose blocks keep something else of earlier tokens run all tokens in every step.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from editlib.engine.memory import batches, halving
from editlib.engine.passes import Passes, Past, Start, Tokens
from editlib.engine.sites import Site, layer_of
from editlib.engine.values import Keys, KlPosition, Row, Target, ValueParams
from editlib.models.language_model import widened

log = logging.getLogger(__name__)

SAME = 1e-4  # relative difference up to which two searches begin alike: orders of sums differ by less
CHECK = 5  # steps between two looks at which requests are done; in between, the device is not waited for


@dataclass(frozen=True)
class Found:
    """What a search gives for one request."""

    keys: Keys
    target: Target


def search(
    passes: Passes,
    site: Site,
    name: str,
    requests: Sequence[Sequence[Row]],
    past: Past,
    params: ValueParams,
    *,
    known: Mapping[int, Target] = MappingProxyType({}),
) -> list[Found]:
    """v* as output of module `name`, and keys and values at its layer, for requests given by their rows.

    They run in batches as large as memory allows. `site` is where the module's changes enter, `past` that of the prefix
    contexts. What is `known` of some requests is taken where their searches would begin as those did.
    """

    def begin(batch: list[int]) -> tuple[Beginning, Iterator[Keys]]:
        start = _start(passes, site, name, [requests[i] for i in batch], past, params.kl_position)
        contexts = len(requests[0]) - 1
        return start, map(Keys, start.inputs.split(contexts), start.outputs.split(contexts))

    @torch.no_grad()
    def recall(batch: list[int]) -> list[tuple[int, Found]]:
        start, keys = begin(batch)
        losses, _, _ = start.live.losses(passes, site, torch.zeros_like(start.values))
        return [
            (i, Found(each, known[i]))
            for i, each, value, loss in zip(batch, keys, start.values, losses, strict=True)
            if torch.allclose(value, known[i].start, rtol=SAME, atol=SAME * float(value.abs().max()))
            and math.isclose(float(loss), known[i].losses[0], rel_tol=SAME)
        ]

    def find(batch: list[int]) -> list[tuple[int, Found]]:
        start, keys = begin(batch)
        changes, losses = optimise(passes, site, start.live, start.values, params)
        targets = map(Target, start.values, changes, map(tuple, losses))
        return list(zip(batch, map(Found, keys, targets), strict=True))

    found = dict[int, Found]()
    for work in (recall, find) if known else (find,):
        left = [i for i in range(len(requests)) if i not in found and (work is find or i in known)]
        for batch in batches(passes.lm, [requests[i] for i in left], site):
            found |= dict(halving([left[j] for j in batch], work))
    return [found[i] for i in range(len(requests))]


# -- before the first step ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Live:
    """The tokens of some searches that are run in every step, and where their losses are read."""

    tokens: Tokens
    past: Past
    base: Tensor | None  # (rows, tokens, width): what the pass starts with, where it skips blocks
    owner: Tensor  # (rows,) the search each row belongs to
    changed: Tensor  # (rows,) column of the subject's last token
    scored: Tensor  # (targets' tokens, 3): row, column, id
    weights: Tensor  # of every target token: rows and tokens of a row count alike
    decisive: Tensor  # (targets' tokens,) whether it must be the likeliest for a hit
    drift: Tensor  # (searches, 2): row, column

    def only(self, wanted: Tensor) -> "Live":
        """The rows of some searches, given as a mask over all."""
        rows = wanted[self.owner].nonzero()[:, 0]
        renumbered = torch.full_like(self.owner, -1)
        renumbered[rows] = torch.arange(len(rows), device=rows.device)
        scored, drift = (
            torch.cat([renumbered[pairs[:, :1]], pairs[:, 1:]], 1)[renumbered[pairs[:, 0]] >= 0]
            for pairs in (self.scored, self.drift)
        )
        kept = renumbered[self.scored[:, 0]] >= 0
        return Live(
            self.tokens.take(rows), self.past.take(rows), None if self.base is None else self.base[rows],
            self.owner[rows], self.changed[rows], scored, self.weights[kept], self.decisive[kept], drift,
        )  # fmt: skip

    def losses(
        self, passes: Passes, site: Site, delta: Tensor, *, hits: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """NLL of every search's target, log-probabilities read in "{subject} is a", of searches with rows here, and, if
        `hits` are asked for, the decisive target tokens that are not the likeliest, by search."""
        rows = torch.arange(len(self.owner), device=delta.device)
        change = delta.new_zeros(len(rows), int(self.changed.max()) + 1, delta.shape[1])
        start, changed = site.enter(self.base, change.index_put((rows, self.changed), delta[self.owner]))
        at = torch.cat([self.scored[:, :2], self.drift])
        read = at[:, 0], at[:, 1]
        run = passes.run(self.tokens, self.past, start=start, changed=changed, at=read, above=site.above)
        logits = widened(run.logits)
        nll = cross_entropy(logits[: len(self.scored)], self.scored[:, 2], reduction="none") * self.weights.to(logits)
        owners = self.owner[self.scored[:, 0]]
        sums, drift = torch.zeros(len(delta)).to(nll), logits[len(self.scored) :].log_softmax(-1)
        if not hits:
            return sums.index_add(0, owners, nll), drift, None
        missed = (logits[: len(self.scored)].argmax(-1) != self.scored[:, 2]) & self.decisive
        return sums.index_add(0, owners, nll), drift, sums.index_add(0, owners, missed.to(nll))


@dataclass(frozen=True)
class Beginning:
    """Where searches begin: what each step runs, keys and values behind every context, and v0."""

    live: Live
    inputs: Tensor  # (requests x contexts, d_in)
    outputs: Tensor  # (requests x contexts, d_out)
    values: Tensor  # (requests, width)


@torch.no_grad()
def _start(
    passes: Passes, site: Site, name: str, requests: Sequence[Sequence[Row]], past: Past, kl_position: KlPosition
) -> Beginning:
    """Run what follows the prefixes up to the site and, before the first live token, above it too."""
    lm, rows = passes.lm, [row for request in requests for row in request]
    down, kept = lm.layout.name(layer_of(lm, name)), site.kept(lm)
    here, prefix, skipped, first, last, length = (
        torch.tensor(column, device=lm.device)
        for column in zip(*((i, r.prefix, r.skipped, r.first, r.encoded.last, r.live) for i, r in enumerate(rows)),
                          strict=True)
    )  # fmt: skip
    tokens, past = Tokens.of(lm, [row.encoded.ids[row.skipped : row.end] for row in rows]), past.take(prefix)
    seen = passes.run(tokens, past, names=[down, name, *kept], stop=True).seen
    base = seen[kept[0]].output if kept else None
    earlier = _earlier(passes, site, tokens, past, first - skipped, base)
    offsets = torch.arange(int(length.max()), device=lm.device)
    index = here[:, None], ((first - skipped)[:, None] + offsets).clamp(max=tokens.ids.shape[1] - 1)
    live = _live(
        requests, Tokens(tokens.ids[index], (offsets < length[:, None]).long()), earlier,
        None if base is None else base[index], last - first, kl_position,
    )  # fmt: skip
    at = here, last - skipped
    key, value, v0 = (widened(each[at]) for each in (seen[down].input, seen[down].output, seen[name].output))
    stated = torch.tensor([row.targeted for row in rows], device=lm.device)
    bare = torch.tensor([row is request[0] for request in requests for row in request], device=lm.device)
    return Beginning(live, key[stated], value[stated], v0[bare])


def _earlier(passes: Passes, site: Site, tokens: Tokens, past: Past, first: Tensor, base: Tensor | None) -> Past:
    """The past with the tokens before `first` in the blocks that a pass from the site runs."""
    width = int(first.max())
    if not width:
        return past
    before = (torch.arange(width, device=first.device) < first[:, None]).long()
    start = None if base is None or site.below == passes.lm.num_layers else Start(site.below, base[:, :width])
    new = passes.run(Tokens(tokens.ids[:, :width], before), past, start=start, above=site.above).new
    return past.with_new(new, first=site.below)


def _live(
    requests: Sequence[Sequence[Row]], tokens: Tokens, past: Past, base: Tensor | None, changed: Tensor,
    kl_position: KlPosition,
) -> Live:  # fmt: skip
    device, owner, scored, weights, drift = changed.device, list[int](), [], list[float](), []
    decisive = list[bool]()
    for i, request in enumerate(requests):
        for row in request:
            ids, r = row.encoded.ids, len(owner)
            predicting = range(len(ids))[row.encoded.predicting]
            scored += [(r, position - row.first, ids[position + 1]) for position in predicting]
            weights += [1 / (len(predicting) * (len(request) - 1)) for _ in predicting]
            decisive += [row is not request[0] or len(request) == 2 for _ in predicting]  # alone, if nothing else is
            if not row.targeted:
                read = row.encoded.last if kl_position == "subject" else row.end - 1
                drift.append((r, read - row.first))
            owner.append(i)
    return Live(
        tokens, past, base, torch.tensor(owner, device=device), changed, torch.tensor(scored, device=device),
        torch.tensor(weights, dtype=torch.float64, device=device), torch.tensor(decisive, device=device),
        torch.tensor(drift, device=device),
    )  # fmt: skip


# -- the steps -----------------------------------------------------------------------------------------------


def optimise(
    passes: Passes, site: Site, live: Live, starts: Tensor, params: ValueParams
) -> tuple[Tensor, list[list[float]]]:
    """δ of every search (searches, width) and its losses; each search has its own Adam state and its own end.

    Loss: mean NLL of the target, plus KL(edited || unedited) of what follows "{subject} is a" or its subject, plus
    decay of δ. A search that is done is no longer changed, and dropped at the next look. Sources: ROME, equation 4;
    for `stop_hits` ENCORE (Gupta et al. 2025), released code, compute_z.py.
    """
    delta = torch.zeros_like(starts, requires_grad=True)
    adam, size = torch.optim.Adam([delta], lr=params.learning_rate), starts.norm(dim=1)
    active = torch.ones(len(starts), dtype=torch.bool, device=starts.device)
    hits = torch.zeros(len(starts), device=starts.device)
    curve, counted, reference = list[Tensor](), list[Tensor](), torch.empty(0)
    for step in range(params.steps):
        nll, drift, missed = live.losses(passes, site, delta, hits=params.stop_hits > 0)
        if not step:
            reference = drift.detach()
        members = live.owner[live.drift[:, 0]]
        kl = kl_div(reference[members], drift, log_target=True, reduction="none").sum(-1)
        loss = nll.index_add(0, members, params.kl_weight * kl) + params.weight_decay * delta.norm(dim=1) / size**2
        curve, counted = [*curve, loss.detach()], [*counted, active]
        active = active & ~(loss.detach() < params.stop_loss)
        if missed is not None:
            hits = hits + (missed == 0)
            active = active & (hits < params.stop_hits)
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
    lengths = torch.stack(counted).sum(0).tolist()
    losses = [column[:length] for column, length in zip(torch.stack(curve).T.tolist(), lengths, strict=True)]
    return delta.detach(), losses
