"""The page of all runs: a table that sorts, filters and searches, the same for machines, and links from pages."""

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from books import ROOT, eventually, published, violations
from playwright.sync_api import Browser, Page

from editlib.runs import analyses
from editlib.runs.manifest import Manifest

SHOWN = ".runs-table tbody tr"


def shown(page: Page) -> list[str]:
    """Ids in the order of the rows."""
    return page.locator(f"{SHOWN} a").all_inner_texts()


def test_table_lists_every_run_and_links_to_its_page(page: Page, runs: list[Manifest]) -> None:
    page.goto("runs.html")
    assert sorted(shown(page)) == sorted(run.run for run in runs)
    for link in page.locator(f"{SHOWN} a").evaluate_all("(links) => links.map((link) => link.href)"):
        assert page.request.head(link).ok, link


def test_analyses_without_a_run_are_named(page: Page, runs: list[Manifest]) -> None:
    page.goto("/runs.html")
    missing = sorted(set(analyses.names(ROOT)) - {run.analysis for run in runs})
    said = f"Not executed here: {', '.join(missing)}. make book-all executes every analysis."
    assert page.get_by_text(said).count() == bool(missing)


def test_runs_of_one_spec_stand_together_and_are_marked(page: Page, runs: list[Manifest]) -> None:
    page.goto("runs.html")
    counts = Counter(run.spec for run in runs)
    rows = page.locator(SHOWN).all()
    specs = [row.locator("td").last.locator("code").inner_text() for row in rows]
    assert [spec for spec, before in zip(specs, ["", *specs], strict=False) if spec != before] == list(
        dict.fromkeys(specs)
    )
    for row, spec in zip(rows, specs, strict=True):
        several = counts[spec] > 1
        assert (f"×{counts[spec]}" in row.inner_text(), "same-spec" in (row.get_attribute("class") or "")) == (
            several,
        ) * 2


@pytest.mark.parametrize("name", ["Analysis", "Profile", "Model"])
def test_filter_keeps_the_rows_of_one_value_by_keyboard(page: Page, name: str, runs: list[Manifest]) -> None:
    page.goto("runs.html")
    select = page.get_by_label(name, exact=True)
    select.focus()
    page.keyboard.press("ArrowDown")
    wanted = select.input_value()
    column = {"Analysis": "analysis", "Profile": "profile"}.get(name)
    told = {run.run: getattr(run, column) if column else run.parameters.get("model") for run in runs}
    kept = sorted(run for run, value in told.items() if value == wanted)
    assert wanted and kept
    eventually(lambda: sorted(shown(page)), kept)
    eventually(page.get_by_role("status").inner_text, f"{len(kept)} shown")


def test_address_may_name_the_filter(page: Page, runs: list[Manifest]) -> None:
    page.goto("runs.html?analysis=pilot")
    eventually(lambda: sorted(shown(page)), sorted(run.run for run in runs if run.analysis == "pilot"))


def test_address_says_what_is_shown(page: Page, runs: list[Manifest]) -> None:
    page.goto("runs.html")
    page.get_by_label("Profile", exact=True).select_option("full")
    page.get_by_label("Search").last.fill("key")
    page.locator(".runs-table th", has_text="Duration").get_by_role("button").press("Enter")
    eventually(lambda: page.evaluate("location.search"), "?profile=full&search=key&sort=duration")
    rows = shown(page)
    assert 1 < len(rows) < len(runs)
    page.reload()
    eventually(lambda: shown(page), rows)
    assert page.get_by_label("Search").last.input_value() == "key"


def test_every_row_says_what_came_out(page: Page, runs: list[Manifest]) -> None:
    run = next(run for run in runs if run.analysis == "pilot")
    page.goto(f"runs.html?search={run.run}")
    cells = page.locator(SHOWN).locator("td").all_inner_texts()
    found = f"{run.metrics['collapsed_first']} of {run.metrics['cases_first']} edits of one-token subjects"
    assert found in cells[1] and cells[2] == f"{run.metrics['cases']:,}"
    page.goto("runs.html")
    assert "" not in page.locator(SHOWN).locator("td:nth-child(3)").all_inner_texts()


