"""Memory: what is taken for too little of it, and that no number or length of texts makes logits without bound."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.session import Session
from editlib.engine import memory
from editlib.engine.memory import halving, out_of_memory
from editlib.engine.perplexity import Perplexity, perplexity
from editlib.models.language_model import LanguageModel

VOCABULARY = 50_257  # GPT-2's
ASK = EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.13 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
        (RuntimeError("memory format is not supported"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_is_too_small_is_told_from_other_failures(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_what_torch_says_of_this_machine_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert out_of_memory(caught.value)


def test_a_batch_is_halved_until_it_fits_and_keeps_its_order() -> None:
    sizes = list[int]()

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return [10 * i for i in batch]

    assert halving([*range(7)], work) == [10 * i for i in range(7)]
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    with pytest.raises(ValueError, match="another"):
        halving([1, 2], lambda _: (_ for _ in ()).throw(ValueError("another")))


# Logits


@pytest.fixture(scope="module")
def wide(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    """A tiny model with a vocabulary of GPT-2's size."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=1024, n_embd=8, n_layer=2, n_head=2, n_inner=12)
    return LanguageModel(GPT2LMHeadModel(config), tokenizer, name="tiny-wide")


def by_edit(lm: LanguageModel, texts: list[str]) -> Perplexity:
    """Of an edit that changes nothing, by the engine, beside others."""
    name, (out, into) = f"{lm.layout.name(0)}.weight", lm.weight(0).shape
    edit = Edit("none", (ASK,), {name: LowRank(torch.zeros(out, 1), torch.ones(into, 1))}, {}, lm.fingerprint)
    return Session(lm).perplexities([edit] * 3, texts)[1]


def by_written_weights(lm: LanguageModel, texts: list[str]) -> Perplexity:
    """Of an edit of another weight that changes nothing, from its block on."""
    name = f"{lm.layout.blocks}.1.attn.c_proj"
    edit = Edit("none", (ASK,), {f"{name}.weight": LowRank(torch.zeros(8, 1), torch.ones(8, 1))}, {}, lm.fingerprint)
    return Session(lm).perplexities([edit], texts)[0]


@pytest.mark.parametrize("measure", [perplexity, by_edit, by_written_weights])
def test_logits_of_a_pass_are_bounded_for_any_number_and_length_of_texts(
    wide: LanguageModel, measure: Callable[..., Perplexity], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Zen is located in Daslo."] * 60 + ["Uvo " * 400]
    made, tokens = list[int](), list[int]()
    head = wide.model.get_output_embeddings().register_forward_hook(lambda *seen: made.append(seen[2].numel()))
    body = wide.model.transformer.ln_f.register_forward_hook(lambda *seen: tokens.append(seen[2].shape[:2].numel()))
    try:
        found = measure(wide, texts)
    finally:
        head.remove()
        body.remove()
    longest = max(len(row) for row in wide.tokenizer(texts)["input_ids"])
    assert sum(made) >= VOCABULARY * found.counts.sum()
    assert max(made) <= memory.LOGITS["cpu"] and max(tokens) <= max(longest, memory.LOGITS["cpu"] // VOCABULARY)
    monkeypatch.setitem(memory.LOGITS, "cpu", 2**40)
    np.testing.assert_allclose(found.losses, measure(wide, texts).losses, rtol=1e-5)


def test_lower_blocks_are_run_again_where_what_they_give_cannot_be_kept(
    wide: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Zen is located in Daslo.", "Uvo is in Daslo", "Zen, near the sea, is in Quint"]
    kept = by_edit(wide, texts), by_written_weights(wide, texts)
    monkeypatch.setattr("editlib.engine.perplexity.budget", lambda _: 0)
    again = by_edit(wide, texts), by_written_weights(wide, texts)
    assert all(np.array_equal(one.losses, other.losses) for one, other in zip(kept, again, strict=True))
