"""What edits of one model share, worked out once: prefix contexts, second moments and their factors, keys and v*."""

import hashlib
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import Change
from editlib.editing.edit import Edit, Intervention
from editlib.editing.method import Method, Variant, moments_of
from editlib.editing.overlays.overlay import Overlay, require_bare
from editlib.editing.stats import MomentOptions, Needed, Stats, StatsHeader, needed_moments
from editlib.engine import solved
from editlib.engine.passes import Passes, Past, Tokens
from editlib.engine.perplexity import (
    PAPERS,
    Corpus,
    Perplexity,
    Protocol,
    perplexities,
    perplexity,
    perplexity_above,
    run_texts,
)
from editlib.engine.prefixes import LENGTHS, Flavour, are_stored, prefix_contexts
from editlib.engine.search import search
from editlib.engine.sites import Site, layer_of, run_below, site_of
from editlib.engine.values import Keys, Prefixes, Row, Target, ValueParams, encode_contexts, read_keys, rows_of
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import encode_texts

T = TypeVar("T")
Logits = Callable[[Sequence[Sequence[int]], Sequence[tuple[int, int]]], Tensor]  # of rows of ids, at (row, position)
ABSENT = {"numerator": None, "denominator": None, "denominator_consistent": None}  # not every method has them


class Session:
    """A model with everything already known about its edits; valid as long as its weights are not changed.

    Second moments come from `stats`, else from the user's cache, where they are put after a pass over `corpus`.
    Keys and v* are worked out when asked for, faster by `prepare` for many requests at once; v* is kept in the cache
    and taken from there if `reuse` or, without it, EDITLIB_REUSE=1 says so. Raises `EditlibError` for bad `stats`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        stats: Stats | None = None,
        corpus: Sequence[str] | None = None,
        moment_options: MomentOptions | None = None,
        reuse: bool | None = None,
    ) -> None:
        if stats is not None and not isinstance(stats, Stats):
            raise EditlibError(f"stats {stats!r} are no second moments; read a file with editlib.editing.stats.load")
        self.lm = lm
        self._reuse = solved.asked() if reuse is None else reuse
        self._stats, self._corpus, self._options = stats, corpus, moment_options or MomentOptions()
        self._needed: Needed | None = None
        self._factors: dict[int, Tensor] = {}
        self._headers: dict[int, StatsHeader] = {}  # what a layer's second moments are means of
        self._files: dict[Hashable, Any] = {}  # what follows from files alone
        self._kept: dict[Hashable, Any] = {}  # what concerns the model
        self._found: dict[Hashable, Any] = {}  # what concerns a request
        self._asked: Sequence[EditRequest] = ()  # whose edits were last asked something
        self._below: dict[Hashable, Any] = {}  # what blocks below an edited layer made of it

    def check(
        self,
        variants: Iterable[Variant],
        *,
        requests: Sequence[EditRequest] | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        """Raise `EditlibError` for what a user can mend, without running the model: layers and files of the methods,
        each request in its prompt, texts, and where second moments come from.

        Hyper-parameters are `hparams_for`'s to check. What is not given is not looked at.
        """
        chosen, lm = list(variants), self.lm
        lm.require_causal()
        require_bare(lm, "an edit")
        if requests is not None and not requests:
            raise EditlibError("no request to edit; give at least one")
        single = next((v.method.name for v in chosen if not v.method.several), None)
        if requests is not None and len(requests) > 1 and single:
            raise EditlibError(f"{single} edits one request at a time, not {len(requests)}; call it once for each")
        for variant in chosen:
            for layer in variant.method.layers(variant.params):
                lm.down(layer)  # raises if out of range
            variant.method.check(lm, variant.params)
        for request in requests or ():
            self.check_request(chosen, request)
        if texts is not None:
            encode_texts(lm, texts)
        self.find_moments(moments_of(chosen))

    def check_request(self, variants: Iterable[Variant], request: EditRequest) -> None:
        """Raise `EditlibError` if subject or target cannot be located, the prompt is too long with target and prefix
        contexts, or a value would be written at the last layer before the prompt's end, where nothing reads it."""
        lm = self.lm
        (row,) = encode_contexts(lm, request, ["{}"], target=request.target_new)
        for variant in variants:
            for name, params in variant.method.searches(lm, variant.params):
                layer = layer_of(lm, name)
                if layer == lm.num_layers - 1 and row.last < row.target - 1:
                    raise EditlibError(
                        f"layer {layer} is the last one: what is written at subject {request.subject!r} reaches no "
                        "later token; edit a lower layer, or a prompt that ends in its subject"
                    )
                if are_stored(lm, params.contexts):
                    self.rows(request, params.contexts)  # raises for what does not fit behind them
                elif lm.max_length is not None and len(row.ids) + max(LENGTHS) > lm.max_length:
                    raise EditlibError(
                        f"prompt {request.text[:40]!r}... has {len(row.ids)} tokens with its target, and "
                        f"{max(LENGTHS)} or more stand before it while an edit is made, {lm.label} takes at most "
                        f"{lm.max_length}; shorten it"
                    )

    @cached_property
    def passes(self) -> Passes:
        """Partial forward passes."""
        return Passes.of(self.lm)

    def contexts(self, flavour: Flavour) -> list[str]:
        """The prefix contexts, the empty one first."""
        return self.once(("contexts", flavour), lambda: prefix_contexts(self.lm, flavour=flavour))

    def prefixes(self, flavour: Flavour) -> Prefixes:
        """The tokens of the prefix contexts."""
        return self.once(("prefixes", flavour), lambda: Prefixes.of(self.lm, self.contexts(flavour)))

    def past(self, flavour: Flavour) -> Past:
        """What requests stand behind: the prefix contexts, run once."""
        return self.once(("past", flavour), lambda: self.prefixes(flavour).run(self.passes))

    def keys(self, layer: int, request: EditRequest, flavour: Flavour) -> Keys:
        """Keys and values of a request at a layer behind every prefix context."""
        read = (self.lm, layer, request, self.contexts(flavour))
        return _once(self._found, ("keys", layer, request, flavour), lambda: read_keys(*read))

    def targets(self, name: str, requests: Sequence[EditRequest], params: ValueParams) -> list[Target]:
        """v* of every request as output of module `name`, searched side by side where they are not known."""
        self.prepare(name, requests, params)
        return [self._found["target", name, request, params.search] for request in requests]

    def rows(self, request: EditRequest, flavour: Flavour) -> tuple[Row, ...]:
        """The texts of a request's search for v*; raises `EditlibError` if there can be none. No pass is run."""
        prefixes = self.prefixes(flavour)
        return _once(self._found, ("rows", request, flavour), lambda: rows_of(self.lm, request, prefixes))

    def prepare(self, name: str, requests: Sequence[EditRequest], params: ValueParams) -> None:
        """Find v* as output of module `name`, and keys at its layer, for all requests that lack them, at once."""
        flavour = params.contexts
        missing = [r for r in dict.fromkeys(requests) if ("target", name, r, params.search) not in self._found]
        rows = [self.rows(request, flavour) for request in missing]
        if rows:
            paths = [solved.place(self.lm, name, each, params) for each in rows] if self._reuse else []
            stored = ((i, solved.kept(path, self.lm.device)) for i, path in enumerate(paths))
            known = {i: target for i, target in stored if target}
            searched = search(self.passes, self._site(name), name, rows, self.past(flavour), params, known=known)
            for request, each in zip(missing, searched, strict=True):
                self.know(name, request, params, each.keys, each.target)
            for i, path in enumerate(paths):
                if searched[i].target is not known.get(i):
                    solved.keep(path, searched[i].target)

    def know(self, name: str, request: EditRequest, params: ValueParams, keys: Keys, target: Target) -> None:
        """Take keys and v* of a request from elsewhere."""
        self._found["keys", layer_of(self.lm, name), request, params.contexts] = keys
        self._found["target", name, request, params.search] = target

    def edit(
        self,
        method: Method,
        requests: Sequence[EditRequest],
        params: Any,
        changes: Mapping[str, Change],
        numbers: Mapping[str, Any],
        overlay: Overlay | None = None,
    ) -> Edit:
        """The edit that a method worked out, with what is said of every one: its norms, and the tokens behind C."""
        dtype = str(self.lm.model.dtype).removeprefix("torch.")
        edit = Edit(method.name, tuple(requests), changes, asdict(params), self.lm.fingerprint, {}, dtype, overlay)
        whole, delta = math.hypot(*map(self.weight_norm, changes)), edit.norm()
        norms = {"delta_norm": delta, "weight_norm": whole, "relative_delta_norm": delta / (whole or 1)}
        header = next((self._headers[layer] for layer in method.moments(params)), None)  # all were read alike
        width = max((self.lm.weight(layer).shape[1] for layer in method.moments(params)), default=1)
        read = ("tokens", "window", "first_position", "source")
        behind = {f"moment_{name}": getattr(header, name, None) for name in read}
        behind["moment_tokens_per_dimension"] = header and header.tokens / width
        return replace(edit, diagnostics=ABSENT | dict(numbers) | norms | behind)

    def perplexities(
        self, edits: Sequence[Intervention], texts: Sequence[str], *, protocol: Protocol = PAPERS
    ) -> list[Perplexity]:
        """Perplexity of texts under each edit; no weight is written for edits of one down-projection."""
        measured: dict[int, Perplexity] = {}
        single = {i: layer_change for i, edit in enumerate(edits) if (layer_change := self._single(edit))}
        for layer in sorted({layer for layer, _ in single.values()}):
            corpus = self.prepare_texts(layer, texts, protocol=protocol)
            outputs = {i: change.output for i, (at, change) in single.items() if at == layer}
            measured |= zip(outputs, perplexities(self.passes, corpus, list(outputs.values())), strict=True)
        for i in set(range(len(edits))) - set(measured):
            measured[i] = self._applied_perplexity(edits[i], texts, protocol)
        return [measured[i] for i in range(len(edits))]

    def logits(self, edit: Intervention) -> Logits | None:
        """Logits of rows of token ids, at (row, position) pairs, under an edit of one down-projection, whose weight is
        not written; None for any other. What edits of the same requests are asked runs once below their layer.
        """
        layer_change = self._single(edit)
        if layer_change is None:
            return None
        if self._asked != edit.requests:
            self._asked, self._below = edit.requests, {}
        return partial(self._logits, *layer_change)

    @torch.no_grad()
    def _logits(
        self, layer: int, change: Change, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]
    ) -> Tensor:
        site, key = self._site(self.lm.layout.name(layer)), (layer, tuple(map(tuple, rows)))
        if key not in self._below:
            tokens = Tokens.of(self.lm, rows)
            self._below[key] = tokens, *run_below(self.passes, site, tokens, layer=layer)
        tokens, base, keys = self._below[key]
        start, changed = site.enter(base, change.output(keys))
        row, column = torch.tensor(at, device=self.lm.device).T
        run = self.passes.run(tokens, start=start, changed=changed, at=(row, column), above=site.above)
        return widened(run.logits)

    def _single(self, edit: Intervention) -> tuple[int, Change] | None:
        """The layer and the change of an edit of one down-projection; None for any other."""
        changes = dict(edit.changes) if isinstance(edit, Edit) else {}
        layers = (layer for layer in range(self.lm.num_layers) if f"{self.lm.layout.name(layer)}.weight" in changes)
        layer = next(layers, None) if len(changes) == 1 else None
        return None if layer is None else (layer, next(iter(changes.values())))

    def whiten(self, layer: int, keys: Tensor) -> Tensor:
        """C⁻¹ applied to the columns of `keys`, in float64: C is ill-conditioned wherever one token dominates it.

        Raises `EditlibError` if C is singular, or was made for another model.
        """
        return torch.cholesky_solve(keys.to(factor := self.factor(layer)), factor).to(keys.device)

    def factor(self, layer: int) -> Tensor:
        """The lower Cholesky factor of C, of the unedited model and in float64; errors as for `whiten`."""
        self.load_moments([layer])
        return self._factors[layer]

    def weight_norm(self, name: str) -> float:
        """Frobenius norm of a weight."""
        return self.once(("norm", name), lambda: float(widened(self.lm.model.get_parameter(name)).double().norm()))

    def find_moments(self, layers: Sequence[int]) -> None:
        """See that the second moments of several layers can be had, without running the model.

        Raises `EditlibError` if they were made for another model, or the corpus is missing or too short.
        """
        missing = [layer for layer in layers if layer not in self._factors]
        if self._stats:
            for layer in missing:
                self._stats.require(self.lm, layer)
        elif missing and (self._needed is None or not self._needed.paths.keys() >= set(missing)):
            self._needed = needed_moments(self.lm, missing, corpus=self._corpus, options=self._options)

    def load_moments(self, layers: Sequence[int]) -> None:
        """Get the second moments of several layers, in one pass over the corpus where they are not known."""
        if all(layer in self._factors for layer in layers):
            return
        self.find_moments(layers)
        stats = self._stats or (self._needed and self._needed.get())
        assert stats  # one of them is there, or `find_moments` has said why not
        for layer in layers if self._stats else stats.moments:
            self._factors[layer] = _factor(stats.require(self.lm, layer).to(self.lm.device))
            self._headers[layer] = stats.header

    @property
    def moment_source(self) -> dict[str, Any]:
        """What second moments follow from beside the model, as JSON; its `corpus` is None where none was given."""
        if self._stats:
            return asdict(self._stats.header)
        texts = None if self._corpus is None else hashlib.sha256(json.dumps(list(self._corpus)).encode()).hexdigest()
        return {"corpus": texts} | asdict(self._options)

    def file(self, key: Hashable, read: Callable[[], T]) -> T:
        """What a file holds, read the first time; it stays when the model changes."""
        return _once(self._files, key, read)

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """What is known of the model under a key, worked out the first time."""
        return _once(self._kept, key, work)

    def prepare_texts(self, layer: int, texts: Sequence[str], *, protocol: Protocol = PAPERS) -> Corpus:
        """Run texts up to where changes of a layer's down-projection enter."""
        site, key = self._site(self.lm.layout.name(layer)), ("texts", layer, tuple(texts), protocol)
        return self.once(key, lambda: run_texts(self.passes, site, texts, layer=layer, protocol=protocol))

    def forget_requests(self) -> None:
        """Drop keys and v*, which are of use for their requests only; what concerns the model stays."""
        self._found.clear()

    def forget(self) -> None:
        """Drop all that follows from the weights, since they changed; second moments are the unedited model's, and
        stay."""
        self.forget_requests()
        self._asked, self._reuse = (), False  # what is kept is the unedited model's
        self._kept.clear()
        self.__dict__.pop("passes", None)

    def _site(self, name: str) -> Site:
        return self.once(("site", name), lambda: site_of(self.passes, name))

    def _applied_perplexity(self, edit: Intervention, texts: Sequence[str], protocol: Protocol) -> Perplexity:
        """With the edit in force; of one that changes blocks' weights alone, only from the lowest of them on."""
        names = set(edit.changes) if isinstance(edit, Edit) else set()
        if not names:
            with edit.applied(self.lm):
                return perplexity(self.lm, texts, bos=protocol.bos, stride=protocol.stride)
        inside = [layer_of(self.lm, name) for name in names if name.startswith(f"{self.lm.layout.blocks}.")]
        site = Site(min(inside) if len(inside) == len(names) else 0)
        key = "texts above", site, tuple(texts), protocol
        corpus = self.once(key, lambda: run_texts(self.passes, site, texts, protocol=protocol))
        with edit.applied(self.lm):
            return perplexity_above(self.passes, corpus)


def _once(known: dict[Hashable, Any], key: Hashable, work: Callable[[], T]) -> T:
    """What is known under a key, worked out the first time."""
    if key not in known:
        known[key] = work()
    value: T = known[key]
    return value


def _factor(moment: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(moment.double())
    if failed:
        raise EditlibError("the second moment of the keys is singular; use a longer corpus or covariance=False")
    return factor
