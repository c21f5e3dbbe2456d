"""Changes of one weight: of low rank, as factors, or dense."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LowRank:
    """Δ = left rightᵀ, with left (d_out, r) and right (d_in, r)."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """Δ itself, shape (d_out, d_in)."""
        return self.left @ self.right.T

    def norm(self) -> float:
        """Frobenius norm of Δ, worked out from the factors in float64."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt())

    def output(self, keys: Tensor) -> Tensor:
        """What Δ adds to the weight's output for keys (..., d_in), in their precision.  # (..., d_out)"""
        return (keys @ self.right.to(keys)) @ self.left.to(keys).T

    def scaled(self, factor: float) -> "LowRank":
        """Δ times a number."""
        return LowRank(factor * self.left, self.right)

    def mapped(self, *, out: Map | None = None, into: Map | None = None) -> "LowRank":
        """Δ with linear maps, in float64, on its output side (d_out, n) and its input side (d_in, n)."""
        left, right = self.left.double(), self.right.double()
        return LowRank(out(left) if out else left, into(right) if into else right)

    def cut(self, rank: int) -> "LowRank":
        """The nearest change of a rank; itself where it is of no more."""
        if self.left.shape[1] <= rank:
            return self
        (out, left), (into, right) = (torch.linalg.qr(factor.double()) for factor in (self.left, self.right))
        return _nearest(left @ right.T, rank).mapped(out=out.matmul, into=into.matmul).to(self.left)

    def to(self, like: Tensor) -> "LowRank":
        """Δ in the precision and on the device of a tensor."""
        return LowRank(self.left.to(like), self.right.to(like))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is kept of it in files."""
        return {"L": self.left, "R": self.right}

    def __add__(self, other: "Change") -> "Change":
        if isinstance(other, LowRank):
            return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))
        return Dense(self.dense() + other.delta)


@dataclass(frozen=True)
class Dense:
    """Δ itself, shape (d_out, d_in)."""

    delta: Tensor

    def dense(self) -> Tensor:
        """Δ itself."""
        return self.delta

    def norm(self) -> float:
        """Frobenius norm of Δ in float64."""
        return float(self.delta.double().norm())

    def output(self, keys: Tensor) -> Tensor:
        """What Δ adds to the weight's output for keys (..., d_in), in their precision.  # (..., d_out)"""
        return keys @ self.delta.to(keys).T

    def scaled(self, factor: float) -> "Dense":
        """Δ times a number."""
        return Dense(factor * self.delta)

    def mapped(self, *, out: Map | None = None, into: Map | None = None) -> "Dense":
        """Δ with linear maps, in float64, on its output side (d_out, n) and its input side (d_in, n)."""
        delta = self.delta.double()
        delta = out(delta) if out else delta
        return Dense(into(delta.T).T if into else delta)

    def cut(self, rank: int) -> LowRank:
        """The nearest change of a rank, in thin factors."""
        return _nearest(self.delta.double(), rank).to(self.delta)

    def to(self, like: Tensor) -> "Dense":
        """Δ in the precision and on the device of a tensor."""
        return Dense(self.delta.to(like))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is kept of it in files."""
        return {"D": self.delta}

    def __add__(self, other: "Change") -> "Change":
        return Dense(self.delta + other.dense())


Change = LowRank | Dense


def _nearest(matrix: Tensor, rank: int) -> LowRank:
    """The matrix of a rank that is nearest in Frobenius norm (Eckart and Young 1936)."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return LowRank(left[:, :rank] * values[:rank], right[:rank].T)
