"""Numbers, tables and JSON as text: the one place that says how a number reads."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex
from unicodedata import combining, east_asian_width, is_normalized

MINUS = "−"


def is_text(value: object) -> bool:
    """Whether a value is Unicode text: no tokenizer takes half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def number(value: float, *, digits: int = 3) -> str:
    """What was counted, or measured to so many digits: `1,204`, `0.980`, `−0.03`, `1.50e+07`, `inf`, `nan`.

    Zeros at the end are kept, since they were measured too; there is no `-0`.
    """
    if isinstance(value, SupportsIndex):  # also those of numpy
        text = f"{value:,}"
    elif value == 0 or not math.isfinite(value):
        text = f"{abs(value) if value == 0 else value:g}"
    else:
        rounded = float(f"{value:.{digits}g}")
        large = 10**digits <= abs(rounded) < 1e7
        text = f"{value:,.0f}" if large else f"{value:#.{digits}g}".replace(".e", "e").rstrip(".")
    return text.replace("-", MINUS, 1) if text.startswith("-") else text


def percent(share: float) -> str:
    """A share in per cent: `100 %`, `5.19 %`, `0 %`."""
    return f"{number(100.0 * share)} %"


def metric(name: str, value: object) -> str:
    """A headline number by its name, as a reader wants it: shares in per cent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return percent(value) if name.endswith("_share") else number(value)


def duration(seconds: float) -> str:
    """`8.1 s`, `2 min 14 s`, `3 h 5 min`."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def with_interval(value: str, bounds: tuple[str, str] | None) -> str:
    """`0.984 [0.967, 1.00]`; the value alone where there is no interval."""
    return f"{value} [{bounds[0]}, {bounds[1]}]" if bounds else value


def flat(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries by dotted name; lists stay what they are."""
    rows: dict[str, Any] = {}
    for key, value in entries.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows


def short(value: object) -> str:
    """A table's cell: three digits for what was measured, a dash for nothing, text on one line.

    Whole numbers have no commas, since they may be names: of cases, layers, seeds.
    """
    if isinstance(value, float):
        return number(value)
    return "–" if value is None else " ".join(str(value).split())


def visible(text: str) -> str:
    """Text, escaped where it is not in Unicode's normal form C: models read other tokens in it than in what looks the
    same."""
    return text if is_normalized("NFC", text) else text.encode("ascii", "backslashreplace").decode()


def table(rows: Iterable[Sequence[object]]) -> str:
    """Rows as text, columns two spaces apart.

    Text is `visible`.
    """
    escaped = [[visible(short(value)) for value in row] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*escaped, strict=True)]
    padded = ((c + " " * (width - _columns(c)) for c, width in zip(row, widths, strict=True)) for row in escaped)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _columns(text: str) -> int:
    """Places text takes on a terminal: two for a wide character, none for a mark on the one before."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "FW" else 1 for c in text)


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
