"""Edits one after another, each on top of those before, in resumable parts: what many edits do to one model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from editlib.cluster.connection import workers_for
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.data.datasets import Case
from editlib.editing.method import Variant, moments_of
from editlib.editing.methods import Methods
from editlib.editing.names import SEQUENCE_GUARDS, SequenceGuard
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions, Stats
from editlib.errors import EditlibError, unknown
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.sweeps.chain import Chain
from editlib.sweeps.filling import moments_for
from editlib.sweeps.parts import Parts, require_usable
from editlib.sweeps.plan import checked, described
from editlib.sweeps.rows import (
    RETEST,
    SAID,
    SEQUENTIAL,
    Columns,
    bar,
    joined,
)
from editlib.sweeps.steps import Checkpoints, part_of
from editlib.sweeps.walk import walk

PART = 16  # steps after which rows and weights are written


@dataclass(frozen=True)
class Span:
    """A part: some steps of one method's sequence, or every edit's test again at its end."""

    method: str
    steps: range
    retest: bool = False


@dataclass(frozen=True)
class SequencePlan:
    """What sequences of edits do to a model, in parts."""

    cases: tuple[Case, ...]
    variants: Mapping[str, Variant]
    texts: tuple[str, ...]
    every: int
    retest: bool
    answers: bool
    guard: SequenceGuard
    spans: tuple[Span, ...]  # in the order of their numbers
    record: Mapping[str, Any]  # what its rows follow from, as JSON

    @property
    def columns(self) -> Columns:
        """Of its rows, with the kind of each."""
        return SEQUENTIAL | (SAID if self.answers else {}) | (RETEST if self.retest else {})

    def numbers(self, name: str) -> list[int]:
        """The parts of a method's sequence."""
        return [number for number, span in enumerate(self.spans) if span.method == name]

    @property
    def rows(self) -> list[dict[str, list[object]]]:
        """Of every part the columns that tell rows apart."""
        return [{"method": [s.method] * len(s.steps), "step": [*s.steps]} for s in self.spans]


def plan_sequence(
    session: Session,
    cases: Any,
    *,
    methods: Methods,
    texts: Sequence[str],
    every: int = 1,
    retest: bool = False,
    answers: bool = False,
    guard: SequenceGuard = "off",
) -> SequencePlan:
    """The plan of sequences, with options as for `sequence`; raises its `EditlibError`s before the model is run."""
    if every < 1:
        raise EditlibError(f"every={every} is out of range; measure after every 1 edit or more")
    if guard not in SEQUENCE_GUARDS:
        raise unknown("guard", guard, SEQUENCE_GUARDS)
    chosen, variants, sentences = checked(session, cases, methods, texts)
    steps = len(chosen) + 1
    spans = list[Span]()
    for name in variants:
        spans += [Span(name, range(start, min(start + PART, steps))) for start in range(0, steps, PART)]
        spans += [Span(name, range(1, steps), retest=True)] if retest else []
    record = {
        "sweep": "sequential edits", **described(session, chosen, variants, sentences), "every": every,
        "retest": retest, "answers": answers, "guard": guard, "part": PART, "parts": len(spans),
    }  # fmt: skip
    return SequencePlan(chosen, variants, sentences, every, retest, answers, guard, tuple(spans), record)


