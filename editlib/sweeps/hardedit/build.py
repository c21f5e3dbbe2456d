"""Building a set like HardEdit: an author writes edit cases, and those that collapse a model are kept.

The recipe is that of the Butterfly Effect paper (Yang et al. 2024, slides p. 23): cases are written ten at a time after
the pattern of known hard ones, and a single ROME edit of a given model is the filter. The author is a language model
behind an OpenAI-compatible endpoint or, offline, the testbed's invented world.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.method import moments_of
from editlib.editing.methods import Params, variants_of
from editlib.editing.session import Session
from editlib.editing.stats import Stats, second_moments_of
from editlib.errors import EditlibError
from editlib.files import aside, write_json
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.sweeps.hardedit.authors import BATCH, Author, Unusable
from editlib.sweeps.parts import PlannedFolder
from editlib.sweeps.plan import described
from editlib.sweeps.single import sweep
from editlib.text import finite

log = logging.getLogger(__name__)

SET = "hardedit.json"
Line = dict[str, Any]  # a record's fields, what became of it, and why


class WrittenCase(BaseModel):
    """One case in EasyEdit's fields, checked: a one-word subject begins the prompt, and both targets differ."""

    model_config = ConfigDict(frozen=True, strict=True, str_strip_whitespace=True, str_min_length=1)
    prompt: str
    subject: str
    target_new: str
    ground_truth: str

    @model_validator(mode="after")
    def _checked(self) -> "WrittenCase":
        if len(self.subject.split()) > 1:
            raise ValueError(f"subject {self.subject!r} is not one word")
        if not re.match(rf"{re.escape(self.subject)}(?!\w).", self.prompt) or "{}" in self.prompt:
            raise ValueError(f"prompt {self.prompt!r} does not begin with the subject")
        if self.target_new.casefold() == self.ground_truth.casefold():
            raise ValueError(f"target_new {self.target_new!r} is the ground_truth")
        return self

    def case(self, number: int) -> Case:
        """The case under a number."""
        prompt = f"{{}}{self.prompt[len(self.subject) :]}"
        return Case(
            number,
            EditRequest(prompt=prompt, subject=self.subject, target_new=self.target_new, target_true=self.ground_truth),
        )


@dataclass(frozen=True)
class Built:
    """What building came to: the cases kept, in a file in EasyEdit's form, why others were not, and calls made now."""

    path: Path
    accepted: tuple[Line, ...]
    rejected: tuple[Line, ...]
    calls: int


