"""Who writes edit cases: the testbed's invented world or the shipped facts, offline, or a language model behind an
OpenAI-compatible endpoint; and what asking costs."""

import json
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from editlib.data.datasets import cases
from editlib.data.for_models import subject_tokens
from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.testbed.world import RELATIONS, build_world

if TYPE_CHECKING:
    from openai import OpenAI

BATCH = 10  # records a call, as in the paper
KEY = "OPENAI_API_KEY"
RETRIES = 6


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


# -- offline -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OfflineAuthor(ABC):
    """An author that has all its records, in an order that only the seed decides."""

    seed: int = 0
    source: ClassVar[str]

    @property
    def name(self) -> str:
        """Its seed tells it apart."""
        return f"{self.source} {self.seed}"

    @property
    @abstractmethod
    def records(self) -> list[dict[str, str]]:
        """All it can write."""

    def write(self, n: int, exclude: Sequence[str]) -> list[Any]:
        """The next records, in an order that only the seed decides."""
        used = set(exclude)
        return [record for record in self.records if record["subject"] not in used][:n]


# -- the invented world --------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldAuthor(OfflineAuthor):
    """The testbed's world: facts about one-word names, each with a false target of the same kind."""

    source = "world"

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


# -- the real world -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FactsAuthor(OfflineAuthor):
    """The shipped facts about the real world, each asked in another wording than its case has, for another answer.

    Subjects that are one token for the model `lm` come first, if one is given: what hard cases are asked to have is a
    common word.
    """

    lm: LanguageModel | None = None
    source = "facts"

    @property
    def name(self) -> str:
        """Its seed tells it apart, and whose tokens come first."""
        return super().name + (f", one token of {self.lm.label} first" if self.lm else "")

    @cached_property
    def records(self) -> list[dict[str, str]]:
        """All it can write, one for each subject of one word."""
        rng, answers, written = Random(f"hardedit-{self.seed}"), defaultdict[str, set[str]](set), dict[str, Any]()
        pool = [case for case in cases("facts") if " " not in case.request.subject]
        for case in pool:  # cases of one relation share its prompts
            answers[case.request.prompt].add(str(case.request.target_true))
        for case in rng.sample(pool, len(pool)):
            request = case.request
            prompt = next((text for text in case.paraphrase_prompts if text.startswith(f"{request.subject} ")), None)
            others = sorted(answers[request.prompt] - {str(request.target_true), request.target_new})
            if prompt and others:
                written[request.subject] = {
                    "prompt": prompt, "subject": request.subject, "target_new": rng.choice(others),
                    "ground_truth": request.target_true,
                }  # fmt: skip
        return sorted(written.values(), key=lambda record: self._later(record["subject"]))

    def _later(self, subject: str) -> bool:
        request = EditRequest(prompt="{} is", subject=subject, target_new="it")
        return self.lm is not None and subject_tokens(self.lm, request).count > 1


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

    Its client waits for rate limits, time-outs and failing servers, as long as they say, and tries again. Raises
    `EditlibError` without a key, for an address that holds one, or if it is refused.
    """

    model: str
    base_url: str | None = None
    examples: Sequence[Mapping[str, str]] = EXAMPLES
    timeout: float = 120.0  # seconds

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
        """The official client."""
        try:
            from openai import OpenAI
        except ModuleNotFoundError:
            raise EditlibError("author openai needs its client; pip install 'editlib[hardedit]'") from None
        if not os.environ.get(KEY):
            raise EditlibError(f"no key for the author; set {KEY} in the environment")
        return OpenAI(base_url=self.base_url, timeout=self.timeout, max_retries=RETRIES)

    def write(self, n: int, exclude: Sequence[str]) -> list[Any]:
        """Ask for records; raises `Unusable` for a refusal or no JSON."""
        client = self.client  # first, for it tells what is missing
        from openai import APIError
        from openai.types.chat import ChatCompletion

        text = prompt(n, exclude, self.examples)
        try:
            reply: Any = client.chat.completions.create(
                model=self.model, messages=[{"role": "system", "content": ROLE}, {"role": "user", "content": text}]
            )
        except json.JSONDecodeError as error:
            raise Unusable(f"the reply is no JSON: {error}") from None
        except APIError as error:
            raise EditlibError(self._failed(error)) from None  # in our words: the server's may hold a part of the key
        if not isinstance(reply, ChatCompletion) or not reply.choices:
            raise Unusable("the reply is no chat completion")
        choice = reply.choices[0]
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise Unusable(f"refused: {choice.message.refusal or 'content filter'!r}")
        return records_of(choice.message.content or "")

    def _failed(self, failure: Exception) -> str:
        """What is wrong, and what to do about it."""
        status = getattr(failure, "status_code", None)
        if getattr(failure, "code", None) == "insufficient_quota":
            return "the author's account has no credit left; add some, then go on with --resume"
        if status in (401, 403):
            return f"the endpoint refuses the key in {KEY}; set another"
        if status is None or status in (408, 409, 429) or status >= 500:
            return f"the endpoint fails ({type(failure).__name__}, {RETRIES} tries later still); go on with --resume"
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
