"""How far analyses are: one line that is written over on a terminal, a line every so often in a log."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty
from threading import Thread
from types import TracebackType
from typing import Any, TextIO

from editlib.text import duration


@dataclass(frozen=True)
class Event:
    """A cell of an analysis begins (its number from 1, of how many), or the analysis has ended, and how."""

    analysis: str
    cell: int = 0
    cells: int = 0
    ended: str = ""


Tell = Callable[[Event], object]


class RunProgress:
    """Tells on stderr what `events`, a queue, says; to be used as a context, at whose end all of them are told.

    `names` are the analyses, `jobs` of them at a time; `expected` has the seconds that some took before. `every` is
    the number of seconds between lines of a log.
    """

    def __init__(
        self, events: Any, names: Sequence[str], *, jobs: int, expected: Mapping[str, float], every: float = 30
    ) -> None:
        self.events, self.waiting, self.total = events, [*names], len(names)
        self.jobs, self.expected, self.every = jobs, expected, every
        self.stream: TextIO = sys.stderr
        self.thread = Thread(target=self._tell_all, daemon=True)

    def __enter__(self) -> "RunProgress":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.events.put(None)
        self.thread.join()

    def _tell_all(self) -> None:
        terminal = self.stream.isatty()
        clear = "\r\x1b[K" if terminal else ""
        running: dict[str, tuple[Event, float]] = {}  # the last event, and when the first one came
        told = time.monotonic()
        while True:
            now = time.monotonic()
            if terminal:
                self._write(clear + self._line(running, now)[: shutil.get_terminal_size().columns - 1])
            elif running and now - told >= self.every:
                self._write(self._line(running, now) + "\n")
                told = now
            try:
                event = self.events.get(timeout=min(1.0, self.every))
            except Empty:
                continue
            if event is None:
                return self._write(clear)
            began = running.pop(event.analysis, (event, time.monotonic()))[1]
            if not event.ended:
                running[event.analysis] = event, began
            else:
                self.waiting.remove(event.analysis)
                if self.total > 1:
                    how = f"{event.analysis}: {event.ended}, {duration(time.monotonic() - began)}"
                    self._write(f"{clear}{self._count()} {how}\n")

    def _line(self, running: Mapping[str, tuple[Event, float]], now: float) -> str:
        """Each analysis at work with its cell and seconds, and the time left where earlier runs tell it."""
        parts = []
        rest = {name: self.expected[name] for name in self.waiting if name in self.expected}
        for name, (event, began) in running.items():
            if name in rest:
                rest[name] = max(rest[name] - (now - began), 0.0)
            about = f", about {duration(rest[name])} left" if rest.get(name) else ""
            parts.append(f"{name}: cell {event.cell} of {event.cells}, {duration(now - began)}{about}")
        if self.total == 1:
            return "".join(parts)
        known = len(rest) == len(self.waiting) > len(running)
        every = [f"about {duration(sum(rest.values()) / self.jobs)} left in all"] if known else []
        return f"{self._count()} " + "; ".join([*parts, *every])

    def _count(self) -> str:
        return f"[{self.total - len(self.waiting)}/{self.total}]"

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
