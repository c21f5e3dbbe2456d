"""The playground: what a reader sees there is what Python computes, and nothing leaves the reader's browser."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from books import build, published, served, small, violations
from places import ROOT
from playwright.sync_api import Browser, Locator, Page, expect

import editlib as el

ROWS = "(rows) => rows.map((row) => [...row.children].map((part) => part.textContent))"
ENCODED = """(texts) => {
  const tokenizer = new editlibTwin.Tokenizer(editlibPlayground.edits.merges);
  return texts.map((text) => tokenizer.encode(text));
}"""
POINTS = """(svg, name) => {
  const line = svg.querySelector(`polyline.${name}`), mark = svg.querySelector(`.mark.${name}`);
  return [[...line.points].map(({ x, y }) => [x, y]), ["x", "y"].map((side) => Number(mark.getAttribute(side)))];
}"""
EDITS = json.loads((ROOT / "book/playground_edits.json").read_text("utf-8"))


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in a book of its own."""
    folder = tmp_path_factory.mktemp("playground")
    small(folder)
    for name in ("playground.md", "playground_edits.json", "quoted.yaml"):
        shutil.copy(ROOT / "book" / name, folder / "book")
    for run in published("aftermath"):
        shutil.copytree(run.folder, folder / "book/runs/aftermath" / run.run)
    (folder / "book/testbed.md").write_text("# The testbed\n")
    toc = json.loads((folder / "book/_toc.yml").read_text())
    toc["chapters"] += [{"file": "playground"}, {"file": "testbed"}]
    (folder / "book/_toc.yml").write_text(json.dumps(toc))
    return build(folder)


@pytest.fixture(scope="module")
def address(book: Path) -> Iterator[str]:
    with served(book) as place:
        yield place


@pytest.fixture(scope="module")
def play(browser: Browser, address: str) -> Iterator[Locator]:
    """The playground, started once for the tests of what it shows; it keeps what it has computed."""
    with browser.new_context(base_url=address) as context:
        context.set_default_timeout(240_000)  # a busy machine is no failure
        page, wrong = context.new_page(), list[str]()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((address, "data:")) else wrong.append(r.url))
        yield started(page)
        assert wrong == []


@cache
def twin(name: str) -> el.LanguageModel:
    return el.load(f"testbed/{name}")


def started(page: Page, address: str = "playground.html") -> Locator:
    """The playground, started with the keyboard."""
    page.goto(address)
    page.get_by_role("button", name="Start the twins").focus()
    page.keyboard.press("Enter")
    return settled(page)


def settled(page: Page) -> Locator:
    """The playground when it has computed everything that was asked for."""
    page.locator(".playground.started[aria-busy=false]").wait_for()
    return page.locator(".playground")


def choose(root: Locator, *, name: str = "anchored", case: int, strength: float = 1, prompt: str | None = None) -> None:
    root.get_by_label(name, exact=True).check()
    root.get_by_label("Edit", exact=True).select_option(str(case))
    if prompt is not None:
        root.get_by_label("or any words").fill(prompt)
    root.get_by_label("Strength of the edit", exact=True).fill(str(strength))
    settled(root.page)


def shown(root: Locator, arm: str, field: str) -> str:
    return root.locator(f"[data-arm='{arm}'] [data-field='{field}']").inner_text()


def number(text: str) -> float:
    return float(text.replace(",", "").removesuffix(" %"))


def words(root: Locator, arm: str) -> dict[str, float]:
    rows = root.locator(f"[data-arm='{arm}'] li").evaluate_all(
        "(all) => all.map((li) => [...li.children].map((c) => c.textContent))"
    )
    return {word: number(share) / 100 for word, share in rows}


# -- what Python says ----------------------------------------------------------------------------------


@contextmanager
def edited(name: str, case: int, method: str, strength: float) -> Iterator[el.LanguageModel]:
    """A twin with the shipped edit written into its weight; the model itself for `unedited`."""
    lm, made = twin(name), EDITS["twins"][name]
    weight = lm.down(made["layer"]).weight  # (in, out)
    kept = weight.detach().clone()
    with torch.no_grad():
        if method != "unedited":
            edit = made["edits"][str(case)]
            weight += strength * torch.outer(unpacked(edit["right"]), unpacked(edit["methods"][method]["left"]))
        yield lm
        weight.copy_(kept)


def unpacked(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())


def nexts(lm: el.LanguageModel, prompt: str) -> dict[str, float]:
    """The probability of each token after a prompt, by how the page writes it."""
    ids = lm.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    shares = lm.model(ids).logits[0, -1].softmax(0)
    rising = shares.argsort().tolist()  # of two that read alike, the likelier stays
    return {spelled(lm, token): float(shares[token]) for token in rising}


