"""v* kept in the cache: found once, taken where the search would begin alike, searched anew where it would not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.methods import hparams_for
from editlib.editing.session import Session
from editlib.engine import search as searches
from editlib.engine.values import Target
from editlib.models.language_model import LanguageModel

REQUESTS = [
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo"),
    EditRequest(prompt="The old {} is in", subject="Brast", target_new="Quint"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many searches each call of the optimiser made."""
    counts, optimise = list[int](), searches.optimise

    def counted(*args: object) -> object:
        counts.append(len(args[3]))  # type: ignore[arg-type]
        return optimise(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(searches, "optimise", counted)
    yield counts


def solve(lm: LanguageModel, requests: list[EditRequest], **options: bool) -> list[Target]:
    params = hparams_for(lm, "rome", layer=1, steps=4)
    return Session(lm, **options).targets(lm.layout.name(1), requests, params)


def test_a_search_is_made_once(lm: LanguageModel, searched: list[int]) -> None:
    first, second = solve(lm, REQUESTS, reuse=True), solve(lm, REQUESTS, reuse=True)
    assert searched == [2]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.value, b.value) and a.losses == b.losses


def test_only_what_is_missing_is_searched(lm: LanguageModel, searched: list[int]) -> None:
    (first,) = solve(lm, REQUESTS[1:], reuse=True)
    both = solve(lm, REQUESTS, reuse=True)
    assert searched == [1, 1]
    assert torch.equal(both[1].value, first.value)
    (alone,) = solve(lm, REQUESTS[:1])
    torch.testing.assert_close(both[0].value, alone.value, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_unless_asked_for(
    lm: LanguageModel, searched: list[int], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve(lm, REQUESTS)
    assert not (own_cache / "solved").exists()
    monkeypatch.setenv("EDITLIB_REUSE", "1")
    solve(lm, REQUESTS)
    solve(lm, REQUESTS)
    solve(lm, REQUESTS, reuse=False)
    assert searched == [2, 2, 2]
    assert len(list((own_cache / "solved").iterdir())) == 2


def test_other_settings_are_another_search(lm: LanguageModel, searched: list[int]) -> None:
    for steps in (4, 3):
        Session(lm, reuse=True).targets(lm.layout.name(1), REQUESTS, hparams_for(lm, "rome", layer=1, steps=steps))
    assert searched == [2, 2]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_model_behind_a_hook_is_searched_anew(lm: LanguageModel, searched: list[int], layer: int) -> None:
    """Its weights, and so its fingerprint, are as before; below the edited layer, or above it."""
    solve(lm, REQUESTS, reuse=True)
    hook = lm.down(layer).register_forward_hook(lambda module, inputs, output: output * 1.5)
    try:
        hooked = solve(lm, REQUESTS, reuse=True)
        expected = solve(lm, REQUESTS, reuse=False)
    finally:
        hook.remove()
    assert searched == [2, 2, 2]
    for a, b in zip(hooked, expected, strict=True):
        torch.testing.assert_close(a.value, b.value)


def test_a_session_whose_model_was_changed_keeps_nothing(lm: LanguageModel, own_cache: Path) -> None:
    session = Session(lm, reuse=True)
    session.forget()
    session.targets(lm.layout.name(1), REQUESTS, hparams_for(lm, "rome", layer=1, steps=2))
    assert not (own_cache / "solved").exists()


def test_a_damaged_file_is_searched_anew_and_replaced(lm: LanguageModel, searched: list[int], own_cache: Path) -> None:
    (first,) = solve(lm, REQUESTS[:1], reuse=True)
    (path,) = (own_cache / "solved").iterdir()
    path.write_bytes(b"damaged")
    (second,) = solve(lm, REQUESTS[:1], reuse=True)
    (third,) = solve(lm, REQUESTS[:1], reuse=True)
    assert searched == [1, 1]
    assert torch.equal(first.value, second.value) and torch.equal(second.value, third.value)
