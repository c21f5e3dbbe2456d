"""ROME and its consistent variants: one rank-one update, three choices of the keys in it.

    Δ = (v* - W k_out) (C⁻¹ k_in)ᵀ / ((C⁻¹ k_in)ᵀ k_out)

`mixed` (ROME as released): k_in averaged over prefix contexts, k_out without prefix. `prefixed` (C-ROME): both
averaged. `unprefixed` (p-ROME): both without prefix. Sources: ROME (Meng et al. 2022), equation 2; The Fall of ROME
(Yang et al. 2024), slides pp. 31-35; p-ROME: Gupta et al. 2024. Deviation from the released codes: C⁻¹ is applied in
float64, and v* is read at the last layer's logits only (their v_loss_layer is the last layer in every configuration).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Factors
from editlib.editing.session import Session
from editlib.engine.values import ValueParams

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


def rome(space: Session, requests: Sequence[EditRequest], params: RomeParams) -> tuple[Factors, dict[str, Any]]:
    """Factors of Δ at one layer for one request, and its diagnostics.

    Raises `EditlibError` if the subject cannot be located or C is singular.
    """
    (request,), name = requests, space.lm.layout.name(params.layer)
    keys = space.keys(params.layer, request, params.contexts)
    target = space.target(name, request, params)
    mean = keys.mean(empty=params.empty_context)
    k_in, _ = keys.bare if params.keys == "unprefixed" else mean
    k_out, current = mean if params.keys == "prefixed" else keys.bare
    start = {"unprefixed": target.start, "mean": mean[1], "current": current}[params.anchor]
    direction = space.whiten(params.layer, k_in[:, None])[:, 0] if params.covariance else k_in.double()
    left, right, numbers = rank_one(direction, k_in, k_out, start + target.change - current)
    found = numbers | {"steps": len(target.losses), "losses": list(target.losses)}
    return {f"{name}.weight": (left[:, None], right[:, None])}, found


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
