"""Perplexity against a loop that takes one sentence and one token at a time."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.session import Session
from editlib.engine.perplexity import Perplexity, Protocol, perplexity
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel


@torch.no_grad()
def loop(lm: LanguageModel, texts: Sequence[str]) -> list[list[float]]:
    """Negative log-likelihood of every token of every text but its first, no special token."""
    losses = []
    for text in texts:
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        scores = lm.model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
        losses.append([-scores[i, token].item() for i, token in enumerate(ids[1:])])
    return losses


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    """Of many lengths, not in order of length."""
    return [text[: 10 + 7 * (i * 5 % 13)] for i, text in enumerate(corpus[:14])]


def test_it_equals_a_plain_loop(lm: LanguageModel, texts: list[str]) -> None:
    result, losses = perplexity(lm, texts), loop(lm, texts)
    each = [math.exp(sum(row) / len(row)) for row in losses]
    np.testing.assert_allclose(result.per_sentence, each, rtol=1e-5)
    assert result.mean == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert result.corpus == pytest.approx(math.exp(sum(map(sum, losses)) / sum(map(len, losses))), rel=1e-5)
    assert result.counts.tolist() == [len(row) for row in losses]


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_batching_does_not_matter(lm: LanguageModel, texts: list[str], batch_tokens: int) -> None:
    whole, parts = perplexity(lm, texts), perplexity(lm, texts, batch_tokens=batch_tokens)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-5)


def test_order_of_the_texts_does_not_matter(lm: LanguageModel, texts: list[str]) -> None:
    forward, backward = perplexity(lm, texts), perplexity(lm, texts[::-1])
    np.testing.assert_allclose(forward.per_sentence, backward.per_sentence[::-1], rtol=1e-5)


def test_the_papers_mean_is_not_the_corpus_level() -> None:
    result = Perplexity(np.log([2.0, 8.0]) * [1, 3], np.array([1, 3]))
    np.testing.assert_allclose(result.per_sentence, [2.0, 8.0])
    assert result.mean == pytest.approx(5.0)
    assert result.corpus == pytest.approx(math.exp((math.log(2) + 3 * math.log(8)) / 4))


def test_infinity_is_a_result(own: LanguageModel, texts: list[str]) -> None:
    norm = own.model.get_submodule({"gpt2": "transformer.ln_f", "llama": "model.norm"}[own.model.config.model_type])
    norm.weight.mul_(1e5)  # type: ignore[operator]
    result = perplexity(own, texts)
    assert np.isfinite(result.losses).all()
    assert np.isinf(result.per_sentence).all()
    assert result.mean == result.corpus == math.inf


def test_one_infinite_sentence_makes_the_mean_infinite() -> None:
    result = Perplexity(np.array([1.0, 5000.0]), np.array([1, 5]))
    assert result.per_sentence.tolist() == [math.e, math.inf]
    assert result.mean == math.inf
    assert result.corpus == math.inf


def test_not_a_number_is_a_result(own: LanguageModel, texts: list[str]) -> None:
    own.weight(0).fill_(math.nan)
    result = perplexity(own, texts)
    assert np.isnan(result.per_sentence).all()
    assert math.isnan(result.mean) and math.isnan(result.corpus)


def test_one_sentence_that_is_not_a_number_leaves_the_others(llama: LanguageModel) -> None:
    own = LanguageModel(copy.deepcopy(llama.model), llama.tokenizer)  # embeddings not tied: one row is one token's
    snowman = own.tokenizer("☃", add_special_tokens=False)["input_ids"][-1]
    own.model.get_input_embeddings().weight[snowman] = math.nan  # type: ignore[operator]
    result = perplexity(own, ["Zen is located in Daslo", "Zen ☃ is", "Uvo is in Daslo"])
    assert np.isnan(result.per_sentence).tolist() == [False, True, False]


def test_half_precision_models_are_scored_in_single_precision(own: LanguageModel, texts: list[str]) -> None:
    own.model.bfloat16()
    each = [math.exp(sum(row) / len(row)) for row in loop(own, texts)]
    np.testing.assert_allclose(perplexity(own, texts, batch_tokens=1).per_sentence, each, rtol=1e-5)


def test_no_texts_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="^no texts to measure perplexity on; give at least one$"):
        perplexity(gpt2, [])


@pytest.mark.parametrize("text", ["", "Zen"])
def test_a_text_of_fewer_than_two_tokens_is_refused(lm: LanguageModel, text: str) -> None:
    with pytest.raises(EditlibError, match=f"^text '{text}' has fewer than two tokens; perplexity needs two$"):
        perplexity(lm, ["Zen is located in", text])


def test_a_text_beyond_the_models_context_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="has 200 tokens, .* at most 128"):
        perplexity(lm, ["Zen is", "!" + "?!" * 99 + "?"])


# Other protocols


def test_behind_a_bos_token_every_token_is_scored(lm: LanguageModel, texts: list[str]) -> None:
    found, plain = perplexity(lm, texts, bos=True), perplexity(lm, texts)
    for i, text in enumerate(texts):
        ids = [lm.tokenizer.bos_token_id, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            scores = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert found.losses[i] == pytest.approx(-sum(scores[j, t].item() for j, t in enumerate(ids[1:])), rel=1e-5)
    assert found.counts.tolist() == [count + 1 for count in plain.counts]
    assert found.protocol == Protocol(bos=True) and plain.protocol == Protocol()
    assert perplexity(lm, ["Z"], bos=True).counts.tolist() == [1]


def test_a_tokenizer_without_bos_token_is_named(gpt2: LanguageModel) -> None:
    mute = LanguageModel(gpt2.model, copy.deepcopy(gpt2.tokenizer), name="mute")
    mute.tokenizer.bos_token = None
    with pytest.raises(EditlibError, match="^the tokenizer of mute has no BOS token to put before texts; use"):
        perplexity(mute, ["Zen is"], bos=True)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("stride", [1, 50, 127, 128])
def test_windows_of_a_long_text_are_those_of_the_documentation_of_transformers(
    lm: LanguageModel, stride: int, bos: bool
) -> None:
    text, size = "Zen is located in Daslo, near the sea. " * 12, 128
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids, loss, count, end = [lm.tokenizer.bos_token_id] * bos + ids, 0.0, 0, 0
    assert len(ids) > size
    for begin in range(0, len(ids), stride):
        last = min(begin + size, len(ids))
        window, labels = torch.tensor([ids[begin:last]]), torch.tensor([ids[begin:last]])
        labels[:, : -(last - end)] = -100
        with torch.no_grad():
            mean = lm.model(window, labels=labels).loss.item()
        scored = int((labels[:, 1:] != -100).sum())
        loss, count, end = loss + mean * scored if scored else loss, count + scored, last
        if last == len(ids):
            break
    found = perplexity(lm, [text, "Zen is located in"], stride=stride, bos=bos)
    assert (found.losses[0], found.counts[0]) == (pytest.approx(loss, rel=1e-5), count)
    assert found.losses[1] == pytest.approx(perplexity(lm, ["Zen is located in"], bos=bos).losses[0], rel=1e-5)
    assert found.protocol == Protocol(bos, stride)


def test_the_engine_reads_texts_by_the_same_protocol(lm: LanguageModel, texts: list[str]) -> None:
    texts, protocol = [*texts, "Zen is located in Daslo, near the sea. " * 12], Protocol(bos=True, stride=40)
    expected, (out, into) = perplexity(lm, texts, bos=True, stride=40), lm.weight(1).shape
    ask = EditRequest(prompt="{} is", subject="Zen", target_new="Daslo")
    change = {f"{lm.layout.name(1)}.weight": LowRank(torch.zeros(out, 1), torch.ones(into, 1))}
    for factors in (change, {}):  # by its keys; with weights written
        still = Edit("none", (ask,), factors, {}, lm.fingerprint)
        (found,) = Session(lm).perplexities([still], texts, protocol=protocol)
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
        assert found.counts.tolist() == expected.counts.tolist() and found.protocol == protocol


@pytest.mark.parametrize("stride", [0, 129])
def test_windows_that_leave_tokens_out_are_refused(lm: LanguageModel, stride: int) -> None:
    with pytest.raises(EditlibError, match=f"^stride={stride} is out of range; .* begin 1 to 128 tokens apart$"):
        perplexity(lm, ["Zen is located in"], stride=stride)


def test_losses_of_tokens_are_given_on_request(lm: LanguageModel, texts: list[str]) -> None:
    found = perplexity(lm, texts, tokens=True)
    for each, expected in zip(found.tokens, loop(lm, texts), strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)
    assert perplexity(lm, texts).tokens == ()