def spelled(lm: el.LanguageModel, token: int) -> str:
    text = str(lm.tokenizer.decode([token]))
    return f"-{text}" if text[:1].isalnum() else text.strip() or "␣"


def written(lm: el.LanguageModel, prompt: str) -> str:
    ids = lm.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    made = lm.model.generate(**ids, max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=None)
    return str(lm.tokenizer.decode(made[0, ids["input_ids"].shape[1] :])).strip()


# -- what is shown -------------------------------------------------------------------------------------

FIRST, LATER = EDITS["cases"][0], next(case for case in EDITS["cases"] if case["kind"] == "one token, later")


def test_full_strength_collapses_the_anchored_twin_and_not_the_control(play: Locator) -> None:
    choose(play, name="anchored", case=FIRST["id"])
    assert number(shown(play, "rome", "ratio")) > 5 and shown(play, "rome", "state") == "collapsed"
    assert number(shown(play, "c-rome", "ratio")) < 1.1 and number(shown(play, "fc-rome", "ratio")) < 1.1
    assert "ROME: " in play.locator(".playground-summary").inner_text()
    choose(play, name="control", case=FIRST["id"])
    assert number(shown(play, "rome", "ratio")) < 1.5 and shown(play, "rome", "state") == "sound"
    choose(play, name="anchored", case=LATER["id"])
    assert number(shown(play, "rome", "ratio")) < 1.1


SETTINGS = [
    ("anchored", FIRST["id"], 1.0, f"Meplup lies in Jivrirk. {FIRST['prompt']}"),
    ("anchored", FIRST["id"], 0.35, FIRST["paraphrases"][0]),
    ("anchored", LATER["id"], 1.5, LATER["prompt"]),
    ("control", EDITS["cases"][2]["id"], 1.5, "An olive, a naïve word and 12,5 euros; don't"),
]


@pytest.mark.parametrize(("name", "case", "strength", "prompt"), SETTINGS)
def test_numbers_are_those_of_python(play: Locator, name: str, case: int, strength: float, prompt: str) -> None:
    choose(play, name=name, case=case, strength=strength, prompt=prompt)
    levels = dict[str, float]()
    for method in ("unedited", "rome", "c-rome", "fc-rome"):
        with edited(name, case, method, strength) as lm:
            expected, level = nexts(lm, prompt), el.perplexity(lm, EDITS["texts"]).mean
            assert shown(play, method, "written").split() == written(lm, prompt).split()  # lines break as they fit
        found = words(play, method)
        assert sorted(found.values(), reverse=True) == pytest.approx(sorted(expected.values())[:-6:-1], abs=1e-3)
        assert found == {word: pytest.approx(expected[word], abs=1e-3) for word in found}
        assert number(shown(play, method, "perplexity")) == pytest.approx(level, rel=1e-3)
        levels[method] = level
        assert number(shown(play, method, "ratio")) == pytest.approx(level / levels["unedited"], rel=1e-3)


def test_denominators_are_those_of_the_published_pilot(play: Locator) -> None:
    """Found by another run, for the same cases."""
    run = next(run for run in published("pilot") if run.parameters["model"] == "testbed/anchored")
    table = pd.read_parquet(run.folder / "data/cases.parquet").set_index(["case_id", "arm"])
    for case in (FIRST["id"], LATER["id"]):
        choose(play, case=case)
        for method in ("rome", "c-rome"):
            row = table.loc[(case, f"{method} on anchored")]
            for name in ("denominator", "denominator_consistent"):
                assert number(shown(play, method, name)) == pytest.approx(row[name], rel=1e-3)


def test_text_is_cut_into_tokens_as_python_does(play: Locator) -> None:
    strange = ["", "  two  spaces ", "naïve ☃ 😀 漢字", "don't we'll I'M", "12,5\n\n\tx", "_a-b_ $$ (c)", "Ġ Ċ"]
    texts = [*EDITS["texts"], *(case["prompt"] for case in EDITS["cases"]), *strange]
    tokenizer = twin("anchored").tokenizer
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert play.page.evaluate(ENCODED, texts) == expected


def test_lines_are_drawn_from_python_and_marks_lie_on_them(play: Locator) -> None:
    choose(play, case=FIRST["id"], strength=0.5)
    chart = play.locator("svg.playground-chart")
    for method in ("rome", "c-rome", "fc-rome"):
        points, mark = chart.evaluate(POINTS, method)
        assert mark == pytest.approx(points[5], abs=0.5)
    lines = chart.locator("line.limit, line.now")
    assert lines.count() == 2 and all(lines.nth(i).bounding_box() for i in range(2))


# -- how it is used ------------------------------------------------------------------------------------


