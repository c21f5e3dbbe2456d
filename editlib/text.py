"""Numbers, tables and JSON as text."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def short(value: object) -> str:
    """Three digits for numbers, a dash for nothing, text on one line."""
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return "–" if value is None else " ".join(str(value).split())


def table(rows: Iterable[Sequence[object]]) -> str:
    """Rows as text, columns two spaces apart."""
    cells = [[short(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def to_json(value: Any) -> str:
    """Indented JSON with infinite and nan numbers as strings, which JSON does not have."""
    return json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """A JSON value whose infinite and nan numbers are the strings "inf", "-inf" and "nan"."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
