"""The world of seed 0 and the tokenizer trained on it, once for all tests of the testbed."""

import pytest
from transformers import PreTrainedTokenizerFast

from editlib.testbed.tokenizer import train_tokenizer
from editlib.testbed.train import Recipe
from editlib.testbed.world import World, build_world


@pytest.fixture(scope="session")
def world() -> World:
    return build_world(0)


@pytest.fixture(scope="session")
def world_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The one the shipped twins have."""
    return train_tokenizer(world, vocabulary=Recipe().vocabulary)
