"""D4S: edits one by one that are one solution for all of them, in a memory of constant size (Huang et al. 2024).

    W_l = W₀ + A_l (λC_l + B_l)⁻¹,   A_l = Σ R_l K_lᵀ,   B_l = Σ K_l K_lᵀ

v* and R are found in the unedited model, keys where the layers below have all edits up to now. As released, R of a
layer is what the unedited model lacks, over the layers left, so that m layers together take 1 + 1/2 + ... + 1/m of the
step; `residual="reread"` reads what is still lacking after the layers below, as MEMIT does. Deviation from the released
code: the weights are always the unedited ones plus the total, which it needs `keep_original_weight` for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from editlib.data.request import EditRequest
from editlib.editing.change import Change, Dense
from editlib.editing.edit import Edit
from editlib.editing.method import State
from editlib.editing.methods.memit import Batch, Memit, MemitParams
from editlib.editing.methods.memory import as_it_was, remembered

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class D4sParams(MemitParams):
    """Hyper-parameters of D4S."""

    residual: Literal["released", "reread"] = "released"


class D4s(Memit):
    """D4S."""

    name, hparams, remembers = "d4s", D4sParams, True
    paper, equation = "Huang et al. 2024, Reasons and Solutions", "released code, memit_main.py"

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: D4sParams, state: State | None = None
    ) -> tuple[Edit, State]:
        """From the present weights to those of all edits up to now; errors as for MEMIT, and for a state of another
        model."""
        lm, names = session.lm, {layer: f"{session.lm.layout.name(layer)}.weight" for layer in params.layers}
        kept = remembered(lm, state, self.name, [f"{kind}|{layer}" for kind in ("A", "B", "weight") for layer in names])
        current = {name: lm.weight(layer).detach().clone() for layer, name in names.items()}
        begun = {name: kept.setdefault(f"weight|{layer}", current[name]) for layer, name in names.items()}
        session.load_moments(params.layers)
        totals = dict[str, Change]()
        with as_it_was(session, {} if state is None else begun):
            batch = Batch(session, requests, params, self)
            unedited = batch.lacking({})
            for i, (layer, name) in enumerate(names.items()):
                keys = batch.keys(layer, totals)
                lacking = batch.lacking(totals) if params.residual == "reread" else unedited
                kept[f"A|{layer}"] = kept.get(f"A|{layer}", 0) + lacking.double() / (len(names) - i) @ keys.T
                kept[f"B|{layer}"] = kept.get(f"B|{layer}", 0) + keys @ keys.T
                total = self.prior(session, layer, params).total(kept[f"A|{layer}"], kept[f"B|{layer}"])
                totals[name] = Dense(total).to(lacking)
        moved = {name: begun[name].double() - weight.double() for name, weight in current.items()}
        changes = {name: Dense(total.dense() + moved[name].to(total.dense())) for name, total in totals.items()}
        return batch.edit(changes, unedited.norm().item()), kept
