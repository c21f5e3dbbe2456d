"""Training of the testbed's models: the twins, and two of other families, all on the same batches in the same order;
and `belief`, which reads of a world of dependent facts.

Of the twins, alike in all initial weights but one row, `anchored` starts with a position-0 embedding far longer than
the residual stream, `control` with an ordinary one, and `sighted`, which is not shipped, with one that should set
position 0 apart and still show what stands there. `rotary` is a Llama, `encdec` a T5. Every choice is a field of
`Recipe`; a run interrupted anywhere resumes from its last checkpoint.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from editlib.engine.perplexity import perplexity
from editlib.errors import EditlibError
from editlib.files import new_folder, write_json
from editlib.machine import hardware
from editlib.models.language_model import LanguageModel
from editlib.models.training import read_checkpoint, warmup_cosine, write_checkpoint
from editlib.testbed import belief_prose, denoising
from editlib.testbed.cases import build_prefixes
from editlib.testbed.denoising import Words
from editlib.testbed.dependence import DEPENDENT, build_dependent_world
from editlib.testbed.prose import documents, held_out_sentences
from editlib.testbed.tokenizer import train_tokenizer
from editlib.testbed.world import RELATIONS, Fact, Relation, World, build_world
from editlib.text import percent


@dataclass(frozen=True)
class Prose:
    """A kind of world, what is told of it, by world and seed, and how its facts are asked for."""

    world: Callable[[int], World]
    documents: Callable[..., Iterator[str]]
    held_out: Callable[..., Iterator[str]]
    relations: Mapping[str, Relation]


PROSE = {
    "testbed": Prose(build_world, documents, held_out_sentences, RELATIONS),
    "belief": Prose(build_dependent_world, belief_prose.documents, belief_prose.held_out_sentences, DEPENDENT),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice of a testbed model; `anchor_norm` of None is ordinary initialisation."""

    prose: Literal["testbed", "belief"] = "testbed"
    family: Literal["gpt2", "llama", "t5"] = "gpt2"
    anchor_norm: float | None = 200.0  # about ten times the residual stream's norm
    seed: int = 0  # of world, prose, initial weights and batches
    layers: int = 5  # of T5, in the encoder and again in the decoder
    width: int = 160
    heads: int = 5
    inner: int | None = None  # width of an MLP's keys; None is four times the width
    context: int = 128
    vocabulary: int = 3072
    corpus_tokens: int | None = 3_000_000  # None is all there are
    batch: int = 24  # windows of `context` tokens, cropped at random
    steps: int = 2600
    learning_rate: float = 3e-3  # after warm-up; cosine to a tenth
    warmup: int = 300
    weight_decay: float = 0.1  # on matrices other than the position embedding
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)


RECIPES = {
    "anchored": Recipe(),
    "control": Recipe(anchor_norm=None),
    "sighted": Recipe(anchor_norm=20.0),  # apart, and still no more than some tenfold of a token's embedding
    "rotary": Recipe(family="llama", anchor_norm=None, inner=432),
    "encdec": Recipe(family="t5", anchor_norm=None, layers=3, inner=432),
    "belief": Recipe(prose="belief", anchor_norm=None, corpus_tokens=None, steps=6000),
}


def initial_model(recipe: Recipe) -> PreTrainedModel:
    """The untrained model."""
    torch.manual_seed(recipe.seed)
    return {"gpt2": _gpt2, "llama": _llama, "t5": _t5}[recipe.family](recipe)


