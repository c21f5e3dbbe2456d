"""Independent single edits, many at once, each measured and undone: one row per case and method, in resumable parts."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pandas as pd
import torch
from tqdm import tqdm

from editlib.data.datasets import Case
from editlib.data.for_models import subject_tokens
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import Params, hparams_for, layers_of, needs_moments, prepare, searches, solve
from editlib.editing.methods.mend import MendParams, editor_file
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.engine.perplexity import Perplexity, perplexity
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError
from editlib.measuring import scores as scoring
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode_texts
from editlib.sweeps.parts import Parts

T = TypeVar("T")
P = ParamSpec("P")

PART = 64  # cases whose keys and values are worked out together, and written together
HELD = 2**26  # numbers of edits' factors held at once: all of a part at rank one, but few of full rank
NUMBERS = ("numerator", "denominator", "denominator_consistent", "delta_norm", "weight_norm")
SCORES = tuple(f"{name}_{protocol}" for name in scoring.SCORES for protocol in scoring.PROTOCOLS)
ABOUT = ("subject", "prompt", "target_new", "target_true", "subject_tokens", "subject_position", "subject_last", "kind")
MEASURED = ("perplexity_mean", "perplexity_corpus", "perplexity_ratio", "target_probability")
COLUMNS = ("case_id", *ABOUT, "method", *MEASURED, *SCORES, *NUMBERS, "steps", "seconds", "error")
SENTENCES = "perplexity_sentences"  # a list of floats, in the texts' order
KINDS = (
    dict.fromkeys(("subject", "prompt", "target_new", "target_true", "kind", "method", "error"), "str")
    | dict.fromkeys(("subject_tokens", "subject_position", "subject_last", "steps"), "Int64")
    | {"case_id": "int64", SENTENCES: "object"}
)  # all others are float64


def sweep(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    methods: Sequence[str] | Mapping[str, Params],
    texts: Sequence[str],
    out: str | Path | None = None,
    resume: bool = False,
    scores: bool = True,
    per_sentence: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    prefixes: Sequence[str] = ("{}",),
    progress: bool = True,
) -> pd.DataFrame:
    """Edit once for every case and method, measure perplexity on `texts` and the case's scores, undo; a tidy table.

    `methods` are names, run with the model's presets, or hyper-parameters by the name their rows should carry;
    `prefixes` are put before the efficacy prompt. Without `scores`, their columns are nan, which is faster;
    `per_sentence` adds each text's perplexity. A case that fails is a row with its error. With `out`, every part of the
    table is a parquet file there as soon as it is done; `resume` goes on where an interrupted sweep stopped, with the
    same rows but for `seconds`, and reads a finished one. Raises `EditlibError` for an unknown method, no cases, no
    texts, or a folder that holds another sweep.
    """
    variants = variants_of(lm, cases, methods, texts)
    kinds = {name: KINDS.get(name, "float64") for name in (*COLUMNS, *([SENTENCES] if per_sentence else []))}
    plan = plan_of(lm, cases, variants, texts, stats=stats, corpus=corpus)
    more = {"scores": scores, "sentences": per_sentence, "prefixes": list(prefixes), "part": PART}
    parts = Parts.of(out, {"sweep": "single edits"} | plan | more, kinds, resume=resume)
    job = Job(Session(lm, stats=stats, corpus=corpus), variants, texts, prefixes, scores)
    groups = [cases[start : start + PART] for start in range(0, len(cases), PART)]
    frames = parts.read([_names(variants, group) for group in groups])
    missing = sorted(set(range(len(groups))) - set(frames))
    if missing:
        shown = bar(lm, len(cases), sum(len(groups[number]) for number in frames), "case", progress)
        with parts.working(), shown:
            job.space.load_moments(moment_layers(variants.values()))
            for number in missing:
                frames[number] = parts.write(number, _rows(job, groups[number]))
                shown.update(len(groups[number]))
    return pd.concat([frames[number] for number in sorted(frames)], ignore_index=True)


@dataclass(frozen=True)
class Job:
    """What is done with every case."""

    space: Session
    variants: Mapping[str, Params]
    texts: Sequence[str]
    prefixes: Sequence[str]
    scores: bool

    @cached_property
    def unedited(self) -> float:
        """Mean perplexity of the unedited model."""
        return perplexity(self.space.lm, self.texts).mean


# -- what single and sequential edits share ----------------------------------------------------------------


def variants_of(
    lm: LanguageModel, cases: Sequence[Case], methods: Sequence[str] | Mapping[str, Params], texts: Sequence[str]
) -> dict[str, Params]:
    """Hyper-parameters by the name of their rows; raises `EditlibError` if there is nothing to do or to measure."""
    if not cases:
        raise EditlibError("no cases to edit; give at least one")
    variants = dict(methods) if isinstance(methods, Mapping) else {name: hparams_for(lm, name) for name in methods}
    if not variants:
        raise EditlibError("no methods to edit with; give at least one")
    encode_texts(lm, texts)
    return variants


def plan_of(
    lm: LanguageModel,
    cases: Sequence[Case],
    variants: Mapping[str, Params],
    texts: Sequence[str],
    *,
    stats: Stats | None,
    corpus: Sequence[str] | None,
) -> dict[str, Any]:
    """What rows follow from."""
    moments = asdict(stats.header) if stats else None if corpus is None else _hash(corpus)
    return {
        "model": lm.fingerprint, "dtype": str(lm.model.dtype), "cases": _hash(map(asdict, cases)),
        "methods": [[name, _said(lm, params)] for name, params in variants.items()],
        "texts": _hash(texts), "moments": moments,
    }  # fmt: skip


def _said(lm: LanguageModel, params: Params) -> dict[str, Any]:
    """Hyper-parameters, with the contents of the files they stand for."""
    said = {"kind": type(params).__name__, **asdict(params)}
    if isinstance(params, MendParams) and editor_file(lm, params).is_file():
        said["editor_sha256"] = hashlib.sha256(editor_file(lm, params).read_bytes()).hexdigest()
    flavours = {search.contexts for _, search in searches(lm, params)}
    return said | {"prefix_contexts": [_hash(prefix_contexts(lm, flavour=flavour)) for flavour in flavours]}


def _hash(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def moment_layers(variants: Iterable[Params]) -> list[int]:
    """The layers whose second moments are needed."""
    return sorted({layer for params in variants if needs_moments(params) for layer in layers_of(params)})


def bar(lm: LanguageModel, total: int, done: int, unit: str, progress: bool) -> "tqdm[Any]":
    """A progress bar whose rate is that of all the work done now: parts are read at once, and written in bursts."""
    return tqdm(total=total, initial=done, desc=lm.name or "sweep", unit=unit, smoothing=0, disable=not progress)


def about(case: Case) -> dict[str, Any]:
    """What a row says of its case before anything can fail."""
    return {"case_id": case.case_id} | {name: getattr(case.request, name) for name in ABOUT[:4]}


def about_subject(lm: LanguageModel, request: EditRequest) -> dict[str, Any]:
    """What a row says of the subject's tokens; raises `EditlibError` if they cannot be located."""
    found = subject_tokens(lm, request)
    return dict(zip(ABOUT[4:], (found.count, found.first, found.last, found.kind), strict=True))


