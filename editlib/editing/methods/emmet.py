"""EMMET: several rank-one edits of one layer at once, each met exactly while as little as possible changes elsewhere.

    Δ = R (Kᵀ C⁻¹ K + λI)⁻¹ Kᵀ C⁻¹,   R = V* - W K

Source: Gupta et al. 2024, A Unified Framework for Model Editing, equation 9. With one request there is no ridge λ and
the update is C-ROME's. Deviations from the released code: targets are ROME's (mean key, unprefixed anchor), C enters
without weight or added identity, and keys that depend on each other are refused instead of pseudo-inverted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import NonNegativeFloat

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import State
from editlib.editing.methods.recursion import Prior
from editlib.editing.methods.rome import RankOne, RankOneParams

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class EmmetParams(RankOneParams):
    """Hyper-parameters of EMMET."""

    ridge: NonNegativeFloat = 0.1  # λ, with several requests only


class Emmet(RankOne):
    """EMMET."""

    name, hparams, several = "emmet", EmmetParams, True
    paper, equation = "Gupta et al. 2024, A Unified Framework", "equation 9"

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: EmmetParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ at one layer, of rank `len(requests)`.

        Raises `EditlibError` if a subject cannot be located, C is singular, or without ridge two keys are the same.
        """
        name = session.lm.layout.name(params.layer)
        targets = session.targets(name, requests, params)
        means = [session.keys(params.layer, r, params.contexts).mean(empty=params.empty_context) for r in requests]
        keys = torch.stack([key for key, _ in means], 1).double()
        residual = torch.stack([t.value - value for t, (_, value) in zip(targets, means, strict=True)], 1)
        prior = Prior(
            session.factor(params.layer) if params.covariance else None, params.ridge if len(requests) > 1 else 0.0
        )
        change = prior.update(keys, residual).to(residual)
        losses = [list(target.losses) for target in targets]
        numbers = {"numerator": residual.norm().item(), "steps": max(map(len, losses)), "losses": losses}
        return session.edit(self, requests, params, {f"{name}.weight": change}, numbers), state
