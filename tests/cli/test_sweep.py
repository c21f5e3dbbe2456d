"""`editlib sweep`: the table, the folder, going on after an interruption, and every mistake in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from editlib import data
from editlib.cli import run_app
from editlib.editing.session import Session
from editlib.sweeps.parts import Parts

MODEL = "testbed/anchored"

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    path.write_text(json.dumps(["The mayor opened the bridge.", "She moved to the city last year."]))
    return path


def arguments(out: Path, texts: Path, *more: str) -> list[str]:
    """A small sweep without second moments."""
    quick = ["-p", "steps", "2", "-p", "covariance", "false", "-n", "3", "--no-scores"]
    return ["sweep", "--model", MODEL, "--out", str(out), "--texts", str(texts), *quick, *more]


def sequential(out: Path, texts: Path, *more: str) -> list[str]:
    return [word for word in arguments(out, texts, "--sequential", *more) if word != "--no-scores"]


def test_it_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["sweep", "--help"]) == 0
    assert "Example: editlib sweep --model testbed/anchored" in " ".join(capsys.readouterr().out.split())


def test_it_ends_with_a_line_per_method_and_the_folder(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "rome"
    assert run_app(arguments(out, texts, "--method", "rome", "--method", "c-rome", "--seed", "1")) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert printed.err == "" and lines[0][:5] == ["method", "edits", "failed", "median", "ratio"]
    assert [line[:3] for line in lines[1:3]] == [["rome", "3", "0"], ["c-rome", "3", "0"]]
    assert printed.out.endswith(f"table: {out}\n")
    table = pd.read_parquet(out)
    assert table["method"].tolist() == ["rome", "c-rome"] * 3 and table["efficacy_es"].isna().all()


def test_scores_and_sentences_can_be_had(tmp_path: Path, texts: Path) -> None:
    words = [word for word in arguments(tmp_path / "out", texts, "--per-sentence") if word != "--no-scores"]
    assert run_app(words) == 0
    table = pd.read_parquet(tmp_path / "out")
    assert table["efficacy_es"].notna().all() and table["perplexity_sentences"].map(len).tolist() == [2, 2, 2]


def test_methods_with_filters_are_rows_by_their_names(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--method", "rome+revive", "--method", "c-rome+prune", "--json"]
    assert run_app(sequential(tmp_path / "out", texts, *given)) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["methods"]] == ["rome+revive", "c-rome+prune"]
    assert pd.read_parquet(tmp_path / "out")["error"].isna().all()


def test_json_holds_the_summary(tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(arguments(tmp_path / "out", texts, "--collapse-ratio", "1e-9", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in ("model", "cases", "folder")} == {
        "model": MODEL, "cases": 3, "folder": str(tmp_path / "out"),
    }  # fmt: skip
    (rome,) = found["methods"]
    assert (rome["method"], rome["edits"], rome["failed"], rome["collapsed"]) == ("rome", 3, 0, 3)
    assert rome["max_ratio"] >= rome["median_ratio"] > 0


def test_edits_can_be_made_on_top_of_each_other(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_app(sequential(out, texts, "--every", "2", "--collapse-ratio", "1e-9", "--json")) == 0
    (rome,) = json.loads(capsys.readouterr().out)["methods"]
    assert (rome["edits"], rome["collapsed_at"]) == (3, 0)
    assert pd.read_parquet(out)["measured"].tolist() == [True, False, True, True]
    assert run_app(sequential(out, texts, "--every", "2", "--collapse-ratio", "1e9", "--resume")) == 0
    printed = capsys.readouterr().out
    assert "collapsed at" in printed and printed.splitlines()[1].split()[5] == "–"


@pytest.mark.parametrize("words", [arguments, sequential])
def test_an_interruption_says_in_one_line_how_to_go_on(
    words: Callable[..., list[str]], tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "write", interrupted)
        assert run_app(words(out, texts)) == 130
    printed = capsys.readouterr()
    said = f"editlib: interrupted; {out} keeps what is done: give the same command with --resume\n"
    assert (printed.out, printed.err) == ("", said)
    assert run_app(words(out, texts, "--resume")) == 0
    assert pd.read_parquet(out)["error"].isna().all()


@pytest.fixture
def too_long(tmp_path: Path) -> Path:
    """Two cases: one that is longer than the model's context, and one that is not."""
    keys = {"subject": "Jaklon", "target_new": "Hifru", "ground_truth": "Drema"}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([{**keys, "prompt": f"{much}Jaklon is located in"} for much in ("so " * 200, "")]))
    return path


