"""The page of results: every number is its run's, and can be found by its method."""

import importlib
import json
from pathlib import Path

import pytest
from books import ROOT, eventually, violations
from playwright.sync_api import Page

from editlib.runs.manifest import Manifest

ROWS = ".runs-table tbody tr"


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("collapsed_first_rome", "rome"),
        ("collapsed_c_rome_no_covariance", "c-rome"),
        ("kept_hard_rome_rect", "rome+rect"),
        ("first_normal_alphaedit_sphere", "alphaedit+sphere"),
        ("ft_l_efficacy_em_tf", "ft-l"),
        ("efficacy_hard_memit_seq", "memit-seq"),
        ("auc", ""),
    ],
)
def test_a_metric_tells_its_method(monkeypatch: pytest.MonkeyPatch, name: str, method: str) -> None:
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    assert importlib.import_module("results").method(name) == method


def test_every_number_is_that_of_its_run(site: Path, runs: list[Manifest]) -> None:
    told = json.loads((site / "results.json").read_text("utf-8"))["results"]
    metrics = {run.run: run.metrics for run in runs}
    assert told and {row["model"] for row in told} >= {"smollm2-135m", "testbed/anchored"}
    for row in told:
        assert row["value"] == metrics[row["run"]][row["name"]]
        assert (site / row["page"]).is_file() and row["commit"]
        of = row.get("interval_of")
        assert of in (None, "share") or row["low"] <= row["value"] <= row["high"], row
        assert of != "share" or 0 <= row["low"] <= row["high"] <= 1, row


def test_table_shows_the_leading_ones_and_filters_them_by_method(page: Page, site: Path) -> None:
    told = json.loads((site / "results.json").read_text("utf-8"))["results"]
    leading = [row for row in told if row["leading"]]
    page.goto("results.html?method=c-rome")
    wanted = sum(row["method"] == "c-rome" for row in leading)
    eventually(page.get_by_role("status").inner_text, f"{wanted} shown")
    page.get_by_label("Method", exact=True).select_option("")
    eventually(page.locator(ROWS).count, len(leading))


@pytest.mark.parametrize("width", [375, 1280])
def test_no_serious_accessibility_problem(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto("results.html")
    page.locator(".runs-filters").wait_for()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_figure_says_where_it_comes_from_and_how_to_make_it_again(page: Page, runs: list[Manifest]) -> None:
    page.goto("why-it-breaks.html")
    figures = page.locator("figure img[src*='runs'], figure img[src*='_images']")
    origins = page.locator(".run-origin")
    assert origins.count() == figures.count() > 2
    said = origins.first.locator("summary").inner_text()
    run = next(run for run in runs if f"run {run.run} " in said)
    assert f"commit {run.git.commit[:12]} · notebook {run.analysis} · data " in said
    origins.first.locator("summary").press("Enter")
    assert origins.first.locator("pre").inner_text().startswith(f"editlib run {run.analysis} --profile {run.profile}")
