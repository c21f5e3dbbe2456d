"""MEMIT: many edits at once, spread over several layers (Meng et al. 2023, sections 4.2 and 4.3).

    Δ_l = R_l K_lᵀ (λC_l + K_l K_lᵀ)⁻¹,   R_l = (Z - H) / (layers left)

Z holds, for every request, the wanted output of the last of these layers, H the present one (unprefixed); keys and H
are read again after each layer. K averages a request's key without prefix and its mean key with prefix, one half each,
as the released code does. Deviation: all stored prefix contexts serve, where the released code samples five.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Change, Edit, LowRank
from editlib.editing.method import Method, State
from editlib.engine.values import ValueParams, read_at, read_keys
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class MemitParams(ValueParams):
    """Hyper-parameters of MEMIT."""

    layers: tuple[int, ...]  # ascending; the last one is where z is optimised
    clamp: PositiveFloat = 0.75
    moment_weight: PositiveFloat = 15000.0  # λ: 20,000 for GPT-2 XL, 15,000 for models of 6 and 7 billion parameters

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise EditlibError(f"layers {self.layers} must be one or more, in ascending order")


class Memit(Method):
    """MEMIT."""

    name, hparams, several = "memit", MemitParams, True
    paper, equation = "Meng et al. 2023, Mass-Editing Memory", "equations 14 and 20"

    def layers(self, params: MemitParams) -> tuple[int, ...]:
        """All it spreads the edit over."""
        return params.layers

    moments = layers

    def searches(self, lm: LanguageModel, params: MemitParams) -> list[tuple[str, ValueParams]]:
        """z is the output of the last layer's block."""
        return [(f"{lm.layout.blocks}.{params.layers[-1]}", params)]

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: MemitParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of every layer, of rank `len(requests)` each; raises `EditlibError` if a subject cannot be located or C is
        singular."""
        lm, ((last, _),) = session.lm, self.searches(session.lm, params)
        targets = session.targets(last, requests, params)
        wanted = torch.stack([target.value for target in targets], 1)
        rows = [encode(lm.tokenizer, request.prompt, request.subject) for request in requests]
        contexts, changes, first = session.contexts(params.contexts), dict[str, Change](), 0.0
        session.load_moments(params.layers)
        for i, layer in enumerate(params.layers):
            with Edit(self.name, tuple(requests), changes, {}, lm.fingerprint).applied(lm):
                reads = [read_keys(lm, layer, request, contexts) for request in requests]
                residual = wanted - read_at(lm, last, rows).output.T
            first = first if i else residual.norm().item()
            keys = torch.stack([(k.bare[0] + k.mean(empty=False)[0]) / 2 for k in reads], 1).double()
            spread = residual.double() / (len(params.layers) - i)
            left, right = ridge_update(keys, session.whiten(layer, keys), spread, params.moment_weight)
            changes[f"{lm.layout.name(layer)}.weight"] = LowRank(left.to(residual), right.to(residual))
        losses = [list(target.losses) for target in targets]
        numbers = {"numerator": first, "steps": max(map(len, losses)), "losses": losses}
        return session.edit(self, requests, params, changes, numbers), state


def ridge_update(keys: Tensor, whitened: Tensor, residual: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """Factors of R Kᵀ (λC + KKᵀ)⁻¹ from K (d_in, n), C⁻¹K and R (d_out, n), by a system of n equations (Woodbury)."""
    gram = keys.T @ whitened + weight * torch.eye(keys.shape[1]).to(keys)
    return torch.linalg.solve(gram, residual.T).T, whitened
