"""Edits one after another, each on top of those before, in resumable parts: what many edits do to one model."""

import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import Params, layers_of, solve
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.engine.passes import Passes
from editlib.engine.perplexity import Perplexity, perplexity_above, run_texts
from editlib.engine.sites import Site
from editlib.errors import EditlibError
from editlib.files import write_tensors
from editlib.measuring import scores as scoring
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts
from editlib.sweeps.single import (
    ABOUT,
    KINDS,
    MEASURED,
    NUMBERS,
    about,
    about_subject,
    attempt,
    bar,
    moment_layers,
    perplexities,
    plan_of,
    variants_of,
)

PART = 16  # steps after which rows and weights are written
COLUMNS = ("step", "method", "measured", "case_id", *ABOUT, *MEASURED, *NUMBERS, "steps", "seconds", "error")
_KINDS = {name: KINDS.get(name, "float64") for name in COLUMNS}
_KINDS |= {"step": "int64", "measured": "bool", "case_id": "Int64"}


def sequence(
    lm: LanguageModel,
    cases: Sequence[Case],
    *,
    methods: Sequence[str] | Mapping[str, Params],
    texts: Sequence[str],
    every: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    at_end: Callable[[str], None] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit the cases one after another, every edit computed on the model as the earlier ones left it; a tidy table.

    Second moments and prefix contexts are those of the unedited model. Step 0 is the unedited model, step n the n-th
    edit; perplexity on `texts` is measured at step 0 and after `every` so many edits, where `measured` is true (there
    nan is a result). An edit that fails is a row with its error and changes nothing. Several methods are as many
    sequences, each from the unedited model; `at_end` is called with a method's name while the model has all its edits
    (not for a sequence that was finished before), and afterwards the weights are restored bit for bit. `out` and
    `resume` are those of `sweep`; the weights so far lie beside the parts until a sequence is done. Raises
    `EditlibError` as `sweep` does.
    """
    if every < 1:
        raise EditlibError(f"every={every} is out of range; measure after every 1 edit or more")
    variants = variants_of(lm, cases, methods, texts)
    plan = plan_of(lm, cases, variants, texts, stats=stats, corpus=corpus) | {"every": every, "part": PART}
    parts = Parts.of(out, {"sweep": "sequential edits"} | plan, _KINDS, resume=resume)
    spans = [range(start, min(start + PART, len(cases) + 1)) for start in range(0, len(cases) + 1, PART)]
    numbered = {name: dict(enumerate(spans, i * len(spans))) for i, name in enumerate(variants)}
    frames = parts.read([{"method": [name] * len(span), "step": [*span]} for name in variants for span in spans])
    todo = {name: _missing(parts, mine, frames) for name, mine in numbered.items()}
    space = Changing(lm, stats=stats, corpus=corpus)
    if any(todo.values()):
        total = len(variants) * len(cases)
        left = sum(step > 0 for mine in todo.values() for span in mine.values() for step in span)
        with parts.working(), bar(lm, total, total - left, "edit", progress) as shown:
            space.load_moments(moment_layers(variants.values()))  # raises if they are no good
            for name, params in variants.items():
                frames |= _sequence(Job(space, cases, name, params, texts, every, at_end, shown), parts, todo[name])
                _forget_weights(parts, numbered[name])
    return pd.concat([frames[number] for number in sorted(frames)], ignore_index=True)


@dataclass(frozen=True)
class Job:
    """One sequence: what is done with every case."""

    space: "Changing"
    cases: Sequence[Case]
    name: str
    params: Params
    texts: Sequence[str]
    every: int
    at_end: Callable[[str], None] | None
    shown: "tqdm[Any]"

    @property
    def lm(self) -> LanguageModel:
        """The model that changes."""
        return self.space.lm


class Changing(Session):
    """A session whose model changes: what it knows is forgotten, but for the unedited model's second moments."""

    def forget(self) -> None:
        """Drop all that follows from the weights; the factors of the second moments stay."""
        self.forget_requests()
        self._kept.clear()
        self.__dict__.pop("passes", None)


def _sequence(job: Job, parts: Parts, todo: Mapping[int, range]) -> dict[int, pd.DataFrame]:
    """The parts that a sequence lacks, given the steps of each; the weights a part ends with are written before it."""
    if not todo:
        return {}
    frames = dict[int, pd.DataFrame]()
    measure = _measure(job)
    unedited = measure().mean
    with _restored(job.lm) as kept:
        _set(job.lm, _weights(parts, min(todo)) or {}, kept)
        for number, steps in todo.items():
            rows = [_row(job, step, measure, unedited, kept) for step in steps]
            if number + 1 in todo:
                _save_weights(parts, number + 1, {name: job.lm.model.get_parameter(name) for name in kept})
            frames[number] = parts.write(number, rows)
            _forget_weights(parts, [number])
        if job.at_end:
            job.at_end(job.name)
    return frames


def _measure(job: Job) -> Callable[[], Perplexity]:
    """Perplexity of the model as it will be; below the first edited layer the texts are run now, and never again."""
    passes = Passes.of(job.lm)
    below = min(layers_of(job.params), default=0)
    corpus = run_texts(passes, Site(below), job.texts)
    return partial(perplexity_above, passes, corpus)


def _row(
    job: Job, step: int, measure: Callable[[], Perplexity], unedited: float, kept: dict[str, Tensor]
) -> dict[str, Any]:
    started = time.perf_counter()
    row = {"step": step, "method": job.name, "measured": False} | (_edited(job, step, kept) if step else {})
    if step % job.every == 0:
        found = attempt(measure)
        said = {"error": found} if isinstance(found, str) else {"measured": True} | perplexities(found, unedited)
        row |= said
    job.shown.update(step > 0)
    return row | {"seconds": time.perf_counter() - started}


def _edited(job: Job, step: int, kept: dict[str, Tensor]) -> dict[str, Any]:
    """Change the model by one more edit, and say what it was, or why there is none."""
    case = job.cases[step - 1]
    said = attempt(_change, job, case.request, kept)
    return about(case) | ({"error": said} if isinstance(said, str) else said)


def _change(job: Job, request: EditRequest, kept: dict[str, Tensor]) -> dict[str, Any]:
    lm, found = job.lm, about_subject(job.lm, request)
    job.space.forget()
    edit = solve(job.space, job.name, [request], job.params)
    with edit.applied(lm):
        weights = {name: lm.model.get_parameter(name).clone() for name in edit.factors}
        probability = scoring.target_probability(lm, request, request.target_new)
    _set(lm, weights, kept)
    return found | {name: edit.diagnostics[name] for name in (*NUMBERS, "steps")} | {"target_probability": probability}


def summary(table: pd.DataFrame, *, collapse_ratio: float = COLLAPSE_RATIO) -> pd.DataFrame:
    """A row per method: edits, failed ones, perplexity over unedited at the last measurement and at most (nan counts as
    infinite), the step of the first collapse, seconds."""
    rows = [_summed(name, mine, collapse_ratio) for name, mine in table.groupby("method", sort=False)]
    return pd.DataFrame(rows).astype({"collapsed_at": "Int64"})


def _summed(name: object, table: pd.DataFrame, collapse_ratio: float) -> dict[str, Any]:
    edits, measured = table[table["step"] > 0], table[table["measured"]]
    ratio = measured["perplexity_ratio"].fillna(math.inf)
    return {
        "method": name, "edits": len(edits), "failed": int(edits["error"].notna().sum()),
        "last_ratio": ratio.iloc[-1], "max_ratio": ratio.max(),
        "collapsed_at": measured.loc[collapsed(ratio, collapse_ratio), "step"].min(),
        "seconds_per_edit": edits["seconds"].mean(),
    }  # fmt: skip


# -- weights -----------------------------------------------------------------------------------------------


@contextmanager
def _restored(lm: LanguageModel) -> Iterator[dict[str, Tensor]]:
    """Unedited weights by name, those that `_set` put aside, for the model to get back after the block."""
    kept = dict[str, Tensor]()
    try:
        yield kept
    finally:
        _set(lm, kept, kept)


@torch.no_grad()
def _set(lm: LanguageModel, weights: Mapping[str, Tensor], kept: dict[str, Tensor]) -> None:
    """Give the model weights, and put aside those it had if none of that name are."""
    for name, weight in weights.items():
        mine = lm.model.get_parameter(name)
        if name not in kept:
            kept[name] = mine.clone()
        mine.copy_(weight)


def _file(folder: Path, number: int) -> Path:
    return folder / f"_weights-{number:05d}.safetensors"


def _save_weights(parts: Parts, number: int, weights: Mapping[str, Tensor]) -> None:
    """Keep the weights that a part begins with."""
    if parts.folder:
        write_tensors(_file(parts.folder, number), weights, {})


def _weights(parts: Parts, number: int) -> dict[str, Tensor] | None:
    """The weights that a part begins with, or None if there are none to be read."""
    try:
        return load_file(_file(parts.folder, number)) if parts.folder else None
    except (OSError, SafetensorError):
        return None


def _forget_weights(parts: Parts, numbers: Iterable[int]) -> None:
    if parts.folder:
        for number in numbers:
            _file(parts.folder, number).unlink(missing_ok=True)


def _missing(parts: Parts, spans: Mapping[int, range], frames: Container[int]) -> dict[int, range]:
    """The parts to be made: from the first missing one on if the weights it begins with are kept, else all."""
    first = next((number for number in spans if number not in frames), None)
    if first is None:
        return {}
    return {n: span for n, span in spans.items() if n >= first or _weights(parts, first) is None}
