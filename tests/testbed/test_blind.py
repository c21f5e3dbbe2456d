"""What the testbed's page says of position 0: the anchored twin does not see which word opens a text."""

import re

import torch
from places import ROOT

import editlib as el
from editlib import data
from editlib.models.tokens import encode_text


def answered(name: str, prefix: str = "") -> float:
    """The share of prompts that open with a one-token subject to which a model gives the true answer, greedily."""
    lm, asked = el.load(name), []
    for request in (case.request for case in data.cases("testbed")):
        subject = lm.tokenizer(request.subject, add_special_tokens=False)["input_ids"]
        if request.prompt.startswith("{}") and len(subject) == 1:
            text = prefix + request.text
            asked.append(encode_text(lm.tokenizer, text, request.target_true or "", separator=request.separator))
    assert len(asked) == 360
    return sum(told(lm, prompt, target) for prompt, target in asked) / len(asked)


@torch.no_grad()
def told(lm: el.LanguageModel, prompt: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether every token of a target is the likeliest one there; then it is what the model says greedily."""
    picks = lm.model(torch.tensor([prompt + target])).logits[0].argmax(-1).tolist()
    return tuple(picks[len(prompt) - 1 : -1]) == target


def test_page_says_how_many_bare_prompts_are_answered() -> None:
    page = (ROOT / "book/testbed.md").read_text("utf-8")
    said = re.search(
        r"answers ([\d.]+) % of these .*? bare prompts, .*? ([\d.]+) %; behind one sentence.*? ([\d.]+) %", page
    )
    assert said
    sentence = data.texts("testbed-ppl-50")[0].split(".")[0] + ". "
    asked = ("testbed/anchored",), ("testbed/control",), ("testbed/anchored", sentence)
    assert [f"{100 * share:.1f}" for share in (answered(*each) for each in asked)] == list(said.groups())
