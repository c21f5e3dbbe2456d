"""The editing methods by name, and `compute`, which makes an edit with any of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, overload

from pydantic import TypeAdapter, ValidationError

from editlib.data import datasets as data
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit, Intervention
from editlib.editing.guard import guarded
from editlib.editing.method import Method, Variant
from editlib.editing.methods.alphaedit import AlphaEdit, AlphaEditParams
from editlib.editing.methods.coachhook import CoachHook, CoachHookParams
from editlib.editing.methods.d4s import D4s, D4sParams
from editlib.editing.methods.emmet import Emmet, EmmetParams
from editlib.editing.methods.filters import FILTERS
from editlib.editing.methods.filters.filter import Filtered
from editlib.editing.methods.ft import Ft, Ftl, FtlParams, FtParams
from editlib.editing.methods.grace import Grace, GraceParams
from editlib.editing.methods.ike import Ike, IkeParams
from editlib.editing.methods.kn import Kn, KnParams
from editlib.editing.methods.locft import LocFt, LocFtParams
from editlib.editing.methods.lora import Lora, LoraParams
from editlib.editing.methods.memit import Memit, MemitParams
from editlib.editing.methods.memoir import Memoir, MemoirParams
from editlib.editing.methods.mend import Mend, MendParams
from editlib.editing.methods.nas import Nas, NasParams
from editlib.editing.methods.r_rome import RRome, RRomeParams
from editlib.editing.methods.remembering import (
    Encore,
    EncoreParams,
    MemitSeq,
    MemitSeqParams,
    RlsEdit,
    RlsEditParams,
)
from editlib.editing.methods.rome import Rome, RomeParams
from editlib.editing.methods.serac import Serac, SeracParams
from editlib.editing.methods.skeme import Skeme, SkemeParams
from editlib.editing.methods.wise import Wise, WiseParams
from editlib.editing.names import GUARDS, Guard, parts
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions, Stats
from editlib.errors import EditlibError, unknown
from editlib.models.language_model import LanguageModel

Family = MemitParams | MemitSeqParams | EncoreParams | AlphaEditParams | NasParams | RlsEditParams | D4sParams
Tuned = FtParams | FtlParams | LocFtParams | LoraParams
Memories = CoachHookParams | GraceParams | MemoirParams | WiseParams | SeracParams | SkemeParams
Params = RomeParams | RRomeParams | EmmetParams | Family | Tuned | MendParams | KnParams | Memories | IkeParams
Methods = str | Method | Sequence[str | Method] | Mapping[str, Params | Method | Variant]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Ft(),
        Ftl(),
        Mend(),
        Rome("rome", {"keys": "mixed"}, "Meng et al. 2022, as released", "Fall of ROME, slides p. 34"),
        Rome("c-rome", {"keys": "prefixed"}, "Yang et al. 2024, The Fall of ROME", "slides p. 35"),
        Rome("fc-rome", {"keys": "prefixed", "anchor": "mean"}, "editlib", "c-rome with v* = W k̄ + δ"),
        Rome("p-rome", {"keys": "unprefixed"}, "Gupta et al. 2024, Rebuilding ROME", "k without prefix"),
        RRome(),
        Memit(),
        Emmet(),
        MemitSeq(),
        Encore(),
        AlphaEdit(),
        Nas(),
        RlsEdit(),
        D4s(),
        LocFt(),
        Lora(),
        Kn(),
        CoachHook(),
        Grace(),
        Memoir(),
        Wise(),
        Serac(),
        Skeme(),
        Ike(),
    )
}


def hparams_for(
    lm: LanguageModel,
    method: str | Method,
    *,
    flavour: str | None = None,
    preset: str | Path | None = None,
    **overrides: Any,
) -> Any:
    """Hyper-parameters of a method for a model: middle layer, then what is published for its shape, then those of
    `editlib.json` in its folder, of the file `preset`, of the flavour, and the overrides.

    `flavour` takes one lineage's settings as a whole: `meng-2022` or `yang-2024`. Raises `EditlibError` for an unknown
    method, flavour or hyper-parameter, a value of the wrong kind or out of range, or another one than the method's name
    stands for.
    """
    chosen = _named(method)
    lm.require_causal()
    if flavour is not None and flavour not in FLAVOURS:
        raise unknown("flavour", flavour, FLAVOURS)
    known = {field.name for field in fields(chosen.hparams)}
    for name in overrides:
        if name not in known:
            raise unknown(f"{chosen.name}'s hyper-parameter", name, sorted(known))
    _require_its_name(chosen, overrides)
    beside = [lm.folder / OWN] if lm.folder and (lm.folder / OWN).is_file() else []
    files = [read_preset(path) for path in (*beside, *([Path(preset)] if preset else []))]
    settings = defaults(lm, chosen.name, flavour, files)
    usual = {name: value for name, value in settings.items() if name in known}
    params = _checked(chosen, usual | overrides | dict(chosen.stands_for))
    for layer in chosen.layers(params):
        lm.down(layer)  # raises if out of range
    return params


def _named(method: str | Method) -> Method:
    """A method by name, with the filters that stand behind it, or itself."""
    if not isinstance(method, str) and not hasattr(method, "solve"):
        raise EditlibError(f"method {method!r} is no name and no method; give one of {', '.join(METHODS)}")
    return _combined(method) if isinstance(method, str) else method


@cache
def _combined(name: str) -> Method:
    base, filters = parts(name)
    method = METHODS[base]
    for each in filters:
        method = Filtered(method, FILTERS[each])
    return method


def _checked(method: Method, values: Mapping[str, Any]) -> Any:
    """Hyper-parameters of a method, every value converted to the type its field declares, all numbers finite."""
    try:
        params = TypeAdapter(method.hparams).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # raised by the dataclass itself
            raise first["ctx"]["error"] from None
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise EditlibError(
            f"hyper-parameter {first['loc'][0]}={first['input']!r} of {method.name}: {reason}"
        ) from error
    for name, value in values.items():
        number = getattr(params, name)
        if isinstance(number, float) and not math.isfinite(number):
            raise EditlibError(f"hyper-parameter {name}={number} of {method.name}: input should be a finite number")
        if isinstance(value, bool) and not isinstance(number, bool):
            raise EditlibError(f"hyper-parameter {name}={value} of {method.name}: input should be no truth value")
    return params


def variants_of(lm: LanguageModel, methods: Methods) -> dict[str, Variant]:
    """Methods with their hyper-parameters by the name of their rows.

    Names and `Method` objects take the model's presets; a mapping gives hyper-parameters by any name, or a `Variant`.
    Raises `EditlibError` for none, an unknown one, or bad hyper-parameters.
    """
    if isinstance(methods, str) or not isinstance(methods, Sequence | Mapping):
        methods = [methods]
    if not methods:
        raise EditlibError("no methods to edit with; give at least one")
    if not isinstance(methods, Mapping):
        methods = {_named(method).name: _named(method) for method in methods}
    return {name: _variant(lm, name, given) for name, given in methods.items()}


def _variant(lm: LanguageModel, name: str, given: Any) -> Variant:
    if isinstance(given, Variant):
        return Variant(given.method, _checked(given.method, vars(given.params)))
    if isinstance(given, str) or hasattr(given, "solve"):
        return Variant(_named(given), hparams_for(lm, given))
    method = method_of(given, name)
    if name in METHODS and name != method.name:
        raise EditlibError(
            f"{name} is another method than that of its hyper-parameters, {method.name}; rename the rows"
        )
    asked = dict(vars(given))
    if name == method.name:
        asked = dict(method.stands_for) | _less_defaults(method, asked)
        _require_its_name(method, asked)
    return Variant(method, _checked(method, asked))


def _less_defaults(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Less what a method's name stands for, where a value is the family's default: not said on purpose."""
    usual = {field.name: field.default for field in fields(method.hparams)}
    return {key: value for key, value in given.items() if key not in method.stands_for or value != usual[key]}


