"""Methods that remember the edits before: in a model, one by one, at once, in another order, saved and loaded."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from plain import distance

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit, restored
from editlib.editing.methods import METHODS, compute, hparams_for
from editlib.editing.methods.memit import Batch
from editlib.editing.methods.remembering import MemitSeq
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts
from editlib.sweeps.sequential import sequence

FAMILY = ("memit-seq", "encore", "alphaedit", "nas", "rlsedit", "d4s")
SEARCH = {"steps": 3, "learning_rate": 0.3}
WEIGHTS = {"moment_weight": 3.0}  # small, so that an update does much of what it is asked for
OWN: dict[str, dict[str, Any]] = {
    "memit-seq": WEIGHTS, "encore": WEIGHTS | {"ridge": 0.5}, "alphaedit": {"ridge": 1.0},
    "nas": {"ridge": 1.0, "norm_anchor": 3.0},
    "rlsedit": WEIGHTS | {"rho": 0.5, "mu": 2.0}, "d4s": WEIGHTS,
}  # fmt: skip
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo"),
    EditRequest(prompt="Near the sea lies {}", subject="Uvo", target_new="Parvo"),
]


@pytest.fixture
def exact(lm: LanguageModel) -> LanguageModel:
    """A copy in float64."""
    return LanguageModel(copy.deepcopy(lm.model).double(), lm.tokenizer, name=lm.name)


def of(lm: LanguageModel, moments: Stats) -> Stats:
    """The same second moments, for another copy of the model."""
    return replace(moments, header=replace(moments.header, model=lm.fingerprint))


def params_of(lm: LanguageModel, name: str, **more: Any) -> Any:
    return hparams_for(lm, name, **SEARCH, **OWN[name], **more)


def in_turn(
    lm: LanguageModel, moments: Stats, name: str, batches: Sequence[Sequence[EditRequest]], params: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What all batches together change, and what is remembered; the weights are then as they were."""
    session, state = Session(lm, stats=moments), None
    names = [f"{lm.layout.name(layer)}.weight" for layer in params.layers]
    with restored(lm, names) as weights:
        before = {name: weight.clone() for name, weight in weights.items()}
        for batch in batches:
            session.forget()
            edit, state = METHODS[name].solve(session, batch, params, state)
            assert isinstance(edit, Edit)
            for each, weight in weights.items():
                weight.add_(edit.delta(each).to(weight))
        return {each: weight - before[each] for each, weight in weights.items()}, dict(state or {})


@pytest.mark.parametrize("name", FAMILY)
def test_sequential_equals_one_batch(exact: LanguageModel, moments: Stats, name: str) -> None:
    """With frozen keys and absolute targets; D4S's always are."""
    params, stats = (
        params_of(exact, name, layers=[1], **({} if name == "d4s" else {"frozen": True})),
        of(exact, moments),
    )
    one, state = in_turn(exact, stats, name, [REQUESTS], params)
    first, second, third = REQUESTS
    for batches in ([[first], [second], [third]], [[third], [first, second]], [[second, third], [first]]):
        found, kept = in_turn(exact, stats, name, batches, params)
        for each, change in one.items():
            assert distance(found[each].numpy(), change.numpy()) < 1e-8
        assert {key: (t.shape, t.dtype) for key, t in kept.items()} == {k: (t.shape, t.dtype) for k, t in state.items()}


def test_d4s_is_the_same_in_any_order(exact: LanguageModel, moments: Stats) -> None:
    """At one layer: at the next one, keys are read behind the edits so far."""
    params, stats = params_of(exact, "d4s", layers=[1]), of(exact, moments)
    made = [in_turn(exact, stats, "d4s", [[r] for r in order], params) for order in permutations(REQUESTS)]
    (change, state), *others = made
    for found, kept in others:
        assert all(distance(found[name].numpy(), each.numpy()) < 1e-8 for name, each in change.items())
        assert all(distance(kept[f"{sums}|1"].numpy(), state[f"{sums}|1"].numpy()) < 1e-8 for sums in "AB")


