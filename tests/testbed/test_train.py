"""Training of the testbed's models, with recipes that take seconds; and the models that are shipped."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from editlib import load, perplexity
from editlib.engine.prefixes import prefix_contexts
from editlib.errors import EditlibError
from editlib.files import TESTBED
from editlib.models.language_model import LanguageModel
from editlib.testbed import belief_prose
from editlib.testbed import train as train_module
from editlib.testbed.cases import build_prefixes
from editlib.testbed.denoising import Words, hidden_perplexity, recalled
from editlib.testbed.dependence import DependentWorld
from editlib.testbed.prose import held_out_texts
from editlib.testbed.tokenizer import train_tokenizer
from editlib.testbed.train import (
    PROSE,
    RECIPES,
    Prose,
    Recipe,
    corpus,
    initial_model,
    loss_inputs,
    make_optimizer,
    recall,
    train,
    window_batch,
)
from editlib.testbed.world import RELATIONS, World

TINY = Recipe(layers=1, width=16, heads=2, steps=4, warmup=2, batch=2, context=64, corpus_tokens=3000, anchor_norm=20.0)
OTHERS = {  # by name of the shipped model of that family
    "rotary": replace(TINY, family="llama", anchor_norm=None, inner=24),
    "encdec": replace(TINY, family="t5", anchor_norm=None, inner=24),
}
TWINS = ["anchored", "control"]
SHIPPED = [name for name in RECIPES if name != "sighted"]  # a recipe without a shipped model
RECALL = {  # at least; .9 for the others
    "encdec": 0.2,  # it fills in the hidden ends of sentences, which is another task
    "belief": 0.85,  # draws of one fact contradict one another
}

needs_models = pytest.mark.skipif(
    not all((TESTBED / name / "model.safetensors").is_file() for name in SHIPPED),
    reason="the testbed's models are not trained yet",
)


@pytest.fixture(scope="module")
def row(world: World, world_tokenizer: PreTrainedTokenizerFast) -> NDArray[np.int64]:
    return corpus(world, world_tokenizer, TINY.corpus_tokens)


@pytest.fixture(scope="module", autouse=True)
def one_corpus(world_tokenizer: PreTrainedTokenizerFast, row: NDArray[np.int64]) -> Iterator[None]:
    """Seconds of every training go into a tokenizer and a corpus that are always the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "train_tokenizer", lambda *_, **__: world_tokenizer)
        patch.setattr(train_module, "corpus", lambda *_: row)
        yield


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Recall is not what these tests are about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "recall", lambda *_, **__: 0.5)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """The tiny recipe trained in one go."""
    return train(TINY, tmp_path_factory.mktemp("train") / "tiny", name="tiny", checkpoint_every=2)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Path:
    """What is left of a training of two steps and a bit; the model would have been `tmp_path / "tiny"`."""
    interrupted(tmp_path / "tiny", TINY, after=3, monkeypatch=monkeypatch)
    return tmp_path / "tiny.partial"


