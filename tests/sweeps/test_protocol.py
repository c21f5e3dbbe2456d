"""Methods that are none of ours, in `Method`'s form: a wrapper, one that remembers, one that writes no weight."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit, Intervention
from editlib.editing.method import Method, State, Variant
from editlib.editing.methods import METHODS, compute
from editlib.editing.methods.rome import RankOne, RomeParams
from editlib.editing.session import Session
from editlib.engine.perplexity import perplexity
from editlib.measuring.scores import target_probability
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts
from editlib.sweeps.sequential import sequence
from editlib.sweeps.single import sweep

PARAMS = RomeParams(layer=1, steps=3, covariance=False)


class Scaled(Method):
    """A wrapper: another method's update, times a number."""

    def __init__(self, inner: Method, factor: float) -> None:
        self.inner, self.factor, self.name, self.hparams = inner, factor, f"{inner.name} x {factor}", inner.hparams
        self.layers, self.moments, self.searches = inner.layers, inner.moments, inner.searches  # type: ignore[method-assign]

    def solve(
        self, session: Session, requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Intervention, State | None]:
        edit, state = self.inner.solve(session, requests, params, state)
        assert isinstance(edit, Edit)
        return replace(edit, changes={name: c.scaled(self.factor) for name, c in edit.changes.items()}), state


class Orthogonal(RankOne):
    """A method that remembers: C-ROME's update, without what earlier keys would see of it."""

    name, hparams = "orthogonal", RomeParams

    def solve(
        self, session: Session, requests: Sequence[EditRequest], params: RomeParams, state: State | None = None
    ) -> tuple[Intervention, State | None]:
        edit, _ = METHODS["rome"].solve(session, requests, params)
        assert isinstance(edit, Edit)
        ((name, change),) = edit.changes.items()
        assert isinstance(change, LowRank)
        key = session.keys(params.layer, requests[0], params.contexts).bare[0]
        past = state["keys"] if state else key.new_zeros(0, len(key))
        basis = torch.linalg.qr(past.T.double()).Q.to(key)
        right = change.right - basis @ (basis.T @ change.right)
        made = replace(edit, method=self.name, changes={name: LowRank(change.left, right)})
        return made, {"keys": torch.cat([past, key[None]])}


@dataclass(frozen=True)
class Louder:
    """Hyper-parameters of `Hooked`."""

    by: float = 50.0


@dataclass(frozen=True)
class LouderAnswer:
    """What `Hooked` makes: a hook."""

    requests: Sequence[EditRequest]
    by: float
    method: str = "hooked"
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Raise the logit of the target's first token, everywhere."""
        (request,) = self.requests
        token = lm.tokenizer(f" {request.target_new}", add_special_tokens=False)["input_ids"][0]
        head = lm.model.get_output_embeddings()

        def raised(_module: torch.nn.Module, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
            return logits.index_add(-1, torch.tensor([token]), torch.full((*logits.shape[:-1], 1), self.by))

        handle = head.register_forward_hook(raised)
        try:
            yield lm
        finally:
            handle.remove()


class Hooked(Method):
    """A method that writes no weight."""

    name, hparams = "hooked", Louder

    def solve(
        self, session: Session, requests: Sequence[EditRequest], params: Louder, state: State | None = None
    ) -> tuple[Intervention, State | None]:
        return LouderAnswer(requests, params.by), state


OURS = {
    "half": Variant(Scaled(METHODS["rome"], 0.5), PARAMS),
    "orthogonal": Variant(Orthogonal(), PARAMS),
    "hooked": Variant(Hooked(), Louder()),
}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    asked = [("Zen", "Ostrel"), ("Brast Nolva", "Daslo"), ("Uvo", "Parvo")]
    requests = [EditRequest(prompt="{} is located in", subject=s, target_new=t, target_true="Quint") for s, t in asked]
    return [Case(10 + i, request) for i, request in enumerate(requests)]


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    return corpus[:4]


def state_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


@pytest.mark.parametrize("name", OURS)
def test_compute_takes_any_method(gpt2: LanguageModel, cases: list[Case], name: str) -> None:
    request, variant, before = cases[0].request, OURS[name], state_of(gpt2)
    edit = compute(gpt2, request, method=variant.method, hparams=variant.params)
    probability = target_probability(gpt2, request, request.target_new)
    with edit.applied(gpt2):
        assert target_probability(gpt2, request, request.target_new) > probability
    assert all(torch.equal(value, before[key]) for key, value in state_of(gpt2).items())
    if name == "half":
        whole = compute(gpt2, request, method="rome", hparams=PARAMS)
        assert isinstance(edit, Edit) and edit.norm() == pytest.approx(whole.norm() / 2, rel=1e-5)


def test_a_method_alone_or_in_a_list_runs_with_the_models_preset(
    gpt2: LanguageModel, cases: list[Case], texts: list[str]
) -> None:
    table = sweep(gpt2, cases[:1], methods=Hooked(), texts=texts, progress=False)
    both = sweep(gpt2, cases[:1], methods=[Hooked()], texts=texts, progress=False)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), both.drop(columns="seconds"))
    assert table["method"].tolist() == ["hooked"]


