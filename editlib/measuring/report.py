"""Before and after an edit: what a model says, whether the edit holds, how well it reads, and whether it collapsed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.engine.perplexity import perplexity
from editlib.errors import EditlibError
from editlib.measuring import scores
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.text import short, table


@dataclass(frozen=True)
class Answer:
    """What a model says to one request; it holds if the target is what it says, greedily."""

    continuation: str
    target_probability: float
    holds: bool


@dataclass(frozen=True)
class Look:
    """One look at a model, edited or not; perplexity is None where no texts were given."""

    answers: tuple[Answer, ...]
    perplexity_mean: float | None
    perplexity_corpus: float | None


@dataclass(frozen=True)
class Report:
    """An edit's effect on its model; collapse is `collapse_ratio` times the unedited perplexity or more."""

    model: str
    requests: tuple[EditRequest, ...]
    method: str
    before: Look
    after: Look
    diagnostics: Mapping[str, Any]
    collapse_ratio: float

    @property
    def holding(self) -> int:
        """How many of the requests hold after the edit."""
        return sum(answer.holds for answer in self.after.answers)

    @property
    def perplexity_ratio(self) -> float | None:
        """Mean perplexity after over before, or None if it was not measured."""
        if self.before.perplexity_mean is None or self.after.perplexity_mean is None:
            return None
        return self.after.perplexity_mean / self.before.perplexity_mean

    @property
    def collapsed(self) -> bool | None:
        """Whether the model collapsed (nan has collapsed too), or None if perplexity was not measured."""
        return None if self.perplexity_ratio is None else collapsed(self.perplexity_ratio, self.collapse_ratio)

    @property
    def verdict(self) -> str:
        """Collapsed or intact, in words; intact is no praise where the edit did nothing, so that is said."""
        if self.collapsed is None:
            return "unknown: perplexity was not measured; give --texts NAME or FILE"
        word = "collapsed" if self.collapsed else "intact"
        failed = len(self.requests) - self.holding
        many = "the edit does" if len(self.requests) == 1 else f"{failed} of {len(self.requests)} edits do"
        return f"{word} (perplexity ×{short(self.perplexity_ratio)}){f', but {many} not hold' if failed else ''}"

    def record(self) -> dict[str, Any]:
        """Everything, for JSON: `request`, `before` and `after` are of the first request, `requests` of all."""
        said = [
            {"request": asdict(request), "before": asdict(before), "after": asdict(after)}
            for request, before, after in zip(self.requests, self.before.answers, self.after.answers, strict=True)
        ]
        looks = {"before": self.before, "after": self.after}
        measured = {
            when: said[0][when] | {name: getattr(look, name) for name in ("perplexity_mean", "perplexity_corpus")}
            for when, look in looks.items()
        }
        judged = {name: getattr(self, name) for name in ("holding", "perplexity_ratio", "collapsed", "verdict")}
        about = {"model": self.model, "method": self.method, "collapse_ratio": self.collapse_ratio}
        return about | said[0] | measured | judged | {"requests": said, "diagnostics": dict(self.diagnostics)}

    def table(self) -> str:
        """Everything, for people."""
        measured = [
            ("perplexity, mean", self.before.perplexity_mean, self.after.perplexity_mean),
            ("perplexity, corpus", self.before.perplexity_corpus, self.after.perplexity_corpus),
        ]
        facts: list[tuple[object, ...]] = []
        rows: list[tuple[object, ...]]
        if len(self.requests) == 1:
            (request,), (before,), (after,) = self.requests, self.before.answers, self.after.answers
            rows = [
                ("continuation", before.continuation, after.continuation),
                (f"P({request.target_new})", before.target_probability, after.target_probability),
                ("edit holds", *("yes" if answer.holds else "no" for answer in (before, after))),
            ]
            facts = [("prompt", request.text)]
        else:
            pairs = zip(self.requests, self.before.answers, self.after.answers, strict=True)
            rows = [
                (f"P({request.target_new} | {request.text})", before.target_probability, after.target_probability)
                for request, before, after in pairs
            ]
            count = len(self.requests)
            held = sum(answer.holds for answer in self.before.answers)
            rows.append(("edits hold", f"{held} of {count}", f"{self.holding} of {count}"))
        denominator, consistent = (self.diagnostics[name] for name in ("denominator", "denominator_consistent"))
        if denominator is not None:
            ratio = f"{short(consistent)} with consistent keys (ratio {short(denominator / consistent)})"
            facts.append(("denominator", f"{short(denominator)}, {ratio}"))
        norm, steps = self.diagnostics["relative_delta_norm"], self.diagnostics["steps"]
        facts += [("|Δ| / |W|", f"{short(norm)}, {steps} steps"), ("verdict", self.verdict)]
        return f"{table([('', 'before', 'after'), *rows, *measured])}\n\n{table(facts)}"


def look(lm: LanguageModel, requests: Sequence[EditRequest], texts: Sequence[str] | None, *, bos: bool) -> Look:
    """Ask a model once; raises `EditlibError` if subject or target cannot be located in a prompt."""
    answers = []
    for request in requests:
        reading = scores.read(lm, Case(0, request))
        tokens, reply = reading.prompts.questions[0].answer.tokens, reading.replies[0]
        probability = math.exp(reply.answer * len(tokens))
        answers.append(Answer(scores.continuation(lm, request.text, tokens=8), probability, reply.said == tokens))
    measured = perplexity(lm, texts, bos=bos) if texts else None
    return Look(tuple(answers), measured.mean if measured else None, measured.corpus if measured else None)


def before_after(
    lm: LanguageModel,
    edit: Edit,
    *,
    texts: Sequence[str] | None = None,
    bos: bool = False,
    collapse_ratio: float = COLLAPSE_RATIO,
) -> Report:
    """Look at a model without and with an edit; the model is left as it was. Texts and `bos` are `perplexity`'s.

    Raises `EditlibError` for a model that is broken before the edit, which no edit could break.
    """
    before = look(lm, edit.requests, texts, bos=bos)
    if before.perplexity_mean is not None and math.isnan(before.perplexity_mean):
        raise EditlibError(f"{lm.label} has perplexity nan before any edit; its weights are damaged, get it again")
    with edit.applied(lm):
        after = look(lm, edit.requests, texts, bos=bos)
    return Report(lm.name, tuple(edit.requests), edit.method, before, after, edit.diagnostics, collapse_ratio)
