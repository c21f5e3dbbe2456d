"""CoachHooK's validated hooks: z-scores against numpy, the two limits of the threshold, and batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.methods.coachhook import recorded
from editlib.editing.overlays.validated import Validated, z_scores
from editlib.engine.perplexity import perplexity
from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace

TEXTS = ["Zen is located in Daslo, near the sea.", "Brast Nolva is known for its bells today and tomorrow."]


@pytest.fixture
def shadow(lm: LanguageModel) -> Validated:
    """Random changes of two layers."""
    d_out, d_in = lm.weight(0).shape
    generator = torch.Generator().manual_seed(0)
    left, right = (0.3 * torch.randn(2, size, 2, generator=generator) for size in (d_out, d_in))
    return Validated((lm.layout.name(0), lm.layout.name(1)), 0, left, right, torch.tensor([0.5, 0.5]))


def edit(lm: LanguageModel, ask: EditRequest, shadow: Validated) -> Edit:
    return Edit("coachhook", (ask,), {}, {}, lm.fingerprint, overlay=shadow)


def logits(lm: LanguageModel, text: str) -> torch.Tensor:
    found: torch.Tensor = lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]])).logits
    return found


def test_z_scores_are_numpys_of_the_tokens_up_to_each() -> None:
    moved = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)).double() * 10
    found = z_scores(moved).numpy()
    for row, scores in zip(moved.numpy(), found, strict=True):
        assert scores[0] == -math.inf
        for t in range(1, len(row)):
            seen = row[: t + 1]
            assert scores[t] == pytest.approx((row[t] - seen.mean()) / seen.std(ddof=1), abs=1e-9)
    whole = (moved.numpy() - moved.numpy().mean(1, keepdims=True)) / moved.numpy().std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(z_scores(moved, whole=True).numpy(), whole)


def test_among_n_tokens_no_z_score_is_larger_than_their_number_allows() -> None:
    """(n - 1) / sqrt(n): a threshold of 2.2 is out of reach of prompts of fewer than seven tokens."""
    moved = torch.zeros(1, 8)
    moved[0, -1] = 1e4
    for n in range(2, 9):
        top = torch.cat([torch.zeros(1, n - 1), torch.full((1, 1), 1e4)], 1)
        assert float(z_scores(top).max()) == pytest.approx((n - 1) / n**0.5)
    assert (7 - 1) / 7**0.5 > 2.2 > (6 - 1) / 6**0.5


def test_coachhook_with_alpha_at_infinity_is_the_base_model_bit_for_bit(
    lm: LanguageModel, ask: EditRequest, shadow: Validated
) -> None:
    before, measured = logits(lm, ask.text), perplexity(lm, TEXTS)
    with edit(lm, ask, replace(shadow, thresholds=torch.full((2,), math.inf))).applied(lm):
        assert torch.equal(logits(lm, ask.text), before)
        assert (perplexity(lm, TEXTS).losses == measured.losses).all()


def test_coachhook_with_alpha_at_minus_infinity_always_uses_the_shadow_weights(
    lm: LanguageModel, ask: EditRequest, shadow: Validated
) -> None:
    parts = zip(shadow.modules, shadow.left, shadow.right, strict=True)
    changes = {f"{name}.weight": LowRank(left, right) for name, left, right in parts}
    with Edit("memit-seq", (ask,), changes, {}, lm.fingerprint).applied(lm):
        written = logits(lm, ask.text), perplexity(lm, TEXTS).losses
    with edit(lm, ask, replace(shadow, thresholds=torch.full((2,), -math.inf))).applied(lm):
        torch.testing.assert_close(logits(lm, ask.text), written[0], rtol=1e-4, atol=1e-4)
        assert perplexity(lm, TEXTS).losses == pytest.approx(written[1], rel=1e-4)


def test_shadow_weights_that_are_the_weights_change_nothing(
    lm: LanguageModel, ask: EditRequest, shadow: Validated
) -> None:
    before = logits(lm, ask.text)
    with edit(lm, ask, replace(shadow, left=torch.zeros_like(shadow.left))).applied(lm):
        assert torch.equal(logits(lm, ask.text), before)


def test_what_is_said_at_a_token_does_not_depend_on_what_follows_or_on_the_batch(
    lm: LanguageModel, ask: EditRequest, shadow: Validated
) -> None:
    ids = lm.tokenizer(TEXTS[1])["input_ids"]
    with edit(lm, ask, shadow).applied(lm):
        whole, begun = lm.model(torch.tensor([ids])).logits, lm.model(torch.tensor([ids[:6]])).logits
        together, apart = perplexity(lm, TEXTS), perplexity(lm, TEXTS, batch_tokens=1)
    torch.testing.assert_close(whole[:, :6], begun, rtol=1e-4, atol=1e-4)
    assert together.per_sentence == pytest.approx(apart.per_sentence, rel=1e-4)


def test_thresholds_never_rise_and_let_each_prompt_in(lm: LanguageModel, ask: EditRequest, shadow: Validated) -> None:
    other = EditRequest(prompt="{} is located in the far north of", subject="Zen", target_new="Ostrel")
    high = replace(shadow, thresholds=torch.full((2,), 9.0))
    first, _ = recorded(lm, high, [ask])
    both, numbers = recorded(lm, first, [other])
    assert (first.thresholds < 9).all() and (both.thresholds <= first.thresholds).all()
    assert numbers["threshold"] == both.thresholds.tolist()
    for request in (ask, other):
        ids = torch.tensor([lm.tokenizer(request.text)["input_ids"]])
        with trace(lm.model, *shadow.modules) as seen:
            lm.model(ids)
        for i, name in enumerate(shadow.modules):
            scores = both.scores(both.moved(i, seen[name].input))
            assert (scores >= both.thresholds[i]).any()


def test_a_first_token_that_is_massive_hides_the_subject_unless_it_is_left_out(
    own: LanguageModel, ask: EditRequest, shadow: Validated
) -> None:
    """Position 0 is made twenty times as long: its |Δ x| is the outlier, and the z of all others is negative."""
    moved = torch.ones(1, 12, 1)
    moved[0, 0], moved[0, 7] = 20.0, 2.0
    kept, left_out = shadow.scores(moved), replace(shadow, skip=1).scores(moved)
    assert float(kept[0, 7]) < 0 < 2 < float(left_out[0, 7])
    assert float(z_scores(moved[..., 0], whole=True)[0, 0]) > 3  # as the paper has it, position 0 would be edited
    assert left_out[0, 0] == -math.inf and kept[0, 0] == -math.inf
