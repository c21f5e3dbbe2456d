"""The audit of the papers' claims: verdicts are computed from runs by rules, a column for each model."""

import hashlib
import importlib
import json
import re
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from folders import INPUTS, record
from lxml import html
from places import ROOT
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

EXTENSIONS = ROOT / "book" / "_ext"
METRICS = {"ratio": 0.02, "cases": 40, "collapsed_share": 0.975, "worst": "inf", "named": "rome"}
CLAIM = {
    "id": "B1", "paper": "B", "claim": "Denominators vanish.", "published": "0.04 against 9.60",
    "source": "slides p. 33", "section": "keys", "analysis": "pilot",
    "executed": "{ratio} in {cases} cases", "holds": "ratio <= 1/30",
}  # fmt: skip
UNTESTABLE = {key: CLAIM[key] for key in ("id", "paper", "claim", "published", "source", "section")} | {
    "untestable": "no T5 here"
}


@pytest.fixture
def formulas(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXTENSIONS)
    return importlib.import_module("formulas")


@pytest.fixture
def verdicts(formulas: ModuleType) -> ModuleType:
    return importlib.import_module("verdicts")


NOTEBOOK = b"# A notebook\n"
NOW = INPUTS | {"notebook": hashlib.sha256(NOTEBOOK).hexdigest()}
QUOTED = {"main": {"model": ["testbed/anchored"]}, "smollm2": {"model": ["smollm2-135m"]}}
Build = Callable[..., tuple[str, str]]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build a book of a run of the twins, and of SmolLM2 where metrics are given; its page's HTML, the warnings."""
    monkeypatch.syspath_prepend(EXTENSIONS)
    book = tmp_path / "book"

    def add_run(name: str, model: str, metrics: dict[str, Any], **about: Any) -> None:
        run = book / "runs/pilot" / name
        run.mkdir(parents=True)
        told: dict[str, Any] = {"inputs": NOW, "parameters": {"model": model}, "profile": "full"} | about
        manifest = record(analysis="pilot", run=run.name, outputs={}, metrics=metrics, **told)
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / "index.ipynb").touch()
        (run / "index.md").write_text("# A run\n")

    def build(records: object, metrics: dict[str, Any] = METRICS, real: object = None, **about: Any) -> tuple[str, str]:
        add_run("0123456789ab", "testbed/anchored", metrics, **about)
        if isinstance(real, dict):
            add_run("ba9876543210", "smollm2-135m", real)
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "notebooks/pilot.py").write_bytes(NOTEBOOK)
        (book / "quoted.yaml").write_text(json.dumps(QUOTED))
        (book / "claims.yaml").write_text(json.dumps(records))  # JSON is YAML
        (book / "index.md").write_text(
            "# Audit\n\n## Claims\n\n```{claims-of} keys\n```\n\n```{claims}\n```\n\n"
            "```{toctree}\n:glob:\nruns/pilot/*/index\n```\n"
        )
        settings = {
            "extensions": ["myst_parser", "claims"],
            "html_theme": "basic",
            "suppress_warnings": ["myst.xref_missing", "myst.substitution"],
            "myst_enable_extensions": ["substitution"],
        }
        warnings, folders = StringIO(), (book, None, tmp_path / "html", tmp_path / "trees")
        with docutils_namespace(), patch_docutils():
            Sphinx(*folders, "html", settings, status=None, warning=warnings).build()
        return (tmp_path / "html/index.html").read_text(), warnings.getvalue()

    return build


def cells(page: str) -> list[str]:
    """The text of each model's cell in the first row."""
    row = html.fromstring(page).xpath("//table//tbody/tr")[0]
    return [" ".join(cell.text_content().split()) for cell in row.xpath("./td")][1:]


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


