"""Records of JSON files, one at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editlib.data.records import records
from editlib.errors import EditlibError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
TWO = [{"a": 1}, {"b": "Zwölf"}]


def read(path: Path, content: str | bytes) -> list[tuple[int, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(records(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.json"


@given(
    values=st.lists(VALUES),
    indent=st.sampled_from([None, 0, 2]),
    ascii=st.booleans(),
)
def test_lists_are_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, ascii: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    found = read(tmp_path_factory.getbasetemp() / "property.json", text)
    assert [value for _, value in found] == values


def test_lines_are_those_the_records_start_on(path: Path) -> None:
    assert read(path, '[{"a": 1}, {"b":\n 2},\n\n"c"\n]\n') == [(1, {"a": 1}), (1, {"b": 2}), (4, "c")]
    assert read(path, '{"a": 1}\n\n"c"\n') == [(1, {"a": 1}), (3, "c")]


def test_lists_one_after_the_other_are_one(path: Path) -> None:
    assert [value for _, value in read(path, '[1, 2][]\n["c"]')] == [1, 2, "c"]


@pytest.mark.parametrize("content", [json.dumps(TWO, ensure_ascii=False), '{"a": 1}\n{"b": "Zwölf"}\n'])
def test_a_byte_order_mark_and_other_line_ends_do_not_matter(path: Path, content: str) -> None:
    assert [value for _, value in read(path, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())] == TWO


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_an_empty_file_has_no_records(path: Path, content: str) -> None:
    assert read(path, content) == []


@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_cut_off_anywhere_is_refused(path: Path, indent: int | None) -> None:
    text = json.dumps(TWO, indent=indent)
    for length in range(1, len(text)):
        with pytest.raises(EditlibError, match="is no JSON at line .*; it is damaged or cut off, get it again$"):
            read(path, text[:length])


def test_a_damaged_list_is_refused_with_its_line(path: Path) -> None:
    with pytest.raises(EditlibError) as caught:
        read(path, '[{"a": 1},\n{"b" 2},\n3]')
    assert str(caught.value).startswith(f"data file {path} is no JSON at line 2: Expecting ':' delimiter; ")


def test_lists_nested_too_deeply_are_refused(path: Path) -> None:
    with pytest.raises(EditlibError, match="is no JSON at line 1: "):
        read(path, "[" * 100_000)


def test_a_damaged_line_has_its_error_as_value(path: Path) -> None:
    (first, second, third) = read(path, '{"a": 1}\n{"a" 1}\n{"a": 3}\n')
    assert (first, third) == ((1, {"a": 1}), (3, {"a": 3}))
    assert (second[0], str(second[1])) == (2, "it is no JSON: Expecting ':' delimiter")
    assert isinstance(second[1], EditlibError)


def test_lines_cut_off_are_refused(path: Path) -> None:
    with pytest.raises(EditlibError, match="is no JSON at line 2: .*; it is damaged or cut off"):
        read(path, '{"a": 1}\n{"a": ')


def test_a_bad_byte_spoils_its_record_only(path: Path) -> None:
    assert read(path, b'["a\xe4", "b"]') == [(1, "a\udce4"), (1, "b")]


# CSV


def test_rows_of_csv_are_objects_without_empty_cells(tmp_path: Path) -> None:
    content = 'case_id,prompt,subject,target_true\n7,"{} is, they say, in","Zen\nBrast",\n\n8,In {},Zwölf,Quint\n'
    assert read(tmp_path / "cases.csv", content) == [
        (2, {"case_id": 7, "prompt": "{} is, they say, in", "subject": "Zen\nBrast"}),
        (4, {"case_id": 8, "prompt": "In {}", "subject": "Zwölf", "target_true": "Quint"}),
    ]


def test_a_row_with_too_many_cells_has_its_error_as_value(tmp_path: Path) -> None:
    ((line, error),) = read(tmp_path / "cases.csv", "prompt,subject\na,b,c\n")
    assert (line, str(error)) == (2, "it has more than the header's 2 columns")


def test_a_damaged_csv_file_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match=r"cases.csv is no CSV at line 3: .*; correct it$"):
        read(tmp_path / "cases.csv", 'prompt,subject\na,b\n"a,b\n')
