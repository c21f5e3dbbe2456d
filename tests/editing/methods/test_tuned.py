"""LocFT-BF, LoRA and KN: their updates against plain torch, and their limits."""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import compute, hparams_for
from editlib.editing.methods.kn import attributions
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode
from editlib.models.trace import trace

NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the extra peft is not installed")
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel", target_true="Quint"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo", target_true="Quint"),
    EditRequest(prompt="{} is known for its", subject="Uvo", target_new="bells"),
]


def edit(lm: LanguageModel, method: str, requests: list[EditRequest] = REQUESTS, **options: Any) -> Edit:
    return compute(lm, requests, method=method, hparams=hparams_for(lm, method, **options))


def nll(lm: LanguageModel, request: EditRequest, *, end: bool) -> torch.Tensor:
    """Mean loss of a target, with the end of text behind it if asked for, by the plain model."""
    row = encode(lm.tokenizer, request.prompt, request.subject, target=request.target_new)
    ids = [*row.ids, *([lm.tokenizer.eos_token_id] if end else [])]
    logits = lm.model(torch.tensor([ids])).logits[0, row.target - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[row.target :]))


# LocFT-BF


def test_an_epoch_of_one_batch_is_one_step_of_adam_on_the_mean_loss(own: LanguageModel) -> None:
    found = edit(own, "locft-bf", layer=1, steps=1, learning_rate=0.01)
    weight = own.down(1).weight.requires_grad_()
    (gradient,) = torch.autograd.grad(torch.stack([nll(own, r, end=True) for r in REQUESTS]).mean(), weight)
    weight.requires_grad_(False)
    gradient = gradient if own.model.config.model_type == "llama" else gradient.T  # GPT-2 stores the transpose
    expected = -0.01 * gradient / (gradient.abs() + 1e-8)
    (name,) = found.changes
    clear = gradient.abs() > 1e-3 * gradient.abs().max()  # a sign may turn at zero
    torch.testing.assert_close(found.delta(name)[clear], expected[clear], rtol=1e-3, atol=1e-6)


def test_a_batch_that_is_learnt_takes_no_step_and_an_epoch_of_such_is_the_last(lm: LanguageModel) -> None:
    found = edit(lm, "locft-bf", layer=1, stop_loss=1e3)
    assert found.norm() == 0 and found.diagnostics["steps"] == 1


def test_the_order_of_batches_is_that_of_the_seed(lm: LanguageModel) -> None:
    first, again, other = (edit(lm, "locft-bf", layer=1, steps=2, batch=1, seed=seed) for seed in (0, 0, 1))
    (name,) = first.changes
    assert torch.equal(first.delta(name), again.delta(name)) and not torch.equal(first.delta(name), other.delta(name))


def test_breadth_first_lowers_the_loss_of_all(lm: LanguageModel) -> None:
    found = edit(lm, "locft-bf", layer=1, batch=2, learning_rate=0.01)
    first, last = found.diagnostics["losses"][0], found.diagnostics["losses"][-1]
    assert last < first - 1


# LoRA


@NEEDS_PEFT
def test_the_merged_adapter_is_what_was_trained_and_the_model_is_as_it_was(lm: LanguageModel) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    modules, text = [type(module) for module in lm.model.modules()], torch.tensor([[3, 4, 5]])
    logits = lm.model(text).logits
    found = edit(lm, "lora", REQUESTS[:2], layers=[0, 1], steps=8, learning_rate=0.02)
    assert [type(module) for module in lm.model.modules()] == modules and "peft_config" not in vars(lm.model)
    assert lm.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert torch.equal(lm.model(text).logits, logits)
    assert all(torch.linalg.matrix_rank(found.delta(name)) <= 8 for name in found.changes)
    losses = found.diagnostics["losses"]
    with found.applied(lm):
        after = float(torch.stack([nll(lm, request, end=False) for request in REQUESTS[:2]]).mean())
    assert after < losses[-1] < losses[0]  # the last step came after the last loss


