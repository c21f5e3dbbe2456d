"""The editing methods by name, and `compute`, which makes an `Edit` with any of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from editlib.edit import Edit, EditRequest
from editlib.errors import EditlibError
from editlib.methods.rome import RomeParams, family
from editlib.model import LanguageModel
from editlib.stats import Stats

PRESETS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "presets.json").read_text())


@dataclass(frozen=True)
class Method:
    """An editing method: hyper-parameters, function, source, and the hyper-parameters its name stands for."""

    hparams: type[RomeParams]
    function: Callable[..., dict[str, Edit]]
    paper: str
    equation: str
    stands_for: Mapping[str, Any]


METHODS: dict[str, Method] = {
    "rome": Method(
        RomeParams, family, "Meng et al. 2022, as released", "Fall of ROME, slides p. 34", {"keys": "mixed"}
    ),
    "c-rome": Method(RomeParams, family, "Yang et al. 2024, The Fall of ROME", "slides p. 35", {"keys": "prefixed"}),
    "p-rome": Method(
        RomeParams, family, "Gupta et al. 2024, Rebuilding ROME", "k without prefix", {"keys": "unprefixed"}
    ),
}


def hparams_for(lm: LanguageModel, method: str, **overrides: Any) -> RomeParams:
    """Hyper-parameters of a method for a model: its preset if it has one, else the middle layer; then the overrides.

    Raises `EditlibError` for an unknown method or hyper-parameter, or a layer out of range.
    """
    if method not in METHODS:
        raise EditlibError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    known = {field.name for field in fields(RomeParams)}
    unknown = next((name for name in overrides if name not in known), None)
    if unknown is not None:
        raise EditlibError(f"hyper-parameter {unknown!r} is unknown; {method} has {', '.join(sorted(known))}")
    chosen = {"layer": lm.layers // 2} | PRESETS.get(lm.name, {}) | overrides | dict(METHODS[method].stands_for)
    params = METHODS[method].hparams(**chosen)
    lm.down(params.layer)  # raises if out of range
    return params


def compute(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    method: str,
    hparams: RomeParams | None = None,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
) -> Edit:
    """Compute an edit; the model's weights are left as they are.

    Raises `EditlibError` for an unknown method, or for several requests with a method that edits one at a time.
    """
    params = hparams_for(lm, method, **(asdict(hparams) if hparams else {}))
    if len(requests) != 1:
        raise EditlibError(f"{method} edits one request at a time, not {len(requests)}; call it once for each")
    return METHODS[method].function(lm, requests[0], {method: params}, stats=stats, corpus=corpus)[method]
