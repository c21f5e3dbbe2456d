"""IKE: the new fact stands before the prompt, behind demonstrations of what to make of one (Zheng et al. 2023).

Demonstrations are other facts with their prompts and answers, one in eight a copy of the fact, three a paraphrase that
follows it, four a prompt about something else that does not, as in the paper; those most like the new fact by cosine
stand nearest to it. Deviations: texts are likened by the model's own token embeddings (there by a sentence encoder);
as many demonstrations as take half of what the model reads at once; a prompt begins on a line of its own, so that its
tokens are those it has alone; with several facts, a text takes the one most like it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods.context import InContext, known_cases, note_of, source, worded
from editlib.editing.overlays.fronts import embedded_texts
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import prompt_ids

if TYPE_CHECKING:
    from editlib.editing.session import Session

KINDS = ("copy", *["update"] * 3, *["retain"] * 4)  # of demonstrations, by rank


@dataclass(frozen=True, kw_only=True)
class IkeParams:
    """Hyper-parameters of IKE."""

    demonstrations: NonNegativeInt = 32  # at most
    cases: str = ""  # they are of these, by name or path; empty: the model's own, of the split tune


class Ike(InContext):
    """IKE."""

    name, hparams = "ike", IkeParams
    paper, equation = "Zheng et al. 2023, Can We Edit Factual Knowledge by In-Context Learning?", "section 3"

    def check(self, lm: LanguageModel, params: IkeParams) -> dict[str, str]:
        """Raise `EditlibError` if the cases are not there; their sha256."""
        return {"cases_sha256": data.fingerprint(source(lm, params.cases))}

    def front(self, session: "Session", request: EditRequest, params: IkeParams) -> str:
        """Demonstrations and the new fact."""
        lm = session.lm
        fact = demonstration(worded(note_of(request), request.separator)[1])
        room = None if lm.max_length is None else lm.max_length // 2 - len(prompt_ids(lm.tokenizer, fact))
        chosen = list[str]()
        for rank, case in enumerate(_most_alike(session, params, request)):
            chosen.append(_demonstration(case, KINDS[rank % len(KINDS)]))
            room = None if room is None else room - len(prompt_ids(lm.tokenizer, chosen[-1]))
            if room is not None and room < 0:
                chosen.pop()
                break
        return "".join([*reversed(chosen), fact])


def demonstration(fact: str, prompt: str = "", answer: str = "") -> str:
    """A fact and what is asked behind it; without a prompt, up to where one goes."""
    asked = f"{prompt} {answer}.\n\n" if prompt else ""
    return f"New Fact:\n{fact}.\nPrompt:\n{asked}"


def _most_alike(session: "Session", params: IkeParams, request: EditRequest) -> Sequence[Case]:
    """Cases about other subjects, those whose facts are most like the request's first."""
    lm = session.lm
    pool = known_cases(session, params.cases)
    facts = session.once(("facts", params.cases), lambda: embedded_texts(lm, [_fact(case.request) for case in pool]))
    order = (facts @ embedded_texts(lm, [_fact(request)])[0]).argsort(descending=True, stable=True)
    others = (pool[i] for i in order.tolist() if pool[i].request.subject != request.subject)
    return [case for case, _ in zip(others, range(params.demonstrations), strict=False)]


def _fact(request: EditRequest) -> str:
    return worded(note_of(request), request.separator)[1]


def _demonstration(case: Case, kind: str) -> str:
    """One of a kind, or a copy where the case has no such prompt."""
    request, asked = case.request, dict[str, Any]()
    asked["copy"] = request.text, request.target_new
    if case.paraphrase_prompts:
        asked["update"] = case.paraphrase_prompts[0], request.target_new
    answers = case.neighborhood_answers or (request.target_true,) * len(case.neighborhood_prompts)
    kept = next(
        ((text, answer) for text, answer in zip(case.neighborhood_prompts, answers, strict=True) if answer), None
    )
    if kept:
        asked["retain"] = kept
    return demonstration(_fact(request), *asked.get(kind, asked["copy"]))
