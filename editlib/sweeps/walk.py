"""Sequences walked by workers: each goes on with one from part to part, and another one takes over where it is lost."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from editlib.cluster.driver import Assignment, distribute
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.editing.method import moments_of
from editlib.editing.session import Session
from editlib.editing.stats import Stats
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.reference import Reference
from editlib.sweeps.chain import Chain
from editlib.sweeps.filling import require_same
from editlib.sweeps.plan import described
from editlib.sweeps.steps import Checkpoints, part_of

if TYPE_CHECKING:
    from editlib.sweeps.sequential import SequencePlan

What = tuple[int, Mapping[str, Tensor] | None]  # number of a part, and the weights it begins with


def walk(
    lm: LanguageModel,
    plan: "SequencePlan",
    stats: Stats | None,
    todo: Mapping[str, Sequence[int]],
    checkpoints: Checkpoints,
    workers: Workers,
    told: Progress,
) -> None:
    """Have the parts made that each sequence lacks; raises `EditlibError` for one that cannot be, after the others."""
    steps = Steps(plan, todo, checkpoints, told)
    job = Walking(Reference.of(lm, gpus=workers.gpus, threads=workers.cpus), plan, stats)
    distribute(
        job,
        [Assignment((numbers[0], checkpoints.begins(numbers[0]))) for numbers in todo.values() if numbers],
        steps,
        workers,
        told,
    )
    if steps.stuck:
        raise EditlibError("; ".join(steps.stuck))


@dataclass
class Steps:
    """A ledger of parts, each of which is behind the one before."""

    plan: "SequencePlan"
    todo: Mapping[str, Sequence[int]]
    checkpoints: Checkpoints
    told: Progress
    stuck: list[str] = field(default_factory=list)

    def done(self, what: What, result: tuple[pd.DataFrame, Mapping[str, Tensor] | None]) -> list[Assignment]:
        """Keep a part; the next one begins with what it left."""
        number, (made, after) = what[0], result
        span = self.plan.spans[number]
        self.checkpoints.write(number, made, after)
        self.told.update(0 if span.retest else sum(step > 0 for step in span.steps))
        return [Assignment((number + 1, after))] if number + 1 in self.todo[span.method] else []

    def lost(self, what: What, why: str) -> list[Assignment]:
        """No step can be left out: the sequence ends here."""
        span = self.plan.spans[what[0]]
        at = f"steps {span.steps[0]} to {span.steps[-1]}"
        self.stuck.append(f"{span.method}: two workers were lost over {at}: {why}; what is before them is kept")
        return []


@dataclass(frozen=True)
class Walking:
    """What workers do for sequences."""

    model: Reference
    plan: "SequencePlan"
    stats: Stats | None

    def begin(self) -> Callable[[What], Any]:
        """Load the model and its second moments."""
        plan, session = self.plan, Session(self.model.load(), stats=self.stats)
        require_same(described(session, plan.cases, plan.variants, plan.texts), plan.record)
        session.load_moments(moments_of(plan.variants.values()))
        return Walker(session, plan)


class Walker:
    """Goes on with a sequence if it is there already, and takes it up otherwise."""

    def __init__(self, session: Session, plan: "SequencePlan") -> None:
        self.session, self.plan = session, plan
        self.chain: Chain | None = None
        self.open, self.unedited, self.next = ExitStack(), 0.0, -1

    def __call__(self, what: What) -> tuple[pd.DataFrame, Mapping[str, Tensor] | None]:
        """Rows of a part, and what the model is like after it, if a file can hold that and there is more to come."""
        number, begins = what
        span, spans = self.plan.spans[number], self.plan.spans
        if self.chain is None or (self.chain.name, self.next) != (span.method, number):
            self._take_up(number, begins)
        assert self.chain
        made, self.next = part_of(self.chain, span, self.unedited), number + 1
        more = number + 1 < len(spans) and spans[number + 1].method == span.method
        after = self.chain.tensors() if more else None
        return made, after and {name: tensor.detach().cpu() for name, tensor in after.items()}

    def _take_up(self, number: int, begins: Mapping[str, Tensor] | None) -> None:
        """Have the edits before a part: from what they left, or else by making them again."""
        name = self.plan.spans[number].method
        self.open.close()
        self.chain = self.open.enter_context(Chain(self.session, self.plan, name))
        self.unedited = self.chain.perplexity().mean
        if begins is not None:
            self.chain.take(begins)
        else:
            for span in self.plan.spans[:number]:
                if span.method == name:
                    part_of(self.chain, span, self.unedited)
