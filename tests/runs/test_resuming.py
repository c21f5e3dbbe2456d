"""A table of a notebook is made once for a run, whatever stops it, and each time where no run is being made."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from editlib.runs.resuming import VARIABLE, kept

MADE = pd.DataFrame({"task": ["choice", "qa"], "value": [0.5, float("nan")], "n": [3, 4]})


class Counted:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> pd.DataFrame:
        self.times += 1
        return MADE.copy()


def test_a_table_is_made_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    make = Counted()
    for _ in range(2):
        pd.testing.assert_frame_equal(kept("tasks 0.5", make), MADE, check_exact=True)
    assert make.times == 1
    kept("tasks 0.25", make)  # another name
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    kept("tasks 0.5", make)  # another run
    assert make.times == 3


def test_a_damaged_table_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    make = Counted()
    kept("tasks", make)
    (file,) = tmp_path.rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-9])
    pd.testing.assert_frame_equal(kept("tasks", make), MADE, check_exact=True)
    assert make.times == 2 and pd.read_parquet(file).equals(MADE)


def test_outside_a_run_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    make = Counted()
    kept("tasks", make)
    kept("tasks", make)
    assert make.times == 2