def test_a_count_that_never_ends_is_above_any(formulas: ModuleType) -> None:
    assert not formulas.evaluate("first <= 6", {"first": "never"})


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "holds"),
        ({"holds": "ratio <= 1/1000", "partly": "ratio < 1"}, "holds in part"),
        ({"holds": "ratio <= 1/1000", "partly": "ratio > 1"}, "not here"),
        ({"holds": "ratio <= 1/1000"}, "not here"),
        ({"holds": "", "partly": "ratio < 1"}, "holds in part"),
        ({"by_construction": "So it was built."}, "by construction"),
        ({"by_construction": "So it was built.", "holds": "ratio > 1"}, "not here"),
        ({"needs": "cases >= 40"}, "holds"),
        ({"needs": "cases >= 50"}, "run again"),
    ],
)
def test_verdict_follows_from_the_metrics(build: Build, change: dict[str, str], verdict: str) -> None:
    page, warnings = build([CLAIM | change])
    assert cells(page)[1].startswith(f"{verdict} 0.0200 in 40 cases") and not warnings
    assert f"Twins: 1 {verdict}." in page and f">Twins: {verdict}</span></a></strong>" in page
    assert ("So it was built." in page) == (verdict == "by construction")
    assert ("It takes a run with cases &gt;= 50." in re.sub("<[^>]+>", "", page)) == (verdict == "run again")


def test_each_model_has_its_verdict_by_its_run_and_rule(build: Build) -> None:
    own = {"holds": "ratio <= 1/1000", "verdict_note": "Asked for is more."}
    page, warnings = build([CLAIM | {"smollm2": own}], real=METRICS | {"ratio": 0.002})
    real, twins = cells(page)
    assert real.startswith("not here 0.00200 in 40 cases (ba9876543210)") and "Asked for is more." in real
    assert twins.startswith("holds 0.0200 in 40 cases (0123456789ab)") and "Asked" not in twins
    assert not warnings


def test_rule_stands_before_there_is_a_run(build: Build) -> None:
    page, warnings = build([CLAIM])
    assert cells(page)[0] == "not executed yet Decided by pilot, profile full." and not warnings


def test_a_quick_run_decides_nothing(build: Build) -> None:
    page, warnings = build([CLAIM], profile="quick")
    assert cells(page) == ["not executed yet Decided by pilot, profile full."] * 2 and not warnings


def test_verdict_that_depends_on_the_threshold_says_so(build: Build) -> None:
    metrics = METRICS | {"ratio_20x": 0.5, "ratio_1000": 0.01, "cases_20x": 40, "cases_1000": 40}
    page, _ = build([CLAIM], metrics=metrics, real=metrics | {"ratio_20x": 0.03})
    real, twins = cells(page)
    assert "The same at 20 times and at perplexity 1,000." in real
    assert "With collapse counted otherwise: at 20 times: not here." in twins


def test_claim_has_published_value_and_note_and_is_marked_ours(build: Build) -> None:
    page, _ = build([CLAIM | {"verdict_note": "By two orders of magnitude.", "ours": "they never said it."}])
    said = " ".join(re.sub("<[^>]+>", "", page).split())
    for text in ("B1 · Denominators vanish.", "0.04 against 9.60 (slides p. 33)", "By two orders", "Ours: they never"):
        assert text in said
    assert "1 claims, 1 of them ours." in said and "B1 Denominators vanish. (our claim)" in said


def test_metrics_without_a_format_are_written_as_on_other_pages(build: Build) -> None:
    page, _ = build([CLAIM | {"executed": "{collapsed_share}, {ratio:%}, {worst} times, {named}"}])
    assert "97.5 %, 2.00 %, inf times, rome" in page


def test_a_claim_of_a_section_and_its_row_lead_to_each_other(build: Build) -> None:
    page, _ = build([CLAIM])
    assert re.search('id="claim-b1".*href="#b1">.*?More', page, re.DOTALL)
    assert re.search('<li id="b1">.*href="#claim-b1"', page, re.DOTALL)


def test_papers_have_a_table_each_with_headers(build: Build) -> None:
    page, _ = build([CLAIM, CLAIM | {"id": "A1", "paper": "A"}])
    assert page.count("<caption>") == 2 and page.index("Butterfly Effect") < page.index("Fall of ROME")
    assert page.count('<th class="head') == 8


def test_claim_that_cannot_be_tested_says_why_for_one_model_or_all(build: Build) -> None:
    page, warnings = build([UNTESTABLE, CLAIM | {"id": "B2", "twins": {"untestable": "it was built so"}}])
    assert cells(page) == ["not testable no T5 here"] * 2 and not warnings
    assert "not testable</strong></p>\n<p>it was built so" in page and page.count(">not executed yet</strong>") == 1


