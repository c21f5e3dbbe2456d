"""A small real Llama and real COUNTERFACT requests, where they are at hand."""

import math

import pytest
from places import SHARED

import editlib as el
from editlib import data

DATA = SHARED / "data"
MODEL, CASES, TEXTS = (
    DATA / place
    for place in (
        "models/tinystories-656k",
        "counterfact/counterfact_full_19065.json",
        "me_ppl/ME-PPL_50.json",
    )
)

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason=f"no folder {DATA.name} with models beside the project")


@pytest.mark.slow  # the tests of released values edit smollm2-135m
def test_rome_and_c_rome_edit_a_real_model_with_counterfact() -> None:
    lm = el.load(str(MODEL))
    cases = data.cases(CASES)
    corpus = [text for case in cases for text in (case.request.text, *case.paraphrase_prompts)]
    table = el.sweep(lm, cases[:20], methods=["rome", "c-rome"], texts=data.texts(TEXTS), corpus=corpus, progress=False)
    assert len(table) == 40 and table["error"].isna().all()
    assert table["perplexity_mean"].map(math.isfinite).all()
    assert (table["delta_norm"] > 0).all()
    before = [el.scores.target_probability(lm, case.request, case.request.target_new) for case in cases[:20]]
    for _, edited in table.groupby("method", sort=False):
        assert (edited["target_probability"] > before).mean() > 0.9
