"""WISE's side memories: changes of one weight that a text uses if they would move it as much as the edits they hold
(Wang et al. 2024, section 2.3)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from editlib.editing.overlays.overlay import Overlay
from editlib.editing.overlays.residual import mean_so_far
from editlib.models.language_model import LanguageModel, widened
from editlib.models.trace import altered


@dataclass(frozen=True)
class Side(Overlay):
    """Δ_m x is added to a module's output Wx, for the memory m that moves the text so far most, among those that move
    it at least `ratio` times as much as the least of their edits.

    A text is moved by the mean of ‖Δ_m x‖ over its tokens, but for `skip` first ones, which are left alone. `edits` are
    how many each memory holds.
    """

    module: str
    skip: int
    ratio: float
    edits: tuple[int, ...]
    deltas: Tensor  # (memories, d_out, d_in)
    least: Tensor  # (memories,)

    def moved(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Δ_m x of every token, and by how much each memory moves the text so far.

        Of inputs (texts, tokens, d_in): (texts, tokens, memories, d_out) and (texts, tokens, memories).
        """
        changes = torch.einsum("btd,mod->btmo", inputs, self.deltas.to(inputs))
        return changes, mean_so_far(changes.double().norm(dim=-1), self.skip)

    @contextmanager
    def laid(self, lm: LanguageModel) -> Iterator[None]:
        """Add Δ_m x where it is due."""
        here = Side(self.module, self.skip, self.ratio, self.edits, self.deltas.to(lm.device), self.least.to(lm.device))

        def add(inputs: Tensor, output: Tensor) -> Tensor:
            changes, sizes = here.moved(widened(inputs))
            sizes = sizes.where(sizes >= here.ratio * here.least, -math.inf)
            most, memory = sizes.max(-1, keepdim=True)
            due = (most > -math.inf).index_fill(1, torch.arange(here.skip, device=most.device), False)
            change = changes.take_along_dim(memory[..., None], 2).squeeze(2)
            return (output + change.to(output.dtype)).where(due, output)

        with altered(lm.model, {self.module: add} if self.edits else {}):
            yield
