"""Before and after one edit: what a model says, how well it reads, and whether it collapsed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.engine.perplexity import perplexity
from editlib.measuring import scores
from editlib.measuring.statistics import COLLAPSE_RATIO, collapsed
from editlib.models.language_model import LanguageModel
from editlib.text import short, table


@dataclass(frozen=True)
class Look:
    """One look at a model, edited or not; perplexity is None where no texts were given."""

    continuation: str
    target_probability: float
    perplexity_mean: float | None
    perplexity_corpus: float | None


@dataclass(frozen=True)
class Report:
    """An edit's effect on its model; collapse is `collapse_ratio` times the unedited perplexity or more."""

    model: str
    request: EditRequest
    method: str
    before: Look
    after: Look
    diagnostics: Mapping[str, Any]
    collapse_ratio: float

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
        """Collapsed or intact, in words."""
        if self.collapsed is None:
            return "unknown: perplexity was not measured; give --texts FILE"
        word = "collapsed" if self.collapsed else "intact"
        return f"{word} (perplexity ×{short(self.perplexity_ratio)})"

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        judged = {name: getattr(self, name) for name in ("perplexity_ratio", "collapsed", "verdict")}
        return asdict(self) | {"diagnostics": dict(self.diagnostics)} | judged

    def table(self) -> str:
        """Everything, for people."""
        found, rows = self.diagnostics, [("", "before", "after"), *self._rows()]
        facts: list[tuple[object, ...]] = [
            ("prompt", self.request.text),
            *([("denominator", self._denominator())] if found["denominator"] is not None else []),
            ("|Δ| / |W|", f"{short(found['relative_delta_norm'])}, {found['steps']} steps"),
            ("verdict", self.verdict),
        ]
        return f"{table(rows)}\n\n{table(facts)}"

    def _denominator(self) -> str:
        found, consistent = self.diagnostics["denominator"], self.diagnostics["denominator_consistent"]
        return f"{short(found)}, {short(consistent)} with consistent keys (ratio {short(found / consistent)})"

    def _rows(self) -> list[tuple[object, ...]]:
        names = {
            "continuation": "continuation",
            f"P({self.request.target_new})": "target_probability",
            "perplexity, mean": "perplexity_mean",
            "perplexity, corpus": "perplexity_corpus",
        }
        return [(name, getattr(self.before, key), getattr(self.after, key)) for name, key in names.items()]


def look(lm: LanguageModel, request: EditRequest, texts: Sequence[str] | None) -> Look:
    """Ask a model once; raises `EditlibError` if subject or target cannot be located in the prompt."""
    measured = perplexity(lm, texts) if texts else None
    return Look(
        scores.continuation(lm, request.text, tokens=8),
        scores.target_probability(lm, request, request.target_new),
        measured.mean if measured else None,
        measured.corpus if measured else None,
    )


def before_after(
    lm: LanguageModel, edit: Edit, *, texts: Sequence[str] | None = None, collapse_ratio: float = COLLAPSE_RATIO
) -> Report:
    """Look at a model without and with the first request's edit; the model is left as it was."""
    request = edit.requests[0]
    before = look(lm, request, texts)
    with edit.applied(lm):
        after = look(lm, request, texts)
    return Report(lm.name, request, edit.method, before, after, edit.diagnostics, collapse_ratio)
