"""GRACE's codebook: what is outside its balls is as it was, and how balls come, widen and part."""

import math

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods.grace import GAP, learned
from editlib.editing.overlays.codebook import Codebook
from editlib.engine.perplexity import perplexity
from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace


def book(*entries: tuple[tuple[float, ...], tuple[int, ...], float], module: str = "m") -> Codebook:
    """A codebook of keys, labels and radii; values count from 1."""
    keys = torch.tensor([key for key, _, _ in entries]) if entries else torch.zeros(0, 2)
    values = torch.arange(1.0, len(entries) + 1)[:, None].expand(-1, 3)
    return Codebook(
        module, tuple(label for _, label, _ in entries), keys, values, torch.tensor([r for *_, r in entries])
    )


@pytest.fixture
def asked(lm: LanguageModel, ask: EditRequest) -> torch.Tensor:
    return torch.tensor([lm.tokenizer(ask.text)["input_ids"]])


def in_force(lm: LanguageModel, ask: EditRequest, overlay: Codebook) -> Edit:
    return Edit("grace", (ask,), {}, {}, lm.fingerprint, overlay=overlay)


@pytest.mark.parametrize("entries", [0, 1])
def test_grace_outside_every_ball_is_the_base_model_bit_for_bit(
    lm: LanguageModel, ask: EditRequest, asked: torch.Tensor, entries: int
) -> None:
    module, (d_out, d_in) = lm.layout.name(1), lm.weight(1).shape
    far = Codebook(
        module, ((1,),) * entries, torch.full((entries, d_in), 1e3), torch.ones(entries, d_out), torch.ones(entries)
    )
    before, texts = lm.model(asked).logits, [ask.text, "Zen is located in Daslo."]
    measured = perplexity(lm, texts)
    with in_force(lm, ask, far).applied(lm):
        assert torch.equal(lm.model(asked).logits, before)
        assert (perplexity(lm, texts).losses == measured.losses).all()


def test_a_token_within_a_ball_gets_its_value_and_no_other_token_does(
    lm: LanguageModel, ask: EditRequest, asked: torch.Tensor
) -> None:
    module = lm.layout.name(1)
    with trace(lm.model, module) as seen:
        lm.model(asked)
    keys, outputs = seen[module].input[0], seen[module].output[0]
    value = torch.arange(float(outputs.shape[1]))
    overlay = Codebook(module, ((1,),), keys[2:3], value[None], torch.tensor([1e-3]))
    block = f"{lm.layout.blocks}.1"
    with in_force(lm, ask, overlay).applied(lm), trace(lm.model, module, block) as after:
        lm.model(asked)
    assert torch.equal(after[module].output[0, 2], value)
    others = [i for i in range(asked.shape[1]) if i != 2]
    assert torch.equal(after[module].output[0, others], outputs[others])


def test_the_nearest_key_answers_even_where_inputs_are_massive() -> None:
    far = torch.zeros(1, 8)
    far[0, 0] = 3e4
    keys = torch.cat([far, far + torch.eye(8)[1] * 0.5])
    found = Codebook("m", ((1,), (2,)), keys, torch.ones(2, 3), torch.ones(2)).nearest(keys)
    assert found[0].tolist() == [0, 0] and found[1].tolist() == [0, 1]


def test_another_target_nearby_parts_both_balls() -> None:
    begun = book(((0.0, 0.0), (7, 8), 1.0))
    for distance in (0.3, 1.0, 1.9):
        after, fresh = learned(begun, torch.tensor([distance, 0.0]), (8, 7), 1.0)  # the mean of its ids is the same
        assert fresh and after.labels == ((7, 8), (8, 7))
        assert float(after.radii.sum()) == pytest.approx(distance - GAP, abs=1e-6)
        assert after.radii[1] == pytest.approx(distance / 2)


def test_the_same_target_nearby_widens_the_ball_and_adds_no_entry() -> None:
    begun = book(((0.0, 0.0), (7,), 1.0))
    after, fresh = learned(begun, torch.tensor([1.5, 0.0]), (7,), 1.0)
    assert not fresh and len(after.keys) == 1 and after.radii.tolist() == [1.5]
    again, fresh = learned(after, torch.tensor([1.5, 0.0]), (7,), 1.0)
    assert not fresh and again.radii.tolist() == [1.5]


def test_a_key_far_from_all_is_new_only_beyond_both_radii() -> None:
    begun = book(((0.0, 0.0), (7,), 1.0))
    far, fresh = learned(begun, torch.tensor([2.1, 0.0]), (7,), 1.0)
    assert fresh and far.radii.tolist() == [1.0, 1.0]
    first, fresh = learned(book(), torch.tensor([2.1, 0.0]), (7,), 1.0)
    assert fresh and len(first.keys) == 1 and math.isclose(float(first.radii), 1.0)


def test_the_third_target_is_compared_with_the_key_it_is_near_to() -> None:
    """The released code compares with another one from here on."""
    begun = book(((0.0, 0.0), (1,), 1.0), ((10.0, 0.0), (2,), 1.0))
    after, fresh = learned(begun, torch.tensor([10.5, 0.0]), (2,), 1.0)
    assert not fresh and after.radii.tolist() == [1.0, 1.0]
    after, fresh = learned(begun, torch.tensor([0.5, 0.0]), (2,), 1.0)
    assert fresh and after.radii[0] == pytest.approx(0.25 - GAP)
