"""ROME and its consistent variants: one rank-one update, three choices of the keys in it.

    Δ = (v* - W k_out) (C⁻¹ k_in)ᵀ / ((C⁻¹ k_in)ᵀ k_out)

`mixed` (ROME as released): k_in averaged over prefix contexts, k_out without prefix. `prefixed` (C-ROME): both
averaged. `unprefixed` (p-ROME): both without prefix. C-ROME's v* is still the value without prefix and δ; the fully
consistent variant (fc-rome, ours) takes it from W k̄ too, so that Δ k̄ is δ, which the search added behind every prefix.
Sources: ROME (Meng et al. 2022), equation 2; The Fall of ROME
(Yang et al. 2024), slides pp. 31-35; p-ROME: Gupta et al. 2024. Deviation from the released codes: C⁻¹ is applied in
float64, and v* is read at the last layer's logits only (their v_loss_layer is the last layer in every configuration).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.engine.values import ValueParams
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session

KeyPolicy = Literal["mixed", "prefixed", "unprefixed"]
Anchor = Literal["unprefixed", "mean", "current"]


@dataclass(frozen=True, kw_only=True)
class RankOneParams(ValueParams):
    """What every rank-one method at one layer needs besides the search for v*."""

    layer: int
    covariance: bool = True  # False is what the papers' released configurations say (mom2_adjustment: false)
    empty_context: bool = True  # the mean key counts the context without prefix, as in the released codes


@dataclass(frozen=True, kw_only=True)
class RomeParams(RankOneParams):
    """Hyper-parameters of the ROME family; the method's name sets `keys`."""

    keys: KeyPolicy = "mixed"
    anchor: Anchor = "unprefixed"  # what δ is added to: the value without prefix, the mean value, or W k_out


class RankOne(Method):
    """What rank-one methods at one layer have in common."""

    def layers(self, params: RankOneParams) -> tuple[int, ...]:
        """The one."""
        return (params.layer,)

    def moments(self, params: RankOneParams) -> tuple[int, ...]:
        """That of the layer, unless C is left out."""
        return (params.layer,) if params.covariance else ()

    def searches(self, lm: LanguageModel, params: RankOneParams) -> list[tuple[str, ValueParams]]:
        """v* is the output of the layer's down-projection."""
        return [(lm.layout.name(params.layer), params)]


@dataclass(frozen=True)
class Rome(RankOne):
    """ROME, C-ROME, fc-rome and p-ROME: they differ in `keys` and `anchor`, which their names settle."""

    name: str
    stands_for: Mapping[str, Any] = field()
    paper: str
    equation: str
    hparams = RomeParams

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: RomeParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ at one layer for one request; raises `EditlibError` if the subject cannot be located or C is singular."""
        (request,), name = requests, session.lm.layout.name(params.layer)
        (target,) = session.targets(name, requests, params)
        keys = session.keys(params.layer, request, params.contexts)
        mean = keys.mean(empty=params.empty_context)
        k_in, _ = keys.bare if params.keys == "unprefixed" else mean
        k_out, current = mean if params.keys == "prefixed" else keys.bare
        start = {"unprefixed": target.start, "mean": mean[1], "current": current}[params.anchor]
        direction = session.whiten(params.layer, k_in[:, None])[:, 0] if params.covariance else k_in.double()
        left, right, numbers = rank_one(direction, k_in, k_out, start + target.change - current)
        diagnostics = numbers | {"steps": len(target.losses), "losses": list(target.losses)}
        change = LowRank(left[:, None], right[:, None])
        return session.edit(self, requests, params, {f"{name}.weight": change}, diagnostics), state


def rank_one(
    direction: Tensor, k_in: Tensor, k_out: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Factors `left` (d_out) and `right` (d_in) of Δ, and the numbers the Fall of ROME explains collapse with.

    Numerator and denominator are given with C⁻¹k scaled to length one, as the released code prints them (only
    their ratio has a meaning), and not scaled. `denominator_consistent` is what the denominator would be with
    k_in in both places.
    """
    length, residual64 = direction.norm(), residual.double()
    unit = direction / length
    denominator = unit @ k_out.double()
    numbers = {
        "numerator": residual64.norm(),
        "denominator": denominator,
        "denominator_consistent": unit @ k_in.double(),
        "numerator_unscaled": residual64.norm() * length,
        "denominator_unscaled": denominator * length,
        "key_in_norm": k_in.norm(),
        "key_out_norm": k_out.norm(),
    }
    left, right = (residual64 / denominator).to(residual.dtype), unit.to(residual.dtype)
    return left, right, {name: number.item() for name, number in numbers.items()}
