"""The editing methods by name, and `compute`, which makes an `Edit` with any of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods.emmet import EmmetParams, emmet
from editlib.editing.methods.ft import FtlParams, FtParams, ft
from editlib.editing.methods.memit import MemitParams, memit
from editlib.editing.methods.mend import MendParams, mend
from editlib.editing.methods.presets import FLAVOURS, defaults
from editlib.editing.methods.r_rome import RRomeParams, r_rome
from editlib.editing.methods.rome import RankOneParams, RomeParams, rome
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.engine.values import ValueParams
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

Params = RomeParams | RRomeParams | EmmetParams | MemitParams | FtParams | FtlParams | MendParams


@dataclass(frozen=True)
class Method:
    """An editing method: hyper-parameters, function, source, and the hyper-parameters its name stands for."""

    hparams: type[Any]
    function: Callable[..., Any]
    paper: str
    equation: str
    several: bool  # whether it is defined for several requests at once
    stands_for: Mapping[str, Any]


def _rome(keys: str, paper: str, equation: str) -> Method:
    return Method(RomeParams, rome, paper, equation, False, {"keys": keys})


METHODS: dict[str, Method] = {
    "ft": Method(FtParams, ft, "Zhu et al. 2020, Modifying Memories", "equation 2, no bound", True, {}),
    "ft-l": Method(FtlParams, ft, "Zhu et al. 2020, Modifying Memories", "equation 2, L-infinity bound", True, {}),
    "mend": Method(MendParams, mend, "Mitchell et al. 2022, Fast Model Editing at Scale", "section 3", True, {}),
    "rome": _rome("mixed", "Meng et al. 2022, as released", "Fall of ROME, slides p. 34"),
    "c-rome": _rome("prefixed", "Yang et al. 2024, The Fall of ROME", "slides p. 35"),
    "p-rome": _rome("unprefixed", "Gupta et al. 2024, Rebuilding ROME", "k without prefix"),
    "r-rome": Method(RRomeParams, r_rome, "Gupta et al. 2024, Rebuilding ROME", "section 3", False, {}),
    "memit": Method(MemitParams, memit, "Meng et al. 2023, Mass-Editing Memory", "equations 14 and 20", True, {}),
    "emmet": Method(EmmetParams, emmet, "Gupta et al. 2024, A Unified Framework", "equation 9", True, {}),
}


def hparams_for(lm: LanguageModel, method: str, *, flavour: str | None = None, **overrides: Any) -> Any:
    """Hyper-parameters of a method for a model: its preset if it has one, else the middle layer; then the overrides.

    `flavour` takes one lineage's settings as a whole: `meng-2022` or `yang-2024`. Raises `EditlibError` for an
    unknown method, flavour or hyper-parameter, a value of the wrong kind, or a layer out of range.
    """
    if method not in METHODS:
        raise EditlibError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    lm.require_causal()
    if flavour is not None and flavour not in FLAVOURS:
        raise EditlibError(f"flavour {flavour!r} is unknown; use one of {', '.join(FLAVOURS)}")
    kind = METHODS[method].hparams
    known = {field.name for field in fields(kind)}
    unknown = next((name for name in overrides if name not in known), None)
    if unknown is not None:
        raise EditlibError(f"hyper-parameter {unknown!r} is unknown; {method} has {', '.join(sorted(known))}")
    chosen = {name: value for name, value in defaults(lm, method, flavour).items() if name in known}
    params = _checked(method, kind, chosen | overrides | dict(METHODS[method].stands_for))
    for layer in layers_of(params):
        lm.down(layer)  # raises if out of range
    return params


def _checked(method: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Hyper-parameters of one kind, every value converted to the type its field declares."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # raised by the dataclass itself
            raise first["ctx"]["error"] from None
        name, reason = first["loc"][0], first["msg"][0].lower() + first["msg"][1:]
        raise EditlibError(f"hyper-parameter {name}={first['input']!r} of {method}: {reason}") from error


def layers_of(params: Params) -> tuple[int, ...]:
    """The layers a method edits, where its hyper-parameters name them."""
    if isinstance(params, MendParams):
        return ()  # its editor says
    return params.layers if isinstance(params, MemitParams) else (params.layer,)


def needs_moments(params: Params) -> bool:
    """Whether second moments of the keys enter."""
    return isinstance(params, MemitParams) or getattr(params, "covariance", False)


def searches(lm: LanguageModel, params: Params) -> list[tuple[str, ValueParams]]:
    """The searches for v* a method makes: name of the module whose output is sought, and how."""
    if isinstance(params, MemitParams):
        return [(f"{lm.layout.blocks}.{params.layers[-1]}", params)]
    return [(lm.layout.name(params.layer), params)] if isinstance(params, RankOneParams) else []


def prepare(space: Session, requests: Sequence[EditRequest], params: Params) -> None:
    """Find keys and v* of all requests side by side, for every search a method makes, unless they are known."""
    for name, search in searches(space.lm, params):
        space.prepare(name, requests, search)


def compute(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    method: str,
    hparams: Params | None = None,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
) -> Edit:
    """Compute an edit; the model's weights are left as they are.

    Raises `EditlibError` for an unknown method, no request, or several with a method that edits one at a time.
    """
    params = hparams_for(lm, method, **(asdict(hparams) if hparams else {}))
    if not requests:
        raise EditlibError("no request to edit; give at least one")
    if len(requests) > 1 and not METHODS[method].several:
        raise EditlibError(f"{method} edits one request at a time, not {len(requests)}; call it once for each")
    return solve(Session(lm, stats=stats, corpus=corpus), method, requests, params)


def solve(space: Session, name: str, requests: Sequence[EditRequest], params: Params) -> Edit:
    """The edit that hyper-parameters stand for, under a name of your choice, with what the session knows already."""
    prepare(space, requests, params)
    function = next(method.function for method in METHODS.values() if method.hparams is type(params))
    factors, found = function(space, requests, params)
    edit = Edit(name, tuple(requests), factors, asdict(params), space.lm.fingerprint)
    return replace(edit, diagnostics=NUMBERS | found | _norms(space, edit))


NUMBERS = {"numerator": None, "denominator": None, "denominator_consistent": None}  # not every method has them


def _norms(space: Session, edit: Edit) -> dict[str, float]:
    whole, delta = math.hypot(*map(space.weight_norm, edit.factors)), edit.norm()
    return {"delta_norm": delta, "weight_norm": whole, "relative_delta_norm": delta / whole}
