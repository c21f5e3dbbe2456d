"""MEMIT: many edits at once, spread over several layers (Meng et al. 2023, sections 4.2 and 4.3).

    Δ_l = R_l K_lᵀ (λC_l + K_l K_lᵀ)⁻¹,   R_l = (Z - H) / (layers left)

Z holds, for every request, the wanted output of the last of these layers, H the present one (unprefixed); keys and H
are read again after each layer. K averages a request's key without prefix and its mean key with prefix, one half each,
as the released code does. Deviation: all stored prefix contexts serve, where the released code samples five.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveFloat
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import Change
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.recursion import Prior
from editlib.engine.values import Target, ValueParams, read_at, read_keys
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode

if TYPE_CHECKING:
    from editlib.editing.session import Session


FARTHEST = 2.0  # times its anchor that a v may be long


@dataclass(frozen=True, kw_only=True)
class SpreadParams(ValueParams):
    """What every method of MEMIT's family needs."""

    layers: tuple[int, ...]  # ascending; the last one is where z is optimised
    clamp: PositiveFloat = 0.75
    norm_anchor: PositiveFloat | None = None  # length that every v is scaled to (NAS); None: none, but NAS measures it

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise EditlibError(f"layers {self.layers} must be one or more, in ascending order")


@dataclass(frozen=True, kw_only=True)
class MemitParams(SpreadParams):
    """Hyper-parameters of MEMIT."""

    moment_weight: PositiveFloat = 15000.0  # λ: 20,000 for GPT-2 XL, 15,000 for models of 6 and 7 billion parameters


class Memit(Method):
    """MEMIT."""

    name, several = "memit", True
    hparams: type[Any] = MemitParams
    paper, equation = "Meng et al. 2023, Mass-Editing Memory", "equations 14 and 20"

    def layers(self, params: SpreadParams) -> tuple[int, ...]:
        """All it spreads the edit over."""
        return params.layers

    moments = layers

    def searches(self, lm: LanguageModel, params: SpreadParams) -> list[tuple[str, ValueParams]]:
        """z is the output of the last layer's block."""
        return [(f"{lm.layout.blocks}.{params.layers[-1]}", params)]

    def prior(self, session: "Session", layer: int, params: Any) -> Prior:
        """C₀ of a layer."""
        return Prior(session.factor(layer), params.moment_weight)

    def wanted(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, targets: Sequence[Target]
    ) -> Tensor:
        """Z, a column for each request; that of the model as it is where an edit is left out.  # (width, n)"""
        values = torch.stack([target.value for target in targets], 1)
        if params.norm_anchor is None:
            return values
        reached = self.reached(session, requests, params, targets)
        lengths = reached.norm(dim=0)
        scaled = values + reached * (params.norm_anchor / lengths - 1)
        starts = torch.stack([target.start for target in targets], 1)
        return torch.where(lengths > FARTHEST * params.norm_anchor, starts, scaled)

    def reached(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, targets: Sequence[Target]
    ) -> Tensor:
        """v = v0 + δ of every request, of the last layer's down-projection.  # (width, n)"""
        starts = [session.keys(params.layers[-1], request, params.contexts).bare[1] for request in requests]
        return torch.stack([start + target.change for start, target in zip(starts, targets, strict=True)], 1)

    def numbers(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, targets: Sequence[Target]
    ) -> dict[str, Any]:
        """What is said of an edit beside what is said of all: how many requests are left out."""
        if params.norm_anchor is None:
            return {}
        lengths = self.reached(session, requests, params, targets).norm(dim=0)
        skipped = int((lengths > FARTHEST * params.norm_anchor).sum())
        return {"norm_anchor": params.norm_anchor, "skipped": skipped}

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of every layer, of rank `len(requests)` each; raises `EditlibError` if a subject cannot be located or C is
        singular."""
        return self.spread(session, requests, params)[0], state

    def spread(
        self,
        session: "Session",
        requests: Sequence[EditRequest],
        params: Any,
        past: Mapping[int, Tensor] = {},
        moved: Mapping[int, Tensor] = {},
    ) -> tuple[Edit, dict[int, Tensor]]:
        """The edit and the keys that each layer saw, given the sum of K Kᵀ of a layer over the edits before, and by
        what its weight has moved from where residuals are read."""
        lm, batch = session.lm, Batch(session, requests, params, self)
        changes, seen, first = dict[str, Change](), dict[int, Tensor](), 0.0
        session.load_moments(self.moments(params))
        for i, layer in enumerate(params.layers):
            seen[layer], lacking = batch.keys(layer, changes), batch.lacking(changes)
            first = first if i else lacking.norm().item()
            residual = lacking.double() / (len(params.layers) - i)
            if layer in moved:
                residual -= moved[layer] @ seen[layer]
            change = self.prior(session, layer, params).update(seen[layer], residual, past.get(layer))
            changes[f"{lm.layout.name(layer)}.weight"] = change.to(lacking)
        return batch.edit(changes, first), seen


class Batch:
    """Requests with their wanted outputs, to be read in a model that has some of their changes already."""

    def __init__(
        self, session: "Session", requests: Sequence[EditRequest], params: SpreadParams, method: Memit
    ) -> None:
        self.session, self.requests, self.params, self.method = session, tuple(requests), params, method
        ((self.last, _),) = method.searches(session.lm, params)
        self.targets = session.targets(self.last, requests, params)
        self.wanted = method.wanted(session, self.requests, params, self.targets)
        self.rows = [encode(session.lm.tokenizer, request.prompt, request.subject) for request in requests]
        self.contexts = session.contexts(params.contexts)

    def keys(self, layer: int, changes: Mapping[str, Change]) -> Tensor:
        """Keys at a layer, where the model has some changes.  # (d_in, n) in float64"""
        lm = self.session.lm
        with self._with(changes):
            reads = [read_keys(lm, layer, request, self.contexts) for request in self.requests]
        return torch.stack([(k.bare[0] + k.mean(empty=False)[0]) / 2 for k in reads], 1).double()

    def lacking(self, changes: Mapping[str, Change]) -> Tensor:
        """What the last layer's output lacks to be as wanted, where the model has some changes.  # (d_out, n)"""
        with self._with(changes):
            return self.wanted - read_at(self.session.lm, self.last, self.rows).output.T

    def _with(self, changes: Mapping[str, Change]) -> AbstractContextManager[LanguageModel]:
        lm = self.session.lm
        return Edit(self.method.name, self.requests, changes, {}, lm.fingerprint).applied(lm)

    def edit(self, changes: Mapping[str, Change], first: float) -> Edit:
        """The edit of these changes; `first` is the norm of what was lacking before any of them."""
        losses = [list(target.losses) for target in self.targets]
        said = {"numerator": first, "steps": max(map(len, losses)), "losses": losses}
        said |= self.method.numbers(self.session, self.requests, self.params, self.targets)
        return self.session.edit(self.method, self.requests, self.params, changes, said)