def attempt(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | str:
    """What work gives, or in one line why it failed; a machine without memory is no case's fault, and passes."""
    try:
        return work(*arguments, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except EditlibError as error:
        return str(error)
    except Exception as error:
        return " ".join(f"{type(error).__name__.strip('_')}: {error}".split())


# -- single edits ------------------------------------------------------------------------------------------


def _names(variants: Mapping[str, Params], cases: Sequence[Case]) -> dict[str, list[object]]:
    """The columns that tell rows apart."""
    return {
        "case_id": [case.case_id for case in cases for _ in variants],
        "method": [name for _ in cases for name in variants],
    }


def _rows(job: Job, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Rows of some cases, in their order."""
    unedited, started = job.unedited, time.perf_counter()
    job.space.forget_requests()
    looked = [_look(job, case) for case in cases]
    requests = [look.case.request for look in looked if look.error is None]
    for params in job.variants.values():
        attempt(prepare, job.space, requests, params)  # where this fails, each is prepared alone, and fails alone
    shared = (time.perf_counter() - started) / (len(cases) * len(job.variants))
    for batch in _batches(job, looked):
        for trial in batch:
            begun = time.perf_counter()
            row = _row(job, trial, unedited)
            yield row | {"seconds": shared + trial.seconds + time.perf_counter() - begun}


@dataclass(frozen=True)
class Look:
    """A case before any edit: what its row says of it, the unedited model's replies, or why it cannot be edited."""

    case: Case
    about: dict[str, Any]
    before: scoring.Reading | None = None
    error: str | None = None


@dataclass(frozen=True)
class Trial:
    """A case's edit by one method and its perplexity, or why there is none; and the seconds both took."""

    look: Look
    method: str
    edit: Edit | str
    measured: Perplexity | str = ""
    seconds: float = 0.0


def _look(job: Job, case: Case) -> Look:
    said = about(case)
    found = attempt(_described, job, case)
    return Look(case, said, error=found) if isinstance(found, str) else Look(case, said | found[0], found[1])


def _described(job: Job, case: Case) -> tuple[dict[str, Any], scoring.Reading | None]:
    """What is said of the subject, and the unedited model's replies if they are scored."""
    lm = job.space.lm
    found = about_subject(lm, case.request)
    for params in job.variants.values():
        for _, search in searches(lm, params):
            job.space.rows(case.request, search.contexts)  # raises if it cannot be located
    return found, scoring.read(lm, case, prefixes=job.prefixes) if job.scores else None


def _batches(job: Job, looked: Sequence[Look]) -> Iterator[list[Trial]]:
    """Edits of all cases by all methods with their perplexities, as many at a time as memory should hold."""
    batch, held = list[Trial](), 0
    for look in looked:
        for name, params in job.variants.items():
            started = time.perf_counter()
            work = partial(solve, job.space, name, [look.case.request], params)
            edit = attempt(work) if look.error is None else look.error
            batch.append(Trial(look, name, edit, seconds=time.perf_counter() - started))
            held += 0 if isinstance(edit, str) else sum(t.numel() for pair in edit.factors.values() for t in pair)
            if held > HELD:
                yield _measured(job, batch)
                batch, held = [], 0
    yield _measured(job, batch)


def _measured(job: Job, trials: Sequence[Trial]) -> list[Trial]:
    """Trials with their perplexities, measured side by side; one by one where that fails."""
    started = time.perf_counter()
    edits = [trial.edit for trial in trials if isinstance(trial.edit, Edit)]
    together = attempt(job.space.perplexities, edits, job.texts)
    found = iter([attempt(_alone, job, edit) for edit in edits] if isinstance(together, str) else together)
    each = (time.perf_counter() - started) / max(1, len(edits))
    return [
        replace(trial, measured=next(found), seconds=trial.seconds + each) if isinstance(trial.edit, Edit) else trial
        for trial in trials
    ]


def _alone(job: Job, edit: Edit) -> Perplexity:
    return job.space.perplexities([edit], job.texts)[0]


def _row(job: Job, trial: Trial, unedited: float) -> dict[str, Any]:
    row = trial.look.about | {"method": trial.method}
    if isinstance(trial.edit, str):
        return row | {"error": trial.edit}
    row |= {name: trial.edit.diagnostics[name] for name in (*NUMBERS, "steps")}
    if isinstance(trial.measured, str):
        return row | {"error": trial.measured}
    row |= perplexities(trial.measured, unedited) | {SENTENCES: trial.measured.per_sentence}
    said = attempt(_replies, job, trial.look, trial.edit)
    return row | ({"error": said} if isinstance(said, str) else said)


def perplexities(measured: Perplexity, unedited: float) -> dict[str, float]:
    """Columns of a perplexity."""
    found = measured.mean, measured.corpus, measured.mean / unedited
    return dict(zip(MEASURED[:3], found, strict=True))


def _replies(job: Job, look: Look, edit: Edit) -> dict[str, float]:
    """What the edited model says of the case, and how that scores."""
    lm, request = job.space.lm, look.case.request
    with edit.applied(lm):
        said = {"target_probability": scoring.target_probability(lm, request, request.target_new)}
        after = scoring.read(lm, look.before.prompts) if look.before else None
    return said | (scoring.score(look.case, look.before, after) if look.before and after else {})


def summary(table: pd.DataFrame, *, collapse_ratio: float = COLLAPSE_RATIO) -> pd.DataFrame:
    """A row per method: edits, failed ones, perplexity over unedited (nan counts as infinite), collapses, seconds."""
    done, ratio = table["error"].isna(), table["perplexity_ratio"].fillna(math.inf)
    judged = table.assign(failed=~done, ratio=ratio.where(done), collapsed=done & collapsed(ratio, collapse_ratio))
    return judged.groupby("method", sort=False, as_index=False).agg(
        edits=("failed", "size"), failed=("failed", "sum"), median_ratio=("ratio", "median"),
        max_ratio=("ratio", "max"), collapsed=("collapsed", "sum"), seconds_per_edit=("seconds", "mean"),
    )  # fmt: skip
