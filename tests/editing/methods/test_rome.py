"""ROME and its variants against their own equation, solved by other means."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plain import Array, distance, least_change, reads

from editlib.bench import plain
from editlib.data.request import EditRequest
from editlib.editing import session as sessions
from editlib.editing.edit import Edit
from editlib.editing.methods import compute, hparams_for, solve
from editlib.editing.methods.rome import Anchor, KeyPolicy, RomeParams
from editlib.editing.session import Session
from editlib.editing.stats import Stats, second_moments_of
from editlib.engine.prefixes import prefix_contexts
from editlib.engine.values import Target
from editlib.errors import EditlibError
from editlib.measuring.scores import target_probability
from editlib.models.language_model import LanguageModel

LAYER = 1
CONSISTENT = ["c-rome", "p-rome"]
ALL = ["rome", *CONSISTENT]


def outputs(lm: LanguageModel, request: EditRequest, contexts: Sequence[str]) -> tuple[Array, Array]:
    """Inputs and outputs of the edited layer at the subject's last token, one context at a time."""
    return reads(lm, lm.layout.name(LAYER), request, contexts)


@pytest.fixture(scope="module")
def search() -> RomeParams:
    return RomeParams(layer=LAYER, steps=6, learning_rate=0.3)


@pytest.fixture(scope="module")
def edits(lm: LanguageModel, moments: Stats, ask: EditRequest, search: RomeParams) -> dict[str, Edit]:
    """One edit of each method, with covariance."""
    return {m: compute(lm, [ask], method=m, hparams=search, stats=moments) for m in ALL}


@pytest.fixture(scope="module")
def target(lm: LanguageModel, ask: EditRequest, search: RomeParams) -> Target:
    """v*, which all methods share."""
    return plain.target(lm, lm.layout.name(LAYER), ask, prefix_contexts(lm), search)


def delta(lm: LanguageModel, edit: Edit) -> Array:
    ((name, change),) = edit.changes.items()
    assert name == f"{lm.layout.name(LAYER)}.weight"
    return change.left.double().numpy() @ change.right.double().numpy().T


# What the edited model does


def test_rome_maps_the_unprefixed_key_to_the_value(
    lm: LanguageModel, edits: dict[str, Edit], target: Target, ask: EditRequest
) -> None:
    with edits["rome"].applied(lm):
        _, values = outputs(lm, ask, ["{}"])
    assert distance(values[0], target.value.double().numpy()) < 1e-5


def test_p_rome_maps_the_unprefixed_key_to_the_value(
    lm: LanguageModel, edits: dict[str, Edit], target: Target, ask: EditRequest
) -> None:
    with edits["p-rome"].applied(lm):
        _, values = outputs(lm, ask, ["{}"])
    assert distance(values[0], target.value.double().numpy()) < 1e-5


def test_c_rome_maps_the_mean_key_over_contexts_to_the_value(
    lm: LanguageModel, edits: dict[str, Edit], target: Target, ask: EditRequest
) -> None:
    with edits["c-rome"].applied(lm):
        _, values = outputs(lm, ask, prefix_contexts(lm))
    assert distance(values.mean(0), target.value.double().numpy()) < 1e-5


@pytest.mark.parametrize("method", ["rome", "p-rome"])  # c-rome promises nothing for the bare prompt
def test_the_target_becomes_more_likely(lm: LanguageModel, moments: Stats, method: str) -> None:
    request = EditRequest(prompt="The town is {}", subject="Brast Nolva", target_new="Ostrel")
    before = target_probability(lm, request, "Ostrel")
    search = RomeParams(layer=LAYER, weight_decay=0.0, clamp=20.0)
    with compute(lm, [request], method=method, hparams=search, stats=moments).applied(lm):
        assert target_probability(lm, request, "Ostrel") > before


