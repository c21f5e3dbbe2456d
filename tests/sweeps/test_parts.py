"""A table in a folder of parts: whole ones are read, all others are as if they were missing."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from editlib.errors import EditlibError
from editlib.files import locked
from editlib.sweeps.parts import PLAN, Parts, collect, sweep_folder
from editlib.sweeps.rows import frame

KINDS = {"case_id": "int64", "steps": "Int64", "mean": "float64", "error": "str", "sure": "bool", "all": "object"}
PLANNED = {"model": "abc", "methods": [["rome", {"clamp": math.inf, "layers": (1, 2)}]]}
ROWS = [
    {"case_id": 0, "steps": 3, "mean": math.inf, "sure": True, "all": np.array([1.0, math.nan, math.inf])},
    {"case_id": 1, "mean": math.nan, "error": "none: ü", "sure": False},
]
WANTED = [{"case_id": [0, 1], "sure": [True, False]}, {"case_id": [2]}]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    parts = Parts.of(tmp_path / "new" / "table", PLANNED, KINDS, resume=False)
    with parts.working():
        return parts


def folder(parts: Parts) -> Path:
    assert parts.folder
    return parts.folder


def test_a_part_is_read_as_it_was_made(parts: Parts) -> None:
    made = parts.write(0, frame(ROWS, KINDS))
    assert [*made] == [*KINDS] and [str(kind) for kind in made.dtypes] == [*KINDS.values()]
    assert made["mean"].tolist()[0] == math.inf and made["error"].isna().tolist() == [True, False]
    pd.testing.assert_frame_equal(parts.read(WANTED)[0], made, check_exact=True)


def test_anybody_can_read_the_folder(parts: Parts) -> None:
    made = [parts.write(1, frame([{"case_id": 2, "sure": True}], KINDS)), parts.write(0, frame(ROWS, KINDS))]
    (folder(parts) / ".part-00002.parquet.17.writing").write_text("cut off")
    expected = pd.concat(reversed(made), ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_parquet(folder(parts)), expected, check_exact=True)


def test_a_table_is_collected_once_it_is_whole(tmp_path: Path) -> None:
    parts = Parts.of(tmp_path / "table", PLANNED | {"parts": 2}, KINDS, resume=False)
    with pytest.raises(EditlibError, match="holds no sweep"):
        collect(tmp_path / "table")
    with parts.working():
        made = [parts.write(1, frame([{"case_id": 2, "sure": True}], KINDS))]
        with pytest.raises(EditlibError, match="lacks 1 of 2 parts, such as part-00000.parquet; resume the sweep$"):
            collect(tmp_path / "table")
        made = [parts.write(0, frame(ROWS, KINDS)), *made]
    expected = pd.concat(made, ignore_index=True)
    pd.testing.assert_frame_equal(collect(tmp_path / "table"), expected, check_exact=True)


def test_without_a_folder_nothing_is_kept() -> None:
    parts = Parts.of(None, PLANNED, KINDS, resume=False)
    with parts.working():
        assert len(parts.write(0, frame(ROWS, KINDS))) == 2 and parts.read(WANTED) == {}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"PAR1" + b"\0" * 100 + b"PAR1",
        lambda data: data.replace(b"none: ", b"some: "),  # in a page: only its checksum tells
        lambda data: data.replace(b"case_id", b"case_ID"),
    ],
)
def test_damaged_parts_are_missing(parts: Parts, damage: Callable[[bytes], bytes]) -> None:
    parts.write(0, frame(ROWS, KINDS))
    path = folder(parts) / "part-00000.parquet"
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    assert parts.read(WANTED) == {}


def test_parts_of_other_rows_are_missing(parts: Parts) -> None:
    parts.write(0, frame(ROWS[:1], KINDS))
    parts.write(1, frame([{"case_id": 3, "sure": True}], KINDS))
    assert parts.read(WANTED) == {}


def test_leftovers_go_and_a_plan_stays(parts: Parts) -> None:
    plan = (folder(parts) / PLAN).read_text()
    (folder(parts) / ".part-00000.parquet.17.writing").write_text("cut off")
    with Parts.of(folder(parts), PLANNED, KINDS, resume=True).working():
        pass
    assert [path.name for path in folder(parts).iterdir()] == [PLAN] and (folder(parts) / PLAN).read_text() == plan


def test_a_folder_that_was_left_before_its_plan_was_written_is_as_new(tmp_path: Path) -> None:
    (tmp_path / f".{PLAN}.17.writing").write_text("{")
    with Parts.of(tmp_path, PLANNED, KINDS, resume=True).working():
        pass
    assert [path.name for path in tmp_path.iterdir()] == [PLAN]


def test_the_second_of_two_that_start_at_once_is_refused(tmp_path: Path) -> None:
    first, second = (Parts.of(tmp_path, PLANNED | {"texts": text}, KINDS, resume=False) for text in "ab")
    with first.working():
        first.write(0, frame(ROWS, KINDS))
        (tmp_path / ".part-00001.parquet.17.writing").write_text("being written")
        with pytest.raises(EditlibError, match=r"is being written by process \d+ on"), second.working():
            pass
        assert (tmp_path / ".part-00001.parquet.17.writing").is_file()  # not for others to remove
    with pytest.raises(EditlibError, match="differs in its texts"), second.working():
        pass
    with locked(tmp_path):
        assert len(first.read(WANTED)) == 1  # a finished one can be read all the same


def test_folders_that_cannot_be_used_are_refused(parts: Parts, tmp_path: Path) -> None:
    place = folder(parts)
    with pytest.raises(EditlibError, match=r"holds a sweep already; resume it \(resume=True, --resume\) or choose"):
        Parts.of(place, PLANNED, KINDS, resume=False)
    with pytest.raises(EditlibError, match="holds a sweep that differs in its methods; choose another"):
        Parts.of(place, PLANNED | {"methods": []}, KINDS, resume=True)
    with pytest.raises(EditlibError, match="is not empty and holds no sweep; choose another"):
        sweep_folder(place.parent).check(resume=True)
    with pytest.raises(EditlibError, match="is a file, not a folder; choose another"):
        sweep_folder(place / PLAN).check(resume=True)
    for text in ("{", "3"):
        (place / PLAN).write_text(text)
        with pytest.raises(EditlibError, match="_sweep.json is damaged.*; choose another output folder"):
            Parts.of(place, PLANNED, KINDS, resume=True)
