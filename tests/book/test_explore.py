"""Looking closer: a picture becomes an interactive plot when a reader asks for it, and never before."""

import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from books import eventually
from places import ROOT
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

BUDGET = 1_600_000  # bytes of a page before interaction
LABELS = {
    "perplexity_mean": "Perplexity",
    "perplexity_ratio": "Times unedited",
    "denominator": "Denominator",
    "denominator_consistent": "Consistent denominator",
}
PLACE = """(root, [name, column, wanted]) => {
  const view = Bokeh.index.roots.find((found) => root.contains(found.el));
  const data = view.model.document.get_model_by_name(name).data, i = data[column].indexOf(wanted);
  const { left, top } = view.el.getBoundingClientRect(), { x_scale, y_scale } = view.frame;
  return [left + x_scale.compute(data.x[i]), top + y_scale.compute(data.y[i])];
}"""
RANGES = """(root) => {
  const { x_range: x, y_range: y } = Bokeh.index.roots.find((found) => root.contains(found.el)).model;
  return [x.start, x.end, y.start, y.end];
}"""
IN_SIGHT = "(part) => { const { top, bottom } = part.getBoundingClientRect(); return top < innerHeight && bottom > 0; }"
SHOWN = """(root, name) => {
  const { document } = Bokeh.index.roots.find((found) => root.contains(found.el)).model;
  return document.get_model_by_name(name).data.y;
}"""


DRAWN = """(root, name) => {
  const { document } = Bokeh.index.roots.find((found) => root.contains(found.el)).model;
  const { x, y } = document.get_model_by_name(name).data;
  return { x: [...x], y: [...y] };
}"""


def explored(page: Page, address: str = "index.html") -> Locator:
    """The first picture of a page that can be explored, after its button was pressed with the keyboard."""
    page.goto(address)
    root = page.locator(".explore").first
    button = root.get_by_role("button", name="Explore")
    button.focus()
    page.keyboard.press("Enter")
    root.locator(".bk-Figure").wait_for()
    root.get_by_role("status").filter(has_text="Loading").wait_for(state="hidden")
    return root


def edits(root: Locator) -> pd.DataFrame:
    """The published table behind a plot, in the view that is shown."""
    analysis, run = str(root.get_attribute("data-explore")).split("-scatter.")
    frame = pd.read_parquet(ROOT / f"book/runs/{analysis}/{run}/data/cases.parquet")
    return frame[frame["arm"] == root.get_by_label("Edited by", exact=True).input_value()]


def worst(root: Locator) -> pd.Series:
    """The edit that stands highest: no other point lies on it."""
    frame = edits(root)
    return frame.loc[frame["perplexity_mean"].idxmax()]


def place(root: Locator, series: str, row: pd.Series) -> tuple[float, float]:
    """Where a case is drawn in the window."""
    root.locator(".bk-Figure").scroll_into_view_if_needed()
    x, y = root.evaluate(PLACE, [series, "x", int(row["case_id"])])
    return x, y


def test_explore_is_pressed_by_keyboard_and_the_picture_comes_back(page: Page) -> None:
    root = explored(page)
    back = root.get_by_role("button", name="Show picture")
    assert back.evaluate("(button) => button === document.activeElement")
    assert not root.locator("img").is_visible()
    page.keyboard.press("Enter")
    assert root.locator("img").is_visible() and not root.locator(".bk-Figure").is_visible()
    root.get_by_role("button", name="Explore").press("Enter")
    assert root.locator(".bk-Figure").is_visible()


def test_every_edit_is_drawn(page: Page) -> None:
    root = explored(page)
    frame = edits(root).dropna(subset="kind")
    counts = {kind: len(root.evaluate(SHOWN, kind)) for kind in frame["kind"].unique()}
    assert counts == frame["kind"].value_counts().to_dict()