@NEEDS_PEFT
def test_lora_is_the_same_again_and_leaves_the_random_numbers_alone(lm: LanguageModel) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = edit(lm, "lora", REQUESTS[:1], layers=[1], steps=3)
    assert torch.equal(torch.rand(3), expected)
    again, other = (edit(lm, "lora", REQUESTS[:1], layers=[1], steps=3, seed=seed) for seed in (0, 1))
    (name,) = first.changes
    assert torch.equal(first.delta(name), again.delta(name)) and not torch.equal(first.delta(name), other.delta(name))


def test_without_peft_lora_says_what_to_install(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editlib.editing.methods.lora.find_spec", lambda _: None)
    with pytest.raises(EditlibError, match=r"^lora needs the library peft; install it with: pip install 'editlib\[p"):
        compute(gpt2, REQUESTS[:1], method="lora")


# KN


def test_attributions_are_the_gradients_along_the_line_one_point_at_a_time(lm: LanguageModel) -> None:
    steps, request = 5, REQUESTS[1]
    found, old, new = attributions(lm, request, steps)
    row = encode(lm.tokenizer, request.prompt, request.subject)
    assert (old, new) == tuple(
        encode(lm.tokenizer, request.prompt, request.subject, target=t).wanted[0] for t in ("Quint", "Daslo")
    )
    ids, module = torch.tensor([row.ids]), lm.down(1)
    with trace(lm.model, lm.layout.name(1)) as seen:
        lm.model(ids)
    key, total = seen[lm.layout.name(1)].input[0, -1].detach(), torch.zeros(lm.weight(1).shape[1])
    for k in range(1, steps + 1):
        point = (key * k / steps).requires_grad_()

        def put(_module: Any, inputs: Any, point: torch.Tensor = point) -> Any:
            return (torch.cat([inputs[0][:, :-1], point[None, None]], 1),)

        handle = module.register_forward_pre_hook(put)
        probability = lm.model(ids).logits[0, -1].softmax(-1)[old]
        handle.remove()
        total += torch.autograd.grad(probability, point)[0]
    torch.testing.assert_close(found[1], key * total / steps, rtol=1e-3, atol=1e-7)


def test_attributions_of_a_layer_add_up_to_what_its_neurons_do(lm: LanguageModel) -> None:
    """Integrated gradients are complete: with many steps their sum is P with the key less P without."""
    found, old, _ = attributions(lm, REQUESTS[1], 400)
    row = encode(lm.tokenizer, REQUESTS[1].prompt, REQUESTS[1].subject)
    ids = torch.tensor([row.ids])

    def without(_module: Any, inputs: Any) -> Any:
        return (torch.cat([inputs[0][:, :-1], torch.zeros_like(inputs[0][:, -1:])], 1),)

    whole = lm.model(ids).logits[0, -1].softmax(-1)[old]
    handle = lm.down(1).register_forward_pre_hook(without)
    none = lm.model(ids).logits[0, -1].softmax(-1)[old]
    handle.remove()
    assert float(found[1].sum()) == pytest.approx(float(whole - none), rel=0.05, abs=1e-5)


def test_kn_writes_the_new_answer_in_place_of_the_old_and_nowhere_else(lm: LanguageModel) -> None:
    found = edit(lm, "kn", REQUESTS[1:2], steps=4)
    attributed, old, new = attributions(lm, REQUESTS[1], 4)
    rows = lm.model.get_output_embeddings().weight
    value = 8 * rows[new] - rows[old]
    for layer in range(lm.num_layers):
        chosen = attributed[layer] > 0.2 * attributed.max()
        name = f"{lm.layout.name(layer)}.weight"
        if chosen.any():
            torch.testing.assert_close(found.delta(name)[:, chosen], value[:, None].expand(-1, int(chosen.sum())))
            assert not found.delta(name)[:, ~chosen].any()
        else:
            assert name not in found.changes
    unknown = replace(REQUESTS[1], target_true=None)
    said = int(
        lm.model(torch.tensor([encode(lm.tokenizer, unknown.prompt, unknown.subject).ids])).logits[0, -1].argmax()
    )
    assert attributions(lm, unknown, 2)[1] == said
