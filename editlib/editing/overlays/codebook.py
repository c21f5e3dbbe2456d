"""GRACE's codebook: keys, values and radii beside one module (Hartvigsen et al. 2023, section 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editlib.editing.overlays.overlay import Overlay
from editlib.models.language_model import LanguageModel, widened
from editlib.models.trace import altered


@dataclass(frozen=True)
class Codebook(Overlay):
    """Wherever a module's input lies within the radius of the key nearest to it, it puts out that key's value.

    `labels` are the token ids of the targets, one tuple a key. Distances are Euclidean, in the unit of the input.
    """

    module: str
    labels: tuple[tuple[int, ...], ...]
    keys: Tensor  # (n, d_in)
    values: Tensor  # (n, d_out)
    radii: Tensor  # (n,)

    def nearest(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest key and its number, of inputs (m, d_in).  # both (m,)"""
        exact = "donot_use_mm_for_euclid_dist"  # the other way loses all digits where inputs are massive
        closest = torch.cdist(inputs.to(self.keys), self.keys, compute_mode=exact).min(1)
        return closest.values, closest.indices

    @contextmanager
    def laid(self, lm: LanguageModel) -> Iterator[None]:
        """Replace outputs of the module."""
        keys, values, radii = (each.to(lm.device) for each in (self.keys, self.values, self.radii))
        here = replace(self, keys=keys, values=values, radii=radii)

        def answer(inputs: Tensor, output: Tensor) -> Tensor:
            distance, number = here.nearest(widened(inputs).flatten(0, -2))
            within = (distance <= here.radii[number]).view(output.shape[:-1])
            values = here.values[number].to(output.dtype).view_as(output)
            return values.where(within[..., None], output)

        with altered(lm.model, {self.module: answer} if len(self.keys) else {}):
            yield