def test_the_state_of_d4s_does_not_grow(lm: LanguageModel, moments: Stats) -> None:
    sizes = [
        {key: tensor.shape for key, tensor in in_turn(lm, moments, "d4s", asked, params_of(lm, "d4s"))[1].items()}
        for asked in ([REQUESTS[:1]], [[request] for request in REQUESTS])
    ]
    assert sizes[0] == sizes[1]


def test_d4s_is_frozen_memit_with_a_past(exact: LanguageModel, moments: Stats) -> None:
    stats, batches = of(exact, moments), [[request] for request in REQUESTS]
    summed, _ = in_turn(exact, stats, "d4s", batches, params_of(exact, "d4s", layers=[1]))
    kept, _ = in_turn(exact, stats, "memit-seq", batches, params_of(exact, "memit-seq", layers=[1], frozen=True))
    for name, change in summed.items():
        assert distance(kept[name].numpy(), change.numpy()) < 1e-8


@pytest.mark.parametrize("residual", ["released", "reread"])
def test_d4s_takes_the_harmonic_number_of_steps_or_memits(lm: LanguageModel, moments: Stats, residual: str) -> None:
    """On several layers the released rule takes the whole residual at each; read again, one edit is MEMIT's."""
    d4s = compute(lm, REQUESTS, method="d4s", hparams=params_of(lm, "d4s", residual=residual), stats=moments)
    memit = compute(lm, REQUESTS, method="memit", hparams=hparams_for(lm, "memit", **SEARCH, **WEIGHTS), stats=moments)
    first, last = memit.changes
    assert distance(d4s.delta(first).numpy(), memit.delta(first).numpy()) < 1e-5
    same = distance(d4s.delta(last).numpy(), memit.delta(last).numpy()) < 1e-5
    assert same is (residual == "reread")


@pytest.mark.parametrize("name", ["memit-seq", "encore", "rlsedit"])
def test_the_first_edit_is_memits_without_ridge(lm: LanguageModel, moments: Stats, name: str) -> None:
    plain = {"encore": {"ridge": 0.0}, "rlsedit": {}, "memit-seq": {}}[name]
    found = compute(lm, REQUESTS, method=name, hparams=hparams_for(lm, name, **SEARCH, **plain), stats=moments)
    memit = compute(lm, REQUESTS, method="memit", hparams=hparams_for(lm, "memit", **SEARCH), stats=moments)
    for each in memit.changes:
        torch.testing.assert_close(found.delta(each), memit.delta(each))


def test_keys_read_again_when_all_layers_have_changed_are_those_solved_with(lm: LanguageModel, moments: Stats) -> None:
    """So that a past of either is the same: only what lies below a layer moves its keys, and that has changed already.
    (Released codes do it either way.)"""
    params, session = params_of(lm, "memit-seq"), Session(lm, stats=moments)
    method = MemitSeq()
    edit, seen = method.spread(session, REQUESTS, params)
    again = Batch(session, REQUESTS, params, method)
    for layer, keys in seen.items():
        torch.testing.assert_close(again.keys(layer, edit.changes), keys)


def test_alphaedit_leaves_frequent_keys_alone_and_says_how_many_directions_are_left(
    lm: LanguageModel, moments: Stats
) -> None:
    edit = compute(lm, REQUESTS, method="alphaedit", hparams=params_of(lm, "alphaedit", layers=[1]), stats=moments)
    (name,) = edit.changes
    values, vectors = torch.linalg.eigh(moments.moments[1])
    below = int(0.8 * len(values))
    assert edit.diagnostics["null_space_share"] == [below / len(values)]
    frequent, rare = (edit.delta(name).double() @ part for part in (vectors[:, below:], vectors[:, :below]))
    assert frequent.norm() < 1e-5 * rare.norm()
    absolute = {"nullspace_threshold": float(values[7:9].mean()), "threshold_unit": "absolute"}
    some = compute(
        lm, REQUESTS, method="alphaedit", hparams=params_of(lm, "alphaedit", layers=[1], **absolute), stats=moments
    )
    assert some.diagnostics["null_space_share"] == [8 / len(values)]


