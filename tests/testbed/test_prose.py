"""Documents to train on, and sentences that never occur in them."""

import re
from itertools import islice

import pytest

from editlib.testbed.prose import (
    END_OF_TEXT,
    documents,
    held_out,
    held_out_sentences,
    held_out_texts,
)
from editlib.testbed.world import World


def sentences(document: str) -> list[str]:
    """No sentence of the testbed has a full stop but its last character."""
    return re.split(r"(?<=\.)\s", document.removesuffix(END_OF_TEXT))


@pytest.fixture(scope="module")
def sample(world: World) -> list[str]:
    return list(islice(documents(world, seed=1), 2000))


def test_documents_are_a_function_of_world_and_seed(world: World, sample: list[str]) -> None:
    assert list(islice(documents(world, seed=1), 5)) == sample[:5]
    assert list(islice(documents(world, seed=2), 5)) != sample[:5]


def test_documents_have_about_20_to_28_sentences(sample: list[str]) -> None:
    counts = [len(sentences(document)) for document in sample]
    assert 10 <= min(counts) and max(counts) <= 28
    assert 21 <= sum(counts) / len(counts) <= 25


def test_documents_end_once(sample: list[str]) -> None:
    assert all(document.endswith("." + END_OF_TEXT) and document.count(END_OF_TEXT) == 1 for document in sample)


def test_about_two_thirds_of_the_sentences_state_facts(world: World, sample: list[str]) -> None:
    subjects = {fact.subject for fact in world.facts}
    names = re.compile(r"\b(" + "|".join(sorted(subjects, key=len, reverse=True)) + r")\b")
    drawn = [sentence for document in sample[:200] for sentence in sentences(document)]
    assert 0.6 < sum(bool(names.search(sentence)) for sentence in drawn) / len(drawn) < 0.72


def test_held_out_sentences_never_occur_in_documents(world: World, sample: list[str]) -> None:
    trained = {sentence for document in sample for sentence in sentences(document)}
    held = set(islice(held_out_sentences(world, seed=0), 1000))
    assert not held & trained
    assert not any(held_out(sentence) for sentence in trained)
    assert all(held_out(sentence) for sentence in held)


def test_held_out_sentences_are_distinct(world: World) -> None:
    held = list(islice(held_out_sentences(world, seed=0), 2000))
    assert len(set(held)) == 2000


def test_every_fact_is_told(world: World) -> None:
    text = " ".join(islice(documents(world, seed=1), 10_000))
    for fact in world.facts[::50]:
        assert re.search(rf"{fact.subject}\b[^.]* {fact.object}\b", text)


def test_held_out_texts_are_three_sentences_each(world: World) -> None:
    texts = held_out_texts(world, 100)
    assert len(texts) == len(set(texts)) == 100
    assert all(len(sentences(text)) == 3 and all(map(held_out, sentences(text))) for text in texts)
    assert held_out_texts(world, 10) == texts[:10]
    assert held_out_texts(world, 10, seed=5) != texts[:10]


def test_no_sentence_has_a_slot_left(sample: list[str]) -> None:
    assert not any("{" in document or "}" in document for document in sample)
