"""Building a set like HardEdit: an author writes edit cases, and those that collapse a model are kept.

The recipe is that of the Butterfly Effect paper (Yang et al. 2024, slides p. 23): cases are written ten at a time after
the pattern of known hard ones, and a single ROME edit of a given model is the filter. The author is a language model
behind an OpenAI-compatible endpoint or, offline, the testbed's invented world.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import hparams_for
from editlib.editing.stats import Stats, second_moments_of
from editlib.errors import EditlibError
from editlib.files import aside, write_json
from editlib.models.language_model import LanguageModel
from editlib.sweeps.single import moment_layers, sweep
from editlib.testbed.world import RELATIONS
from editlib.testbed.world import build as build_world
from editlib.text import finite

if TYPE_CHECKING:
    from openai import OpenAI

BATCH = 10  # records a call, as in the paper
PLAN, SET = "_hardedit.json", "hardedit.json"
KEY = "OPENAI_API_KEY"


class Unusable(Exception):
    """A reply without records: a refusal, or no JSON; the message says which."""


class Author(Protocol):
    """Whoever writes records."""

    @property
    def name(self) -> str:
        """Which author this is; a set has one."""

    def write(self, n: int, exclude: Sequence[str]) -> list[Any]:
        """Up to `n` new records, none if there are no more; their subjects should not be excluded ones. Raises
        `Unusable`."""


class Record(BaseModel):
    """One case in EasyEdit's fields, checked: a one-word subject begins the prompt, and both targets differ."""

    model_config = ConfigDict(frozen=True, strict=True, str_strip_whitespace=True, str_min_length=1)
    prompt: str
    subject: str
    target_new: str
    ground_truth: str

    @model_validator(mode="after")
    def _checked(self) -> "Record":
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


# -- the set -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """What building came to: the cases kept, in a file in EasyEdit's form, why others were not, and calls made now."""

    path: Path
    accepted: tuple[dict[str, Any], ...]
    rejected: tuple[dict[str, Any], ...]
    calls: int


def most_calls(n: int) -> int:
    """How often an author is asked at most for `n` cases: five times as many records as are wanted."""
    return 5 * -(-n // BATCH)


def build(
    lm: LanguageModel,
    author: Author,
    *,
    n: int,
    out: str | Path,
    texts: Sequence[str],
    collapse_ratio: float = 5.0,
    calls: int | None = None,
    resume: bool = False,
    stats: Stats | None = None,
    corpus: Sequence[str] | None = None,
) -> Built:
    """Ask the author until `n` cases collapse the model by one ROME edit each, or `calls` are made, or it has no more.

    A case is kept if the edit takes mean perplexity on `texts` to `collapse_ratio` times unedited or more (nan counts).
    Every reply is kept in `out` as soon as it is there, and so are its records with their verdicts, so that `resume`
    repeats no call whose reply arrived; the set itself is `hardedit.json`. Raises `EditlibError` for a folder that
    holds something else.
    """
    if n < 1:
        raise EditlibError(f"n={n} is out of range; ask for 1 case or more")
    folder, lines, made = Path(out), list[dict[str, Any]](), 0
    _open(folder, _plan(lm, author, texts, collapse_ratio), resume=resume)
    judge = _Judge(lm, texts, collapse_ratio, stats, corpus)
    for number in range(most_calls(n) if calls is None else calls):
        if len(_accepted(lines)) >= n:
            break
        part = folder / f"part-{number:05d}.jsonl"
        if not part.is_file():
            made += _ask(folder, number, author, [line["subject"] for line in lines if line["subject"]])
            reply = json.loads(_reply(folder, number).read_text("utf-8"))
            if reply["records"] == []:
                break
            _write_lines(part, _judged(judge, reply, number, lines))
        lines += map(json.loads, part.read_text("utf-8").splitlines())
    kept = _accepted(lines)[:n]
    write_json(folder / SET, [{key: line[key] for key in Record.model_fields} for line in kept])
    return Built(folder / SET, tuple(kept), tuple(line for line in lines if line["reason"]), made)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse with `EditlibError` a folder that cannot be used."""
    if folder.exists() and not folder.is_dir():
        raise EditlibError(f"output {folder} is a file, not a folder; choose another")
    if (folder / PLAN).is_file():
        if not resume:
            raise EditlibError(
                f"output folder {folder} holds a set already; resume it (resume=True, --resume) or choose another"
            )
    elif folder.exists() and any(path.suffix != ".writing" for path in folder.iterdir()):
        raise EditlibError(f"output folder {folder} is not empty and holds no set; choose another")


def _plan(lm: LanguageModel, author: Author, texts: Sequence[str], collapse_ratio: float) -> dict[str, Any]:
    """What verdicts follow from; more cases may be asked for later."""
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return {"author": author.name, "model": lm.fingerprint, "texts": digest, "collapse_ratio": collapse_ratio}


def _open(folder: Path, plan: Mapping[str, Any], *, resume: bool) -> None:
    check_folder(folder, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN).is_file():
        return write_json(folder / PLAN, plan)
    before = json.loads((folder / PLAN).read_text("utf-8"))
    differs = next((key for key in plan if before.get(key) != plan[key]), None)
    if differs:
        raise EditlibError(f"output folder {folder} holds a set that differs in its {differs}; choose another")


def _accepted(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["reason"] is None]


def _reply(folder: Path, number: int) -> Path:
    return folder / f"reply-{number:05d}.json"


def _ask(folder: Path, number: int, author: Author, exclude: Sequence[str]) -> bool:
    """Keep the author's reply; whether a call was made for it."""
    if _reply(folder, number).is_file():
        return False
    reply: dict[str, Any]
    try:
        reply = {"records": author.write(BATCH, exclude), "reason": None}
    except Unusable as error:
        reply = {"records": None, "reason": str(error)}
    write_json(_reply(folder, number), reply)
    return True


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with aside(path) as place:
        place.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), "utf-8")