@pytest.mark.parametrize("name", FAMILY)
def test_a_sequence_is_saved_loaded_and_goes_on(
    lm: LanguageModel,
    moments: Stats,
    corpus: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts of one edit, stopped before the third and taken up: the same rows, and all weights as they were.

    A Llama in bfloat16, a GPT-2 in float32.
    """
    dtype = {"tiny-gpt2": torch.float32, "tiny-llama": torch.bfloat16}[lm.name]
    own = LanguageModel(copy.deepcopy(lm.model).to(dtype), lm.tokenizer, name=lm.name)
    before = {key: value.clone() for key, value in own.model.state_dict().items()}
    cases = [Case(i, replace(request, target_true="Quint")) for i, request in enumerate(REQUESTS)]
    options: dict[str, Any] = {
        "methods": {name: params_of(own, name)}, "texts": corpus[:3], "stats": of(own, moments), "progress": False,
    }  # fmt: skip
    monkeypatch.setattr("editlib.sweeps.sequential.PART", 1)
    write = Parts.write

    def stopping(parts: Parts, number: int, frame: pd.DataFrame) -> pd.DataFrame:
        if number == 3:
            raise KeyboardInterrupt
        return write(parts, number, frame)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(own, cases, out=tmp_path / "out", **options)
    table = sequence(own, cases, out=tmp_path / "out", resume=True, **options)
    pd.testing.assert_frame_equal(
        table.drop(columns="seconds"), sequence(own, cases, **options).drop(columns="seconds")
    )
    assert table["error"].isna().all() and table["perplexity_mean"].nunique() == len(table)
    assert all(torch.equal(value, before[key]) for key, value in own.model.state_dict().items())


def test_a_state_of_another_model_or_setting_is_one_line(
    gpt2: LanguageModel, llama: LanguageModel, corpus: list[str]
) -> None:
    from editlib.editing.stats import corpus_windows, second_moments

    here, there = (second_moments(each, corpus_windows(each, corpus, 2000)) for each in (gpt2, llama))
    for name in ("memit-seq", "d4s"):
        _, state = in_turn(gpt2, here, name, [REQUESTS[:1]], params_of(gpt2, name))
        with pytest.raises(EditlibError, match="^this state was left by edits of another model than tiny-llama; begin"):
            METHODS[name].solve(Session(llama, stats=there), REQUESTS[1:], params_of(llama, name), state)
        with pytest.raises(EditlibError, match="^this state has no '.*2': another method or setting left it; begin"):
            METHODS[name].solve(Session(gpt2, stats=here), REQUESTS[1:], params_of(gpt2, name, layers=[2]), state)


def test_a_state_of_another_method_or_projection_is_one_line(lm: LanguageModel, moments: Stats) -> None:
    """Their states have the same names: sums of keys, projected in one and not in the other."""
    alphaedit = params_of(lm, "alphaedit")
    _, plain = in_turn(lm, moments, "memit-seq", [REQUESTS[:1]], params_of(lm, "memit-seq"))
    _, projected = in_turn(lm, moments, "alphaedit", [REQUESTS[:1]], alphaedit)
    for state, params, said in (
        (plain, alphaedit, r"^this state was left by memit-seq, not alphaedit with nullspace_threshold=0.8 \(share\)"),
        (projected, replace(alphaedit, nullspace_threshold=0.5), "^this state was left by alphaedit with .*=0.8 "),
    ):
        with pytest.raises(EditlibError, match=said):
            METHODS["alphaedit"].solve(Session(lm, stats=moments), REQUESTS[1:], params, state)


def test_mistakes_are_one_line(lm: LanguageModel, moments: Stats) -> None:
    with pytest.raises(EditlibError, match=r"^frozen=True is for one layer, not for \(0, 1\); give layers=\[1\]$"):
        hparams_for(lm, "encore", frozen=True)
    small = params_of(lm, "alphaedit", nullspace_threshold=1e-9, threshold_unit="absolute")
    with pytest.raises(EditlibError, match="^no direction of layer 0's keys is as rare as nullspace_threshold=1e-09; "):
        compute(lm, REQUESTS, method="alphaedit", hparams=small, stats=moments)
