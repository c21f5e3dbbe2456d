"""How far what a model believes is from what it should believe, and whether it agrees with itself.

A belief is the probability of an answer, all its tokens teacher forced, as a share of that of all answers there are. So
beliefs add up to one, and what a model would rather say than any of them is told apart (`mass`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from editlib.errors import EditlibError
from editlib.measuring.scores import AnswerIds, answer_to, heard, plain_logits
from editlib.models.language_model import LanguageModel

Beliefs = NDArray[np.float64]


@dataclass(frozen=True)
class Believed:
    """A model's beliefs in the options of one question, in their order, and the probability of all of them together."""

    shares: Beliefs
    mass: float


def believed(lm: LanguageModel, questions: Sequence[tuple[str, Sequence[str]]]) -> list[Believed]:
    """What a model, edited or not, believes of each question, a prompt and its options.

    All options of all questions share passes. Where a model has no finite logits, every share is nan. Raises
    `EditlibError` for a question without options, or longer than the model's context.
    """
    lm.require_causal()
    answers = list[list[AnswerIds]]()
    for prompt, options in questions:
        if not options:
            raise EditlibError(f"question {prompt[:40]!r} has no options; give at least one")
        answers.append([answer_to(lm, None, "{}", prompt, option) for option in options])
    by_answer = heard(lm, partial(plain_logits, lm), {a for options in answers for a in options})
    return [_shares(np.array([sum(by_answer[answer][0]) for answer in options])) for options in answers]


def _shares(logs: Beliefs) -> Believed:
    return Believed(softmax(logs), float(np.exp(logs).sum()))


def distance(believed: Beliefs, wanted: Mapping[str, float] | Beliefs) -> float:
    """Total variation distance of two beliefs in the same options, 0 to 1; 1 where the first is not finite: it is no
    belief."""
    other = np.array(list(wanted.values())) if isinstance(wanted, Mapping) else wanted
    return float(np.abs(believed - other).sum() / 2) if np.isfinite(believed).all() else 1.0


def incoherence(a: float, not_a: float, b: float, both: float, swapped: float, either: float) -> dict[str, float]:
    """By how much probabilities of two statements, of one negated, and of both joined miss what holds of any.

    `negation` is |P(a) + P(not a) - 1|, `order` |P(a and b) - P(b and a)|, `sum` |P(a) + P(b) - P(a and b) - P(a or
    b)|. That P(a and b) be P(a) P(b), which Hase et al. (2024) ask for, holds of independent statements only.
    """
    return {"negation": abs(a + not_a - 1), "order": abs(both - swapped), "sum": abs(a + b - both - either)}
