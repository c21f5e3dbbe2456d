"""A table filled part by part, by this process or by workers; only this process writes.

A part is what its cases are worked out together as, since the last bits of results depend on it. If it costs workers
it is taken apart until single cases do, and then made once more, whole, without those: what rows there are and what
they hold follows from the cases alone.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from socket import gethostname
from typing import Any, Protocol

import pandas as pd

from editlib.cluster.driver import Assignment, distribute
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.editing.stats import MomentOptions, Stats, second_moments_of
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.reference import Reference
from editlib.sweeps.rows import bar

log = logging.getLogger(__name__)

Make = Callable[[int, Sequence[int]], pd.DataFrame]  # rows of some cases of a part, all of a case together


class Filled(Protocol):
    """A table that is filled."""

    def write(self, number: int, cases: Sequence[int], rows: pd.DataFrame) -> int:
        """Keep the rows of a part, made of these of its cases; how many cases more are done."""

    def dead(self, number: int, case: int, reason: str) -> pd.DataFrame:
        """The rows of a case of which only can be said why there are no more."""


def fill(
    lm: LanguageModel,
    into: Filled,
    tasks: Sequence[tuple[int, tuple[int, ...]]],
    *,
    here: Callable[[], Make],
    there: Callable[[], "Begin"],
    workers: Workers | None,
    total: int,
    done: int,
    progress: bool,
) -> None:
    """Make parts of a table, given by number and cases: in this process by what `here` gives, or by workers, each by
    what `there` gives, once it has the model."""
    if workers is None:
        with bar(lm, total, done, "case", progress) as shown:
            make = here()
            for number, cases in tasks:
                shown.update(into.write(number, cases, make(number, cases)))
        return
    job = Making(Reference.of(lm, gpus=workers.gpus, threads=workers.cpus), there())
    told = Progress(total, workers, done=done, name=lm.name, shown=progress)
    distribute(job, [Assignment(each) for each in tasks], Filling(into, told), workers, told)


Begin = Callable[[LanguageModel], Make]


@dataclass(frozen=True)
class Making:
    """What workers do for a table."""

    model: Reference
    make: Begin

    def begin(self) -> Callable[[tuple[int, tuple[int, ...]]], pd.DataFrame]:
        """Load the model, and what `make` needs."""
        make = self.make(self.model.load())
        return lambda what: make(*what)


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `EditlibError` where rows would follow from something else here than where they were planned."""
    differs = next((key for key in found if key != "moments" and found[key] != wanted[key]), None)
    if differs:
        raise EditlibError(
            f"{gethostname()} has other {differs} than the sweep's plan; give all machines the same files"
        )


def moments_for(
    lm: LanguageModel,
    layers: Sequence[int],
    *,
    stats: Stats | None,
    corpus: Sequence[str] | None,
    options: MomentOptions | None,
    workers: Workers | None,
) -> Stats | None:
    """Second moments as workers are given them; None for no layers."""
    if stats or not layers:
        return stats
    return second_moments_of(lm, layers, corpus=corpus, **asdict(options or MomentOptions()), workers=workers)


@dataclass
class Apart:
    """A part that is taken apart."""

    cases: tuple[int, ...]
    rows: dict[int, pd.DataFrame] = field(default_factory=dict)  # by case
    deadly: set[int] = field(default_factory=set)
    last: bool = False  # whether it is made whole again, without the deadly ones


class Filling:
    """A ledger of parts; a task is a part's number and some of its cases."""

    def __init__(self, into: Filled, told: Progress) -> None:
        self.into, self.told, self.apart = into, told, dict[int, Apart]()

    def done(self, what: tuple[int, tuple[int, ...]], result: pd.DataFrame) -> list[Assignment]:
        """Keep a part that is whole; else see what is left of it to do."""
        number, cases = what
        apart = self.apart.get(number)
        if apart is None:
            self.told.update(self.into.write(number, cases, result))
            return []
        width = len(result) // len(cases)
        apart.rows |= {case: result.iloc[i * width : (i + 1) * width] for i, case in enumerate(cases)}
        return self._rest(number, apart)

    def lost(self, what: tuple[int, tuple[int, ...]], why: str) -> list[Assignment]:
        """Take a part apart; a single case that costs workers is a row that says so."""
        number, cases = what
        apart = self.apart.setdefault(number, Apart(cases))
        log.warning("part %d: workers were lost over %d of its cases: %s", number, len(cases), why)
        if apart.last:
            log.warning("part %d is made in pieces, so that its last bits may be others", number)
            return self._rest(number, apart)
        if len(cases) == 1:
            apart.deadly.add(cases[0])
            apart.rows[cases[0]] = self.into.dead(number, cases[0], f"two workers were lost over this case: {why}")
            return self._rest(number, apart)
        half = len(cases) // 2
        halves = cases[:half], cases[half:]
        return [Assignment((number, piece), lives=2 if len(piece) == 1 else 1) for piece in halves]

    def _rest(self, number: int, apart: Apart) -> list[Assignment]:
        """Once every case is known to be harmless or not: the harmless ones together, and then all that there is."""
        left = tuple(case for case in apart.cases if case not in apart.deadly)
        if len(apart.rows) < len(apart.cases):
            return []
        if left and not apart.last:
            apart.last = True
            return [Assignment((number, left))]
        rows = pd.concat([apart.rows[case] for case in apart.cases], ignore_index=True)
        self.told.update(self.into.write(number, apart.cases, rows))
        return []
