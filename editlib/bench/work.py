"""The work that is measured: a model, real or of a known shape with random weights, requests and texts."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedConfig

from editlib.bench.floor import SearchText, spans
from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import hparams_for
from editlib.editing.methods.rome import RomeParams
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError, unknown
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load, require_device
from editlib.models.names import DTYPES, PACKAGED, beside, gguf_file, is_testbed, locate, testbed_names
from editlib.models.tokens import encode_texts

TESTBED = "testbed/anchored"  # lends random models its tokenizer, prefix contexts, cases and prose
DATA = {True: ("testbed", "testbed-ppl-1k"), False: ("facts", "prose-500")}  # of the testbed's world, or the real one
SHAPES: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(n_layer=12, n_embd=768, n_head=12, n_positions=1024, vocab_size=50257),
    "gpt2-xl": GPT2Config(n_layer=48, n_embd=1600, n_head=25, n_positions=1024, vocab_size=50257),
    "gpt-j-6b": GPTJConfig(n_layer=28, n_embd=4096, n_head=16, rotary_dim=64, n_positions=2048, vocab_size=50400),
    "llama-2-7b": LlamaConfig(
        num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
        max_position_embeddings=4096, vocab_size=32000,
    ),
}  # fmt: skip
MODELS = ("testbed", *SHAPES)
ALSO = (*PACKAGED, *testbed_names(), "a folder", "a GGUF file", "id@commit")


def model(name: str, *, dtype: str = "float32", device: str | None = None) -> LanguageModel:
    """The testbed's anchored twin, a model of true shape with random weights, which needs no download, or whatever
    `load` takes.

    Raises `EditlibError` for an unknown name or device, or before a model larger than the free memory is made.
    """
    if name not in SHAPES:
        return load(TESTBED if name == "testbed" else name, dtype=dtype, device=device)
    lender, config = load(TESTBED), SHAPES[name]
    device = require_device(device)
    _require_memory(name, config, dtype, device)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return LanguageModel(made, lender.tokenizer, name=name, folder=lender.folder)


def _require_memory(name: str, config: PreTrainedConfig, dtype: str, device: str) -> None:
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    needed = made.num_parameters() * made.dtype.itemsize
    cuda = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    if needed > free:
        raise EditlibError(
            f"model {name} has {needed / 2**30:.1f} GiB of weights in {dtype}, and {free / 2**30:.1f} GiB of memory "
            "are free; choose a smaller model or --dtype bfloat16"
        )


def check(name: str, *, edits: int) -> None:
    """Raise `EditlibError` for a model that is none of those `model` takes, or more edits than there are cases for it.
    No model is loaded."""
    named = TESTBED if name in MODELS else name
    if "@" not in name and locate(named) is None and gguf_file(named) is None:
        raise unknown("bench model", name, (*MODELS, *ALSO))
    _pool(beside(named), edits)


def _pool(folder: Path | None, edits: int) -> list[Case]:
    """Cases for a model that has this folder."""
    name, _ = DATA[is_testbed(folder)]
    cases = data.cases(name)
    if not 1 <= edits <= len(cases):
        raise EditlibError(f"edits={edits} is out of range; {name} has {len(cases)} cases")
    return cases


@dataclass(frozen=True)
class Work:
    """What both paths are given."""

    lm: LanguageModel
    requests: tuple[EditRequest, ...]
    texts: tuple[str, ...]
    params: RomeParams

    @property
    def name(self) -> str:
        """The module whose output v* is."""
        return self.lm.layout.name(self.params.layer)

    @cached_property
    def contexts(self) -> list[str]:
        """The prefix contexts."""
        return prefix_contexts(self.lm, flavour=self.params.contexts)

    @cached_property
    def searches(self) -> list[list["SearchText"]]:
        """The texts of every request's search."""
        return [spans(self.lm, request, self.contexts) for request in self.requests]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every text."""
        return [len(row) for row in encode_texts(self.lm, self.texts)]

    def first(self, edits: int) -> "Work":
        """The same with the first few requests."""
        return replace(self, requests=self.requests[:edits])

    def alone(self, edits: int) -> list["Work"]:
        """The same with one request, for a few of them, spread evenly over their lengths."""
        order = sorted(range(len(self.requests)), key=lambda i: max(span.end for span in self.searches[i]))
        chosen = [order[(2 * i + 1) * len(order) // (2 * edits)] for i in range(edits)]
        return [replace(self, requests=self.requests[i : i + 1]) for i in chosen]


def work(
    lm: LanguageModel,
    *,
    edits: int = 16,
    texts: int = 50,
    longest: int = 59,
    before: int = 0,
    steps: int | None = None,
) -> Work:
    """Requests and texts of the testbed's world for its models and random ones, English ones for others; ROME's
    preset, without second moments.

    They are of the papers' size. On the testbed searches have about 17 tokens a row, 20 with padding, 4 from the
    subject's last on, as have COUNTERFACT's requests in GPT-2's tokens behind prefixes of 7 and 12. Texts are pieces of
    prose whose lengths grow as squares from a sixth of `longest` tokens to `longest`, about as in ME-PPL-50 (50 texts,
    1,328 tokens, longest 59). `before` tokens of prose go before each prompt. Every search takes all its steps.

    Raises `EditlibError` for more edits than there are cases, or a text or prompt longer than the model's context.
    """
    cases, (_, sentences) = _pool(lm.folder, edits), DATA[is_testbed(lm.folder)]
    Random(0).shuffle(cases)
    prose = lm.tokenizer(" ".join(data.texts(sentences)), add_special_tokens=False)["input_ids"]
    lengths = [before, *(round(longest * (1 + 5 * (i / max(texts - 1, 1)) ** 2) / 6) for i in range(texts))]
    opening, *pieces = (lm.tokenizer.decode(prose[start:end]) for start, end in pairwise((0, *accumulate(lengths))))
    requests = [case.request for case in cases[:edits]]
    if before:
        requests = [replace(request, prompt=f"{opening.strip()} {request.prompt}") for request in requests]
    chosen: dict[str, Any] = {} if steps is None else {"steps": steps}
    made = Work(lm, tuple(requests), tuple(pieces), hparams_for(lm, "rome", covariance=False, stop_loss=0.0, **chosen))
    try:
        _ = made.lengths, made.searches  # reads every token
    except EditlibError as error:
        raise EditlibError(f"before={before} or longest={longest} is too large: {error}") from error
    return made