def test_fc_rome_moves_the_mean_key_by_what_the_search_added(
    lm: LanguageModel, moments: Stats, target: Target, ask: EditRequest, search: RomeParams
) -> None:
    _, before = outputs(lm, ask, prefix_contexts(lm))
    with compute(lm, [ask], method="fc-rome", hparams=search, stats=moments).applied(lm):
        _, after = outputs(lm, ask, prefix_contexts(lm))
    assert distance((after - before).mean(0), target.change.double().numpy()) < 1e-5


# The equation


def test_fc_rome_is_the_least_change_that_moves_the_mean_key_by_delta(
    lm: LanguageModel, moments: Stats, target: Target, ask: EditRequest, search: RomeParams
) -> None:
    edit = compute(lm, [ask], method="fc-rome", hparams=search, stats=moments)
    keys, _ = outputs(lm, ask, prefix_contexts(lm))
    expected = least_change(moments.moments[LAYER].numpy(), keys.mean(0), target.change.double().numpy())
    assert distance(delta(lm, edit), expected) < 1e-5
    assert edit.diagnostics["denominator"] == edit.diagnostics["denominator_consistent"]


@pytest.mark.parametrize("anchor", ["unprefixed", "current"])
def test_fc_rome_cannot_be_anchored_elsewhere(lm: LanguageModel, anchor: str) -> None:
    with pytest.raises(EditlibError, match=f"fc-rome stands for anchor='mean', so it cannot be '{anchor}'"):
        hparams_for(lm, "fc-rome", anchor=anchor)


@pytest.mark.parametrize("method", CONSISTENT)
def test_a_consistent_update_is_the_least_change_that_maps_the_key(
    lm: LanguageModel, edits: dict[str, Edit], moments: Stats, target: Target, ask: EditRequest, method: str
) -> None:
    keys, values = outputs(lm, ask, prefix_contexts(lm))
    key, value = (keys.mean(0), values.mean(0)) if method == "c-rome" else (keys[0], values[0])
    expected = least_change(moments.moments[LAYER].numpy(), key, target.value.double().numpy() - value)
    assert distance(delta(lm, edits[method]), expected) < 1e-5


def test_rome_is_the_published_formula(
    lm: LanguageModel, edits: dict[str, Edit], moments: Stats, target: Target, ask: EditRequest
) -> None:
    keys, values = outputs(lm, ask, prefix_contexts(lm))
    whitened = np.linalg.inv(moments.moments[LAYER].numpy()) @ keys.mean(0)
    expected = np.outer(target.value.double().numpy() - values[0], whitened) / (whitened @ keys[0])
    assert distance(delta(lm, edits["rome"]), expected) < 1e-5


@pytest.mark.parametrize("method", ALL)
def test_without_covariance_the_key_itself_is_the_direction(
    lm: LanguageModel, target: Target, ask: EditRequest, search: RomeParams, method: str
) -> None:
    edit = compute(lm, [ask], method=method, hparams=replace(search, covariance=False))
    keys, values = outputs(lm, ask, prefix_contexts(lm))
    k_in = keys[0] if method == "p-rome" else keys.mean(0)
    k_out, current = (keys.mean(0), values.mean(0)) if method == "c-rome" else (keys[0], values[0])
    expected = np.outer(target.value.double().numpy() - current, k_in) / (k_in @ k_out)
    assert distance(delta(lm, edit), expected) < 1e-5


def test_all_variants_agree_when_all_prefix_contexts_are_empty(
    lm: LanguageModel, moments: Stats, ask: EditRequest, search: RomeParams, tmp_path: Path
) -> None:
    (tmp_path / "prefixes.json").write_text('{"contexts": ["{}", "{}", "{}"]}')
    alone = LanguageModel(lm.model, lm.tokenizer, folder=tmp_path)
    names = (*ALL, "fc-rome")
    first, *others = (delta(lm, compute(alone, [ask], method=m, hparams=search, stats=moments)) for m in names)
    assert all(distance(other, first) < 1e-5 for other in others)


