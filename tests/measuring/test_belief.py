"""Beliefs of a model: shares of the answers there are, distances between beliefs, what holds of any probabilities."""

import numpy as np
import pytest
import torch

import editlib as el
from editlib.measuring.belief import believed, distance, incoherence

QUESTIONS = [
    ("The city of Betruv is located in", ["Drema", "Naslam", "Hifru"]),
    ("Jaklon is located in", ["Hifru", "Drema"]),
    ("Kuflut Snasi", ["Drema Naslam", "Naslam"]),
]


@pytest.fixture(scope="module")
def control() -> el.LanguageModel:
    return el.load("testbed/control")


def plain(lm: el.LanguageModel, prompt: str, option: str) -> float:
    """The probability of an option, token by token."""
    before, whole = (lm.tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {option}"))
    with torch.no_grad():
        logs = lm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return float(torch.stack([logs[i - 1, whole[i]] for i in range(len(before), len(whole))]).sum().exp())


def test_beliefs_are_shares_of_the_probability_of_all_options(control: el.LanguageModel) -> None:
    for (prompt, options), found in zip(QUESTIONS, believed(control, QUESTIONS), strict=True):
        each = np.array([plain(control, prompt, option) for option in options])
        assert found.mass == pytest.approx(each.sum(), rel=1e-4) and found.mass <= 1
        assert found.shares == pytest.approx(each / each.sum(), rel=1e-4)
        assert found.shares.sum() == pytest.approx(1)


def test_an_edit_is_believed(control: el.LanguageModel) -> None:
    request = el.EditRequest(prompt="The city of {} is located in", subject="Betruv", target_new="Naslam")
    (before,) = believed(control, QUESTIONS[:1])
    with el.compute(control, [request], method="c-rome").applied(control):
        (after,) = believed(control, QUESTIONS[:1])
    assert before.shares[1] < 0.01 < 0.9 < after.shares[1]


def test_a_model_without_finite_logits_believes_nothing(control: el.LanguageModel) -> None:
    weight = control.model.transformer.ln_f.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        (found,) = believed(control, QUESTIONS[:1])
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert np.isnan(found.shares).all() and distance(found.shares, np.ones(3) / 3) == 1.0


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (("Jaklon is located in", []), "has no options"),
        (("long " * 200, ["Drema"]), "takes at most 128"),
    ],
)
def test_what_cannot_be_asked(control: el.LanguageModel, question: tuple[str, list[str]], said: str) -> None:
    with pytest.raises(el.EditlibError, match=said):
        believed(control, [question])


def test_distance_is_total_variation() -> None:
    assert distance(np.array([0.2, 0.8]), {"a": 0.2, "b": 0.8}) == pytest.approx(0)
    assert distance(np.array([1.0, 0.0]), {"a": 0.0, "b": 1.0}) == 1
    assert distance(np.array([0.5, 0.5]), np.array([0.75, 0.25])) == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_of_any_joint_are_coherent(seed: int) -> None:
    joint = np.random.default_rng(seed).dirichlet(np.ones(4)).reshape(2, 2)  # [a, b]
    a, b, both = joint[1].sum(), joint[:, 1].sum(), joint[1, 1]
    gaps = incoherence(a, 1 - a, b, both, both, a + b - both)
    assert max(gaps.values()) < 1e-12
    assert incoherence(0.9, 0.3, 0.5, 0.4, 0.1, 0.6) == pytest.approx({"negation": 0.2, "order": 0.3, "sum": 0.4})
