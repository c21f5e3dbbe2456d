"""Filters on updates: what each keeps, takes away and leaves where it was; how they are named and combined."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from plain import distance
from transformers.pytorch_utils import Conv1D

import editlib as el
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.change import Dense, LowRank
from editlib.editing.edit import Edit, restored
from editlib.editing.method import Method
from editlib.editing.methods import METHODS, compute, hparams_for, method_of, variants_of
from editlib.editing.methods.filters import FILTERS
from editlib.editing.methods.filters.filter import Filtered
from editlib.editing.methods.filters.interpolation import holds
from editlib.editing.methods.filters.prune import base_for, largest, restrained
from editlib.editing.methods.filters.rect import Rect, RectParams
from editlib.editing.methods.filters.revive import tails
from editlib.editing.methods.filters.sphere import Sphere, principal
from editlib.editing.names import parts
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, named_weight
from editlib.sweeps.parts import Parts
from editlib.sweeps.sequential import sequence
from editlib.sweeps.single import sweep

SEARCH: dict[str, Any] = {"steps": 3, "learning_rate": 0.3}
REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel", target_true="Quint"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo", target_true="Quint"),
    EditRequest(prompt="Near the sea lies {}", subject="Uvo", target_new="Parvo", target_true="Quint"),
]
BASES = ("rome", "memit", "ft", "alphaedit")
SEQUENCES = "rome+rect memit+prune ft+revive alphaedit+sphere memit-seq+1-li d4s+rect+revive+prune".split()
DTYPES = {"tiny-gpt2": torch.float32, "tiny-llama": torch.bfloat16}
OUT, INTO = 6, 10


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, DELTA = random(OUT, INTO, seed=1), random(OUT, INTO, seed=2)


def rect(share: float, delta: torch.Tensor = DELTA, weight: torch.Tensor = WEIGHT) -> torch.Tensor:
    return Rect().change(Dense(delta), weight, RectParams(rect_share=share)).dense()


def edited(lm: LanguageModel, moments: Stats, method: str, request: EditRequest = REQUESTS[1], **more: Any) -> Edit:
    return compute(lm, request, method=method, hparams=hparams_for(lm, method, **SEARCH, **more), stats=moments)


def made(lm: LanguageModel, moments: Stats, method: str, **more: Any) -> tuple[Edit, Edit]:
    """An edit without and with a filter, of hyper-parameters of the filter."""
    return edited(lm, moments, parts(method)[0]), edited(lm, moments, method, **more)


# RECT


def test_rect_with_everything_kept_is_the_identity_and_with_nothing_is_zero(lm: LanguageModel, moments: Stats) -> None:
    assert torch.equal(rect(1.0), DELTA) and not rect(0.0).any()
    for base in BASES:
        before, after = made(lm, moments, f"{base}+rect", rect_share=1.0)
        assert all(torch.equal(before.delta(name), after.delta(name)) for name in before.changes)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.29, 0.4, 0.6, 0.8])
def test_rect_keeps_exactly_so_many_entries_the_relatively_largest(share: float) -> None:
    kept, ratio = rect(share), (DELTA / WEIGHT).abs()
    assert int((kept != 0).sum()) == math.floor(round(share * DELTA.numel(), 6))
    assert torch.equal(kept[kept != 0], DELTA[kept != 0])
    assert ratio[kept != 0].min() >= ratio[kept == 0].max()
    assert torch.equal(rect(share, -3 * DELTA) != 0, kept != 0) and kept.norm() <= DELTA.norm()
    assert torch.equal(rect(1.0, kept), kept)


def test_rect_of_equal_entries_keeps_the_first_and_of_a_weight_that_is_zero_all_changes() -> None:
    alike = torch.ones(OUT, INTO, dtype=torch.float64)
    assert torch.equal(rect(0.5, alike, alike).flatten().nonzero()[:, 0], torch.arange(OUT * INTO // 2))
    weight, delta = WEIGHT.clone(), DELTA.clone()
    weight[0], delta[0, :5] = 0, 0
    kept = rect(5 / 60, 1e-9 * delta, weight)
    assert torch.equal(kept[0] != 0, delta[0] != 0) and not kept[1:].any()


# PRUNE


def test_prune_leaves_small_changes_alone_and_is_continuous_at_its_bound() -> None:
    sigma, small = 2.0, DELTA / DELTA.norm()
    torch.testing.assert_close(restrained(Dense(small), sigma, math.e).dense(), small)
    at, above = (torch.diag(torch.tensor([sigma + step, 0.5], dtype=torch.float64)) for step in (0.0, 1e-9))
    gap = restrained(Dense(above), sigma, math.e).dense() - restrained(Dense(at), sigma, math.e).dense()
    assert gap.norm() < 1e-8


def test_prune_restrains_what_is_above_and_keeps_directions_and_order() -> None:
    sigma, base = 2.0, 3.0
    u, values, vh = torch.linalg.svd(10 * DELTA, full_matrices=False)
    bound = values.where(values <= sigma, sigma + (values.log() - math.log(sigma)) / math.log(base))
    found = restrained(Dense(10 * DELTA), sigma, base).dense()
    torch.testing.assert_close(found, (u * bound) @ vh)
    assert (values > sigma).any() and (bound <= values).all() and (bound.diff() <= 0).all()
    together = torch.linalg.matrix_norm(WEIGHT / largest(WEIGHT) * sigma + found, 2)
    assert together <= sigma + bound[0] + 1e-9


def test_prune_by_the_core_of_factors_is_prune_of_the_dense_change() -> None:
    for rank in (1, 4, 15):
        change = LowRank(random(OUT, rank, seed=3), random(INTO, rank, seed=4))
        dense = restrained(Dense(change.dense()), 1.5, math.e).dense()
        torch.testing.assert_close(restrained(change, 1.5, math.e).dense(), dense)


@pytest.mark.parametrize("base", [1.2, 1.5, 2.0, math.e])
def test_prune_contracts_from_the_boundary_on_and_is_refused_below(base: float) -> None:
    """σ₁ ln b = 1 is the boundary: just below it the slope above σ₁ is more than one."""
    boundary = 1 / math.log(base)
    assert base_for(boundary * 1.001, base, "layer 1") == base
    with pytest.raises(EditlibError, match=rf"^prune_base={base:g} makes changes of layer 1 larger, .*or more, or 0$"):
        base_for(boundary * 0.99, base, "layer 1")
    for sigma, larger in ((boundary * 1.001, False), (boundary * 0.9, True)):
        one = torch.tensor([[sigma * 1.01]], dtype=torch.float64)
        assert (restrained(Dense(one), sigma, base).dense() > one).item() is larger
    assert base_for(boundary * 0.99, 0.0, "layer 1") == max(math.e, math.exp(1 / (boundary * 0.99)))


def test_prune_is_refused_before_work_where_it_would_amplify(own: LanguageModel, moments: Stats) -> None:
    chosen = variants_of(own, {"rome+prune": hparams_for(own, "rome+prune", prune_base=1.2)})
    with pytest.raises(EditlibError, match="^prune_base=1.2 makes changes of layer 1 larger, whose weight has σ₁ "):
        Session(own, stats=moments).check(chosen.values())


@pytest.mark.parametrize("base", ["memit-seq", "rome", "d4s", "ft"])
def test_prune_in_a_sequence_is_prune_once_of_all_changes(own: LanguageModel, moments: Stats, base: str) -> None:
    """After every edit the weights are the unedited ones and, restrained, all that the method alone would change."""
    own = LanguageModel(own.model.double(), own.tokenizer, name=own.name)
    stats = replace(moments, header=replace(moments.header, model=own.fingerprint))
    large: dict[str, Any] = {
        "clamp": 60.0,
        "weight_decay": 0.0,
        "learning_rate": 20.0,
        "steps": 4,
    }  # so that there is much to restrain
    large |= {"moment_weight": 0.01} if base not in ("rome", "ft") else {}
    large = {"steps": 20, "learning_rate": 0.1} if base == "ft" else large
    begun = {name: value.clone() for name, value in own.model.state_dict().items()}
    alone = in_turn(own, stats, base, large)
    found = in_turn(own, stats, f"{base}+prune", large)
    bounded = 0
    for plain, pruned in zip(alone, found, strict=True):
        for name, change in plain.items():
            weight = begun[name].T if isinstance(own.model.get_submodule(name[:-7]), Conv1D) else begun[name]
            sigma = largest(weight)
            expected = restrained(Dense(change), sigma, max(math.e, math.exp(1 / sigma))).dense()
            assert distance(pruned[name].numpy(), expected.numpy()) < 1e-6
            bounded += distance(change.numpy(), expected.numpy()) > 1e-3
    assert bounded
    assert all(torch.equal(value, begun[name]) for name, value in own.model.state_dict().items())


def test_prune_keeps_factors_as_long_as_they_are_smaller_than_the_weight(own: LanguageModel) -> None:
    name, kept, summed = f"{own.layout.name(1)}.weight", dict[str, torch.Tensor](), 0
    out, into = own.weight(1).shape
    sigma = largest(own.weight(1))
    with restored(own, [name]) as weights:
        begun = weights[name].double().clone()
        for seed in range(3):
            change = LowRank(random(out, 4, seed=seed).float(), random(into, 4, seed=10 + seed).float())
            edit = Edit("x", tuple(REQUESTS[:1]), {name: change}, {}, own.fingerprint)
            found, _ = FILTERS["prune"].filtered(Session(own), edit, FILTERS["prune"].hparams(), kept)
            weights[name].add_(found[name].dense().to(weights[name]))
            summed = summed + change.dense().double()
            small = 4 * (seed + 1) * (out + into) <= out * into
            assert {key[0] for key in kept} == {"w", *(("L", "R") if small else ("D",))}
            base = max(math.e, math.exp(1 / sigma))
            bound = restrained(Dense(summed), sigma, base).dense()
            torch.testing.assert_close(weights[name].double() - begun, bound, rtol=1e-4, atol=1e-4)
    assert "D" in {key[0] for key in kept}


def in_turn(lm: LanguageModel, moments: Stats, method: str, search: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """What edits one by one have changed after each of them."""
    (variant,) = variants_of(lm, {method: hparams_for(lm, method, **search)}).values()
    session, state, seen = Session(lm, stats=moments), None, list[dict[str, torch.Tensor]]()
    layers = variant.method.layers(variant.params)
    with restored(lm, [f"{lm.layout.name(layer)}.weight" for layer in layers]) as weights:
        before = {name: weight.clone() for name, weight in weights.items()}
        for request in REQUESTS:
            session.forget()
            edit, state = variant.method.solve(session, [request], variant.params, state)
            assert isinstance(edit, Edit)
            for name in edit.changes:
                weights[name].add_(edit.delta(name).to(weights[name]))
            seen.append({name: weight - before[name] for name, weight in weights.items()})
    return seen


# REVIVE and SPHERE


@pytest.mark.parametrize("shape", [(OUT, INTO), (INTO, OUT)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_revive_keeps_the_top_triplets(share: float, shape: tuple[int, int]) -> None:
    weight, delta = random(*shape, seed=5), random(*shape, seed=6)
    left, right = tails(weight, share)
    u, values, vh = torch.linalg.svd(weight, full_matrices=False)
    first = len(values) - left.shape[1]
    wanted = next((k for k in range(1, 7) if values[:k].sum() >= share * values.sum() - 1e-12), len(values))
    assert first == min(max(wanted, 1), len(values) - 1)
    kept = left @ left.T @ delta @ right @ right.T
    assert (u[:, :first].T @ kept).norm() < 1e-12 and (kept @ vh[:first].T).norm() < 1e-12
    torch.testing.assert_close(u[:, :first].T @ (weight + kept) @ vh[:first].T, torch.diag(values[:first]))
    torch.testing.assert_close(left @ left.T @ kept @ right @ right.T, kept)


def test_revive_filters_every_edit_by_the_unedited_weights(own: LanguageModel, moments: Stats) -> None:
    found = in_turn(own, moments, "rome+revive", SEARCH)
    name = f"{own.layout.name(1)}.weight"
    u, values, vh = torch.linalg.svd(named_weight(own, name).double(), full_matrices=False)
    first = int((values.cumsum(0) < 0.2 * values.sum()).sum()) + 1
    for changes in found:
        change = changes[name].double()
        assert (u[:, :first].T @ change).norm() < 1e-5 * change.norm()
        assert (change @ vh[:first].T).norm() < 1e-5 * change.norm()


def test_revive_and_sphere_leave_a_rank_one_update_of_rank_one(lm: LanguageModel, moments: Stats) -> None:
    for method, said in (("rome+revive", "revive_protected"), ("rome+sphere", "sphere_directions")):
        before, after = made(lm, moments, method)
        (change,) = after.changes.values()
        assert isinstance(change, LowRank) and change.left.shape[1] == 1
        assert 0 < after.norm() <= before.norm() and after.diagnostics["unfiltered_delta_norm"] == before.norm()
        assert after.diagnostics["delta_norm"] == after.norm() and after.diagnostics[said][0] >= 1
        both = edited(lm, moments, f"{method}+rect")
        assert both.diagnostics["unfiltered_delta_norm"] == before.norm() > both.norm()  # before any filter


def test_sphere_takes_principal_inputs_out_and_without_strength_nothing(lm: LanguageModel, moments: Stats) -> None:
    basis = principal(WEIGHT, 0.5)
    rows = WEIGHT / WEIGHT.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(rows.T @ rows / OUT).flip(0)
    assert basis.shape[1] == int((values.cumsum(0) / values.sum() <= 0.5).sum()) + 1
    torch.testing.assert_close((rows @ basis).square().sum(0) / OUT, values[: basis.shape[1]])
    before, out = made(lm, moments, "memit+sphere", sphere_strength=1.0)
    for name in out.changes:
        inputs = principal(named_weight(lm, name), 0.5)
        assert (out.delta(name).double() @ inputs).norm() < 1e-5 * before.delta(name).norm()
    before, none = made(lm, moments, "memit+sphere", sphere_strength=0.0)
    assert all(torch.equal(before.delta(name), none.delta(name)) for name in before.changes)


# 1-LI


def test_1_li_takes_the_least_point_of_its_grid_at_which_the_edit_holds(lm: LanguageModel, moments: Stats) -> None:
    strong = {"steps": 40, "clamp": 40.0, "weight_decay": 0.0, "learning_rate": 1.0}
    request = EditRequest(prompt="The town is {}", subject="Brast Nolva", target_new="Ostrel")
    whole = compute(lm, request, method="rome", hparams=hparams_for(lm, "rome", **strong), stats=moments)
    least = compute(lm, request, method="rome+1-li", hparams=hparams_for(lm, "rome+1-li", **strong), stats=moments)
    session, alpha = Session(lm), least.diagnostics["li_alpha"]
    held = [holds(session, whole.scaled((i + 1) / 20)) for i in range(20)]
    assert least.diagnostics["li_held"] is any(held) and alpha == (held.index(True) + 1 if any(held) else 20) / 20
    assert least.norm() == pytest.approx(alpha * whole.norm()) and any(held)


def test_an_edit_holds_alike_by_the_engine_and_by_whole_passes(lm: LanguageModel, moments: Stats) -> None:
    session, params = Session(lm, stats=moments), {"steps": 20, "clamp": 40.0, "weight_decay": 0.0}
    whole = compute(lm, REQUESTS[2], method="rome", hparams=hparams_for(lm, "rome", **params), stats=moments)
    for alpha in (0.01, 0.1, 0.5, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            by_engine = holds(session, whole.scaled(alpha))
            patch.setattr(Session, "logits", lambda *_: None)
            assert holds(session, whole.scaled(alpha)) is by_engine


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_1_li_with_a_given_point_is_on_the_line(lm: LanguageModel, moments: Stats, alpha: float) -> None:
    for base in BASES:
        before, after = made(lm, moments, f"{base}+1-li", li_alpha=alpha)
        for name in before.changes:
            torch.testing.assert_close(after.delta(name), alpha * before.delta(name))


# All of them


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_sees_the_same_however_a_module_stores_its_weight(
    name: str, moments: Stats, lm: LanguageModel
) -> None:
    """Conv1D stores the transpose of what Linear does."""
    linear, conv = torch.nn.Linear(INTO, OUT), Conv1D(OUT, INTO)
    found = []
    for module in (linear, conv):
        with torch.no_grad():
            module.weight.copy_(WEIGHT.T.float() if module is conv else WEIGHT.float())
        held = copy.deepcopy(lm)
        held.model.add_module("tried", module)
        session = Session(held)
        edit = Edit("x", (REQUESTS[0],), {"tried.weight": Dense(50 * DELTA.float())}, {}, held.fingerprint)
        params = FILTERS[name].hparams(**({"li_alpha": 0.5} if name == "1-li" else {}))
        changes, _ = FILTERS[name].filtered(session, edit, params, {})
        found.append(changes["tried.weight"].dense())
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], 50 * DELTA.float())


@pytest.mark.parametrize("method", SEQUENCES)
def test_a_sequence_through_filters_is_saved_loaded_and_goes_on(
    lm: LanguageModel, moments: Stats, corpus: list[str], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Llama in bfloat16, a GPT-2 in float32."""
    own = LanguageModel(copy.deepcopy(lm.model).to(DTYPES[lm.name]), lm.tokenizer, name=lm.name)
    before = {key: value.clone() for key, value in own.model.state_dict().items()}
    cases = [Case(i, request) for i, request in enumerate(REQUESTS)]
    stats = replace(moments, header=replace(moments.header, model=own.fingerprint))
    few = {"steps": 2} if method.startswith("ft") else {"steps": 2, "learning_rate": 0.3}
    options: dict[str, Any] = {
        "methods": {method: hparams_for(own, method, **few)}, "texts": corpus[:3], "stats": stats, "progress": False,
    }  # fmt: skip
    monkeypatch.setattr("editlib.sweeps.sequential.PART", 1)
    write = Parts.write

    def stopping(folder: Parts, number: int, frame: pd.DataFrame) -> pd.DataFrame:
        if number == 3:
            raise KeyboardInterrupt
        return write(folder, number, frame)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(own, cases, out=tmp_path / "out", **options)
    table = sequence(own, cases, out=tmp_path / "out", resume=True, **options)
    whole = sequence(own, cases, **options)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert table["error"].isna().all() and set(table["method"]) == {method}
    assert all(torch.equal(value, before[key]) for key, value in own.model.state_dict().items())


