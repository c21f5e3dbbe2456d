"""Independent single edits, many at once, each measured and undone: one row per case and method, in resumable parts.

A sweep is planned, run part by part, and collected; each step can be taken elsewhere:

session = Session(lm, corpus=texts)
plan = plan_sweep(session, cases, methods=["rome"], texts=sentences)
frames = [run_part(session, plan, number) for number in range(len(plan.groups))]
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from editlib.cluster.connection import workers_for
from editlib.cluster.workers import Workers
from editlib.data.datasets import Case
from editlib.editing.edit import Edit, Intervention
from editlib.editing.method import Variant, moments_of
from editlib.editing.methods import Methods
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions, Stats
from editlib.engine.perplexity import Perplexity, perplexity
from editlib.measuring import scores as scoring
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.sweeps.filling import Make, fill, moments_for, require_same
from editlib.sweeps.parts import Parts, require_usable
from editlib.sweeps.plan import checked, described
from editlib.sweeps.rows import (
    ANSWERS,
    SENTENCES,
    SINGLE,
    Columns,
    about,
    about_answer,
    about_edit,
    about_perplexity,
    about_subject,
    attempt,
    frame,
    joined,
)

log = logging.getLogger(__name__)

PART = 64  # edits whose keys and values are worked out together, and written together
FEWEST = 4  # cases of a part, by however many methods
HELD = 2**26  # numbers of edits' changes held at once: all of a part at rank one, but few of full rank


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep does to a model, in parts of `part` cases; it can be sent to other processes."""

    cases: tuple[Case, ...]
    variants: Mapping[str, Variant]
    texts: tuple[str, ...]
    prefixes: tuple[str, ...]
    scores: bool
    per_sentence: bool
    answers: bool
    part: int
    record: Mapping[str, Any]  # what its rows follow from, as JSON

    @property
    def groups(self) -> list[tuple[Case, ...]]:
        """The cases of every part."""
        return [self.cases[start : start + self.part] for start in range(0, len(self.cases), self.part)]

    @property
    def columns(self) -> Columns:
        """Of its rows, with the kind of each."""
        return SINGLE | (ANSWERS if self.answers else {}) | (SENTENCES if self.per_sentence else {})

    @property
    def rows(self) -> list[dict[str, list[object]]]:
        """Of every part the columns that tell rows apart."""
        return [
            {
                "case_id": [case.case_id for case in group for _ in self.variants],
                "method": [name for _ in group for name in self.variants],
            }
            for group in self.groups
        ]

    def missing(self, number: int, earlier: pd.DataFrame | None) -> tuple[int, ...]:
        """Which cases of a part are to be made: those with a row that failed, if there is an earlier one."""
        if earlier is None:
            return tuple(range(len(self.groups[number])))
        return tuple(sorted({row // len(self.variants) for row in earlier.index[earlier["error"].notna()]}))

    def whole(self, rows: pd.DataFrame, cases: Sequence[int], earlier: pd.DataFrame | None) -> pd.DataFrame:
        """A part from rows of some of its cases and from an earlier one, whose rows that did not fail are kept."""
        if earlier is None:
            return rows
        width, failed = len(self.variants), earlier.index[earlier["error"].notna()]
        fresh = rows.set_axis(pd.Index([i * width + column for i in cases for column in range(width)]))
        return pd.concat([earlier.drop(index=failed), fresh.loc[failed]]).sort_index()


def plan_sweep(
    session: Session,
    cases: Any,
    *,
    methods: Methods,
    texts: Sequence[str],
    scores: bool = True,
    per_sentence: bool = False,
    answers: bool = False,
    prefixes: Sequence[str] = ("{}",),
) -> SweepPlan:
    """The plan of a sweep, with options as for `sweep`; raises its `EditlibError`s before the model is run."""
    chosen, variants, sentences = checked(session, cases, methods, texts)
    scoring.require_templates(prefixes)
    part = min(PART, max(FEWEST, PART // len(variants)))
    record = {
        "sweep": "single edits", **described(session, chosen, variants, sentences), "scores": scores,
        "sentences": per_sentence, "answers": answers, "prefixes": list(prefixes), "part": part,
        "parts": -(-len(chosen) // part),
    }  # fmt: skip
    return SweepPlan(chosen, variants, sentences, tuple(prefixes), scores, per_sentence, answers, part, record)


def sweep(
    lm: LanguageModel,
    cases: Any,
    *,
    methods: Methods,
    texts: Sequence[str],
    out: str | Path | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    scores: bool = True,
    per_sentence: bool = False,
    answers: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    moment_options: MomentOptions | None = None,
    prefixes: Sequence[str] = ("{}",),
    workers: Workers | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Edit once for every case and method, measure perplexity on `texts` and the case's scores, undo; a tidy table.

    `methods` are names or `Method` objects, run with the model's presets, or hyper-parameters by the name their rows
    should carry; `prefixes` are put before the efficacy prompt. Without `scores`, their columns are nan, which is
    faster; `per_sentence` adds each text's perplexity, `answers` what the model says before and after, and the
    log-probability of each of the target's tokens. A case that fails is a row with its error. With `out`, every part of
    the table is a parquet file there as soon as it is done; `resume` goes on where an interrupted sweep stopped, with
    the same rows but for `seconds`, and reads a finished one; `retry_failed` makes rows with errors again. Second
    moments are found as by `compute`. With `workers` ("ray", or `Workers`) parts are made on a Ray cluster, with the
    same rows if each has as many threads as this process; this process alone writes, and the loss of any worker is made
    good. A case that ends its process twice is a row with that as its error. Raises `EditlibError` as `check` does, for
    no cases or methods, a folder that holds another sweep or is being written to, or no cluster.
    """
    crew = workers_for(workers)
    require_usable(out, resume=resume)
    session = Session(lm, stats=stats, corpus=corpus, moment_options=moment_options)
    options: dict[str, Any] = {"scores": scores, "per_sentence": per_sentence, "answers": answers}
    plan = plan_sweep(session, cases, methods=methods, texts=texts, prefixes=prefixes, **options)
    parts = Parts.of(out, plan.record, plan.columns, resume=resume)
    table = SweepTable(plan, parts, parts.read(plan.rows))
    again = {n for n, made in table.frames.items() if made["error"].notna().any()} if retry_failed else set()
    todo = sorted(set(range(len(plan.groups))) - set(table.frames) | again)
    if todo:
        layers = moments_of(plan.variants.values())
        known: dict[str, Any] = {"stats": stats, "corpus": corpus, "options": moment_options, "workers": crew}
        with parts.working():
            fill(
                lm,
                table,
                [(number, plan.missing(number, table.frames.get(number))) for number in todo],
                here=lambda: rows_by(session, plan),
                there=lambda: partial(_begin, plan, moments_for(lm, layers, **known)),
                workers=crew,
                total=len(plan.cases),
                done=sum(len(plan.groups[n]) for n in set(table.frames) - again),
                progress=progress,
            )
    return joined(table.frames)


@dataclass
class SweepTable:
    """The parts of a sweep that there are."""

    plan: SweepPlan
    parts: Parts
    frames: dict[int, pd.DataFrame]

    def write(self, number: int, cases: Sequence[int], rows: pd.DataFrame) -> int:
        """Keep a part."""
        whole = self.plan.whole(rows, cases, self.frames.get(number))
        self.frames[number] = self.parts.write(number, whole)
        log.info("%d of %d cases done", sum(len(self.plan.groups[n]) for n in self.frames), len(self.plan.cases))
        return len(self.plan.groups[number])

    def dead(self, number: int, case: int, reason: str) -> pd.DataFrame:
        """Rows of a case that say only why there are no more."""
        row = about(self.plan.groups[number][case]) | {"error": reason}
        return frame([row | {"method": name} for name in self.plan.variants], self.plan.columns)


def rows_by(session: Session, plan: SweepPlan) -> Make:
    """What makes rows of a plan's cases."""
    session.load_moments(moments_of(plan.variants.values()))
    return lambda number, cases: frame(_rows(session, plan, [plan.groups[number][i] for i in cases]), plan.columns)


def _begin(plan: SweepPlan, stats: Stats | None, lm: LanguageModel) -> Make:
    """The same in a worker."""
    session = Session(lm, stats=stats)
    require_same(described(session, plan.cases, plan.variants, plan.texts), plan.record)
    return rows_by(session, plan)


def run_part(session: Session, plan: SweepPlan, number: int, *, earlier: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows of one part; of an `earlier` one, those that failed are made again, and the others taken over."""
    cases = plan.missing(number, earlier)
    return plan.whole(rows_by(session, plan)(number, cases), cases, earlier)


@dataclass(eq=False)
class Trial:
    """An edit of one case by one method on its way to a row."""

    case: Case
    row: dict[str, Any]
    before: scoring.Replies | None = None  # the unedited model's replies, if they are scored
    edit: Intervention | None = None
    measured: Perplexity | None = None
    seconds: float = 0.0

    def fail(self, reason: str) -> None:
        """Nothing more can be said of it."""
        self.row["error"] = reason
        self.edit = None


def _rows(session: Session, plan: SweepPlan, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Rows of some cases by all methods, in their order."""
    started, rows = time.perf_counter(), list[dict[str, Any]]()
    session.forget_requests()
    looks = [_look(session, plan, case) for case in cases]
    requests = [look.case.request for look in looks if "error" not in look.row]
    for variant in plan.variants.values():  # where this fails, each is searched alone, and fails alone
        for name, search in variant.method.searches(session.lm, variant.params):
            attempt(session.prepare, name, requests, search)
    shared = (time.perf_counter() - started) / (len(cases) * len(plan.variants))
    batch, held = list[Trial](), 0
    for look in looks:
        for name, variant in plan.variants.items():
            trial = replace(look, row=look.row | {"method": name}, seconds=shared)
            if "error" not in look.row:
                _edit(session, variant, trial)
            batch.append(trial)
            changes = trial.edit.changes.values() if isinstance(trial.edit, Edit) else ()
            held += sum(tensor.numel() for change in changes for tensor in change.tensors.values())
            if held > HELD:
                rows += _measured(session, plan, batch)
                batch, held = [], 0
    return rows + _measured(session, plan, batch)


def _look(session: Session, plan: SweepPlan, case: Case) -> Trial:
    """A case before any edit: what its row says of it and the unedited model replies, or why it cannot be edited."""
    trial, lm = Trial(case, about(case)), session.lm

    def look() -> None:
        trial.row |= about_subject(lm, case.request)
        session.check_request(plan.variants.values(), case.request)
        if plan.scores:
            trial.before = scoring.read(lm, case, prefixes=plan.prefixes)
        if plan.answers:
            trial.row |= {f"{name}_before": value for name, value in about_answer(lm, case.request).items()}

    reason = attempt(look)
    if reason:
        trial.fail(reason)
    return trial


def _edit(session: Session, variant: Variant, trial: Trial) -> None:
    started = time.perf_counter()
    made = attempt(variant.method.solve, session, [trial.case.request], variant.params)
    if isinstance(made, str):
        trial.fail(made)
    else:
        trial.edit = made[0]
        trial.row |= about_edit(made[0])
    trial.seconds += time.perf_counter() - started


def _measured(session: Session, plan: SweepPlan, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Rows of edits: perplexities measured side by side, or one by one where that fails, then scores one by one."""
    lm, texts = session.lm, plan.texts
    unedited = session.once(("unedited", texts), lambda: perplexity(lm, texts).mean)
    made, started = [trial for trial in trials if trial.edit], time.perf_counter()
    together = attempt(session.perplexities, [trial.edit for trial in made if trial.edit], texts)
    for i, trial in enumerate(made):
        assert trial.edit
        failed = isinstance(together, str)
        measured = attempt(session.perplexities, [trial.edit], texts) if failed else together[i : i + 1]
        if isinstance(measured, str):
            trial.fail(measured)
        else:
            trial.row |= about_perplexity(measured[0], unedited) | {"perplexity_sentences": measured[0].per_sentence}
    each = (time.perf_counter() - started) / max(1, len(made))
    for trial in trials:
        begun = time.perf_counter()
        replies = attempt(_replies, session, plan, trial) if trial.edit else {}
        trial.row |= {"error": replies} if isinstance(replies, str) else replies
        trial.row["seconds"] = trial.seconds + (each if trial in made else 0.0) + time.perf_counter() - begun
    return [trial.row for trial in trials]


def _replies(session: Session, plan: SweepPlan, trial: Trial) -> dict[str, Any]:
    """What the edited model says of the case, and how that scores; the edit is applied only where it must be."""
    assert trial.edit
    lm, request, said = session.lm, trial.case.request, dict[str, Any]()
    logits = None if plan.answers else session.logits(trial.edit)
    with nullcontext() if logits else trial.edit.applied(lm):
        said["target_probability"] = scoring.target_probability(lm, request, request.target_new, logits=logits)
        if plan.answers:
            said |= about_answer(lm, request)
        if trial.before:
            after = scoring.read(lm, trial.before.prompts, logits=logits)
            said |= scoring.score(trial.case, trial.before, after)
    return said


def summary(table: pd.DataFrame, *, collapse_ratio: float = COLLAPSE_RATIO) -> pd.DataFrame:
    """A row per method: edits, failed ones, perplexity over unedited (nan counts as infinite), collapses, seconds."""
    done, ratio = table["error"].isna(), table["perplexity_ratio"].fillna(math.inf)
    judged = table.assign(failed=~done, ratio=ratio.where(done), collapsed=done & collapsed(ratio, collapse_ratio))
    return judged.groupby("method", sort=False, as_index=False).agg(
        edits=("failed", "size"), failed=("failed", "sum"), median_ratio=("ratio", "median"),
        max_ratio=("ratio", "max"), collapsed=("collapsed", "sum"), seconds_per_edit=("seconds", "mean"),
    )  # fmt: skip
