"""AlphaEdit: MEMIT in the null space of ordinary keys, with a ridge and a past (Fang et al. 2025, released code).

    Δ_l = R_l (P K_l)ᵀ (P (past_l + K_l K_lᵀ) P + L₂ I)⁻¹

P projects on the eigenvectors of C with the least eigenvalues, so that Δ changes nothing for keys along the others. The
released code takes those below 0.02, whatever the unit of the keys: with keys ten times as long, P is another one.
Unless a model's preset says so, the lowest share of all directions is taken here, which has no unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.methods.recursion import Prior
from editlib.editing.methods.remembering import MemitSeq, PastParams
from editlib.engine.values import Target
from editlib.errors import EditlibError

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class AlphaEditParams(PastParams):
    """Hyper-parameters of AlphaEdit."""

    # eigenvectors of C in the range of P: their share, about what 0.02 leaves of SmolLM2's lower layers; or, absolute,
    # the eigenvalue that is too large; released: 0.02
    nullspace_threshold: PositiveFloat = 0.8
    threshold_unit: Literal["share", "absolute"] = "share"
    ridge: PositiveFloat = 10.0  # L₂


class AlphaEdit(MemitSeq):
    """AlphaEdit."""

    name, hparams = "alphaedit", AlphaEditParams
    paper, equation = "Fang et al. 2025, AlphaEdit", "released code, AlphaEdit_main.py"

    def marked(self, params: AlphaEditParams) -> str:
        """The method and its P, which past keys are projected by."""
        return f"{self.name} with nullspace_threshold={params.nullspace_threshold:g} ({params.threshold_unit})"

    def prior(self, session: "Session", layer: int, params: AlphaEditParams) -> Prior:
        """C₀ = L₂ I in the range of P; raises `EditlibError` where that is nothing."""
        return Prior(weight=params.ridge, basis=self.basis(session, layer, params))

    def basis(self, session: "Session", layer: int, params: AlphaEditParams) -> Tensor:
        """Orthonormal columns that P projects on, (d_in, rank of P)."""
        threshold = params.nullspace_threshold
        values, vectors = session.file(("spectrum", layer), lambda: _spectrum(session.factor(layer)))
        ranks = torch.arange(1, len(values) + 1).to(values) / len(values)
        below = (ranks if params.threshold_unit == "share" else values) <= threshold
        if not below.any():
            raise EditlibError(
                f"no direction of layer {layer}'s keys is as rare as nullspace_threshold={threshold:g}; the least "
                f"eigenvalue of C is {values.min():.2g}: give more than that, or threshold_unit=share"
            )
        basis: Tensor = vectors[:, below]
        return basis

    def numbers(
        self, session: "Session", requests: Sequence[EditRequest], params: AlphaEditParams, targets: Sequence[Target]
    ) -> dict[str, Any]:
        """The rank of P over d_in, by layer."""
        bases = [self.basis(session, layer, params) for layer in params.layers]
        shares = [basis.shape[1] / basis.shape[0] for basis in bases]
        return super().numbers(session, requests, params, targets) | {"null_space_share": shares}


def _spectrum(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of C."""
    values, vectors = torch.linalg.eigh(factor @ factor.T)
    return values, vectors
