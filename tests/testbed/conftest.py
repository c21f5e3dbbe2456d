"""The worlds of seed 0 and the tokenizer trained on one, once for all tests of the testbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from editlib.testbed.dependence import DependentWorld, build_dependent_world
from editlib.testbed.world import World, build_world

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def world() -> World:
    return build_world(0)


@pytest.fixture(scope="session")
def dependent() -> DependentWorld:
    return build_dependent_world(0)


@pytest.fixture(scope="session")
def world_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """The one the shipped twins have."""
    from editlib.testbed.tokenizer import train_tokenizer
    from editlib.testbed.train import Recipe

    return train_tokenizer(world, vocabulary=Recipe().vocabulary)
