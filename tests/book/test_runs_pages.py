"""The page of a run: what was executed, how to repeat and cite it, its files."""

import hashlib
import importlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import pandas as pd
import pytest
from books import ROOT, build, eventually, rewritten, small, text_of, violations, warned
from lxml import html
from playwright.sync_api import Page

from editlib.runs import analyses, citation
from editlib.runs.manifest import Manifest, read_manifest
from editlib.runs.plan import plan
from editlib.runs.reach import code_hash


@pytest.fixture(scope="module")
def run(runs: list[Manifest]) -> Manifest:
    return next(run for run in runs if run.analysis == "pilot")


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
    made = {"data/cases.csv", "data/tasks.csv", f"pilot-{run.run}.zip"}
    assert made == set(names) - {"data/tasks.parquet"} - wanted
    for name, link in zip(names, links, strict=True):
        if name not in made:
            assert page.request.get(link).body() == (run.folder / name).read_bytes(), name


def test_a_saved_file_names_its_run(page: Page, run: Manifest) -> None:
    page.goto(address_of(run))
    named = {"Data: cases.parquet": f"{run.run}-cases.parquet", "BibTeX": f"{run.run}-citation.bib",
             "Notebook": f"pilot-{run.run}.ipynb", "cases.csv": f"{run.run}-cases.csv"}  # fmt: skip
    for text, name in named.items():
        with page.expect_download() as saved:
            page.get_by_role("link", name=text, exact=True).click()
        assert saved.value.suggested_filename == name


def test_tables_as_csv_and_the_whole_folder_as_one_file(site: Path, run: Manifest, tmp_path: Path) -> None:
    folder = site / f"runs/pilot/{run.run}"
    table = pd.read_csv(folder / "data/cases.csv")
    pd.testing.assert_series_equal(
        table["denominator"], pd.read_parquet(run.folder / "data/cases.parquet")["denominator"]
    )
    with ZipFile(folder / f"pilot-{run.run}.zip") as archive:
        archive.extractall(tmp_path)
    (inside,) = tmp_path.iterdir()
    assert read_manifest(inside.rename(tmp_path / run.run)).difference() is None


def test_command_asks_for_the_same_parameters(site: Path, runs: list[Manifest]) -> None:
    current = [run for run in runs if analyses.read(run.analysis, ROOT).parameters.keys() == run.parameters.keys()]
    assert current  # the notebooks of the others have other parameters by now
    for run in current:
        (command, *_) = html.parse(site / address_of(run)).xpath("//*[contains(@class, 'run-again')]//pre")
        words = shlex.split(command.text_content())
        assert words[:5] == ["editlib", "run", run.analysis, "--profile", run.profile]
        given = dict(zip(words[6::3], words[7::3], strict=True))
        analysis = analyses.read(run.analysis, ROOT)
        usual = analysis.resolve(run.profile, {})
        assert {**usual, **analysis.resolve(run.profile, given)} == run.parameters, run.run
        assert [name for name in given if usual[name] == run.parameters[name]] == []


def test_title_and_model_are_those_of_the_manifest(page: Page, runs: list[Manifest]) -> None:
    run = next(run for run in runs if run.analysis == "performance")  # its notebook's heading names another model
    page.goto(address_of(run))
    assert (
        page.locator("article h1").inner_text().removesuffix("#") == f"{run.title} · full · {run.parameters['model']}"
    )
    assert page.locator(".run-header dd").first.locator("code").first.inner_text() == run.parameters["model"]


def test_runs_are_found_in_the_catalogue_and_not_in_the_way(page: Page, runs: list[Manifest], run: Manifest) -> None:
    page.goto("runs.html")
    assert page.locator("nav.bd-links a[href*='runs/']").count() == 0
    for link in page.locator(".prev-next-area a").evaluate_all("(links) => links.map((link) => link.href)"):
        assert "/runs/" not in link
    page.goto(address_of(run))
    assert page.locator(".prev-next-area a").count() == 0
    page.goto("search.html?q=collapse")
    page.locator("#search-results li a").nth(5).wait_for()
    hits = page.locator("#search-results li a").evaluate_all("(links) => links.map((link) => link.href)")
    assert [hit for hit in hits[:10] if "/runs/" in hit] == []


def test_runs_of_one_spec_link_to_each_other(site: Path, runs: list[Manifest]) -> None:
    for run in runs:
        (header,) = html.parse(site / address_of(run)).xpath("//*[contains(@class, 'run-header')]")
        linked = [link.text_content() for link in header.xpath(".//a[contains(@class, 'reference internal')]")]
        assert {text for text in linked if re.fullmatch(r"[0-9a-f]{12}", text)} == {
            other.run for other in runs if other.spec == run.spec and other.run != run.run
        }


def test_parameters_of_the_notebook_are_a_card_and_defaults_are_hidden(page: Page, run: Manifest) -> None:
    page.goto(address_of(run))
    card = page.locator(".tag_injected-parameters")
    assert card.count() == 1 and "seed" in card.inner_text()
    assert page.locator(".tag_parameters").count() == 0