@pytest.mark.parametrize("method", ALL)
def test_in_double_precision_the_update_is_exact(
    own: LanguageModel, ask: EditRequest, search: RomeParams, corpus: list[str], method: str
) -> None:
    double = LanguageModel(own.model.double(), own.tokenizer)
    moments = second_moments_of(double, [LAYER], corpus=corpus)
    contexts = prefix_contexts(double)
    target = plain.target(double, double.layout.name(LAYER), ask, contexts, search).value.numpy()
    edit = compute(double, [ask], method=method, hparams=search, stats=moments)
    keys, values = outputs(double, ask, contexts)
    k_in = keys[0] if method == "p-rome" else keys.mean(0)
    k_out, current = (keys.mean(0), values.mean(0)) if method == "c-rome" else (keys[0], values[0])
    whitened = np.linalg.solve(moments.moments[LAYER].numpy(), k_in)
    assert distance(delta(double, edit), np.outer(target - current, whitened) / (whitened @ k_out)) < 1e-10
    with edit.applied(double):
        _, edited = outputs(double, ask, contexts)
    assert distance(edited.mean(0) if method == "c-rome" else edited[0], target) < 1e-10


# Diagnostics


@pytest.mark.parametrize("method", ALL)
def test_diagnostics_say_what_the_update_is_made_of(
    lm: LanguageModel, edits: dict[str, Edit], moments: Stats, target: Target, ask: EditRequest, method: str
) -> None:
    d = edits[method].diagnostics
    keys, values = outputs(lm, ask, prefix_contexts(lm))
    k_in = keys[0] if method == "p-rome" else keys.mean(0)
    k_out, current = (keys.mean(0), values.mean(0)) if method == "c-rome" else (keys[0], values[0])
    whitened = np.linalg.solve(moments.moments[LAYER].numpy(), k_in)
    length = np.linalg.norm(whitened)
    residual = np.linalg.norm(target.value.double().numpy() - current)
    expected = {
        "numerator": residual,
        "denominator": whitened @ k_out / length,
        "denominator_consistent": whitened @ k_in / length,
        "numerator_unscaled": residual * length,
        "denominator_unscaled": whitened @ k_out,
        "delta_norm": np.linalg.norm(delta(lm, edits[method])),
        "weight_norm": lm.weight(LAYER).norm().item(),
    }
    assert {name: d[name] for name in expected} == {name: pytest.approx(v, rel=1e-4) for name, v in expected.items()}
    assert d["delta_norm"] == pytest.approx(d["numerator"] / abs(d["denominator"]), rel=1e-5)
    assert d["delta_norm"] == pytest.approx(d["numerator_unscaled"] / abs(d["denominator_unscaled"]), rel=1e-5)
    assert (d["steps"], d["losses"]) == (len(target.losses), pytest.approx(target.losses, rel=1e-5))


def test_consistent_methods_have_the_consistent_denominator(edits: dict[str, Edit]) -> None:
    for method in CONSISTENT:
        d = edits[method].diagnostics
        assert d["denominator"] == pytest.approx(d["denominator_consistent"], rel=1e-9)
        assert d["denominator"] > 0
    inconsistent = edits["rome"].diagnostics
    assert inconsistent["denominator"] != pytest.approx(inconsistent["denominator_consistent"], rel=1e-3)


def test_an_edit_records_what_made_it(lm: LanguageModel, edits: dict[str, Edit], ask: EditRequest) -> None:
    for method, policy in zip(ALL, ["mixed", "prefixed", "unprefixed"], strict=True):
        edit = edits[method]
        assert (edit.method, edit.requests, edit.fingerprint) == (method, (ask,), lm.fingerprint)
        assert (edit.hparams["keys"], edit.hparams["layer"], edit.hparams["steps"]) == (policy, LAYER, 6)


