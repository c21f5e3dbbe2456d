"""Independent single edits, many at once, each measured and undone: one row per case and method, in resumable parts."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from editlib import scores
from editlib.data import Case, subject_tokens
from editlib.edit import Edit
from editlib.errors import EditlibError
from editlib.methods import Params, hparams_for, layers_of, needs_moments, searches, solve
from editlib.model import LanguageModel
from editlib.perplexity import Perplexity, perplexity
from editlib.stats import Stats
from editlib.store import write_json
from editlib.workspace import Workspace

PART = 64  # cases whose keys and values are worked out together, and written together
NUMBERS = ("numerator", "denominator", "denominator_consistent", "delta_norm", "weight_norm")
SCORES = tuple(f"{name}_{protocol}" for name in scores.SCORES for protocol in scores.PROTOCOLS)
TEXT = ("subject", "prompt", "target_new", "target_true", "kind", "method", "error")
COUNTS = ("subject_tokens", "subject_position", "subject_last", "steps")
MEASURED = ("perplexity_mean", "perplexity_corpus", "perplexity_ratio", "target_probability")
COLUMNS = (
    "case_id", "subject", "prompt", "target_new", "target_true", *COUNTS[:3], "kind", "method",
    *MEASURED, *SCORES, *NUMBERS, "steps", "seconds", "error",
)  # fmt: skip
KINDS = (
    {"case_id": "int64"} | dict.fromkeys(TEXT, "str") | dict.fromkeys(COUNTS, "Int64")
    | dict.fromkeys((*MEASURED, *SCORES, *NUMBERS, "seconds"), "float64")
)  # fmt: skip


def sweep(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    methods: Sequence[str] | Mapping[str, Params],
    texts: Sequence[str],
    out: str | Path | None = None,
    resume: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    prefixes: Sequence[str] = ("{}",),
    progress: bool = True,
) -> pd.DataFrame:
    """Edit once for every case and method, measure perplexity on `texts` and the case's scores, undo; a tidy table.

    `methods` are names, run with the model's presets, or hyper-parameters by the name their rows should carry;
    `prefixes` are put before the efficacy prompt. A case that fails is a row with its error. With `out`, every part of
    the table is a file there as soon as it is done; `resume` goes on where an interrupted sweep stopped. Raises
    `EditlibError` for an unknown method, no cases, no texts, or a folder that holds another sweep.
    """
    if not cases:
        raise EditlibError("no cases to edit; give at least one")
    variants = dict(methods) if isinstance(methods, Mapping) else {m: hparams_for(lm, m) for m in methods}
    if not variants:
        raise EditlibError("no methods to edit with; give at least one")
    unedited = perplexity(lm, texts).mean
    folder = None if out is None else _folder(Path(out), _plan(lm, cases, variants, texts, prefixes), resume)
    space = Workspace(lm, stats=stats, corpus=corpus)
    job = Job(space, variants, texts, prefixes, unedited)
    bar = tqdm(total=len(cases), desc=lm.name or "sweep", unit="case", disable=not progress)
    frames = []
    with bar:
        for start in range(0, len(cases), PART):
            part = cases[start : start + PART]
            frames.append(_part(job, part, folder / f"part-{start // PART:05d}.parquet" if folder else None))
            bar.update(len(part))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class Job:
    """What is done with every case."""

    space: Workspace
    variants: Mapping[str, Params]
    texts: Sequence[str]
    prefixes: Sequence[str]
    unedited: float


def _plan(
    lm: LanguageModel,
    cases: Sequence[Case],
    variants: Mapping[str, Params],
    texts: Sequence[str],
    prefixes: Sequence[str],
) -> dict[str, Any]:
    """What a sweep's rows follow from."""
    hparams = {name: {"kind": type(params).__name__, **asdict(params)} for name, params in variants.items()}
    plan = {
        "model": lm.fingerprint, "dtype": str(lm.model.dtype), "cases": _hash([asdict(case) for case in cases]),
        "methods": hparams, "texts": _hash(list(texts)), "prefixes": list(prefixes), "part": PART,
    }  # fmt: skip
    return json.loads(json.dumps(plan))  # type: ignore[no-any-return]  # tuples as lists, as they are read back


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def _folder(folder: Path, plan: dict[str, Any], resume: bool) -> Path:
    """The folder of a sweep, new or to be gone on with."""
    path = folder / "sweep.json"
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise EditlibError(f"output folder {folder} is not empty and holds no sweep; choose another")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
        return folder
    if not resume:
        raise EditlibError(f"output folder {folder} holds a sweep already; resume it (resume=True) or choose another")
    before = json.loads(path.read_text())
    differs = next((key for key in plan if before.get(key) != plan[key]), None)
    if differs:
        raise EditlibError(f"output folder {folder} holds a sweep with another {differs}; choose another folder")
    return folder


