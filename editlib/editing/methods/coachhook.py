"""CoachHooK: shadow weights that a token uses if they would change its output unusually much (Li et al. 2024).

    Δ_l = R_l K_lᵀ (λC_l + past_l + K_l K_lᵀ)⁻¹     W_l + Δ_l is used at token t where z_t ≥ α_l
    z_t = (‖Δ_l x_t‖ - mean) / deviation            α_l = min(α_l, the largest z of each request's prompt)

That is MEMIT with a past, written into shadow weights. Deviations from the released code: z compares a token with those
up to it (there with the whole padded row, so that what is said at a token would depend on what comes after it and on
what else is in the batch); v*, keys and residuals are read where every token uses the shadow weights (there v* behind
the validated hooks). Of a first token alone there is no deviation, and it is not edited, as there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.memit import Memit
from editlib.editing.methods.memory import as_it_was
from editlib.editing.methods.overlaid import earlier, overlaid
from editlib.editing.methods.remembering import MemitSeq, MemitSeqParams
from editlib.editing.overlays import tensor_of
from editlib.editing.overlays.validated import Validated, z_scores
from editlib.editing.stats import FirstPosition
from editlib.engine.values import ValueParams
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, named_weight, widened
from editlib.models.tokens import encode
from editlib.models.trace import trace

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class CoachHookParams(MemitSeqParams):
    """Hyper-parameters of CoachHooK."""

    alpha: float = 2.2  # thresholds before any edit
    first_position: FirstPosition = "keep"  # drop: position 0 is never edited, and in no mean and no deviation


class CoachHook(Method):
    """CoachHooK."""

    name, several, weights, remembers = "coachhook", True, False, True
    hparams: type[Any] = CoachHookParams
    paper, equation = "Li et al. 2024, Consecutive Batch Model Editing with HooK Layers", "sections 3.1 to 3.3"

    layers = moments = Memit.layers

    def searches(self, lm: LanguageModel, params: CoachHookParams) -> list[tuple[str, ValueParams]]:
        """As MEMIT."""
        return Memit().searches(lm, params)

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: CoachHookParams, state: State | None = None
    ) -> tuple[Edit, State]:
        """Shadow weights and thresholds of all requests up to now; errors as for MEMIT with a past.

        Diagnostics by layer, of the requests' prompts without padding: `threshold`; z of the subject's last token and
        of position 0, among all tokens of the prompt as the paper has it (`subject_z`, `first_z`: medians); how many
        times larger ‖Δ x‖ is at position 0 than at the median token (`first_size`).
        """
        lm, names = session.lm, tuple(session.lm.layout.name(layer) for layer in params.layers)
        before = earlier(lm, state, self, Validated)
        if before and before.modules != names:
            raise EditlibError(f"this state is of layers {before.modules}, not {names}; begin with state=None")
        inner = MemitSeq()
        past = {key: kept for key, kept in (state or {}).items() if not key.startswith("overlay")}
        past |= {"method": tensor_of(inner.marked(params))}
        with as_it_was(session, _shadows(lm, before)):
            made, memory = inner.solve(session, requests, params, past if state else None)
        lefts, rights = list[Tensor](), list[Tensor]()
        for i, name in enumerate(names):
            change = made.changes[f"{name}.weight"]
            assert isinstance(change, LowRank)  # as MEMIT's are
            lefts.append(torch.cat([before.left[i], change.left], 1) if before else change.left)
            rights.append(torch.cat([before.right[i], change.right], 1) if before else change.right)
        usual = torch.full((len(names),), params.alpha)
        thresholds = before.thresholds if before else usual
        skip = int(params.first_position == "drop")
        shadow = Validated(names, skip, torch.stack(lefts), torch.stack(rights), thresholds)
        shadow, numbers = recorded(lm, shadow, requests)
        keep = ("numerator", "steps", "losses")
        numbers |= {name: made.diagnostics[name] for name in keep} | {"shadow_delta_norm": made.norm()}
        edit, kept = overlaid(session, self, requests, params, shadow, numbers)
        return edit, dict(memory) | dict(kept)


def _shadows(lm: LanguageModel, before: Validated | None) -> dict[str, Tensor]:
    """The weights that earlier edits left, by name, (d_out, d_in) each."""
    if before is None:
        return {}
    parts = zip(before.modules, before.left, before.right, strict=True)
    return {f"{name}.weight": _shadow(lm, name, LowRank(left, right)) for name, left, right in parts}


def _shadow(lm: LanguageModel, name: str, change: LowRank) -> Tensor:
    weight = named_weight(lm, name)
    return (weight + change.dense().to(weight)).detach()


@torch.no_grad()
def recorded(lm: LanguageModel, shadow: Validated, requests: Sequence[EditRequest]) -> tuple[Validated, dict[str, Any]]:
    """Thresholds lowered so that some token of each prompt reaches them in the unedited model, and what was seen."""
    seen = [_prompt(lm, shadow, request) for request in requests]
    largest = torch.stack([scores.max(1).values for scores, *_ in seen]).min(0).values
    thresholds = torch.minimum(shadow.thresholds.double().to(largest), largest)
    columns = zip(*(numbers for _, *numbers in seen), strict=True)
    medians = [torch.stack(column).median(0).values.tolist() for column in columns]
    numbers = dict(zip(("subject_z", "first_z", "first_size"), medians, strict=True))
    kept = Validated(shadow.modules, shadow.skip, shadow.left, shadow.right, thresholds)
    return kept, {"threshold": thresholds.tolist()} | numbers


def _prompt(lm: LanguageModel, shadow: Validated, request: EditRequest) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a prompt, by layer: z of every token among those up to it, z of the subject's last token and of position 0
    among all, and ‖Δ x‖ at position 0 over the median.  # (layers, tokens), three of (layers,)"""
    row = encode(lm.tokenizer, request.prompt, request.subject)
    with trace(lm.model, *shadow.modules) as seen:
        lm.model(torch.tensor([row.ids], device=lm.device))
    moved = [shadow.moved(i, widened(seen[name].input)) for i, name in enumerate(shadow.modules)]
    sizes = torch.cat(moved).double().norm(dim=-1)
    whole = z_scores(sizes, whole=True)
    scores = torch.cat([shadow.scores(each) for each in moved])
    return scores, whole[:, row.last], whole[:, 0], sizes[:, 0] / sizes.median(1).values
