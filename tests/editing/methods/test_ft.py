"""FT and FT-L against a plain training loop that writes the weight."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.methods import compute
from editlib.editing.methods.ft import FtlParams, FtParams, Objective
from editlib.models.language_model import LanguageModel, oriented

LAYER = 1
PARAMS = FtParams(layer=LAYER, steps=4, learning_rate=0.01)
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel xyz"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo"),
]
OBJECTIVES: list[Objective] = ["teacher-forced", "last-position"]


def plain_loss(lm: LanguageModel, request: EditRequest, objective: Objective) -> Tensor:
    """Mean NLL of the target's tokens, one row, no padding."""
    prompt = lm.tokenizer(request.text)["input_ids"]
    target = lm.tokenizer(f" {request.target_new}", add_special_tokens=False)["input_ids"]
    scores = lm.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    at = [len(prompt) - 1 + (j if objective == "teacher-forced" else 0) for j in range(len(target))]
    return -torch.stack([scores[i, token] for i, token in zip(at, target, strict=True)]).mean()


def plain_training(lm: LanguageModel, objective: Objective) -> tuple[Tensor, list[float]]:
    """Change of the weight after Adam on the weight itself, and the losses."""
    model = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer)
    weight = model.down(LAYER).weight
    weight.requires_grad_(True)
    adam, losses = torch.optim.Adam([weight], lr=PARAMS.learning_rate), []
    for _ in range(PARAMS.steps):
        loss = torch.stack([plain_loss(model, r, objective) for r in REQUESTS]).mean()
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return oriented(model.down(LAYER)).detach() - lm.weight(LAYER), losses


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_change_is_that_of_a_plain_training_loop(lm: LanguageModel, objective: Objective) -> None:
    edit = compute(lm, REQUESTS, method="ft", hparams=replace(PARAMS, objective=objective))
    expected, losses = plain_training(lm, objective)
    assert edit.diagnostics["losses"] == pytest.approx(losses, rel=1e-4)
    close = (edit.delta(f"{lm.layout.name(LAYER)}.weight") - expected).norm() / expected.norm()
    assert close < 1e-3  # Adam divides by tiny gradients, which amplifies rounding


def test_the_objectives_differ_for_targets_of_several_tokens_only(lm: LanguageModel) -> None:
    def first_loss(request: EditRequest, objective: Objective) -> float:
        params = replace(PARAMS, steps=1, objective=objective)
        return float(compute(lm, [request], method="ft", hparams=params).diagnostics["losses"][0])

    several, one = (first_loss(REQUESTS[0], objective) for objective in OBJECTIVES)
    assert several != pytest.approx(one, rel=1e-3)
    single = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo")
    assert len(lm.tokenizer(" Daslo", add_special_tokens=False)["input_ids"]) == 1
    several, one = (first_loss(single, objective) for objective in OBJECTIVES)
    assert several == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 3.3e-4])
def test_the_bound_of_ft_l_holds_to_the_bit(own: LanguageModel, limit: float) -> None:
    params = FtlParams(layer=LAYER, steps=6, learning_rate=0.01, limit=limit)
    edit = compute(own, REQUESTS, method="ft-l", hparams=params)
    name, before = f"{own.layout.name(LAYER)}.weight", own.weight(LAYER).clone()
    assert edit.delta(name).abs().max().item() == torch.tensor(limit).item()
    with edit.applied(own):
        after = own.weight(LAYER)
        assert (after <= before + limit).all() and (after >= before - limit).all()
        assert not torch.equal(after, before)


def test_ft_has_no_bound(lm: LanguageModel) -> None:
    edit = compute(lm, REQUESTS, method="ft", hparams=PARAMS)
    assert edit.delta(f"{lm.layout.name(LAYER)}.weight").abs().max() > 0.02


def test_a_loss_low_enough_stops_the_training(lm: LanguageModel) -> None:
    edit = compute(lm, REQUESTS, method="ft", hparams=replace(PARAMS, stop_loss=1e9))
    assert (edit.diagnostics["steps"], edit.norm()) == (1, 0.0)


def test_computing_leaves_the_model_alone(own: LanguageModel) -> None:
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    compute(own, REQUESTS, method="ft", hparams=PARAMS)
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())
    assert all(parameter.grad is None for parameter in own.model.parameters())
