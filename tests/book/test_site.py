"""The built book in a real browser."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from urllib.parse import urldefrag

import pytest
from lxml import html
from playwright.sync_api import Page

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


CUT = """(blocks) => blocks.filter((pre) => pre.scrollWidth > pre.clientWidth + 1)
    .map((pre) => pre.textContent.slice(0, 80))"""


def test_every_page_can_be_read_on_a_phone_and_its_images_are_displayed_and_described(page: Page, site: Path) -> None:
    """No page scrolls sideways; no image loses its shape."""
    look = """(images) => Promise.all(images.map(async (image) => {
        image.loading = "eager";  // most wait until a reader comes near
        await image.decode();
        const shape = image.clientWidth / image.clientHeight / (image.naturalWidth / image.naturalHeight);
        return [image.alt, image.clientWidth, shape];
    }))"""
    seen = 0
    for name in pages(site):
        page.goto(name)
        for width in (375, 1400):
            page.set_viewport_size({"width": width, "height": 800})
            for described, shown, shape in page.locator("article img").evaluate_all(look):
                assert described and not described.endswith(".png"), name  # Sphinx falls back to the file's name
                assert shown > 250 and abs(shape - 1) < 0.02, f"{name} at {width} px: {described}"
                seen += 1
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width} px"
        cut = page.locator("article pre:visible").evaluate_all(CUT)
        assert not cut or name.startswith("runs/"), f"{name}: code that a wide window cuts: {cut}"
    assert seen > 80


def test_navigation_leads_to_every_page(page: Page) -> None:
    page.goto("index.html")
    here = page.locator("nav.bd-links a.reference.internal")
    targets = {urldefrag(link)[0] for link in here.evaluate_all("(links) => links.map((link) => link.href)")}
    assert len(targets) >= 8
    for target in targets:
        response = page.goto(target)
        assert response is not None and response.ok, target
        assert page.locator("article h1").is_visible(), target


@pytest.mark.parametrize(("scheme", "filters"), [("light", "none"), ("dark", "invert(1) hue-rotate(180deg)")])
def test_pictures_follow_the_theme(page: Page, scheme: Literal["light", "dark"], filters: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto("index.html")
    assert page.locator("article figure img").first.evaluate("(image) => getComputedStyle(image).filter") == filters
    page.emulate_media(color_scheme=scheme, media="print")
    assert page.locator("article figure img").first.evaluate("(image) => getComputedStyle(image).filter") == "none"


@pytest.mark.parametrize("name", ["methods", "fall-of-rome"])
def test_formulas_are_drawn_by_the_browser(page: Page, name: str) -> None:
    """As MathML that leaves nothing of how they are written, and on a phone none pushes the page sideways."""
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto(f"{name}.html")
    formulas = page.locator("article .math")
    drawn = formulas.evaluate_all("(all) => all.map((one) => one.querySelector('math')?.textContent ?? one.outerHTML)")
    assert drawn and [formula for formula in drawn if "\\" in formula or "{" in formula] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_audit_is_read_on_a_phone(page: Page) -> None:
    """Cards: the claim, the verdicts with the model's name, what was published."""
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto("claim-audit.html")
    tops = """(row) => [...row.querySelectorAll("th, .verdict, td:nth-child(2)")]
        .map((part) => part.getBoundingClientRect().top)"""
    for row in page.locator("table.claims tbody tr").all():
        claim, published, real, twins = row.evaluate(tops)
        assert claim < real < twins < published
    labels = "(row) => [3, 4].map((n) => getComputedStyle(row.querySelector(`td:nth-child(${n})`), '::before').content)"
    assert page.locator("table.claims tbody tr").first.evaluate(labels) == ['"SmolLM2"', '"Twins"']
    assert page.locator("table.claims tbody th p").first.evaluate("(text) => text.clientWidth") > 250
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_claim_and_verdicts_are_the_wide_columns_of_the_audit(page: Page) -> None:
    page.set_viewport_size({"width": 1400, "height": 800})
    page.goto("claim-audit.html")
    heads = page.locator("table.claims").first.locator("thead th")
    assert heads.all_inner_texts() == ["Claim", "Published", "SmolLM2", "Twins"]
    claim, published, *verdicts = heads.evaluate_all("(all) => all.map((one) => one.clientWidth)")
    assert min(claim, *verdicts) > published > 150


def test_papers_and_audit_lead_to_each_other(page: Page) -> None:
    page.goto("butterfly-effect.html")
    badges = page.locator("article li#a5 a")
    assert [text.split(":")[0] for text in badges.all_inner_texts()] == ["SmolLM2", "Twins"]
    badges.first.click()
    row = page.locator("tr#claim-a5")
    assert row.get_by_role("link", name="More").evaluate("(link) => link.href").endswith("butterfly-effect.html#a5")
    assert row.evaluate("(row) => row.matches(':target')")


def test_the_limits_of_the_sources_are_said_where_claims_are(page: Page) -> None:
    for name in ("claim-audit", "butterfly-effect", "fall-of-rome"):
        page.goto(f"{name}.html")
        assert "running text of both papers was not available" in page.locator("article .admonition").first.inner_text()


def test_head_of_a_page_tells_what_it_is(page: Page, site: Path) -> None:
    for name in ("index.html", "methods.html"):
        page.goto(name)
        assert page.locator("meta[name=viewport]").count() == 1
        for tag in ("name=description", "property='og:title'", "property='og:description'"):
            assert len(str(page.locator(f"meta[{tag}]").get_attribute("content"))) > 10
    page.goto("index.html")
    assert page.title() == "When one edit breaks a model"
    assert f"Version {version('editlib')}" in page.locator(".extra_footer").inner_text()


def test_numbers_are_written_one_way(site: Path) -> None:
    """No hyphen for a minus, no per cent sign without its space."""
    for name in ("index", "butterfly-effect", "fall-of-rome", "across", "claim-audit", "performance", "methods"):
        prose = html.parse(site / f"{name}.html").getroot().xpath("//article")[0]
        for code in prose.xpath("//pre | //code | //script | //style"):
            code.drop_tree()
        text = prose.text_content()
        assert re.findall(r"[\s(\[]-\d[\d.]*|\d%", text) == [], name


def test_dark_mode_toggles(page: Page) -> None:
    page.goto("index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {page.evaluate(background)}
    for _ in range(2):  # auto, light, dark, in the theme's order
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.evaluate(background))
    assert len(seen) == 2


def test_reader_who_prefers_dark_gets_dark(page: Page) -> None:
    page.emulate_media(color_scheme="dark")
    page.goto("index.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_search_finds_a_page(page: Page) -> None:
    page.goto("search.html?q=denominator")
    page.locator("#search-results li a").first.wait_for()
    assert "fall-of-rome" in " ".join(
        page.locator("#search-results li a").evaluate_all("(links) => links.map((link) => link.href)")
    )
