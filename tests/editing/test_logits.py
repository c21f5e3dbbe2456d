"""Logits under an edit that is not applied are those under the edit applied."""

from dataclasses import replace

import pytest
import torch

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import compute, hparams_for
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.measuring import scores
from editlib.models.language_model import LanguageModel

REQUEST = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="Quint")
CASE = Case(1, REQUEST, ("Where is Zen? In", "Zen lies in"), ("Brast is located in", "Uvo is located in the"))


@pytest.mark.parametrize("layer", [0, 1])
def test_an_edit_that_is_not_applied_scores_as_one_that_is(lm: LanguageModel, moments: Stats, layer: int) -> None:
    session, before = Session(lm, stats=moments), scores.read(lm, CASE)
    for method in ("rome", "c-rome", "ft"):  # the second finds what the first made of the lower blocks
        edit = compute(lm, [REQUEST], method=method, hparams=hparams_for(lm, method, layer=layer), stats=moments)
        logits = session.logits(edit)
        assert logits
        aside = scores.read(lm, before.prompts, logits=logits)
        probability = scores.target_probability(lm, REQUEST, "Daslo", logits=logits)
        with edit.applied(lm):
            applied = scores.read(lm, before.prompts)
            assert scores.target_probability(lm, REQUEST, "Daslo") == pytest.approx(probability, rel=1e-4)
        for a, b in zip(aside.replies, applied.replies, strict=True):
            assert (a.picks, a.said) == (b.picks, b.said)
            assert (a.answer, a.rival) == pytest.approx((b.answer, b.rival), rel=1e-4)
        assert aside.replies != before.replies


def test_it_is_read_anew_once_the_weights_have_changed(own: LanguageModel, moments: Stats) -> None:
    session = Session(own, stats=moments)
    edit = compute(own, [REQUEST], method="rome", hparams=hparams_for(own, "rome", layer=1), stats=moments)
    rows, at = [[5, 6, 7, 8]], [(0, 3)]
    before = session.logits(edit)
    assert before
    first = before(rows, at)
    with torch.no_grad():
        own.weight(0).mul_(1.5)
    session.forget()
    after = session.logits(edit)
    assert after and not torch.allclose(after(rows, at), first)


def test_edits_of_more_than_one_weight_must_be_applied(lm: LanguageModel, moments: Stats) -> None:
    params = replace(hparams_for(lm, "memit"), layers=(0, 1))
    edit = compute(lm, [REQUEST], method="memit", hparams=params, stats=moments)
    assert Session(lm, stats=moments).logits(edit) is None
