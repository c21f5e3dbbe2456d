"""Tokens moved to other positions."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from families import T5
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from editlib.data.request import EditRequest
from editlib.editing.methods import Params, hparams_for, solve
from editlib.editing.session import Session
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.positions import later_by_one, placed, second_for_first

IDS = torch.tensor([[7, 301, 42, 9, 130]])


def logits(lm: LanguageModel) -> Tensor:
    with torch.no_grad():
        return lm.model(input_ids=IDS).logits


def test_a_learned_position_is_that_of_a_copied_row(gpt2: LanguageModel) -> None:
    other = copy.deepcopy(gpt2.model)
    with torch.no_grad():
        other.transformer.wpe.weight[0] = other.transformer.wpe.weight[1]
    with placed(gpt2, second_for_first):
        moved = logits(gpt2)
    assert torch.equal(moved, other(input_ids=IDS).logits)
    assert not torch.allclose(moved, logits(gpt2), atol=1e-3)


def test_everything_one_later_changes_nothing_with_rotary_positions(llama: LanguageModel) -> None:
    with placed(llama, later_by_one):
        torch.testing.assert_close(logits(llama), logits_of(llama), rtol=1e-4, atol=1e-4)
    with placed(llama, second_for_first):
        assert not torch.allclose(logits(llama), logits_of(llama), atol=1e-3)


def logits_of(lm: LanguageModel) -> Tensor:
    """Of a copy, which nothing moves."""
    other = copy.deepcopy(lm.model)
    other._forward_pre_hooks.clear()
    with torch.no_grad():
        return other(input_ids=IDS).logits


def test_the_model_is_as_before_behind_the_block_and_after_an_error(lm: LanguageModel) -> None:
    before, fingerprint = logits(lm), lm.fingerprint
    with pytest.raises(KeyError), placed(lm, second_for_first):
        raise KeyError
    assert torch.equal(logits(lm), before)
    assert LanguageModel(lm.model, lm.tokenizer).fingerprint == fingerprint


def test_positions_go_on_behind_what_is_kept(lm: LanguageModel) -> None:
    with torch.no_grad(), placed(lm, second_for_first):
        whole = lm.model(input_ids=IDS).logits
        kept = lm.model(input_ids=IDS[:, :2], use_cache=True).past_key_values
        rest = lm.model(input_ids=IDS[:, 2:], past_key_values=kept).logits
    torch.testing.assert_close(rest, whole[:, 2:], rtol=1e-4, atol=1e-5)


def test_an_edit_is_searched_and_measured_with_moved_tokens(
    gpt2: LanguageModel, ask: EditRequest, corpus: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a model whose first position has the second's embedding."""
    other = LanguageModel(copy.deepcopy(gpt2.model), gpt2.tokenizer)
    with torch.no_grad():
        other.model.transformer.wpe.weight[0] = other.model.transformer.wpe.weight[1]
    monkeypatch.setattr("editlib.editing.session.prefix_contexts", lambda *_, **__: ["{}", "Near the sea. {}"])
    params = hparams_for(gpt2, "rome", covariance=False, steps=3)
    here = replace(ask, prompt="{} is located in")
    with placed(gpt2, second_for_first):
        moved = solved(gpt2, here, params, corpus)
    for mine, theirs in zip(moved, solved(other, here, params, corpus), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def solved(lm: LanguageModel, request: EditRequest, params: Params, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """An edit's change of the weight, and the perplexity of each text under it."""
    space = Session(lm)
    edit = solve(space, "rome", [request], params)
    (name,) = edit.changes
    return edit.delta(name), torch.from_numpy(space.perplexities([edit], texts)[0].per_sentence)


def test_a_model_without_positions_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    lm = LanguageModel(T5ForConditionalGeneration(T5Config(**T5)), tokenizer, name="small-t5")
    with (
        pytest.raises(EditlibError, match="small-t5 takes no positions, so that no token can be moved"),
        placed(lm, second_for_first),
    ):
        pass
