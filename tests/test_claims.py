"""The audit of the papers' claims: verdicts are computed from runs, and a missing number fails the build."""

import importlib
import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from folders import record
from places import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

EXTENSIONS = ROOT / "book" / "_ext"
METRICS = {"ratio": 0.02, "cases": 40, "collapsed_share": 0.975, "worst": "inf", "named": "rome"}
CLAIM = {
    "id": "B1", "paper": "B", "claim": "Denominators vanish.", "published": "0.04 against 9.60",
    "source": "slides p. 33", "analysis": "pilot", "executed": "{ratio} in {cases} cases", "holds": "ratio <= 1/30",
}  # fmt: skip
UNTESTABLE = {key: CLAIM[key] for key in ("id", "paper", "claim", "published", "source")} | {"untestable": "no T5 here"}


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXTENSIONS)
    return importlib.import_module("formulas")


@pytest.fixture
def claims(formulas: ModuleType) -> ModuleType:
    return importlib.import_module("claims")


Build = Callable[..., tuple[str, str]]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build a book of one page and one run; its HTML and the warnings."""
    monkeypatch.syspath_prepend(EXTENSIONS)

    def build(records: object, metrics: dict[str, Any] = METRICS) -> tuple[str, str]:
        run = tmp_path / "book/runs/pilot/0123456789ab"
        run.mkdir(parents=True)
        manifest = record(analysis="pilot", run=run.name, outputs={}, metrics=metrics)
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / "index.ipynb").touch()
        (run / "index.md").write_text("# A run\n")
        (tmp_path / "book/index.md").write_text(
            "# Audit\n\n(b1)=\n## Claims\n\n{{ audit_b1 }}\n\n```{claims}\n```\n\n"
            "```{toctree}\nruns/pilot/0123456789ab/index\n```\n"
        )
        (tmp_path / "book/claims.yaml").write_text(json.dumps(records))  # JSON is YAML
        settings = {
            "extensions": ["myst_parser", "claims"],
            "html_theme": "basic",
            "suppress_warnings": ["myst.xref_missing", "myst.substitution"],
            "myst_enable_extensions": ["substitution"],
        }
        warnings, folders = StringIO(), (tmp_path / "book", None, tmp_path / "html", tmp_path / "trees")
        with docutils_namespace(), patch_docutils():
            Sphinx(*folders, "html", settings, status=None, warning=warnings).build()
        return (tmp_path / "html/index.html").read_text(), warnings.getvalue()

    return build


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("ratio <= 1/30", True),
        ("ratio * 100 - cases", -38),
        ("0 < ratio < 0.01", False),
        ("not ratio > 1 and cases >= 40 or ratio == 7", True),
        ("worst > 1000", True),
        ("-cases + 1 != -39", False),
    ],
)
def test_expressions_compare_and_calculate(formulas: ModuleType, expression: str, value: float) -> None:
    assert formulas.evaluate(expression, METRICS) == pytest.approx(value)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("other > 1", "no metric 'other'"),
        ("named > 1", "metric 'named' is no number but 'rome'"),
        ("__import__('os').system('true')", "is neither a number"),
        ("ratio.real > 0", "'ratio.real' is neither a number"),
        ("'a' < 'b'", "is neither a number"),
        ("9 ** 9", "'9 ** 9' is neither a number"),
        ("ratio in cases", "is neither a number"),
        ("ratio >", "is no expression"),
        ("cases / (cases - 40)", "divides by zero"),
    ],
)
def test_nothing_else_is_evaluated(formulas: ModuleType, expression: str, reason: str) -> None:
    with pytest.raises(formulas.FormulaError, match=reason.replace("(", r"\(").replace("*", r"\*")):
        formulas.evaluate(expression, METRICS)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "holds here"),
        ({"holds": "ratio <= 1/1000", "partly": "ratio < 1"}, "holds in part"),
        ({"holds": "ratio <= 1/1000", "partly": "ratio > 1"}, "not here"),
        ({"holds": "ratio <= 1/1000"}, "not here"),
    ],
)
def test_verdict_follows_from_the_metrics(build: Build, change: dict[str, str], verdict: str) -> None:
    page, warnings = build([CLAIM | change])
    assert f">{verdict}</strong>" in page and f"1 claims: 1 {verdict}." in page
    assert not warnings


def test_row_has_claim_published_executed_and_verdict(build: Build) -> None:
    page, _ = build([CLAIM | {"verdict_note": "By two orders of magnitude."}])
    for text in (
        "B1 · Denominators vanish.",
        "0.04 against 9.60 (slides p. 33)",
        "0.0200 in 40 cases",
        "By two orders",
    ):
        assert text in page
    assert 'id="claim-b1"' in page


def test_metrics_without_a_format_are_written_as_on_other_pages(build: Build) -> None:
    page, _ = build([CLAIM | {"executed": "{collapsed_share}, {ratio:%}, {worst} times, {named}"}])
    assert "97.5 %, 2.00 %, inf times, rome" in page


def test_section_and_claim_lead_to_each_other(build: Build) -> None:
    page, _ = build([CLAIM | {"section": "b1"}])
    assert re.search('href="#claim-b1">.*?B1.*?</a> holds here', page)
    assert re.search('href="#b1">.*?More', page)


def test_papers_have_a_table_each_with_headers(build: Build) -> None:
    page, _ = build([CLAIM, CLAIM | {"id": "A1", "paper": "A"}])
    assert page.count("<caption>") == 2 and page.index("Butterfly Effect") < page.index("Fall of ROME")
    assert page.count('<th class="head') == 8


def test_claim_that_cannot_be_tested_says_why(build: Build) -> None:
    page, warnings = build([UNTESTABLE])
    assert ">not testable on this model</strong>" in page and "no T5 here" in page and not warnings


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"analysis": "denominator"}, "claim B1: no run of analysis 'denominator'"),
        ({"executed": "{gone:.2f}"}, "claim B1: no metric 'gone' in run 0123456789ab of pilot"),
        ({"holds": "gone > 1"}, "claim B1: no metric 'gone' in run 0123456789ab of pilot"),
        ({"partly": "gone > 1"}, "claim B1: no metric 'gone' in run 0123456789ab of pilot"),
        ({"executed": "{ratio.real}"}, "claim B1: no metric 'ratio.real' in run 0123456789ab of pilot"),
        ({"executed": "{named:%}"}, "claim B1: metric 'named' is no number but 'rome' in run"),
        (
            {"executed": "{named:.2f}"},
            "claim B1: metric 'named' can be shown as it is or in per cent (:%), not as '.2f' in run",
        ),
    ],
)
def test_missing_run_or_metric_is_one_warning_and_no_verdict(
    build: Build, change: dict[str, str], problem: str
) -> None:
    page, warnings = build([CLAIM | change])
    assert len(warnings.strip().splitlines()) == 1 and problem in warnings
    assert ">not executed</strong>" in page


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([CLAIM, CLAIM], "claim B1: there are two of this id"),
        ([CLAIM | {"verdict": "holds"}], "claim B1: got an unexpected keyword argument 'verdict'"),
        ([CLAIM | {"paper": "C"}], "claim B1: paper 'C' is neither of A, B"),
        ([CLAIM | {"untestable": "no T5"}], "claim B1: give either analysis, executed, holds or untestable"),
        ([UNTESTABLE | {"untestable": "", "holds": "1"}], "claim B1: analysis, executed, holds go together"),
        ([UNTESTABLE | {"holds": "1"}], "claim B1: give either analysis, executed, holds or untestable"),
    ],
)
def test_claim_that_is_not_as_described_is_refused(build: Build, records: object, problem: str) -> None:
    _, warnings = build(records)
    assert f"claims.yaml: {problem}" in warnings


def test_claims_of_the_book_can_be_read(claims: ModuleType, formulas: ModuleType) -> None:
    found = claims.read_claims(EXTENSIONS.parent / "claims.yaml")
    assert {claim.paper for claim in found} == {"A", "B"}
    for claim in found:
        for rule in filter(None, (claim.holds, claim.partly)):
            with pytest.raises(formulas.FormulaError, match="no metric"):
                formulas.evaluate(rule, {})