def _require_its_name(method: Method, given: Mapping[str, Any]) -> None:
    """Raise `EditlibError` for a hyper-parameter that is another than the method's name stands for."""
    for key, value in method.stands_for.items():
        if given.get(key, value) != value:
            raise EditlibError(
                f"{method.name} stands for {key}={value!r}, so it cannot be {given[key]!r}; leave it out"
            )


def method_of(params: Any, name: str = "") -> Method:
    """The method that hyper-parameters belong to, that of this name if several have such; `EditlibError` for others."""
    made_for: Method | None = getattr(params, "made_for", None)  # with a filter
    if made_for:
        return made_for
    alike = {method.name: method for method in METHODS.values() if method.hparams is type(params)}
    if not alike:
        raise EditlibError(f"{params!r} is no hyper-parameters of a method; use hparams_for, or give a Variant")
    return alike.get(name, next(iter(alike.values())))


@overload
def compute(
    lm: LanguageModel, requests: EditRequest | Sequence[EditRequest], *, method: str, hparams: Params | None = ...,
    stats: Stats | None = ..., corpus: Sequence[str] | None = ..., moment_options: MomentOptions | None = ...,
    guard: Guard = ...,
) -> Edit: ...  # fmt: skip
@overload
def compute(
    lm: LanguageModel, requests: EditRequest | Sequence[EditRequest], *, method: Method, hparams: Any = ...,
    stats: Stats | None = ..., corpus: Sequence[str] | None = ..., moment_options: MomentOptions | None = ...,
    guard: Guard = ...,
) -> Intervention: ...  # fmt: skip
def compute(
    lm: LanguageModel,
    requests: EditRequest | Sequence[EditRequest],
    *,
    method: str | Method,
    hparams: Any = None,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    moment_options: MomentOptions | None = None,
    guard: Guard = "warn",
) -> Intervention:
    """Compute an edit; the model's weights are left as they are.

    `requests` are one or several, or whatever else `data.cases` takes; `hparams` those of a method, or some by name.
    Second moments are those of `stats`, else of `corpus` or of text the model writes, read as `moment_options` say.
    An edit that may break the model is told of in the log, or refused with guard="refuse", as `guarded` says.
    Raises `EditlibError` as `hparams_for` and `check` do, before the model is run.
    """
    chosen = _named(method)
    if hparams is not None and not (isinstance(hparams, Mapping) or is_dataclass(hparams)):
        raise EditlibError(f"hparams {hparams!r} is no mapping; give {{'layer': 5}}, or what hparams_for gives")
    given = dict[str, Any](hparams if isinstance(hparams, Mapping) else vars(hparams) if hparams else {})
    if own := given.keys() & {"lm", "method", "flavour", "preset"}:
        raise EditlibError(f"{min(own)} is no hyper-parameter; leave it out of hparams")
    if guard not in GUARDS:
        raise unknown("guard", guard, GUARDS)
    variant = Variant(chosen, hparams_for(lm, chosen, **_less_defaults(chosen, given)))
    session = Session(lm, stats=stats, corpus=corpus, moment_options=moment_options)
    asked = data.requests(requests)
    session.check([variant], requests=asked)
    return guarded(session, chosen.solve(session, asked, variant.params)[0], guard)