def sequence(
    lm: LanguageModel,
    cases: Any,
    *,
    methods: Methods,
    texts: Sequence[str],
    every: int = 1,
    retest: bool = False,
    answers: bool = False,
    guard: SequenceGuard = "off",
    out: str | Path | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    moment_options: MomentOptions | None = None,
    at_end: Callable[[str], None] | None = None,
    workers: Workers | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit the cases one after another, every edit computed on the model as the earlier ones left it; a tidy table.

    Second moments and prefix contexts are those of the unedited model. Step 0 is the unedited model, step n the n-th
    edit; perplexity on `texts` is measured at step 0, after `every` so many edits and after the last one, where
    `measured` is true (there nan is a result). An edit that fails is a row with its error and changes nothing. With
    `retest`, rows say how an edit scores right after it was made, and once more, where `retest` is true, after the last
    edit; `answers` keeps what the model says then, as for `sweep`. With `guard` an edit that may break the model is
    told of in the log, or is left out as one that failed (`skip`). Several methods are as many sequences, each from the
    unedited model; `at_end` is called with a method's name while the model has all its edits, and afterwards the
    weights are restored bit for bit. `out`, `resume` and `retry_failed` are those of `sweep`; what the edits so far
    left lies beside the parts until a sequence is done, and with `at_end` what all of them left stays there, since it
    is called again for a sequence that was finished before; a sequence with an `Intervention` that is no `Edit` begins
    again. `workers` are those of `sweep`: each goes on with one sequence at a time, from one part to the next; `at_end`
    is not for them. Raises `EditlibError` as `sweep` does, and for a sequence that costs workers at the same place
    twice, once the others are done.
    """
    crew = workers_for(workers)
    if crew and at_end:
        raise EditlibError("at_end is for this process, and workers make the edits; leave one of them out")
    require_usable(out, resume=resume)
    session = Session(lm, stats=stats, corpus=corpus, moment_options=moment_options)
    options: dict[str, Any] = {"every": every, "retest": retest, "answers": answers, "guard": guard}
    plan = plan_sequence(session, cases, methods=methods, texts=texts, **options)
    parts = Parts.of(out, plan.record, plan.columns, resume=resume)
    frames = parts.read(plan.rows)
    if retry_failed:
        frames = {number: made for number, made in frames.items() if made["error"].isna().all()}
    checkpoints = Checkpoints(parts, frames)
    todo = {name: checkpoints.missing(plan, name, end=at_end is not None) for name in plan.variants}
    if any(todo.values()) or at_end:
        left = [span for numbers in todo.values() for span in map(plan.spans.__getitem__, numbers) if not span.retest]
        total, steps = len(plan.variants) * len(plan.cases), sum(step > 0 for span in left for step in span.steps)
        layers = moments_of(plan.variants.values())
        with parts.working():
            for numbers in todo.values():
                checkpoints.drop(numbers)
            if crew:
                known: dict[str, Any] = {"stats": stats, "corpus": corpus, "options": moment_options, "workers": crew}
                given = moments_for(lm, layers, **known)
                told = Progress(total, crew, done=total - steps, unit="edit", name=lm.name, shown=progress)
                walk(lm, plan, given, todo, checkpoints, crew, told)
            else:
                session.load_moments(layers)
                with bar(lm, total, total - steps, "edit", progress) as shown:
                    for name, numbers in todo.items():
                        if numbers or at_end:
                            _sequence(session, plan, name, numbers, checkpoints, shown.update, at_end)
            for number in range(len(plan.spans)):
                checkpoints.forget(number)
    return joined(checkpoints.frames)


def _sequence(
    session: Session,
    plan: SequencePlan,
    name: str,
    numbers: Sequence[int],
    checkpoints: Checkpoints,
    done: Callable[[int], object],
    at_end: Callable[[str], None] | None,
) -> None:
    """Make the parts that a sequence lacks."""
    last = plan.numbers(name)[-1]
    with Chain(session, plan, name) as chain:
        unedited = chain.perplexity().mean
        tensors = checkpoints.begins(numbers[0]) if numbers else load_file(checkpoints.end(last))
        if tensors is not None:
            chain.take(tensors)
        for number in numbers:
            made = part_of(chain, plan.spans[number], unedited, done)
            if number == last and at_end:
                checkpoints.finish(last, chain.tensors())
            checkpoints.write(
                number, made, chain.tensors() if number + 1 in numbers and checkpoints.parts.folder else None
            )
        if at_end:
            at_end(name)


def summary(table: pd.DataFrame, *, collapse_ratio: float = COLLAPSE_RATIO) -> pd.DataFrame:
    """A row per method: edits, failed ones, perplexity over unedited at the last measurement and at most (nan counts as
    infinite), the step of the first collapse, seconds."""
    made = table[~table["retest"]] if "retest" in table else table
    rows = [_summed(name, of_method, collapse_ratio) for name, of_method in made.groupby("method", sort=False)]
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
