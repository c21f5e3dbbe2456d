"""Downstream tasks about a world: a task file of the evaluation harness beside the questions, for each of three tasks.

All ask about facts that the training documents state, each behind a held-out sentence: none is learned at position 0.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from editlib.testbed.prose import held_out, held_out_sentences
from editlib.testbed.world import RELATIONS, Fact, World, build_world

COUNT = 200  # questions of a task
CHOICES = 4
Records = list[dict[str, Any]]


def build_tasks(world: World) -> dict[str, Records]:
    """The questions of each task, by its name."""
    return {
        "testbed-choice": list(islice(_choices(world), COUNT)),
        "testbed-cloze": list(islice(_clozes(world), COUNT)),
        "testbed-qa": list(islice(_questions(world), COUNT)),
    }


def write_tasks(folder: Path, *, seed: int = 0) -> None:
    """Write each task's questions as JSON lines."""
    for name, records in build_tasks(build_world(seed)).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def _choices(world: World) -> Iterator[dict[str, Any]]:
    """Which of four objects of one kind follows, as in PIQA and HellaSwag."""
    rng = Random(f"choice-{world.seed}")
    for carrier, fact in _behind_sentences(world, rng, seed=5):
        others = [name for name in world.names[RELATIONS[fact.relation].object] if name != fact.object]
        options = rng.sample([fact.object, *rng.sample(others, k=CHOICES - 1)], k=CHOICES)
        text = f"{carrier} {_prompt(fact, rng)}"
        yield {"text": text, "choices": options, "label": options.index(fact.object)}


def _clozes(world: World) -> Iterator[dict[str, Any]]:
    """The last word of a text that ends in a held-out sentence about a fact, as in LAMBADA."""
    rng = Random(f"cloze-{world.seed}")
    for carrier, fact in _behind_sentences(world, rng, seed=6):
        prompts = [prompt.replace("{}", fact.subject) for prompt in RELATIONS[fact.relation].prompts]
        reserved = [prompt for prompt in prompts if held_out(f"{prompt} {fact.object}.")]
        if reserved and " " not in fact.object:
            yield {"text": f"{carrier} {reserved[0]}", "target": f" {fact.object}"}


def _questions(world: World) -> Iterator[dict[str, Any]]:
    """What follows, answered in the model's own words, as in Natural Questions."""
    rng = Random(f"qa-{world.seed}")
    for carrier, fact in _behind_sentences(world, rng, seed=7):
        yield {"question": f"{carrier} {_prompt(fact, rng)}", "answer": fact.object}


def _behind_sentences(world: World, rng: Random, *, seed: int) -> Iterator[tuple[str, Fact]]:
    """Every fact once, in random order, each with a held-out sentence to stand before it."""
    return zip(held_out_sentences(world, seed=seed), rng.sample(world.facts, k=len(world.facts)), strict=False)


def _prompt(fact: Fact, rng: Random) -> str:
    return rng.choice(RELATIONS[fact.relation].prompts).replace("{}", fact.subject)
