"""How numbers read: one way for pages, tables and the command line."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from editlib import text


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (0, "0"), (7, "7"), (21919, "21,919"), (-3, "−3"), (np.int64(1204), "1,204"),
        (0.0, "0"), (-0.0, "0"), (0.98, "0.980"), (-0.97, "−0.970"), (1.0, "1.00"), (20.58, "20.6"), (100.0, "100"),
        (999.4, "999"), (999.6, "1,000"), (1204.4, "1,204"), (-26084.66, "−26,085"), (9.9e6, "9,900,000"),
        (1.5e7, "1.50e+07"), (8.424e13, "8.42e+13"), (4.2e-5, "4.20e-05"), (-4.2e-5, "−4.20e-05"),
        (math.inf, "inf"), (-math.inf, "−inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_a_number_reads_in_one_way(value: float, read: str) -> None:
    assert text.number(value) == read


@given(st.floats(-1e300, 1e300), st.integers(1, 6))
def test_a_number_that_is_read_again_is_the_one_rounded(value: float, digits: int) -> None:
    read = float(text.number(value, digits=digits).replace(text.MINUS, "-").replace(",", ""))
    assert read == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=5e-324)


@pytest.mark.parametrize(
    ("share", "read"), [(1, "100 %"), (0.0, "0 %"), (0.0519, "5.19 %"), (0.5, "50.0 %"), (0.98444, "98.4 %")]
)
def test_a_share_reads_in_per_cent(share: float, read: str) -> None:
    assert text.percent(share) == text.metric("collapsed_share", share) == read


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [("worst", "inf", "inf"), ("held", True, "True"), ("collapsed", 12, "12"), ("shared", 0.5, "0.500"),
     ("low_share", "nan", "nan")],
)  # fmt: skip
def test_a_metric_reads_by_its_name(name: str, value: object, read: str) -> None:
    assert text.metric(name, value) == read


@pytest.mark.parametrize(
    ("seconds", "read"),
    [(0.84, "0.8 s"), (8.1, "8.1 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (134, "2 min 14 s"),
     (11100, "3 h 5 min")],
)  # fmt: skip
def test_a_duration_is_spoken(seconds: float, read: str) -> None:
    assert text.duration(seconds) == read


def test_a_table_aligns_numbers_text_and_nothing() -> None:
    rows = [["case", "ratio", "said"], [12345, 20.58, "two\nlines"], [3, None, ""]]
    assert text.table(rows) == "case   ratio  said\n12345  20.6   two lines\n3      –"


def test_shares_are_told_in_one_way() -> None:
    files = [*(ROOT / "editlib").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]
    assert [str(path) for path in files if re.search(r":\.\d%\}", path.read_text("utf-8"))] == []


def test_nested_entries_get_dotted_names() -> None:
    assert text.flat({"a": 1, "b": {"c": [1, 2], "d": {"e": None}}}) == {"a": 1, "b.c": [1, 2], "b.d.e": None}
    assert (
        text.with_interval("1.00", ("0.900", "1.10")) == "1.00 [0.900, 1.10]" and text.with_interval("–", None) == "–"
    )


def test_a_table_shows_what_only_looks_equal_as_different() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert text.table([[composed, 1], [decomposed, 2], ["日本", 3]]) == "café        1\ncafe\\u0301  2\n日本        3"
