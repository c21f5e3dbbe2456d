"""The one equation of the MEMIT family: recursive least squares.

    Δ = R Kᵀ (C₀ + past + K Kᵀ)⁻¹     C₀ = λC + ridge·I, in the range of a projector where there is one

`past` is the sum of K Kᵀ over the edits before. With keys that stay as they were and targets that do not move
(R = V - W K), edits one by one, in any order and in batches of any size, are then the one edit that minimises
‖W K - V‖² + tr((W - W₀) C₀ (W - W₀)ᵀ) over all keys and targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from editlib.editing.change import LowRank
from editlib.errors import EditlibError


@dataclass(frozen=True)
class Prior:
    """C₀ in float64: what holds a weight where it is."""

    factor: Tensor | None = None  # lower Cholesky factor of C (d_in, d_in); None: C is the identity
    weight: float = 1.0  # λ
    ridge: float = 0.0
    basis: Tensor | None = None  # orthonormal columns (d_in, r): only this part of a key is seen

    def seen(self, keys: Tensor) -> Tensor:
        """The part of keys (d_in, n) that the update sees, in float64."""
        keys = keys.double()
        return keys if self.basis is None else self.basis @ (self.basis.T @ keys)

    def update(self, keys: Tensor, residual: Tensor, past: Tensor | None = None) -> LowRank:
        """Δ of rank n from keys (d_in, n) and residuals (d_out, n), `past` a sum over seen keys.

        A system of n equations (Woodbury) where C₀ is all there is to invert, else one of d_in equations. Raises
        `EditlibError` if it is singular.
        """
        keys, residual = self.seen(keys), residual.double()
        if past is None and not self.ridge and keys.shape[1] <= len(keys):
            whitened = keys if self.factor is None else torch.cholesky_solve(keys, self.factor)
            gram = keys.T @ whitened + self.weight * torch.eye(keys.shape[1]).to(keys)
            return LowRank(_solve(gram, residual.T, least=1e-6).T, whitened)
        return LowRank(residual, _solve(self.dense(keys) + (0 if past is None else past) + keys @ keys.T, keys))

    def total(self, targets: Tensor, past: Tensor) -> Tensor:
        """Δ of all edits at once from the sums of R Kᵀ (d_out, d_in) and K Kᵀ (d_in, d_in); errors as for `update`."""
        return _solve(self.dense(past) + past, targets.T).T

    def dense(self, like: Tensor) -> Tensor:
        """C₀ itself, for keys as long as the columns of `like`.  # (d_in, d_in)"""
        identity = torch.eye(len(like)).to(like)
        moment = identity if self.factor is None else self.factor @ self.factor.T
        return self.weight * moment + self.ridge * identity


def _solve(matrix: Tensor, right: Tensor, *, least: float = 0.0) -> Tensor:
    """`matrix`⁻¹ `right` for a symmetric positive matrix whose pivots are more than `least` of the largest."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    if failed or pivots.min() < least * pivots.max():
        raise EditlibError(
            f"two of these {right.shape[0]} requests have the same key; edit them apart or give a ridge"
            if least else "the system of keys and second moment is singular; give it more weight"
        )  # fmt: skip
    return torch.cholesky_solve(right, factor)
