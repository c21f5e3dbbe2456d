"""What a model says after a prompt, and how an edit shows there: efficacy, generalization and locality.

Each is scored by three protocols. `es`: the new target is likelier than the true one, and on neighborhood prompts the
true one stays likelier (Meng et al. 2022, section 3.4; compared by mean log-probability per token as in their released
code, so that a longer target is at no disadvantage). `em_tf`: share of the target's tokens that are the likeliest
ones, teacher forced (EasyEdit, used by both papers). `em_ar`: the greedy continuation is the target, all of it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.session import Logits
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import check_length, encode, encode_text, pad, prompt_ids
from editlib.text import is_text

Score = Literal["efficacy", "generalization", "locality"]
Prefixed = Literal["efficacy", "all"]
SCORES: tuple[Score, ...] = ("efficacy", "generalization", "locality")
PROTOCOLS = ("es", "em_tf", "em_ar")
PASS_ROWS = 64  # keeps the logits of a large vocabulary below a gigabyte
NONE = -1  # the likeliest token where the largest logit is not finite


@dataclass(frozen=True)
class AnswerIds:
    """Token ids of an answer and of the prompt before it."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]

    @property
    def fed(self) -> tuple[int, ...]:
        """What a model reads to score every token; the last one is not read."""
        return self.prompt + self.tokens[:-1]


@dataclass(frozen=True)
class Question:
    """A test prompt of one score: the answer asked for, and the one it competes with where there is one."""

    score: Score
    answer: AnswerIds
    rival: AnswerIds | None


@dataclass(frozen=True)
class Prompts:
    """A case's test prompts, tokenised."""

    case: Case
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Reply:
    """What a model makes of one question.

    `picks`: the likeliest token wherever the answer has one, teacher forced. `said`: the greedy continuation by as
    many tokens, ended by end-of-text and, but for locality, by the first token that is not the answer's. `answer` and
    `rival`: mean log-probability per token (nats; nan where there is no rival).
    """

    picks: tuple[int, ...]
    said: tuple[int, ...]
    answer: float
    rival: float


@dataclass(frozen=True)
class Replies:
    """A model's replies to a case's questions, in their order."""

    prompts: Prompts
    replies: tuple[Reply, ...]


def require_templates(prefixes: Sequence[str]) -> None:
    """Raise `EditlibError` unless all prefixes are templates with one `{}`, and there is one."""
    given = [] if isinstance(prefixes, str) or not isinstance(prefixes, Iterable) else list(prefixes)
    bad = next((prefix for prefix in given if not is_text(prefix) or prefix.count("{}") != 1), None)
    if bad is not None or not given:
        raise EditlibError(
            f"prefixes must be a list of templates with one {{}} each, '{{}}' for none (found {bad or prefixes!r})"
        )


def prompts(
    lm: LanguageModel, case: Case, *, prefixes: Sequence[str] = ("{}",), prefixed: Prefixed = "efficacy"
) -> Prompts:
    """Tokenise a case's test prompts, once for all readings of it.

    `prefixes` are templates with one `{}`; each is put before the efficacy prompt, as in the Fall of ROME, or before
    `all` prompts. Neighborhood prompts without an answer are left out. Raises `EditlibError` for a bad prefix, a target
    without tokens, or a prompt longer than the model's context.
    """
    lm.require_causal()
    (case,) = data.cases(case)
    require_templates(prefixes)
    if prefixed not in ("efficacy", "all"):
        raise EditlibError(f"prefixed={prefixed!r} is unknown; use 'efficacy' or 'all'")
    encoded = partial(answer_to, lm, case.request.separator)
    return Prompts(
        case,
        tuple(
            Question(score, encoded(prefix, text, answer), encoded(prefix, text, rival) if rival else None)
            for score, text, answer, rival in _asked(case)
            for prefix in (prefixes if prefixed in (score, "all") else ("{}",))
        ),
    )


def _asked(case: Case) -> Iterator[tuple[Score, str, str, str | None]]:
    """Score, prompt, answer and rival of every test prompt."""
    request = case.request
    new, true = request.target_new, request.target_true
    yield "efficacy", request.text, new, true
    for text in case.paraphrase_prompts:
        yield "generalization", text, new, true
    count = len(case.neighborhood_prompts)
    answers = case.neighborhood_answers or (true,) * count
    if len(answers) != count:
        raise EditlibError(
            f"case {case.case_id} has {count} neighborhood prompts, {len(answers)} answers; give one each"
        )
    for text, answer in zip(case.neighborhood_prompts, answers, strict=True):
        if answer:
            yield "locality", text, answer, new


