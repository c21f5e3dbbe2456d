"""Collapse cases beside normal ones: who is drawn, who collapses, their keys, and intervals."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from places import SHARED as BESIDE
from transformers import GPT2Tokenizer

from editlib.data import datasets as data
from editlib.data import for_models
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.engine.values import read_keys
from editlib.errors import EditlibError
from editlib.measuring import contrast
from editlib.measuring.contrast import COLLAPSE, NORMAL
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load
from editlib.models.tokens import encode

REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Parvo"),
]
LAYER = 1
SHARED = BESIDE / "data"


@pytest.fixture(scope="module")
def anchored() -> LanguageModel:
    return load("testbed/anchored")


@pytest.fixture(scope="module")
def pool() -> list[Case]:
    return data.cases("testbed")


# Who is drawn


def test_a_draw_has_the_wanted_numbers_of_both_kinds_in_file_order(anchored: LanguageModel, pool: list[Case]) -> None:
    drawn = contrast.draw_by_subject(anchored, pool, first=5, others=7, seed=0)
    kinds = [for_models.subject_tokens(anchored, case.request).kind for case in drawn]
    assert (kinds.count("one token, first"), len(kinds)) == (5, 12)
    assert [case.case_id for case in drawn] == sorted({case.case_id for case in drawn})
    assert drawn == contrast.draw_by_subject(anchored, pool, first=5, others=7, seed=0)
    assert drawn != contrast.draw_by_subject(anchored, pool, first=5, others=7, seed=1)
    assert contrast.draw_by_subject(anchored, pool[::-1], first=400, others=999, seed=0) == pool[::-1]


def test_kinds_of_subjects_are_those_of_the_papers(anchored: LanguageModel, pool: list[Case]) -> None:
    kinds = (for_models.subject_tokens(anchored, case.request) for case in pool)
    word = next(case for case, tokens in zip(pool, kinds, strict=True) if tokens.kind == "one token, first").request
    subjects = {
        word.subject: "one token",
        f"{word.subject} {word.subject}": "doubled",
        f"{word.subject} Ltd.": "full stop",
    }
    subjects |= {f"{word.subject} Hall": "several tokens"}
    cases = [Case(i, replace(word, subject=subject)) for i, subject in enumerate(subjects)]
    cases.append(Case(10, replace(word, prompt="The old {} is in")))
    found = contrast.subject_kinds(anchored, cases)
    assert found.tolist() == [*subjects.values(), "later"] and found.index.tolist() == [0, 1, 2, 3, 10]
    assert set(found) == set(contrast.SUBJECT_KINDS)


def test_a_tokenizer_alone_tells_which_edits_broke_gpt_j() -> None:
    """The 87 edits that stand out in the published figure: all subjects of one token at the start, all such words said
    twice, and three more."""
    tokens, published = SHARED / "models/gpt2-tokenizer", SHARED / "published/gptj_rome_anomalous_87.csv"
    if not published.exists():
        pytest.skip("needs the published values decoded from the slides")
    cases = data.cases(str(SHARED / "counterfact/counterfact_easyedit_21919.json"))
    outliers = set(pd.read_csv(published)["counterfact_case_id"])
    tokenizer = GPT2Tokenizer(str(tokens / "encoder.json"), str(tokens / "vocab.bpe"))
    opening = [case for case in cases if case.request.prompt.startswith("{}") and case.request.subject.count(" ") < 2]
    kinds = contrast.subject_kinds(cast("LanguageModel", SimpleNamespace(tokenizer=tokenizer)), opening)
    ids = {kind: set(kinds.index[kinds == kind]) for kind in ("one token", "doubled")}
    words = {case.case_id: case.request.subject.split()[0] for case in cases if case.case_id in ids["doubled"]}
    said_twice = {case for case, word in words.items() if len(tokenizer(word)["input_ids"]) == 1}
    assert (len(outliers), len(ids["one token"]), len(ids["doubled"]), len(said_twice)) == (87, 80, 6, 4)
    assert ids["doubled"] & outliers == said_twice and ids["one token"] < outliers
    rest = outliers - ids["one token"] - said_twice
    assert {case.request.subject for case in cases if case.case_id in rest} == {"imam", "Q Center", "Qatar"}


def test_where_a_kind_is_short_there_are_fewer(anchored: LanguageModel, pool: list[Case]) -> None:
    later = [case for case in pool if for_models.subject_tokens(anchored, case.request).first > 0][:4]
    assert contrast.draw_by_subject(anchored, later, first=3, others=9, seed=0) == later
    with pytest.raises(EditlibError, match="first=3 and others=0 of 4 cases leave none to edit; draw more"):
        contrast.draw_by_subject(anchored, later, first=3, others=0, seed=0)


def test_cases_whose_subject_cannot_be_located_are_passed_over(
    anchored: LanguageModel, pool: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    locate = for_models.subject_tokens

    def lost(lm: LanguageModel, request: EditRequest) -> for_models.SubjectTokens:
        if request == pool[1].request:
            raise EditlibError("it cannot be located")
        return locate(lm, request)

    monkeypatch.setattr(for_models, "subject_tokens", lost)
    assert contrast.draw_by_subject(anchored, pool[:3], first=9, others=9, seed=0) == [pool[0], pool[2]]


# Who collapses


def test_groups_follow_from_the_perplexity_of_one_method_and_nan_collapses() -> None:
    table = pd.DataFrame(
        {
            "case_id": [1, 2, 3, 4, 5, 1],
            "method": ["rome"] * 5 + ["c-rome"],
            "perplexity_ratio": [1.0, 5.0, math.nan, math.inf, math.nan, 9.0],
            "error": [None, None, None, None, "no", None],
        }
    )
    found = contrast.groups(table, "rome", collapse_ratio=5.0)
    assert found.to_dict() == {1: NORMAL, 2: COLLAPSE, 3: COLLAPSE, 4: COLLAPSE}
    assert contrast.groups(table, "rome", "c-rome", collapse_ratio=5.0)[1] == COLLAPSE  # by either


def test_moments_are_those_of_the_testbed_of_a_corpus_or_none(
    anchored: LanguageModel, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = contrast.moments(anchored, 2, "")
    assert found is not None and list(found.moments) == [2]
    monkeypatch.setattr("editlib.engine.samples.text_start", lambda tokenizer: None)
    assert contrast.moments(lm, LAYER, "") is None  # it can write no text
    with pytest.raises(EditlibError, match="data 'nowhere' is neither a file"):
        contrast.moments(lm, LAYER, "nowhere")


# Keys


def test_case_keys_are_those_a_method_edits_by(lm: LanguageModel, moments: Stats) -> None:
    params = RomeParams(layer=LAYER)
    space = Session(lm, stats=moments)
    found = contrast.case_keys(space, params, REQUESTS)
    for i, request in enumerate(REQUESTS):
        keys = read_keys(lm, LAYER, request, space.contexts(params.contexts)).inputs.double()
        torch.testing.assert_close(found.bare[i], keys[0])
        torch.testing.assert_close(found.mean[i], keys.mean(0), atol=1e-6, rtol=1e-5)
        expected = torch.linalg.solve(moments.moments[LAYER], keys.mean(0))
        torch.testing.assert_close(found.whitened[i], expected, atol=1e-4, rtol=1e-3)


def test_without_covariance_nothing_is_whitened(lm: LanguageModel) -> None:
    found = contrast.case_keys(Session(lm), RomeParams(layer=LAYER, covariance=False), REQUESTS)
    assert torch.equal(found.whitened, found.mean) and torch.equal(found.whitened_cosine, found.cosine)


def test_distance_and_cosine_compare_the_two_keys() -> None:
    found = contrast.CaseKeys(
        bare=torch.tensor([[3.0, 4.0], [1.0, 0.0]]),
        mean=torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
        whitened=torch.tensor([[3.0, 4.0], [-1.0, 0.0]]),
    )
    assert found.distance.tolist() == pytest.approx([0.0, math.sqrt(5) / 2])
    assert found.cosine.tolist() == pytest.approx([1.0, 0.0])
    assert found.whitened_cosine.tolist() == pytest.approx([1.0, -1.0])


def test_keys_are_read_at_the_subject_in_any_number_of_passes(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [encode(lm.tokenizer, request.prompt, request.subject) for request in REQUESTS]
    together = contrast.keys_at(lm, LAYER, rows)
    monkeypatch.setattr(contrast, "ROWS", 1)
    torch.testing.assert_close(contrast.keys_at(lm, LAYER, rows), together, atol=1e-5, rtol=1e-4)
    expected = torch.stack([read_keys(lm, LAYER, request, ["{}"]).inputs[0] for request in REQUESTS]).double()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)


def test_the_first_token_is_the_prompts_own(lm: LanguageModel) -> None:
    for request in REQUESTS:
        row = contrast.first_token(lm, request)
        own = lm.tokenizer(request.text, add_special_tokens=False)["input_ids"]
        assert row.ids[row.last] == own[0]
        assert row.last == len(row.ids) - len(own)


def test_keys_of_too_few_subjects_are_not_told_apart() -> None:
    some, one = torch.randn(6, 3), torch.zeros(2, 3)
    names = [f"s{i}" for i in range(6)], ["t", "t"]
    assert math.isnan(contrast.told_apart(some, one, subjects=names, seed=0).value)
    far = contrast.told_apart(some + 100, torch.randn(3, 3), subjects=(names[0], ["a", "b", "c"]), seed=0)
    assert far.value == 1.0


def test_the_nearest_key_names_its_set() -> None:
    keys, left, right = torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [-5.0]]), torch.tensor([[8.0]])
    assert contrast.nearest(keys, left, right).tolist() == [0, 1]
    assert contrast.nearest(keys, left[:0], right).tolist() == [1, 1]
    assert contrast.nearest(keys, left[:0], right[:0]).tolist() == [-1, -1]


def test_a_map_has_a_row_for_each_key_and_keeps_sets_far_apart_apart() -> None:
    keys = {"a": torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), "b": torch.full((6, 5), 100.0)}
    keys["b"] += keys["a"][:6]
    found = contrast.tsne("map", {**keys, "none": torch.zeros(0, 5)})
    assert found["group"].tolist() == ["a"] * 8 + ["b"] * 6 and set(found["panel"]) == {"map"}
    places = {name: mine[["x", "y"]].to_numpy() for name, mine in found.groupby("group")}
    middle = {name: mine.mean(0) for name, mine in places.items()}
    for name, mine in places.items():
        near, far = (np.linalg.norm(mine - middle[which], axis=1) for which in (name, "b" if name == "a" else "a"))
        assert (near < far).all()
