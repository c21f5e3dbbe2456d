"""Token spans from the tokenizer's own character offsets, never from counting pieces of strings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel


@dataclass(frozen=True)
class Encoded:
    """A text's token ids, the half-open token span of its subject, and the index of its first target token.

    `target` equals the number of tokens when the text has no target.
    """

    ids: tuple[int, ...]
    subject: tuple[int, int]
    target: int

    @property
    def last(self) -> int:
        """Index of the subject's last token."""
        return self.subject[1] - 1


def encode(
    tokenizer: PreTrainedTokenizerBase, template: str, subject: str, *, target: str = "", special_tokens: bool = True
) -> Encoded:
    """Encode `template` with its `{}` filled by `subject`, then a space and `target` if there is one.

    A token belongs to the subject when it holds at least one of its characters. Raises `EditlibError` if no
    token does, if the target has none, or if the tokenizer does not know or loses characters.
    """
    prompt = template.replace("{}", subject, 1)
    text = f"{prompt} {target}" if target else prompt
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special_tokens)
    offsets = [(int(a), int(b)) for a, b in encoding["offset_mapping"]]
    start = template.index("{}")
    span = _overlap(offsets, start, start + len(subject))
    if span is None:
        raise EditlibError(
            f"the tokens of subject {subject!r} cannot be located in {prompt!r}: no token holds its characters"
        )
    first_target = _overlap(offsets, len(prompt), len(text)) if target else (len(offsets), 0)
    if first_target is None or (target and span[1] >= first_target[1]):
        raise EditlibError(f"target {target!r} has no token of its own after {prompt!r}; give another target")
    if max(offsets, default=(0, 0))[1] < len(text.rstrip()):  # seen in tokenizers that drop what they do not know
        raise EditlibError(f"the tokenizer loses characters of {text!r}; is this request for another model?")
    ids, first = tuple(encoding["input_ids"]), max(first_target[0], span[1])
    for text, tokens in ((subject, ids[slice(*span)]), (target, ids[first:] if target else ())):
        if tokenizer.unk_token_id in tokens:
            raise EditlibError(
                f"{text!r} has characters the tokenizer does not know ({tokenizer.unk_token}); is this request for "
                "another model?"
            )
    return Encoded(ids, span, first)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Encode a plain prompt, a space and `target` as one text: the ids before the target, and the target's.

    A token that holds characters of both is the target's. Raises `EditlibError` if either has no token.
    """
    text = f"{prompt} {target}"
    encoding = tokenizer(text, return_offsets_mapping=True)
    span = _overlap([(int(a), int(b)) for a, b in encoding["offset_mapping"]], len(prompt), len(text))
    if span is None:
        raise EditlibError(f"target {target!r} has no token of its own after {prompt!r}; give another target")
    if span[0] == 0:
        raise EditlibError(f"prompt {prompt!r} has no token before target {target!r}; give a longer prompt")
    ids = tuple(encoding["input_ids"])
    return ids[: span[0]], ids[span[0] :]


def _overlap(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """The half-open range of tokens that share a character with [start, end)."""
    hits = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and a < b]
    return (hits[0], hits[-1] + 1) if hits else None


def encode_texts(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens."""
    if not texts:
        raise EditlibError("no texts to measure perplexity on; give at least one")
    rows = lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    short = next((text for text, row in zip(texts, rows, strict=True) if len(row) < 2), None)
    if short is not None:
        raise EditlibError(f"text {short!r} has fewer than two tokens; perplexity needs two")
    check_length(lm, texts, rows)
    return rows  # type: ignore[no-any-return]


def check_length(lm: LanguageModel, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Raise `EditlibError` naming the longest text if its tokens are more than the model takes at once."""
    text, row = max(zip(texts, rows, strict=True), key=lambda pair: len(pair[1]), default=("", ()))
    if lm.max_length is not None and len(row) > lm.max_length:
        raise EditlibError(
            f"text {text[:40]!r}... has {len(row)} tokens, {lm.label} takes at most {lm.max_length}; shorten it"
        )


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids and their attention mask.  # both (rows, longest)"""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()
