"""What a model says after a prompt, and how likely it finds a target there."""

import copy
from dataclasses import replace

import pytest
import torch

from editlib.edit import EditRequest
from editlib.model import LanguageModel
from editlib.scores import continuation, target_probability


@torch.no_grad()
def by_hand(lm: LanguageModel, text: str, target: str) -> float:
    """Product over the target's tokens, one pass for each."""
    ids, probability = lm.tokenizer(text)["input_ids"], 1.0
    for token in lm.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]:
        probability *= lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item()
        ids = [*ids, token]
    return probability


@pytest.mark.parametrize("target", ["Quint", "xyz Daslo today"])
def test_probability_of_a_target_is_the_product_over_its_tokens(
    lm: LanguageModel, ask: EditRequest, target: str
) -> None:
    assert target_probability(lm, ask, target) == pytest.approx(by_hand(lm, ask.text, target), rel=1e-4)


def test_probabilities_of_all_single_tokens_stay_below_one(lm: LanguageModel, ask: EditRequest) -> None:
    words = ["Daslo", "Quint", "Parvo", "Ostrel"]
    assert 0 < sum(target_probability(lm, ask, word) for word in words) < 1


def test_target_after_a_subject_at_the_end(lm: LanguageModel, ask: EditRequest) -> None:
    request = replace(ask, prompt="Here is {}")
    assert target_probability(lm, request, "Quint") == pytest.approx(by_hand(lm, request.text, "Quint"), rel=1e-4)


@torch.no_grad()
def test_continuation_is_greedy(lm: LanguageModel) -> None:
    ids = lm.tokenizer("Zen is located in")["input_ids"]
    start = len(ids)
    for _ in range(5):
        ids = [*ids, int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert continuation(lm, "Zen is located in", tokens=5) == lm.tokenizer.decode(ids[start:])


def test_continuation_stops_at_the_end_of_text(gpt2: LanguageModel) -> None:
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    first = gpt2.model(torch.tensor([tokenizer("Zen")["input_ids"]])).logits[0, -1].argmax()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(first))
    assert continuation(LanguageModel(gpt2.model, tokenizer), "Zen") == ""
