"""The command line: what it prints, and that every mistake is one line on stderr and status 2."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT as REPOSITORY

from editlib.cli import run_app
from editlib.cli.testbed import TESTBED

PROGRAM = [sys.executable, "-c", "from editlib.cli import main; main()"]
TEXTS = [f"The {a} {b} is located in the {c} country." for a in ("old", "new") for b in ("town", "band") for c in "abc"]

needs_testbed = pytest.mark.skipif(
    not (TESTBED / "anchored" / "card.json").is_file(), reason="the twins are not trained yet"
)
needs_pilot = pytest.mark.skipif(
    not (REPOSITORY / "notebooks" / "pilot.py").is_file(), reason="there is no pilot analysis yet"
)

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random GPT-2 whose tokenizer drops zero-width spaces."""
    torch, tokenizers, transformers = (pytest.importorskip(n) for n in ("torch", "tokenizers", "transformers"))
    folder = tmp_path_factory.mktemp("model")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe._tokenizer.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128, "vocab_size": len(tokenizer)}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    path.write_text(json.dumps(TEXTS))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def edit(model: object, **changes: object) -> list[object]:
    """Arguments of a good edit, with changes."""
    options = {"prompt": "{} is located in", "subject": "town", "target": "country", **changes}
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
    return ["edit", "--model", model, *(item for pair in pairs for item in pair)]


# -- help ----------------------------------------------------------------------------------------------

ABOUT_RUNS = ["run", "runs", "show", "verify", "cite", "compare", "publish"]
COMMANDS = ["edit", *ABOUT_RUNS, "testbed train", "testbed info"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([*command.split(), "--help"]) == 0
    assert f"Example: editlib {command}" in " ".join(capsys.readouterr().out.split())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom editlib import cli\ncli.run_app([])\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command.split()[0] in done.stdout for command in COMMANDS)
    assert not {"torch", "transformers", "pandas", "numpy", "papermill"} & set(done.stderr.split())


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([]) == 0
    assert "Usage: editlib" in capsys.readouterr().out


def test_usage_errors_are_one_line(mistake: Mistake) -> None:
    assert "see editlib edit --help" in mistake("edit", "--layer", "two")
    assert "No such command 'edti'" in mistake("edti")
    assert "Missing option '--model'" in mistake("edit")
    assert "see editlib testbed --help" in mistake("testbed")


def test_an_interruption_is_one_line_and_status_130() -> None:
    code = (
        "import editlib.runs.analyses, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored\n"
        "def wait(root): print('ready', flush=True); time.sleep(60)\n"
        "editlib.runs.analyses.find_root = wait\n"
        "from editlib.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, "run", "toy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=90)[1] == "editlib: interrupted\n"
    assert process.returncode == 130


# -- edit ----------------------------------------------------------------------------------------------