def answer_to(lm: LanguageModel, separator: str | None, prefix: str, prompt: str, target: str) -> AnswerIds:
    """An answer to a prompt behind a prefix; raises `EditlibError` if both are longer than the model's context."""
    answer = AnswerIds(*encode_text(lm.tokenizer, prefix.replace("{}", prompt, 1), target, separator=separator))
    if lm.max_length is not None and len(answer.fed) > lm.max_length:
        raise EditlibError(
            f"prompt {prompt[:40]!r}... has {len(answer.fed)} tokens with prefix and target, "
            f"the model takes at most {lm.max_length}; shorten it"
        )
    return answer


def read(
    lm: LanguageModel,
    case: Case | Prompts,
    *,
    prefixes: Sequence[str] = ("{}",),
    prefixed: Prefixed = "efficacy",
    logits: Logits | None = None,
) -> Replies:
    """Ask a model, edited or not, everything the scores of a case need; `prompts` already made are taken as they are.

    `logits` are another way to the model's, such as `Session.logits` of an edit that is not applied.

    One batched pass for all answers; more only where a neighborhood prompt's greedy continuation leaves its answer
    before its last token. Up to there, which is enough for the other scores, the teacher-forced picks are what a model
    says greedily.
    """
    lm.require_causal()
    asked = case if isinstance(case, Prompts) else prompts(lm, case, prefixes=prefixes, prefixed=prefixed)
    logits = logits or partial(plain_logits, lm)
    by_answer = heard(lm, logits, {a for q in asked.questions for a in (q.answer, q.rival) if a})
    said = dict[AnswerIds, tuple[int, ...]]()
    for answer, (_, picks) in by_answer.items():  # up to the first wrong one, greedy decoding sees what forcing does
        wrong = (i for i, (pick, token) in enumerate(zip(picks, answer.tokens, strict=True)) if pick != token)
        said[answer] = picks[: next(wrong, len(picks)) + 1]
    said |= _continued(lm, logits, {q.answer: said[q.answer] for q in asked.questions if q.score == "locality"})
    means = {answer: sum(each) / len(each) for answer, (each, _) in by_answer.items()}
    return Replies(
        asked,
        tuple(
            Reply(by_answer[q.answer][1], said[q.answer], means[q.answer], means[q.rival] if q.rival else torch.nan)
            for q in asked.questions
        ),
    )


Heard = tuple[tuple[float, ...], tuple[int, ...]]  # log-probabilities and picks, one of each for every token


def heard(lm: LanguageModel, logits: Logits, answers: Iterable[AnswerIds]) -> dict[AnswerIds, Heard]:
    """What every answer gets; answers of like length share a pass, equal prompts a row."""
    ordered = sorted(answers, key=lambda answer: (len(answer.fed), answer.fed))
    batches = [ordered[start : start + PASS_ROWS] for start in range(0, len(ordered), PASS_ROWS)]
    return {answer: each for batch in batches for answer, each in zip(batch, _forced(lm, logits, batch), strict=True)}


@torch.no_grad()
def _forced(lm: LanguageModel, logits: Logits, answers: Sequence[AnswerIds]) -> list[Heard]:
    """What every answer gets, in one pass."""
    rows = list(dict.fromkeys(answer.fed for answer in answers))
    at = [(rows.index(a.fed), column) for a in answers for column in range(len(a.prompt) - 1, len(a.fed))]
    predicted = logits(rows, at)
    tokens = torch.tensor([token for answer in answers for token in answer.tokens], device=lm.device)
    scores = predicted.log_softmax(-1).gather(1, tokens[:, None])[:, 0].cpu()
    lengths = [len(answer.tokens) for answer in answers]
    pairs = zip(scores.split(lengths), _picks(predicted).cpu().split(lengths), strict=True)
    return [(tuple(own.double().tolist()), tuple(picks.tolist())) for own, picks in pairs]


