"""What is left after an edit, against one text at a time."""

import math

import pytest
import torch

import editlib as el
from editlib.data.request import EditRequest
from editlib.editing.methods import compute, hparams_for
from editlib.editing.stats import Stats
from editlib.measuring.aftermath import by_position, look
from editlib.models.language_model import LanguageModel


def test_losses_and_entropies_are_means_over_the_texts_that_reach_a_position(
    lm: LanguageModel, corpus: list[str]
) -> None:
    found = by_position(lm, corpus).set_index("position")
    losses, entropies = [], []
    for text in corpus:
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > 4:
            with torch.no_grad():
                logs = lm.model(torch.tensor([ids])).logits[0, 3].double().log_softmax(-1)
            losses.append(-float(logs[ids[4]]))
            entropies.append(-float((logs.exp() * logs).sum()))
    assert found.loc[3, "texts"] == len(losses)
    assert found.loc[3, "loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.loc[3, "entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_all_losses_together_are_the_perplexity_of_the_corpus(lm: LanguageModel, corpus: list[str]) -> None:
    found = by_position(lm, corpus)
    mean = (found["loss"] * found["texts"]).sum() / found["texts"].sum()
    assert math.exp(mean) == pytest.approx(el.perplexity(lm, corpus).corpus, rel=1e-5)


def test_a_look_is_one_at_the_weights_as_they_are(
    own: LanguageModel, moments: Stats, ask: EditRequest, corpus: list[str]
) -> None:
    edit = compute(own, [ask], method="rome", hparams=hparams_for(own, "rome", layer=1, steps=2), stats=moments)
    before = look(own, corpus)
    with edit.applied(own):
        during = look(own, corpus)
    after = look(own, corpus)
    assert (during.positions["loss"] != before.positions["loss"]).any()
    assert during.layers.loc[0, "residual_norm"] == before.layers.loc[0, "residual_norm"]  # below the edit
    assert (after.entropy, after.sink) == (before.entropy, before.sink) != (during.entropy, during.sink)
