"""`editlib screen`: what it prints and keeps, and every mistake in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from editlib import data
from editlib.cli import run_app

MODEL = "testbed/anchored"


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty cases, one of which cannot be read."""
    cases = [
        {"case_id": case.case_id, "prompt": case.request.prompt, "subject": case.request.subject,
         "target_new": case.request.target_new}
        for case in data.cases("testbed")[:20]
    ]  # fmt: skip
    cases[3]["prompt"] = "so " * 200 + "{} is"
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps(cases))
    return path


def test_it_prints_the_worst_and_keeps_all(some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["screen", "--model", MODEL, "--data", str(some), "--out", str(out), "--verify", "2"]
    assert run_app(words) == 0
    lines = capsys.readouterr().out.splitlines()
    table = pd.read_parquet(out)
    assert lines[0].split()[:2] == ["case", "subject"]
    said = {line.split("  ")[0]: line for line in lines if "  " in line}
    assert (
        "20 cases, rome at layer 2" in said["screened"]
        and f"{table['collapse'].sum()} (" in said["would break the model"]
    )
    assert (
        "1, the first is case" in said["left out"]
        and "2: 2 foretold to break the model, 2 do, 2 both" in (said["edited, riskiest"])
    )
    assert run_app([*words, "--resume", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cases"], found["hard"], found["rejected"]) == (20, int(table["collapse"].sum()), 1)
    assert found["verified"]["riskiest"] == {"edits": 2, "foretold": 2, "collapse": 2, "both": 2}


def test_nothing_hard_is_said_so(some: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["screen", "--model", MODEL, "--data", str(some), "--out", str(tmp_path / "out"), "--method", "c-rome"]
    assert run_app(words) == 0
    assert "would break the model  0 (0 %)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "_hard.json").read_text()) == []


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_no_case_that_could_be_screened_is_a_failure(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"prompt": f"{'the town ' * 900}of {{}} is in", "subject": "Jaklon", "target_new": "Hifru"}
    (tmp_path / "long.json").write_text(json.dumps([asked]), "utf-8")
    words = ["screen", "--model", MODEL, "--data", str(tmp_path / "long.json"), "--out", str(tmp_path / "out")]
    assert run_app([*words, *more]) == 1
    assert "no case could be screened" in capsys.readouterr().err


def test_mistakes_are_one_line_each(mistake: Callable[..., str], some: Path, tmp_path: Path) -> None:
    words = ("screen", "--model", MODEL, "--data", some, "--out", tmp_path / "out")
    assert "what mend does cannot be told from keys" in mistake(*words, "--method", "mend")
    assert "did you mean rome?" in mistake(*words, "--method", "rom")
    assert "-p flavour is no hyper-parameter; give --flavour" in mistake(*words, "-p", "flavour", "meng-2022")
    (tmp_path / "long.json").write_text(json.dumps(["Today. " * 900]), "utf-8")
    assert "shorten it" in mistake(*words, "--verify", "1", "--texts", tmp_path / "long.json")
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").write_text("")
    assert "is a file, not a folder" in mistake("screen", "--model", MODEL, "--out", tmp_path / "taken")
