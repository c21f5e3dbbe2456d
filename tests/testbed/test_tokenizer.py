"""The testbed's tokenizer."""

import pytest
from transformers import PreTrainedTokenizerFast

from editlib.testbed.tokenizer import WHOLE
from editlib.testbed.world import World


@pytest.mark.parametrize("kind", WHOLE)
def test_names_are_single_tokens_with_and_without_a_leading_space(
    world: World, world_tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    for name in world.names[kind]:
        assert len(world_tokenizer(name)["input_ids"]) == 1
        assert len(world_tokenizer(f" {name}")["input_ids"]) == 1
        assert world_tokenizer(f"In {name}.")["input_ids"][-2:] == world_tokenizer(f" {name}.")["input_ids"]


def test_countries_cities_companies_and_bands_are_whole() -> None:
    assert set(WHOLE) == {"country", "city", "company", "band"}


def test_people_have_several_tokens(world: World, world_tokenizer: PreTrainedTokenizerFast) -> None:
    assert all(len(world_tokenizer(name)["input_ids"]) > 1 for name in world.names["person"])


def test_it_has_the_vocabulary_asked_for(world_tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(world_tokenizer) == 3072


@pytest.mark.parametrize("text", ["Zen is located in Daslo.", " two  spaces\n", "naïve 東京 🙂", "<|endoftext|>"])
def test_any_text_comes_back(world_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert world_tokenizer.decode(world_tokenizer(text)["input_ids"]) == text


def test_the_end_of_a_document_is_one_token(world_tokenizer: PreTrainedTokenizerFast) -> None:
    assert world_tokenizer.eos_token_id == 0
    assert world_tokenizer("a.<|endoftext|>")["input_ids"][-1] == 0
