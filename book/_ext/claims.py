"""Audit the papers' claims in the book: what was published beside what a run measured, with a computed verdict.

`{claims}` reads `claims.yaml`, or the file it is given, relative to the book, and makes a table for each paper:

    - id: B1
      paper: B
      claim: one sentence
      published: the published value
      source: slides p. 33
      analysis: denominator                     the run is the one that pages quote
      executed: "{ratio:.3f} in {cases} cases"  over the run's metrics; without a format, as pages write them
      holds: ratio <= 1/30 and cases > 0        over the run's metrics
      partly: ratio < 1                         optional: tried where `holds` is false
      verdict_note: why                         optional

A claim that no run can test has `untestable: reason` in place of `analysis`, `executed` and `holds`. A run or a metric
that is not there is a warning, which fails the build: the page cannot show a verdict that nothing stands behind.
"""

from __future__ import annotations

import ast
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from docutils import nodes
from runs import Run, escaped, link, quoted, read_runs, spoken
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

PAPERS = {"A": "The Butterfly Effect of Model Editing", "B": "The Fall of ROME"}
COLUMNS = {"Claim": 34, "Published": 20, "Executed here": 22, "Verdict": 24}  # widths in per cent
VERDICTS = (HOLDS, PARTLY, NOT_HERE, UNTESTABLE, UNKNOWN) = (
    "holds here", "holds in part", "not here", "not testable on this model", "not executed",
)  # fmt: skip
TESTED_BY = ("analysis", "executed", "holds")
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.Not: operator.not_, ast.And: operator.and_, ast.Or: operator.or_,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


class ClaimError(ValueError):
    """A claim that cannot be read or judged; one line naming it."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One record of `claims.yaml`."""

    id: str
    paper: str
    claim: str
    published: str
    source: str
    analysis: str = ""
    executed: str = ""
    holds: str = ""
    partly: str = ""
    verdict_note: str = ""
    untestable: str = ""


@dataclass(frozen=True)
class Audit:
    """A claim with what was measured, and the verdict."""

    claim: Claim
    measured: str
    verdict: str
    problem: str = ""  # why there is no verdict


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file; raises `ClaimError` for one that is not as described above."""
    claims = [read_claim(record) for record in yaml.safe_load(path.read_text("utf-8")) or []]
    twice = [name for name, count in Counter(claim.id for claim in claims).items() if count > 1]
    if twice:
        raise ClaimError(f"claim {twice[0]}: there are two of this id")
    return claims


def read_claim(record: Mapping[str, Any]) -> Claim:
    name = record.get("id", "without id")
    try:
        claim = Claim(**{key: str(value) for key, value in record.items()})
    except TypeError as error:
        raise ClaimError(f"claim {name}: {str(error).removeprefix('Claim.__init__() ')}") from error
    if claim.paper not in PAPERS:
        raise ClaimError(f"claim {name}: paper {claim.paper!r} is neither of {', '.join(PAPERS)}")
    if bool(claim.untestable) == any(getattr(claim, key) for key in TESTED_BY):
        raise ClaimError(f"claim {name}: give either {', '.join(TESTED_BY)} or untestable")
    if not claim.untestable and not all(getattr(claim, key) for key in TESTED_BY):
        raise ClaimError(f"claim {name}: {', '.join(TESTED_BY)} go together")
    return claim


# -- judging -------------------------------------------------------------------------------------------


def evaluate(expression: str, metrics: Mapping[str, Any]) -> Any:
    """The value of an expression of numbers, names of metrics, arithmetic, comparisons, and, or, not.

    Nothing else is understood, so no text can run code. Raises `ClaimError` for anything else, and for a metric that
    is not there.
    """
    try:
        return value_of(ast.parse(expression.strip(), mode="eval").body, metrics)
    except SyntaxError as error:
        raise ClaimError(f"{expression!r} is no expression") from error
    except ZeroDivisionError as error:
        raise ClaimError(f"{expression!r} divides by zero") from error


def value_of(node: ast.AST, metrics: Mapping[str, Any]) -> Any:
    """The value of one part of an expression."""

    def value(part: ast.AST) -> Any:
        return value_of(part, metrics)

    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return number_of(name, metrics)
        case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value(left), value(right))
        case ast.UnaryOp(sign, operand) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](value(operand))
        case ast.BoolOp(sign, parts):
            return reduce(OPERATORS[type(sign)], (bool(value(part)) for part in parts))
        case ast.Compare(left, signs, others) if all(type(sign) in OPERATORS for sign in signs):
            pairs = pairwise(map(value, (left, *others)))
            return all(OPERATORS[type(sign)](*pair) for sign, pair in zip(signs, pairs, strict=True))
    raise ClaimError(f"{ast.unparse(node)!r} is neither a number, a metric, arithmetic nor a comparison")


def number_of(name: str, metrics: Mapping[str, Any]) -> float:
    """A metric as a number; manifests write those that are not finite as text."""
    try:
        return float(metrics[name])
    except KeyError as error:
        raise ClaimError(f"no metric {name!r}") from error
    except ValueError as error:
        raise ClaimError(f"metric {name!r} is no number but {metrics[name]!r}") from error


@dataclass(frozen=True)
class Shown:
    """A metric in a template: as its format says, or without one as pages write it."""

    name: str
    value: Any

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else spoken(self.name, self.value)


class Template(Formatter):
    """Fills `{metric}` and `{metric:format}`; looks no further into what it is given."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        if field_name not in kwargs:
            raise ClaimError(f"no metric {field_name!r}")
        value = kwargs[field_name]
        known = float(value) if value in ("inf", "-inf", "nan") else value
        return Shown(field_name, escaped(known) if isinstance(known, str) else known), field_name


