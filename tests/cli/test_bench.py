"""`editlib bench`: the table, the JSON, the profile, and every mistake in one line."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from editlib.bench import work as workload
from editlib.cli import run_app

SMALL = ["bench", "--edits", "2", "--plain-edits", "1", "--steps", "2", "--texts", "4"]

Mistake = Callable[..., str]


@pytest.fixture
def mistake(mistake: Mistake) -> Mistake:
    """As everywhere, of `editlib bench`."""
    return partial(mistake, "bench")


def test_it_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["bench", "--help"]) == 0
    assert "Example: editlib bench --model gpt2 --edits 16" in " ".join(capsys.readouterr().out.split())


def test_it_prints_stages_ratio_and_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([*SMALL, "--profile"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and lines[0].startswith("per edit") and "together" in printed.out
    assert "times faster than plain" in printed.out and "times the floor" in printed.out
    head = next(i for i, line in enumerate(lines) if line.startswith("operator"))
    assert len(lines[head + 1 :]) == 10


def test_json_holds_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["edits"], found["plain_edits"], found["steps"]) == ("testbed/anchored", 2, 1, 2)
    assert found["ratio"] == found["plain_seconds_per_edit"] / found["engine_seconds_per_edit"]
    assert 0 < found["floor_flops_per_edit"] < found["flops_per_edit"] < found["plain_flops_per_edit"]
    assert "peak_memory_bytes" in found and "profile" not in found
    assert found["value_difference"] < 1e-3 and found["perplexity_difference"] < 1e-3


@pytest.mark.parametrize("model", ["testbed", "gpt2", "folder"])
def test_too_many_edits_are_refused_before_the_model_is_loaded(
    model: str, mistake: Mistake, gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "load", None)
    named = ("--model", gpt2_folder if model == "folder" else model)
    assert "edits=2000 is out of range; " in mistake(*named, "--edits", 2000)
    assert "plain_edits=3 is out of range; there are 2 edits" in mistake(*named, "--edits", 2, "--plain-edits", 3)


def test_mistakes_are_named(mistake: Mistake) -> None:
    assert "bench model 'gpt3' is unknown; did you mean gpt2? use one of testbed, gpt2" in mistake("--model", "gpt3")
    assert "device 'abacus' is unknown; use auto, cpu" in mistake("--model", "gpt2", "--device", "abacus")
    assert "takes at most 128" in mistake("--longest", 400)
    assert "before=120 or longest=59 is too large" in mistake("--before", 120)
    assert "dtype 'float8' is unknown" in mistake("--dtype", "float8")
    assert "see editlib bench --help" in mistake("--rounds", 0)
