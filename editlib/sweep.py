"""Independent single edits, one case after the other, each measured and undone: one row per case and method."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from editlib import scores
from editlib.data import Case, subject_tokens
from editlib.edit import Edit
from editlib.errors import EditlibError
from editlib.methods import Params, hparams_for, layers_of, needs_moments, solve
from editlib.model import LanguageModel
from editlib.perplexity import perplexity
from editlib.stats import Stats
from editlib.workspace import Workspace

NUMBERS = (
    "numerator", "denominator", "denominator_consistent",
    "delta_norm", "weight_norm", "steps",
)  # fmt: skip
SCORES = tuple(f"{name}_{protocol}" for name in scores.SCORES for protocol in scores.PROTOCOLS)
COLUMNS = (
    "case_id", "subject", "prompt", "target_new", "target_true", "subject_tokens", "subject_position", "subject_last",
    "kind", "method", "perplexity_mean", "perplexity_corpus", "perplexity_ratio", "target_probability",
    *SCORES, *NUMBERS, "seconds", "error",
)  # fmt: skip


def sweep(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    methods: Sequence[str] | Mapping[str, Params],
    texts: Sequence[str],
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    prefixes: Sequence[str] = ("{}",),
    progress: bool = True,
) -> pd.DataFrame:
    """Edit once for every case and method, measure perplexity on `texts` and the case's scores, undo; a tidy table.

    `methods` are names, run with the model's presets, or hyper-parameters by the name their rows should carry;
    `prefixes` are put before the efficacy prompt. A case that fails is a row with its error. Raises `EditlibError`
    for an unknown method, no cases, or no texts.
    """
    if not cases:
        raise EditlibError("no cases to edit; give at least one")
    variants = methods if isinstance(methods, Mapping) else {method: hparams_for(lm, method) for method in methods}
    space = Workspace(lm, stats=stats, corpus=corpus)
    space.load_moments(sorted({layer for p in variants.values() if needs_moments(p) for layer in layers_of(p)}))
    unedited = perplexity(lm, texts).mean
    bar = tqdm(cases, desc=lm.name or "sweep", unit="case", disable=not progress, mininterval=5)
    rows = [row for case in bar for row in _rows(space, case, variants, texts, prefixes, unedited)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(
    space: Workspace,
    case: Case,
    variants: Mapping[str, Params],
    texts: Sequence[str],
    prefixes: Sequence[str],
    unedited: float,
) -> Iterator[dict[str, Any]]:
    request, lm = case.request, space.lm
    common: dict[str, Any] = {"case_id": case.case_id, "subject": request.subject, "prompt": request.prompt}
    common |= {"target_new": request.target_new, "target_true": request.target_true}
    space.forget_requests()
    try:
        tokens = subject_tokens(lm, request)
        before = scores.read(lm, case, prefixes=prefixes)
    except EditlibError as error:
        yield from (common | {"method": method, "error": str(error)} for method in variants)
        return
    common |= {
        "subject_tokens": tokens.count,
        "subject_position": tokens.first,
        "subject_last": tokens.last,
        "kind": tokens.kind,
    }
    for method, params in variants.items():
        started = time.perf_counter()
        try:
            measured = _measure(lm, case, solve(space, method, [request], params), texts, before, unedited)
        except EditlibError as error:
            measured = {"error": str(error)}
        yield common | {"method": method} | measured | {"seconds": time.perf_counter() - started}


def _measure(
    lm: LanguageModel, case: Case, edit: Edit, texts: Sequence[str], before: scores.Reading, unedited: float
) -> dict[str, Any]:
    with edit.applied(lm):
        result = perplexity(lm, texts)
        after = scores.read(lm, before.prompts)
        probability = scores.target_probability(lm, case.request, case.request.target_new)
    found = {
        "perplexity_mean": result.mean,
        "perplexity_corpus": result.corpus,
        "perplexity_ratio": result.mean / unedited,
        "target_probability": probability,
    }
    numbers = {name: edit.diagnostics[name] for name in NUMBERS}
    return found | scores.score(case, before, after) | numbers | {"error": None}