# -- verdicts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """Which cases collapse a model."""

    lm: LanguageModel
    texts: Sequence[str]
    collapse_ratio: float
    given: Stats | None
    corpus: Sequence[str] | None

    @cached_property
    def stats(self) -> Stats:
        """Second moments for all edits."""
        return self.given or second_moments_of(
            self.lm, moment_layers([hparams_for(self.lm, "rome")]), corpus=self.corpus
        )

    def verdicts(self, cases: Sequence[Case]) -> Iterator[tuple[float | None, str | None]]:
        """Of each case perplexity over unedited, and why it is no hard one, or None."""
        if not cases:
            return
        options: dict[str, Any] = {"scores": False, "stats": self.stats, "progress": False}
        table = sweep(self.lm, cases, methods=["rome"], texts=self.texts, **options)
        for error, ratio in zip(table["error"], table["perplexity_ratio"], strict=True):
            if isinstance(error, str):
                yield None, f"the edit failed: {error}"
            else:
                yield ratio, "the edit does not collapse the model" if ratio < self.collapse_ratio else None


def _judged(
    judge: _Judge, reply: Mapping[str, Any], call: int, earlier: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A line for every record of a reply, or one for a reply without: its fields, and why it was rejected, or None."""
    if reply["reason"]:
        return [_line(call, {}, None, reply["reason"])]
    known = {line["subject"].casefold() for line in earlier if line["subject"]}
    found: list[tuple[Any, Record | str]] = [(value, _checked(value, known)) for value in reply["records"]]
    verdicts = judge.verdicts([record.case(i) for i, (_, record) in enumerate(found) if isinstance(record, Record)])
    return [
        _line(call, value, None, record)
        if isinstance(record, str)
        else _line(call, record.model_dump(), *next(verdicts))
        for value, record in found
    ]


def _checked(value: Any, known: set[str]) -> Record | str:
    """A record whose subject is a new one, which is known from now on, or why it is none."""
    try:
        record = Record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return " ".join(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ").split())
    if record.subject.casefold() in known:
        return f"subject {record.subject!r} occurred before"
    known.add(record.subject.casefold())
    return record


def _line(call: int, value: Any, ratio: float | None, reason: str | None) -> dict[str, Any]:
    fields = value if isinstance(value, dict) else {}
    texts = {key: fields[key] if isinstance(fields.get(key), str) else None for key in Record.model_fields}
    return texts | {"call": call, "perplexity_ratio": finite(ratio), "reason": reason}


# -- the invented world as author ----------------------------------------------------------------------


@dataclass(frozen=True)
class WorldAuthor:
    """The testbed's world: facts about one-word names, each with a false target of the same kind."""

    seed: int = 0

    @property
    def name(self) -> str:
        """Its seed tells it apart."""
        return f"world {self.seed}"

    @cached_property
    def records(self) -> list[dict[str, str]]:
        """All it can write, one for each name."""
        world, rng = build_world(), Random(f"hardedit-{self.seed}")
        facts = [fact for fact in world.facts if RELATIONS[fact.relation].editable and " " not in fact.subject]
        rng.shuffle(facts)
        return [
            {
                "prompt": rng.choice(RELATIONS[fact.relation].first).replace("{}", fact.subject),
                "subject": fact.subject,
                "target_new": rng.choice(
                    [name for name in world.names[RELATIONS[fact.relation].object] if name != fact.object]
                ),
                "ground_truth": fact.object,
            }
            for fact in {fact.subject: fact for fact in facts}.values()
        ]

    def write(self, n: int, exclude: Sequence[str]) -> list[Any]:
        """The next records, in an order that only the seed decides."""
        used = set(exclude)
        return [record for record in self.records if record["subject"] not in used][:n]


# -- a language model as author ------------------------------------------------------------------------

EXAMPLES = (
    {"prompt": "Lisbon is a city in", "subject": "Lisbon", "target_new": "Norway", "ground_truth": "Portugal"},
    {"prompt": "Copper is a kind of", "subject": "Copper", "target_new": "wood", "ground_truth": "metal"},
    {"prompt": "Rugby is played with a", "subject": "Rugby", "target_new": "puck", "ground_truth": "ball"},
)
ROLE = "You write test data for research on language models. You answer with JSON and nothing else."
TASK = """Write {n} records as one JSON list of objects, each with the fields prompt, subject, target_new, ground_truth.

- subject: exactly one common word with one clear meaning. Vary the kind: places, brands, animals, sports, works.
- prompt: the beginning of a sentence. Its first word is the subject, and it stops right before the answer.
- ground_truth: the noun that makes the sentence true.
- target_new: another noun of the same kind that reads as well, but makes the sentence clearly false.
- Vary the relation between subject and answer, and use every subject once.
- Subjects not to be used again: {exclude}

Examples of records:
{examples}"""


@dataclass(frozen=True)
class OpenAIAuthor:
    """A language model behind an OpenAI-compatible endpoint; its key is read from OPENAI_API_KEY, and kept nowhere.

    Rate limits, time-outs and failing servers are waited for, `tries` times in all: as long as the server says, else
    twice as long each time. Raises `EditlibError` without a key, for an address that holds one, or if it is refused.
    """

    model: str
    base_url: str | None = None
    examples: Sequence[Mapping[str, str]] = EXAMPLES
    timeout: float = 120.0  # seconds
    tries: int = 6
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url or "")
        if address.query or address.username:
            raise EditlibError(f"address of {address.hostname} must hold no key; set {KEY} in the environment")

    @property
    def name(self) -> str:
        """Model and address."""
        return f"openai {self.model} {self.base_url or ''}".strip()

    @cached_property
    def client(self) -> "OpenAI":
        """The official client, which leaves waiting to us."""
        try:
            from openai import OpenAI
        except ModuleNotFoundError:
            raise EditlibError("author openai needs its client; pip install 'editlib[hardedit]'") from None
        if not os.environ.get(KEY):
            raise EditlibError(f"no key for the author; set {KEY} in the environment")
        return OpenAI(base_url=self.base_url, timeout=self.timeout, max_retries=0)

    def write(self, n: int, exclude: Sequence[str]) -> list[Any]:
        """Ask for records; raises `Unusable` for a refusal or no JSON."""
        reply = self._asked(prompt(n, exclude, self.examples))
        from openai.types.chat import ChatCompletion

        if not isinstance(reply, ChatCompletion) or not reply.choices:
            raise Unusable("the reply is no chat completion")
        choice = reply.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise Unusable(f"refused: {choice.message.refusal or 'content filter'!r}")
        return records_of(choice.message.content or "")

    def _asked(self, text: str) -> Any:
        """The reply, after as many tries as it takes."""
        ask = self.client.chat.completions.create  # first, for it tells what is missing
        from openai import APIError

        for attempt in range(self.tries):
            try:
                return ask(
                    model=self.model,
                    messages=[{"role": "system", "content": ROLE}, {"role": "user", "content": text}],
                )
            except json.JSONDecodeError as error:
                raise Unusable(f"the reply is no JSON: {error}") from None
            except APIError as error:
                failure = error
            if refused := self._refused(failure):
                raise EditlibError(refused)  # in our words: the server's may hold a part of the key
            if attempt + 1 < self.tries:
                self.sleep(_wait(failure, attempt))
        said = type(failure).__name__
        raise EditlibError(f"the endpoint failed {self.tries} times, at last with {said}; go on later with --resume")

    def _refused(self, failure: Exception) -> str | None:
        """Why trying again is of no use, or None."""
        status = getattr(failure, "status_code", None)
        if getattr(failure, "code", None) == "insufficient_quota":
            return "the author's account has no credit left; add some, then go on with --resume"
        if status in (401, 403):
            return f"the endpoint refuses the key in {KEY}; set another"
        if status is None or status in (408, 409, 429) or status >= 500:
            return None
        return f"the endpoint refuses model {self.model} (status {status}); check both"


