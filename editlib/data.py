"""Edit cases and texts by name or path: COUNTERFACT's form for cases, ME-PPL's form (or a plain list) for texts."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from editlib.edit import EditRequest
from editlib.errors import EditlibError
from editlib.model import LanguageModel
from editlib.spans import encode

SHIPPED = {
    name: Path(__file__).parent / "testbed" / f"{name}.json" for name in ("testbed", "testbed-ppl-50", "testbed-ppl-1k")
}


@dataclass(frozen=True)
class Case:
    """One edit request with its test prompts."""

    case_id: int
    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class SubjectTokens:
    """How a request's subject is tokenised in its prompt, special tokens not counted."""

    count: int
    first: int
    last: int

    @property
    def kind(self) -> str:
        """One token at the start of the prompt, one token later, or several."""
        if self.count > 1:
            return "several tokens"
        return "one token, first" if self.first == 0 else "one token, later"


def cases(name: str | Path) -> list[Case]:
    """Read edit cases: `testbed`, or the path of a file in COUNTERFACT's form. Raises `EditlibError` if it is
    neither."""
    return [_case(record, name) for record in _records(name)]


def texts(name: str | Path) -> list[str]:
    """Read texts: `testbed-ppl-50`, `testbed-ppl-1k`, or the path of a JSON list of strings or of {Corpus,
    Text} records."""
    found = [record.get("Text") if isinstance(record, dict) else record for record in _records(name)]
    if not all(isinstance(text, str) for text in found):
        raise EditlibError(f"a record of {name} is neither a string nor an object with a Text")
    return [str(text) for text in found]


def fingerprint(name: str | Path) -> str:
    """sha256 of the file behind a data name."""
    return hashlib.sha256(_file(name).read_bytes()).hexdigest()


def draw(pool: list[Case], n: int, *, seed: int) -> list[Case]:
    """Draw `n` cases without replacement, kept in file order; raises `EditlibError` unless 1 <= n <= len(pool)."""
    if not 1 <= n <= len(pool):
        raise EditlibError(f"n={n} is out of range; there are {len(pool)} cases, so choose 1 to {len(pool)}")
    return sorted(Random(seed).sample(pool, n), key=lambda case: case.case_id)


def subject_tokens(lm: LanguageModel, request: EditRequest) -> SubjectTokens:
    """Count and positions of the subject's tokens in the bare prompt."""
    start, end = encode(lm.tokenizer, request.prompt, request.subject, special_tokens=False).subject
    return SubjectTokens(end - start, start, end - 1)


def _file(name: str | Path) -> Path:
    path = SHIPPED.get(str(name), Path(name))
    if not path.is_file():
        raise EditlibError(f"data {str(name)!r} is neither a file nor one of {', '.join(SHIPPED)}")
    return path


def _records(name: str | Path) -> list[Any]:
    path = _file(name)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EditlibError(f"data file {name} is no JSON ({error})") from error
    if not isinstance(records, list) or not records:
        raise EditlibError(f"data file {name} must hold a JSON list with at least one record")
    return records


def _case(record: dict[str, Any], name: str | Path) -> Case:
    try:
        rewrite = record["requested_rewrite"]
        request = EditRequest(
            prompt=rewrite["prompt"], subject=rewrite["subject"],
            target_new=rewrite["target_new"]["str"], target_true=rewrite["target_true"]["str"],
        )  # fmt: skip
        return Case(
            record["case_id"], request, tuple(record["paraphrase_prompts"]), tuple(record["neighborhood_prompts"])
        )
    except (KeyError, TypeError) as error:
        raise EditlibError(f"a record of {name} is not in COUNTERFACT's form: {error} is missing") from error
