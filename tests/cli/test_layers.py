"""`editlib layers`: the table, the JSON, the heat map, and every mistake in one line."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from editlib.cli import run_app
from editlib.measuring import causal

MODEL = "testbed/anchored"

Mistake = Callable[..., str]


@pytest.fixture
def mistake(mistake: Mistake) -> Mistake:
    """As everywhere, of `editlib layers`."""
    return partial(mistake, "layers")


@pytest.fixture
def unknown_facts(tmp_path: Path) -> Path:
    """Facts no model knows."""
    rewrite = {
        "prompt": "{} is located in", "subject": "Zen", "target_new": {"str": "Daslo"}, "target_true": {"str": "Quux"},
    }  # fmt: skip
    record = {"case_id": 0, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([record]))
    return path


def test_it_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["layers", "--help"]) == 0
    assert "Example: editlib layers testbed/anchored" in " ".join(capsys.readouterr().out.split())


def test_it_prints_every_layer_and_draws_the_heat_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "layers.png"
    assert run_app(["layers", MODEL, "-n", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and "last subject token" in lines[0]
    assert [line.split()[0] for line in lines[1:6]] == list("01234")
    assert "P(first token of the true target)" in printed.out
    assert "proposed layer " in " ".join(printed.out.split()) and "4 known, 1 layer restored at once" in printed.out
    assert out.read_bytes().startswith(b"\x89PNG") and list(out.parent.iterdir()) == [out]


def test_json_holds_the_numbers_and_repeats_them(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("3", "3", "4"):
        assert run_app(["layers", MODEL, "-n", "3", "--window", "3", "--seed", seed, "--json"]) == 0
    text, decoder, found = capsys.readouterr().out, json.JSONDecoder(), []
    while text.strip():
        record, end = decoder.raw_decode(text.lstrip())
        found.append(record)
        text = text.lstrip()[end:]
    first, again, other = found
    assert first == again and first["effects"] != other["effects"]
    assert (first["model"], first["facts"], first["window"]) == (MODEL, 3, 3)
    effects = [row["last subject token"] for row in first["effects"]]
    assert first["proposed"] == effects.index(max(effects)) and len(effects) == 5
    assert first["total_effect"] == pytest.approx(first["clean"] - first["corrupted"])


def test_what_takes_long_is_foretold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(causal, "seconds_to_trace", lambda lm, facts: 100.0 * len(facts))
    assert run_app(["layers", MODEL, "-n", "2"]) == 0
    assert capsys.readouterr().err == "editlib: tracing 2 facts takes about 3 min 20 s; -n 1 is faster\n"


def test_mistakes_are_named(
    mistake: Mistake, unknown_facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "model 'testbed/nothing' is no shipped or packaged one" in mistake("testbed/nothing")
    assert "nowhere.json" in mistake(MODEL, "--data", "nowhere.json")
    assert "these cases have no splits" in mistake(MODEL, "--split", "tune")
    assert "device 'abacus' is unknown; use auto, cpu" in mistake(MODEL, "--device", "abacus")
    monkeypatch.setattr("editlib.measuring.causal.known", None)  # nor is the model run before
    assert "window 2 is not odd" in mistake(MODEL, "--window", "2")
    assert "window 99 is out of range" in mistake(MODEL, "--window", "99")
    assert "is no causal language model" in mistake("testbed/encdec")
    monkeypatch.undo()
    assert "see editlib layers --help" in mistake(MODEL, "-n", "0")
    assert "testbed/anchored knows none of the 1 facts" in mistake(MODEL, "--data", unknown_facts)
    assert f"output {unknown_facts} exists already" in mistake(MODEL, "--out", unknown_facts)
    assert "figure.bmp is no figure's name; end it in .png" in mistake(MODEL, "--out", tmp_path / "figure.bmp")
    assert "cannot be written" in mistake(MODEL, "--out", unknown_facts / "figure.png")