def test_hovering_tells_what_was_edited_and_measured(page: Page) -> None:
    root = explored(page)
    row = worst(root)
    page.mouse.move(*place(root, row["kind"], row))
    expect(tip(page)).to_contain_text(row["target_new"])
    text = tip(page).inner_text()
    prompt = row["prompt"].replace("{}", row["subject"])
    facts = [str(row["case_id"]), prompt, f"{row['target_true']} → {row['target_new']}", row["kind"], row["arm"]]
    for name in ("perplexity_mean", "perplexity_ratio", "denominator", "denominator_consistent"):
        assert math.isclose(number(text, LABELS[name]), row[name], rel_tol=0.01)
    assert [fact for fact in facts if fact not in text] == []


def tip(page: Page) -> Locator:
    return page.locator(".bk-tooltip-content")


def number(text: str, label: str) -> float:
    """What a tooltip says beside a label."""
    found = re.search(rf"^{label}\s+(\S+)$", text, re.MULTILINE)
    assert found, text
    return float(found[1].replace(",", ""))


def test_a_box_zooms_in_and_reset_zooms_out(page: Page) -> None:
    root = explored(page)
    row = worst(root)
    x, y = place(root, row["kind"], row)
    before = root.evaluate(RANGES)
    tool = root.locator("[title^='Box Zoom']")
    tool.click()
    expect(tool).to_contain_class("bk-active")
    page.mouse.move(x - 10, y - 5)
    page.mouse.down()
    page.mouse.move(x + 40, y + 60, steps=4)
    page.mouse.up()
    eventually(lambda: root.evaluate(RANGES) != before, True)
    after = root.evaluate(RANGES)
    assert before[0] < after[0] < row["case_id"] < after[1] < before[1]
    assert before[2] < after[2] < row["perplexity_mean"]
    root.locator("[title='Reset']").click()
    eventually(lambda: root.evaluate(RANGES) == pytest.approx(before), True)


def test_a_click_opens_the_case(page: Page) -> None:
    root = explored(page)
    row = worst(root)
    page.mouse.click(*place(root, row["kind"], row))
    panel = root.locator(".explore-case")
    panel.get_by_text(f"Case {row['case_id']}", exact=True).wait_for()
    label, *arms = panel.locator("thead th").all_inner_texts()
    assert label == "Edited by" and len(arms) >= 3 and row["arm"] in arms  # by every method
    assert {"Perplexity", "Denominator", "Efficacy"} <= set(panel.locator("tbody th").all_inner_texts())
    assert "below the plot" in root.locator(".explore-note").inner_text()
    eventually(lambda: panel.evaluate(IN_SIGHT), True)
    assert panel.locator(".explore-edits").evaluate("(box) => box.scrollWidth <= box.clientWidth")
    with page.expect_navigation():
        panel.get_by_role("link").click()
    assert f"runs/pilot/{str(page.url).split('/')[-2]}/" in page.url and page.locator(".run-header").is_visible()


def test_a_case_can_be_chosen_by_keyboard(page: Page) -> None:
    root = explored(page)
    wanted = edits(root)["case_id"].sort_values().iloc[1]
    for _ in range(2):  # from the button over the choice of a method
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    root.locator(".explore-case").get_by_text(f"Case {wanted}", exact=True).wait_for()
    assert len(root.evaluate(SHOWN, "chosen")) == 1


def test_another_method_is_shown_at_the_same_scale(page: Page) -> None:
    root = explored(page)
    before, ranges = root.evaluate(SHOWN, "one token, first"), root.evaluate(RANGES)
    choice = root.get_by_label("Edited by", exact=True)
    choice.select_option(next(arm for arm in choice.locator("option").all_inner_texts() if arm.startswith("c-rome")))
    assert max(root.evaluate(SHOWN, "one token, first")) < max(before)
    assert root.evaluate(RANGES) == ranges


def test_a_series_is_hidden_by_its_legend(page: Page) -> None:
    root = explored(page)
    legend = root.locator(".bk-Legend .bk-item").first
    legend.scroll_into_view_if_needed()
    legend.click()
    visible = """(root) => Bokeh.index.roots.find((found) => root.contains(found.el)).model.renderers
        .filter((renderer) => !renderer.visible).map((renderer) => renderer.data_source.name)"""
    assert root.evaluate(visible) == ["one token, first"]


