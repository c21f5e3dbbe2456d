"""The papers' claims on the book's pages: how each is judged stands in `verdicts.py`, the claims in `claims.yaml`.

`{claims}` makes a table for each paper, with a column for each model. `{claims-of} two-keys` lists the claims that a
section of a paper's page is about, each with its verdicts, which lead to its row. A file that cannot be read, a metric
that is not there and an analysis of which there is no notebook are warnings, which fail the build.

A rule should be older than the run that it judges. Where git knows the commit a run was made at, and the rule was
another one there, the verdict says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from checkout import changed, changes, file_at
from docutils import nodes
from runs import MAIN, called, escaped, link
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from verdicts import MODELS, PAPERS, VERDICTS, Claim, ClaimError, Verdict, judge, read_claim, read_claims

from editlib.runs.manifest import Manifest

SETTINGS = {"smollm2": "smollm2", "twins": MAIN}  # whose runs pages quote, by model
FILE = "claims.yaml"
WIDTHS = (27, 19, 27, 27)  # of the columns, in per cent


@dataclass(frozen=True)
class Audit:
    """A claim with the verdict of each model."""

    claim: Claim
    verdicts: Mapping[str, Verdict]

    @property
    def name(self) -> str:
        """The name of its row; that of its place on a paper's page is the id alone."""
        return f"claim-{self.claim.id.lower()}"


# -- once for a build ----------------------------------------------------------------------------------


def judge_all(app: Sphinx, config: Config) -> None:
    """Judge the claims; a file that cannot be read is said where its table is to stand."""
    book = Path(app.srcdir)
    try:
        claims = read_claims((book / FILE).read_text("utf-8"))
    except (OSError, ClaimError, yaml.YAMLError) as error:
        config.audits = f"{FILE}: {' '.join(str(error).split())}"
        return
    quoted = config.runs.quoted
    config.audits = [
        Audit(claim, {model: judged(claim, model, quoted, book.parent) for model in MODELS}) for claim in claims
    ]


def judged(claim: Claim, model: str, quoted: Mapping[str, Manifest], root: Path) -> Verdict:
    """The verdict of one model's run."""
    rule = claim.rules[model]
    if rule.analysis and not (root / f"notebooks/{rule.analysis}.py").is_file():
        return Verdict(VERDICTS[-1], problem=f"there is no analysis {rule.analysis!r}")
    run = quoted.get(called(rule.analysis, SETTINGS[model]))
    if run is None or run.profile == "quick":  # of a few cases, to see that all works
        return judge(rule, None, older=False, texts={})
    texts = {name: escaped(value) if isinstance(value, str) else value for name, value in run.metrics.items()}
    found = judge(rule, run, older="the notebook" in changed(run, root), texts=texts)
    late = ("This rule was set after the run.",) if set_after(claim, model, run, root) else ()
    return replace(found, reasons=found.reasons + late)


def set_after(claim: Claim, model: str, run: Manifest, root: Path) -> bool:
    """Whether the commit that a run was made at had another rule, or none."""
    text = file_at(run.git.commit or "", f"book/{FILE}", root)
    return text is not None and rules_of(text).get((claim.id, model)) != claim.rules[model].asked


def standing(root: Path) -> dict[tuple[str, str], list[str]]:
    """By commit and its date, the claims whose rules stand unchanged since then; none where no commit has them yet."""
    rules, since = rules_of((root / "book" / FILE).read_text("utf-8")), dict[str, tuple[str, str]]()
    left = list(dict.fromkeys(name for name, _ in rules))
    for commit in changes(f"book/{FILE}", root):
        then = rules_of(file_at(commit[0], f"book/{FILE}", root) or "")
        other = {name for (name, model), rule in rules.items() if then.get((name, model)) != rule}
        left = [name for name in left if name not in other]
        since |= dict.fromkeys(left, commit)
    found = dict[tuple[str, str], list[str]]()
    for name, commit in since.items():
        found.setdefault(commit, []).append(name)
    return found


@cache  # runs of one commit share it
def rules_of(text: str) -> dict[tuple[str, str], tuple[str, str, str]]:
    """What verdicts rest on in a file as it once was, by claim and model; of records of another form, nothing.

    Where a model's runs could not test a claim, its usual rule stood, for a run that can.
    """
    rules = dict[tuple[str, str], tuple[str, str, str]]()
    for record in yaml.safe_load(text) or []:
        with suppress(ClaimError):
            claim = read_claim({"section": "", **record})  # the first had none
            usual = str(record.get("holds", "")), str(record.get("partly", "")), str(record.get("needs", ""))
            for model, rule in claim.rules.items():
                rules[claim.id, model] = usual if rule.untestable else rule.asked
    return rules


# -- pages ---------------------------------------------------------------------------------------------