def test_edit_shows_before_and_after(model: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([str(a) for a in edit(model, texts=texts, corpus=texts)] + ["--no-covariance"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for word in (
        "before",
        "after",
        "continuation",
        "P(country)",
        "perplexity, mean",
        "denominator",
        "|Δ| / |W|",
    ):
        assert word in printed.out
    assert re.search(r"verdict +(intact|collapsed) \(perplexity ×[\d.,]+\)", printed.out)


def test_edit_as_json_saves_the_edit(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "edit"
    assert run_app([str(a) for a in edit(model, out=out)] + ["--no-covariance", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "rome" and report["request"]["subject"] == "town"
    assert report["after"]["target_probability"] > report["before"]["target_probability"]
    assert report["collapsed"] is None and "--texts" in report["verdict"]  # nothing to measure perplexity on
    assert (out / "edit.safetensors").is_file()


@pytest.mark.parametrize("method", ["ft", "ft-l", "r-rome", "memit", "emmet"])
def test_edit_runs_every_method(model: Path, texts: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    corpus = texts.with_name("long.json")
    corpus.write_text(json.dumps(TEXTS * 20))
    arguments = [str(a) for a in edit(model, texts=texts, corpus=corpus, method=method)]
    assert run_app([*arguments, "-p", "steps", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == method and report["diagnostics"]["steps"] == 3
    assert run_app([*arguments, "-p", "steps", "3"]) == 0
    assert "verdict" in capsys.readouterr().out


def test_edit_takes_a_lineages_settings_and_single_ones(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(a) for a in edit(model)]
    assert run_app([*arguments, "--flavour", "yang-2024", "-p", "keys", "mixed", "-p", "steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diagnostics"]["steps"] == 2  # and no covariance, so no corpus
    for mistake, said in (
        (["--flavour", "sour"], "flavour 'sour' is unknown"),
        (["-p", "step", "2"], "hyper-parameter 'step' is unknown"),
        (["--method", "memit", "-p", "layers", "[5]"], "layer 5 is out of range"),
        (["--method", "ft", "--no-covariance"], "hyper-parameter 'covariance' is unknown; ft has"),
    ):
        assert run_app([*arguments, *mistake]) == 2
        assert said in capsys.readouterr().err


def test_a_low_collapse_ratio_makes_any_edit_a_collapse(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = edit(model, texts=texts, collapse_ratio=0.01, method="c-rome", layer=0)
    assert run_app([str(a) for a in arguments] + ["--no-covariance", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["collapsed"] is True and report["verdict"].startswith("collapsed (perplexity ×")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": "the town is located in"}, "must hold {} once"),
        ({"prompt": "{} and {}"}, "must hold {} once"),
        ({"prompt": "The town hall is old"}, "write 'The {} hall is old'"),
        ({"prompt": "It is located in", "subject": "town"}, "'It is located in' must hold {} once"),
        ({"subject": " "}, "subject ' ' is empty"),
        ({"target": ""}, "target '' is empty"),
        ({"subject": "\u200b"}, "cannot be located"),
        ({"method": "roma"}, "method 'roma' is unknown"),
        ({"layer": 99}, "layer 99 is out of range"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown"),
        ({"device": "abacus"}, "device 'abacus' is not available"),
        ({"texts": "nowhere.json"}, "'nowhere.json' is neither a file nor one of"),
        ({"stats": "nowhere.safetensors"}, "nowhere.safetensors is no readable statistics file"),
    ],
)
def test_a_wrong_edit_is_named(model: Path, mistake: Mistake, changes: dict[str, object], named: str) -> None:
    assert named in mistake(*edit(model, **changes))


@pytest.mark.parametrize("name", ["testbed/ankored", "no-such-model", "no/such/folder", ""])
def test_an_unknown_model_is_named(mistake: Mistake, name: str) -> None:
    assert f"model {name!r}" in mistake(*edit(name))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_model_folder_is_named(model: Path, tmp_path: Path, mistake: Mistake, file: str, damage: str) -> None:
    for path in model.iterdir():
        content = path.read_bytes()
        if path.name != file or damage == "truncated":
            (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.name == file else content)
    assert file in mistake(*edit(tmp_path))


def test_statistics_of_another_model_are_refused(model: Path, tmp_path: Path, mistake: Mistake) -> None:
    torch = pytest.importorskip("torch")
    from editlib.editing.stats import Stats, StatsHeader

    path = Stats(StatsHeader("0" * 64, "0" * 64, 128, 128), {1: torch.eye(64)}).save(tmp_path / "c.safetensors")
    assert "these statistics were made for model 000000000000" in mistake(*edit(model, stats=path))


def test_an_output_folder_that_cannot_be_made_is_named(model: Path, tmp_path: Path, mistake: Mistake) -> None:
    (tmp_path / "file").touch()  # root is not stopped by permissions, but by a file where a folder should be
    assert "file/sub cannot be written" in mistake(*edit(model, out=tmp_path / "file" / "sub"))
    assert "exists already" in mistake(*edit(model, out=tmp_path))
    assert "cannot be written" in mistake("testbed", "train", "control", "--out", tmp_path / "file" / "sub")


# -- analyses and runs ---------------------------------------------------------------------------------


TOY = """\
# ---
# jupyter:
#   editlib:
#     title: Toy
#     profiles:
#       quick: {}
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
n: int = 5  # cases drawn

# %%
1 / (n - 7)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one small analysis, and the working directory in it."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_config.yml").touch()
    shutil.copy(REPOSITORY / "CITATION.cff", tmp_path)
    (tmp_path / "notebooks" / "toy.py").write_text(TOY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_list_and_publish(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "toy", "-p", "n", "6", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (project / found["path"] / "manifest.json").is_file()
    assert run_app(["run", "toy", "-p", "n=6"]) == 0
    assert capsys.readouterr().out == f"toy: {found['path']}\n"  # the same spec is not executed again
    assert run_app(["runs"]) == 0
    assert found["run"] in capsys.readouterr().out
    assert run_app(["publish", found["run"]]) == 0
    assert run_app(["runs", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert (row["run"], row["n"], row["published"]) == (found["run"], 6, True)
    assert row["path"] == f"book/runs/toy/{found['run']}"


def test_run_all_executes_what_has_no_run_yet(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "--all", "--profile", "quick"]) == 0
    first = capsys.readouterr()
    assert first.out.startswith("toy: book/runs/toy/local-") and first.err == ""
    assert run_app(["run", "--all"]) == 0
    assert capsys.readouterr().out == first.out


def test_analyses_can_be_listed_with_their_parameters(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "--list"]) == 0
    assert capsys.readouterr().out == "toy: Toy (profiles: quick)\nn  int  5  cases drawn\n"


def test_wrong_runs_are_named(project: Path, mistake: Mistake) -> None:
    assert "analysis 'toi' is unknown; use one of toy" in mistake("run", "toi")
    assert "analysis '../toy' is unknown" in mistake("run", "../toy")
    assert "parameter 'm' is unknown; toy has n (int)" in mistake("run", "toy", "-p", "m", "3")
    assert "n='x' is no int" in mistake("run", "toy", "-p", "n", "x")
    assert "-p n has no value" in mistake("run", "toy", "-p", "n")
    assert "profile 'full' is unknown" in mistake("run", "toy", "--profile", "full")
    assert "name an analysis (toy)" in mistake("run")
    assert "--all takes neither" in mistake("run", "toy", "--all")
    assert "run '0123' is unknown" in mistake("publish", "0123")
    assert "clone of the project" in mistake("runs", "--root", "/")
    (project / "book").touch()
    assert "book/runs/toy cannot be written" in mistake("run", "toy")


def test_a_failing_notebook_is_status_1_and_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "toy", "-p", "n", "7"]) == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "editlib: analysis toy failed (ZeroDivisionError: division by zero); see _build/failed/toy.ipynb\n"
    )
    assert (project / "_build" / "failed" / "toy.ipynb").is_file()


@needs_pilot
@needs_testbed
@pytest.mark.parametrize("n", ["0", "-1", "1000000"])
def test_a_number_of_cases_there_are_not_is_named(mistake: Mistake, n: str) -> None:
    assert f"n={n} is out of range" in mistake("run", "pilot", "-p", "n", n, "--root", REPOSITORY)


# -- testbed -------------------------------------------------------------------------------------------


def test_an_unknown_twin_is_named(tmp_path: Path, mistake: Mistake) -> None:
    assert "'twin' is unknown; use one of anchored" in mistake("testbed", "train", "twin", "--out", tmp_path / "twin")


def test_info_checks_files_against_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("editlib.cli.testbed.TESTBED", tmp_path)
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    card = {
        "name": "testbed/control",
        "parameters": 7,
        "losses": {"train": {"10": 5.0}, "held_out": 4.5},
        "sha256": digest,
    }
    (tmp_path / "control" / "card.json").write_text(json.dumps(card))
    assert run_app(["testbed", "info", "--json"]) == 0
    (info,) = json.loads(capsys.readouterr().out)
    assert info["held_out_loss"] == 4.5 and info["file"] == "matches its card"
    (tmp_path / "control" / "model.safetensors").write_bytes(b"other weights")
    assert run_app(["testbed", "info"]) == 0
    printed = capsys.readouterr().out
    assert "testbed/control" in printed and "DIFFERS from its card" in printed


@needs_testbed
def test_the_shipped_twins_are_as_their_cards_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["testbed", "info", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert {card["name"] for card in cards} >= {"testbed/anchored", "testbed/control"}
    assert {card["file"] for card in cards} == {"matches its card"}
