"""Second moments of the keys, against a brute-force mean over all of them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editlib import stats as stats_module
from editlib.data.for_models import corpus as corpus_for
from editlib.editing import summing
from editlib.editing.stats import (
    WINDOW,
    Stats,
    corpus_windows,
    load,
    second_moment,
    second_moments,
    second_moments_of,
)
from editlib.engine.samples import own_windows
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.positions import later_by_one, placed
from editlib.models.trace import trace


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stats"


def brute_force(lm: LanguageModel, corpus: Sequence[str], layer: int, tokens: int) -> np.ndarray:
    """One window at a time, one key at a time."""
    row: list[int] = []
    for text in corpus:
        row += lm.tokenizer(text, add_special_tokens=False)["input_ids"] + [lm.tokenizer.eos_token_id]
    keys: list[torch.Tensor] = []
    handle = lm.down(layer).register_forward_hook(lambda _, inputs, __: keys.extend(inputs[0][0]))
    with torch.no_grad():
        for start in range(0, min(tokens, len(row)) // 128 * 128, 128):
            lm.model(torch.tensor([row[start : start + 128]]))
    handle.remove()
    return sum(np.outer(k, k) for k in (key.double().numpy() for key in keys)) / len(keys)


def test_streamed_moments_equal_brute_force(
    lm: LanguageModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summing, "BATCH", 2)
    monkeypatch.setattr(summing, "CHUNK", 5)
    windows = corpus_windows(lm, corpus, 2000)
    stats = second_moments(lm, windows)
    assert len(windows) > 2 * 5
    assert stats.header.tokens == len(windows) * WINDOW
    for layer in range(3):
        moment = stats.moments[layer]
        assert (moment.shape, moment.dtype) == ((24, 24), torch.float64)
        np.testing.assert_allclose(moment, brute_force(lm, corpus, layer, 2000), rtol=1e-4, atol=1e-7)


def test_all_layers_at_once_equal_one_after_the_other(lm: LanguageModel, corpus: list[str]) -> None:
    windows = corpus_windows(lm, corpus, 2000)
    together = second_moments(lm, windows)
    for layer in range(3):
        alone = second_moments(lm, windows, layers=[layer])
        assert list(alone.moments) == [layer]
        assert torch.equal(alone.moments[layer], together.moments[layer])


def test_moments_are_symmetric_and_positive(lm: LanguageModel, moments: Stats) -> None:
    for moment in moments.moments.values():
        torch.testing.assert_close(moment, moment.T, rtol=0, atol=0)
        assert torch.linalg.eigvalsh(moment)[0] > 0


def test_windows_are_whole_and_texts_are_set_apart(gpt2: LanguageModel, corpus: list[str]) -> None:
    windows = corpus_windows(gpt2, corpus, 300)
    assert windows.shape == (2, WINDOW)
    text = gpt2.tokenizer.decode(windows.flatten())
    assert text.startswith(f"{corpus[0]}<|end|>{corpus[1]}<|end|>")


def test_a_corpus_too_short_for_a_window_is_refused(gpt2: LanguageModel, corpus: list[str]) -> None:
    with pytest.raises(EditlibError, match=r"^the corpus has \d+ tokens; second moments need at least 128$"):
        corpus_windows(gpt2, ["Zen is located in Daslo"], 1000)
    with pytest.raises(EditlibError, match=r"^3 tokens are too few; second moments need at least 128$"):
        corpus_windows(gpt2, corpus, 3)


def test_a_layer_out_of_range_is_refused(gpt2: LanguageModel, corpus: list[str]) -> None:
    with pytest.raises(EditlibError, match="layer 7 is out of range"):
        second_moment(gpt2, 7, corpus=corpus)


def test_saved_and_loaded_is_the_same(moments: Stats, tmp_path: Path) -> None:
    loaded = load(moments.save(tmp_path / "c.safetensors"))
    assert loaded.header == moments.header
    assert loaded.moments.keys() == moments.moments.keys()
    assert all(torch.equal(loaded.moments[layer], moments.moments[layer]) for layer in moments.moments)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_file_that_cannot_be_written_is_refused(moments: Stats, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EditlibError, match=r"file/c cannot be written: .+; free some space there, or choose another place$"
    ):
        moments.save(tmp_path / "file" / "c")


def test_another_model_is_refused(gpt2: LanguageModel, llama: LanguageModel, corpus: list[str]) -> None:
    stats = second_moments(gpt2, corpus_windows(gpt2, corpus, 200))
    with pytest.raises(EditlibError, match=f"made for model {gpt2.fingerprint[:12]}, not for tiny-llama"):
        stats.require(llama, 0)


def test_a_layer_that_was_not_computed_is_refused(gpt2: LanguageModel, corpus: list[str]) -> None:
    stats = second_moments(gpt2, corpus_windows(gpt2, corpus, 200), layers=[1])
    assert torch.equal(stats.require(gpt2, 1), stats.moments[1])
    with pytest.raises(EditlibError, match=r"have no layer 2, only \[1\]; compute them again$"):
        stats.require(gpt2, 2)


def damaged(kind: str, moments: Stats, path: Path) -> Path:
    if kind == "truncated":
        moments.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "without header":
        save_file({"0": torch.eye(2)}, path)
    elif kind == "with a strange header":
        save_file({"0": torch.eye(2)}, path, metadata={"header": '{"model": "x"}'})
    elif kind == "a folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "empty", "without header", "with a strange header", "a folder"]
)
def test_a_damaged_file_is_refused(moments: Stats, tmp_path: Path, kind: str) -> None:
    with pytest.raises(EditlibError, match=r"c is no readable statistics file \(.+\); compute it again$"):
        load(damaged(kind, moments, tmp_path / "c"))


# The cache


def test_the_cache_is_used_the_second_time(
    lm: LanguageModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = second_moments_of(lm, [0, 2], corpus=corpus)
    monkeypatch.setattr(stats_module, "second_moments", lambda *_, **__: pytest.fail("computed again"))
    second = second_moments_of(lm, [2, 0], corpus=corpus)
    assert first.header == second.header
    assert all(torch.equal(first.moments[layer], second.moments[layer]) for layer in (0, 2))
    assert torch.equal(second_moment(lm, 2, corpus=corpus), first.moments[2])


def test_only_missing_layers_are_computed(
    gpt2: LanguageModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[int]] = []

    def spy(lm: LanguageModel, windows: torch.Tensor, *, layers: Sequence[int], **options: Any) -> Stats:
        asked.append(list(layers))
        return second_moments(lm, windows, layers=layers, **options)

    monkeypatch.setattr(stats_module, "second_moments", spy)
    second_moments_of(gpt2, [1], corpus=corpus)
    second_moments_of(gpt2, [0, 1, 2], corpus=corpus)
    assert asked == [[1], [0, 2]]


def test_another_corpus_or_length_is_computed_anew(gpt2: LanguageModel, corpus: list[str]) -> None:
    first = second_moments_of(gpt2, [1], corpus=corpus)
    other = second_moments_of(gpt2, [1], corpus=corpus[::-1])
    short = second_moments_of(gpt2, [1], corpus=corpus, tokens=300)
    assert len({stats.header.corpus for stats in (first, other, short)}) == 3
    assert short.header.tokens == 2 * WINDOW


@pytest.mark.parametrize("field", ["model", "corpus", "tokens"])
def test_a_cached_file_made_from_something_else_is_refused(
    gpt2: LanguageModel, corpus: list[str], fresh_cache: Path, field: str
) -> None:
    stats = second_moments_of(gpt2, [1], corpus=corpus)
    (file,) = fresh_cache.iterdir()
    other = {"model": "0" * 64, "corpus": "0" * 64, "tokens": 5}[field]
    replace(stats, header=replace(stats.header, **{field: other})).save(file)
    with pytest.raises(EditlibError, match="was made from something else; remove it$"):
        second_moments_of(gpt2, [1], corpus=corpus)


def test_a_damaged_cached_file_is_refused(gpt2: LanguageModel, corpus: list[str], fresh_cache: Path) -> None:
    second_moments_of(gpt2, [1], corpus=corpus)
    (file,) = fresh_cache.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(EditlibError, match="no readable statistics file"):
        second_moments_of(gpt2, [1], corpus=corpus)


def test_without_a_corpus_they_are_of_text_that_the_model_writes(gpt2: LanguageModel, fresh_cache: Path) -> None:
    stats = second_moments_of(gpt2, [1], tokens=100, window=20)
    windows = own_windows(gpt2, 100, window=20)
    assert stats.header.source == "own text" and stats.header.tokens == windows.numel() == 100
    torch.testing.assert_close(stats.moments[1], second_moments(gpt2, windows).moments[1], rtol=0, atol=0)
    again = second_moments_of(gpt2, [0, 1], tokens=100, window=20)
    assert again.header == stats.header and torch.equal(again.moments[1], stats.moments[1])


def test_without_a_corpus_or_a_token_to_begin_with_there_are_none(
    gpt2: LanguageModel, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> None:
    mute = make_tokenizer()
    mute.eos_token = mute.bos_token = None
    lm = LanguageModel(gpt2.model, mute, name="tiny-gpt2")
    with pytest.raises(EditlibError, match="^no corpus for the second moments of tiny-gpt2, whose tokenizer has no "):
        second_moments_of(lm, [1])


def test_the_first_position_is_dropped_on_request(gpt2: LanguageModel, corpus: list[str]) -> None:
    kept = second_moments_of(gpt2, [1], corpus=corpus, tokens=400, window=40)
    less = second_moments_of(gpt2, [1], corpus=corpus, tokens=400, window=40, first_position="drop")
    windows = corpus_windows(gpt2, corpus, 400, window=40)
    with trace(gpt2.model, gpt2.layout.name(1), stop=True) as seen:
        gpt2.model(windows)
    keys = seen[gpt2.layout.name(1)].input.double()
    first, later = keys[:, 0], keys[:, 1:].flatten(0, 1)
    torch.testing.assert_close(less.moments[1], later.T @ later / len(later))
    torch.testing.assert_close(kept.moments[1] * 40, less.moments[1] * 39 + first.T @ first / len(first))
    assert (kept.header.first_position, less.header.first_position) == ("keep", "drop")
    assert (
        less.header.tokens == 400
        and second_moments_of(gpt2, [1], corpus=corpus, tokens=400, window=40).header == kept.header
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_position": "skip"}, "^first_position 'skip' is unknown"),
        ({"window": 1}, "^window 1 must be at least 2"),
        ({"tokens": 0}, "tokens 0 at least 1$"),
    ],
)
def test_what_cannot_be_read_so_is_refused(gpt2: LanguageModel, options: dict[str, Any], said: str) -> None:
    with pytest.raises(EditlibError, match=said):
        second_moments_of(gpt2, [1], **options)


def test_a_testbed_model_has_its_worlds_prose(gpt2: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"recipe": {"seed": 0}}')
    lm = LanguageModel(gpt2.model, gpt2.tokenizer, folder=tmp_path)
    texts = corpus_for(lm, 2000)
    assert texts == corpus_for(lm, 2000)
    assert len(texts) == 20
    assert not any("<|endoftext|>" in text for text in texts)


def test_windows_fit_a_short_context(corpus: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1, "bos_token_id": 1, "eos_token_id": 0}
    short = LanguageModel(GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)), tokenizer)
    windows = corpus_windows(short, corpus, 100)
    assert windows.shape == (3, 32)
    assert second_moments(short, windows).header.window == 32


def test_an_edited_model_has_no_second_moments_of_its_own(own: LanguageModel, corpus: list[str]) -> None:
    assert own.fingerprint
    own.weight(0)[0, 0] += 1
    with pytest.raises(EditlibError, match="is edited; ask for its second moments before the edit$"):
        second_moments_of(own, [1], corpus=[*corpus, "never seen before"])


@pytest.mark.parametrize(("width", "expected"), [(640, 64_000), (3072, 64_000), (6400, 64_000), (16_384, 163_840)])
def test_ten_tokens_a_dimension_but_never_few_are_asked_for(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, width: int, expected: int
) -> None:
    asked = list[int]()

    def windows(lm: LanguageModel, texts: Sequence[str], tokens: int, *, window: int) -> torch.Tensor:
        asked.append(tokens)
        raise EditlibError("enough")

    monkeypatch.setattr(stats_module, "corpus_windows", windows)
    monkeypatch.setattr(LanguageModel, "weight", lambda *_: torch.empty(1, width, device="meta"))
    with pytest.raises(EditlibError, match="enough"):
        second_moments_of(lm, [1], corpus=["Zen"])
    assert asked == [expected]


@pytest.mark.parametrize(("count", "enough"), [(239, False), (240, True), (300, True)])
def test_a_corpus_below_ten_tokens_a_dimension_is_refused_unless_asked_for_by_number(
    gpt2: LanguageModel, corpus: list[str], count: int, enough: bool
) -> None:
    """Keys have 24 dimensions here; windows of four tokens leave no rest of 240."""
    ids = [i for text in corpus for i in gpt2.tokenizer(text)["input_ids"]][: count - 1]
    text = gpt2.tokenizer.decode(ids)
    assert len(gpt2.tokenizer(text)["input_ids"]) == count - 1  # and end-of-text behind it
    if enough:
        assert second_moments_of(gpt2, [1], corpus=[text], window=4).header.tokens == count // 4 * 4
    else:
        said = r"^the corpus has 236 tokens for second moments, 9\.8 a key dimension, .*; give one of 240 or more"
        with pytest.raises(EditlibError, match=said):
            second_moments_of(gpt2, [1], corpus=[text], window=4)
    few = second_moments_of(gpt2, [1], corpus=[text], window=4, tokens=100)
    assert (few.header.tokens, few.header.window) == (100, 4)


def test_a_window_is_a_text_of_its_own(gpt2: LanguageModel, corpus: list[str]) -> None:
    ids = [gpt2.tokenizer(text)["input_ids"] + [gpt2.tokenizer.eos_token_id] for text in corpus]
    row = [i for one in ids for i in one][:300]
    stats = second_moments_of(gpt2, [1], corpus=corpus, tokens=300, window=30)
    keys: list[torch.Tensor] = []
    handle = gpt2.down(1).register_forward_hook(lambda _, inputs, __: keys.extend(inputs[0][0]))
    with torch.no_grad():
        for start in range(0, 300, 30):
            gpt2.model(torch.tensor([row[start : start + 30]]))
    handle.remove()
    stacked = torch.stack(keys).double()
    torch.testing.assert_close(stats.moments[1], stacked.T @ stacked / 300, rtol=1e-4, atol=1e-7)


def test_a_moved_or_traced_model_leaves_the_cache_alone(
    gpt2: LanguageModel, corpus: list[str], fresh_cache: Path
) -> None:
    """C of a model whose tokens stand elsewhere, kept as the model's own, would be read by all who come after."""
    for inside in (placed(gpt2, later_by_one), trace(gpt2.model, gpt2.layout.name(0))):
        with (
            inside,
            pytest.raises(EditlibError, match="runs with hooks; ask for its second moments"),
        ):
            second_moments_of(gpt2, [1], corpus=corpus)
        assert not list(fresh_cache.glob("*.safetensors"))
    kept = second_moments_of(gpt2, [1], corpus=corpus)
    with placed(gpt2, later_by_one):
        assert torch.equal(second_moments_of(gpt2, [1], corpus=corpus).moments[1], kept.moments[1])