@pytest.mark.parametrize("number", [0, 1], ids=["smollm2", "anchored"])
def test_sequences_are_lines_whose_points_tell_the_edit(page: Page, number: int) -> None:
    page.goto("butterfly-effect.html")
    root = page.locator(".explore[data-explore^='sequential-']").nth(number)
    root.get_by_role("button", name="Explore").press("Enter")
    root.locator(".bk-Figure").wait_for()
    root.get_by_role("status").filter(has_text="Loading").wait_for(state="hidden")
    heights = root.evaluate(SHOWN, "rome")
    assert len(heights) > 2 and len(root.evaluate(SHOWN, "rome median")) > 2
    root.locator(".bk-Figure").scroll_into_view_if_needed()
    page.mouse.move(*root.evaluate(PLACE, ["rome", "y", max(heights)]))
    for text in ("rome", "→", "Sample"):
        expect(tip(page)).to_contain_text(text)


@pytest.mark.parametrize(
    ("name", "series", "sizes"),
    [
        ("smollm2/denominator/parts", "arm", "denominator"),
        ("consistent-keys/comparison", "arm", "case_id"),
    ],
)
def test_edits_are_drawn_by_their_sizes(page: Page, name: str, series: str, sizes: str, sources: Path) -> None:
    called, picture = name.rsplit("/", 1)
    page.goto("fall-of-rome.html")
    analysis = called.split("/")[-1]
    root = page.locator(f".explore[data-explore^='{analysis}-{picture}.']").first
    root.get_by_role("button", name="Explore").press("Enter")
    root.locator(".bk-Figure").wait_for()
    run = str(root.get_attribute("data-explore")).rsplit(".", 1)[1]
    frame = pd.read_parquet(sources / f"book/runs/{analysis}/{run}/data/cases.parquet")
    frame = frame[(frame[series] == frame[series].iloc[0]) & frame["error"].isna()]
    kind = frame["kind"].value_counts().index[0]
    wanted = frame[frame["kind"] == kind]
    drawn = root.evaluate(DRAWN, kind)
    assert np.allclose(sorted(drawn["x"]), sorted(wanted[sizes].abs()), rtol=1e-4)
    finite = wanted["perplexity_ratio"][np.isfinite(wanted["perplexity_ratio"])]
    assert np.allclose(sorted(drawn["y"])[: len(finite)], sorted(finite), rtol=1e-4)


def test_interventions_are_explored_by_what_was_changed(page: Page, sources: Path) -> None:
    """A table that knows its cases by number only."""
    page.goto("why-it-breaks.html")
    root = page.locator(".explore[data-explore^='sink-conditions.']").first
    root.get_by_role("button", name="Explore").press("Enter")
    root.locator(".bk-Figure").wait_for()
    frame = pd.read_parquet(next((sources / "book/runs/sink").glob("*/data/edits.parquet")))
    root.get_by_label("Changed", exact=True).select_option("begun: C, with C")
    kind = "one token at the start"
    wanted = frame.query("condition == 'begun: C' and setting == 'with C' and kind == @kind")
    drawn = root.evaluate(DRAWN, kind)
    assert np.allclose(sorted(drawn["x"]), sorted(wanted["denominator_ratio"]), rtol=1e-4)
    case = str(wanted["case_id"].iloc[0])
    root.get_by_label("Case", exact=True).select_option(case)
    assert f"Case {case}" in root.locator(".explore-case").inner_text()


