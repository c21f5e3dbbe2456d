"""CoachHooK's validated hooks: a changed layer is used where its output would change unusually much."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from editlib.editing.overlays.overlay import Overlay
from editlib.models.language_model import LanguageModel, widened
from editlib.models.trace import Alter, altered

SLACK = 1e-3  # the token that set a threshold reaches it in another batch too, whose sums are in another order


def z_scores(moved: Tensor, *, whole: bool = False) -> Tensor:
    """How unusual each token's `moved` (texts, tokens) is among those of its text, in float64, the deviation unbiased.

    Among the tokens up to it, or with `whole` among all; -inf where there is no deviation, as for one token alone.
    """
    moved = moved.double()
    count = torch.arange(1, moved.shape[1] + 1, device=moved.device)
    mean = moved.cumsum(1) / count
    centred = moved - moved[:, :1]  # so that squares of like numbers keep their digits
    spread = centred.square().cumsum(1) - (mean - moved[:, :1]).square() * count
    deviation = (spread.clamp(min=0) / (count - 1)).sqrt()
    if whole:
        mean, deviation = mean[:, -1:], deviation[:, -1:]
    scores = (moved - mean) / deviation
    return scores.where(scores.isfinite(), -math.inf)


@dataclass(frozen=True)
class Validated(Overlay):
    """Shadow weights W + Δ beside some layers' weights W. A token x gets (W + Δ) x where the z-score of ‖Δ x‖ is at
    least the layer's threshold, and W x elsewhere.

    `skip` first tokens of a text are left alone, and out of means and deviations. A model without any has no modules.
    """

    modules: tuple[str, ...]
    skip: int
    left: Tensor  # (layers, d_out, r); Δ = left rightᵀ
    right: Tensor  # (layers, d_in, r)
    thresholds: Tensor  # (layers,)

    def moved(self, layer: int, inputs: Tensor) -> Tensor:
        """Δ x of inputs (..., d_in) at one of the layers, by its place among them.  # (..., d_out)"""
        return (inputs @ self.right[layer].to(inputs)) @ self.left[layer].to(inputs).T

    def scores(self, moved: Tensor, *, whole: bool = False) -> Tensor:
        """z-scores of ‖Δ x‖, given Δ x (texts, tokens, d_out); -inf at tokens left alone.  # (texts, tokens)"""
        sizes = moved.double().norm(dim=-1)
        left_alone = sizes[:, : self.skip].new_full(sizes[:, : self.skip].shape, -math.inf)
        return torch.cat([left_alone, z_scores(sizes[:, self.skip :], whole=whole)], 1)

    @contextmanager
    def laid(self, lm: LanguageModel) -> Iterator[None]:
        """Add Δ x where it is due."""

        def hook(layer: int) -> Alter:
            def validate(inputs: Tensor, output: Tensor) -> Tensor:
                moved = self.moved(layer, widened(inputs))
                due = self.scores(moved) >= self.thresholds[layer].to(output.device) - SLACK
                return (output + moved.to(output.dtype)).where(due[..., None], output)

            return validate

        with altered(lm.model, {name: hook(i) for i, name in enumerate(self.modules)}):
            yield
