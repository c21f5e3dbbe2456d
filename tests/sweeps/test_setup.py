"""Hyper-parameters at a layer of one's choice, and the second moments they need."""

from dataclasses import asdict

import pytest

import editlib as el
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.sweeps import setup


@pytest.mark.parametrize("method", el.METHODS)
def test_without_a_layer_they_are_the_usual_ones(gpt2: LanguageModel, method: str) -> None:
    assert setup.hparams(gpt2, method) == el.hparams_for(gpt2, method)


@pytest.mark.parametrize("method", ["rome", "c-rome", "r-rome", "emmet", "ft-l"])
def test_a_method_edits_the_layer_that_is_given_and_all_else_stays(gpt2: LanguageModel, method: str) -> None:
    given = setup.hparams(gpt2, method, 0, flavour="yang-2024")
    assert asdict(given) == asdict(el.hparams_for(gpt2, method, flavour="yang-2024")) | {"layer": 0}


@pytest.mark.parametrize(("layer", "layers"), [(0, (0,)), (1, (0, 1)), (2, (1, 2))])
def test_several_layers_end_at_it(gpt2: LanguageModel, layer: int, layers: tuple[int, ...]) -> None:
    assert len(el.hparams_for(gpt2, "memit").layers) == 2
    assert setup.hparams(gpt2, "memit", layer).layers == layers


def test_c_is_left_out_where_a_method_has_a_say(gpt2: LanguageModel) -> None:
    assert not setup.hparams(gpt2, "c-rome", 0, covariance=False).covariance
    assert setup.hparams(gpt2, "memit", 0, covariance=False) == setup.hparams(gpt2, "memit", 0)


def test_a_method_without_an_editor_for_the_model_is_left_out(gpt2: LanguageModel) -> None:
    assert list(setup.able(gpt2, ("ft-l", "mend", "rome"), 1)) == ["ft-l", "rome"]
    anchored = el.load("testbed/anchored")
    assert list(setup.able(anchored, ("mend", "rome"))) == ["mend", "rome"]


def test_an_editor_says_where_it_edits(gpt2: LanguageModel) -> None:
    assert setup.hparams(gpt2, "mend", 0) == el.hparams_for(gpt2, "mend")


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_layer_that_the_model_lacks_is_named(gpt2: LanguageModel, method: str) -> None:
    with pytest.raises(EditlibError, match=r"layer \d is out of range"):
        setup.hparams(gpt2, method, 7)


def test_moments_are_read_where_they_are_needed(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [setup.hparams(gpt2, "ft", 1), setup.hparams(gpt2, "rome", 1, covariance=False)]
    assert setup.moments(gpt2, free, None) is None
    needy = [*free, setup.hparams(gpt2, "rome", 1), setup.hparams(gpt2, "memit", 2)]
    monkeypatch.setattr("editlib.data.datasets.texts", lambda name: [name] * 20_000)
    made = setup.moments(gpt2, needy, "Zen Brast Nolva is in Daslo.")
    assert made is not None and made.moments.keys() == {1, 2} and made.header.tokens >= 64_000