@pytest.mark.parametrize(
    ("shown_on", "name", "x", "y", "view"),
    [
        ("fall-of-rome.html", "key-geometry-maps", "x", "y", "panel"),
        ("why-it-breaks.html", "aftermath-positions", "position", "loss", "method"),
    ],
)
def test_maps_and_curves_are_those_of_their_tables(
    page: Page, shown_on: str, name: str, x: str, y: str, view: str, sources: Path
) -> None:
    page.goto(shown_on)
    root = page.locator(f".explore[data-explore^='{name}.']").first
    root.get_by_role("button", name="Explore").press("Enter")
    root.locator(".bk-Figure").wait_for()
    analysis, table = name.rsplit("-", 1)
    run = str(root.get_attribute("data-explore")).rsplit(".", 1)[1]
    frame = pd.read_parquet(sources / f"book/runs/{analysis}/{run}/data/{table}.parquet")
    for shown, rows in frame.groupby(view, sort=False):
        root.get_by_label("Shown", exact=True).select_option(shown)
        for series, wanted in rows.groupby("group"):
            drawn = root.evaluate(DRAWN, series)
            assert np.allclose(drawn["x"], wanted[x], rtol=1e-4) and np.allclose(drawn["y"], wanted[y], rtol=1e-4)
        low, high = root.evaluate(RANGES)[2:]
        assert low < rows[y].min() < rows[y].max() < high < rows[y].max() + (rows[y].max() - rows[y].min()) / 10
    assert root.get_by_label("Case", exact=True).count() == 0


def test_a_run_shows_the_same_on_its_own_page(page: Page, site: Path) -> None:
    run = sorted((site / "runs/pilot").iterdir())[0]
    root = explored(page, f"runs/pilot/{run.name}/index.html")
    assert root.get_attribute("data-explore") == f"pilot-scatter.{run.name}"
    root.get_by_label("Case", exact=True).select_option(index=1)
    assert root.locator(".explore-case a").count() == 0  # it would lead here


def test_a_phone_has_room_for_it(page: Page) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    root = explored(page)
    row = worst(root)
    page.mouse.move(*place(root, row["kind"], row))
    box = tip(page).bounding_box()
    assert box and box["x"] >= 0 and box["x"] + box["width"] <= 375
    page.mouse.click(*place(root, row["kind"], row))
    root.locator(".explore-case table").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert root.locator(".bk-Figure").evaluate("(plot) => plot.getBoundingClientRect().right") <= 375


def test_a_finger_that_moves_over_the_plot_scrolls_the_page(browser: Browser, address: str) -> None:
    size: ViewportSize = {"width": 375, "height": 800}
    context = browser.new_context(base_url=address, viewport=size, has_touch=True, is_mobile=True)
    page = context.new_page()
    root = explored(page)
    root.locator(".bk-Figure").evaluate("(plot) => plot.scrollIntoView({ block: 'center' })")
    ranges, before = root.evaluate(RANGES), page.evaluate("scrollY")
    box = root.locator(".bk-Figure").bounding_box()
    assert box
    finger = context.new_cdp_session(page)
    for moved in range(0, 160, 15):
        point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 200 - moved}
        finger.send(
            "Input.dispatchTouchEvent", {"type": "touchMove" if moved else "touchStart", "touchPoints": [point]}
        )
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    eventually(lambda: page.evaluate("scrollY") > before + 80, True)
    assert root.evaluate(RANGES) == ranges
    context.close()


def test_without_javascript_there_is_the_picture(browser: Browser, address: str) -> None:
    page = browser.new_page(base_url=address, java_script_enabled=False)
    page.goto("index.html")
    assert page.locator(".explore img").first.is_visible()
    assert page.get_by_role("button", name="Explore").count() == 0
    page.close()


def test_print_shows_the_picture(page: Page) -> None:
    root = explored(page)
    page.emulate_media(media="print")
    assert root.locator("img").is_visible()
    assert not root.locator(".bk-Figure").is_visible() and not root.get_by_role("button").first.is_visible()


def test_it_works_from_a_folder(browser: Browser, site: Path) -> None:
    page = browser.new_page()
    root = explored(page, (site / "index.html").as_uri())
    assert root.locator(".bk-Figure").is_visible()
    page.close()


def test_a_plot_that_cannot_be_loaded_says_so(browser: Browser, address: str) -> None:
    page = browser.new_page(base_url=address)
    page.route("**/bokeh-*.js", lambda route: route.abort())
    page.goto("index.html")
    root = page.locator(".explore").first
    root.get_by_role("button", name="Explore").click()
    root.get_by_text("could not be loaded").wait_for()
    assert root.locator("img").is_visible()
    page.close()


