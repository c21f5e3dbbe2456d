"""Independent single edits, one case after the other, each measured and undone: one row per case and method."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from editlib.data import Case, subject_tokens
from editlib.edit import Edit
from editlib.errors import EditlibError
from editlib.methods import hparams_for
from editlib.methods.rome import RomeParams, family
from editlib.model import LanguageModel
from editlib.perplexity import perplexity
from editlib.scores import target_probability
from editlib.stats import Stats, second_moments_of

NUMBERS = (
    "numerator", "denominator", "denominator_consistent", "numerator_unscaled", "denominator_unscaled",
    "delta_norm", "weight_norm", "steps",
)  # fmt: skip
COLUMNS = (
    "case_id", "subject", "prompt", "target_new", "target_true", "subject_tokens", "subject_position", "subject_last",
    "kind", "method", "perplexity_mean", "perplexity_corpus", "perplexity_ratio", "target_probability", *NUMBERS,
    "seconds", "error",
)  # fmt: skip


def sweep(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    methods: Sequence[str] | Mapping[str, RomeParams],
    texts: Sequence[str],
    corpus: Sequence[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit once for every case and method, measure perplexity on `texts`, undo; a tidy table.

    `methods` are names, run with the model's presets, or hyper-parameters by the name their rows should carry.
    A case that fails is a row with its error. Raises `EditlibError` for an unknown method, no cases, or no
    texts.
    """
    if not cases:
        raise EditlibError("no cases to edit; give at least one")
    variants = methods if isinstance(methods, Mapping) else {method: hparams_for(lm, method) for method in methods}
    layers = sorted({params.layer for params in variants.values() if params.covariance})
    stats = second_moments_of(lm, layers, corpus=corpus) if layers else None
    unedited = perplexity(lm, texts).mean
    bar = tqdm(cases, desc=lm.name or "sweep", unit="case", disable=not progress, mininterval=5)
    rows = [row for case in bar for row in _rows(lm, case, variants, stats, texts, unedited)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(
    lm: LanguageModel,
    case: Case,
    variants: Mapping[str, RomeParams],
    stats: Stats | None,
    texts: Sequence[str],
    unedited: float,
) -> Iterator[dict[str, Any]]:
    request, started = case.request, time.perf_counter()
    common = {"case_id": case.case_id, "subject": request.subject, "prompt": request.prompt}
    common |= {"target_new": request.target_new, "target_true": request.target_true}
    try:
        tokens = subject_tokens(lm, request)
        edits = family(lm, request, variants, stats=stats)
    except EditlibError as error:
        yield from (common | {"method": method, "error": str(error)} for method in variants)
        return
    common |= {
        "subject_tokens": tokens.count,
        "subject_position": tokens.first,
        "subject_last": tokens.last,
        "kind": tokens.kind,
    }
    shared = (time.perf_counter() - started) / len(edits)
    for method, edit in edits.items():
        started = time.perf_counter()
        measured = _measure(lm, edit, texts, unedited)
        seconds = {"seconds": shared + time.perf_counter() - started, "error": None}
        yield common | {"method": method} | measured | seconds


def _measure(lm: LanguageModel, edit: Edit, texts: Sequence[str], unedited: float) -> dict[str, Any]:
    request = edit.requests[0]
    with edit.applied(lm):
        result = perplexity(lm, texts)
        probability = target_probability(lm, request, request.target_new)
    return {
        "perplexity_mean": result.mean,
        "perplexity_corpus": result.corpus,
        "perplexity_ratio": result.mean / unedited,
        "target_probability": probability,
    } | {name: edit.diagnostics[name] for name in NUMBERS}