def _part(job: Job, cases: Sequence[Case], path: Path | None) -> pd.DataFrame:
    """A part of the table: read if it is there, else made and written, aside first."""
    if path and path.is_file():
        return pd.read_parquet(path)
    job.space.forget_requests()
    job.space.load_moments(sorted({i for p in job.variants.values() if needs_moments(p) for i in layers_of(p)}))
    frame = pd.DataFrame(_rows(job, cases), columns=list(COLUMNS)).astype(KINDS)
    if path:
        aside = path.with_name(f"{path.name}.{os.getpid()}.writing")
        frame.to_parquet(aside)
        os.replace(aside, path)
    return frame


def _rows(job: Job, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Rows of some cases, in their order."""
    started = time.perf_counter()
    looked = [_look(job, case) for case in cases]
    fine = [look for look in looked if look.error is None]
    _prepare(job, fine)
    edits = {(id(look), name): _solve(job, look, name) for look in fine for name in job.variants}
    good = {key: edit for key, edit in edits.items() if isinstance(edit, Edit)}
    measured = dict(zip(good, job.space.perplexities(list(good.values()), job.texts), strict=True))
    shared = (time.perf_counter() - started) / max(1, len(cases) * len(job.variants))
    for look in looked:
        for name in job.variants:
            key = id(look), name
            edit = edits.get(key, look.error)
            yield _row(job, look, name, edit, measured.get(key), shared)


@dataclass(frozen=True)
class Look:
    """A case before any edit: what its row says of it, the unedited model's replies, or why it cannot be edited."""

    case: Case
    about: dict[str, Any]
    before: scores.Reading | None = None
    error: str | None = None


def _look(job: Job, case: Case) -> Look:
    request, lm = case.request, job.space.lm
    about = {"case_id": case.case_id, "subject": request.subject, "prompt": request.prompt}
    about |= {"target_new": request.target_new, "target_true": request.target_true}
    try:
        tokens = subject_tokens(lm, request)
        for params in job.variants.values():
            for _, _, search in searches(lm, params):
                job.space.rows(request, search.contexts)
        before = scores.read(lm, case, prefixes=job.prefixes)
    except EditlibError as error:
        return Look(case, about, error=str(error))
    about |= {"subject_tokens": tokens.count, "subject_position": tokens.first}
    return Look(case, about | {"subject_last": tokens.last, "kind": tokens.kind}, before)


def _prepare(job: Job, looked: Sequence[Look]) -> None:
    """Keys and values of all cases, for every search a method makes."""
    requests = [look.case.request for look in looked]
    for params in job.variants.values():
        for layer, name, search in searches(job.space.lm, params):
            job.space.prepare(layer, name, requests, search)


def _solve(job: Job, look: Look, name: str) -> Edit | str:
    """The edit of a case by one method, or why there is none."""
    try:
        return solve(job.space, name, [look.case.request], job.variants[name])
    except EditlibError as error:
        return str(error)


def _row(
    job: Job, look: Look, name: str, edit: Edit | str | None, measured: Perplexity | None, shared: float
) -> dict[str, Any]:
    started = time.perf_counter()
    row = look.about | {"method": name}
    if not isinstance(edit, Edit) or measured is None or look.before is None:
        return row | {"error": edit, "seconds": shared}
    with edit.applied(job.space.lm):
        after = scores.read(job.space.lm, look.before.prompts)
        probability = scores.target_probability(job.space.lm, look.case.request, look.case.request.target_new)
    row |= {"perplexity_mean": measured.mean, "perplexity_corpus": measured.corpus}
    row |= {"perplexity_ratio": measured.mean / job.unedited, "target_probability": probability}
    row |= scores.score(look.case, look.before, after) | {key: edit.diagnostics[key] for key in (*NUMBERS, "steps")}
    return row | {"seconds": shared + time.perf_counter() - started, "error": None}
