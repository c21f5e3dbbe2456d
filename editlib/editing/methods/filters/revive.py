"""REVIVE: an update that leaves the main singular triplets of the unedited weight alone (Zhang et al. 2026).

    Δ' = U Uᵀ Δ V Vᵀ,   U and V: singular vectors of W₀ behind the k first

k is the least number whose singular values (not their squares) hold a share of the sum. Δ' changes nothing for inputs
along a protected vector, writes nothing along one, and leaves out what lies outside the rows of W₀. Read in a
re-implementation (alphaedit-analysis), which lets an update through unfiltered where it is not finite; this does not.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from editlib.editing.change import Change
from editlib.editing.edit import Edit
from editlib.editing.methods.filters.filter import Filter, Found, Kept
from editlib.models.language_model import named_weight

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class ReviveParams:
    """Hyper-parameters of REVIVE."""

    revive_share: Annotated[float, Field(ge=0, le=1)] = 0.2  # τ, of the sum of singular values


class Revive(Filter):
    """REVIVE."""

    name, hparams, remembers = "revive", ReviveParams, True
    paper, equation = "Zhang et al. 2026, Spectral Characterization", "tails of both singular bases"

    def filtered(self, session: "Session", edit: Edit, params: ReviveParams, kept: Kept) -> Found:
        """What each change does in the tails, which are kept, and how many triplets are protected."""
        changes, protected = dict[str, Change](), list[int]()
        for name, change in edit.changes.items():
            if f"left|{name}" not in kept:
                kept[f"left|{name}"], kept[f"right|{name}"] = tails(named_weight(session.lm, name), params.revive_share)
            left, right = kept[f"left|{name}"], kept[f"right|{name}"]
            changes[name] = change.mapped(out=partial(_onto, left), into=partial(_onto, right))
            protected.append(min(left.shape[0], right.shape[0]) - left.shape[1])
        return changes, {"revive_protected": protected}


def _onto(basis: Tensor, columns: Tensor) -> Tensor:
    return basis @ (basis.T @ columns)


def tails(weight: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Left (d_out, r - k) and right (d_in, r - k) singular vectors behind the k first."""
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    first = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    first = min(first, max(len(values) - 1, 1))
    return left[:, first:].contiguous(), right[first:].T.contiguous()
