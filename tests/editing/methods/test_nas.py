"""NAS: every v* has the anchor's length, but that of an edit that is left out."""

from typing import Any

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.methods import METHODS, compute, hparams_for
from editlib.editing.methods.memit import Batch, Memit
from editlib.editing.methods.nas import Nas
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo"),
]
FEW: dict[str, Any] = {"steps": 3, "learning_rate": 0.3}
NAS = METHODS["nas"]


def batch(lm: LanguageModel, moments: Stats, anchor: float, method: str = "nas") -> tuple[Batch, torch.Tensor]:
    """Two requests, and v of each: without scaling."""
    session, params = Session(lm, stats=moments), hparams_for(lm, method, norm_anchor=anchor, **FEW)
    chosen = METHODS[method]
    assert isinstance(chosen, Memit)
    made = Batch(session, REQUESTS, params, chosen)
    return made, chosen.reached(session, REQUESTS, params, made.targets)


@pytest.mark.parametrize("method", ["nas", "memit", "encore"])
@pytest.mark.parametrize("share", [0.6, 1.0, 1.7])
def test_every_value_gets_the_length_of_the_anchor_and_keeps_its_direction(
    lm: LanguageModel, moments: Stats, share: float, method: str
) -> None:
    """NAS measures the anchor where none is given; any method of the family takes one."""
    _, usual = batch(lm, moments, 1.0, method)
    anchor = share * float(usual.norm(dim=0).max())
    made, values = batch(lm, moments, anchor, method)
    plain = torch.stack([target.value for target in made.targets], 1)
    scaled = made.wanted - (plain - values)  # what the block adds to the down-projection's output is as it was
    torch.testing.assert_close(scaled.norm(dim=0), torch.full((2,), anchor), rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled / anchor, values / values.norm(dim=0), rtol=1e-4, atol=1e-5)


def test_an_edit_that_is_left_out_changes_nothing_and_is_said(lm: LanguageModel, moments: Stats) -> None:
    _, values = batch(lm, moments, 1.0)
    tiny = float(values.norm(dim=0).min()) / 3
    params = hparams_for(lm, "nas", norm_anchor=tiny, **FEW)
    edit = compute(lm, REQUESTS, method="nas", hparams=params, stats=moments)
    assert edit.diagnostics["skipped"] == 2
    assert edit.norm() == pytest.approx(0, abs=1e-4)


def test_at_the_length_that_values_have_it_is_alphaedit(lm: LanguageModel, moments: Stats) -> None:
    _, values = batch(lm, moments, 1.0)
    request, length = REQUESTS[0], float(values[:, 0].norm())
    edits = [
        compute(lm, request, method=method, hparams=hparams_for(lm, method, **FEW, **more), stats=moments)
        for method, more in (("nas", {"norm_anchor": length}), ("alphaedit", {}))
    ]
    for name in edits[0].changes:
        torch.testing.assert_close(edits[0].delta(name), edits[1].delta(name), rtol=1e-3, atol=1e-6)


def test_the_anchor_is_measured_once_and_goes_on_in_the_state(lm: LanguageModel, moments: Stats) -> None:
    params = hparams_for(lm, "nas", anchor_requests=5, cases="testbed", **FEW)
    session = Session(lm, stats=moments)
    first, state = NAS.solve(session, REQUESTS[:1], params)
    assert state is not None and float(state["anchor"]) == first.diagnostics["norm_anchor"] > 0
    with first.applied(lm):
        second, _ = NAS.solve(Session(lm, stats=moments), REQUESTS[1:], params, state)
    assert second.diagnostics["norm_anchor"] == first.diagnostics["norm_anchor"]


def test_it_is_the_mean_without_the_longest(lm: LanguageModel, moments: Stats) -> None:
    params = hparams_for(lm, "nas", anchor_requests=20, cases="testbed", **FEW)
    assert isinstance(NAS, Nas)
    session = Session(lm, stats=moments)
    found = NAS.measured(session, params)
    from editlib.data import cases

    asked = [case.request for case in cases("testbed")[:20]][::-1]
    targets = session.targets(NAS.searches(lm, params)[0][0], asked, params)
    lengths = sorted(NAS.reached(session, asked, params, targets).norm(dim=0).tolist())
    assert found == pytest.approx(sum(lengths[:19]) / 19, rel=1e-5)


def test_cases_that_are_not_there_are_refused_before_work(lm: LanguageModel, moments: Stats) -> None:
    params = hparams_for(lm, "nas", cases="nowhere.json", **FEW)
    with pytest.raises(EditlibError, match="nowhere.json"):
        compute(lm, REQUESTS[0], method="nas", hparams=params, stats=moments)
