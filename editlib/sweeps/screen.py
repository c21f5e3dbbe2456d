"""Screen edit cases of any number for those that would break a model, without editing it, in resumable parts.

A case is read behind few prefix contexts first, and behind all of them where that does not rule it out.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from editlib.cluster.connection import workers_for
from editlib.cluster.workers import Workers
from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.data.for_models import subject_tokens
from editlib.editing.guard import BOUND
from editlib.editing.method import Variant, moments_of
from editlib.editing.methods import method_of
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.engine.values import encode_contexts
from editlib.errors import EditlibError
from editlib.files import write_json
from editlib.measuring.risk import CHANCES, foreseeable, read_risk
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.sweeps.filling import Make, fill, moments_for, require_same
from editlib.sweeps.parts import Parts, require_usable
from editlib.sweeps.plan import described
from editlib.sweeps.rows import REQUEST, Columns, about, frame, joined
from editlib.sweeps.single import sweep

log = logging.getLogger(__name__)

PART = 512  # cases that are read together, and written together
FEW = 5  # contexts of the first reading, the empty one among them
SUSPECT = 0.1  # of the bound: what the first reading puts above is read behind all contexts
HARD, VERIFIED = "_hard.json", "_verified"  # beside the parts; readers of a folder of parquet pass over such names
NUMBERS = (
    "key_norm", "mean_key_norm", "cosine", "cosine_first", "denominator_ratio", "spill", "reach", "leak", "severity",
    *CHANCES,
)  # fmt: skip
COLUMNS: Columns = {
    "case_id": "int64", **REQUEST, **dict.fromkeys(("subject_tokens", "subject_position", "contexts"), "Int64"),
    **dict.fromkeys(NUMBERS, "float64"), "collapse": "bool", "reason": "str", "error": "str",
}  # fmt: skip


def screen(
    lm: LanguageModel,
    cases: Any,
    *,
    method: str = "rome",
    hparams: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
    workers: Workers | str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row per case: what `risk` says of it, and how many prefix `contexts` it was read behind; a tidy table.

    A case whose subject cannot be located, or that is too long, is a row with its error. With `out`, parts of the table
    are parquet files there as soon as they are done, `resume` goes on where they end, and the cases that would break
    the model are written beside them in EasyEdit's form (`_hard.json`), the worst first. `workers` are
    those of `sweep`. Raises `EditlibError` for a method that is not of the ROME family, for no cases, and for a folder
    and workers as `sweep` does.
    """
    chosen, params = data.cases(cases), foreseeable(lm, method, hparams)
    if not chosen:
        raise EditlibError("no cases to screen; give at least one")
    crew, variants = workers_for(workers), {method: Variant(method_of(params, method), params)}
    require_usable(out, resume=resume)
    session = Session(lm, stats=stats, corpus=corpus)
    session.check(variants.values())
    groups = [tuple(chosen[i : i + PART]) for i in range(0, len(chosen), PART)]
    record = described(session, chosen, variants, ()) | {"part": PART, "parts": len(groups), "bound": BOUND}
    parts, plan = Parts.of(out, record, COLUMNS, resume=resume), ScreenPlan(tuple(groups), variants, record)
    into = ScreenTable(plan, parts, parts.read([{"case_id": [case.case_id for case in group]} for group in groups]))
    todo, layers = [n for n in range(len(groups)) if n not in into.frames], moments_of(variants.values())
    known: dict[str, Any] = {"stats": stats, "corpus": corpus, "options": None, "workers": crew}
    with parts.working():
        if todo:
            fill(
                lm,
                into,
                [(number, tuple(range(len(groups[number])))) for number in todo],
                here=lambda: _reader(plan, session, Session(lm, stats=stats, corpus=corpus)),
                there=lambda: partial(_begin, plan, moments_for(lm, layers, **known)),
                workers=crew,
                total=len(chosen),
                done=sum(map(len, into.frames.values())),
                progress=progress,
            )
        table = joined(into.frames)
        if out is not None:
            hard = _hard(table, {case.case_id: case for case in chosen})
            write_json(Path(out) / HARD, hard)
    return table


@dataclass(frozen=True)
class ScreenPlan:
    """What is screened for whom, in parts; it can be sent to other processes."""

    groups: tuple[tuple[Case, ...], ...]
    variants: Mapping[str, Variant]  # the one there is
    record: Mapping[str, Any]


@dataclass
class ScreenTable:
    """The parts of a screening that there are."""

    plan: ScreenPlan
    parts: Parts
    frames: dict[int, pd.DataFrame]

    def write(self, number: int, cases: Sequence[int], rows: pd.DataFrame) -> int:
        """Keep a part."""
        self.frames[number] = self.parts.write(number, rows)
        log.info("%d cases screened", sum(map(len, self.frames.values())))
        return len(rows)

    def dead(self, number: int, case: int, reason: str) -> pd.DataFrame:
        """The row of a case that says only why there is no more."""
        return frame([about(self.plan.groups[number][case]) | {"collapse": False, "error": reason}], COLUMNS)


