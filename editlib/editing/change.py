"""Changes of one weight: of low rank, kept as two factors, or dense."""

from dataclasses import dataclass

import torch
from torch import Tensor


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

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is kept of it in files."""
        return {"D": self.delta}

    def __add__(self, other: "Change") -> "Change":
        return Dense(self.delta + other.dense())


Change = LowRank | Dense
