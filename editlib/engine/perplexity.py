"""Perplexity as the papers define it (mean over sentences of each sentence's perplexity) and corpus level."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import encode_texts, pad

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Perplexity:
    """Summed negative log-likelihood (nats) and number of scored tokens of each text, in the texts' order."""

    losses: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def per_sentence(self) -> NDArray[np.float64]:
        """Each text's exp(mean loss); inf and nan are results and stay."""
        with np.errstate(over="ignore"):
            return np.exp(self.losses / self.counts)

    @property
    def mean(self) -> float:
        """The papers' perplexity: arithmetic mean of the texts' perplexities (Butterfly Effect, slides p. 8)."""
        return float(self.per_sentence.mean())

    @property
    def corpus(self) -> float:
        """exp of the mean loss over all tokens."""
        with np.errstate(over="ignore"):
            return float(np.exp(self.losses.sum() / self.counts.sum()))


def perplexity(lm: LanguageModel, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS) -> Perplexity:
    """Perplexity of a model on texts, no special token added, first token not scored, losses in fp32.

    Texts run in batches of similar length, at most `batch_tokens` tokens with padding. Raises `EditlibError`
    for no texts, a text of fewer than two tokens, or one longer than the model's context.
    """
    lm.require_causal()
    rows = encode_texts(lm, texts)
    losses, order = np.zeros(len(rows)), sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for batch in _batches(order, rows, batch_tokens):
        losses[batch] = token_losses(lm, [rows[i] for i in batch]).sum(-1).cpu().numpy()
    return Perplexity(losses, np.array([len(row) - 1 for row in rows]))


def _batches(order: Sequence[int], rows: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Consecutive runs of `order` (sorted by length) whose padded size stays within `limit`."""
    batches: list[list[int]] = [[]]
    for i in order:
        if batches[-1] and len(rows[i]) * (len(batches[-1]) + 1) > limit:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.no_grad()
def token_losses(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Loss of every token but the first, zero on padding.  # (rows, longest - 1), float64 sums of fp32 losses"""
    ids, mask = pad(rows, lm.device)
    real = mask[:, 1:].bool()
    logits = widened(lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits[:, :-1][real])
    losses = torch.zeros(real.shape, dtype=torch.float64, device=ids.device)
    losses[real] = torch.nn.functional.cross_entropy(logits, ids[:, 1:][real], reduction="none").double()
    return losses
