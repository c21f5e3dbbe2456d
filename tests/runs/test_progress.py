"""What is told while analyses are at work."""

import io
import time
from queue import Queue

import pytest

from editlib.runs.progress import Event, RunProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO, names: list[str], *steps: Event | float, every: float = 30) -> str:
    """What is written while the steps are done: an event comes, or seconds go by."""
    events = Queue[Event | None]()
    progress = RunProgress(events, names, jobs=2, expected={"slow": 600.0, "later": 100.0}, every=every)
    progress.stream = stream
    with progress:
        for step in steps:
            if isinstance(step, Event):
                events.put(step)
            else:
                time.sleep(step)
    return stream.getvalue()


def test_a_log_has_a_line_for_each_end_and_one_every_so_often() -> None:
    steps = [
        Event("slow", 2, 9),
        Event("quick", 1, 4),
        0.3,
        Event("quick", ended="done"),
        Event("slow", ended="failed"),
    ]
    lines = told(io.StringIO(), ["slow", "quick"], *steps, every=0.2).splitlines()
    assert lines[-2:] == ["[1/2] quick: done, 0.3 s", "[2/2] slow: failed, 0.3 s"]
    first = lines[0]
    assert first.startswith("[0/2] slow: cell 2 of 9, 0.2 s, about 10 min 0 s left; quick: cell 1 of 4, 0.")
    assert "in all" not in first  # nobody knows how long the quick one takes
    assert len(lines) <= 4


def test_the_time_that_all_of_them_take_is_told_where_each_is_known() -> None:
    text = told(io.StringIO(), ["slow", "later"], Event("slow", 1, 2), 0.3, every=0.2)
    assert text.splitlines()[0].endswith("about 10 min 0 s left; about 5 min 50 s left in all")


def test_one_analysis_alone_is_told_without_a_count_and_its_end_by_the_command() -> None:
    assert told(io.StringIO(), ["slow"], Event("slow", 1, 2), Event("slow", ended="done")) == ""
    text = told(io.StringIO(), ["quick"], Event("quick", 1, 2), 0.3, every=0.2)
    assert text.startswith("quick: cell 1 of 2, 0.")


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = told(Terminal(), ["slow", "quick"], Event("slow", 2, 9), 0.1, Event("slow", ended="done"), 0.1)
    shown = [part for part in text.split("\r\x1b[K") if part]
    assert max(map(len, shown)) <= 39 and shown[0].startswith("[0/2]")
    assert any(part.startswith("[0/2] slow: cell 2 of 9") for part in shown)
    assert [part for part in shown if "\n" in part] == ["[1/2] slow: done, 0.1 s\n"]
    assert text.endswith("\r\x1b[K")  # nothing of it stays
