"""Edits that move what they should leave alone: told of, refused, or let pass."""

import logging

import pytest
import torch

import editlib as el
from editlib.data.request import EditRequest
from editlib.editing.change import Dense
from editlib.editing.edit import Edit
from editlib.editing.guard import BOUND, severity, surroundings
from editlib.editing.methods import compute, hparams_for
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.measuring.risk import risk
from editlib.models.language_model import LanguageModel

BREAKING = EditRequest(prompt="{} is located in", subject="Jaklon", target_new="Hifru")


@pytest.fixture(scope="module")
def anchored() -> LanguageModel:
    return el.load("testbed/anchored")


def test_an_edit_that_breaks_the_model_is_told_of(anchored: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    edit = compute(anchored, BREAKING, method="rome")
    assert edit.diagnostics["severity"] > BOUND
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith("this rome edit may break testbed/anchored: its severity is ")
    assert said.endswith("; use fc-rome or c-rome, or put words before the subject")


@pytest.mark.parametrize("method", ["c-rome", "fc-rome", "memit"])
def test_a_harmless_edit_passes_in_silence(
    anchored: LanguageModel, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    edit = compute(anchored, BREAKING, method=method)
    assert 0 < edit.diagnostics["severity"] < BOUND
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_is_refused_or_let_pass_on_request(anchored: LanguageModel, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EditlibError, match="^this rome edit may break testbed/anchored"):
        compute(anchored, BREAKING, method="rome", guard="refuse")
    assert "severity" not in compute(anchored, BREAKING, method="rome", guard="off").diagnostics
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(EditlibError, match="^guard 'of' is unknown; did you mean off"):
        compute(anchored, BREAKING, method="rome", guard="of")  # type: ignore[call-overload]


def test_what_keys_foretell_is_what_the_edit_then_does(lm: LanguageModel, moments: Stats, ask: EditRequest) -> None:
    """Its spill at least, which needs no v*."""
    edit = compute(lm, ask, method="rome", stats=moments)
    ((name, change),) = edit.changes.items()
    session = Session(lm, stats=moments)
    around = surroundings(session, edit.hparams["layer"], edit.hparams["contexts"])
    assert around
    delta = change.dense().double()
    moved = float((delta @ around.later * delta).sum().sqrt())
    bare = session.keys(edit.hparams["layer"], ask, edit.hparams["contexts"]).bare[0].double()
    assert moved / float((delta @ bare).norm()) == pytest.approx(risk(lm, ask, stats=moments)["spill"][0], rel=1e-3)


def test_a_dense_change_is_judged_as_its_factors_are(lm: LanguageModel, moments: Stats, ask: EditRequest) -> None:
    edit = compute(lm, ask, method="memit", stats=moments)
    assert isinstance(edit, Edit)
    dense = Edit(
        edit.method, edit.requests, {name: Dense(change.dense()) for name, change in edit.changes.items()},
        edit.hparams, edit.fingerprint,
    )  # fmt: skip
    session = Session(lm, stats=moments)
    assert severity(session, dense) == pytest.approx(severity(session, edit), rel=1e-4)
    assert edit.diagnostics["severity"] == pytest.approx(severity(session, edit), rel=1e-6)


def test_nothing_is_moved_by_nothing_and_other_weights_are_not_judged(
    lm: LanguageModel, moments: Stats, ask: EditRequest
) -> None:
    edit = compute(lm, ask, method="rome", stats=moments)
    assert isinstance(edit, Edit)
    ((name, change),) = edit.changes.items()
    session, about = Session(lm, stats=moments), (edit.hparams, edit.fingerprint)
    none = Edit("rome", edit.requests, {name: Dense(torch.zeros_like(change.dense()))}, *about)
    assert severity(session, none) == 0.0
    elsewhere = Edit("rome", edit.requests, {f"{name}x": change}, *about)
    assert severity(session, elsewhere) is None
    assert severity(session, compute(lm, ask, method="ft", hparams=hparams_for(lm, "ft", steps=1))) is None