def test_a_sweep_measures_any_method(gpt2: LanguageModel, cases: list[Case], texts: list[str], tmp_path: Path) -> None:
    options = {"methods": OURS, "texts": texts, "progress": False}
    table = sweep(gpt2, cases, out=tmp_path / "out", **options)
    assert table["error"].isna().all() and table["method"].tolist() == [*OURS] * len(cases)
    for case, (_, rows) in zip(cases, table.groupby("case_id"), strict=True):
        for row in rows.to_dict("records"):
            variant = OURS[row["method"]]
            edit = compute(gpt2, case.request, method=variant.method, hparams=variant.params)
            with edit.applied(gpt2):
                assert row["perplexity_mean"] == pytest.approx(perplexity(gpt2, texts).mean, rel=1e-4)
                probability = target_probability(gpt2, case.request, case.request.target_new)
            assert row["target_probability"] == pytest.approx(probability, rel=1e-3)
            assert pd.isna(row["delta_norm"]) is (row["method"] == "hooked")
    again = sweep(gpt2, cases, out=tmp_path / "out", resume=True, **options)
    pd.testing.assert_frame_equal(again, table)


def test_a_sequence_hands_a_method_what_it_remembers(own: LanguageModel, cases: list[Case], texts: list[str]) -> None:
    """The second update is zero on the first edit's key, so the first edit stays as it was."""
    before, chosen = state_of(own), {"orthogonal": OURS["orthogonal"]}
    table = sequence(own, cases, methods=chosen, texts=texts, retest=True, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in state_of(own).items())
    session, state, weight = Session(own), None, own.weight(1).clone()
    keys, outputs = [], []
    for case in cases:
        session.forget()
        edit, state = Orthogonal().solve(session, [case.request], PARAMS, state)
        assert isinstance(edit, Edit)
        ((name, change),) = edit.changes.items()
        assert all((change.output(key).norm() < 1e-4 * key.norm() * change.norm()) for key in keys)
        keys.append(session.keys(1, case.request, PARAMS.contexts).bare[0])
        outputs.append(change.norm())
        own.weight(1).add_(change.dense())
    measured = perplexity(own, texts).mean
    own.weight(1).copy_(weight)
    assert table[~table["retest"]]["perplexity_mean"].iloc[-1] == pytest.approx(measured, rel=1e-4)
    assert table["error"].isna().all()


@pytest.mark.parametrize("name", OURS)
def test_an_interrupted_sequence_of_any_method_goes_on(
    own: LanguageModel, cases: list[Case], texts: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a method remembers is kept beside the weights; a hook cannot be, and its sequence begins again."""
    monkeypatch.setattr("editlib.sweeps.sequential.PART", 1)
    write, before = Parts.write, state_of(own)

    def stopping(parts: Parts, number: int, frame: pd.DataFrame) -> pd.DataFrame:
        if number == 2:
            raise KeyboardInterrupt
        return write(parts, number, frame)

    options = {"methods": {name: OURS[name]}, "texts": texts, "retest": True, "answers": True, "progress": False}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(own, cases, out=tmp_path / "out", **options)
    assert all(torch.equal(value, before[key]) for key, value in state_of(own).items())
    assert not own.model.get_output_embeddings()._forward_hooks
    table, whole = sequence(own, cases, out=tmp_path / "out", resume=True, **options), sequence(own, cases, **options)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert table["error"].isna().all()
    if name == "hooked":  # every hook stays to the end
        with ExitStack() as stack:
            for case in cases:
                stack.enter_context(LouderAnswer([case.request], 50.0).applied(own))
            last = table["perplexity_mean"].dropna().iloc[-1]
            assert last == pytest.approx(perplexity(own, texts).mean, rel=1e-4)
