"""Causal tracing: known facts, groups of tokens, and effects against a plain loop that runs one row at a time."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor

from editlib.data.datasets import cases
from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.files import TESTBED
from editlib.measuring import causal
from editlib.measuring.causal import DECIDING, GROUPS, CausalTrace, causal_trace, known, seconds_to_trace, token_groups
from editlib.measuring.scores import continuation
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load
from editlib.models.tokens import Encoded, encode

FACTS = [
    EditRequest(prompt=prompt, subject=subject, target_new="Parvo", target_true=target)
    for prompt, subject, target in (
        ("The town of {} is located in", "Brast Nolva", "Daslo"),
        ("{} is known", "Zen", "where the river turns"),  # several tokens
        ("Number 7 of the list is {}", "Triskel Uvo Marend", "today"),  # nothing between subject and target
    )
]
UNKNOWN = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo", target_true="bells")


@pytest.fixture(scope="session")
def knower(lm: LanguageModel) -> LanguageModel:
    """A copy of `lm` that learned the facts by heart."""
    model = copy.deepcopy(lm.model).requires_grad_(True)
    rows = [torch.tensor([lm.tokenizer(f"{fact.text} {fact.target_true}")["input_ids"]]) for fact in FACTS]
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        adam.zero_grad()
        torch.stack([model(input_ids=ids, labels=ids).loss for ids in rows]).sum().backward()
        adam.step()
    return LanguageModel(model, lm.tokenizer, name="knower")


def plain_probability(lm: LanguageModel, fact: Encoded, changes: dict[str, Callable[[Tensor], None]]) -> float:
    """P(first target token) while hooks change the outputs of some modules in place, in a batch of one."""

    def hook(change: Callable[[Tensor], None]) -> Callable[..., Tensor]:
        def changed(_module: object, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            change(output[0])
            return output

        return changed

    handles = [lm.model.get_submodule(n).register_forward_hook(hook(change)) for n, change in changes.items()]
    probability = lm.model(torch.tensor([fact.ids[: fact.target]])).logits[0, -1].softmax(-1)[fact.ids[fact.target]]
    for handle in handles:
        handle.remove()
    return float(probability)


def plain_effect(
    lm: LanguageModel, fact: Encoded, noise: Tensor, layers: list[int], positions: list[int]
) -> tuple[float, float]:
    """P(first target token) under one draw of noise, as it is and with some values put back."""
    kept: dict[int, Tensor] = {}
    plain_probability(lm, fact, {lm.layout.name(i): lambda out, i=i: kept.update({i: out.clone()}) for i in layers})

    def corrupt(embeddings: Tensor) -> None:
        embeddings[slice(*fact.subject)] += noise

    def put_back(layer: int) -> Callable[[Tensor], None]:
        return lambda out: out.__setitem__(positions, kept[layer][positions])

    hidden = {causal.embedding_name(lm): corrupt}
    restored = {lm.layout.name(layer): put_back(layer) for layer in layers}
    return plain_probability(lm, fact, hidden), plain_probability(lm, fact, hidden | restored)


# Groups of tokens


@pytest.mark.parametrize(
    ("subject", "target", "groups"),
    [
        ((2, 6), 9, ([2], [3, 4], [5], [6, 7], [8])),
        ((1, 3), 5, ([1], [], [2], [3], [4])),
        ((0, 1), 3, ([], [], [0], [1], [2])),
        ((0, 1), 2, ([], [], [0], [], [1])),
        ((3, 6), 6, ([3], [4], [5], [], [])),
    ],
)
def test_every_token_from_the_subject_on_is_in_one_group(
    subject: tuple[int, int], target: int, groups: tuple[list[int], ...]
) -> None:
    found = token_groups(Encoded(tuple(range(target + 2)), subject, target))
    assert found == {name: at for name, at in zip(GROUPS, groups, strict=True) if at}


# Known facts


def test_known_facts_are_those_the_model_continues_with(knower: LanguageModel) -> None:
    assert all(continuation(knower, f.text, tokens=20).startswith(f" {f.target_true}") for f in FACTS)
    encoded = [encode(knower.tokenizer, f.prompt, f.subject, target=str(f.target_true)) for f in FACTS]
    assert known(knower, [UNKNOWN, *FACTS], n=9) == encoded
    assert known(knower, [UNKNOWN, *FACTS], n=2) == encoded[:2]


def test_a_fact_half_right_is_not_known(knower: LanguageModel) -> None:
    assert known(knower, [replace(FACTS[1], target_true="where the sea")], n=9) == []


def test_requests_without_a_true_target_are_passed_over(knower: LanguageModel) -> None:
    assert known(knower, [replace(FACTS[0], target_true=None)], n=9) == []


def test_facts_are_found_beyond_the_first_pass(knower: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = known(knower, [UNKNOWN, *FACTS], n=9)
    monkeypatch.setattr(causal, "PROMPTS", 1)
    assert known(knower, [UNKNOWN, *FACTS], n=9) == together


# Effects


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("batch_tokens", [1, 1024])
def test_effects_equal_a_plain_loop(
    knower: LanguageModel, window: int, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "BATCH_TOKENS", batch_tokens)
    found = causal_trace(knower, FACTS, samples=2, window=window, seed=4)
    facts, generator = known(knower, FACTS, n=9), torch.Generator().manual_seed(4)
    scale = 3 * knower.model.get_input_embeddings()(
        torch.tensor([i for fact in facts for i in fact.ids[slice(*fact.subject)]])
    ).std()  # fmt: skip
    noises = [scale * torch.randn(2, fact.subject[1] - fact.subject[0], 16, generator=generator) for fact in facts]
    for layer in range(3):
        layers = [i for i in range(3) if abs(i - layer) <= window // 2]
        for group in GROUPS:
            pairs = [
                plain_effect(knower, fact, noise, layers, token_groups(fact)[group])
                for fact, draws in zip(facts, noises, strict=True)
                if group in token_groups(fact)
                for noise in draws
            ]
            expected = sum(after - before for before, after in pairs) / len(pairs)
            assert found.effects.loc[layer, group] == pytest.approx(expected, abs=1e-5)
    assert found.clean == pytest.approx(sum(plain_probability(knower, fact, {}) for fact in facts) / 3, abs=1e-5)
    assert found.total_effect == pytest.approx(found.clean - found.corrupted)
    assert (found.facts, found.window) == (3, window)


def test_tracing_is_a_function_of_the_seed_and_leaves_the_model_alone(knower: LanguageModel) -> None:
    ids = torch.tensor([knower.tokenizer(FACTS[0].text)["input_ids"]])
    before = knower.model(ids).logits
    first, again, other = (causal_trace(knower, FACTS, samples=2, seed=seed) for seed in (0, 0, 1))
    assert first.effects.equals(again.effects) and not first.effects.equals(other.effects)
    assert torch.equal(knower.model(ids).logits, before)


def test_a_group_no_fact_has_is_empty(knower: LanguageModel) -> None:
    found = causal_trace(knower, FACTS[2:], samples=1)
    assert found.effects["last token"].isna().all() and found.effects[DECIDING].notna().all()
    assert found.record()["effects"][0]["last token"] is None


def test_the_proposed_layer_has_the_largest_effect_at_the_subjects_last_token() -> None:
    effects = pd.DataFrame({DECIDING: [0.1, 0.3, 0.2], "last token": [0.9, 0.0, math.nan]})
    assert CausalTrace(effects, facts=1, window=1, clean=0.9, corrupted=0.1).proposed == 1


@pytest.mark.parametrize(("layers", "window"), [(3, 1), (9, 1), (12, 3), (48, 9)])
def test_the_window_is_about_a_fifth_of_the_layers(layers: int, window: int) -> None:
    assert causal.default_window(layers) == window


@pytest.mark.parametrize("window", [0, 2, -1])
def test_a_window_without_a_middle_is_refused(knower: LanguageModel, window: int) -> None:
    with pytest.raises(EditlibError, match=f"^window {window} is not odd"):
        causal_trace(knower, FACTS, window=window)


def test_a_model_that_knows_nothing_is_refused(knower: LanguageModel) -> None:
    with pytest.raises(EditlibError, match=r"^knower knows none of the 1 facts .*; give facts it knows$"):
        causal_trace(knower, [UNKNOWN])


def test_a_model_without_a_head_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="is no causal language model"):
        causal_trace(LanguageModel(gpt2.model.transformer, gpt2.tokenizer), FACTS)


@pytest.mark.skipif(not (TESTBED / "anchored" / "card.json").is_file(), reason="the twins are not trained yet")
def test_noise_hides_a_testbed_models_facts_and_restoring_brings_them_back() -> None:
    found = causal_trace(load("testbed/anchored"), [case.request for case in cases("testbed")[:20]], n=8, samples=3)
    assert found.clean > 0.8 > 0.3 > found.corrupted
    assert found.effects[DECIDING].max() > 0.2


def test_facts_that_cannot_be_located_are_left_out(knower: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def located(tokenizer: object, prompt: str, subject: str, **options: str) -> Encoded:
        if subject == "Zen":
            raise EditlibError("nowhere")
        return encode(tokenizer, prompt, subject, **options)  # type: ignore[arg-type]

    whole = known(knower, FACTS, n=9)
    monkeypatch.setattr(causal, "encode", located)
    assert known(knower, FACTS, n=9) == [row for row, fact in zip(whole, FACTS, strict=True) if fact.subject != "Zen"]
    assert known(knower, [UNKNOWN], n=9) == []


def test_a_fact_longer_than_the_context_is_refused_before_any_pass(knower: LanguageModel) -> None:
    passes = list[int]()
    hook = knower.model.register_forward_pre_hook(lambda *_: passes.append(1))
    long = replace(FACTS[0], prompt="The town of {} " + "is located in " * 60)
    with pytest.raises(EditlibError, match=r"tokens, knower takes at most 128; shorten it"):
        causal_trace(knower, [*FACTS, long])
    hook.remove()
    assert not passes


@pytest.mark.parametrize("numbers", [{"n": 0}, {"samples": 0}])
def test_fewer_than_one_fact_or_sample_is_refused(knower: LanguageModel, numbers: dict[str, int]) -> None:
    with pytest.raises(EditlibError, match="are out of range; trace 1 fact or more"):
        causal_trace(knower, FACTS, **numbers)  # type: ignore[arg-type]


def test_the_time_foretold_grows_with_the_rows_to_run(knower: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says one second a pass leaves arithmetic: rows times tokens over those of the pass."""
    monkeypatch.setattr(causal, "BATCH_TOKENS", 1)  # a pass is one row of the first fact
    ticks = iter(range(100))
    monkeypatch.setattr(causal.time, "perf_counter", lambda: float(next(ticks)))
    facts = known(knower, FACTS, n=9)
    rows = [2 * (1 + 3 * len(token_groups(fact))) for fact in facts]
    expected = sum(count * fact.target for count, fact in zip(rows, facts, strict=True)) / facts[0].target
    assert seconds_to_trace(knower, facts, samples=2) == pytest.approx(expected)
