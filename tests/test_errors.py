"""What the user is told about names that are not known, what is no text, and a model that was broken before."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

import editlib as el
from editlib.engine.prefixes import sample
from editlib.errors import EditlibError, unknown
from editlib.measuring.report import before_after
from editlib.measuring.scores import continuation
from editlib.models.language_model import LanguageModel

ASK = el.EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo")


def test_an_unknown_name_is_told_what_it_looks_like() -> None:
    message = "method 'c_rome' is unknown; did you mean c-rome? use one of rome, c-rome"
    assert str(unknown("method", "c_rome", ["rome", "c-rome"])) == message
    assert str(unknown("layer", 17, iter("ab"))) == "layer '17' is unknown; use one of a, b"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda lm: el.perplexity(lm, ["abc \udcff"]), r"^text 'abc \\udcff' is no text"),
        (lambda lm: el.perplexity(lm, [3]), "^text 3 is no text"),
        (lambda lm: el.perplexity(lm, pd.Series([], dtype=str)), "^no texts to measure perplexity on"),
        (lambda lm: continuation(lm, ""), "^text '' has no token to go on from"),
        (lambda lm: el.compute(lm, ASK, method=["rome"]), r"^method \['rome'\] is no name and no method"),
        (lambda lm: el.data.cases({"prompt": "Hérold is in", "subject": "He\u0301rold", "target_new": "Rome"}),
         r"subject 'He\\u0301rold' does not occur in 'H\\xe9rold is in'"),
    ],
    ids=["half a pair", "no text", "no texts", "nothing", "a list", "normal forms"],
)  # fmt: skip
def test_what_is_no_text_is_told(gpt2: LanguageModel, call: Callable[[LanguageModel], object], said: str) -> None:
    with pytest.raises(EditlibError, match=said):
        call(gpt2)


def test_a_model_that_gives_nan_is_no_collapse(own: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Zen is located in Daslo, near the sea."]
    edit = el.compute(own, ASK, method="rome", hparams={"layer": 1, "covariance": False, "steps": 2})
    for weight in own.model.parameters():
        weight.data.fill_(float("nan"))
    monkeypatch.setattr(type(edit), "require_base", lambda *_: None)
    with pytest.raises(EditlibError, match="has perplexity nan before any edit; its weights are damaged"):
        before_after(own, edit, texts=texts)
    with pytest.raises(EditlibError, match="gives nan for what comes next; its weights are damaged"):
        sample(own, seed=0)
