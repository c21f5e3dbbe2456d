"""A run whose manifest and notebook are full of markup: pages show it as text, or leave it out."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from books import build, rewritten, served, small, warned
from playwright.sync_api import Page

EVIL = {
    "script": "<script>window.evil = 1</script>",
    "image": "<img src=x id=evil onerror='window.evil = 1'>",
    "quotes": "\"><b id=evil>'",
    "place": "../../../../etc/passwd",
    "link": "[a](javascript:window.evil=1) <a href='javascript:window.evil=1' id=evil>b</a>",
    "myst": "{{ pilot_run }} {nothing}`x` ```{raw} html\n<b id=evil>\n```\n# Heading",
    "cell": "a | b | c",
    "lines": "one\ntwo\r\n\nthree\u2028four",
    "unicode": "名前 \u202egnp.exe ‮ 🦋 é",
    "long": "x" * 10_000,
}
RUN_PAGE = "runs/pilot/*/index.html"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site whose runs say evil things wherever text is free."""
    place = tmp_path_factory.mktemp("hostile")
    folder = small(place)
    notebook = json.loads((folder / "index.ipynb").read_text("utf-8"))
    heading = notebook["cells"][0]
    heading["source"] = [f"# Title · {EVIL['image']} {EVIL['script']} · {EVIL['quotes']}\n", *heading["source"][1:]]
    output = next(cell for cell in notebook["cells"] if cell.get("outputs"))
    table = f"<table><tr><td>{EVIL['image']}</td></tr></table>{EVIL['script']}"
    output["outputs"].append({"output_type": "display_data", "metadata": {}, "data": {"text/html": table}})
    (folder / "index.ipynb").write_text(json.dumps(notebook), "utf-8")
    (place / "book/index.md").write_text(
        "# Start\n\n"
        + "\n\n".join(f"{{{{ pilot_{name} }}}}, {{{{ pilot_m_{name} }}}}" for name in EVIL)
        + "\n\n{{ pilot_model }}, {{ pilot_profile }}\n\n| a | b |\n|:--|:--|\n"
        + "| {{ pilot_cell }} | {{ pilot_m_long }} |\n"
        + "\n```{run-figure} pilot/scatter\n:alt: the scatter\nBy {{ pilot_run }}.\n```\n"
    )
    record = json.loads((folder / "manifest.json").read_text("utf-8"))
    record |= {"title": " ".join(EVIL.values()), "profile": EVIL["image"]}
    record["parameters"] |= EVIL | {EVIL["image"]: 1, EVIL["long"]: 2, "model": EVIL["image"], "n": EVIL["quotes"]}
    record["metrics"] |= {f"m_{name}": value for name, value in EVIL.items()} | {EVIL["script"]: EVIL["script"]}
    record["inputs"]["models"] |= {EVIL["image"]: "0" * 64}
    record["hardware"]["cpu"] = EVIL["script"]
    record["git"]["commit"] = "$(touch evil)" + EVIL["quotes"]
    rewritten(shutil.copytree(folder, folder.with_name("older")), **record | {"seconds": 1.0})  # to compare with
    rewritten(folder, **record)
    return build(place)


@pytest.fixture(scope="session")
def address(hostile: Path) -> Iterator[str]:
    with served(hostile) as place:
        yield place


@pytest.mark.parametrize("name", ["index.html", RUN_PAGE, "runs.html", "compare.html"])
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_of_it_becomes_markup_or_runs(page: Page, hostile: Path, name: str, width: int) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(next(iter(hostile.glob(name))).relative_to(hostile).as_posix())
    if name == "compare.html":
        page.locator("#comparison h2").first.wait_for()
    page.locator("article details").evaluate_all("(folds) => folds.forEach((fold) => { fold.open = true })")
    assert page.evaluate("window.evil") is None
    assert page.locator("#evil, img[src=x], a[href^='javascript:'], [onerror]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "<img src=x id=evil" in page.locator("article").inner_text()  # said, as text


def test_long_values_are_cut_and_the_rest_is_in_the_manifest(page: Page, hostile: Path) -> None:
    path = next(iter(hostile.glob(RUN_PAGE)))
    page.goto(path.relative_to(hostile).as_posix())
    assert "(10,000 characters)" in page.locator(".run-parameters").text_content()  # type: ignore[operator]
    assert EVIL["long"] in path.with_name("manifest.json").read_text("utf-8")


def test_command_is_quoted_for_a_shell(page: Page, hostile: Path) -> None:
    page.goto(next(iter(hostile.glob(RUN_PAGE))).relative_to(hostile).as_posix())
    blocks = page.locator(".run-again pre").all_text_contents()
    assert any("'$(touch evil)" in block for block in blocks)


@pytest.mark.parametrize("name", ["0123456789ab", "local-0123456789ab.bak", "<b>", ".."])
def test_folder_that_is_not_named_as_its_manifest_says_is_no_run(tmp_path: Path, name: str) -> None:
    folder = small(tmp_path)
    if name == "..":
        record = json.loads((folder / "manifest.json").read_text("utf-8")) | {"analysis": "../pilot"}
        (folder / "manifest.json").write_text(json.dumps(record))
    else:
        os.rename(folder, folder.with_name(name))
    assert "book/runs holds no run" in warned(tmp_path)
    assert "There is no run yet" in (tmp_path / "_build/html/runs.html").read_text("utf-8")
