"""T5's objective on sentences: the end of each is hidden from the encoder, and the decoder tells it.

Almost every fact of the testbed's prose ends in its object, so that what is hidden is what is to be known; hiding names
instead of random spans is how REALM (section 3.4) teaches a model facts. As in T5 (section 3.1.4) a marker stands where
the hidden words were, and before them in what is told: the first id above the tokenizer's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from editlib.engine.perplexity import Perplexity
from editlib.models.tokens import pad

LONGEST = 16  # tokens of a sentence; of longer ones, most end in a phrase that is no object
END = 0  # begins what the decoder is given, and ends what it tells
UNSCORED = -100  # what cross-entropy leaves out

Hidden = tuple[list[int], list[int]]  # what the encoder reads and what the decoder tells of a sentence


@dataclass(frozen=True)
class Words:
    """What the tokens of a vocabulary are, by id: whether each begins a word, begins a name, or is a full stop."""

    begins: Tensor
    capital: Tensor
    stop: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "Words":
        """Read the vocabulary of a byte-level tokenizer, in which words begin with a space."""
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        begins = torch.tensor([text.startswith(" ") for text in texts])
        capital = torch.tensor([text[:1] == " " and text[1:2].isupper() for text in texts])
        return cls(begins, capital, tokenizer.convert_tokens_to_ids("."))

    def hide(self, row: Tensor) -> list[Hidden]:
        """Every sentence of a row but the longest, its last word hidden, or the names of several words it ends in.

        What stands before the first full stop is no sentence, nor is what stands behind the last one.
        """
        stops = (row == self.stop).nonzero()[:, 0].tolist()
        spans = [
            (start + 1, self._end(row, start + 1, stop), stop)
            for start, stop in zip(stops[:-1], stops[1:], strict=True)
        ]
        ids, marker = row.tolist(), len(self.begins)
        return [
            ([*ids[start:end], marker, self.stop], [marker, *ids[end:stop], END])
            for start, end, stop in spans
            if start < end < stop and stop - start < LONGEST
        ]

    def _end(self, row: Tensor, start: int, stop: int) -> int:
        """Where the words that end a sentence begin."""
        begun = [i for i in range(start, stop) if self.begins[row[i]]]
        while len(begun) > 1 and self.capital[row[begun[-1]]] and self.capital[row[begun[-2]]]:
            begun.pop()
        return begun[-1] if begun else stop


def inputs_of(pairs: Sequence[Hidden], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """What a model is given, the told words one token later, and what it should say.  # (sentences, longest)"""
    read, told = zip(*pairs, strict=True)
    ids, mask = pad(read, device)
    given, _ = pad([[END, *row[:-1]] for row in told], device)
    expected, real = pad(told, device)
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": given}
    return inputs, expected.masked_fill(real == 0, UNSCORED)


@torch.no_grad()
def recalled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], objects: Sequence[str]
) -> list[bool]:
    """Whether the decoder tells every token of an object that is hidden between its prompt and a full stop."""
    marker, stop = len(tokenizer), tokenizer.convert_tokens_to_ids(".")
    read = [[*row, marker, stop] for row in tokenizer(list(prompts))["input_ids"]]
    told = [[marker, *row, END] for row in tokenizer([f" {name}" for name in objects])["input_ids"]]
    inputs, expected = inputs_of(list(zip(read, told, strict=True)), model.device)
    right = (model(**inputs).logits.argmax(-1) == expected) | (expected == UNSCORED)
    return [bool(hit) for hit in right.all(1)]


@torch.no_grad()
def hidden_perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Perplexity:
    """Perplexity of the ends of each text's sentences, markers included; not to be compared with a causal model's."""
    words, losses, counts = Words.of(tokenizer), list[float](), list[int]()
    for text in texts:
        ids = tokenizer(f". {text}")["input_ids"]  # the first sentence begins behind a full stop, too
        inputs, expected = inputs_of(words.hide(torch.tensor(ids)), model.device)
        logits = model(**inputs).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum")
        losses.append(loss.item())
        counts.append(int((expected != UNSCORED).sum()))
    return Perplexity(np.array(losses), np.array(counts))
