"""NAS, norm-anchor scaling: AlphaEdit towards values of one length (Liu et al. 2026, released code, compute_z.py).

    v = v0 + δ,    v* = a v / ‖v‖;    v* = v0, so that the edit is left out, where ‖v‖ > 2 a

v0 is what the last layer's down-projection puts out at the subject, δ what the search for z adds. The anchor a is the
mean of ‖v‖ over requests of its own, the longest twentieth left out (some are edited themselves where no split is kept
for that, as on the testbed). The released code measures it on 1,000 requests in whatever model it meets first; here it
is measured before the first edit, on fewer, and goes on in the state. How many requests of an edit were left out is in
its diagnostics: the released code counts them as made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveInt

from editlib.data import datasets as data
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.method import State
from editlib.editing.methods.alphaedit import AlphaEdit, AlphaEditParams
from editlib.editing.methods.context import known_cases, source
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session

KEPT = 0.95  # of lengths, in the mean


@dataclass(frozen=True, kw_only=True)
class NasParams(AlphaEditParams):
    """Hyper-parameters of NAS."""

    anchor_requests: PositiveInt = 50  # it is measured on; released: 1,000
    cases: str = ""  # these requests are of, by name or path; empty: the model's own, of the split tune


class Nas(AlphaEdit):
    """NAS."""

    name, hparams = "nas", NasParams
    paper, equation = "Liu et al. 2026, Norm Anchors Make Model Edits Last", "released code, compute_z.py"

    def check(self, lm: LanguageModel, params: NasParams) -> dict[str, str]:
        """Raise `EditlibError` if the anchor's cases are not there; their sha256."""
        return {} if params.norm_anchor else {"cases_sha256": data.fingerprint(source(lm, params.cases))}

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: NasParams, state: State | None = None
    ) -> tuple[Edit, State]:
        """As AlphaEdit, and the anchor in the state; errors as for AlphaEdit."""
        if state and "anchor" in state:
            length = float(state["anchor"])
        else:
            length = params.norm_anchor or session.file(("anchor", params), lambda: self.measured(session, params))
        edit, kept = super().solve(session, requests, replace(params, norm_anchor=length), state)
        return edit, {**kept, "anchor": torch.tensor(length, dtype=torch.float64)}

    def measured(self, session: "Session", params: NasParams) -> float:
        """The anchor: the mean of ‖v0 + δ‖ over its requests, the longest left out. δ stay in the user's cache."""
        from editlib.editing.session import Session

        requests = [case.request for case in known_cases(session, params.cases)][: params.anchor_requests]
        others = Session(session.lm, reuse=True)  # for the next command, too
        targets = others.targets(self.searches(session.lm, params)[0][0], requests, params)
        lengths = self.reached(others, requests, params, targets).norm(dim=0).sort().values
        return float(lengths[: max(1, int(KEPT * len(lengths)))].mean())
