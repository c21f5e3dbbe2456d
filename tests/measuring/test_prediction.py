"""What keys foretell, against edits that were made."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain import reads

from editlib.data.request import EditRequest
from editlib.editing.methods import compute, hparams_for
from editlib.editing.session import Session
from editlib.editing.stats import corpus_windows, second_moments
from editlib.engine.passes import Passes, Tokens
from editlib.engine.prefixes import prefix_contexts
from editlib.measuring.anatomy import Split, split_moments
from editlib.measuring.prediction import ROWS, foretell, key_pairs, keys_by_layer
from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace

LAYER = 1
RESIDUAL = {"first": 3.0, "later": 7.0}


@pytest.fixture(scope="module")
def windows(lm: LanguageModel, corpus: list[str]) -> torch.Tensor:
    return corpus_windows(lm, corpus, 2000, window=16)


@pytest.fixture(scope="module")
def split(lm: LanguageModel, windows: torch.Tensor) -> Split:
    return split_moments(lm, windows)


@pytest.fixture(scope="module")
def requests(ask: EditRequest) -> Sequence[EditRequest]:
    return ask, EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")


def test_keys_of_all_layers_are_those_of_one_text_at_a_time(lm: LanguageModel, requests: Sequence[EditRequest]) -> None:
    contexts = prefix_contexts(lm)
    found = keys_by_layer(lm, requests, contexts)
    assert list(found) == list(range(lm.num_layers))
    for i, request in enumerate(requests):
        keys, values = reads(lm, lm.layout.name(LAYER), request, contexts)
        pairs = found[LAYER]
        assert pairs.bare[i].numpy() == pytest.approx(keys[0], rel=1e-4, abs=1e-6)
        assert pairs.mean[i].numpy() == pytest.approx(keys.mean(0), rel=1e-4, abs=1e-6)
        assert pairs.mean_value[i].numpy() == pytest.approx(values.mean(0), rel=1e-4, abs=1e-6)
    alone = keys_by_layer(lm, requests, contexts, empty=False)[LAYER].mean[0].numpy()
    keys, _ = reads(lm, lm.layout.name(LAYER), requests[0], contexts)
    assert alone == pytest.approx(keys[1:].mean(0), rel=1e-4, abs=1e-6)


def test_keys_of_one_layer_are_the_same_by_the_short_way(lm: LanguageModel, requests: Sequence[EditRequest]) -> None:
    """Requests of several lengths, one twice, and two that are alike up to their subject."""
    asked = [*requests, replace(requests[0], target_new="Quint"), replace(requests[1], prompt="The town is {} of old")]
    session = Session(lm)
    short = key_pairs(session, LAYER, asked, "yang-2024")
    whole = keys_by_layer(lm, asked, prefix_contexts(lm))[LAYER]
    for name in ("bare", "mean", "bare_value", "mean_value"):
        torch.testing.assert_close(getattr(short, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    alone = key_pairs(session, LAYER, asked[:1], "yang-2024", empty=False)
    torch.testing.assert_close(
        alone.mean, keys_by_layer(lm, asked[:1], prefix_contexts(lm), empty=False)[LAYER].mean, rtol=1e-4, atol=1e-5
    )


def test_batches_have_few_shapes_however_many_requests_there_are(
    lm: LanguageModel, ask: EditRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every shape that it has multiplied oneDNN keeps buffers, which no tensor of ours shows."""
    session, shapes, plain = Session(lm), set[tuple[int, ...]](), Passes.run
    session.past("yang-2024")

    def watched(self: Passes, tokens: Tokens, *given: Any, **options: Any) -> Any:
        shapes.add(tuple(tokens.ids.shape))
        return plain(self, tokens, *given, **options)

    monkeypatch.setattr(Passes, "run", watched)
    for count in (1, 2, 3, 5, 8, 13, 21):
        key_pairs(session, LAYER, [replace(ask, prompt=f"{'so ' * i}{{}} is") for i in range(count)], "yang-2024")
    assert {rows % ROWS for rows, _ in shapes} == {0} and len(shapes) > 1


@pytest.mark.parametrize("method", ["rome", "c-rome", "fc-rome", "p-rome"])
@pytest.mark.parametrize("covariance", [True, False])
def test_an_edit_moves_ordinary_outputs_and_position_0_as_foretold(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    split: Split,
    windows: torch.Tensor,
    method: str,
    covariance: bool,
) -> None:
    """But for the length of v* - W k_out, which keys can only guess."""
    params = hparams_for(lm, method, layer=LAYER, covariance=covariance, steps=3)
    pairs = keys_by_layer(lm, requests, prefix_contexts(lm))[LAYER]
    session = Session(lm, stats=split.whole)
    row = foretell(
        pairs,
        params,
        later=split.rest.moments[LAYER],
        first=split.first[LAYER],
        residual=RESIDUAL,
        whiten=(lambda keys: session.whiten(LAYER, keys.T).T) if covariance else None,
    ).iloc[0]
    edit = compute(lm, [requests[0]], method=method, hparams=params, stats=split.whole)
    made = edit.diagnostics
    assert row["denominator_ratio"] == pytest.approx(
        abs(made["denominator"] / made["denominator_consistent"]), rel=1e-4
    )
    start = pairs.mean_value[0] if method == "fc-rome" else pairs.bare_value[0]
    current = pairs.mean_value[0] if method in ("c-rome", "fc-rome") else pairs.bare_value[0]
    guessed = float((start - current).norm() + start.norm()) / made["numerator"]
    name = lm.layout.name(LAYER)
    with torch.no_grad(), trace(lm.model, name) as seen:
        lm.model(windows)
    keys, change = seen[name].input.double(), edit.delta(f"{name}.weight").double().T
    moved = (keys @ change).norm(dim=-1)
    assert row["reach"] == pytest.approx(guessed * float(moved[:, 1:].square().mean().sqrt()) / 7.0, rel=1e-3)
    spill = float(moved[:, 1:].square().mean().sqrt()) / made["numerator"]
    assert row["spill"] == pytest.approx(spill, rel=1e-3)
    assert row["severity"] == max(row["spill"], row["reach"])
    assert row["leak"] == pytest.approx(guessed * float((keys[:, 0].mean(0) @ change).norm()) / 3.0, rel=1e-3)


def test_moments_apart_are_those_read_with_and_without_the_first_position(
    lm: LanguageModel, windows: torch.Tensor, split: Split
) -> None:
    kept, dropped = second_moments(lm, windows), second_moments(lm, windows, first_position="drop")
    torch.testing.assert_close(split.whole.moments[LAYER], kept.moments[LAYER], rtol=1e-4, atol=1e-7)
    assert torch.equal(split.rest.moments[LAYER], dropped.moments[LAYER])
    assert (split.whole.header, split.rest.header) == (kept.header, dropped.header)
