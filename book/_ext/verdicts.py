"""Judge the papers' claims: a rule for each claim and model, written in `claims.yaml` before the run that decides it.

    - id: B1
      paper: B
      claim: one sentence
      published: the published value
      source: slides p. 33
      section: two-keys                         where the papers' pages speak of it
      ours: why                                 optional: it is our claim, and the papers do not make it
      analysis: denominator                     the run is the one that pages quote
      executed: "{ratio} in {cases} cases"      over the run's metrics, as pages write them; {ratio:%} is in per cent
      holds: ratio <= 1/30 and cases > 0        over the run's metrics
      partly: ratio < 1                         tried where `holds` is false; a claim may have it alone
      needs: cases >= 50                        optional: a run of which this is false decides nothing
      by_construction: why                      optional: where `holds` is true, it could not be otherwise
      verdict_note: what else to know           optional
      twins: {partly: ratio < 1/10}             optional: what is otherwise for one model

Claims that no run can test have `untestable: reason` in place of all that is about a run. A rule speaks of collapse at
5 times the unedited perplexity; where a run has its metrics for other thresholds too, it is tried on these as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml
from formulas import FormulaError, MissingError, evaluate, fill, named

from editlib.runs.manifest import Manifest

PAPERS = {"A": "The Butterfly Effect of Model Editing", "B": "The Fall of ROME"}
MODELS = {"smollm2": "SmolLM2", "twins": "Twins"}  # the columns of the audit
VERDICTS = (HOLDS, PARTLY, NOT_HERE, TRIVIAL, UNTESTABLE, AGAIN, NOT_YET) = (
    "holds", "holds in part", "not here", "by construction", "not testable", "run again", "not executed yet",
)  # fmt: skip
THRESHOLDS = {"_20x": "20 times", "_1000": "perplexity 1,000"}  # how the names of a run's metrics end for them


class ClaimError(ValueError):
    """A claim that cannot be read; one line naming it."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a run on one model decides a claim."""

    analysis: str = ""
    executed: str = ""
    holds: str = ""
    partly: str = ""
    needs: str = ""
    by_construction: str = ""
    verdict_note: str = ""
    untestable: str = ""

    @property
    def asked(self) -> tuple[str, str, str]:
        """What the verdict rests on."""
        return self.holds, self.partly, self.needs


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One record of `claims.yaml`."""

    id: str
    paper: str
    claim: str
    published: str
    source: str
    section: str
    ours: str = ""
    rules: Mapping[str, Rule]  # by model


@dataclass(frozen=True)
class Verdict:
    """What the run of a model says of a claim."""

    verdict: str
    run: Manifest | None = None
    measured: str = ""
    reasons: tuple[str, ...] = ()
    problem: str = ""  # why there is no verdict though there should be one


# -- reading -------------------------------------------------------------------------------------------


def read_claims(text: str) -> list[Claim]:
    """The claims of a file's text; raises `ClaimError` for one that is not as described above."""
    claims = [read_claim(record) for record in yaml.safe_load(text) or []]
    twice = [name for name, count in Counter(claim.id for claim in claims).items() if count > 1]
    if twice:
        raise ClaimError(f"claim {twice[0]}: there are two of this id")
    return claims


def read_claim(record: Mapping[str, Any]) -> Claim:
    name = record.get("id", "without id")
    about = {key: value for key, value in record.items() if key not in MODELS}
    usual = {field.name: about.pop(field.name) for field in fields(Rule) if field.name in about}
    try:
        rules = {model: read_rule(name, usual, record.get(model, {})) for model in MODELS}
        claim = Claim(**{key: str(value) for key, value in about.items()}, rules=rules)
    except TypeError as error:
        raise ClaimError(f"claim {name}: {str(error).partition('() ')[2]}") from error
    if claim.paper not in PAPERS:
        raise ClaimError(f"claim {name}: paper {claim.paper!r} is neither of {', '.join(PAPERS)}")
    return claim


def read_rule(name: str, usual: Mapping[str, Any], own: Mapping[str, Any]) -> Rule:
    """A model's rule: the usual one, but for what is its own; a reason why it cannot be tested stands alone."""
    rule = Rule(**{key: str(value) for key, value in (own if "untestable" in own else {**usual, **own}).items()})
    if rule.untestable and (rule.analysis or any(rule.asked)):
        raise ClaimError(f"claim {name}: give either a rule or untestable")
    if not rule.untestable and not (rule.analysis and rule.executed and (rule.holds or rule.partly)):
        raise ClaimError(f"claim {name}: give analysis, executed and holds or partly, or untestable")
    return rule


# -- judging -------------------------------------------------------------------------------------------


def judge(rule: Rule, run: Manifest | None, *, older: bool, texts: Mapping[str, Any]) -> Verdict:
    """What a run says by a rule; `texts` are its metrics as a sentence may show them.

    A metric that is not there is a problem, but for a run that is older than its notebook: that has to run again.
    """
    if rule.untestable:
        return Verdict(UNTESTABLE, reasons=(rule.untestable,))
    if run is None:
        return Verdict(NOT_YET, reasons=(f"Decided by `{rule.analysis}`, profile `full`.",))
    try:
        found, measured = verdict(rule, run.metrics), fill(rule.executed, texts)
        return Verdict(found, run, measured, tuple(reasons(rule, run.metrics, found)))
    except MissingError as error:
        said = f"{error} in run {run.run} of {rule.analysis}"
        return Verdict(
            AGAIN, run, reasons=(f"The run is older than this rule: it has {error}.",), problem="" if older else said
        )
    except FormulaError as error:
        return Verdict(AGAIN, run, problem=f"{error} in run {run.run} of {rule.analysis}")


def verdict(rule: Rule, metrics: Mapping[str, Any]) -> str:
    needed, held, partly = (bool(text and evaluate(text, metrics)) for text in (rule.needs, rule.holds, rule.partly))
    if rule.needs and not needed:
        return AGAIN
    if held:
        return TRIVIAL if rule.by_construction else HOLDS
    return PARTLY if partly else NOT_HERE


def reasons(rule: Rule, metrics: Mapping[str, Any], found: str) -> Iterator[str]:
    """What a reader should know of a verdict."""
    if found == AGAIN:
        yield f"It takes a run with `{rule.needs}`."
    if found == TRIVIAL:
        yield rule.by_construction
    if rule.verdict_note:
        yield rule.verdict_note
    others = {text: at(metrics, ending) for ending, text in THRESHOLDS.items()}
    if any(other[name] != metrics[name] for other in others.values() for name in named(metrics, *rule.asked)):
        told = {text: verdict(rule, other) for text, other in others.items()}
        differ = "; ".join(f"at {text}: {other}" for text, other in told.items() if other != found)
        yield f"With collapse counted otherwise: {differ}." if differ else f"The same at {' and at '.join(told)}."


def at(metrics: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """The metrics with those of another threshold in place of the usual ones."""
    return {**metrics, **{name.removesuffix(ending): metrics[name] for name in metrics if name.endswith(ending)}}
