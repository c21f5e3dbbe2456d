"""MEMOIR and WISE: what is written where, and which texts use it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import METHODS, compute, hparams_for
from editlib.editing.methods.added import inputs_of
from editlib.editing.methods.memoir import Memoir
from editlib.editing.methods.wise import entries, ties
from editlib.editing.overlays.overlay import Overlay
from editlib.editing.overlays.residual import Residual, mean_so_far
from editlib.editing.overlays.side import Side
from editlib.editing.session import Session
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode

REQUESTS = [
    EditRequest(prompt="{} is located in", subject=subject, target_new=target)
    for subject, target in (("Zen", "Ostrel"), ("Brast Nolva", "Daslo"), ("Uvo", "Parvo"), ("Marend", "Quint"))
]
OTHER = "Today the bells of the old town are known for nothing."


def made(lm: LanguageModel, method: str, requests: list[EditRequest], **given: Any) -> Edit:
    return compute(lm, requests, method=method, hparams=hparams_for(lm, method, layer=1, **{"steps": 8, **given}))


def output(lm: LanguageModel, text: str, overlay: Overlay | None = None) -> torch.Tensor:
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    if overlay is None:
        return lm.model(ids).logits
    with overlay.laid(lm):
        return lm.model(ids).logits


def residual(edit: Edit) -> Residual:
    assert isinstance(edit.overlay, Residual)
    return edit.overlay


def side(edit: Edit) -> Side:
    assert isinstance(edit.overlay, Side)
    return edit.overlay


def test_means_leave_first_tokens_out() -> None:
    values = torch.tensor([[[9.0], [1.0], [3.0], [8.0]]])
    assert mean_so_far(values, 0).flatten().tolist() == pytest.approx([9, 5, 13 / 3, 21 / 4])
    assert mean_so_far(values, 1).flatten().tolist() == pytest.approx([9, 1, 2, 4])


@pytest.mark.parametrize("method", ["memoir", "wise"])
def test_the_target_becomes_likelier_and_a_text_that_is_not_meant_stays_bit_for_bit(
    gpt2: LanguageModel, method: str
) -> None:
    margins = {"alpha": 0.5, "beta": 1.0, "gamma": 0.5} if method == "wise" else {}
    edit = made(gpt2, method, REQUESTS[:1], steps=30, **margins)
    losses = edit.diagnostics["losses"][0]
    assert min(losses) < 0.5 * losses[0] or losses[-1] < 0.1
    assert edit.overlay is not None
    strict = replace(edit.overlay, **{"threshold": 1.0} if method == "memoir" else {"ratio": 1e9})
    assert torch.equal(output(gpt2, OTHER, strict), output(gpt2, OTHER))
    assert not torch.equal(output(gpt2, REQUESTS[0].text, edit.overlay), output(gpt2, REQUESTS[0].text))


# MEMOIR


def test_memoir_without_an_edit_is_the_base_model_bit_for_bit(gpt2: LanguageModel) -> None:
    empty = Memoir().begin(Session(gpt2), hparams_for(gpt2, "memoir"))
    assert torch.equal(output(gpt2, OTHER, empty), output(gpt2, OTHER))


def test_memoir_writes_the_columns_of_its_edits_alone(gpt2: LanguageModel) -> None:
    memory = residual(made(gpt2, "memoir", REQUESTS, mask_share=0.1))
    width = memory.delta.shape[1]
    assert memory.masks.shape == (len(REQUESTS), round(0.1 * width))
    untouched = torch.ones(width, dtype=torch.bool)
    untouched[memory.masks.flatten()] = False
    assert memory.delta[:, untouched].eq(0).all() and memory.delta[:, ~untouched].ne(0).any(0).all()
    assert memory.order.sort().values.tolist() == list(range(width))


def test_a_memoir_prompt_has_all_columns_in_common_with_itself(gpt2: LanguageModel) -> None:
    memory = residual(made(gpt2, "memoir", REQUESTS))
    for i, request in enumerate(REQUESTS):
        ids = encode(gpt2.tokenizer, request.prompt, request.subject).ids
        shares, edits = memory.nearest(inputs_of(gpt2, memory.module, ids)[None])
        assert shares[0, -1] == 1 and edits[0, -1] == i


def test_memoir_columns_are_the_largest_of_the_mean_in_another_order(gpt2: LanguageModel) -> None:
    memory = residual(made(gpt2, "memoir", REQUESTS[:1], first_position="drop"))
    ids = encode(gpt2.tokenizer, REQUESTS[0].prompt, REQUESTS[0].subject).ids
    mean = inputs_of(gpt2, memory.module, ids)[1:].mean(0) - memory.background
    largest = sorted(range(len(mean)), key=lambda i: -abs(float(mean[i])))[: memory.masks.shape[1]]
    assert memory.masks[0].tolist() == sorted(memory.order[i].item() for i in largest)


def test_an_edit_of_the_same_memoir_prompt_writes_over_the_earlier(gpt2: LanguageModel) -> None:
    later = replace(REQUESTS[0], target_new="Parvo")
    edit = made(gpt2, "memoir", [REQUESTS[0], later], steps=60)
    assert len(residual(edit).masks) == 1 and edit.diagnostics["alike"] == [None, 1.0]
    logits = output(gpt2, later.text, edit.overlay)[0, -1]
    first, second = (encode(gpt2.tokenizer, r.prompt, r.subject, target=r.target_new).wanted[0]
                     for r in (REQUESTS[0], later))  # fmt: skip
    assert first == second or logits[second] > logits[first]


# WISE


def test_wise_writes_some_entries_within_a_bound(gpt2: LanguageModel) -> None:
    params = hparams_for(gpt2, "wise", limit=0.01)
    memory = side(made(gpt2, "wise", REQUESTS, limit=0.01))
    (delta,) = memory.deltas
    mask = entries(params, delta.shape, 0)
    assert delta[~mask].eq(0).all() and delta.abs().max() == pytest.approx(0.01)
    assert mask.double().mean() == pytest.approx(0.2, abs=0.02) and memory.edits == (4,)


def test_full_wise_memories_are_closed_and_merged(gpt2: LanguageModel) -> None:
    two = side(made(gpt2, "wise", REQUESTS[:3], edits=2, merged=2))
    assert two.edits == (2, 1) and len(two.deltas) == len(two.least) == 2
    parts = side(made(gpt2, "wise", REQUESTS, edits=2, merged=1))
    whole = side(made(gpt2, "wise", REQUESTS, edits=2, merged=2))
    assert parts.edits == (2, 2) and whole.edits == (4,)
    torch.testing.assert_close(whole.deltas[0], ties(parts.deltas, 0.53))
    assert whole.least.item() == parts.least.min()


def test_wise_memories_are_closed_alike_in_one_go_and_one_by_one(gpt2: LanguageModel) -> None:
    given: dict[str, Any] = {"edits": 2, "steps": 4}
    params, session, state = hparams_for(gpt2, "wise", layer=1, **given), Session(gpt2), None
    for request in REQUESTS:
        edit, state = METHODS["wise"].solve(session, [request], params, state)
    assert isinstance(edit, Edit)
    together = side(made(gpt2, "wise", REQUESTS, **given))
    torch.testing.assert_close(side(edit).deltas, together.deltas)
    assert side(edit).edits == together.edits


def test_ties_keeps_what_agrees() -> None:
    one = torch.tensor([[[1.0, -2.0], [0.5, 0.0]]])
    assert torch.equal(ties(one, 1.0), one[0])
    assert torch.equal(ties(one, 0.5), torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    two = torch.cat([one, torch.tensor([[[3.0, 1.0], [-0.5, 4.0]]])])
    assert torch.equal(ties(two, 1.0), torch.tensor([[2.0, -2.0], [0.0, 4.0]]))


def test_the_memory_that_moves_a_wise_text_most_is_used() -> None:
    deltas = torch.stack([torch.eye(2), 3 * torch.eye(2)])
    memory = Side("m", 0, 1.0, (1, 1), deltas, torch.tensor([1.0, 9.0]))
    changes, sizes = memory.moved(torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))
    assert changes.shape == (1, 2, 2, 2) and sizes[0].tolist() == [[1, 3], [2, 6]]


# Both


@pytest.mark.parametrize("method", ["memoir", "wise"])
def test_position_0_is_left_alone_on_request(gpt2: LanguageModel, method: str) -> None:
    edit = made(gpt2, method, REQUESTS[1:2], first_position="drop", **{"ratio": 1e-6} if method == "wise" else {})
    text = REQUESTS[1].text
    assert torch.equal(output(gpt2, text, edit.overlay)[0, 0], output(gpt2, text)[0, 0])
    alone = EditRequest(prompt="{}", subject="Zen", target_new="Ostrel")
    if len(encode(gpt2.tokenizer, "{}", "Zen").ids) == 1:
        with pytest.raises(EditlibError, match="'Zen' has one token, and first_position='drop' leaves it alone"):
            made(gpt2, method, [alone], first_position="drop")


@pytest.mark.parametrize(
    ("method", "given"),
    [("memoir", {"mask_share": 0}), ("memoir", {"threshold": 1.1}), ("wise", {"mask_share": 2}),
     ("wise", {"edits": 0}), ("wise", {"merged": 0}), ("wise", {"density": 0})],
)  # fmt: skip
def test_hyper_parameters_out_of_range_are_refused(gpt2: LanguageModel, method: str, given: dict[str, float]) -> None:
    with pytest.raises(EditlibError, match=next(iter(given))):
        hparams_for(gpt2, method, **given)
