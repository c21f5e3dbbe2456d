"""Ends of sentences hidden from an encoder and told by a decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from editlib.testbed.denoising import END, LONGEST, UNSCORED, Words, hidden_perplexity, inputs_of, recalled
from editlib.testbed.world import World


@pytest.fixture(scope="module")
def words(world_tokenizer: PreTrainedTokenizerFast) -> Words:
    return Words.of(world_tokenizer)


def hidden(words: Words, tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[str, str]]:
    """What is read and what is told of the sentences of a text, the marker written as a dash."""
    marker, found = len(tokenizer), []
    for read, told in words.hide(torch.tensor(tokenizer(text)["input_ids"])):
        assert read[-2:] == [marker, words.stop] and told[0] == marker and told[-1] == END
        found.append((tokenizer.decode(read[:-2]) + " -.", tokenizer.decode(told[1:-1])))
    return found


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (". Striyi lies in Tivrib.", [(" Striyi lies in -.", " Tivrib")]),
        (". Striyi is governed by Skupal Meisnan.", [(" Striyi is governed by -.", " Skupal Meisnan")]),
        (".\nIt was dawn. It was noon.", [("\nIt was -.", " dawn"), (" It was -.", " noon")]),
        ("of no sentence. It was dawn. And", [(" It was -.", " dawn")]),
        ("There is no full stop", []),
        (". No.", []),
    ],
)
def test_a_sentence_loses_its_last_word_or_a_name_of_several_words(
    words: Words, world_tokenizer: PreTrainedTokenizerFast, text: str, pairs: list[tuple[str, str]]
) -> None:
    assert hidden(words, world_tokenizer, text) == pairs


def test_the_object_of_every_fact_is_hidden(
    world: World, words: Words, world_tokenizer: PreTrainedTokenizerFast
) -> None:
    for fact in world.facts:
        text = f". {fact.subject} likes {fact.object}."
        assert hidden(words, world_tokenizer, text) == [(f" {fact.subject} likes -.", f" {fact.object}")]


def test_long_sentences_are_left_out(words: Words, world_tokenizer: PreTrainedTokenizerFast) -> None:
    fits = ". It was" + " dawn" * (LONGEST - 3) + "."
    assert len(hidden(words, world_tokenizer, fits)) == 1
    assert hidden(words, world_tokenizer, fits.replace(" dawn", " dawn dawn", 1)) == []


def test_the_decoder_is_given_what_it_tells_one_token_later_and_padding_is_not_scored() -> None:
    inputs, expected = inputs_of([([5, 6, 7], [9, 0]), ([8], [3, 4, 0])], torch.device("cpu"))
    assert {name: rows.tolist() for name, rows in inputs.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "decoder_input_ids": [[END, 9, 0], [END, 3, 4]],
    }
    assert expected.tolist() == [[9, 0, UNSCORED], [3, 4, 0]]


class Knowing:
    """Says what it was told to say, whatever it is asked."""

    device = torch.device("cpu")

    def __init__(self, answers: list[list[int]], vocabulary: int) -> None:
        self.answers, self.vocabulary, self.read = answers, vocabulary, list[list[int]]()

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Any:
        self.read = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        width = decoder_input_ids.shape[1]
        said = torch.tensor([(answer + [0] * width)[:width] for answer in self.answers])
        return type("Output", (), {"logits": 20.0 * torch.nn.functional.one_hot(said, self.vocabulary)})


def test_an_object_is_recalled_if_every_token_of_it_is_told_and_no_more(
    world_tokenizer: PreTrainedTokenizerFast,
) -> None:
    marker, objects = len(world_tokenizer), ["baker", "Glihon Fukreid", "Glihon Fukreid", "baker"]
    ids = world_tokenizer([f" {name}" for name in objects])["input_ids"]
    assert len(ids[1]) > 1
    answers = [ids[0], ids[1], [*ids[2][:-1], ids[2][-1] + 1], ids[3] * 2]
    model: Any = Knowing([[marker, *answer] for answer in answers], marker + 1)
    prompts = ["She is a", "He is", "It was said that the man is", "He is a"]
    assert recalled(model, world_tokenizer, prompts, objects) == [True, True, False, False]
    stop = world_tokenizer(".")["input_ids"]
    assert model.read == [[*world_tokenizer(prompt)["input_ids"], marker, *stop] for prompt in prompts]


def test_perplexity_is_that_of_the_ends_of_sentences(world_tokenizer: PreTrainedTokenizerFast) -> None:
    class Even:
        """Finds all tokens equally likely."""

        device = torch.device("cpu")

        def __call__(self, *, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Any:
            return type("Output", (), {"logits": torch.zeros(*decoder_input_ids.shape, 4000)})

    model: Any = Even()
    found = hidden_perplexity(model, world_tokenizer, ["It was dawn. Then it was noon.", "It was noon."])
    assert found.per_sentence == pytest.approx([4000, 4000])
    assert found.counts.tolist() == [6, 3]  # a marker, a word and the end, of two sentences and of one
