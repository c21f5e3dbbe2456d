"""The command line of data: what it prints, and that every mistake is one line on stderr and status 2."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from editlib.cli import run_app
from editlib.data import datasets as data
from editlib.data import download
from editlib.data.sources import SHIPPED, SOURCES

QUESTION = {"src": "Where is Zen?", "subject": "Zen", "alt": "Daslo", "answers": ["Quint"]}
QUESTION |= {"rephrase": "Zen is where?", "loc": "nq question: who sang it", "loc_ans": "Marend"}
Print = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDITLIB_CACHE", str(folder))
    return folder / "data"


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Print:
    """Run a good command line and return what it prints."""

    def run(*arguments: object) -> str:
        assert run_app(["data", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def mistake(mistake: Print) -> Print:
    """As everywhere, of `editlib data`."""
    return partial(mistake, "data")


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A file in EasyEdit's form: two good cases, and twelve that lack their subject."""
    good = {"prompt": "Zen is in", "subject": "Zen", "target_new": "Daslo", "ground_truth": "Quint"}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([good, good] + [good | {"subject": "Uvo"}] * 12, indent=0))
    return path


@pytest.mark.parametrize("command", ["list", "get", "import", "check"])
def test_each_command_has_help_with_an_example(printed: Print, command: str) -> None:
    assert f"Example: editlib data {command}" in " ".join(printed(command, "--help").split())


def test_list_tells_what_is_here_and_how_to_get_the_rest(printed: Print, cases: Path) -> None:
    printed("import", "hardcf", cases)
    lines = printed("list").splitlines()
    state = {line.split()[1]: line.split()[0] for line in lines[1 : 1 + len(SHIPPED) + len(SOURCES)]}
    assert state == {name: "here" if name in (*SHIPPED, "hardcf") else "absent" for name in (*SHIPPED, *SOURCES)}
    assert f"zsre: {SOURCES['zsre'].how}" in lines
    assert not any(line.startswith("hardcf: ") for line in lines)


def test_list_as_json_has_path_licence_and_how(printed: Print, cases: Path, cache: Path) -> None:
    printed("import", "hardcf", cases)
    found = {item["name"]: item for item in json.loads(printed("list", "--json"))}
    assert set(found) == {*SHIPPED, *SOURCES}
    assert found["hardcf"]["path"] == str(cache / "hardcf.json")
    assert found["zsre"] == {
        "name": "zsre", "path": None, "records": 19_086, "licence": SOURCES["zsre"].licence,
        "about": SOURCES["zsre"].about, "how": SOURCES["zsre"].how,
    }  # fmt: skip


def test_import_reports_counts_and_every_rejected_record(printed: Print, cases: Path, cache: Path) -> None:
    head, *rejected = printed("import", "hardcf", cases).splitlines()
    sha256 = data.fingerprint(cases)[:12]
    assert head == (
        f"hardcf: 14 of 107 records in form easyedit, 12 rejected, sha256 {sha256}, {cache / 'hardcf.json'}"
    )
    assert len(rejected) == 12
    assert rejected[0] == "  record 2 (line 14): subject 'Uvo' does not occur in 'Zen is in'"


def test_check_shows_the_first_rejected_records(printed: Print, cases: Path) -> None:
    head, *rejected, more = printed("check", cases).splitlines()
    assert head.startswith(f"{cases}: 14 records in form easyedit, 12 rejected, ")
    assert len(rejected) == 10
    assert more == "  and 2 more; --json lists them"


def test_check_without_a_name_checks_all_that_is_here(printed: Print, cases: Path) -> None:
    printed("import", "hardedit", cases)
    reports = json.loads(printed("check", "--json"))
    assert [report["name"] for report in reports] == [*SHIPPED, "hardedit"]
    assert [len(report["rejected"]) for report in reports] == [0] * len(SHIPPED) + [12]
    assert reports[0]["sha256"] == data.fingerprint("testbed")
    assert reports[-1]["rejected"][0] == {
        "line": 14, "position": 2, "reason": "subject 'Uvo' does not occur in 'Zen is in'"
    }  # fmt: skip


def test_get_reports_what_came(printed: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(url: str, path: Path, **options: object) -> None:
        assert (url, options["sha256"]) == (SOURCES["zsre"].url, None)
        path.write_text(json.dumps([QUESTION] * 19_085 + [QUESTION | {"alt": ""}]))

    monkeypatch.setattr(download, "fetch", fetch)
    found = json.loads(printed("get", "zsre", "--json"))
    assert (found["records"], found["published"], len(found["rejected"])) == (19_086, 19_086, 1)


def test_mistakes_are_one_line(mistake: Print, cases: Path) -> None:
    assert mistake("get", "nothing").startswith("editlib: data 'nothing' is unknown; use one of counterfact, ")
    assert "data 'hardfc' is unknown; did you mean hardcf? use one of" in mistake("get", "hardfc")
    assert "has no public address; download it from https://" in mistake("get", "hardcf")
    assert "its form is easyedit, not zsre" in mistake("import", "zsre", cases)
    assert "is neither a file nor one of" in mistake("import", "zsre", "nowhere.json")
    assert "is not here yet; get it with: editlib data get zsre" in mistake("check", "zsre")
