"""The records of a JSON file one at a time, with the line each starts on: lists, or one record a line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from editlib.errors import EditlibError

CHUNK = 1 << 20  # characters read at a time
SPACE = re.compile(r"\s*")
DECODER = json.JSONDecoder()


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line and value of each record of a file of JSON lists, one after the other, or of JSON lines.

    A line that is no JSON has an `EditlibError` as its value. Raises `EditlibError` for a damaged list, and for a
    file that breaks off: what is missing may be most of it.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:  # a bad byte spoils its record only
        start = file.read(CHUNK).lstrip()
        file.seek(0)
        yield from _Lists(file, path).records() if start.startswith("[") else _lines(file, path)


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.endswith("\n"):
                raise _damaged(path, number, error) from error
            value = EditlibError(f"it is no JSON: {_reason(error)}")
        yield number, value


def _reason(error: Exception) -> str:
    return str(getattr(error, "msg", error))  # of a JSON error, without a position inside the chunk


def _damaged(path: Path, line: int, error: Exception) -> EditlibError:
    reason = _reason(error)
    return EditlibError(f"data file {path} is no JSON at line {line}: {reason}; it is damaged or cut off, get it again")


class _Lists:
    """A scanner of JSON lists that holds no more than a record and a chunk."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self.file, self.path = file, path
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def records(self) -> Iterator[tuple[int, Any]]:
        while self._next():
            self._expect("[")
            while self._next() != "]":
                yield self.line, self._value()
                if self._next() != "]":
                    self._expect(",")
            self._expect("]")

    def _next(self) -> str:
        """The next character that is no space, nothing at the end."""
        while True:
            space = SPACE.match(self.text, self.at)
            self._move(space.end() if space else self.at)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read_on()

    def _expect(self, character: str) -> None:
        if self._next() != character:
            raise _damaged(self.path, self.line, ValueError(f"expecting {character!r}"))
        self._move(self.at + 1)

    def _value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # a number could go on in the next chunk
                    self._move(end)
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended:
                    raise _damaged(self.path, self.line, error) from error
            self._read_on()

    def _read_on(self) -> None:
        """Read at least as much as is kept, so that a long record is not parsed over and over."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.text, self.at, self.ended = self.text[self.at :] + chunk, 0, not chunk

    def _move(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end