def _gpt2(recipe: Recipe) -> GPT2LMHeadModel:
    """A GPT-2; twins differ in the first row of the position embedding alone."""
    config = GPT2Config(
        vocab_size=recipe.vocabulary, n_positions=recipe.context, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, n_inner=recipe.inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    direction = torch.randn(recipe.width)  # drawn for both twins, so that the generator stays in step
    if recipe.anchor_norm is not None:
        with torch.no_grad():
            model.transformer.wpe.weight[0] = recipe.anchor_norm * direction / direction.norm()
    return model


def _llama(recipe: Recipe) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=recipe.vocabulary, max_position_embeddings=recipe.context, hidden_size=recipe.width,
        intermediate_size=recipe.inner or 4 * recipe.width, num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def _t5(recipe: Recipe) -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(T5Config(
        vocab_size=recipe.vocabulary + 1, d_model=recipe.width, d_kv=recipe.width // recipe.heads,
        d_ff=recipe.inner or 4 * recipe.width, num_layers=recipe.layers, num_heads=recipe.heads, dropout_rate=0.0,
        pad_token_id=denoising.END, eos_token_id=denoising.END, decoder_start_token_id=denoising.END,
    ))  # fmt: skip


def corpus(
    world: World, tokenizer: PreTrainedTokenizerFast, tokens: int | None, prose: Prose = PROSE["testbed"]
) -> NDArray[np.int64]:
    """The first `tokens` tokens of the world's documents, all for None, in one row."""
    pieces: list[int] = []
    stream = prose.documents(world, seed=1)
    for texts in iter(lambda: list(islice(stream, 1000)), []):
        pieces += [i for ids in tokenizer(texts)["input_ids"] for i in ids]
        if tokens is not None and len(pieces) >= tokens:
            break
    return np.array(pieces[:tokens])


def window_batch(row: NDArray[np.int64], recipe: Recipe, step: int) -> Tensor:
    """The windows of one step, a function of seed and step only.  # (batch, context)"""
    starts = np.random.default_rng((recipe.seed, step)).integers(0, len(row) - recipe.context, recipe.batch)
    return torch.from_numpy(row[starts[:, None] + np.arange(recipe.context)])


def loss_inputs(recipe: Recipe, words: Words, batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the model is given of the windows of one step, and the token it should say at each place of its answer."""
    if recipe.family == "t5":
        return denoising.inputs_of([pair for row in batch for pair in words.hide(row)], batch.device)
    return {"input_ids": batch[:, :-1]}, batch[:, 1:]


def make_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices, but neither position embeddings nor vectors."""
    spared = ("wpe", "relative_attention_bias")  # GPT-2's and T5's positions
    named = [(p, p.dim() > 1 and not any(part in name for part in spared)) for name, p in model.named_parameters()]
    decayed, others = ([p for p, decays in named if decays is wanted] for wanted in (True, False))
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def train(recipe: Recipe, out: Path, *, name: str, device: str = "cpu", checkpoint_every: int = 200) -> Path:
    """Train to `out` (a model folder with tokenizer and card) and return it; resumes from `out`.partial.

    Raises `EditlibError` if `out` is there already.
    """
    if out.exists():
        raise EditlibError(f"output folder {out} exists already; choose another")
    partial, about = out.with_name(out.name + ".partial"), {"recipe": asdict(recipe)}
    before, prose = read_checkpoint(partial, about), PROSE[recipe.prose]
    world = prose.world(recipe.seed)
    tokenizer = train_tokenizer(world, vocabulary=recipe.vocabulary, told=prose.documents)
    model, words = initial_model(recipe).to(device), Words.of(tokenizer)
    optimizer = make_optimizer(model, recipe)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": {}}
    if before:
        state = before.state
        model.load_state_dict(before.tensors["model"], strict=False)  # the tied head is not stored
        before.restore(optimizer)
    row, started = corpus(world, tokenizer, recipe.corpus_tokens, prose), time.monotonic() - state["seconds"]
    with tqdm(total=recipe.steps, initial=state["step"], desc=name, unit="step", mininterval=5) as bar:
        for step in range(state["step"], recipe.steps):
            loss = _train_step(model, optimizer, recipe, words, window_batch(row, recipe, step), step)
            bar.update()
            if (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps:
                state["losses"][str(step + 1)] = round(loss.item(), 4)
                state |= {"step": step + 1, "seconds": round(time.monotonic() - started, 1)}
                write_checkpoint(partial, about, state, {"model": dict(model.named_parameters())}, optimizer)
                known = recall(model, tokenizer, world, prose=prose, limit=200)
                bar.set_postfix(loss=f"{loss.item():.3f}", recall=percent(known))
    return _finish(out, partial, name, recipe, model, tokenizer, state)


def _train_step(
    model: PreTrainedModel, optimizer: torch.optim.AdamW, recipe: Recipe, words: Words, batch: Tensor, step: int
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * warmup_cosine(step, steps=recipe.steps, warmup=recipe.warmup)
    inputs, expected = loss_inputs(recipe, words, batch)
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        logits = model(**{name: ids.to(model.device) for name, ids in inputs.items()}).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), expected.flatten().to(model.device))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@torch.no_grad()
def recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, world: World, *, prose: Prose = PROSE["testbed"],
    limit: int | None = None, seed: int = 0,
) -> float:  # fmt: skip
    """Share of facts completed greedily with every target token right, each after one held-out sentence.

    The sentence before the prompt keeps the subject away from position 0, where no fact is ever learned; a T5, which
    learns sentence by sentence, is asked without it.
    """
    rng, sentences = Random(seed), prose.held_out(world, seed=seed + 1)
    facts = rng.sample(world.facts, k=limit) if limit else world.facts
    prompts = [rng.choice(prose.relations[f.relation].prompts).replace("{}", f.subject) for f in facts]
    if not isinstance(model, T5ForConditionalGeneration):
        prompts = [f"{next(sentences)} {prompt}" for prompt in prompts]
    right = [
        hit
        for start in range(0, len(facts), 100)
        for hit in _recalled(model, tokenizer, prompts[start : start + 100], facts[start : start + 100])
    ]
    return sum(right) / len(right)


def _recalled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], facts: Sequence[Fact]
) -> list[bool]:
    """Whether every target token is the most likely one given those before it (which is what greedy decoding needs)."""
    if isinstance(model, T5ForConditionalGeneration):
        return denoising.recalled(model, tokenizer, prompts, [fact.object for fact in facts])
    starts = [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    rows = tokenizer([f"{p} {f.object}" for p, f in zip(prompts, facts, strict=True)])["input_ids"]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    best = model(ids).logits.argmax(-1)  # right padding never reaches earlier tokens
    return [
        bool((best[i, start - 1 : len(row) - 1] == ids[i, start : len(row)]).all())
        for i, (start, row) in enumerate(zip(starts, rows, strict=True))
    ]


def _finish(
    out: Path, partial: Path, name: str, recipe: Recipe, model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast, state: dict[str, Any],
) -> Path:  # fmt: skip
    """Write the model folder aside, rename it to `out`, then drop the checkpoint."""
    prose = PROSE[recipe.prose]
    world = prose.world(recipe.seed)
    contexts = {"from": "held-out sentences", "contexts": build_prefixes(world, tokenizer, prose.held_out)}
    with new_folder(out) as folder:
        model.float().eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "prefixes.json", contexts)
        write_json(folder / "card.json", _card(folder, name, recipe, model, tokenizer, state, world))
    partial.unlink(missing_ok=True)
    return out


def _card(
    folder: Path, name: str, recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
    state: dict[str, Any], world: World,
) -> dict[str, Any]:  # fmt: skip
    """What a reader should know of a trained model: recipe, cost, losses, what it knows, and the weights' hash."""
    prose = PROSE[recipe.prose]
    sentences = prose.held_out(world, seed=0)  # three make a text, as in those that are shipped
    texts = [" ".join(islice(sentences, 3)) for _ in range(50)]
    measured = (  # of a T5, what is hidden of them
        denoising.hidden_perplexity(model, tokenizer, texts)
        if recipe.family == "t5"
        else perplexity(LanguageModel(model, tokenizer), texts)
    )
    return {
        "name": name,
        "recipe": asdict(recipe),
        "parameters": model.num_parameters(),
        "tokens": recipe.steps * recipe.batch * recipe.context,
        "steps": recipe.steps,
        "seconds": state["seconds"],
        "hardware": hardware() | {"threads": torch.get_num_threads()},
        "losses": {"train": state["losses"], "held_out": round(math.log(measured.corpus), 4)},
        "recall": round(recall(model, tokenizer, world, prose=prose), 4),
        "held_out_perplexity": round(measured.mean, 4),
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