def test_header_works_on_a_phone_by_keyboard_in_the_dark(page: Page, run: Manifest) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 375, "height": 800})
    page.goto(address_of(run))
    for part in ("again", "cite", "parameters"):
        page.locator(f".run-{part} summary").focus()
        page.keyboard.press("Enter")
        page.locator(f".run-{part}[open]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_problem(page: Page, run: Manifest, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    assert violations(opened(page, run)) == []


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


def page_of(site: Path) -> Path:
    """The only run's page."""
    return next(iter(site.glob("runs/pilot/*/index.html")))


@pytest.mark.slow
def test_known_address_gives_links_to_the_source_and_launch_buttons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = read_manifest(small(tmp_path)).git.commit
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/some-project")
    html = page_of(build(tmp_path)).read_text("utf-8")
    assert f'href="https://github.com/someone/some-project/blob/{commit}/notebooks/pilot.py"' in html
    assert "https://colab.research.google.com/github/someone/some-project/blob/main/book/runs/pilot/" in html
    assert re.search(r"https://mybinder\.org/v2/gh/someone/some-project/main\?urlpath=lab/tree/book/runs/pilot/", html)


def test_unknown_address_gives_a_command_and_no_link_to_anywhere(site: Path, run: Manifest) -> None:
    page = site / address_of(run)
    assert f"git show {run.git.commit}:notebooks/pilot.py" in text_of(page)
    assert not re.search("colab|mybinder|blob/", page.read_text("utf-8"))


@pytest.mark.parametrize("older", [(), ("notebook",), ("notebook", "code")])
def test_page_says_what_changed_since(checkout: ModuleType, run: Manifest, older: tuple[str, ...]) -> None:
    inputs = plan("pilot", root=ROOT).inputs
    now = {name: inputs[name] for name in ("notebook", "code")}
    then = replace(run, inputs=replace(run.inputs, **now | dict.fromkeys(older, "0" * 64)))
    said = checkout.changed(then, ROOT)
    assert said == [f"the {name}" for name in older]


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    return importlib.import_module("checkout")


def test_older_code_is_said_on_the_page(site: Path, runs: list[Manifest]) -> None:
    """The runs of the book may be newer or older than the code; what a page says is what `changed` finds."""
    for run in runs:
        source = (ROOT / f"notebooks/{run.analysis}.py").read_bytes()
        now = {"notebook": hashlib.sha256(source).hexdigest(), "code": code_hash(source.decode("utf-8"))}
        page = (site / address_of(run)).read_text("utf-8")
        assert ('<p class="run-older">' in page) == (
            run.inputs.notebook != now["notebook"] or run.inputs.code != now["code"]
        )


# -- folders that are no runs, and runs that pages cannot show -------------------------------------------


def test_what_is_no_run_never_breaks_the_book(tmp_path: Path) -> None:
    folder = small(tmp_path)
    others = {".staging-deadbeef": None, "local-0123456789ab": None, "0123456789ab": "{", "local-[a]": "{}"}
    for name, manifest in others.items():
        other = folder.with_name(name)
        other.mkdir()
        shutil.copy(folder / "index.ipynb", other)
        if manifest is not None:
            (other / "manifest.json").write_text(manifest)
    shutil.copytree(folder, folder.with_name("f" * 12))  # named otherwise than its manifest says
    (shutil.copytree(folder, folder.with_name("e" * 12)) / "figures/elsewhere.png").symlink_to("/etc/hostname")
    site = build(tmp_path)
    assert [page.parent.name for page in site.glob("runs/*/*/*.html")] == [folder.name]
    said = text_of(site / "runs.html")
    assert "5 folders could not be read" in said and "staging" not in said
    assert all(
        f"runs/pilot/{name}" in said for name in ("local-0123456789ab", "0123456789ab", "local-[a]", "f" * 12, "e" * 12)
    )
    assert str(tmp_path) not in said


def test_local_runs_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small(tmp_path)
    local = rewritten(shutil.copytree(folder, folder.with_name("copy")), local=True, seconds=1.0)
    monkeypatch.setenv("EDITLIB_PUBLISHED_ONLY", "1")
    site = build(tmp_path)
    assert {page.name for page in site.glob("runs/pilot/*")} == {folder.name}
    assert local.run not in (site / "runs.html").read_text("utf-8") + (site / "runs.json").read_text("utf-8")


def test_outputs_that_need_a_script_are_named_and_nothing_is_fetched(tmp_path: Path) -> None:
    """JSON, LaTeX, a plot of Plotly, pictures of another server, formulas in prose."""
    folder = small(tmp_path)
    path = folder / "index.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    elsewhere = "https://elsewhere.example/a"
    shown: list[dict[str, Any]] = [
        {"application/json": {"a": 1}, "text/plain": "<IPython.core.display.JSON object>"},
        {"text/latex": "$\\frac12$"},
        {"application/vnd.plotly.v1+json": {"data": []}, "text/html": f"<script src='{elsewhere}.js'></script>"},
        {"text/html": f"<p>one</p><img src={elsewhere}.png>"},
        {"text/markdown": f"![two]({elsewhere}.png) and ${{math}}`x`"},
    ]
    cell = next(cell for cell in notebook["cells"] if cell.get("outputs"))
    cell["outputs"] += [{"output_type": "display_data", "metadata": {}, "data": data} for data in shown]
    prose = f"![three]({elsewhere}.png)\n\n```{{math}}\n\\frac12\n```\n\n{{math}}`y^2`\n"
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "id": "prose", "source": prose})
    path.write_text(json.dumps(notebook), "utf-8")
    run = rewritten(folder, local=True)
    assert warned(tmp_path) == ""
    page = tmp_path / "_build/html/runs/pilot" / run.folder.name / "index.html"
    tree = html.parse(page)
    assert [link for link in tree.xpath("//@src") if "//" in link] == []
    assert "mathjax" not in page.read_text("utf-8").lower()
    said = text_of(page)
    for form in ("application/json", "text/latex", "application/vnd.plotly.v1+json, text/html", "text/html"):
        assert f"(The notebook has this as {form}, which a page cannot show.)" in said
    assert ["".join(formula.itertext()) for formula in tree.iter("math")] == ["12", "y2"]  # drawn
