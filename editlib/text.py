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
    """Indented JSON; it has no inf or nan, so these become the strings "inf", "-inf" and "nan"."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
