"""Audit the papers' claims in the book: what was published beside what a run measured, with a computed verdict.

`{claims}` makes a table for each paper of what `claims.yaml` has:

    - id: B1
      paper: B
      claim: one sentence
      published: the published value
      source: slides p. 33
      analysis: denominator                     the run is the one that pages quote
      executed: "{ratio} in {cases} cases"      over the run's metrics, as pages write them; {ratio:%} is in per cent
      holds: ratio <= 1/30 and cases > 0        over the run's metrics
      partly: ratio < 1                         optional: tried where `holds` is false
      verdict_note: why                         optional
      section: b1                               optional: where the papers' pages speak of it

A claim that no run can test has `untestable: reason` in place of `analysis`, `executed` and `holds`. A run or a metric
that is not there is a warning, which fails the build: the page cannot show a verdict that nothing stands behind.
On other pages `{{ audit_b1 }}` names the claims of a section with their verdicts, and leads to their rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from formulas import FormulaError, evaluate, fill
from runs import escaped, link
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from editlib.runs.manifest import Manifest

PAPERS = {"A": "The Butterfly Effect of Model Editing", "B": "The Fall of ROME"}
COLUMNS = {"Claim": 30, "Published": 22, "Executed here": 24, "Verdict": 24}  # widths in per cent
VERDICTS = (HOLDS, PARTLY, NOT_HERE, UNTESTABLE, UNKNOWN) = (
    "holds here", "holds in part", "not here", "not testable on this model", "not executed",
)  # fmt: skip
TESTED_BY = ("analysis", "executed", "holds")


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
    section: str = ""


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


def judge(claim: Claim, run: Manifest | None) -> Audit:
    """What a run says of a claim."""
    if claim.untestable:
        return Audit(claim, "–", UNTESTABLE)
    if run is None:
        return Audit(claim, "–", UNKNOWN, f"no run of analysis {claim.analysis!r}")
    try:
        texts = {name: escaped(value) if isinstance(value, str) else value for name, value in run.metrics.items()}
        said = fill(claim.executed, texts)
        held, partly = (bool(rule and evaluate(rule, run.metrics)) for rule in (claim.holds, claim.partly))
    except (FormulaError, ValueError) as error:
        return Audit(claim, "–", UNKNOWN, f"{error} in run {run.run} of {claim.analysis}")
    return Audit(claim, f"{said} ({link(run)})", HOLDS if held else PARTLY if partly else NOT_HERE)


def judge_all(app: Sphinx, config: Config) -> None:
    """Judge the claims once for a build; a file that cannot be read is said where its table is to stand."""
    path = Path(app.srcdir) / "claims.yaml"
    try:
        claims = read_claims(path)
    except (OSError, ClaimError, yaml.YAMLError) as error:
        config.audits = f"{path.name}: {' '.join(str(error).split())}"
        return
    config.audits = [judge(claim, config.runs.quoted.get(claim.analysis)) for claim in claims]
    said: dict[str, list[str]] = {}
    for audit in config.audits:
        name = audit.claim.id
        said.setdefault(f"audit_{audit.claim.section}", []).append(f"[{name}](#claim-{name.lower()}) {audit.verdict}")
    joined = {section: ", ".join(verdicts) for section, verdicts in said.items()}
    config.myst_substitutions = {**config.myst_substitutions, **joined}


# -- the page ------------------------------------------------------------------------------------------


class Claims(SphinxDirective):
    """`{claims}`."""

    def run(self) -> list[nodes.Node]:
        audits = self.config.audits
        if isinstance(audits, str):
            raise self.error(audits)
        self.env.note_dependency(str(Path(self.env.srcdir) / "claims.yaml"))
        for audit in audits:
            name = f"claim-{audit.claim.id.lower()}"
            self.env.get_domain("std").anonlabels[name] = self.env.docname, name  # type: ignore[attr-defined]
            if audit.problem:
                where = self.get_location()
                logging.getLogger(__name__).warning("claim %s: %s", audit.claim.id, audit.problem, location=where)
        by_paper = {paper: [audit for audit in audits if audit.claim.paper == paper] for paper in PAPERS}
        tables = (self.table(f"Paper {paper}: {PAPERS[paper]}", rows) for paper, rows in by_paper.items() if rows)
        return [*self.parse_text_to_nodes(summary(audits)), *tables]

    def table(self, title: str, audits: Sequence[Audit]) -> nodes.table:
        """The claims of one paper; the first column and row are headers."""
        head = nodes.row("", *(nodes.entry("", nodes.paragraph("", name)) for name in COLUMNS))
        group = nodes.tgroup("", cols=len(COLUMNS))
        group += [nodes.colspec(colwidth=width, stub=not i) for i, width in enumerate(COLUMNS.values())]
        group += [nodes.thead("", head), nodes.tbody("", *map(self.row, audits))]
        return nodes.table("", nodes.title("", title), group, classes=["claims", "colwidths-given"])

    def row(self, audit: Audit) -> nodes.row:
        claim = audit.claim
        reason = claim.untestable or audit.problem or claim.verdict_note
        cells = (
            f"{claim.id} · {claim.claim}" + (f" [More](#{claim.section})" if claim.section else ""),
            f"{claim.published} ({claim.source})",
            audit.measured,
            reason,
        )
        *others, why = (nodes.entry("", *self.parse_text_to_nodes(text)) for text in cells)
        badge = nodes.strong("", audit.verdict, classes=["verdict", audit.verdict.replace(" ", "-")])
        why.insert(0, nodes.paragraph("", "", badge))
        return nodes.row("", *others, why, ids=[f"claim-{claim.id.lower()}"])


def summary(audits: Sequence[Audit]) -> str:
    """How many claims there are of each verdict, in one sentence."""
    counts = Counter(audit.verdict for audit in audits)
    found = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(audits)} claims: {found}."


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("runs")
    app.add_config_value("audits", [], "")
    app.add_directive("claims", Claims)
    app.connect("config-inited", judge_all)
    return {"version": "1", "parallel_read_safe": True}
