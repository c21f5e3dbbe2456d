"""ROME and its consistent variants: one rank-one update, three choices of the keys in it.

    Δ = (v* - W k_out) (C⁻¹ k_in)ᵀ / ((C⁻¹ k_in)ᵀ k_out)

`mixed` (ROME as released): k_in averaged over prefix contexts, k_out without prefix. `prefixed` (C-ROME): both
averaged. `unprefixed` (p-ROME): both without prefix. Sources: ROME (Meng et al. 2022), equation 2; The Fall of ROME
(Yang et al. 2024), slides pp. 31-35; p-ROME: Gupta et al. 2024.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from editlib.edit import Edit, EditRequest
from editlib.errors import EditlibError
from editlib.model import LanguageModel, widened
from editlib.prefixes import prefix_contexts
from editlib.stats import Stats, second_moments_of
from editlib.values import Keys, Target, ValueParams, optimise_value, read_keys

KeyPolicy = Literal["mixed", "prefixed", "unprefixed"]


@dataclass(frozen=True, kw_only=True)
class RomeParams(ValueParams):
    """Hyper-parameters of the ROME family; the method's name sets `keys`."""

    layer: int
    keys: KeyPolicy = "mixed"
    covariance: bool = True  # False is what the papers' released configurations say (mom2_adjustment: false)


def family(
    lm: LanguageModel,
    request: EditRequest,
    variants: Mapping[str, RomeParams],
    *,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
) -> dict[str, Edit]:
    """The edits of several variants at once; those that differ only in keys or covariance share one v*.

    Raises `EditlibError` if the layer is out of range, the subject cannot be located, or C is singular.
    """
    contexts = prefix_contexts(lm)

    @cache
    def keys_of(layer: int) -> Keys:
        return read_keys(lm, layer, request, contexts)

    @cache
    def target_of(layer: int, search: ValueParams) -> Target:
        return optimise_value(lm, layer, request, contexts, search)

    def moment_of(params: RomeParams) -> Tensor | None:
        if not params.covariance:
            return None
        return (stats or second_moments_of(lm, [params.layer], corpus=corpus)).require(lm, params.layer)

    return {
        name: _edit(
            lm,
            name,
            request,
            params,
            keys_of(params.layer),
            target_of(params.layer, search_of(params)),
            moment_of(params),
        )
        for name, params in variants.items()
    }


def search_of(params: RomeParams) -> ValueParams:
    """The part of the hyper-parameters that v* depends on."""
    return ValueParams(**{field.name: getattr(params, field.name) for field in fields(ValueParams)})


def _edit(
    lm: LanguageModel,
    name: str,
    request: EditRequest,
    params: RomeParams,
    keys: Keys,
    target: Target,
    moment: Tensor | None,
) -> Edit:
    left, right, numbers = rank_one(keys, target.value, params.keys, moment)
    weight = f"{lm.layout.name(params.layer)}.weight"
    delta, whole = (left.norm() * right.norm()).item(), widened(lm.weight(params.layer)).norm().item()
    norms = {"delta_norm": delta, "weight_norm": whole, "relative_delta_norm": delta / whole}
    diagnostics = numbers | norms | {"steps": len(target.losses), "losses": list(target.losses)}
    return Edit(
        name, (request,), {weight: (left[:, None], right[:, None])}, asdict(params), lm.fingerprint, diagnostics
    )


def rank_one(
    keys: Keys, value: Tensor, policy: KeyPolicy, moment: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Factors `left` (d_out) and `right` (d_in) of Δ, and the numbers the Fall of ROME explains collapse with.

    Numerator and denominator are given with C⁻¹k scaled to length one, as the released code prints them (only
    their ratio has a meaning), and not scaled. `denominator_consistent` is what the denominator would be with
    the averaged key in both places.
    """
    k_in = keys.unprefixed if policy == "unprefixed" else keys.prefixed
    k_out = keys.prefixed if policy == "prefixed" else keys.unprefixed
    current = keys.value_prefixed if policy == "prefixed" else keys.value_unprefixed
    direction = _whiten(moment, k_in)  # float64: C is ill-conditioned wherever one token dominates it
    length, residual = direction.norm(), (value - current).double()
    unit = direction / length
    denominator = unit @ k_out.double()
    numbers = {
        "numerator": residual.norm(),
        "denominator": denominator,
        "denominator_consistent": unit @ k_in.double(),
        "numerator_unscaled": residual.norm() * length,
        "denominator_unscaled": denominator * length,
    }
    left, right = (residual / denominator).to(value.dtype), unit.to(value.dtype)
    return left, right, {name: number.item() for name, number in numbers.items()}


def _whiten(moment: Tensor | None, key: Tensor) -> Tensor:
    """C⁻¹ k in float64, or k itself without covariance."""
    if moment is None:
        return key.double()
    factor, failed = torch.linalg.cholesky_ex(moment.to(key.device))
    if failed:
        raise EditlibError("the second moment of the keys is singular; use a longer corpus or covariance=False")
    return torch.cholesky_solve(key.double()[:, None], factor)[:, 0]
