"""Which edits will break a model, told from keys before any is made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import pandas as pd
from torch.nn.functional import cosine_similarity

from editlib.data import datasets as data
from editlib.data.for_models import subject_tokens
from editlib.data.request import EditRequest
from editlib.editing.guard import BOUND, Surroundings, surroundings
from editlib.editing.method import Variant
from editlib.editing.methods import hparams_for, method_of
from editlib.editing.methods.r_rome import SWITCHES, RRomeParams
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.measuring import calibration
from editlib.measuring.calibration import Calibration
from editlib.measuring.prediction import KeyPairs, foretell, key_pairs
from editlib.models.language_model import LanguageModel
from editlib.text import number

SAME = 0.9  # cosine from which on a key is said to be that of position 0
CHANCES = ("probability", "probability_low", "probability_high")
SMALL = 0.1  # of the consistent denominator: from here on a denominator is called small


def risk(
    lm: LanguageModel,
    requests: EditRequest | Sequence[EditRequest],
    *,
    method: str = "rome",
    hparams: RomeParams | RRomeParams | None = None,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    session: Session | None = None,
    rules: Sequence[Calibration] | None = None,
) -> pd.DataFrame:
    """One row per request: whether an edit of it would break the model, and why, from keys alone.

    No v* is searched and nothing above the layer is run. Columns: subject, prompt, `subject_tokens`, `subject_position`
    (of its first token); norms of the key without prefix (`key_norm`) and of the mean key behind prefixes
    (`mean_key_norm`), the `cosine` between the two and that of the first with position 0's key in ordinary text
    (`cosine_first`); all columns of `foretell`; `collapse`, true if the `severity` is at least `BOUND`, a rule set by
    hand; the `probability` of collapse with its 95 % interval (`_low`, `_high`) by the one of the `rules`, those of the
    package if None, that was fitted on edits of this model by this method with these hyper-parameters, else nan; and
    the `reason`, in words.

    Raises `EditlibError` for a method that is not of the ROME family, and as `compute` does.
    """
    asked = data.requests(requests)
    if not asked:
        raise EditlibError("no requests to look at; give at least one")
    params = foreseeable(lm, method, hparams)
    space = session or Session(lm, stats=stats, corpus=corpus)
    variants = [Variant(method_of(params, method), params)]
    space.check(variants)
    for request in asked:
        space.check_request(variants, request)
    return read_risk(space, params, asked, method=method, rules=rules)


def foreseeable(lm: LanguageModel, method: str, hparams: Any = None) -> RomeParams | RRomeParams:
    """Hyper-parameters of a method whose edits can be foretold; raises `EditlibError` for any other."""
    params = hparams or hparams_for(lm, method)
    filtered = hasattr(params, "made_for")
    if filtered or not isinstance(params, RomeParams | RRomeParams):
        raise EditlibError(f"what {method} does cannot be told from keys; use rome, c-rome, fc-rome, p-rome or r-rome")
    return params


def read_risk(
    session: Session,
    given: RomeParams | RRomeParams,
    requests: Sequence[EditRequest],
    *,
    method: str,
    rules: Sequence[Calibration] | None = None,
) -> pd.DataFrame:
    """The table of `risk`, of requests that were seen through before."""
    layer, flavour = given.layer, given.contexts
    pairs = key_pairs(session, layer, requests, flavour, empty=given.empty_context)
    around = surroundings(session, layer, flavour)
    if around is None:
        raise EditlibError(f"no prefix context of {session.lm.label} has words, and risk is read from them; give some")
    whiten = (lambda keys: session.whiten(layer, keys.T).T) if given.covariance else None
    table = foretell(
        pairs, _as_rome(given), whiten=whiten, later=around.later, first=around.first, residual=around.residual
    )
    table = pd.concat([_about(session.lm, requests, pairs, around), table], axis=1)
    table["collapse"] = table["severity"] >= BOUND
    known = shipped() if rules is None else rules
    rule = next((rule for rule in known if rule.fits(session.lm, method, given)), None)
    table[list(CHANCES)] = rule.probability(table) if rule else math.nan
    table["reason"] = [_reason(row) for row in table.to_dict(orient="records")]
    return table


@cache
def shipped() -> list[Calibration]:
    """The rules of the package."""
    return calibration.read(calibration.SHIPPED)


def _as_rome(params: RomeParams | RRomeParams) -> RomeParams:
    if isinstance(params, RomeParams):
        return params
    given = asdict(params)
    return RomeParams(**SWITCHES[given.pop("switch")], **given)


def _about(lm: LanguageModel, requests: Sequence[EditRequest], pairs: KeyPairs, around: Surroundings) -> pd.DataFrame:
    """What rows say of their subjects and keys."""
    places = [subject_tokens(lm, request) for request in requests]
    return pd.DataFrame(
        {
            "subject": [request.subject for request in requests],
            "prompt": [request.prompt for request in requests],
            "subject_tokens": [tokens.count for tokens in places],
            "subject_position": [tokens.first for tokens in places],
            "key_norm": pairs.bare.norm(dim=1).tolist(),
            "mean_key_norm": pairs.mean.norm(dim=1).tolist(),
            "cosine": cosine_similarity(pairs.bare, pairs.mean).tolist(),
            "cosine_first": cosine_similarity(pairs.bare, around.first[None]).tolist(),
        }
    )


def _reason(row: Mapping[Any, Any]) -> str:
    """Why an edit is foretold to break the model, or not to."""
    if not row["collapse"]:
        return "nothing speaks for a collapse"
    parts = []
    if row["cosine_first"] >= SAME:
        same = number(row["cosine_first"])
        parts.append(f"its subject's key without prefix is that of any text's first token (cosine {same})")
    if row["denominator_ratio"] < SMALL:
        parts.append(f"the denominator is {number(row['denominator_ratio'])} of the consistent one")
    if row["spill"] >= BOUND:
        parts.append(
            f"the edit would move ordinary words' outputs {number(row['spill'])} times as far as the subject's"
        )
    if row["reach"] >= BOUND:
        parts.append(f"it would move them by {number(row['reach'])} times the length of the residual stream")
    return "; ".join(parts)