def test_filters_are_in_tables_and_files_by_their_notation(
    gpt2: LanguageModel, corpus: list[str], tmp_path: Path
) -> None:
    params = {"rome+rect": hparams_for(gpt2, "rome+rect", steps=2, covariance=False, rect_share=0.2)}
    params |= {"rect": replace(params["rome+rect"], rect_share=1.0)}
    cases = [Case(i, request) for i, request in enumerate(REQUESTS)]
    table = sweep(gpt2, cases, methods=params, texts=corpus[:3], progress=False)
    assert table["method"].tolist() == ["rome+rect", "rect"] * 3 and table["error"].isna().all()
    norms = table.pivot(index="case_id", columns="method", values="delta_norm")
    assert (norms["rome+rect"] < norms["rect"]).all()
    edit = compute(gpt2, REQUESTS[0], method="rome+rect", hparams=params["rome+rect"])
    loaded = Edit.load(edit.save(tmp_path / "edit"))
    assert loaded.method == "rome+rect" and loaded.hparams["rect_share"] == 0.2
    assert np.count_nonzero(loaded.delta(next(iter(loaded.changes)))) == math.floor(0.2 * gpt2.weight(1).numel())


def test_hyper_parameters_of_method_and_filter_are_set_alike(gpt2: LanguageModel, tmp_path: Path) -> None:
    found = hparams_for(gpt2, "c-rome+rect+sphere", steps=7, rect_share="0.2", sphere_strength=1)
    assert (found.keys, found.steps, found.rect_share, found.sphere_strength) == ("prefixed", 7, 0.2, 1.0)
    assert method_of(found).name == "c-rome+rect+sphere"
    given = tmp_path / "mine.json"
    given.write_text('{"rome": {"steps": 3}, "rome+rect": {"rect_share": 0.1, "steps": 4}}')
    assert hparams_for(gpt2, "rome", preset=given).steps == 3
    rect = hparams_for(gpt2, "rome+rect", preset=given)
    assert (rect.steps, rect.rect_share) == (4, 0.1)
    assert hparams_for(gpt2, "memit+rect").layers == hparams_for(gpt2, "memit").layers


