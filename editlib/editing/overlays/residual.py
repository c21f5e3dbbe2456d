"""MEMOIR's residual memory: a change of one weight of which each prompt uses the columns of the edit it resembles
(Wang et al. 2025, section 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from editlib.editing.overlays.overlay import Overlay
from editlib.models.language_model import LanguageModel, widened
from editlib.models.trace import altered


def mean_so_far(values: Tensor, skip: int) -> Tensor:
    """The mean over the tokens up to each one, but for `skip` first ones, of values (texts, tokens, ...)."""
    count = torch.arange(1, values.shape[1] - skip + 1, device=values.device)
    means = values[:, skip:].double().cumsum(1) / count.view(-1, *[1] * (values.ndim - 2))
    return torch.cat([values[:, :skip].double(), means], 1)


@dataclass(frozen=True)
class Residual(Overlay):
    """Δ (x ∘ m) is added to a module's output Wx wherever the text so far resembles an edit's prompt, m being that
    edit's mask.

    A text's columns are `order` of those where the mean of its inputs is furthest from `background`, as many as a mask
    has; it resembles the edit with which it shares most of them, if that is at least the share `threshold`. `skip`
    first tokens are left alone, and out of means.
    """

    module: str
    skip: int
    threshold: float
    order: Tensor  # (d_in,), the columns in a random order
    background: Tensor  # (d_in,)
    masks: Tensor  # (edits, k), columns
    delta: Tensor  # (d_out, d_in)

    def columns(self, inputs: Tensor, k: int) -> Tensor:
        """The columns of every text up to each token, sorted.  # (texts, tokens, d_in) to (texts, tokens, k)"""
        apart = (mean_so_far(inputs, self.skip) - self.background.double()).abs()
        return self.order[apart.topk(k, dim=-1).indices].sort(-1).values

    def allowed(self) -> Tensor:
        """Every mask as ones and zeros.  # (edits, d_in)"""
        zeros = self.delta.new_zeros(len(self.masks), self.delta.shape[1])
        return zeros.scatter(1, self.masks, 1.0)

    def nearest(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The share of columns in common with the edit that each token's text resembles most, and that edit; share 0
        at tokens left alone.  # both (texts, tokens)"""
        own = self.columns(inputs, self.masks.shape[1])
        used = torch.zeros_like(inputs, dtype=self.delta.dtype).scatter(-1, own, 1.0)
        shares, edits = (used @ self.allowed().T / self.masks.shape[1]).max(-1)
        return shares.index_fill(1, torch.arange(self.skip, device=shares.device), 0.0), edits

    @contextmanager
    def laid(self, lm: LanguageModel) -> Iterator[None]:
        """Add Δ (x ∘ m) where it is due."""
        here = Residual(self.module, self.skip, self.threshold, *(each.to(lm.device) for each in self.tensors.values()))
        allowed = here.allowed()

        def add(inputs: Tensor, output: Tensor) -> Tensor:
            inputs = widened(inputs)
            shares, edits = here.nearest(inputs)
            moved = (inputs * allowed[edits]) @ here.delta.T
            return (output + moved.to(output.dtype)).where((shares >= here.threshold)[..., None], output)

        with altered(lm.model, {self.module: add} if len(self.masks) else {}):
            yield
