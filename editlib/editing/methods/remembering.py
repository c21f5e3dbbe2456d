"""MEMIT that remembers the keys of the edits before, so that a later batch does not undo them: three of its kind.

    Δ_l = R_l K_lᵀ (C₀ + past_l + K_l K_lᵀ)⁻¹,   past_l = Σ K_l K_lᵀ over the edits before

memit-seq    C₀ = λC              Fang et al. 2025, AlphaEdit, a baseline in its released code (memit_seq_main.py)
encore       C₀ = λC + λₙ I       Gupta et al. 2025, ENCORE, released code (encore_main.py)
rlsedit      C₀ = ρ² I + μ² λC    Wang et al. 2026, RLSEdit; it keeps (C₀ + past)⁻¹ by Woodbury, which is the same

ENCORE's search for z ends early, at the fourth step at which the target is likeliest behind every prefix. Deviation:
RLSEdit's released code takes the residual for the target and W K off it once more; this is the formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, NonNegativeInt

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import State
from editlib.editing.methods.memit import Memit, MemitParams, SpreadParams
from editlib.editing.methods.memory import as_it_was, remembered
from editlib.editing.methods.recursion import Prior
from editlib.errors import EditlibError

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class PastParams(SpreadParams):
    """What every method needs that remembers keys."""

    # read v*, keys and residuals in the unedited model, and take off a residual what earlier edits do at its key: edits
    # one by one are then one batch
    frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frozen and len(self.layers) > 1:
            last = self.layers[-1]
            raise EditlibError(f"frozen=True is for one layer, not for {self.layers}; give layers=[{last}]")


@dataclass(frozen=True, kw_only=True)
class MemitSeqParams(MemitParams, PastParams):
    """Hyper-parameters of MEMIT with a past."""


@dataclass(frozen=True, kw_only=True)
class EncoreParams(MemitParams, PastParams):
    """Hyper-parameters of ENCORE."""

    ridge: NonNegativeFloat = 10.0  # λₙ: 10 for GPT-2 XL and Llama 2, 20 for Llama 3
    stop_hits: NonNegativeInt = 4  # for GPT-2 XL; 3 for Llama 2, 2 for Llama 3


@dataclass(frozen=True, kw_only=True)
class RlsEditParams(MemitParams, PastParams):
    """Hyper-parameters of RLSEdit."""

    rho: NonNegativeFloat = 0.0  # lambda_reg in the released code
    mu: NonNegativeFloat = 1.0


class MemitSeq(Memit):
    """MEMIT with a past."""

    name, remembers = "memit-seq", True
    hparams: type[Any] = MemitSeqParams
    paper, equation = "Fang et al. 2025, AlphaEdit", "released code, memit_seq_main.py"

    def marked(self, params: Any) -> str:
        """What its states are left by, and can be gone on with alone."""
        return self.name

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Edit, State]:
        """Δ of every layer, and the sum of K Kᵀ of each up to now; errors as for MEMIT, and for a state of another
        model or method."""
        lm, names = session.lm, {layer: f"{session.lm.layout.name(layer)}.weight" for layer in params.layers}
        current = {layer: lm.weight(layer).detach().clone() for layer in names if params.frozen}
        needed = [*(f"past|{layer}" for layer in names), *(f"weight|{layer}" for layer in current)]
        kept = remembered(lm, state, self.marked(params), needed)
        past = {layer: kept[f"past|{layer}"] for layer in names if state is not None}
        begun = {layer: kept.setdefault(f"weight|{layer}", weight) for layer, weight in current.items()}
        moved = {layer: weight.double() - begun[layer].double() for layer, weight in current.items()}
        with as_it_was(session, {names[layer]: weight for layer, weight in begun.items() if state is not None}):
            edit, keys = self.spread(session, requests, params, past, moved)
        for layer, inputs in keys.items():
            seen = self.prior(session, layer, params).seen(inputs)
            kept[f"past|{layer}"] = past.get(layer, 0) + seen @ seen.T
        return edit, kept


class Encore(MemitSeq):
    """ENCORE."""

    name, hparams = "encore", EncoreParams
    paper, equation = "Gupta et al. 2025, ENCORE", "released code, encore_main.py"

    def prior(self, session: "Session", layer: int, params: EncoreParams) -> Prior:
        """C₀ = λC + λₙ I."""
        return Prior(session.factor(layer), params.moment_weight, params.ridge)


class RlsEdit(MemitSeq):
    """RLSEdit."""

    name, hparams = "rlsedit", RlsEditParams
    paper, equation = "Wang et al. 2026, Soft Recursive Least-Squares", "recursion by Woodbury"

    def prior(self, session: "Session", layer: int, params: RlsEditParams) -> Prior:
        """C₀ = ρ² I + μ² λC."""
        return Prior(session.factor(layer), params.mu**2 * params.moment_weight, params.rho**2)