def test_a_filter_takes_a_method_of_your_own(gpt2: LanguageModel) -> None:
    class Mine(type(METHODS["rome"])):  # type: ignore[misc]
        """C-ROME under another name."""

    mine = Mine("mine", {"keys": "prefixed"}, "", "")
    through = Filtered(mine, Rect())
    params = hparams_for(gpt2, through, steps=2, covariance=False)
    edit = compute(gpt2, REQUESTS[1], method=through, hparams=params)
    usual = hparams_for(gpt2, "c-rome+rect", steps=2, covariance=False)
    expected = compute(gpt2, REQUESTS[1], method="c-rome+rect", hparams=usual)
    assert isinstance(edit, Edit) and edit.method == "mine+rect"
    assert all(torch.equal(edit.delta(name), expected.delta(name)) for name in expected.changes)


@dataclass(frozen=True)
class Nothing:
    """Hyper-parameters of a method that has none."""


class Hook(Method):
    """A method that changes no weight."""

    name, hparams, weights = "hook", Nothing, False

    def solve(self, session: Session, requests: Any, params: Any, state: Any = None) -> Any:
        raise AssertionError


class Silent(Hook):
    """One that does not say so."""

    weights = True

    def solve(self, session: Session, requests: Any, params: Any, state: Any = None) -> Any:
        return object(), None