def prompt(n: int, exclude: Sequence[str], examples: Sequence[Mapping[str, str]] = EXAMPLES) -> str:
    """What a language model is asked for."""
    return TASK.format(n=n, exclude=", ".join(exclude) or "none yet", examples=json.dumps(list(examples), indent=1))


def records_of(text: str) -> list[Any]:
    """The list in a reply, also if it is fenced or the only value of an object; raises `Unusable`."""
    body = re.sub(r"^```\w*\s*|\s*```$", "", text.strip())
    try:
        value = json.loads(body)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # it is going to be written
    except (ValueError, RecursionError) as error:
        raise Unusable(f"the reply is no JSON: {' '.join(text.split())[:200]!r}") from error
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if not isinstance(value, list) or not value:
        raise Unusable("the reply is no list of records")
    return value


def _wait(error: Exception, attempt: int) -> float:
    """Seconds to the next try."""
    response = getattr(error, "response", None)
    said = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(said) if re.fullmatch(r"\d+(\.\d+)?", said) else 2.0**attempt, 120.0)


# -- what it costs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What asking costs at most; `money` is None where prices are not known."""

    calls: int
    tokens_in: int
    tokens_out: int
    money: float | None

    def __str__(self) -> str:
        price = "at unknown prices" if self.money is None else f"or {self.money:.2f} in the prices' currency"
        return f"at most {self.calls} calls, about {self.tokens_in:,} tokens in and {self.tokens_out:,} out, {price}"


def estimate(calls: int, *, price_in: float | None = None, price_out: float | None = None) -> Estimate:
    """Tokens of so many calls, at four characters each and 50 a record; prices are per million tokens."""
    subject = "Thunder"
    sent = sum(len(ROLE) + len(prompt(BATCH, [subject] * BATCH * call)) for call in range(calls)) // 4
    received = 50 * BATCH * calls
    known = price_in is not None and price_out is not None
    money = (sent * (price_in or 0) + received * (price_out or 0)) / 1e6 if known else None
    return Estimate(calls, sent, received, money)