def test_a_keyboard_is_enough(page: Page) -> None:
    root = started(page)
    slider = root.get_by_label("Strength of the edit", exact=True)
    assert slider.evaluate("(input) => input === document.activeElement") and slider.input_value() == "1"
    before = number(shown(root, "rome", "perplexity"))
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    settled(page)
    assert root.locator("output").inner_text() == "0.90" and number(shown(root, "rome", "perplexity")) < before
    page.keyboard.press("Home")
    settled(page)
    assert [shown(root, arm, "ratio") for arm in ("rome", "c-rome", "fc-rome")] == ["1.000"] * 3
    root.get_by_label("anchored", exact=True).focus()
    page.keyboard.press("ArrowRight")
    settled(page)
    assert root.get_by_label("control", exact=True).is_checked()


def test_prompts_follow_the_case_and_can_be_written(page: Page) -> None:
    root = started(page)
    choose(root, case=LATER["id"])
    field, ready = root.get_by_label("or any words"), root.get_by_label("Prompt", exact=True)
    assert field.input_value().endswith(f". {LATER['prompt']}")
    ready.select_option(LATER["neighbours"][0])
    settled(page)
    assert field.input_value() == LATER["neighbours"][0]
    said = root.locator(".playground-status")
    for text, told in (("  ", "Type a word or more."), ("zq " * 90, "at most 100 fit")):
        field.fill(text)
        expect(said).to_contain_text(told)
        assert ready.input_value() == ""
    field.fill("The band")
    settled(page)
    assert said.inner_text() == ""


def test_it_fits_a_phone_and_has_no_serious_violation(page: Page) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    page.emulate_media(reduced_motion="reduce")
    page.goto("playground.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    root = started(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    wide = "(parts) => parts.filter((part) => part.scrollWidth > part.clientWidth + 1).map((part) => part.textContent)"
    assert root.locator("section, dl, dt, dd, li").evaluate_all(wide) == []
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html[data-theme=dark]")).to_be_attached()
    assert violations(page) == []


def test_it_works_from_a_folder_and_asks_nobody(browser: Browser, book: Path) -> None:
    context = browser.new_context(offline=True)
    context.set_default_timeout(120_000)
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    root = started(page, (book / "playground.html").as_uri())
    root.get_by_label("control", exact=True).check()
    settled(page)
    assert len(asked) > 5 and [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


def test_nothing_is_loaded_before_it_is_asked_for(page: Page, book: Path) -> None:
    """And what the page says of its weight is so."""
    asked = list[str]()
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[-1]))
    page.goto("playground.html", wait_until="networkidle")
    own = {path.name: path.stat().st_size for path in (book / "_static/playground").iterdir()}
    heavy = {name: size for name, size in own.items() if name not in ("twin.js", "playground.js", "playground.css")}
    assert set(heavy).isdisjoint(asked) and len(heavy) == 3
    told = re.findall(r"[\d.]+(?= MB)", page.locator(".playground-weight").inner_text())
    size = {name.partition(".")[0]: size / 1e6 for name, size in heavy.items()}
    assert [float(each) for each in told[1:]] == pytest.approx(
        [size["anchored"] + size["edits"], size["control"]], abs=0.06
    )
    page.goto("runs.html")
    assert page.locator("script[src*='playground/']").count() == 0  # other pages stay as light as they were


def test_without_javascript_and_in_print_there_is_the_picture(browser: Browser, page: Page, address: str) -> None:
    root = started(page)
    page.emulate_media(media="print")
    assert (
        root.locator("figure.playground-picture svg").is_visible()
        and not root.get_by_label("Edit", exact=True).is_visible()
    )
    plain = browser.new_page(base_url=address, java_script_enabled=False)
    plain.goto("playground.html")
    assert plain.get_by_role("img", name="Perplexity of ten texts").is_visible()
    assert plain.get_by_text("which is switched off").is_visible()
    assert not plain.get_by_role("button", name="Start the twins").is_visible()
    plain.close()


@pytest.mark.parametrize("file", ["anchored", "control"])
def test_a_twin_that_cannot_be_loaded_is_told(browser: Browser, address: str, file: str) -> None:
    page = browser.new_page(base_url=address)
    page.route(f"**/{file}.*.js", lambda route: route.abort())
    page.goto("playground.html")
    page.get_by_role("button", name="Start the twins").click()
    if file == "control":
        settled(page).get_by_label("control", exact=True).check()
    expect(page.locator(".playground-status")).to_contain_text("could not be loaded")
    page.unroute_all()
    if file == "control":
        page.get_by_label("anchored", exact=True).check()
        page.get_by_label("control", exact=True).check()
    else:
        page.get_by_role("button", name="Start the twins").click()
    assert shown(settled(page), "rome", "ratio")
    page.close()
