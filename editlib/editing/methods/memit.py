"""MEMIT: many edits at once, spread over several layers (Meng et al. 2023, sections 4.2 and 4.3).

    Δ_l = R_l K_lᵀ (λC_l + K_l K_lᵀ)⁻¹,   R_l = (Z - H) / (layers left)

Z holds, for every request, the wanted output of the last of these layers, H the present one (unprefixed); keys and H
are read again after each layer. K averages a request's key without prefix and its mean key with prefix, one half each,
as the released code does. Deviation: all stored prefix contexts serve, where the released code samples five.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit, Factors
from editlib.editing.session import Session
from editlib.engine.values import Keys, ValueParams, read_at, read_keys
from editlib.errors import EditlibError
from editlib.models.tokens import encode


@dataclass(frozen=True, kw_only=True)
class MemitParams(ValueParams):
    """Hyper-parameters of MEMIT."""

    layers: tuple[int, ...]  # ascending; the last one is where z is optimised
    clamp: PositiveFloat = 0.75
    moment_weight: PositiveFloat = 15000.0  # λ: 20,000 for GPT-2 XL, 15,000 for models of 6 and 7 billion parameters

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise EditlibError(f"layers {self.layers} must be one or more, in ascending order")


def memit(space: Session, requests: Sequence[EditRequest], params: MemitParams) -> tuple[Factors, dict[str, Any]]:
    """Factors of Δ for every layer, of rank `len(requests)` each, and diagnostics.

    Raises `EditlibError` if a subject cannot be located or C is singular.
    """
    lm, last = space.lm, f"{space.lm.layout.blocks}.{params.layers[-1]}"
    targets = [space.target(last, request, params) for request in requests]
    wanted = torch.stack([target.value for target in targets], 1)
    rows = [encode(lm.tokenizer, request.prompt, request.subject) for request in requests]
    factors: Factors = {}
    space.load_moments(params.layers)
    for i, layer in enumerate(params.layers):
        with Edit("memit", tuple(requests), factors, asdict(params), lm.fingerprint).applied(lm):
            reads = [read_keys(lm, layer, request, space.contexts(params.contexts)) for request in requests]
            residual = wanted - read_at(lm, last, rows).output.T
        keys = torch.stack([_average(read) for read in reads], 1).double()
        spread = residual.double() / (len(params.layers) - i)
        left, right = ridge_update(keys, space.whiten(layer, keys), spread, params.moment_weight)
        factors |= {f"{lm.layout.name(layer)}.weight": (left.to(residual), right.to(residual))}
        if not i:
            first = residual.norm().item()
    losses = [list(target.losses) for target in targets]
    return factors, {"numerator": first, "steps": max(map(len, losses)), "losses": losses}


def ridge_update(keys: Tensor, whitened: Tensor, residual: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Factors of R Kᵀ (λC + KKᵀ)⁻¹ from K (d_in, n), C⁻¹K and R (d_out, n), by a system of n equations (Woodbury)."""
    gram = keys.T @ whitened + weight * torch.eye(keys.shape[1]).to(keys)
    return torch.linalg.solve(gram, residual.T).T, whitened


def _average(keys: Keys) -> Tensor:
    return (keys.bare[0] + keys.mean(empty=False)[0]) / 2
