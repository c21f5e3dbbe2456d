"""The page on which readers put two runs side by side."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from books import eventually, violations
from playwright.sync_api import Browser, Page

from editlib.runs.manifest import Manifest


@pytest.fixture(scope="module")
def pair(runs: list[Manifest]) -> tuple[Manifest, Manifest]:
    """Two runs of one spec that differ in one number."""
    same = Counter(run.spec for run in runs)
    a, b = (run for run in runs if same[run.spec] == 2)
    return a, b


def compared(page: Page, a: Manifest, b: Manifest) -> str:
    page.goto(f"compare.html?a={a.run}&b={b.run}")
    page.locator("#comparison h2").first.wait_for()
    return page.locator("#comparison").inner_text()


def test_address_names_the_runs(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    said = compared(page, *pair)
    assert [page.get_by_label(label).input_value() for label in ("Run A", "Run B")] == [run.run for run in pair]
    assert all(run.run in said for run in pair)


def test_reader_chooses_by_keyboard(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    a, _ = pair
    page.goto(f"compare.html?a={a.run}&b={a.run}")
    eventually(page.get_by_role("status").inner_text, "This is one run, twice. Choose another.")
    page.get_by_label("Run B").focus()
    page.keyboard.press(
        "ArrowDown" if page.get_by_label("Run B").evaluate("(s) => s.selectedIndex") == 0 else "ArrowUp"
    )
    page.wait_for_function("!document.querySelector('#compare-status').textContent.startsWith('This is one')")
    chosen = page.get_by_label("Run B").input_value()
    assert chosen != a.run and page.evaluate("location.search") == f"?a={a.run}&b={chosen}"


def test_runs_of_one_analysis_are_offered(page: Page, runs: list[Manifest], pair: tuple[Manifest, Manifest]) -> None:
    compared(page, *pair)
    offered = page.get_by_label("Run B").locator("option").evaluate_all("(all) => all.map((one) => one.value)")
    assert sorted(offered) == sorted(run.run for run in runs if run.analysis == pair[0].analysis)
    counts = Counter(run.analysis for run in runs)
    alone = next(run for run in runs if counts[run.analysis] == 1)
    page.get_by_label("Analysis").select_option(alone.analysis)
    only = f"This is the only run of {alone.analysis}. Execute another to compare it with."
    eventually(page.get_by_role("status").inner_text, only)
    assert page.get_by_label("Run A").input_value() == alone.run


def test_says_what_differs_and_nothing_else(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    said = compared(page, *pair)
    for same in ("Parameters", "Inputs", "Environment", "Hardware and time"):
        assert f"{same}: the same." in said
    assert page.get_by_role("status").inner_text().startswith("Same spec")


def test_numbers_stand_side_by_side_with_their_difference(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    """One number differs; `auc_low_control` and `auc_high_control` are the ends of its interval, and no rows."""
    a, b = sorted(pair, key=lambda run: -float(run.metrics["auc_control"]))
    said = compared(page, a, b)
    assert "1 of " in said and "numbers differ." in said
    page.locator("#comparison summary").press("Enter")  # no verdict rests on it, so it is folded
    rows = page.locator("#comparison details tbody tr")
    told = ["AUC control", "0.994 [0.988, 0.998]", "0.500 [0.250, 0.750]", "−0.494"]
    assert [row.locator("th, td").all_inner_texts() for row in rows.all()] == [told]


def test_figures_stand_side_by_side(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    a, b = pair
    compared(page, a, b)
    common = {name for name in a.outputs if name.startswith("figures/") and name in b.outputs}
    images = page.locator("#comparison img")
    assert images.count() == 2 * len(common)
    for image in images.all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0


def test_run_page_leads_here(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    page.goto(f"runs/{pair[0].analysis}/{pair[0].run}/index.html")
    page.get_by_role("link", name="compare with another run").click()
    page.locator("#comparison h2").first.wait_for()
    chosen = [page.get_by_label(label).input_value() for label in ("Run A", "Run B")]
    assert chosen[0] == pair[0].run != chosen[1]


def test_names_of_runs_are_whole_on_a_phone(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    compared(page, *pair)
    fits = """(select) => {
        const label = select.selectedOptions[0].textContent, style = getComputedStyle(select);
        const context = Object.assign(document.createElement("canvas").getContext("2d"), { font: style.font });
        const room = select.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        return context.measureText(label.slice(0, label.indexOf(select.value) + select.value.length)).width <= room;
    }"""
    for label in ("Run A", "Run B"):
        assert page.get_by_label(label).evaluate(fits)


def test_opened_as_a_file_it_says_what_to_do(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "compare.html").as_uri())
    assert "web server" in page.get_by_role("status").inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_problem(page: Page, pair: tuple[Manifest, Manifest], scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 375, "height": 800})
    compared(page, *pair)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
