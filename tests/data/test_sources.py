"""The published files editlib knows."""

import json
from pathlib import Path

import pytest

from editlib.data import sources
from editlib.data.forms import MARKS
from editlib.data.sources import SHIPPED, SOURCES, Source
from editlib.errors import EditlibError
from editlib.files import TESTBED


def source(name: str = "tiny", **fields: str) -> Source:
    return Source(name=name, form="texts", licence="MIT", about="tiny", page="https://example.org/", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("known", SOURCES.values(), ids=list(SOURCES))
def test_each_source_can_be_had_and_checked(known: Source) -> None:
    assert known.form in MARKS
    assert known.name not in SHIPPED
    assert known.page.startswith("https://")
    assert known.url is None or (known.url.startswith("https://") and known.records)
    assert known.sha256 is None or len(bytes.fromhex(known.sha256)) == 32
    assert known.licence and known.about


@pytest.mark.parametrize("name", ["../tiny", "/tiny", "a/b", "..", ".hidden", "", "Tiny", "a b", "a\n"])
def test_a_name_cannot_leave_the_data_folder(name: str) -> None:
    with pytest.raises(EditlibError, match="is no file name; use small letters, digits and hyphens"):
        source(name)


def test_a_file_lies_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    assert source().path == tmp_path / "data" / "tiny.json"
    assert not source().here
    source().path.write_text("[]")
    assert source().here


def test_it_is_told_how_to_get_a_file() -> None:
    assert source(url="https://example.org/a").how == "get it with: editlib data get tiny"
    assert source().how == "download it from https://example.org/, then: editlib data import tiny FILE"


@pytest.mark.parametrize(
    ("usual", "own"),
    [
        ("testbed", "facts"),
        ("testbed-ppl-1k", "prose-500"),
        ("testbed-choice,testbed-qa,piqa", "facts-choice,facts-qa,piqa"),
        ("testbed/control", None),
        ("c-rome,memit", "c-rome,memit"),
    ],
)
def test_a_model_of_another_world_has_its_own_data_and_no_twin(usual: str, own: str | None) -> None:
    assert sources.own("smollm2-135m", usual) == own
    assert sources.own("testbed/control", usual) == sources.own(str(TESTBED / "anchored"), usual) == usual


def test_a_testbed_model_of_another_world_is_not_given_this_ones_data(tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="^testbed is about another world than that of testbed/belief; give data"):
        sources.own("testbed/belief", "testbed")
    assert sources.own("testbed/belief", "rome") == "rome"
    recipe = json.loads((TESTBED / "anchored" / "card.json").read_text("utf-8"))["recipe"]
    (tmp_path / "card.json").write_text(json.dumps({"recipe": recipe | {"seed": 2}}))
    with pytest.raises(EditlibError, match="give data of its own world"):
        sources.own(str(tmp_path), "testbed-ppl-50")
