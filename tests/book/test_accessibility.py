"""Pages that everybody can read: axe-core finds no serious violation in light or dark, and a keyboard is enough."""

import pytest
from books import violations
from playwright.sync_api import Page

PAGES = ("index.html", "butterfly-effect.html", "fall-of-rome.html", "claim-audit.html", "glossary.html")


def show(page: Page, name: str, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    page.goto(name)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(page: Page, name: str, scheme: str) -> None:
    show(page, name, scheme)
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_a_phone(page: Page, scheme: str) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    show(page, "butterfly-effect.html", scheme)  # here tables scroll
    assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_an_explored_picture(page: Page, scheme: str) -> None:
    show(page, "butterfly-effect.html", scheme)
    root = page.locator(".explore").first
    root.get_by_role("button", name="Explore").press("Enter")
    root.locator(".bk-Figure").wait_for()
    root.get_by_label("Case", exact=True).select_option(index=1)
    root.locator(".explore-case table").wait_for()
    assert violations(page) == []


def test_whatever_scrolls_can_be_scrolled_by_keyboard(page: Page) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    scrolling = """() => [...document.querySelectorAll("article *")].filter((element) => {
        const wide = element.scrollWidth > element.clientWidth + 1;
        const scrolls = wide && ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
        return scrolls && element.tabIndex < 0 && !element.querySelector("a, button, select, input, [tabindex='0']");
    }).map((element) => element.outerHTML.slice(0, 90))"""
    for name in PAGES:
        page.goto(name)
        assert page.evaluate(scrolling) == [], name


def test_a_keyboard_leads_from_the_landing_page_to_a_run(page: Page) -> None:
    page.goto("index.html")
    link = page.locator("article figure a[href*='runs/pilot/']").first
    for _ in range(80):
        page.keyboard.press("Tab")
        if link.evaluate("(link) => link === document.activeElement"):
            break
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.locator(".run-header").is_visible()


def test_focus_is_visible(page: Page) -> None:
    page.goto("index.html")
    button = page.get_by_role("button", name="Explore").first
    page.keyboard.press("Tab")  # a keyboard is in use
    button.focus()
    assert button.evaluate("(button) => getComputedStyle(button).outlineStyle") != "none"
