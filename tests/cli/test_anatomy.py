"""`editlib anatomy`: the table, the JSON, and every mistake in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from editlib.cli import run_app

MODEL = "testbed/anchored"


def test_a_line_for_each_layer_and_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["anatomy", MODEL, "--no-covariance"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["layer", "residual", "later", "spike"] and "of trace C" not in lines[0]
    assert [line.split()[0] for line in lines[1:6]] == list("01234") and lines[6] == ""
    assert lines[7].split(maxsplit=2) == ["massive", "activation", "none"]
    assert "longest key at 0" in lines[9] and lines[9].endswith("times later ones, layer 1")


def test_json_has_what_position_0_is_of_the_second_moment(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["anatomy", MODEL, "--moment-tokens", "4096", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["texts"], found["onset"]) == (MODEL, 50, None)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2, 3, 4]
    assert all(0 < row["trace_share"] < 1 < row["damping"] for row in found["layers"])


def test_mistakes_are_one_line_each(mistake: Callable[..., str], gpt2_folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "texts.json"
    few.write_text('["Zen is here"]')
    assert "none of 1 texts has 10 tokens" in mistake("anatomy", MODEL, "--no-covariance", "--texts", few)
    assert "did you mean testbed/anchored?" in mistake("anatomy", "testbed/ankored")
    assert "is no causal language model" in mistake("anatomy", "testbed/encdec")
    assert "the corpus has" in mistake("anatomy", gpt2_folder, "--texts", few, "--corpus", few)
