"""Requests mean what they say, however many spaces are typed around it."""

from dataclasses import replace

import pytest

from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.measuring.scores import target_probability
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode

CLEAN = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")


@pytest.mark.parametrize(
    "typed",
    [
        {"target_new": " Daslo"},
        {"target_new": "Daslo "},
        {"target_true": " Quint\n"},
        {"prompt": "{} is located in "},
        {"prompt": " {} is located in\t"},
        {"subject": "Zen "},
        {"subject": " Zen"},
    ],
)
def test_spaces_around_a_request_count_for_nothing(lm: LanguageModel, typed: dict[str, str]) -> None:
    request = replace(CLEAN, **typed)
    assert request == CLEAN
    assert target_probability(lm, request, " Daslo ") == target_probability(lm, CLEAN, "Daslo")


def test_a_line_break_at_the_end_of_a_prompt_is_kept(lm: LanguageModel) -> None:
    request = replace(CLEAN, prompt="Where is {}?\n")
    row = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new)
    assert lm.tokenizer.decode(row.ids, skip_special_tokens=True) == "Where is Zen?\nDaslo"


def test_what_stands_before_a_target_can_be_given(lm: LanguageModel) -> None:
    quoted = replace(CLEAN, prompt='{} is "', separator="")
    assert target_probability(lm, quoted, "Daslo") != target_probability(lm, replace(quoted, separator=None), "Daslo")


def test_spaces_of_any_kind_at_a_prompts_end_count_for_nothing_and_line_breaks_do() -> None:
    assert replace(CLEAN, prompt="\u3000{} is in\u00a0").prompt == "{} is in"
    assert replace(CLEAN, prompt="{} is in\n").prompt == "{} is in\n"


def test_an_empty_true_target_is_none() -> None:
    assert replace(CLEAN, target_true=" ").target_true is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"subject": " "}, "subject ' ' is empty; name what the prompt is about"),
        ({"target_new": " "}, "target ' ' is empty; say what should follow the prompt"),
        ({"prompt": "Zen is in"}, r"prompt 'Zen is in' must hold {} once, where the subject goes: write '{} is in'"),
        ({"target_new": None}, "target_new None is no text"),
        ({"subject": 7}, "subject 7 is no text"),
        ({"separator": 3}, "separator 3 is no text"),
        ({"target_new": "Hif\udcff"}, r"target_new 'Hif\\udcff' is no text"),
    ],
)
def test_a_request_that_asks_nothing_is_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(EditlibError, match=f"^{message}$"):
        replace(CLEAN, **wrong)