def most_calls(n: int) -> int:
    """How often an author is asked at most for `n` cases: five times as many records as are wanted."""
    return 5 * -(-n // BATCH)


def set_folder(path: str | Path) -> PlannedFolder:
    """The folder that a set is built in."""
    return PlannedFolder(Path(path), "_hardedit.json", "set")


def build(
    lm: LanguageModel,
    author: Author,
    *,
    n: int,
    out: str | Path,
    texts: Sequence[str],
    collapse_ratio: float = COLLAPSE_RATIO,
    calls: int | None = None,
    resume: bool = False,
    hparams: Params | None = None,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
) -> Built:
    """Ask the author until `n` cases collapse the model by one ROME edit each, or `calls` are made, or it has no more.

    The edits are those of the model's preset, or of `hparams`. A case is kept if one takes mean perplexity on `texts`
    to `collapse_ratio` times unedited or more (nan counts). Every reply is kept in `out` as soon as it is there, and so
    are its records with their verdicts, so that `resume` repeats no call whose reply arrived; the set itself is
    `hardedit.json`. Raises `EditlibError` for a model that cannot be edited, without second moments, or for a folder
    that holds something else: before the author is asked.
    """
    if n < 1:
        raise EditlibError(f"n={n} is out of range; ask for 1 case or more")
    collapsed(1.0, collapse_ratio)  # raises for one that is none
    session, variants = (
        Session(lm, stats=stats, corpus=corpus),
        variants_of(lm, {"rome": hparams} if hparams else "rome"),
    )
    session.check(variants.values(), texts=texts)
    folder = set_folder(out)
    resumed = folder.check(resume=resume)
    judged = described(session, (), variants, texts)
    plan = json.loads(json.dumps(finite({"author": author.name, "collapse_ratio": collapse_ratio} | judged)))
    if resumed:
        folder.compare(plan)
    made, lines = 0, list[Line]()
    with folder.working(plan):
        for number in range(most_calls(n) if calls is None else calls):
            if len(_accepted(lines)) >= n:
                break
            log.info("call %d; %d of %d cases so far", number + 1, len(_accepted(lines)), n)
            part = folder.path / f"part-{number:05d}.jsonl"
            if not part.is_file():
                layers = moments_of(variants.values())
                stats = stats or (second_moments_of(lm, layers, corpus=corpus) if layers else None)
                reply_file = folder.path / f"reply-{number:05d}.json"
                if not reply_file.is_file():
                    write_json(reply_file, _asked(author, [line["subject"] for line in lines if line["subject"]]))
                    made += 1
                reply = json.loads(reply_file.read_text("utf-8"))
                if reply["records"] == []:
                    break
                edit = partial(sweep, lm, methods=variants, texts=texts, stats=stats, scores=False, progress=False)
                _write_lines(part, _judged(reply, number, lines, edit, collapse_ratio))
            lines += map(json.loads, part.read_text("utf-8").splitlines())
        kept = _accepted(lines)[:n]
        write_json(folder.path / SET, [{key: line[key] for key in WrittenCase.model_fields} for line in kept])
    return Built(folder.path / SET, tuple(kept), tuple(line for line in lines if line["reason"]), made)


def _accepted(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["reason"] is None]


def _asked(author: Author, exclude: Sequence[str]) -> dict[str, Any]:
    """An author's reply to one call: records, none if there are no more, or why there are none."""
    try:
        return {"records": author.write(BATCH, exclude), "reason": None}
    except Unusable as error:
        return {"records": None, "reason": str(error)}


def _write_lines(path: Path, lines: Sequence[Line]) -> None:
    with aside(path) as writing:
        writing.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), "utf-8")


def _judged(
    reply: Mapping[str, Any],
    call: int,
    earlier: Sequence[Line],
    edit: Callable[[Sequence[Case]], pd.DataFrame],
    collapse_ratio: float,
) -> list[Line]:
    """A line for every record of a reply, or one for a reply without: its fields, and why it was rejected, or None."""
    if reply["reason"]:
        return [_line(call, {}, None, reply["reason"])]
    known = {line["subject"].casefold() for line in earlier if line["subject"]}
    written = [_checked(value, known) for value in reply["records"]]
    cases = [one.case(i) for i, one in enumerate(written) if isinstance(one, WrittenCase)]
    edits = edit(cases).set_index("case_id").to_dict("index") if cases else {}
    lines = list[Line]()
    for i, (value, one) in enumerate(zip(reply["records"], written, strict=True)):
        if isinstance(one, str):
            lines.append(_line(call, value, None, one))
        elif isinstance(error := edits[i]["error"], str):
            lines.append(_line(call, one.model_dump(), None, f"the edit failed: {error}"))
        else:
            ratio = edits[i]["perplexity_ratio"]
            reason = None if collapsed(ratio, collapse_ratio) else "the edit does not collapse the model"
            lines.append(_line(call, one.model_dump(), ratio, reason))
    return lines


def _checked(value: Any, known: set[str]) -> WrittenCase | str:
    """A record whose subject is a new one, which is known from now on, or why it is none."""
    try:
        written = WrittenCase.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return " ".join(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ").split())
    if written.subject.casefold() in known:
        return f"subject {written.subject!r} occurred before"
    known.add(written.subject.casefold())
    return written


def _line(call: int, value: Any, ratio: float | None, reason: str | None) -> Line:
    fields = value if isinstance(value, dict) else {}
    texts = {key: fields[key] if isinstance(fields.get(key), str) else None for key in WrittenCase.model_fields}
    return texts | {"call": call, "perplexity_ratio": finite(ratio), "reason": reason}
