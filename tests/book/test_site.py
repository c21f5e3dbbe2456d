"""The built book in a real browser."""

from pathlib import Path
from urllib.parse import urldefrag

import pytest
from playwright.sync_api import Browser, Page

SHOWN = "(image) => image.complete && image.naturalWidth > 0"


def pages(site: Path) -> list[str]:
    """Every page a reader can reach, by its address."""
    found = (path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return sorted(page for page in found if not page.startswith("_"))


def displayed(page: Page, selector: str) -> bool:
    image = page.locator(selector).first
    image.scroll_into_view_if_needed()
    page.wait_for_function(SHOWN, arg=image.element_handle())
    return image.is_visible()


def test_landing_page_shows_the_scatter_of_the_pilot(page: Page) -> None:
    page.goto("index.html")
    assert displayed(page, "img[src*='scatter']")


def test_every_image_is_displayed_and_described(page: Page, site: Path) -> None:
    for name in pages(site):
        page.goto(name)
        for image in page.locator("article img").all():
            image.evaluate("(image) => { image.loading = 'eager' }")  # most wait until a reader comes near
            assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0, name
            described = image.get_attribute("alt") or ""  # Sphinx falls back to the file's name
            assert described and not described.endswith(".png"), f"{name}: {image.get_attribute('src')}"


def test_navigation_leads_to_every_page(page: Page) -> None:
    page.goto("index.html")
    here = page.locator("nav.bd-links a.reference.internal")
    targets = {urldefrag(link)[0] for link in here.evaluate_all("(links) => links.map((link) => link.href)")}
    assert len(targets) >= 8
    for target in targets:
        response = page.goto(target)
        assert response is not None and response.ok, target
        assert page.locator("article h1").is_visible(), target


@pytest.mark.parametrize("width", [375, 1280])
def test_no_page_scrolls_sideways(page: Page, site: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for name in pages(site):
        page.goto(name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_dark_mode_toggles(page: Page) -> None:
    page.goto("index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {page.evaluate(background)}
    for _ in range(2):  # auto, light, dark, in the theme's order
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.evaluate(background))
    assert len(seen) == 2


def test_reader_who_prefers_dark_gets_dark(browser: Browser, address: str) -> None:
    page = browser.new_page(base_url=address, color_scheme="dark")
    page.goto("index.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.close()


def test_search_finds_a_page(page: Page) -> None:
    page.goto("search.html?q=denominator")
    page.locator("#search-results li a").first.wait_for()
    assert "fall-of-rome" in " ".join(
        page.locator("#search-results li a").evaluate_all("(links) => links.map((link) => link.href)")
    )