def _reader(plan: ScreenPlan, whole: Session, few: Session) -> Make:
    """What makes rows, from a session and one that knows only few contexts."""
    (variant,) = plan.variants.values()
    some = whole.contexts(variant.params.contexts)[:FEW]
    few.once(("contexts", variant.params.contexts), lambda: some)
    return lambda number, cases: frame(_rows(few, whole, variant, [plan.groups[number][i] for i in cases]), COLUMNS)


def _begin(plan: ScreenPlan, stats: Stats | None, lm: LanguageModel) -> Make:
    """The same in a worker."""
    whole = Session(lm, stats=stats)
    require_same(described(whole, [*chain.from_iterable(plan.groups)], plan.variants, ()), plan.record)
    return _reader(plan, whole, Session(lm, stats=stats))


def _rows(few: Session, whole: Session, variant: Variant, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Rows of a part: all cases behind few contexts, and the suspects among them behind all."""
    rows = [about(case) | {"collapse": False} for case in cases]
    params, able = variant.params, []
    for i, case in enumerate(cases):
        try:
            subject_tokens(few.lm, case.request)
            encode_contexts(few.lm, case.request, few.contexts(params.contexts))
            able.append(i)
        except EditlibError as error:
            rows[i]["error"] = str(error)
    for session in (few, whole):
        contexts = len(session.contexts(params.contexts))
        if able:
            risks = read_risk(session, params, [cases[i].request for i in able], method=variant.method.name)
            told = [name for name in COLUMNS if name in risks]
            for i, values in zip(able, risks[told].to_numpy().tolist(), strict=True):
                rows[i] |= dict(zip(told, values, strict=True)) | {"contexts": contexts}
        able = [i for i in able if rows[i]["severity"] >= SUSPECT * BOUND]
    return rows


def _hard(table: pd.DataFrame, cases: dict[int, Case]) -> list[dict[str, Any]]:
    """The cases that would break the model in EasyEdit's form, the worst first."""
    hard, records = table[table["collapse"]], []
    order = hard["severity"].sort_values(ascending=False, kind="stable").index
    for case_id in hard["case_id"][order]:
        request = cases[case_id].request
        records.append(
            {
                "case_id": case_id, "prompt": request.text, "subject": request.subject,
                "target_new": request.target_new, "ground_truth": request.target_true or "",
            }
        )  # fmt: skip
    return records


@dataclass(frozen=True)
class Verified:
    """Edits that were made to see whether what was foretold is so: of the `k` riskiest cases, and of others drawn."""

    riskiest: pd.DataFrame
    others: pd.DataFrame

    def record(self, collapse_ratio: float = COLLAPSE_RATIO) -> dict[str, dict[str, int]]:
        """Of either group: edits, and how many were foretold to collapse the model and do."""
        counts = {}
        for name, rows in (("riskiest", self.riskiest), ("others", self.others)):
            done = rows[rows["error"].isna()]
            broken = collapsed(done["perplexity_ratio"], collapse_ratio)
            counts[name] = {
                "edits": len(done), "foretold": int(done["foretold"].sum()), "collapse": int(broken.sum()),
                "both": int((broken & done["foretold"]).sum()),
            }  # fmt: skip
        return counts


def verify(
    lm: LanguageModel,
    cases: Any,
    table: pd.DataFrame,
    *,
    k: int,
    texts: Sequence[str],
    method: str = "rome",
    hparams: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> Verified:
    """Edit the `k` riskiest cases of a screened table and as many drawn from the others, and measure perplexity.

    With `out`, the folder of the screened table, edits are kept in a folder in it, and made again only where they are
    not. Further options are those of `sweep`.
    """
    good = table[table["error"].isna()]
    worst = good.sort_values("severity", ascending=False, kind="stable")
    top, rest = list(worst["case_id"][:k]), list(worst["case_id"][k:])
    drawn = Random(seed).sample(rest, min(k, len(rest)))
    wanted = {*top, *drawn}
    chosen = [case for case in data.cases(cases) if case.case_id in wanted]
    folder = Path(out) / VERIFIED / f"{k}-{seed}" if out is not None else None
    kept = folder is not None and folder.is_dir()
    made = sweep(
        lm, chosen, methods={method: foreseeable(lm, method, hparams)}, texts=texts, scores=False, out=folder,
        resume=kept, **options,
    )  # fmt: skip
    made["foretold"] = made["case_id"].map(good.set_index("case_id")["collapse"])
    return Verified(made[made["case_id"].isin(top)], made[made["case_id"].isin(drawn)])
