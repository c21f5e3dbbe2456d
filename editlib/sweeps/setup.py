"""What an analysis edits with: hyper-parameters at a layer of one's choice, and the second moments they need."""

from collections.abc import Iterable
from typing import Any

from editlib.data import datasets as data
from editlib.editing.method import Variant, moments_of
from editlib.editing.methods import hparams_for, method_of
from editlib.editing.stats import Stats, second_moments_of
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel


def hparams(
    lm: LanguageModel, method: str, layer: int | None = None, *, covariance: bool | None = None, **overrides: Any
) -> Any:
    """Those of `hparams_for`, but at one layer of your choice; a method that edits several ends there.

    It is told by the hyper-parameters which of these a method does; one whose editor says where keeps its layers, and
    one that has no say about C ignores `covariance`.
    """
    usual = hparams_for(lm, method, **overrides)
    chosen: dict[str, Any] = {}
    if covariance is not None and hasattr(usual, "covariance"):
        chosen["covariance"] = covariance
    if layer is not None and hasattr(usual, "layers"):
        first = max(layer - len(usual.layers) + 1, 0)
        chosen["layers"] = tuple(range(first, layer + 1))
    elif layer is not None and hasattr(usual, "layer"):
        chosen["layer"] = layer
    return hparams_for(lm, method, **overrides, **chosen)


def able(lm: LanguageModel, methods: Iterable[str], layer: int | None = None, **overrides: Any) -> dict[str, Any]:
    """Hyper-parameters of the methods that can edit this model: MEND needs an editor that was trained for it."""
    by_method = {}
    for name in methods:
        params = hparams(lm, name, layer, **overrides)
        try:
            method_of(params, name).check(lm, params)
        except EditlibError:
            continue
        by_method[name] = params
    return by_method


def moments(lm: LanguageModel, variants: Iterable[Any], corpus: str | None) -> Stats | None:
    """Second moments that hyper-parameters need, from texts by name, else the testbed's own prose or text that the
    model writes; None if they need none."""
    layers = moments_of(Variant(method_of(params), params) for params in variants)
    return second_moments_of(lm, layers, corpus=data.texts(corpus) if corpus else None) if layers else None
