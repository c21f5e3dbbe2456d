"""What commands say beside their result, how they print it, and how they stop early."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import typer

from editlib.text import duration, to_json

FIRST, SLOWEST = 5.0, 60.0  # seconds until work that takes long is told of; pauses double from the one to the other


class Stop(Exception):
    """An end before the command is done: what to say in one line, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def note(message: object) -> None:
    """A line for people, on stderr."""
    lines = (line.strip() for line in str(message).splitlines())
    typer.echo(f"editlib: {' '.join(filter(None, lines))}", err=True)


def emit(result: Any) -> None:
    """Print a result: text as it is, everything else as JSON, where what the terminal's encoding lacks is escaped."""
    text = result if isinstance(result, str) else to_json(result)
    if not isinstance(result, str) and (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8"):
        text = json.dumps(json.loads(text), indent=1)
    typer.echo(text)


@contextmanager
def alive(stage: str, *, quiet: bool = False) -> Iterator[None]:
    """While the block takes longer than a few seconds, say now and then what the package logs that it is at."""
    stages, done, started = [stage], Event(), time.monotonic()
    logger, handler = logging.getLogger("editlib"), logging.Handler(logging.INFO)

    def hear(record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            note(record.getMessage())
        else:
            stages.append(record.getMessage())

    handler.emit = hear  # type: ignore[method-assign]

    def tell() -> None:
        pause = FIRST
        while not done.wait(pause):
            note(f"{stages[-1]} ({duration(time.monotonic() - started)})")
            pause = min(2 * pause, SLOWEST)

    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    teller = Thread(target=tell, daemon=True)
    if not quiet:
        teller.start()
    try:
        yield
    finally:
        done.set()
        if not quiet:
            teller.join()
        logger.removeHandler(handler)
        logger.setLevel(level)
