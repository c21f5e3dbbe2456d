"""The page on which readers put two runs side by side."""

from pathlib import Path
from typing import Any

import pytest
from books import published, violations
from playwright.sync_api import Browser, Page

from editlib.runs.manifest import Manifest


@pytest.fixture(scope="module")
def pair(site: Path) -> tuple[Manifest, Manifest]:
    """Two runs, of one analysis if there are."""
    runs = published()
    return next(
        ((a, b) for a in runs for b in runs if a.run != b.run and a.analysis == b.analysis), (runs[0], runs[-1])
    )


def compared(page: Page, a: Manifest, b: Manifest) -> str:
    page.goto(f"compare.html?a={a.run}&b={b.run}")
    page.locator("#comparison h2").first.wait_for()
    return page.locator("#comparison").inner_text()


def test_address_names_the_runs(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    said = compared(page, *pair)
    assert [page.get_by_label(label).input_value() for label in ("Run A", "Run B")] == [run.run for run in pair]
    assert all(run.run in said for run in pair)


def test_reader_chooses_by_keyboard(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    a, b = pair
    compared(page, a, a)
    assert page.get_by_role("status").inner_text() == "This is one run, twice."
    page.get_by_label("Run B").focus()
    page.keyboard.press(
        "ArrowDown" if page.get_by_label("Run B").evaluate("(s) => s.selectedIndex") == 0 else "ArrowUp"
    )
    page.wait_for_function("!document.querySelector('#compare-status').textContent.startsWith('This is one')")
    assert page.url.partition("&b=")[2] == page.get_by_label("Run B").input_value() != a.run


def test_says_what_differs_and_nothing_else(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    a, b = pair
    said = compared(page, a, b)
    names = a.parameters.keys() | b.parameters.keys()
    differing = {name for name in names if a.parameters.get(name, "–") != b.parameters.get(name, "–")}
    table = page.locator(".compare-table", has_text="Parameters:")
    assert (
        set(table.locator("tbody th").all_inner_texts()) == differing if differing else "Parameters: the same." in said
    )
    assert page.get_by_role("status").inner_text().startswith("Same spec" if a.spec == b.spec else "Different specs")


def test_numbers_stand_side_by_side_with_their_difference(page: Page, pair: tuple[Manifest, Manifest]) -> None:
    a, b = pair
    compared(page, a, b)
    both = a.metrics.keys() & b.metrics.keys()
    folded = {n for n in both for e in ("_low", "_high") if n.endswith(e) and n.removesuffix(e) in both}
    shown = page.locator(".compare-table", has_text="Headline").locator("tbody th").all_text_contents()
    changed = {name for name in both - folded if a.metrics[name] != b.metrics[name]}
    assert set(shown) == (both - folded if changed else set())


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
    assert page.get_by_label("Run A").input_value() == pair[0].run != page.get_by_label("Run B").input_value()


def test_opened_as_a_file_it_says_what_to_do(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "compare.html").as_uri())
    assert "web server" in page.get_by_role("status").inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_problem(
    browser: Browser, address: str, pair: tuple[Manifest, Manifest], scheme: Any
) -> None:
    page = browser.new_page(base_url=address, color_scheme=scheme, viewport={"width": 375, "height": 800})
    compared(page, *pair)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.close()
