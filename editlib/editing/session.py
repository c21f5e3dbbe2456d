"""What edits of one model share, worked out once: prefix contexts, second moments and their factors, keys and v*."""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.stats import Stats, second_moments_of
from editlib.engine.passes import Passes, Past
from editlib.engine.perplexity import PAPERS, Corpus, Perplexity, Protocol, perplexities, perplexity_above, run_texts
from editlib.engine.prefixes import Flavour, prefix_contexts
from editlib.engine.rows import Prefixes, Row, rows_of
from editlib.engine.search import search
from editlib.engine.sites import Site, layer_of, site_of
from editlib.engine.values import Keys, Target, ValueParams, read_keys
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened

T = TypeVar("T")


class Session:
    """A model with everything already known about its edits; valid as long as its weights are not changed.

    Second moments come from `stats`, else from the user's cache, where they are put after a pass over `corpus`.
    Keys and v* are worked out when asked for, faster by `prepare` for many requests at once.
    """

    def __init__(self, lm: LanguageModel, *, stats: Stats | None = None, corpus: Sequence[str] | None = None) -> None:
        self.lm = lm
        self._stats, self._corpus = stats, corpus
        self._factors: dict[int, Tensor] = {}
        self._kept: dict[Hashable, Any] = {}  # what concerns the model
        self._found: dict[Hashable, Any] = {}  # what concerns a request

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

    def target(self, name: str, request: EditRequest, params: ValueParams) -> Target:
        """v* of a request as output of module `name`."""
        self.prepare(name, [request], params)
        found: Target = self._found["target", name, request, params.search]
        return found

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
            found = search(self.passes, self._site(name), name, rows, self.past(flavour), params)
            for request, each in zip(missing, found, strict=True):
                self.know(name, request, params, each.keys, each.target)

    def know(self, name: str, request: EditRequest, params: ValueParams, keys: Keys, target: Target) -> None:
        """Take keys and v* of a request from elsewhere."""
        self._found["keys", layer_of(self.lm, name), request, params.contexts] = keys
        self._found["target", name, request, params.search] = target

    def perplexities(
        self, edits: Sequence[Edit], texts: Sequence[str], *, protocol: Protocol = PAPERS
    ) -> list[Perplexity]:
        """Perplexity of texts under each edit; no weight is written for edits of one down-projection."""
        measured: dict[int, Perplexity] = {}
        for layer in range(self.lm.num_layers):
            name = f"{self.lm.layout.name(layer)}.weight"
            alone = [i for i, edit in enumerate(edits) if set(edit.factors) == {name}]
            if alone:
                corpus = self.prepare_texts(layer, texts, protocol=protocol)
                changes = [edits[i].factors[name] for i in alone]
                measured |= zip(alone, perplexities(self.passes, corpus, changes), strict=True)
        rest = [i for i in range(len(edits)) if i not in measured]
        measured |= {i: self._applied_perplexity(edits[i], texts, protocol) for i in rest}
        return [measured[i] for i in range(len(edits))]

    def whiten(self, layer: int, keys: Tensor) -> Tensor:
        """C⁻¹ applied to the columns of `keys`, in float64: C is ill-conditioned wherever one token dominates it.

        Raises `EditlibError` if C is singular, or was made for another model.
        """
        self.load_moments([layer])
        return torch.cholesky_solve(keys.double(), self._factors[layer])

    def weight_norm(self, name: str) -> float:
        """Frobenius norm of a weight."""
        weight = self.lm.model.get_parameter(name)
        return self.once(("norm", name), lambda: float(widened(weight).double().norm()))

    def load_moments(self, layers: Sequence[int]) -> None:
        """Get the second moments of several layers, in one pass over the corpus where they are not known."""
        missing = [layer for layer in layers if layer not in self._factors]
        if missing:
            stats = self._stats or second_moments_of(self.lm, missing, corpus=self._corpus)
            self._factors |= {layer: _factor(stats.require(self.lm, layer).to(self.lm.device)) for layer in missing}

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

    def _site(self, name: str) -> Site:
        return self.once(("site", name), lambda: site_of(self.passes, name))

    def _applied_perplexity(self, edit: Edit, texts: Sequence[str], protocol: Protocol) -> Perplexity:
        """With the weights written, but only from the lowest changed block on."""
        inside = [layer_of(self.lm, name) for name in edit.factors if name.startswith(f"{self.lm.layout.blocks}.")]
        site = Site(min(inside) if inside and len(inside) == len(edit.factors) else 0)
        key = "texts above", site, tuple(texts), protocol
        corpus = self.once(key, lambda: run_texts(self.passes, site, texts, protocol=protocol))
        with edit.applied(self.lm):
            return perplexity_above(self.passes, corpus)


def _once(known: dict[Hashable, Any], key: Hashable, work: Callable[[], T]) -> T:
    """What is known under a key, worked out the first time."""
    if key not in known:
        known[key] = work()
    found: T = known[key]
    return found


def _factor(moment: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(moment.double())
    if failed:
        raise EditlibError("the second moment of the keys is singular; use a longer corpus or covariance=False")
    return factor
