"""Tasks shared out: who has which, who was lost over it, and what is done about that.

Ray restarts no worker and repeats no task by itself: one poison task would take worker after worker for ever.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from editlib.cluster.connection import connected, room
from editlib.cluster.progress import Progress
from editlib.cluster.worker import Job, Worker, versions
from editlib.cluster.workers import Workers
from editlib.errors import EditlibError

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds to wait for an answer before looking around
LOOK = 5.0  # seconds from one count of the nodes to the next
STILLBORN = 3  # workers for each place that may die before one gets ready
SLACK, LEAST = 20, 600.0  # a task hangs that takes so many times the longest one, and so many seconds


@dataclass(eq=False)
class Assignment:
    """What a worker is sent, and how many workers that may cost."""

    what: Any
    lives: int = 2
    losses: list[str] = field(default_factory=list)  # why each worker was lost


class Ledger(Protocol):
    """Where results go: the driver alone writes. Each answer is what is to be done next, before all that waits."""

    def done(self, what: Any, result: Any) -> Iterable[Assignment]:
        """Take a result."""

    def lost(self, what: Any, why: str) -> Iterable[Assignment]:
        """A task has cost as many workers as it may."""


@dataclass(frozen=True)
class Lost:
    """In place of an answer: why there will be none."""

    why: str


@dataclass(eq=False)
class Held:
    """A worker whose answer is waited for."""

    actor: Any
    task: Assignment | None = None  # None while it gets ready
    since: float = field(default_factory=time.monotonic)


class Crew:
    """The workers there are, each getting ready, idle or at a task."""

    def __init__(self, ray: Any, job: Job, workers: Workers) -> None:
        self.ray, self.workers = ray, workers
        self.job, self.versions = ray.put(job), versions()
        gets = {"num_cpus": workers.cpus, "num_gpus": workers.gpus, "scheduling_strategy": "SPREAD"}
        self.kind = ray.remote(Worker).options(max_restarts=0, max_task_retries=0, **gets)
        self.waiting: dict[Any, Held] = {}  # by the reference to the answer
        self.idle: list[Any] = []
        self.places, self.looked = room(ray, workers), time.monotonic()
        self.refused = self.stillborn = 0
        self.longest = 0.0

    @property
    def busy(self) -> int:
        """Workers at a task."""
        return sum(held.task is not None for held in self.waiting.values())

    def muster(self, tasks: int) -> None:
        """See that there are as many workers as are wanted and of use; each waits in Ray until there is room for it."""
        if time.monotonic() - self.looked > LOOK:
            self.places, self.looked = room(self.ray, self.workers), time.monotonic()
        wanted = min((self.workers.workers or self.places) - self.refused, tasks)
        for _ in range(wanted - len(self.idle) - len(self.waiting)):
            actor = self.kind.remote()
            self.waiting[actor.begin.remote(self.job, self.versions)] = Held(actor)

    def give(self, task: Assignment) -> None:
        """Let an idle worker do a task."""
        actor = self.idle.pop()
        self.waiting[actor.do.remote(task.what)] = Held(actor, task)

    def answers(self) -> list[tuple[Held, Any]]:
        """What came: results, exceptions that were raised, and `Lost`."""
        wait, references = self.ray.wait, [*self.waiting]
        if not references:
            time.sleep(PAUSE)
            return []
        wait(references, num_returns=1, timeout=PAUSE)
        ready, _ = wait(references, num_returns=len(references), timeout=0)
        answered = [(self.waiting.pop(reference), self._answer(reference)) for reference in ready]
        return answered + [(self.waiting.pop(reference), Lost(why)) for reference, why in self._hung()]

    def _answer(self, reference: Any) -> Any:
        try:
            return self.ray.get(reference, timeout=60)
        except self.ray.exceptions.RayTaskError as error:  # raised by the work
            return error.cause if isinstance(error.cause, Exception) else error
        except self.ray.exceptions.RayError:  # of its process, its node, or the way there
            return Lost("its process ended")

    def _hung(self) -> list[tuple[Any, str]]:
        limit = self.workers.timeout or (max(SLACK * self.longest, LEAST) if self.longest else float("inf"))
        began, why = time.monotonic() - limit, f"it took longer than {limit:.0f} s"
        return [(reference, why) for reference, held in self.waiting.items() if held.task and held.since < began]

    def freed(self, held: Held) -> None:
        """A worker has done its task."""
        self.longest = max(self.longest, time.monotonic() - held.since)
        self.idle.append(held.actor)

    def begun(self, held: Held, said: Any) -> None:
        """A worker is ready, or will never be; raises `EditlibError` if that is so of all."""
        if isinstance(said, Lost):
            self.stillborn += 1
            if self.stillborn > STILLBORN * max(1, self.places):
                raise EditlibError(
                    f"{self.stillborn} workers died while they got ready, each of which holds the model; give fewer, "
                    "or machines with more memory"
                )
        elif isinstance(said, Exception):
            error = told(said)
            self.discard(held)
            self.refused += 1
            log.warning("a worker less: %s", error)
            if not self.idle and not self.waiting:
                raise error from said
        else:
            self.stillborn = 0
            self.idle.append(held.actor)

    def discard(self, held: Held) -> None:
        """Be rid of a worker."""
        self.ray.kill(held.actor, no_restart=True)

    def dismiss(self) -> None:
        """Be rid of all."""
        for actor in [*self.idle, *(held.actor for held in self.waiting.values())]:
            self.ray.kill(actor, no_restart=True)


def told(error: Exception) -> EditlibError:
    """An error of a worker in one line."""
    if isinstance(error, EditlibError):
        return error
    return EditlibError(
        f"a worker raised {type(error).__name__}: {' '.join(str(error).partition('traceback:')[0].split())[:300]}"
    )


def distribute(job: Job, tasks: Sequence[Assignment], ledger: Ledger, workers: Workers, progress: Progress) -> None:
    """Have tasks done by workers, in any order, and enter each result in the ledger as it comes.

    A worker that dies, hangs or raises is replaced, and its task given to another one as often as the task allows.
    Raises `EditlibError` as `connected` does; one that a task raises; another error that a task raises every time; and
    if there is no worker for longer than asked. All workers are gone afterwards.
    """
    queue = deque(tasks)
    with connected(workers) as ray, progress:
        crew = Crew(ray, job, workers)
        if workers.workers and workers.workers > crew.places:
            said = "%d of %d workers have room now, each needs %s; others begin when nodes join"
            log.warning(said, crew.places, workers.workers, workers.each)
        seen = time.monotonic()
        try:
            while queue or crew.busy:
                crew.muster(len(queue) + crew.busy)
                while queue and crew.idle:
                    crew.give(queue.popleft())
                for held, said in crew.answers():
                    queue.extendleft(reversed([*_entered(crew, held, said, ledger, progress)]))
                alive = len(crew.idle) + crew.busy
                seen = time.monotonic() if alive else seen
                if time.monotonic() - seen > workers.patience:
                    raise EditlibError(
                        f"no worker for {workers.patience:.0f} s, each of which needs {workers.each}; see that nodes "
                        "are up, and resume"
                    )
                progress.at(alive)
        finally:
            crew.dismiss()


def _entered(crew: Crew, held: Held, said: Any, ledger: Ledger, progress: Progress) -> Iterable[Assignment]:
    """What is to be done next after an answer."""
    task = held.task
    if task is None:
        crew.begun(held, said)
        return []
    if not isinstance(said, Lost | Exception):
        crew.freed(held)
        return ledger.done(task.what, said)
    crew.discard(held)
    if isinstance(said, EditlibError):
        raise said
    progress.failed()
    task.losses.append(said.why if isinstance(said, Lost) else str(told(said)))
    log.info("a worker was lost: %s", task.losses[-1])
    if len(task.losses) < task.lives:
        return [task]
    if isinstance(said, Exception):
        raise told(said) from said
    return ledger.lost(task.what, task.losses[-1])
