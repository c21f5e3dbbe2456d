"""The records of a file one at a time, with the line each starts on: JSON lists, one JSON record a line, or CSV."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editlib.errors import EditlibError

SPACE = re.compile(r"\s*")
DECODER = json.JSONDecoder()


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line and value of each record of a file of JSON lists, one after the other, of JSON lines, or of a `.csv` file.

    A line that is no JSON has an `EditlibError` as its value. Raises `EditlibError` for a damaged list, and for a
    file that breaks off: what is missing may be most of it.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:  # a bad byte spoils one record
        text = file.read()
    if path.suffix.lower() == ".csv":
        yield from _rows(text, path)
    elif text.lstrip().startswith("["):
        yield from _lists(text, path)
    else:
        yield from _lines(text, path)


def _rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a CSV file as objects, without empty cells."""
    table, line = csv.DictReader(text.splitlines(keepends=True), strict=True), 2
    try:
        for row in table:
            if None in row:
                yield line, EditlibError(f"it has more than the header's {len(table.fieldnames or ())} columns")
            else:
                cells = {name.strip(): cell for name, cell in row.items() if cell and cell.strip()}
                number = {"case_id": int(cells["case_id"])} if cells.get("case_id", "").isdecimal() else {}
                yield line, cells | number
            line = table.line_num + 1
    except csv.Error as error:
        raise EditlibError(f"data file {path} is no CSV at line {line}: {error}; correct it") from error


def _lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.endswith("\n"):
                raise _damaged(path, number, error) from error
            value = EditlibError(f"it is no JSON: {_reason(error)}")
        yield number, value


def _lists(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    offset, line = 0, 1

    def move(end: int) -> str:
        """Go on to `end` and past white space; the character there, nothing at the end."""
        nonlocal offset, line
        space = SPACE.match(text, end)
        end = space.end() if space else end
        line += text.count("\n", offset, end)
        offset = end
        return text[end : end + 1]

    here = move(0)
    while here:
        opening = "["
        while here != "]":
            if here != opening:
                raise _damaged(path, line, ValueError(f"expecting {opening!r}"))
            here = move(offset + 1)
            if here == "]" and opening == "[":
                break
            try:
                value, end = DECODER.raw_decode(text, offset)
            except (ValueError, RecursionError) as error:
                raise _damaged(path, line, error) from error
            yield line, value
            here, opening = move(end), ","
        here = move(offset + 1)


def _reason(error: Exception) -> str:
    return str(getattr(error, "msg", error))  # of a JSON error, without a position inside the text


def _damaged(path: Path, line: int, error: Exception) -> EditlibError:
    reason = _reason(error)
    return EditlibError(f"data file {path} is no JSON at line {line}: {reason}; it is damaged or cut off, get it again")