def test_combinations_that_mean_nothing_are_one_line(gpt2: LanguageModel) -> None:
    for name, said in (
        ("rom+rect", r"method 'rom' is unknown; did you mean rome\?"),
        ("rome+rectt", r"filter 'rectt' is unknown; did you mean rect\?"),
        ("rome+", "filter '' is unknown; use one of rect, "),
        ("rect", r"method 'rect' is unknown; "),
        ("rome+rect+rect", r"method 'rome\+rect\+rect' has rect twice; leave one out"),
        ("memit+prune+rect", r"method 'memit\+prune\+rect': prune takes all .* write memit\+rect\+prune"),
    ):
        for use in (lambda name: el.hparams_for(gpt2, name), lambda name: variants_of(gpt2, [name]), parts):
            with pytest.raises(EditlibError, match=f"^{said}") as caught:
                use(name)
            assert "\n" not in str(caught.value)
    with pytest.raises(EditlibError, match="^hook changes no weight, so sphere has nothing to filter; leave it out$"):
        Filtered(Hook(), Sphere())
    through = Filtered(Silent(), Rect())
    with pytest.raises(EditlibError, match="^hook changes no weight, so rect has nothing to filter$"):
        through.solve(Session(gpt2), REQUESTS[:1], through.hparams())
    with pytest.raises(EditlibError, match=r"^hyper-parameter rect_share=2 of rome\+rect: input should be less than"):
        hparams_for(gpt2, "rome+rect", rect_share=2)


def test_filters_name_their_sources() -> None:
    assert all(each.paper and each.equation and each.__doc__ for each in FILTERS.values())
    for name, each in FILTERS.items():
        assert all(field.startswith(name.removeprefix("1-")) for field in each.hparams.__dataclass_fields__)