# -- what is loaded, and when --------------------------------------------------------------------------


def transferred(browser: Browser, address: str, name: str) -> dict[str, int]:
    """Bytes by file of a page that nobody touches."""
    page = browser.new_page(base_url=address)
    sizes: dict[str, int] = {}
    page.on("requestfinished", lambda r: sizes.update({r.url: r.sizes()["responseBodySize"]}))
    page.goto(name, wait_until="networkidle")
    page.close()
    return sizes


def kinds_of_pages(site: Path) -> list[str]:
    chapters = ("index", "butterfly-effect", "fall-of-rome", "runs", "glossary", "claim-audit")
    weights = {
        page: sum(file.stat().st_size for file in page.parent.glob("figures/*"))
        for page in site.glob("runs/*/*/*.html")
    }
    heaviest = sorted(weights, key=weights.__getitem__)[-3:]
    return [*(f"{name}.html" for name in chapters), *(page.relative_to(site).as_posix() for page in heaviest)]


def test_every_page_is_light_before_interaction(browser: Browser, address: str, site: Path) -> None:
    weights = {name: sum(transferred(browser, address, name).values()) for name in kinds_of_pages(site)}
    assert {name: weight for name, weight in weights.items() if weight >= BUDGET} == {}
    assert min(weights.values()) > 100_000  # they were measured


def test_nothing_of_the_plot_is_loaded_before_it_is_asked_for(browser: Browser, address: str) -> None:
    loaded = transferred(browser, address, "index.html")
    assert [url for url in loaded if "_static/explore/" in url or "bokeh" in url] == []


def test_data_of_plots_is_small(site: Path) -> None:
    files = list((site / "_static/explore").glob("*-*.*.js"))
    assert {file.name for file in files if file.stat().st_size >= 1_000_000 and "bokeh" not in file.name} == set()


def test_icons_are_still_there(page: Page) -> None:
    page.goto("butterfly-effect.html")
    page.evaluate("document.fonts.ready")
    drawn = """(icons) => icons.map((icon) => getComputedStyle(icon, "::before").content)"""
    icons = page.locator("button i[class*='fa-']").evaluate_all(drawn)
    assert len(icons) > 3 and "none" not in icons
    assert page.evaluate("document.fonts.check('900 16px \"Font Awesome 6 Free\"')")


# -- results that are no numbers, and texts that are no texts ------------------------------------------

HOSTILE = "<img src=x onerror=\"document.title='broken'\"> '\" {x} @{x} $$\\frac12$$ \u2028 </script>"


@pytest.fixture
def explore(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    return importlib.import_module("explore")


@pytest.fixture
def strange(explore: ModuleType, tmp_path: Path) -> Path:
    """A page with the plot of a run whose edits gave inf and nan, or failed, about subjects that are code."""
    folder = tmp_path / "runs/pilot/0123456789ab"
    (folder / "data").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"parameters": {"collapse_ratio": 5.0}}))
    frame = pd.DataFrame({"case_id": range(4), "perplexity_mean": [30.0, math.inf, math.nan, 1.0]})
    frame["perplexity_ratio"] = frame["perplexity_mean"]
    facts = {"prompt": "{} lives in", "subject": HOSTILE, "target_true": HOSTILE, "target_new": "b"}
    frame = frame.assign(**facts, kind="one token, first", arm="rome", error=None, denominator=math.nan)
    frame.to_parquet(folder / "data/cases.parquet")
    name = explore.write(folder, "pilot/scatter", tmp_path / "_static/explore")
    (tmp_path / "_static/explore.js").write_text((ROOT / "book/_static/explore.js").read_text("utf-8"), "utf-8")
    page = tmp_path / "index.html"
    button = f'<div class="explore" data-explore="{name}" data-about="" data-run=""><img alt=""></div>'
    page.write_text(f'<!doctype html><title>whole</title>{button}<script src="_static/explore.js"></script>')
    return page


