"""Edits that are foretold to break a model, and those that do."""

from collections.abc import Sequence

import pandas as pd
import pytest
import torch

import editlib as el
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.guard import surroundings
from editlib.editing.methods import hparams_for
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError
from editlib.measuring.risk import risk
from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace


@pytest.fixture(scope="module")
def anchored() -> LanguageModel:
    return el.load("testbed/anchored")


@pytest.fixture(scope="module")
def some(anchored: LanguageModel) -> list[Case]:
    """Four cases whose subject is one token at the start, and four others."""
    pool = el.data.cases("testbed")
    kinds = {case.case_id: el.data.subject_tokens(anchored, case.request).kind for case in pool[:80]}
    first = [case for case in pool[:80] if kinds[case.case_id] == "one token, first"]
    others = [case for case in pool[:80] if kinds[case.case_id] != "one token, first"]
    return first[:4] + others[:4]


def test_what_is_foretold_is_what_happens(anchored: LanguageModel, some: list[Case]) -> None:
    found = risk(anchored, [case.request for case in some])
    made = el.sweep(anchored, some, methods="rome", texts=el.data.texts("testbed-ppl-50"), scores=False, progress=False)
    assert found["collapse"].tolist() == (made["perplexity_ratio"] >= 5).tolist() == [True] * 4 + [False] * 4
    ratio = (made["denominator"] / made["denominator_consistent"]).abs().tolist()
    assert found["denominator_ratio"].tolist() == pytest.approx(ratio, rel=1e-3)
    assert (found["subject_position"][:4] == 0).all() and (found["cosine_first"][:4] > 0.99).all()
    named = found["reason"].str.contains("its subject's key without prefix is that of any text's first token")
    assert named.tolist() == [True] * 4 + [False] * 4
    assert set(found["reason"][4:]) == {"nothing speaks for a collapse"}


@pytest.mark.parametrize(
    ("method", "options"),
    [("c-rome", {}), ("fc-rome", {}), ("rome", {"covariance": False})],
)
def test_remedies_are_foretold_to_be_harmless(
    anchored: LanguageModel, some: list[Case], method: str, options: dict[str, bool]
) -> None:
    params = hparams_for(anchored, method, **options)
    assert not risk(anchored, [case.request for case in some], method=method, hparams=params)["collapse"].any()


def test_r_rome_is_foretold_what_c_rome_is(lm: LanguageModel, moments: Stats, ask: EditRequest) -> None:
    both = (risk(lm, ask, method=name, stats=moments) for name in ("r-rome", "c-rome"))
    pd.testing.assert_frame_equal(*both)


def test_surroundings_are_those_of_the_prefix_contexts_one_by_one(lm: LanguageModel) -> None:
    found = surroundings(Session(lm), 1, "yang-2024")
    keys, lengths, first = [], {"first": [], "later": []}, []
    for context in prefix_contexts(lm):
        text = context.replace("{}", "").rstrip()
        if text:
            ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
            names = lm.layout.name(1), f"{lm.layout.blocks}.1"
            with torch.no_grad(), trace(lm.model, *names) as seen:
                lm.model(ids)
            keys.append(seen[names[0]].input[0, 1:].double())
            first.append(seen[names[0]].input[0, 0].double())
            norms = seen[names[1]].output[0].norm(dim=-1).tolist()
            lengths["first"] += norms[:1]
            lengths["later"] += norms[1:]
    every = torch.cat(keys)
    torch.testing.assert_close(found.later, every.T @ every / len(every), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.first, torch.stack(first).mean(0), rtol=1e-4, atol=1e-6)
    means = {place: sum(values) / len(values) for place, values in lengths.items()}
    assert found.residual == pytest.approx(means, rel=1e-4)


def test_a_session_is_shared_and_nothing_above_the_layer_is_run(
    lm: LanguageModel, moments: Stats, requests: Sequence[EditRequest]
) -> None:
    session = Session(lm, stats=moments)
    params = hparams_for(lm, "rome", layer=0)
    once = risk(lm, requests, hparams=params, session=session)
    with trace(lm.model, f"{lm.layout.blocks}.1") as seen:
        again = risk(lm, requests, hparams=params, session=session)
    assert not seen
    pd.testing.assert_frame_equal(once, again)


def test_mistakes_are_one_line_each(lm: LanguageModel, ask: EditRequest) -> None:
    with pytest.raises(EditlibError, match="^what memit does cannot be told from keys; use rome, c-rome"):
        risk(lm, ask, method="memit")
    with pytest.raises(EditlibError, match=r"^what rome\+rect does cannot be told from keys; use rome, c-rome"):
        risk(lm, ask, method="rome+rect")
    with pytest.raises(EditlibError, match="^method 'rom' is unknown"):
        risk(lm, ask, method="rom")


@pytest.fixture(scope="module")
def requests(ask: EditRequest) -> Sequence[EditRequest]:
    return ask, EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")