def interrupted(out: Path, recipe: Recipe, *, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the start of step `after`, as if the machine then went away; checkpoint every two."""
    whole = train_module._train_step

    def step(*arguments: Any) -> torch.Tensor:
        if arguments[-1] == after:
            raise KeyboardInterrupt
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_train_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out, name="tiny", checkpoint_every=2)


# Recipes


def test_twins_differ_initially_in_exactly_one_row() -> None:
    anchored, control = (initial_model(RECIPES[name]).state_dict() for name in TWINS)
    assert anchored.keys() == control.keys()
    differing = [name for name in anchored if not torch.equal(anchored[name], control[name])]
    assert differing == ["transformer.wpe.weight"]
    rows = (anchored[differing[0]] != control[differing[0]]).any(dim=1)
    assert rows.nonzero().flatten().tolist() == [0]
    assert anchored[differing[0]][0].norm().item() == pytest.approx(RECIPES["anchored"].anchor_norm, rel=1e-5)


def test_twins_have_one_recipe_but_for_the_anchor() -> None:
    assert all(replace(RECIPES[name], anchor_norm=None) == RECIPES["control"] for name in ("anchored", "sighted"))


def test_recipes_of_other_families_have_the_twins_prose_and_batches() -> None:
    for name in OTHERS:
        recipe, control = RECIPES[name], RECIPES["control"]
        assert recipe.anchor_norm is None
        for field in ("seed", "width", "context", "vocabulary", "corpus_tokens", "batch"):
            assert getattr(recipe, field) == getattr(control, field)


@pytest.fixture(scope="module")
def words(world_tokenizer: PreTrainedTokenizerFast) -> Words:
    return Words.of(world_tokenizer)


def test_a_causal_model_says_the_next_token(words: Words) -> None:
    batch = torch.arange(12).view(2, 6)
    inputs, expected = loss_inputs(OTHERS["rotary"], words, batch)
    assert {name: ids.tolist() for name, ids in inputs.items()} == {"input_ids": batch[:, :-1].tolist()}
    assert torch.equal(expected, batch[:, 1:])


def test_an_encoder_decoder_tells_the_hidden_end_of_every_sentence(row: NDArray[np.int64], words: Words) -> None:
    batch = window_batch(row, OTHERS["encdec"], 3)
    inputs, expected = loss_inputs(OTHERS["encdec"], words, batch)
    marker = TINY.vocabulary
    assert len(expected) == sum(len(words.hide(window)) for window in batch) > 2
    assert ((inputs["input_ids"] == marker).sum(1) == 1).all()
    assert (expected[:, 0] == marker).all()


def test_batches_are_a_function_of_seed_and_step(
    row: NDArray[np.int64], world_tokenizer: PreTrainedTokenizerFast
) -> None:
    assert len(row) == 3000
    batch = window_batch(row, TINY, 3)
    assert batch.shape == (2, 64)
    assert torch.equal(batch, window_batch(row, replace(TINY, anchor_norm=None), 3))
    assert not torch.equal(batch, window_batch(row, TINY, 4))
    assert not torch.equal(batch, window_batch(row, replace(TINY, seed=1), 3))
    text = world_tokenizer.decode(row)
    assert all(world_tokenizer.decode(window) in text for window in batch)


@pytest.mark.parametrize("recipe", [TINY, *OTHERS.values()], ids=lambda recipe: str(recipe.family))
def test_position_embeddings_and_vectors_do_not_decay(recipe: Recipe) -> None:
    model = initial_model(recipe)
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(model, recipe).param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        position = "wpe" in name or "relative_attention_bias" in name
        assert decays[id(parameter)] == (0.1 if parameter.dim() == 2 and not position else 0.0)


# Training


def test_a_tiny_recipe_trains_to_a_model_folder(tmp_path: Path, world: World) -> None:
    folder = train(TINY, tmp_path / "tiny", name="testbed/tiny", checkpoint_every=2)
    lm = load(str(folder))
    card = json.loads((folder / "card.json").read_text())
    assert (card["name"], card["steps"], card["tokens"]) == ("testbed/tiny", 4, 4 * 2 * 64)
    assert Recipe(**card["recipe"] | {"betas": tuple(card["recipe"]["betas"])}) == TINY
    assert card["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card["parameters"] == lm.model.num_parameters()
    assert list(card["losses"]["train"]) == ["2", "4"]
    assert card["held_out_perplexity"] == pytest.approx(perplexity(lm, held_out_texts(world, 50)).mean, rel=1e-3)
    assert card["recall"] < 0.1
    assert {"hardware", "seconds"} <= set(card)
    assert prefix_contexts(lm) == build_prefixes(world, lm.tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.slow  # the twins' recipe is quick
@pytest.mark.parametrize("name", OTHERS)
def test_tiny_recipes_of_other_families_train_to_a_model_folder(name: str, tmp_path: Path, world: World) -> None:
    folder = train(OTHERS[name], tmp_path / "tiny", name=f"testbed/{name}", checkpoint_every=2)
    lm, card = load(str(folder)), json.loads((folder / "card.json").read_text())
    assert Recipe(**card["recipe"] | {"betas": tuple(card["recipe"]["betas"])}) == OTHERS[name]
    assert card["parameters"] == lm.model.num_parameters()
    assert (lm.causal, lm.num_layers, lm.weight(0).shape) == (name == "rotary", 1, (16, 24))
    assert card["recall"] < 0.1
    assert card["held_out_perplexity"] == pytest.approx(held_out_perplexity(lm, world), rel=1e-3)
    assert prefix_contexts(lm) == build_prefixes(world, lm.tokenizer)


@pytest.mark.usefixtures("quick")
def test_a_recipe_of_dependent_facts_trains_on_their_prose(tmp_path: Path, dependent: DependentWorld) -> None:
    folder = train(replace(TINY, prose="belief"), tmp_path / "tiny", name="testbed/belief", checkpoint_every=2)
    lm = load(str(folder))
    assert prefix_contexts(lm) == build_prefixes(dependent, lm.tokenizer, belief_prose.held_out_sentences)


def test_a_corpus_without_a_number_of_tokens_is_all_there_is(
    dependent: DependentWorld, world_tokenizer: PreTrainedTokenizerFast
) -> None:
    few = replace(dependent, names=dependent.names | {"band": dependent.names["band"][:3], "person": ()})
    row = corpus(few, world_tokenizer, None, PROSE["belief"])
    assert world_tokenizer.decode(row) == "".join(belief_prose.documents(few, seed=1))


def held_out_perplexity(lm: LanguageModel, world: World, prose: Prose = PROSE["testbed"]) -> float:
    """As the card has it."""
    sentences = prose.held_out(world, seed=0)
    texts = [" ".join(islice(sentences, 3)) for _ in range(50)]
    if lm.causal:
        return perplexity(lm, texts).mean
    return hidden_perplexity(lm.model, lm.tokenizer, texts).mean


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("recipe", [TINY, *OTHERS.values()], ids=lambda recipe: str(recipe.family))
def test_training_lowers_the_loss(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, steps=40, anchor_norm=None)
    folder = train(recipe, tmp_path / "tiny", name="tiny", checkpoint_every=5)
    losses = list(json.loads((folder / "card.json").read_text())["losses"]["train"].values())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_resume_as_well(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "parts", OTHERS[name], after=3, monkeypatch=monkeypatch)
    whole, parts = (train(OTHERS[name], tmp_path / out, name="tiny", checkpoint_every=2) for out in ("whole", "parts"))
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_and_resumed_equals_undisturbed(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    interrupted(tmp_path / "parts", TINY, after=after, monkeypatch=monkeypatch)
    assert not (tmp_path / "parts").exists()
    parts = train(TINY, tmp_path / "parts", name="tiny", checkpoint_every=2)
    assert (parts / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    cards = [json.loads((folder / "card.json").read_text()) for folder in (undisturbed, parts)]
    assert cards[0]["losses"] == cards[1]["losses"]


@pytest.mark.usefixtures("checkpoint")
def test_only_the_missing_steps_are_run_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    whole = train_module._train_step

    def step(*arguments: Any) -> torch.Tensor:
        ran.append(arguments[-1])
        return whole(*arguments)

    monkeypatch.setattr(train_module, "_train_step", step)
    train(TINY, tmp_path / "tiny", name="tiny", checkpoint_every=2)
    assert ran == [2, 3]


def test_a_checkpoint_of_another_recipe_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="tiny.partial holds a checkpoint of another training; remove it or choose"):
        train(replace(TINY, learning_rate=1e-3), tmp_path / "tiny", name="tiny")
    assert checkpoint.is_file()


def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-20])
    with pytest.raises(EditlibError, match="^checkpoint .*tiny.partial is damaged .*; remove it$"):
        train(TINY, tmp_path / "tiny", name="tiny")


def test_recall_counts_facts_whose_every_token_is_most_likely(
    world: World, dependent: DependentWorld, world_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = initial_model(replace(TINY, anchor_norm=None)).eval()
    facts = world.facts[:30]
    small = replace(world, facts=facts)
    assert recall(model, world_tokenizer, small) == 0.0

    class Knowing:
        """Says the next token of whatever it is shown."""

        device = torch.device("cpu")

        def __call__(self, ids: torch.Tensor) -> Any:
            after = torch.nn.functional.pad(ids[:, 1:], (0, 1))
            return type("Output", (), {"logits": torch.nn.functional.one_hot(after, len(world_tokenizer)).float()})

    assert recall(Knowing(), world_tokenizer, small) == 1.0  # type: ignore[arg-type]
    assert recall(Knowing(), world_tokenizer, dependent, prose=PROSE["belief"], limit=30) == 1.0  # type: ignore[arg-type]


# The shipped models


@needs_models
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_what_its_card_says(name: str) -> None:
    folder = TESTBED / name
    card, weights = json.loads((folder / "card.json").read_text()), folder / "model.safetensors"
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.stat().st_size <= 10_000_000
    assert card["name"] == f"testbed/{name}"
    recipe = Recipe(**card["recipe"] | {"betas": tuple(card["recipe"]["betas"])})
    assert recipe == replace(RECIPES[name], seed=recipe.seed)
    assert card["recall"] >= RECALL.get(name, 0.9)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(weights).values())


@needs_models
def test_shipped_twins_are_about_equally_good_at_held_out_text() -> None:
    anchored, control = (
        json.loads((TESTBED / name / "card.json").read_text())["held_out_perplexity"] for name in TWINS
    )
    assert max(anchored, control) / min(anchored, control) <= 1.2


@needs_models
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_loads_with_its_own_prefixes_and_tokenizer(
    name: str, world: World, world_tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = load(f"testbed/{name}")
    card = json.loads((TESTBED / name / "card.json").read_text())
    prose, tokenizer = PROSE[RECIPES[name].prose], world_tokenizer
    if prose is not PROSE["testbed"]:
        world = prose.world(0)
        tokenizer = train_tokenizer(world, vocabulary=RECIPES[name].vocabulary, told=prose.documents)
    assert held_out_perplexity(lm, world, prose) == pytest.approx(card["held_out_perplexity"], rel=1e-3)
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert prefix_contexts(lm) == build_prefixes(world, tokenizer, prose.held_out)


@needs_models
def test_the_shipped_encoder_decoder_tells_true_objects_more_often_than_others(world: World) -> None:
    lm, facts = load("testbed/encdec"), world.facts[::20]
    prompts = [RELATIONS[fact.relation].prompts[0].replace("{}", fact.subject) for fact in facts]
    objects = [fact.object for fact in facts]
    true, other = (
        sum(recalled(lm.model, lm.tokenizer, prompts, asked)) for asked in (objects, objects[1:] + objects[:1])
    )
    assert true > 3 * other + 5


def test_a_folder_that_is_there_is_neither_removed_nor_trained_to(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(EditlibError, match="exists already; choose another"):
        train(TINY, tmp_path, name="tiny")
    assert (tmp_path / "mine").read_text() == "kept"