def test_a_broken_model_gives_numbers_that_say_so(own: LanguageModel, ask: EditRequest, search: RomeParams) -> None:
    prefix_contexts(own)
    own.weight(0).fill_(math.nan)
    edit = compute(own, [ask], method="rome", hparams=replace(search, covariance=False))
    assert math.isnan(edit.diagnostics["denominator"])
    assert math.isnan(edit.diagnostics["losses"][0])


# Computing


def test_computing_leaves_the_model_alone(own: LanguageModel, ask: EditRequest, search: RomeParams) -> None:
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    compute(own, [ask], method="rome", hparams=replace(search, covariance=False))
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())


def test_a_session_searches_once_for_a_whole_family(
    lm: LanguageModel, edits: dict[str, Edit], moments: Stats, ask: EditRequest, search: RomeParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    searches, search_all = list[int](), sessions.search
    monkeypatch.setattr(sessions, "search", lambda *given, **more: (searches.append(1), search_all(*given, **more))[1])
    space = Session(lm, stats=moments)
    for method in ALL:
        params = hparams_for(lm, method, layer=LAYER, steps=6, learning_rate=0.3)
        assert np.array_equal(delta(lm, solve(space, method, [ask], params)), delta(lm, edits[method]))
    solve(space, "plain", [ask], replace(search, covariance=False))
    assert len(searches) == 1
    space.forget_requests()
    solve(space, "again", [ask], search)
    assert len(searches) == 2


def test_statistics_are_made_from_the_corpus(
    lm: LanguageModel, ask: EditRequest, search: RomeParams, corpus: list[str]
) -> None:
    edit = compute(lm, [ask], method="rome", hparams=search, corpus=corpus)
    given = compute(lm, [ask], method="rome", hparams=search, stats=second_moments_of(lm, [LAYER], corpus=corpus))
    assert np.array_equal(delta(lm, edit), delta(lm, given))


# Mistakes


def test_a_singular_moment_is_refused(lm: LanguageModel, moments: Stats, ask: EditRequest, search: RomeParams) -> None:
    flat = moments.moments[LAYER].clone()
    flat[3], flat[:, 3] = 0, 0
    with pytest.raises(EditlibError, match="^the second moment of the keys is singular; use a longer corpus or cov"):
        compute(lm, [ask], method="rome", hparams=search, stats=replace(moments, moments={LAYER: flat}))


def test_statistics_of_another_model_are_refused(
    lm: LanguageModel, moments: Stats, ask: EditRequest, search: RomeParams
) -> None:
    other = replace(moments, header=replace(moments.header, model="0" * 64))
    with pytest.raises(EditlibError, match="^these statistics were made for model 000000000000, not for tiny"):
        compute(lm, [ask], method="rome", hparams=search, stats=other)


# Variants


def test_the_mean_key_may_leave_out_the_empty_context(
    lm: LanguageModel, moments: Stats, target: Target, ask: EditRequest, search: RomeParams
) -> None:
    edit = compute(lm, [ask], method="c-rome", hparams=replace(search, empty_context=False), stats=moments)
    keys, values = outputs(lm, ask, prefix_contexts(lm)[1:])
    residual = target.value.double().numpy() - values.mean(0)
    assert distance(delta(lm, edit), least_change(moments.moments[LAYER].numpy(), keys.mean(0), residual)) < 1e-5


@pytest.mark.parametrize(("anchor", "keys"), [("mean", "prefixed"), ("current", "unprefixed")])
def test_the_change_of_value_may_start_elsewhere(
    lm: LanguageModel, target: Target, ask: EditRequest, search: RomeParams, anchor: Anchor, keys: KeyPolicy
) -> None:
    space = Session(lm)
    params = replace(search, covariance=False, anchor=anchor, keys=keys)
    with solve(space, "variant", [ask], params).applied(lm):
        _, after = outputs(lm, ask, prefix_contexts(lm))
    _, before = outputs(lm, ask, prefix_contexts(lm))
    moved = (after - before).mean(0) if keys == "prefixed" else (after - before)[0]
    assert distance(moved, target.change.double().numpy()) < 1e-4