# -- what is not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"analysis": "denominator"}, "claim B1: there is no analysis 'denominator'"),
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
def test_missing_metric_or_analysis_is_one_warning_and_no_verdict(
    build: Build, change: dict[str, str], problem: str
) -> None:
    page, warnings = build([CLAIM | change])
    assert len(warnings.strip().splitlines()) == 1 and problem in warnings
    assert cells(page)[1].startswith(("run again", "not executed yet"))


def test_a_run_older_than_its_notebook_may_lack_a_metric(build: Build) -> None:
    page, warnings = build([CLAIM | {"partly": "gone > 1"}], inputs=INPUTS)
    assert cells(page)[1] == "run again The run is older than this rule: it has no metric ‘gone’." and not warnings


def test_a_rule_set_after_the_run_says_so(build: Build, tmp_path: Path) -> None:
    """The usual rule stands also while a model's runs cannot test the claim."""

    def git(*words: str) -> str:
        about = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *about, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    other = CLAIM | {"id": "B2", "holds": "ratio <= 1/40"}
    third = CLAIM | {"id": "B3"}
    before = [CLAIM, other, third | {"twins": {"untestable": "too few cases"}}]
    (tmp_path / "book").mkdir()
    (tmp_path / "book/claims.yaml").write_text(json.dumps(before))
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "Rules")
    commit = git("rev-parse", "HEAD").strip()
    page, _ = build([CLAIM, other | {"holds": "ratio <= 1/30"}, third], git={"commit": commit, "dirty": False})
    rows = [row.text_content() for row in html.fromstring(page).xpath("//table//tbody/tr")]
    assert ["This rule was set after the run." in row for row in rows] == [False, True, False]
    assert f"since commit {commit[:7]} of " in page


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([CLAIM, CLAIM], "claim B1: there are two of this id"),
        ([CLAIM | {"verdict": "holds"}], "claim B1: got an unexpected keyword argument 'verdict'"),
        ([CLAIM | {"twins": {"hold": "1"}}], "claim B1: got an unexpected keyword argument 'hold'"),
        ([CLAIM | {"paper": "C"}], "claim B1: paper 'C' is neither of A, B"),
        ([CLAIM | {"untestable": "no T5"}], "claim B1: give either a rule or untestable"),
        ([CLAIM | {"holds": ""}], "claim B1: give analysis, executed and holds or partly, or untestable"),
        ([UNTESTABLE | {"untestable": "", "holds": "1"}], "claim B1: give analysis, executed and holds or partly"),
        ([UNTESTABLE | {"holds": "1"}], "claim B1: give either a rule or untestable"),
    ],
)
def test_claim_that_is_not_as_described_is_refused(build: Build, records: object, problem: str) -> None:
    _, warnings = build(records)
    assert f"claims.yaml: {problem}" in warnings


# -- the book's own ------------------------------------------------------------------------------------


def test_claims_of_the_book_can_be_read(verdicts: ModuleType, formulas: ModuleType) -> None:
    found = verdicts.read_claims((EXTENSIONS.parent / "claims.yaml").read_text("utf-8"))
    assert {claim.paper for claim in found} == {"A", "B"}
    for rule in [rule for claim in found for rule in claim.rules.values() if not rule.untestable]:
        assert (ROOT / f"notebooks/{rule.analysis}.py").is_file()
        for text in filter(None, rule.asked):
            with pytest.raises(formulas.MissingError):
                formulas.evaluate(text, {})


def test_every_claim_stands_once_on_the_page_of_its_paper(verdicts: ModuleType) -> None:
    pages = {"A": "butterfly-effect", "B": "fall-of-rome"}
    shown = {
        paper: re.findall(r"```{claims-of} (\S+)", (ROOT / f"book/{page}.md").read_text("utf-8"))
        for paper, page in pages.items()
    }
    found = verdicts.read_claims((EXTENSIONS.parent / "claims.yaml").read_text("utf-8"))
    for paper, sections in shown.items():
        assert len(sections) == len(set(sections))
        assert set(sections) == {claim.section for claim in found if claim.paper == paper}
