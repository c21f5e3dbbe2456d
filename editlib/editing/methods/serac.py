"""SERAC: a memory of edits, a classifier of their scope, and a counterfactual model (Mitchell et al. 2022, ICML).

    s_e(x) = exp(-c ‖A(φ(x) - φ(e))‖²)     answer: ψ([e; x]) for the likeliest e if s > 1/2, the model's own otherwise

φ are the model's own token embeddings, averaged over a text; the metric A is trained, on cases of other facts, by the
paper's loss: edits are in scope of their paraphrases, and not of prompts about their neighbors. Deviations: the paper
trains a DistilBERT for φ and a small model for ψ; here ψ is the model itself, which reads the edit before the text
(the released code's `freeze_cntr`), and nothing of it is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods.context import InContext, known_cases, note_of, source, worded
from editlib.editing.overlays.fronts import Fronts, embedded_texts
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session

NEIGHBORS = 4  # prompts out of scope that a case gives


@dataclass(frozen=True, kw_only=True)
class SeracParams:
    """Hyper-parameters of SERAC."""

    threshold: PositiveFloat = 0.5  # least s that an edit answers at
    rank: PositiveInt = 64  # of A
    steps: PositiveInt = 300
    learning_rate: PositiveFloat = 1e-2  # Adam
    seed: int = 0
    cases: str = ""  # the classifier learns from these, by name or path; empty: the model's own, of the split tune


class Serac(InContext):
    """SERAC."""

    name, hparams = "serac", SeracParams
    paper, equation = "Mitchell et al. 2022, Memory-Based Model Editing at Scale", "section 3, ψ the model itself"

    def check(self, lm: LanguageModel, params: SeracParams) -> dict[str, str]:
        """Raise `EditlibError` if the cases are not there; their sha256."""
        return {"cases_sha256": data.fingerprint(source(lm, params.cases))}

    def taught(self, session: "Session", memory: Fronts, params: SeracParams) -> Fronts:
        """The classifier, taught without the cases about an edited subject: it is to know scopes, not these facts."""
        edited = {subject for subject, *_ in memory.notes}
        pool = known_cases(session, params.cases)
        left = [case for case in pool if case.request.subject not in edited]
        of = None if len(left) == len(pool) else frozenset(edited)  # else one for all
        metric: Tensor = session.once(("scope", params, of), lambda: scope(session.lm, left, params))
        return replace(memory, metric=metric, least=params.threshold)

    def front(self, session: "Session", request: EditRequest, params: SeracParams) -> str:
        """The edit as a sentence."""
        return f"{worded(note_of(request), request.separator)[1]}.\n"


def scope(lm: LanguageModel, cases: Sequence[Case], params: SeracParams) -> Tensor:
    """A trained: binary cross-entropy of s, in scope and out of it weighing alike.  # (width, rank)"""
    edits = embedded_texts(lm, [case.request.text for case in cases])
    inside = [(i, text) for i, case in enumerate(cases) for text in case.paraphrase_prompts]
    outside = [(i, text) for i, case in enumerate(cases) for text in case.neighborhood_prompts[:NEIGHBORS]]
    away = [(edits[[i for i, _ in pairs]] - embedded_texts(lm, [t for _, t in pairs])) for pairs in (inside, outside)]
    drawn = torch.randn(edits.shape[1], params.rank, generator=torch.Generator().manual_seed(params.seed))
    metric = (drawn / params.rank**0.5).to(edits).requires_grad_()
    adam = torch.optim.Adam([metric], lr=params.learning_rate)
    for _ in range(params.steps if inside and outside else 0):
        near, far = ((difference @ metric).square().sum(1) for difference in away)
        loss = near.mean() - torch.log1p(-(-far).exp() * (1 - 1e-6)).mean()  # -log s within, -log(1 - s) without
        adam.zero_grad()
        loss.backward()
        adam.step()
    trained: Tensor = metric.detach()
    return trained
