"""What the rows of tables of edits say: their columns by name, with the kind of each, and what is put there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from editlib.data.datasets import Case
from editlib.data.for_models import subject_tokens
from editlib.data.request import EditRequest
from editlib.editing.edit import Intervention
from editlib.engine.memory import out_of_memory
from editlib.engine.perplexity import Perplexity
from editlib.errors import EditlibError
from editlib.measuring import scores as scoring
from editlib.models.language_model import LanguageModel

T = TypeVar("T")
P = ParamSpec("P")
Columns = dict[str, str]

REQUEST: Columns = dict.fromkeys(("subject", "prompt", "target_new", "target_true"), "str")
SUBJECT: Columns = dict.fromkeys(("subject_tokens", "subject_position", "subject_last"), "Int64") | {"kind": "str"}
PERPLEXITY: Columns = dict.fromkeys(("perplexity_mean", "perplexity_corpus", "perplexity_ratio"), "float64")
SCORES: Columns = {f"{name}_{protocol}": "float64" for name in scoring.SCORES for protocol in scoring.PROTOCOLS}
NUMBERS: Columns = {  # diagnostics of the edit
    **dict.fromkeys(("numerator", "denominator", "denominator_consistent", "delta_norm", "weight_norm"), "float64"),
    "moment_tokens": "Int64",
    "moment_tokens_per_dimension": "float64",
    "moment_window": "Int64",
    "moment_first_position": "str",
    "moment_source": "str",
    "steps": "Int64",
}
END: Columns = {"seconds": "float64", "error": "str"}
SINGLE: Columns = {
    "case_id": "int64", **REQUEST, **SUBJECT, "method": "str", **PERPLEXITY, "target_probability": "float64",
    **SCORES, **NUMBERS, **END,
}  # fmt: skip
SEQUENTIAL: Columns = {
    "step": "int64", "method": "str", "measured": "bool", "case_id": "Int64", **REQUEST, **SUBJECT, **PERPLEXITY,
    "target_probability": "float64", **NUMBERS, "state_bytes": "Int64", **END,
}  # fmt: skip
SENTENCES: Columns = {"perplexity_sentences": "object"}  # a list of floats, in the texts' order
SAID: Columns = {"answer": "str", "target_logprobs": "object"}  # greedy continuation of the prompt; nats, by token
ANSWERS: Columns = {f"{name}_before": kind for name, kind in SAID.items()} | SAID
RETEST: Columns = {"retest": "bool", **{name: kind for name, kind in SCORES.items() if not name.startswith("locality")}}


def frame(rows: Sequence[Mapping[str, Any]], columns: Columns) -> pd.DataFrame:
    """Rows as a table; what a row lacks is missing there."""
    return pd.DataFrame({n: pd.Series([row.get(n) for row in rows], dtype=kind) for n, kind in columns.items()})


def about(case: Case) -> dict[str, Any]:
    """What a row says of its case before anything can fail."""
    return {"case_id": case.case_id} | {name: getattr(case.request, name) for name in REQUEST}


def about_subject(lm: LanguageModel, request: EditRequest) -> dict[str, Any]:
    """What a row says of the subject's tokens; raises `EditlibError` if they cannot be located."""
    tokens = subject_tokens(lm, request)
    return dict(zip(SUBJECT, (tokens.count, tokens.first, tokens.last, tokens.kind), strict=True))


def about_edit(edit: Intervention) -> dict[str, Any]:
    """What a row says of how its edit was made."""
    return {name: edit.diagnostics.get(name) for name in NUMBERS}


def about_perplexity(measured: Perplexity, unedited: float) -> dict[str, float]:
    """What a row says of a perplexity."""
    return dict(zip(PERPLEXITY, (measured.mean, measured.corpus, measured.mean / unedited), strict=True))


def about_answer(lm: LanguageModel, request: EditRequest) -> dict[str, Any]:
    """What a row says of the model's answer, as it is now."""
    logprobs = np.array(scoring.target_logprobs(lm, request, request.target_new))  # what parquet gives back
    return dict(zip(SAID, (scoring.continuation(lm, request.text), logprobs), strict=True))


def attempt(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | str:
    """What work gives, or in one line why it failed; a machine without memory is no case's fault, and passes, as does a
    GPU that has failed, since on it every later case would."""
    try:
        return work(*arguments, **options)
    except EditlibError as error:
        return str(error)
    except Exception as error:
        if out_of_memory(error) or "CUDA error" in str(error):
            raise
        return " ".join(f"{type(error).__name__.strip('_')}: {error}".split())


def bar(lm: LanguageModel, total: int, done: int, unit: str, progress: bool) -> "tqdm[Any]":
    """A progress bar whose rate is that of all the work done now: parts are read at once, and written in bursts."""
    return tqdm(total=total, initial=done, desc=lm.name or "sweep", unit=unit, smoothing=0, disable=not progress)


def joined(frames: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """Parts by their numbers as one table."""
    return pd.concat([frames[number] for number in sorted(frames)], ignore_index=True)
