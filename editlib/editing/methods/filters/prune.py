"""PRUNE: a bound on the singular values of all that edits have changed (Ma et al. 2025).

    W' = W₀ + U F(S) Vᵀ,   U S Vᵀ = all changes up to now,   F(s) = σ₁ + log_b(s / σ₁) above σ₁ of W₀, s up to it

The method itself goes on from the weights that its own edits left, so that after every edit the model is what PRUNE,
applied once to all edits so far, makes of it. F restrains only if σ₁ ln b is at least 1: its slope above σ₁ is
1 / (σ₁ ln b), and a smaller b makes changes larger. Such a b is refused. The released code takes b as 1.2, 1.5 or e;
with `prune_base` 0, it is here e, or the least that restrains where that is more.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from editlib.editing.change import Change, Dense, LowRank
from editlib.editing.edit import Edit
from editlib.editing.methods.filters.filter import Filter, Found, Kept
from editlib.editing.methods.memory import as_it_was
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, named_weight

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class PruneParams:
    """Hyper-parameters of PRUNE."""

    prune_base: NonNegativeFloat = 0.0  # b; 0: e, or the least that restrains


class Prune(Filter):
    """PRUNE."""

    name, hparams, remembers = "prune", PruneParams, True
    paper, equation = "Ma et al. 2025, Perturbation-Restrained Sequential Editing", "restrained singular values"

    def check(self, lm: LanguageModel, layers: Sequence[int], params: PruneParams) -> None:
        """Refuse a base that would make the changes of a layer larger."""
        for layer in layers:
            base_for(largest(lm.weight(layer)), params.prune_base, f"layer {layer}")

    def standing(self, session: "Session", kept: Kept) -> AbstractContextManager[None]:
        """In the weights that the method's own edits left."""
        begun = {key.removeprefix("weight|"): tensor for key, tensor in kept.items() if key.startswith("weight|")}
        return as_it_was(session, {n: (w.double() + _raw(kept, n).dense().double()).to(w) for n, w in begun.items()})

    def filtered(self, session: "Session", edit: Edit, params: PruneParams, kept: Kept) -> Found:
        """From the present weights to the unedited ones with all changes restrained."""
        changes, numbers = dict[str, Change](), {"prune_sigma": list[float](), "prune_base": list[float]()}
        for name, change in edit.changes.items():
            weight, first = named_weight(session.lm, name), f"weight|{name}" not in kept
            begun = kept.setdefault(f"weight|{name}", weight.detach().clone())
            raw = change if first else _raw(kept, name) + change
            if isinstance(raw, LowRank) and raw.left.numel() + raw.right.numel() > weight.numel():
                raw = Dense(raw.dense())
            for kind in "LRD":
                kept.pop(f"{kind}|{name}", None)
            kept |= {f"{kind}|{name}": tensor for kind, tensor in raw.tensors.items()}
            sigma = largest(begun)
            base = base_for(sigma, params.prune_base, name)
            bound = restrained(raw, sigma, base)
            changes[name] = bound if first else Dense(bound.dense() + (begun.double() - weight.double()))
            numbers["prune_sigma"].append(sigma)
            numbers["prune_base"].append(base)
        return changes, numbers


def largest(weight: Tensor) -> float:
    """σ₁ of a weight."""
    short = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    return float(torch.linalg.eigvalsh(short @ short.T)[-1].clamp(min=0).sqrt())


def base_for(sigma: float, base: float, where: str) -> float:
    """The base of F for a weight with this σ₁; raises `EditlibError` for one that makes changes larger."""
    least = math.exp(min(1 / max(sigma, 1e-9), 700))
    if base and sigma * math.log(base) < 1 - 1e-9:
        raise EditlibError(
            f"prune_base={base:g} makes changes of {where} larger, whose weight has σ₁ {sigma:.3g}; "
            f"give {math.ceil(100 * least) / 100:g} or more, or 0"
        )
    return base or max(math.e, least)


def restrained(change: Change, sigma: float, base: float) -> LowRank:
    """Δ with every singular value s above σ₁ at σ₁ + log_b(s / σ₁); by the core of its factors where it has some."""
    if isinstance(change, LowRank):
        left, core_left = torch.linalg.qr(change.left.double())
        right, core_right = torch.linalg.qr(change.right.double())
        u, values, vh = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
        u, v = left @ u, right @ vh.T
    else:
        u, values, vh = torch.linalg.svd(change.delta.double(), full_matrices=False)
        v = vh.T
    bound = torch.where(values > sigma, sigma + (values / sigma).log() / math.log(base), values)
    return LowRank(u * bound, v)


def _raw(kept: Kept, name: str) -> Change:
    """The sum of the method's own changes of a weight."""
    return Dense(kept[f"D|{name}"]) if f"D|{name}" in kept else LowRank(kept[f"L|{name}"], kept[f"R|{name}"])
