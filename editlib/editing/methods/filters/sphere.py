"""SPHERE: an update without what it does along the weight's own main input directions (Liu et al. 2026).

    Δ' = Δ (I - s U Uᵀ)

U holds the first right singular vectors of the present weight with its rows scaled to length one, as many as hold a
share of the sum of squares, and one more. Deviation from the released code, which projects GPT-2's outputs instead,
since GPT-2 stores weights the other way round: always the inputs.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from editlib.editing.edit import Edit
from editlib.editing.methods.filters.filter import Filter, Found, Kept
from editlib.models.language_model import named_weight

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class SphereParams:
    """Hyper-parameters of SPHERE."""

    sphere_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # η, of the sum of squared singular values
    sphere_strength: Annotated[float, Field(ge=0, le=2)] = 0.5  # s; 1 takes these directions out


class Sphere(Filter):
    """SPHERE."""

    name, hparams = "sphere", SphereParams
    paper, equation = "Liu et al. 2026, Energy-Regularized Editing on Hyperspheres", "released code, SPHERE_main.py"

    def filtered(self, session: "Session", edit: Edit, params: SphereParams, kept: Kept) -> Found:
        """What each change does along other inputs, and how many directions were held back."""
        bases = {name: principal(named_weight(session.lm, name), params.sphere_share) for name in edit.changes}
        maps = {name: partial(_held_back, basis, params.sphere_strength) for name, basis in bases.items()}
        changes = {name: change.mapped(into=maps[name]) for name, change in edit.changes.items()}
        return changes, {"sphere_directions": [basis.shape[1] for basis in bases.values()]}


def _held_back(basis: Tensor, strength: float, columns: Tensor) -> Tensor:
    return columns - strength * basis @ (basis.T @ columns)


def principal(weight: Tensor, share: float) -> Tensor:
    """Orthonormal columns (d_in, r): directions of the rows of a weight (d_out, d_in), each row as long as any."""
    rows = weight.double()
    _, values, right = torch.linalg.svd(rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12), full_matrices=False)
    count = int((values.square().cumsum(0) <= share * values.square().sum()).sum()) + 1
    directions: Tensor = right[:count].T
    return directions
