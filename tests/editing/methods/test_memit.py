"""MEMIT against its own equations, solved densely with the weights written layer by layer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plain import Array, dense, distance, reads, ridge_change

from editlib.bench import plain
from editlib.data.request import EditRequest
from editlib.editing.methods import compute, hparams_for
from editlib.editing.methods.memit import MemitParams
from editlib.editing.stats import Stats
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError
from editlib.measuring.scores import target_probability
from editlib.models.language_model import LanguageModel, oriented

SEARCH = MemitParams(layers=(0, 1), steps=4, learning_rate=0.3, moment_weight=3.0)
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo"),
]


def brute_force(own: LanguageModel, moments: Stats, requests: list[EditRequest]) -> dict[str, Array]:
    """Every layer's change, solved by least squares; `own` keeps the changed weights."""
    contexts, block = prefix_contexts(own), f"{own.layout.blocks}.1"
    wanted = [plain.target(own, block, r, contexts, SEARCH).value.double().numpy() for r in requests]
    changes = {}
    for i, layer in enumerate(SEARCH.layers):
        name = own.layout.name(layer)
        keys = [reads(own, name, r, contexts)[0] for r in requests]
        mean = np.stack([(k[0] + k[1:].mean(0)) / 2 for k in keys], 1)
        now = np.stack([reads(own, block, r, ["{}"])[1][0] for r in requests], 1)
        residual = (np.stack(wanted, 1) - now) / (len(SEARCH.layers) - i)
        change = ridge_change(moments.moments[layer].numpy(), SEARCH.moment_weight, mean, residual)
        with torch.no_grad():
            oriented(own.down(layer)).add_(torch.tensor(change, dtype=torch.float32))
        changes[f"{name}.weight"] = change
    return changes


@pytest.mark.parametrize("count", [1, 2])
def test_every_layer_is_the_least_squares_solution(
    lm: LanguageModel, own: LanguageModel, moments: Stats, count: int
) -> None:
    edit = compute(lm, REQUESTS[:count], method="memit", hparams=SEARCH, stats=moments)
    expected = brute_force(own, moments, REQUESTS[:count])
    assert edit.changes.keys() == expected.keys()
    for name, change in expected.items():
        assert distance(dense(edit, name), change) < 1e-5


def test_the_targets_become_more_likely(lm: LanguageModel, moments: Stats) -> None:
    requests = [
        EditRequest(prompt="The town is {}", subject="Brast Nolva", target_new="Ostrel"),
        EditRequest(prompt="Near the sea lies {}", subject="Uvo", target_new="Parvo"),
    ]
    before = [target_probability(lm, r, r.target_new) for r in requests]
    search = MemitParams(layers=(0, 1), moment_weight=0.01, clamp=20.0, weight_decay=0.0)
    with compute(lm, requests, method="memit", hparams=search, stats=moments).applied(lm):
        assert all(target_probability(lm, r, r.target_new) > p for r, p in zip(requests, before, strict=True))


def test_computing_leaves_the_model_alone(own: LanguageModel, moments: Stats) -> None:
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    compute(own, REQUESTS, method="memit", hparams=SEARCH, stats=moments)
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())


def test_layers_default_to_those_up_to_the_middle(lm: LanguageModel) -> None:
    assert hparams_for(lm, "memit").layers == (0, 1)


def test_mistakes_are_one_line(lm: LanguageModel, moments: Stats) -> None:
    with pytest.raises(EditlibError, match="^layer 7 is out of range"):
        hparams_for(lm, "memit", layers=(1, 7))
    for layers in ((), (2, 1), (1, 1)):
        with pytest.raises(EditlibError, match="^layers .* must be one or more, in ascending order$"):
            hparams_for(lm, "memit", layers=layers)
    lacking = replace(moments, moments={0: moments.moments[0]})
    with pytest.raises(EditlibError, match="^these statistics have no layer 1"):
        compute(lm, REQUESTS, method="memit", hparams=SEARCH, stats=lacking)