def test_a_method_whose_every_edit_fails_is_status_1(
    too_long: Path, tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = json.loads(too_long.read_text())
    assert run_app(arguments(tmp_path / "half", texts, "-n", "2", "--data", str(too_long))) == 0
    assert pd.read_parquet(tmp_path / "half")["error"].notna().tolist() == [True, False]
    too_long.write_text(json.dumps(both[:1] * 2))
    for words in (arguments, sequential):
        out = tmp_path / words.__name__
        capsys.readouterr()
        assert run_app(words(out, texts, "-n", "2", "--data", str(too_long))) == 1
        printed = capsys.readouterr()
        assert printed.out.endswith(f"table: {out}\n") and len(pd.read_parquet(out)) >= 2
        assert printed.err.startswith("editlib: every edit by rome failed, the first so: text 'so so so")


def test_failed_rows_are_made_again_on_request(
    too_long: Path, tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tmp_path / "out", texts, "-n", "2", "--data", str(too_long))
    assert run_app(words) == 0
    monkeypatch.setattr(Session, "check_request", lambda *_: None)  # it fails later, and so says something else
    before = pd.read_parquet(tmp_path / "out")
    assert run_app([*words, "--resume"]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out"), before)
    assert run_app([*words, "--resume", "--retry-failed"]) == 0
    after = pd.read_parquet(tmp_path / "out")
    assert after["error"][0] != before["error"][0]
    pd.testing.assert_frame_equal(after[1:], before[1:])


def test_answers_are_kept_on_request(tmp_path: Path, texts: Path) -> None:
    assert run_app([w for w in arguments(tmp_path / "out", texts, "--answers") if w != "--no-scores"]) == 0
    assert pd.read_parquet(tmp_path / "out")["answer"].notna().all()


def test_a_sequence_is_tested_again_at_its_end(tmp_path: Path, texts: Path) -> None:
    assert run_app(sequential(tmp_path / "out", texts, "--retest", "--every", "3")) == 0
    table = pd.read_parquet(tmp_path / "out")
    assert table["retest"].sum() == 3 and table.loc[table["retest"], "efficacy_es"].notna().all()


def test_a_preset_can_be_given_by_file(
    tmp_path: Path, texts: Path, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset.json"
    preset.write_text('{"rome": {"layer": 1, "steps": 1, "covariance": false}}')
    words = ["--model", MODEL, "--texts", str(texts), "--preset", str(preset)]
    assert run_app(["sweep", *words, "-n", "1", "--no-scores", "--out", str(tmp_path / "out")]) == 0
    assert pd.read_parquet(tmp_path / "out")["steps"].tolist() == [1]
    fact = ["--prompt", "{} is located in", "--subject", "Jaklon", "--target", "Hifru"]
    capsys.readouterr()
    assert run_app(["edit", *words, *fact, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diagnostics"]["steps"] == 1
    preset.write_text('{"rome": {"layr": 1}}')
    assert "did you mean layer?" in mistake("edit", *words, *fact)
    assert "preset.jsn' does not exist" in mistake("edit", *words[:-1], f"{preset}"[:-2] + "n", *fact)


def test_mistakes_are_named(mistake: Mistake, tmp_path: Path, texts: Path) -> None:
    out, full = tmp_path / "out", tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("")
    assert "Missing option '--out'" in mistake("sweep", "--model", MODEL)
    assert "method 'rom' is unknown; did you mean rome?" in mistake(*arguments(out, texts, "--method", "rom"))
    assert "'step' is unknown" in mistake(*arguments(out, texts, "-p", "step", "2"))
    assert "n=9999 is out of range" in mistake(*arguments(out, texts, "-n", "9999"))
    assert "these cases have no splits" in mistake(*arguments(out, texts, "--split", "tune"))
    drawn = arguments(out, texts, "--data", "facts", "-n", "9999", "--split")
    assert "split 'tuned' is unknown; did you mean tune?" in mistake(*drawn, "tuned")
    assert f"there are {len(data.cases('facts', split='tune'))} cases" in mistake(*drawn, "tune")
    assert "--retest is for --sequential" in mistake(*arguments(out, texts, "--retest"))
    assert "--retry-failed is for --resume" in mistake(*arguments(out, texts, "--retry-failed"))
    assert "--every is for --sequential" in mistake(*arguments(out, texts, "--every", "2"))
    assert "--sequential keeps no scores" in mistake(*arguments(out, texts, "--sequential"))
    assert "nowhere.json" in mistake(*arguments(out, texts, "--data", "nowhere.json"))
    assert "nowhere.json" in mistake(*arguments(out, tmp_path / "nowhere.json"))
    assert f"{out} is not there, so that there is nothing to go on with" in mistake(*arguments(out, texts, "--resume"))
    assert f"output folder {full} is not empty and holds no sweep" in mistake(*arguments(full, texts, "--resume"))
    assert "is no writable folder" in mistake(*arguments(full / "thesis.txt" / "out", texts))
    assert not out.exists()  # no mistake leaves anything behind


def test_a_folder_is_not_used_twice_unawares(mistake: Mistake, tmp_path: Path, texts: Path) -> None:
    out = tmp_path / "out"
    assert run_app(arguments(out, texts)) == 0
    assert f"{out} holds a sweep already; resume it (resume=True, --resume)" in mistake(*arguments(out, texts))
    assert "differs in its cases; choose another" in mistake(*arguments(out, texts, "--seed", "1", "--resume"))
    assert "differs in its sweep; choose another" in mistake(*sequential(out, texts, "--resume"))