def test_search_looks_at_every_column(page: Page, runs: list[Manifest]) -> None:
    page.goto("runs.html")
    run = runs[0]
    page.get_by_label("Search").last.fill(run.run)
    eventually(lambda: shown(page), [run.run])


def test_headers_sort_by_what_they_mean(page: Page, runs: list[Manifest]) -> None:
    page.goto("runs.html")
    seconds = {run.run: run.seconds for run in runs}
    header = page.locator(".runs-table th", has_text="Duration")
    for order, reverse in (("ascending", False), ("descending", True)):
        header.get_by_role("button").press("Enter")
        eventually(lambda: header.get_attribute("aria-sort"), order)
        eventually(lambda: [seconds[run] for run in shown(page)], sorted(seconds.values(), reverse=reverse))


def test_table_needs_no_script(browser: Browser, address: str, runs: list[Manifest]) -> None:
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto("runs.html")
    assert sorted(shown(page)) == sorted(run.run for run in runs)
    assert page.locator(".runs-table caption").is_visible()
    assert page.locator(".runs-table th[scope=col]").count() == 9
    context.close()


def test_library_is_loaded_on_pages_with_such_a_table_alone(site: Path) -> None:
    users = [path.name for path in site.rglob("*.html") if "catalogue.mjs" in path.read_text("utf-8")]
    assert sorted(users) == ["results.html", "runs.html"]
    assert not any("dt_bundle" in path.read_text("utf-8") for path in site.rglob("*.html"))


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_problem(page: Page, scheme: Any, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto("runs.html")
    page.locator(".runs-filters").wait_for()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_machines_read_the_same(page: Page, site: Path, runs: list[Manifest]) -> None:
    told = {run["run"]: run for run in json.loads((site / "runs.json").read_text("utf-8"))["runs"]}
    assert told.keys() == {run.run for run in runs}
    for run in runs:
        record = told[run.run]
        assert record["numbers"] and all(entry["words"] and entry["text"] for entry in record["numbers"])
        assert {name: record[name] for name in ("analysis", "title", "profile", "spec", "started", "seconds")} == {
            name: run.record[name] for name in ("analysis", "title", "profile", "spec", "started", "seconds")
        }
        assert (record["parameters"], record["metrics"]) == (run.record["parameters"], run.record["metrics"])
        assert (record["published"], record["model"]) == (True, run.parameters.get("model"))
        assert (site / record["page"]).is_file()
        for name in record["files"]:
            assert (site / name).read_bytes() == (run.folder / name.partition(f"{run.run}/")[2]).read_bytes()
    page.goto("runs.html")
    link = page.get_by_role("link", name="runs.json").evaluate("(link) => link.href")
    assert page.request.get(link).body() == (site / "runs.json").read_bytes()


def test_page_that_quotes_an_analysis_leads_to_its_other_runs(page: Page, runs: list[Manifest]) -> None:
    page.goto("fall-of-rome.html")
    place = page.locator(".run-selector", has=page.locator("a[href*='runs/key-geometry/']"))
    assert place.count() == 1, "once, however many figures there are"
    shown, others = place.locator("a").first.inner_text(), place.locator("details li a").all_text_contents()
    assert page.locator(f"figcaption a[href*='runs/key-geometry/{shown}']").count()
    assert sorted([shown, *others]) == sorted(run.run for run in runs if run.analysis == "key-geometry")
    place.locator("summary").press("Enter")
    place.locator("details li a").first.press("Enter")
    page.locator(".run-header").wait_for()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_ratio_collapse_c_rome", "highest, times unedited, collapse C-ROME"),
        ("rho_one_edit_testbed_choice", "Spearman's ρ one edit choice"),
        ("auc_one_token", "AUC one token"),
    ],
)
def test_metrics_are_named_in_words(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    assert importlib.import_module("catalogue").words(name) == said


def test_every_analysis_has_a_result_that_its_runs_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    catalogue = importlib.import_module("catalogue")
    results = yaml.safe_load((ROOT / "book/results.yaml").read_text("utf-8"))
    assert sorted(results) == analyses.names(ROOT)
    assert [run.run for run in published() if not catalogue.outcome(run, results)[1]] == []
