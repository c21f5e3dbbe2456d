"""SKEME: a store of triples beside the model, looked up by the subject that a text names (Zeng et al. 2024).

Of the triples about subjects that the text names, those whose "subject relation" is most like the text stand before
it. A new object for a known subject and relation replaces the old one. Deviations from the released code: texts are
likened by the model's own token embeddings (there by a sentence encoder); the store is a file of lines with subject,
relation and object and tabs between (there an RDF graph, and a large source behind it); a text that names no subject of
the store is read as it is.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from editlib.data.request import EditRequest
from editlib.editing.methods.context import InContext, note_of, put, worded
from editlib.editing.overlays.fronts import Fronts, Note
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class SkemeParams:
    """Hyper-parameters of SKEME."""

    # a file of triples that are known beside the requests; empty: none
    store: Annotated[str, Field(coerce_numbers_to_str=True)] = ""
    most: PositiveInt = 1  # triples before a text (k)
    form: Literal["sentence", "triple"] = "sentence"  # "Zen is located in Daslo." or "(Zen, is located in, Daslo)"


class Skeme(InContext):
    """SKEME."""

    name, hparams = "skeme", SkemeParams
    paper, equation = "Zeng et al. 2024, FAME", "section 4"

    def check(self, lm: LanguageModel, params: SkemeParams) -> dict[str, str]:
        """Raise `EditlibError` if the store is missing or no file of triples; its sha256."""
        if not params.store:
            return {}
        read_triples(params.store)
        return {"store_sha256": hashlib.sha256(Path(params.store).read_bytes()).hexdigest()}

    def begin(self, session: "Session", params: SkemeParams) -> Fronts:
        """The store's triples."""
        memory = replace(super().begin(session, params), most=params.most, named=True)
        for note in read_triples(params.store) if params.store else []:
            memory = put(session.lm, memory, note, said(note, params.form))
        return memory

    def front(self, session: "Session", request: EditRequest, params: SkemeParams) -> str:
        """The request as a line."""
        return said(note_of(request), params.form, request.separator)


def said(note: Note, form: str, separator: str | None = None) -> str:
    """A triple as a line."""
    if form == "sentence":
        return f"{worded(note, separator)[1]}.\n"
    relation = " ".join(note[1].replace("{}", " ").split())
    return f"({note[0]}, {relation}, {note[2]})\n"


def read_triples(path: str | Path) -> list[Note]:
    """Triples of a file, a line each: subject, relation and object with tabs between; empty lines count for nothing.

    Raises `EditlibError` if it is missing, no text, or a line is no triple.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise EditlibError(f"store {path} cannot be read: {error}; give a text file of triples") from error
    triples = list[Note]()
    for number, line in enumerate(lines, start=1):
        parts = [part.strip() for part in line.split("\t")]
        if not line.strip():
            continue
        if len(parts) != 3 or not all(parts):
            raise EditlibError(
                f"store {path}, line {number} is no triple: {line[:40]!r}; write subject, relation and object with "
                "tabs between"
            )
        triples.append((parts[0], parts[1], parts[2]))
    return triples
