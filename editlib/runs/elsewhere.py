"""Analyses executed by workers, one at a time each, in the project's folder, which all machines share."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import gethostname
from typing import Any

from editlib.cluster.driver import Assignment, distribute
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.errors import EditlibError

Execute = Callable[..., Any]  # of a name, with root and options: what became of the analysis


@dataclass(frozen=True)
class Executing:
    """What workers do for a project."""

    execute: Execute
    root: Path
    threads: int
    options: Mapping[str, Any]

    def begin(self) -> Callable[[str], Any]:
        """See that the project is here."""
        if not (self.root / "notebooks").is_dir():
            raise EditlibError(
                f"project folder {self.root} is not on {gethostname()}; put it on a disk that all machines share"
            )
        os.environ["OMP_NUM_THREADS"] = str(self.threads)  # read by the notebooks' kernels when they start
        return self._execute

    def _execute(self, name: str) -> Any:
        return self.execute(name, root=self.root, tell=lambda event: None, **self.options)


@dataclass
class Outcomes:
    """A ledger of what became of analyses, by name."""

    told: Progress
    found: dict[str, Any] = field(default_factory=dict)  # a word why for one that cost workers

    def done(self, what: str, result: Any) -> Sequence[Assignment]:
        """Take one."""
        self.found[what] = result
        self.told.update(1)
        return []

    def lost(self, what: str, why: str) -> Sequence[Assignment]:
        """The others go on."""
        return self.done(what, why)


def executed(
    execute: Execute, names: Sequence[str], *, root: Path, workers: Workers, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Have analyses executed by workers: by name what became of each, or a word why two workers were lost over it."""
    told = Progress(len(names), workers, unit="analysis", name="runs")
    job = Executing(execute, root.resolve(), workers.cpus, options)
    patient = replace(workers, timeout=workers.timeout or math.inf)  # one may take a hundred times as long as another
    outcomes = Outcomes(told)
    distribute(job, [Assignment(name) for name in names], outcomes, patient, told)
    return outcomes.found