class OfClaims(SphinxDirective):
    """What both directives have in common."""

    def audits(self) -> list[Audit]:
        """All claims with their verdicts."""
        if isinstance(self.config.audits, str):
            raise self.error(self.config.audits)
        self.env.note_dependency(str(Path(self.env.srcdir) / FILE))
        return list(self.config.audits)

    def named(self, node: nodes.Element, name: str) -> nodes.Element:
        """A node that links can lead to from any page."""
        node["ids"].append(name)
        self.env.get_domain("std").anonlabels[name] = self.env.docname, name  # type: ignore[attr-defined]
        return node


class Claims(OfClaims):
    """`{claims}`."""

    def run(self) -> list[nodes.Node]:
        audits = self.audits()
        for audit in audits:
            for problem in dict.fromkeys(one.problem for one in audit.verdicts.values() if one.problem):
                where = self.get_location()
                logging.getLogger(__name__).warning("claim %s: %s", audit.claim.id, problem, location=where)
        by_paper = {paper: [audit for audit in audits if audit.claim.paper == paper] for paper in PAPERS}
        tables = (self.table(f"Paper {paper}: {PAPERS[paper]}", rows) for paper, rows in by_paper.items() if rows)
        root = Path(self.env.srcdir).parent
        return [*self.parse_text_to_nodes(summary(audits, root)), *tables]

    def table(self, title: str, audits: Sequence[Audit]) -> nodes.table:
        """The claims of one paper; the first column and row are headers."""
        columns = ("Claim", "Published", *MODELS.values())
        head = nodes.row("", *(nodes.entry("", nodes.paragraph("", name)) for name in columns))
        group = nodes.tgroup("", cols=len(columns))
        group += [nodes.colspec(colwidth=width, stub=not i) for i, width in enumerate(WIDTHS)]
        group += [nodes.thead("", head), nodes.tbody("", *map(self.row, audits))]
        return nodes.table("", nodes.title("", title), group, classes=["claims", "colwidths-given"])

    def row(self, audit: Audit) -> nodes.Element:
        claim = audit.claim
        told = f"{claim.id} · {claim.claim} [More](#{claim.id.lower()})"
        texts = (told + f"\n\n*Ours*: {claim.ours}" * bool(claim.ours), f"{claim.published} ({claim.source})")
        cells = [self.parse_text_to_nodes(text) for text in texts]
        cells += [self.cell(one) for one in audit.verdicts.values()]
        return self.named(nodes.row("", *(nodes.entry("", *cell) for cell in cells)), audit.name)

    def cell(self, found: Verdict) -> list[nodes.Node]:
        """A verdict, what was measured, and why."""
        measured = [f"{found.measured} ({link(found.run)})"] if found.run and found.measured else []
        text = "\n\n".join([*measured, *found.reasons, *filter(None, [found.problem])])
        return [
            nodes.paragraph("", "", badge(found.verdict, nodes.Text(found.verdict))),
            *self.parse_text_to_nodes(text),
        ]


class ClaimsOf(OfClaims):
    """`{claims-of} two-keys`: the claims of a section, with their verdicts."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        audits = [audit for audit in self.audits() if audit.claim.section == self.arguments[0]]
        if not audits:
            raise self.error(f"no claim of {FILE} is in a section {self.arguments[0]!r}")
        return [nodes.bullet_list("", *map(self.item, audits), classes=["claims-of"])]

    def item(self, audit: Audit) -> nodes.Element:
        claim = audit.claim
        ours = nodes.Text(" (our claim)" * bool(claim.ours))
        line = nodes.paragraph("", "", nodes.strong("", claim.id), nodes.Text(f" {claim.claim}"), ours)
        for model, found in audit.verdicts.items():
            about = {"refdomain": "std", "reftype": "ref", "reftarget": audit.name, "refexplicit": True}
            text = nodes.inline("", f"{MODELS[model]}: {found.verdict}")
            line += [nodes.Text(" "), badge(found.verdict, pending_xref("", text, refwarn=True, **about))]
        return self.named(nodes.list_item("", line), claim.id.lower())


def badge(verdict: str, content: nodes.Node) -> nodes.strong:
    return nodes.strong("", "", content, classes=["verdict", verdict.replace(" ", "-")])


def summary(audits: Sequence[Audit], root: Path) -> str:
    """How many claims there are of each verdict, by model, and when the rules were set."""
    lines = [f"{len(audits)} claims, {sum(bool(audit.claim.ours) for audit in audits)} of them ours.", ""]
    for model, name in MODELS.items():
        counts = Counter(audit.verdicts[model].verdict for audit in audits)
        lines.append(f"- {name}: " + ", ".join(f"{counts[each]} {each}" for each in VERDICTS if counts[each]) + ".")
    since = sorted(standing(root).items(), key=lambda entry: entry[0][::-1])
    told = [f"- since commit {commit} of {day}: {', '.join(names)}" for (commit, day), names in since]
    return "\n".join([*lines, "", *["Their rules stand as they are", ""] * bool(told), *told])


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("runs")
    app.add_config_value("audits", [], "")
    app.add_directive("claims", Claims)
    app.add_directive("claims-of", ClaimsOf)
    app.connect("config-inited", judge_all)
    return {"version": "1", "parallel_read_safe": True}
