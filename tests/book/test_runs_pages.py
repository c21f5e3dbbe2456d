"""The page of a run: what was executed, how to repeat and cite it, its files."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from books import ROOT, build, eventually, published, small, violations
from playwright.sync_api import Browser, Page

from editlib.runs import analyses, citation
from editlib.runs.manifest import Manifest, write


@pytest.fixture(scope="module")
def run(site: Path) -> Manifest:
    return published("pilot")[0]


def address_of(run: Manifest) -> str:
    return f"runs/{run.analysis}/{run.run}/index.html"


def opened(page: Page, run: Manifest) -> Page:
    """The run's page with everything unfolded."""
    page.goto(address_of(run))
    page.locator(".run-folds details").evaluate_all("(folds) => folds.forEach((fold) => { fold.open = true })")
    return page


def test_header_says_what_was_executed(page: Page, run: Manifest) -> None:
    page.goto(address_of(run))
    header = page.locator(".run-header").inner_text()
    facts = [run.run, run.spec, run.finished[:10], run.profile, run.hardware.cpu, f"{run.hardware.cores} cores"]
    asked = [str(run.parameters["seed"]), f"{run.parameters['n']:,}", *run.inputs.models, *run.inputs.data]
    assert [fact for fact in (*facts, *asked) if str(fact) not in header] == []


def test_every_parameter_is_there_folded(page: Page, run: Manifest) -> None:
    page.goto(address_of(run))
    folded = page.locator(".run-parameters")
    assert folded.get_attribute("open") is None
    folded.locator("summary").press("Enter")
    eventually(folded.locator("dt").all_inner_texts, list(run.parameters))


def test_citation_is_that_of_the_command_line_and_can_be_copied(page: Page, run: Manifest) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    blocks = opened(page, run).locator(".run-cite .highlight")
    for block, text in zip(blocks.all(), (citation.bibtex(run), citation.apa(run)), strict=True):
        block.hover()
        block.locator("button.copybtn").click()
        block.locator("button.copybtn.success").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").strip() == text.strip()


def test_downloads_are_the_files_of_the_run(page: Page, run: Manifest) -> None:
    page.goto(address_of(run))
    links = page.locator(".run-header a.download").evaluate_all("(links) => links.map((link) => link.href)")
    names = [link.partition(f"/{run.run}/")[2] for link in links]
    wanted = {"index.ipynb", "manifest.json", "ro-crate-metadata.json", "citation.bib", "data/cases.parquet"}
    assert wanted <= set(names)
    for name, link in zip(names, links, strict=True):
        assert page.request.get(link).body() == (run.folder / name).read_bytes(), name


def test_command_asks_for_the_same_parameters(page: Page, site: Path) -> None:
    for run in published():
        words = shlex.split(opened(page, run).locator(".run-again pre").first.inner_text())
        assert words[:5] == ["editlib", "run", run.analysis, "--profile", run.profile]
        given = dict(zip(words[6::3], words[7::3], strict=True))
        analysis = analyses.read(run.analysis, ROOT)
        usual = analysis.resolve(run.profile, {})
        assert {**usual, **analysis.resolve(run.profile, given)} == run.parameters, run.run
        assert [name for name in given if usual[name] == run.parameters[name]] == []


def test_runs_of_one_spec_link_to_each_other(page: Page, site: Path) -> None:
    runs = published()
    for run in runs:
        page.goto(address_of(run))
        linked = page.locator(".run-header a.reference.internal").all_inner_texts()
        assert {text for text in linked if re.fullmatch(r"[0-9a-f]{12}", text)} == {
            other.run for other in runs if other.spec == run.spec and other.run != run.run
        }


def test_parameters_of_the_notebook_are_a_card_and_defaults_are_hidden(page: Page, run: Manifest) -> None:
    page.goto(address_of(run))
    card = page.locator(".tag_injected-parameters")
    assert card.count() == 1 and "seed" in card.inner_text()
    assert page.locator(".tag_parameters").count() == 0


def test_header_works_on_a_phone_by_keyboard_in_the_dark(browser: Browser, address: str, run: Manifest) -> None:
    page = browser.new_page(base_url=address, viewport={"width": 375, "height": 800}, color_scheme="dark")
    page.goto(address_of(run))
    for part in ("again", "cite", "parameters"):
        page.locator(f".run-{part} summary").focus()
        page.keyboard.press("Enter")
        page.locator(f".run-{part}[open]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_problem(browser: Browser, address: str, run: Manifest, scheme: Any) -> None:
    page = browser.new_page(base_url=address, color_scheme=scheme)
    assert violations(opened(page, run)) == []
    page.close()


def test_keyboard_leads_from_the_landing_page_to_a_run(page: Page) -> None:
    """With Tab and Enter alone, through the list of runs."""
    page.goto("index.html")
    for wanted in ("runs.html", r"runs/[^/]+/[0-9a-f]{12}/index.html"):
        for _ in range(300):
            page.keyboard.press("Tab")
            focused = page.evaluate("document.activeElement.matches('article *') && document.activeElement.href || ''")
            if re.search(f"/{wanted}$", focused):
                break
        with page.expect_navigation():
            page.keyboard.press("Enter")
    page.locator(".run-header").wait_for()


# -- what depends on the checkout ----------------------------------------------------------------------


def page_of(site: Path) -> str:
    """The HTML of the only run's page."""
    return next(iter(site.glob("runs/pilot/*/index.html"))).read_text("utf-8")


def test_known_address_gives_links_to_the_source_and_launch_buttons(tmp_path: Path) -> None:
    commit = json.loads((small(tmp_path) / "manifest.json").read_text("utf-8"))["git"]["commit"]
    github = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "someone/some-project"}
    html = page_of(build(tmp_path, **github))
    assert f'href="https://github.com/someone/some-project/blob/{commit}/notebooks/pilot.py"' in html
    assert "https://colab.research.google.com/github/someone/some-project/blob/main/book/runs/pilot/" in html
    assert re.search(r"https://mybinder\.org/v2/gh/someone/some-project/main\?urlpath=lab/tree/book/runs/pilot/", html)


def test_unknown_address_gives_a_command_and_no_link_to_anywhere(tmp_path: Path) -> None:
    commit = json.loads((small(tmp_path) / "manifest.json").read_text("utf-8"))["git"]["commit"]
    html = page_of(build(tmp_path, GITHUB_SERVER_URL="", GITHUB_REPOSITORY=""))
    assert f"git show {commit}:notebooks/pilot.py" in re.sub("<[^>]+>", "", html)
    assert "colab" not in html and "mybinder" not in html and "blob/" not in html


@pytest.mark.parametrize("older", [(), ("notebook",), ("notebook", "code")])
def test_page_says_what_changed_since(tmp_path: Path, older: tuple[str, ...]) -> None:
    folder = small(tmp_path)

    plan = analyses.plan("pilot", root=ROOT)
    record = json.loads((folder / "manifest.json").read_text("utf-8"))
    record["inputs"] |= {name: plan.inputs[name] for name in ("notebook", "code")} | {name: "0" * 64 for name in older}
    folder.rename(folder.with_name(write(record, folder).run))
    html = page_of(build(tmp_path))
    said = re.search('<p class="run-older">(.*?)</p>', html)
    assert bool(said) == bool(older)
    if said:
        assert ("notebook" in said[1], "package" in said[1]) == ("notebook" in older, "code" in older)
