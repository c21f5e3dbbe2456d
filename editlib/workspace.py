"""What edits of one model share, worked out once: prefix contexts, second moments and their factors, keys and v*."""

from collections.abc import Sequence

import torch
from torch import Tensor

from editlib.edit import EditRequest
from editlib.errors import EditlibError
from editlib.model import LanguageModel
from editlib.prefixes import Flavour, prefix_contexts
from editlib.stats import Stats, second_moments_of
from editlib.values import Keys, Target, ValueParams, optimise_value, read_keys


class Workspace:
    """A model with everything already known about its edits; valid as long as its weights are not changed.

    Second moments come from `stats`, else from the user's cache, where they are put after a pass over `corpus`.
    """

    def __init__(self, lm: LanguageModel, *, stats: Stats | None = None, corpus: Sequence[str] | None = None) -> None:
        self.lm = lm
        self._stats, self._corpus = stats, corpus
        self._contexts: dict[Flavour, list[str]] = {}
        self._factors: dict[int, Tensor] = {}
        self._keys: dict[tuple[int, EditRequest, Flavour], Keys] = {}
        self._targets: dict[tuple[str, EditRequest, ValueParams], Target] = {}

    def contexts(self, flavour: Flavour) -> list[str]:
        """The prefix contexts, the empty one first."""
        if flavour not in self._contexts:
            self._contexts[flavour] = prefix_contexts(self.lm, flavour=flavour)
        return self._contexts[flavour]

    def keys(self, layer: int, request: EditRequest, flavour: Flavour) -> Keys:
        """Keys and values of a request at a layer behind every prefix context."""
        key = layer, request, flavour
        if key not in self._keys:
            self._keys[key] = read_keys(self.lm, layer, request, self.contexts(flavour))
        return self._keys[key]

    def target(self, name: str, request: EditRequest, params: ValueParams) -> Target:
        """v* of a request as output of module `name`."""
        key = name, request, params.search
        if key not in self._targets:
            self._targets[key] = optimise_value(self.lm, name, request, self.contexts(params.contexts), params)
        return self._targets[key]

    def whiten(self, layer: int, keys: Tensor) -> Tensor:
        """C⁻¹ applied to the columns of `keys`, in float64: C is ill-conditioned wherever one token dominates it.

        Raises `EditlibError` if C is singular, or was made for another model.
        """
        self.load_moments([layer])
        return torch.cholesky_solve(keys.double(), self._factors[layer])

    def load_moments(self, layers: Sequence[int]) -> None:
        """Get the second moments of several layers, in one pass over the corpus where they are not known."""
        missing = [layer for layer in layers if layer not in self._factors]
        if missing:
            stats = self._stats or second_moments_of(self.lm, missing, corpus=self._corpus)
            self._factors |= {layer: _factor(stats.require(self.lm, layer).to(self.lm.device)) for layer in missing}

    def forget_requests(self) -> None:
        """Drop keys and v*, which are of use for one request only; what concerns the model stays."""
        self._keys.clear()
        self._targets.clear()


def _factor(moment: Tensor) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(moment.double())
    if failed:
        raise EditlibError("the second moment of the keys is singular; use a longer corpus or covariance=False")
    return factor
