"""What holds for every method: names, hyper-parameters, several requests, and edits on top of edits."""

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.methods import METHODS, compute, hparams_for
from editlib.editing.methods.rome import RomeParams
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

WRITING = [name for name, method in METHODS.items() if method.weights]
UNTRAINED = [name for name in WRITING if name != "mend"]  # MEND needs an editor, see its own tests
ONE_AT_A_TIME = ["rome", "c-rome", "fc-rome", "p-rome", "r-rome"]


def test_all_methods_are_there() -> None:
    papers = "ft ft-l mend rome c-rome fc-rome p-rome r-rome memit emmet"
    tuned, beside = "locft-bf lora kn", "coachhook grace memoir wise serac skeme ike"
    assert set(METHODS) == set(f"{papers} memit-seq encore alphaedit nas rlsedit d4s {tuned} {beside}".split())
    assert {name for name, method in METHODS.items() if not method.weights} == set(beside.split())
    remembering = f"memit-seq encore alphaedit nas rlsedit d4s {beside}"
    assert {name for name, method in METHODS.items() if method.remembers} == set(remembering.split())


def test_methods_name_their_sources() -> None:
    assert all(method.paper and method.equation and method.solve.__doc__ for method in METHODS.values())


@pytest.mark.parametrize("method", UNTRAINED)
def test_every_edit_says_what_made_it(lm: LanguageModel, moments: Stats, ask: EditRequest, method: str) -> None:
    edit = compute(lm, [ask], method=method, hparams=hparams_for(lm, method, steps=2), stats=moments)
    assert (edit.method, edit.requests, edit.fingerprint) == (method, (ask,), lm.fingerprint)
    assert edit.hparams["steps"] == 2
    needed = "numerator denominator denominator_consistent delta_norm weight_norm steps losses".split()
    assert set(needed) <= set(edit.diagnostics)
    changes = [edit.delta(name) for name in edit.changes]
    assert edit.diagnostics["delta_norm"] == pytest.approx(torch.cat([c.flatten() for c in changes]).norm().item())
    assert edit.diagnostics["delta_norm"] > 0


@pytest.mark.parametrize("method", UNTRAINED)
def test_several_requests_at_once_where_the_method_defines_it(
    lm: LanguageModel, moments: Stats, ask: EditRequest, method: str
) -> None:
    other = EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")
    params = hparams_for(lm, method, steps=2)
    if method in ONE_AT_A_TIME:
        with pytest.raises(EditlibError, match=f"^{method} edits one request at a time, not 2; call it once for each$"):
            compute(lm, [ask, other], method=method, hparams=params, stats=moments)
    else:
        edit = compute(lm, [ask, other], method=method, hparams=params, stats=moments)
        assert edit.requests == (ask, other)


@pytest.mark.parametrize("method", METHODS)
def test_no_request_is_refused(lm: LanguageModel, method: str) -> None:
    with pytest.raises(EditlibError, match="^no request to edit; give at least one$"):
        compute(lm, [], method=method)


@pytest.mark.parametrize("method", UNTRAINED)
def test_sequential_editing_nests_and_adds(own: LanguageModel, moments: Stats, ask: EditRequest, method: str) -> None:
    """The second edit is computed on the edited model; applied together they are the same as one in the other."""
    other = EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")
    params = hparams_for(own, method, steps=2)
    before = {name: value.clone() for name, value in own.model.state_dict().items()}
    first = compute(own, [ask], method=method, hparams=params, stats=moments)
    with first.applied(own):
        second = compute(own, [other], method=method, hparams=params, stats=moments)
        with second.applied(own):
            nested = {name: own.model.get_parameter(name).clone() for name in second.changes}
    assert all(torch.equal(value, before[name]) for name, value in own.model.state_dict().items())
    both = first + second
    with both.applied(own):
        for name, weight in nested.items():
            torch.testing.assert_close(own.model.get_parameter(name), weight)
    assert both.requests == (ask, other)
    assert both.diagnostics["parts"] == [dict(first.diagnostics), dict(second.diagnostics)]


# Mistakes


def test_unknown_method_is_refused(gpt2: LanguageModel, ask: EditRequest) -> None:
    with pytest.raises(EditlibError, match="^method 'lime' is unknown; use one of ft, ft-l, mend, rome"):
        compute(gpt2, [ask], method="lime")


def test_unknown_flavour_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="^flavour 'sour' is unknown; use one of meng-2022, yang-2024$"):
        hparams_for(gpt2, "rome", flavour="sour")


def test_unknown_hyper_parameter_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="^rome's hyper-parameter 'lr' is unknown; .*use one of .*learning_rate"):
        hparams_for(gpt2, "rome", lr=0.5)


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("rome", {"steps": "many"}, "steps='many' of rome: input should be a valid integer"),
        ("rome", {"steps": 0}, "steps=0 of rome: input should be greater than"),
        ("rome", {"anchor": "median"}, "anchor='median' of rome: input should be 'unprefixed'"),
        ("ft-l", {"limit": -1.0}, "limit=-1.0 of ft-l: input should be greater than"),
        ("memit", {"moment_weight": 0}, "moment_weight=0 of memit: input should be greater than"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(
    gpt2: LanguageModel, method: str, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(EditlibError, match=f"^hyper-parameter {said}"):
        hparams_for(gpt2, method, **wrong)


def test_values_are_converted_to_the_kind_they_should_have(gpt2: LanguageModel) -> None:
    assert hparams_for(gpt2, "memit", layers=[0, 1], steps="3").layers == (0, 1)


def test_layer_out_of_range_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="^layer 3 is out of range"):
        hparams_for(gpt2, "rome", layer=3)


def test_a_model_without_preset_is_edited_in_the_middle(gpt2: LanguageModel) -> None:
    assert hparams_for(gpt2, "c-rome") == RomeParams(layer=1, keys="prefixed")