def judge(claim: Claim, run: Run | None) -> Audit:
    """What a run says of a claim."""
    if claim.untestable:
        return Audit(claim, "–", UNTESTABLE)
    if run is None:
        return Audit(claim, "–", UNKNOWN, f"no run of analysis {claim.analysis!r}")
    metrics = run.manifest["metrics"]
    try:
        said = Template().vformat(claim.executed, (), metrics)
        held, partly = (bool(rule and evaluate(rule, metrics)) for rule in (claim.holds, claim.partly))
    except (ClaimError, ValueError) as error:
        return Audit(claim, "–", UNKNOWN, f"{error} in run {run.id} of {claim.analysis}")
    return Audit(claim, f"{said} ({link(run)})", HOLDS if held else PARTLY if partly else NOT_HERE)


# -- the page ------------------------------------------------------------------------------------------


class Claims(SphinxDirective):
    """`{claims}` or `{claims} other.yaml`."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        book = Path(self.env.srcdir)
        path = book / (self.arguments[0] if self.arguments else "claims.yaml")
        try:
            claims = read_claims(path)
        except (OSError, ClaimError, yaml.YAMLError) as error:
            raise self.error(f"{path.name}: {' '.join(str(error).split())}") from error
        runs = quoted(read_runs(book))
        self.env.note_dependency(str(path))
        for run in runs.values():
            self.env.note_dependency(str(book / run.folder / "manifest.json"))
        audits = [judge(claim, runs.get(claim.analysis)) for claim in claims]
        for audit in audits:
            if audit.problem:
                where = self.get_location()
                logging.getLogger(__name__).warning("claim %s: %s", audit.claim.id, audit.problem, location=where)
        return [*self.parse_text_to_nodes(summary(audits)), *self.tables(audits)]

    def tables(self, audits: Sequence[Audit]) -> list[nodes.Node]:
        """A table for each paper."""
        mine = {paper: [audit for audit in audits if audit.claim.paper == paper] for paper in PAPERS}
        return [self.table(f"Paper {paper}: {PAPERS[paper]}", found) for paper, found in mine.items() if found]

    def table(self, title: str, audits: Sequence[Audit]) -> nodes.table:
        """The claims of one paper; the first column and row are headers."""
        head = nodes.row("", *(nodes.entry("", nodes.paragraph("", name)) for name in COLUMNS))
        group = nodes.tgroup("", cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=width, stub=not i) for i, width in enumerate(COLUMNS.values())]
        group += [nodes.thead("", head), nodes.tbody("", *map(self.row, audits))]
        return nodes.table("", nodes.title("", title), group, classes=["claims"])

    def row(self, audit: Audit) -> nodes.row:
        claim = audit.claim
        reason = claim.untestable or audit.problem or claim.verdict_note
        cells = (
            f"{claim.id} · {claim.claim}",
            f"{claim.published} ({claim.source})",
            audit.measured,
            f"**{audit.verdict}**" + (f". {reason}" if reason else ""),
        )
        entries = [nodes.entry("", *self.parse_text_to_nodes(text)) for text in cells]
        return nodes.row("", *entries, ids=[f"claim-{claim.id.lower()}"])


def summary(audits: Sequence[Audit]) -> str:
    """How many claims there are of each verdict, in one sentence."""
    counts = Counter(audit.verdict for audit in audits)
    found = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(audits)} claims: {found}."


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("claims", Claims)
    return {"version": "1", "parallel_read_safe": True}
