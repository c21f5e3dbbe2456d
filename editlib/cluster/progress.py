"""How far shared work is: a bar, or lines of JSON for machines."""

import json
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from editlib.cluster.workers import Workers
from editlib.text import duration

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds from one line of JSON to the next


class Progress:
    """Tells what is done of a total, at what rate, by how many workers, and how many were lost; a context."""

    def __init__(
        self, total: int, workers: Workers, *, done: int = 0, unit: str = "case", name: str = "", shown: bool = True
    ) -> None:
        self.total, self.unit, self.json, self.shown = total, unit, workers.json, shown
        self.begun, self.began, self.told = done, time.monotonic(), 0.0
        self.workers = self.most = self.lost = 0
        self.bar: tqdm[Any] = tqdm(
            total=total, initial=done, desc=name or None, unit=unit, smoothing=0, disable=self.json or not shown
        )
        self.count = done

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        made, seconds = self.count - self.begun, time.monotonic() - self.began
        said = f"{made:,} {self.unit}s in {duration(seconds)} by {self.most} workers at most, {self.lost} lost"
        if self.json:
            self._line(ended=True)
        elif self.shown:
            print(said, file=sys.stderr)
        log.info(said)

    def update(self, count: int) -> None:
        """So much more is done."""
        self.count += count
        self.bar.update(count)
        log.info("%d of %d %ss done", self.count, self.total, self.unit)

    def failed(self) -> None:
        """A worker was lost."""
        self.lost += 1

    def at(self, workers: int) -> None:
        """So many workers are ready now."""
        self.workers, self.most = workers, max(self.most, workers)
        self.bar.set_postfix_str(f"{workers} workers, {self.lost} lost", refresh=False)
        if self.json and time.monotonic() - self.told > EVERY:
            self._line(ended=False)

    def _line(self, *, ended: bool) -> None:
        self.told = time.monotonic()
        seconds, made = self.told - self.began, self.count - self.begun
        left = round((self.total - self.count) * seconds / made, 1) if made else None
        said = {
            "done": self.count, "of": self.total, "unit": self.unit, "seconds": round(seconds, 1),
            "rate": round(made / seconds, 3), "seconds_left": left, "workers": self.workers, "lost": self.lost,
            "ended": ended,
        }  # fmt: skip
        print(json.dumps(said), file=sys.stderr, flush=True)
