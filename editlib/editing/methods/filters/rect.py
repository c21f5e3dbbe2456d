"""RECT: of an update, only the entries that are large beside the weight's own (Gu et al. 2024).

    Δ'ᵢⱼ = Δᵢⱼ  where abs(Δᵢⱼ / Wᵢⱼ) is among the largest, else 0;  W is the present weight

The share that is kept is 40 % as AlphaEdit's authors run it and 20 % in RECT's own code; the paper tries 20 to 80 %.
Deviations: exactly so many entries are kept, of equal ones the first; what was released keeps one more, and those tied
with it. No constant is added to W: where it is 0 any change counts as large.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from editlib.editing.change import Change, Dense
from editlib.editing.methods.filters.filter import Filter


@dataclass(frozen=True, kw_only=True)
class RectParams:
    """Hyper-parameters of RECT."""

    rect_share: Annotated[float, Field(ge=0, le=1)] = 0.4  # of entries kept; 0.2 in RECT's released code


class Rect(Filter):
    """RECT."""

    name, hparams = "rect", RectParams
    paper, equation = "Gu et al. 2024, Model Editing Harms General Abilities", "relative change, largest entries"

    def change(self, change: Change, weight: Tensor, params: RectParams) -> Dense:
        """The largest entries of Δ, relative to W."""
        delta = change.dense()
        ratio = (delta.double() / weight.double()).abs().where(delta != 0, 0).flatten()
        count = math.floor(params.rect_share * len(ratio) + 1e-9)
        kept = ratio.sort(descending=True, stable=True).indices[:count]
        left = delta.new_zeros(len(ratio))
        left[kept] = delta.flatten()[kept]
        return Dense(left.view_as(delta))
