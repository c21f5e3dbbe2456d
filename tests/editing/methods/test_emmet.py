"""EMMET against least squares, and against C-ROME where the two are the same."""

from dataclasses import replace

import numpy as np
import pytest
from plain import dense, distance, reads, ridge_change

from editlib.bench import plain
from editlib.data.request import EditRequest
from editlib.editing.methods import compute
from editlib.editing.methods.emmet import EmmetParams
from editlib.editing.methods.rome import RomeParams
from editlib.editing.stats import Stats
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

LAYER = 1
SEARCH = EmmetParams(layer=LAYER, steps=4, learning_rate=0.3)
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo"),
    EditRequest(prompt="Near the sea lies {}", subject="Uvo", target_new="Parvo"),
]


def test_emmet_with_one_key_is_c_rome(lm: LanguageModel, moments: Stats, ask: EditRequest) -> None:
    c_rome = RomeParams(layer=LAYER, keys="prefixed", steps=4, learning_rate=0.3)
    one = compute(lm, [ask], method="emmet", hparams=SEARCH, stats=moments)
    other = compute(lm, [ask], method="c-rome", hparams=c_rome, stats=moments)
    (name,) = one.changes
    assert distance(dense(one, name), dense(other, name)) < 1e-5


@pytest.mark.parametrize("covariance", [True, False])
def test_several_requests_are_met_by_least_squares(lm: LanguageModel, moments: Stats, covariance: bool) -> None:
    params = replace(SEARCH, covariance=covariance)
    edit = compute(lm, REQUESTS, method="emmet", hparams=params, stats=moments)
    name, contexts = lm.layout.name(LAYER), prefix_contexts(lm)
    pairs = [reads(lm, name, r, contexts) for r in REQUESTS]
    keys = np.stack([k.mean(0) for k, _ in pairs], 1)
    wanted = np.stack([plain.target(lm, name, r, contexts, params).value.double().numpy() for r in REQUESTS], 1)
    residual = wanted - np.stack([v.mean(0) for _, v in pairs], 1)
    moment = moments.moments[LAYER].numpy() if covariance else np.eye(len(keys))
    assert distance(dense(edit, f"{name}.weight"), ridge_change(moment, 0.1, keys, residual)) < 1e-5
    assert edit.changes[f"{name}.weight"].left.shape[1] == len(REQUESTS)
    assert edit.diagnostics["numerator"] == pytest.approx(np.linalg.norm(residual), rel=1e-4)


def test_without_ridge_every_mean_key_is_mapped_to_its_value(lm: LanguageModel, moments: Stats) -> None:
    edit = compute(lm, REQUESTS, method="emmet", hparams=replace(SEARCH, ridge=0.0), stats=moments)
    name, contexts = lm.layout.name(LAYER), prefix_contexts(lm)
    with edit.applied(lm):
        values = [reads(lm, name, r, contexts)[1].mean(0) for r in REQUESTS]
    for value, request in zip(values, REQUESTS, strict=True):
        wanted = plain.target(lm, name, request, contexts, SEARCH).value.double().numpy()
        assert distance(value, wanted) < 1e-3


def test_one_request_twice_needs_a_ridge(lm: LanguageModel, moments: Stats, ask: EditRequest) -> None:
    with pytest.raises(EditlibError, match="^two of these 2 requests have the same key; edit them apart or give a rid"):
        compute(lm, [ask, ask], method="emmet", hparams=replace(SEARCH, ridge=0.0), stats=moments)
    assert compute(lm, [ask, ask], method="emmet", hparams=SEARCH, stats=moments).norm() > 0