def test_inf_and_nan_are_drawn_at_the_rim(explore: ModuleType, strange: Path, browser: Browser) -> None:
    page = browser.new_page()
    root = explored(page, strange.as_uri())
    assert root.evaluate(SHOWN, "one token, first") == [30, 300, 300, 1]
    page.mouse.move(*root.evaluate(PLACE, ["one token, first", "x", 1]))
    expect(tip(page)).to_contain_text("inf")
    root.get_by_label("Case", exact=True).select_option("2")
    assert "nan" in root.locator(".explore-case table").inner_text()
    page.close()


def test_text_is_only_text(strange: Path, browser: Browser) -> None:
    page = browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    root = explored(page, strange.as_uri())
    page.mouse.move(*root.evaluate(PLACE, ["one token, first", "x", 0]))
    expect(tip(page)).to_contain_text("<img src=x")
    root.get_by_label("Case", exact=True).select_option("0")
    assert "<img src=x" in root.locator(".explore-case").inner_text()
    assert page.title() == "whole"
    assert root.locator("img").count() == 1  # the picture's
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.close()


def test_curves_are_the_middle_of_the_points_at_one_place(explore: ModuleType) -> None:
    folder = next((ROOT / "book/runs/layers").iterdir())
    drawn = explore.PLOTS["layers/regimes"](folder)
    keys = pd.read_parquet(folder / "data/keys.parquet")
    wanted = keys.groupby(["method", "kind", "setting", "layer"])["denominator_ratio"].median()
    assert len(drawn.rows["layer"]) == len(wanted) < len(keys)
    views, kinds = ([drawn.rows[n]["of"][at] for at in drawn.rows[n]["at"]] for n in (drawn.view, drawn.series))
    for view, kind, layer, found in zip(
        views, kinds, drawn.rows["layer"], drawn.rows["denominator_ratio"], strict=True
    ):
        method, setting = view.split(", ")
        assert found == pytest.approx(wanted[method, kind, setting, layer], rel=1e-4)


@pytest.mark.parametrize("name", ["belief/calibration", "screen/calibration"])
def test_calibration_keeps_every_row_and_its_mean(explore: ModuleType, name: str) -> None:
    (folder,) = (ROOT / "book/runs" / name.split("/", maxsplit=1)[0]).iterdir()
    plot = explore.PLOTS[name](folder)
    if name.startswith("belief"):
        frame, asked, said = pd.read_parquet(folder / "data/calibration.parquet"), "agent", "model"
    else:
        edits = pd.read_parquet(folder / "data/edits.parquet")
        frame = edits.assign(foretold=[row.get(f"fitted on {row['model']}") for row in edits.to_dict("records")])
        frame, asked, said = frame.dropna(subset="foretold"), "foretold", "collapsed"
    assert sum(plot.rows["n"]) == len(frame)
    for drawn, column in ((plot.x, asked), (plot.y, said)):
        mean = np.average(plot.rows[drawn], weights=plot.rows["n"])
        assert mean == pytest.approx(frame[column].astype(float).mean(), rel=1e-3)


@pytest.mark.slow
def test_every_picture_that_can_be_explored_has_its_columns(explore: ModuleType) -> None:
    """`explore.js` finds no place for a point whose column was left out."""
    drawn = 0
    for name in explore.PLOTS:
        analysis, picture = name.split("/")
        for figure in (ROOT / "book/runs" / analysis).glob(f"*/figures/{picture}.*"):
            plot = explore.PLOTS[name](figure.parents[1])
            needed = {plot.x, plot.y, plot.view, plot.series} | ({plot.line} - {""})
            assert needed <= plot.rows.keys(), name
            views = plot.rows[plot.view]
            assert {views["of"][at] for at in views["at"]} == plot.levels.keys(), name
            series, drawable = plot.rows[plot.series], json.dumps(plot.plot)
            assert all(f'"name": {json.dumps(name)}' in drawable for name in series.get("of", ())), name
            drawn += 1
    assert drawn > 30
