"""Token spans from the tokenizer's own character offsets, never from counting pieces of strings."""

import unicodedata
from collections.abc import Sequence, Sized
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.text import is_text

END_OF_TEXT = "<|endoftext|>"
UNSPACED = ("CJK ", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


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

    @property
    def wanted(self) -> tuple[int, ...]:
        """Token ids of the target."""
        return self.ids[self.target :]

    @property
    def predicting(self) -> slice:
        """The positions that predict them, each the one before."""
        return slice(self.target - 1, len(self.ids) - 1) if self.wanted else slice(0)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    subject: str,
    *,
    target: str = "",
    separator: str | None = None,
    special_tokens: bool = True,
) -> Encoded:
    """Encode `template` with its `{}` filled by `subject`, then `target` if there is one, as `encode_text` does.

    A token belongs to the subject when it holds at least one of its characters. Raises `EditlibError` if no token does,
    if the target has none of its own, or if the tokenizer does not know or loses characters.
    """
    prompt, start = template.replace("{}", subject, 1), template.index("{}")
    text, ids, offsets, first = _joined(tokenizer, prompt, target, separator, special_tokens=special_tokens)
    span = _overlap(offsets, start, start + len(subject))
    if span is None:
        raise EditlibError(
            f"the tokens of subject {subject!r} cannot be located in {prompt!r}: no token holds its characters"
        )
    if first < span[1]:
        raise EditlibError(f"target {target!r} shares a token with subject {subject!r}; give another target or prompt")
    if max(offsets, default=(0, 0))[1] < len(text.rstrip()):  # seen in tokenizers that drop what they do not know
        raise EditlibError(f"the tokenizer loses characters of {text!r}; is this request for another model?")
    for part, tokens in ((subject, ids[slice(*span)]), (target, ids[first:])):
        if tokenizer.unk_token_id in tokens:
            raise EditlibError(
                f"{part!r} has characters the tokenizer does not know ({tokenizer.unk_token}); is this request for "
                "another model?"
            )
    return Encoded(ids, span, first)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, *, separator: str | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Encode a plain prompt and `target` as one text: the ids before the target, and the target's.

    `separator` stands between them; by default, what `separator_after` says. A token belongs to the target when it
    holds at least one of its characters, also if it holds some of the prompt. Raises `EditlibError` if prompt or target
    has no token.
    """
    _, ids, _, first = _joined(tokenizer, prompt, target, separator)
    if first == 0:
        raise EditlibError(f"prompt {prompt!r} has no token before target {target!r}; give a longer prompt")
    return ids[:first], ids[first:]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Token ids of a text that is to be continued: nothing behind it, whatever the tokenizer closes texts with."""
    return _joined(tokenizer, text, "", None)[1]


def text_start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the special token that texts begin with in training; None if there is none.

    `<|endoftext|>` where there is one, since tokenizers for chats name another one as BOS; else BOS, else EOS.
    """
    if END_OF_TEXT in tokenizer.all_special_tokens:
        return int(tokenizer.convert_tokens_to_ids(END_OF_TEXT))
    start: int | None = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return start


def separator_after(prompt: str) -> str:
    """What is put between a prompt and its target: a space, or nothing behind white space, an opening bracket or
    an opening quotation mark (none that also closes), and characters of scripts that are written without spaces."""
    last = prompt[-1:] or "."
    opening = unicodedata.category(last) in ("Ps", "Pi")
    return "" if last.isspace() or opening or unicodedata.name(last, "").startswith(UNSPACED) else " "


def _joined(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, separator: str | None, *, special_tokens: bool = True
) -> tuple[str, tuple[int, ...], list[tuple[int, int]], int]:
    """Prompt and target as one text, its ids, their character offsets, and the index of the target's first token.

    Tokens that the tokenizer puts behind every text are left out; without a target, the index is the number of ids.
    """
    target = target.strip()
    before = prompt + (separator_after(prompt) if separator is None else separator) if target else prompt
    text = before + target
    encoding = tokenizer(
        text, return_offsets_mapping=True, return_special_tokens_mask=True, add_special_tokens=special_tokens
    )
    own = [i for i, added in enumerate(encoding["special_tokens_mask"]) if not added]
    end = own[-1] + 1 if own else len(encoding["input_ids"])
    ids = tuple(encoding["input_ids"][:end])
    offsets = [(int(a), int(b)) for a, b in encoding["offset_mapping"][:end]]
    if not target:
        return text, ids, offsets, len(ids)
    span = _overlap(offsets, len(before), len(text))
    if span is None:  # byte fallback counts a character's bytes as characters, and shifts what follows
        span = _overlap(offsets, len(prompt), len(text))
    if span is None:
        raise EditlibError(f"target {target!r} has no token of its own after {prompt!r}; give another target")
    return text, ids, offsets, span[0]


def _overlap(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int] | None:
    """The half-open range of tokens that share a character with [start, end)."""
    hits = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and a < b]
    return (hits[0], hits[-1] + 1) if hits else None


def encode_texts(lm: LanguageModel, texts: Sequence[str], *, bos: bool = False, whole: bool = True) -> list[list[int]]:
    """Token ids of texts without special tokens, or behind the tokenizer's BOS token alone.

    Raises `EditlibError` for no texts, a text with nothing to score, or, if they are to be read `whole`, one longer
    than the model takes.
    """
    if isinstance(texts, str):
        raise EditlibError(f"texts {texts[:40]!r} is one text where a list is expected; write [text]")
    if not isinstance(texts, Sized):  # a generator can be read but once
        raise EditlibError(f"texts {texts!r} is no list; give a list of texts")
    texts = list(texts)
    if not texts:
        raise EditlibError("no texts to measure perplexity on; give at least one")
    if not all(map(is_text, texts)):
        raise EditlibError(f"text {next(text for text in texts if not is_text(text))!r} is no text; leave it out")
    opening = [lm.tokenizer.bos_token_id] if bos else []
    if None in opening:
        raise EditlibError(f"the tokenizer of {lm.label} has no BOS token to put before texts; use bos=False")
    rows = [[*opening, *row] for row in lm.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    short = next((text for text, row in zip(texts, rows, strict=True) if len(row) < 2), None)
    if short is not None:
        raise EditlibError(f"text {short!r} has fewer than two tokens; perplexity needs two")
    if whole:
        check_length(lm, texts, rows)
    return rows


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
