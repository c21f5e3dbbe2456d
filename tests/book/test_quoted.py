"""Which run a page quotes where an analysis ran on several models, and with several settings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from books import ROOT, build, rewritten, small, warned
from lxml import html

from editlib.runs.manifest import read_manifest

REAL = {"model": "smollm2-135m", "cases": "facts", "tasks": "facts-choice,facts-cloze,facts-qa"}
PAGE = """# Start

{{ pilot_model }} of {{ pilot_run }}; {{ smollm2_pilot_model }} of {{ smollm2_pilot_run }}; {{ later_pilot_layer }}

```{run-figure} smollm2/pilot/scatter
:alt: its scatter
```

```{run-selector} pilot
```
"""


def variant(folder: Path, day: int, profile: str = "full", **parameters: Any) -> str:
    """A run like that of a folder, with other parameters, made on a later day; its name."""
    copy = Path(shutil.copytree(folder, folder.with_name("copy")))
    asked = {**read_manifest(folder).parameters, **parameters}
    when = {name: f"2031-01-{day:02}T00:00:00Z" for name in ("started", "finished")}
    return rewritten(copy, parameters=asked, profile=profile, **when).run


@pytest.mark.slow
def test_page_quotes_each_model_by_its_best_run_with_the_named_settings(tmp_path: Path) -> None:
    twins = small(tmp_path)
    real = variant(twins, 1, **REAL)
    variant(twins, 2, **REAL, layer=14)
    for day, other in enumerate(({"cases": "counterfact"}, {"model": "gpt2-xl"}), 3):
        variant(twins, day, **REAL | other)
    variant(twins, 9, profile="quick", **REAL)
    named = (ROOT / "book/quoted.yaml").read_text("utf-8") + "later: {model: [smollm2-135m], layer: [14]}\n"
    (tmp_path / "book/quoted.yaml").write_text(named, "utf-8")
    (tmp_path / "book/index.md").write_text(PAGE, "utf-8")
    page = html.parse(build(tmp_path) / "index.html").getroot()
    said = page.xpath("//article//p")[0].text_content()
    assert said == f"testbed/anchored of run {twins.name}; smollm2-135m of run {real}; 14"
    shown = [element.text_content() for element in page.xpath("//*[contains(@class, 'run-selector')]/p")]
    assert [line.split(" · ")[0] for line in shown] == [f"Shown here: run {name}" for name in (real, twins.name)]


@pytest.mark.slow
def test_settings_that_no_run_has_are_named_where_a_page_quotes_them(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "book/quoted.yaml").write_text((ROOT / "book/quoted.yaml").read_text("utf-8"), "utf-8")
    (tmp_path / "book/index.md").write_text("# Start\n\n```{run-selector} smollm2/pilot\n```\n", "utf-8")
    assert "no run is called 'smollm2/pilot' by quoted.yaml: execute one with `editlib run pilot" in warned(tmp_path)


@pytest.mark.parametrize("name", ["main", "smollm2"])
def test_settings_list_the_values_of_parameters(name: str) -> None:
    asked = yaml.safe_load((ROOT / "book/quoted.yaml").read_text("utf-8"))[name]
    assert {"model", "cases"} <= asked.keys() and all(isinstance(values, list) for values in asked.values())
