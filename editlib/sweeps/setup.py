"""What an analysis edits with: hyper-parameters at a layer of one's choice, and the second moments they need."""

from collections.abc import Iterable
from typing import Any

from editlib.data import datasets as data
from editlib.editing.method import Variant, moments_of
from editlib.editing.methods import hparams_for, method_of
from editlib.editing.stats import Stats, second_moments_of
from editlib.models.language_model import LanguageModel


def hparams(lm: LanguageModel, method: str, layer: int | None = None, **overrides: Any) -> Any:
    """Those of `hparams_for`, but at one layer of your choice; a method that edits several ends there.

    It is told by the hyper-parameters which of these a method does; one whose editor says where keeps its layers.
    """
    usual = hparams_for(lm, method, **overrides)
    if layer is None:
        return usual
    if hasattr(usual, "layers"):
        first = max(layer - len(usual.layers) + 1, 0)
        return hparams_for(lm, method, **overrides, layers=tuple(range(first, layer + 1)))
    return hparams_for(lm, method, **overrides, layer=layer) if hasattr(usual, "layer") else usual


def moments(lm: LanguageModel, variants: Iterable[Any], corpus: str | None) -> Stats | None:
    """Second moments that hyper-parameters need, from texts by name or the testbed's own prose; None if they need none.

    Raises `EditlibError` for a model that has no prose of its own, where no texts are named.
    """
    layers = moments_of(Variant(method_of(params), params) for params in variants)
    return second_moments_of(lm, layers, corpus=data.texts(corpus) if corpus else None) if layers else None