def plain_logits(lm: LanguageModel, rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
    """A model's logits at (row, position) pairs of some rows of token ids.  # (pairs, vocabulary)"""
    ids, mask = pad(rows, lm.device)
    columns = sorted({column for _, column in at})
    kept = torch.tensor(columns, device=lm.device)
    read = lm.model(input_ids=ids, attention_mask=lm.attended(mask), logits_to_keep=kept).logits
    return widened(read[[row for row, _ in at], [columns.index(column) for _, column in at]])


def _picks(logits: Tensor) -> Tensor:
    """The likeliest tokens; argmax alone would name a token where logits are nan."""
    best = logits.max(-1)
    return best.indices.where(best.values.isfinite(), NONE)


@torch.no_grad()
def _continued(
    lm: LanguageModel, logits: Logits, said: dict[AnswerIds, tuple[int, ...]]
) -> dict[AnswerIds, tuple[int, ...]]:
    """Continuations made as long as their answers, or up to the end of text; one pass a token."""
    said, ends = dict(said), (NONE, lm.tokenizer.eos_token_id)
    while short := [a for a, so_far in said.items() if len(so_far) < len(a.tokens) and so_far[-1] not in ends]:
        rows = [answer.prompt + said[answer] for answer in short]
        picks = _picks(logits(rows, [(i, len(row) - 1) for i, row in enumerate(rows)]))
        said |= {answer: (*said[answer], pick) for answer, pick in zip(short, picks.tolist(), strict=True)}
    return said


def score(case: Case, before: Replies, after: Replies) -> dict[str, float]:
    """Scores of one edit by name, `efficacy_es` to `locality_em_ar`: means over prompts and prefixes, 0 to 1.

    Locality by `em_tf` and `em_ar` compares with the unedited model, not with the truth. A score is nan where the
    case has no such prompts, `es` also where there is no target to compare with. Raises `EditlibError` if the readings
    are of another case or of different prompts.
    """
    if before.prompts != after.prompts or after.prompts.case != case:
        raise EditlibError(f"the readings are not of case {case.case_id} with the same prefixes; read it again")
    by_name: dict[str, list[float]] = {f"{name}_{protocol}": [] for name in SCORES for protocol in PROTOCOLS}
    for question, *replies in zip(after.prompts.questions, before.replies, after.replies, strict=True):
        for protocol, value in zip(PROTOCOLS, _values(question, *replies), strict=True):
            by_name[f"{question.score}_{protocol}"].append(value)
    return {name: sum(values) / len(values) if values else torch.nan for name, values in by_name.items()}


def _values(question: Question, before: Reply, after: Reply) -> tuple[float, float, float]:
    """es, em_tf and em_ar of one question; what is not finite agrees with nothing."""
    tokens = question.answer.tokens
    picks, said = (before.picks, before.said) if question.score == "locality" else (tokens, tokens)
    es = float(after.answer > after.rival) if question.rival else torch.nan
    equal = [pick == expected != NONE for pick, expected in zip(after.picks, picks, strict=True)]
    return es, sum(equal) / len(equal), float(after.said == said and NONE not in said)


@torch.no_grad()
def continuation(lm: LanguageModel, text: str, *, tokens: int = 8) -> str:
    """Greedy continuation of a text, at most `tokens` tokens, stopped at end-of-text or where the context is full.

    Raises `EditlibError` if the text alone is longer than that, or has no token.
    """
    lm.require_causal()
    if not is_text(text):
        raise EditlibError(f"text {text!r} is no text; give a string")
    ids = torch.tensor([prompt_ids(lm.tokenizer, text)], device=lm.device)
    if not ids.numel():
        raise EditlibError(f"text {text!r} has no token to go on from; give a word or more")
    check_length(lm, [text], ids.tolist())
    start = ids.shape[1]
    for _ in range(tokens if lm.max_length is None else min(tokens, lm.max_length - start + 1)):
        best = lm.model(ids).logits[0, -1].argmax()
        if best == lm.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, best[None, None]], dim=1)
    return str(lm.tokenizer.decode(ids[0, start:]))


def target_logprobs(
    lm: LanguageModel, request: EditRequest, target: str, *, logits: Logits | None = None
) -> tuple[float, ...]:
    """Log-probability in nats of each token of `target` after the request's prompt, teacher forced; `logits` as for
    `read`.

    Raises `EditlibError` if they cannot be located, or are more than the model takes.
    """
    lm.require_causal()
    if not is_text(target) or not target.strip():
        raise EditlibError(f"target {target!r} is no text with a token; say what should follow the prompt")
    row = encode(lm.tokenizer, request.prompt, request.subject, target=target, separator=request.separator)
    answer = AnswerIds(row.ids[: row.target], row.wanted)
    check_length(lm, [request.text], [answer.fed])
    ((logprobs, _),) = _forced(lm, logits or partial(plain_logits, lm), [answer])
    return logprobs


def target_probability(lm: LanguageModel, request: EditRequest, target: str, *, logits: Logits | None = None) -> float:
    """Probability of all tokens of `target` together; all else as for `target_logprobs`."""
    return math.exp(sum(target_logprobs(lm, request, target, logits=logits)))