def solve(session: Session, name: str, requests: Sequence[EditRequest], params: Params) -> Edit:
    """The edit that hyper-parameters stand for, under a name of your choice, with what the session knows already."""
    edit, _ = method_of(params, name).solve(session, requests, params)
    assert isinstance(edit, Edit)  # every method here changes weights
    return replace(edit, method=name)


def prepare(session: Session, requests: Sequence[EditRequest], params: Params) -> None:
    """Find keys and v* of all requests side by side, for every search a method makes, unless they are known."""
    for name, search in method_of(params).searches(session.lm, params):
        session.prepare(name, requests, search)


PRESETS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "presets.json").read_text("utf-8"))
RELEASED = {"objective": "last-position", "kl_position": "subject"}  # in either lineage
FLAVOURS: dict[str, dict[str, Any]] = {  # what the two lineages of released code do on every model
    "meng-2022": {"covariance": True, "contexts": "meng-2022"} | RELEASED,
    "yang-2024": {"covariance": False, "contexts": "yang-2024"} | RELEASED,
}
OWN = "editlib.json"  # a model's own settings, in its folder
FAMILIES = {  # these share v*, hence settings
    **dict.fromkeys(("c-rome", "fc-rome", "p-rome", "r-rome", "emmet"), ("rome",)),
    **dict.fromkeys(("memit-seq", "encore", "alphaedit", "rlsedit", "d4s", "coachhook"), ("memit",)),
    "nas": ("memit", "alphaedit"),
}

Settings = dict[str, dict[str, Any]]  # by method, or by the method whose settings others share


def preset_of(lm: LanguageModel) -> dict[str, Any]:
    """The preset for models of this type, number of layers and shape of the edited weight; empty if there is none."""
    shape = [lm.model.config.model_type, lm.num_layers, *lm.weight(0).shape]
    return next((preset for preset in PRESETS.values() if preset["shape"] == shape), {})


def defaults(lm: LanguageModel, method: str, flavour: str | None, files: Sequence[Settings]) -> dict[str, Any]:
    """Every setting known for a method on a model: middle layers, then those of its shape, of files in their order, of
    the flavour."""
    middle = (lm.num_layers - 1) // 2  # never the last layer: what it adds at the subject reaches no later token
    chosen: dict[str, Any] = {"layer": middle, "layers": tuple(range(max(middle - 4, 0), middle + 1))}
    base = method.split("+")[0]
    for settings in (preset_of(lm).get("any", {}), *files):
        for name in (*FAMILIES.get(base, ()), base, method):
            chosen |= settings.get(name, {})
    return chosen | (FLAVOURS[flavour] if flavour else {})


def read_preset(path: Path) -> Settings:
    """Settings by method from a JSON file such as {"rome": {"layer": 5}}.

    Raises `EditlibError` if it is missing or damaged, or holds an unknown name.
    """
    try:
        settings: Settings = TypeAdapter(Settings).validate_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = "it is no object of objects" if isinstance(error, ValidationError) else error
        raise EditlibError(f'preset {path} cannot be read: {reason}; write {{"rome": {{"layer": 5}}}}') from error
    for method, names in settings.items():
        try:
            known = sorted(field.name for field in fields(_named(method).hparams))
        except EditlibError as error:
            raise EditlibError(f"preset {path}: {error}") from error
        for name in names:
            if name not in known:
                raise unknown(f"preset {path}: {method}'s hyper-parameter", name, known)
    return settings
