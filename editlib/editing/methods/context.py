"""What IKE, SERAC and SKEME share: edits kept as texts, one of which stands before what is asked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.data.sources import own
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.overlaid import earlier, overlaid
from editlib.editing.overlays.fronts import Fronts, Note, embedded_texts
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import prompt_ids

if TYPE_CHECKING:
    from editlib.editing.session import Session


class InContext(Method):
    """A method whose edits are fronts. Whoever inherits from this has to give `begin` and `front`."""

    several, weights, remembers = True, False, True

    def begin(self, session: "Session", params: Any) -> Fronts:
        """The memory before any edit."""
        return Fronts((), embedded_texts(session.lm, []))

    def taught(self, session: "Session", memory: Fronts, params: Any) -> Fronts:
        """The memory with what it chooses by, once it has all entries."""
        return memory

    def front(self, session: "Session", request: EditRequest, params: Any) -> str:
        """What stands before a text that takes a request."""
        raise NotImplementedError

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Edit, State]:
        """The memory with all requests up to now; of two about one subject in one prompt, the later.

        Raises `EditlibError` for a front that leaves no room for its prompt, and a state of another model or method.
        """
        lm = session.lm
        memory = earlier(lm, state, self, Fronts) or self.begin(session, params)
        lengths = list[int]()
        for request in requests:
            front = self.front(session, request, params)
            lengths.append(_fitting(lm, front, request))
            memory = put(lm, memory, note_of(request), front)
        memory = self.taught(session, memory, params)
        numbers = {"entries": len(memory.fronts), "front_tokens": lengths}
        return overlaid(session, self, requests, params, memory, numbers)


def note_of(request: EditRequest) -> Note:
    """A request as subject, relation (its prompt) and object."""
    return request.subject, request.prompt, request.target_new


def worded(note: Note, separator: str | None = None) -> tuple[str, str]:
    """Subject and relation as one text, and with the object behind; a relation may have {} where the subject goes."""
    subject, relation, thing = note
    text = relation.replace("{}", subject, 1) if "{}" in relation else f"{subject} {relation}"
    return text, f"{text}{' ' if separator is None else separator}{thing}"


def put(lm: LanguageModel, memory: Fronts, note: Note, front: str) -> Fronts:
    """A memory with one more entry, in place of one about the same subject and relation."""
    kept = [i for i, known in enumerate(memory.notes) if known[:2] != note[:2]]
    keys = torch.cat([memory.keys[kept], embedded_texts(lm, [worded(note)[0]])])
    fronts, notes = [memory.fronts[i] for i in kept], [memory.notes[i] for i in kept]
    return replace(memory, fronts=(*fronts, front), notes=(*notes, note), keys=keys)


def _fitting(lm: LanguageModel, front: str, request: EditRequest) -> int:
    """How many tokens a front has; raises `EditlibError` if it leaves no room for the request."""
    tokens, asked = (len(prompt_ids(lm.tokenizer, text)) for text in (front, f"{request.text} {request.target_new}"))
    if lm.max_length is not None and tokens + asked > lm.max_length:
        raise EditlibError(
            f"prompt {request.text[:40]!r}... has {asked} tokens with its target, behind {tokens} of the edit; "
            f"{lm.label} takes {lm.max_length} in all; shorten it, or give the edit fewer demonstrations"
        )
    return tokens


# -- cases to learn from -----------------------------------------------------------------------------------


def source(lm: LanguageModel, name: str) -> str:
    """The data that cases come from: by name or path, else the model's own."""
    return name or str(own(lm.name, "testbed"))


def known_cases(session: "Session", name: str) -> list[Case]:
    """Cases to learn from, of the split `tune` where there are splits; raises `EditlibError` if they cannot be read."""
    where = source(session.lm, name)

    def read() -> list[Case]:
        pool = data.cases(where)
        return data.of_split(pool, "tune") if any(case.split for case in pool) else pool

    return session.file(("cases", where), read)
