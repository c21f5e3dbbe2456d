"""The command line: what it prints, and that every mistake is one line on stderr and status 2."""

import hashlib
import json
import logging
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

import editlib
from editlib.cli import output, run_app
from editlib.data.sources import SHIPPED
from editlib.editing import methods
from editlib.editing.methods import FLAVOURS as FLAVOURS_BY_NAME
from editlib.editing.names import FILTERS, FLAVOURS, METHODS
from editlib.measuring.statistics import COLLAPSE_RATIO
from editlib.runs import citation

Mistake = Callable[..., str]


# -- help ----------------------------------------------------------------------------------------------

ABOUT_RUNS = ["run", "runs", "show", "verify", "cite", "compare", "publish"]
COMMANDS = ["edit", "apply", "init", *ABOUT_RUNS, "testbed train", "testbed cases", "testbed info"]


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


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["--version"]) == 0
    assert capsys.readouterr().out == f"editlib {editlib.__version__}\n"


NAMES = {  # mistakes in names: what is said of them
    "edit --model testbed/ankored": "did you mean testbed/anchored?",
    "edit --model gpt2": "give its 40-digit commit",
    "layers testbed/ankored": "did you mean testbed/anchored?",
    "edit --model testbed/anchored --method rom": "did you mean rome?",
    "sweep --model testbed/anchored --out x --method rome --method c-rom": "did you mean c-rome?",
    "edit --model testbed/anchored --flavour meng-2021": "did you mean meng-2022?",
    "edit --model testbed/anchored --dtype bfloat": "did you mean bfloat16?",
    "edit --model testbed/anchored --device gpu": "use auto, cpu, cuda or cuda:N",
    "sweep --model testbed/anchored --out x --data testbd": "did you mean testbed?",
    "edit --model testbed/anchored --texts testbed-ppl50": "did you mean testbed-ppl-50?",
    "edit --model testbed/anchored --requests nowhere.json": "neither a file nor one of",
    "sweep --model testbed/anchored --out x --collapse-ratio nan": "out of range",
    "hardedit --model testbed/anchored --out x --author wrld": "did you mean world?",
    "edit --model testbed/anchored": "no fact to edit",
    "edit --model testbed/anchored --prompt {} --subject Jaklon --target Hifru -p steps": "-p steps has no value",
    "run pilto": "did you mean pilot?",
    "runs pilto": "did you mean pilot?",
}


def test_names_are_checked_before_anything_heavy_is_imported() -> None:
    """Each is told in one line, in a process that has not imported torch at the end."""
    code = (
        "import json, sys\nfrom editlib.cli import run_app\n"
        "ends = [run_app(line.split()) for line in json.load(sys.stdin)]\n"
        "print(set(ends), 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    command, given = [sys.executable, "-c", code], json.dumps(list(NAMES))
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "{2} False False\n"
    for said, line in zip(NAMES.values(), done.stderr.splitlines(), strict=True):
        assert said in line


def test_the_environment_says_where_models_are_put(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDITLIB_DEVICE", "abacus")
    assert run_app(["run", "pilot"]) == 2
    assert "device 'abacus' is unknown" in capsys.readouterr().err


def test_the_names_are_those_of_what_they_stand_for() -> None:
    assert tuple(methods.METHODS) == METHODS and tuple(FLAVOURS_BY_NAME) == FLAVOURS
    assert tuple(methods.FILTERS) == FILTERS
    assert set(citation.FORMATS) == {"bibtex", "apa", "cff"} and COLLAPSE_RATIO == 5.0  # the option's default


def test_work_that_takes_long_gives_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "FIRST", 0.05)
    with output.alive("starting"):
        time.sleep(0.08)
        logging.getLogger("editlib.engine").info("searching %d values", 3)
        time.sleep(0.15)
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"editlib: starting \(0\.\d s\)", said[0])
    assert re.fullmatch(r"editlib: searching 3 values \(0\.\d s\)", said[1])
    with output.alive("starting", quiet=True):
        time.sleep(0.08)
    assert capsys.readouterr().err == ""


def test_usage_errors_are_one_line(mistake: Mistake) -> None:
    assert "see editlib edit --help" in mistake("edit", "--layer", "two")
    assert "No such command 'edti'" in mistake("edti")
    assert "Missing option '--model'" in mistake("edit")
    assert "see editlib testbed --help" in mistake("testbed")
    unquoted = mistake("edit", "--model", "testbed/anchored", "--subject", "Eiffel", "Tower")
    assert "(Tower); quote what has spaces, with plain quotes" in unquoted


@pytest.mark.parametrize("words", ["apply caf\udce9", "run toy -p label=caf\udce9", "runs --model caf\udce9"])
def test_an_argument_that_is_no_utf8_is_told(mistake: Mistake, words: str) -> None:
    assert "is no UTF-8 text; write it in UTF-8" in mistake(*words.split())


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
    said = f"toy: {found['path']}\ntheir pages: jupyter-book build book/ --all, then open _build/html/runs.html\n"
    assert capsys.readouterr().out == said  # the same spec is not executed again
    assert run_app(["runs"]) == 0
    assert found["run"] in capsys.readouterr().out
    assert run_app(["publish", found["run"], "--author", "Ada Lovelace"]) == 0
    assert run_app(["runs", "--json"]) == 0
    folder, rows = capsys.readouterr().out.split("\n", 1)
    (row,) = json.loads(rows)
    assert (row["spec"], row["n"], row["published"]) == (found["spec"], 6, True)
    assert row["path"] == folder == f"book/runs/toy/{row['run']}"


def test_run_all_executes_what_has_no_run_yet(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "--all", "--profile", "quick"]) == 0
    first = capsys.readouterr()
    assert first.out.startswith("toy: book/runs/toy/local-") and first.err == ""
    assert run_app(["run", "--all"]) == 0
    assert capsys.readouterr().out == first.out


def test_analyses_can_be_listed_with_their_parameters(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "--list"]) == 0
    assert capsys.readouterr().out == "toy: Toy (profiles: quick)\nn  int  5  cases drawn\n"
    assert run_app(["run", "toy", "--list", "--json"]) == 0
    (toy,) = json.loads(capsys.readouterr().out)
    assert (toy["analysis"], toy["profiles"]) == ("toy", {"quick": {}})
    assert toy["parameters"] == [{"name": "n", "type": "int", "default": 5, "help": "cases drawn"}]


def test_wrong_runs_are_named(project: Path, mistake: Mistake) -> None:
    assert "analysis 'toi' is unknown; did you mean toy?" in mistake("run", "toi")
    assert "analysis '../toy' is unknown" in mistake("run", "../toy")
    assert "parameter 'm' is unknown; toy has n (int)" in mistake("run", "toy", "-p", "m", "3")
    assert "parameter 'nn' is unknown; did you mean n? toy has" in mistake("run", "toy", "-p", "nn=3")
    assert "n='x' is no int" in mistake("run", "toy", "-p", "n", "x")
    assert "-p n has no value" in mistake("run", "toy", "-p", "n")
    assert "profile 'full' is unknown" in mistake("run", "toy", "--profile", "full")
    assert "name an analysis (toy)" in mistake("run")
    assert "--all takes neither" in mistake("run", "toy", "--all")
    assert "run '0123' is unknown" in mistake("publish", "0123")
    assert "clone of the project" in mistake("runs", "--root", "/")
    (project / "book").mkdir()
    (project / "book" / "runs").touch()
    assert "book/runs/toy cannot be written" in mistake("run", "toy")


def test_a_failing_notebook_is_status_1_and_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["run", "toy", "-p", "n", "7"]) == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "editlib: analysis toy failed (ZeroDivisionError: division by zero); see _build/failed/toy.ipynb\n"
    )
    assert (project / "_build" / "failed" / "toy.ipynb").is_file()


def test_what_a_notebook_calls_a_mistake_is_one(project: Path, mistake: Mistake) -> None:
    drawing = TOY.replace("1 / (n - 7)", 'from editlib import data\ndata.draw(data.cases("testbed"), n, seed=0)')
    (project / "notebooks" / "drawing.py").write_text(drawing)
    assert "n=0 is out of range" in mistake("run", "drawing", "-p", "n", "0")


# -- testbed -------------------------------------------------------------------------------------------


def test_an_unknown_twin_is_named(tmp_path: Path, mistake: Mistake) -> None:
    assert "'twin' is unknown; use one of anchored" in mistake("testbed", "train", "twin", "--out", tmp_path / "twin")


def test_cases_of_a_world_are_written_once(tmp_path: Path, mistake: Mistake) -> None:
    out = tmp_path / "worlds/0"
    assert run_app(["testbed", "cases", "--out", str(out)]) == 0
    assert (out / "testbed.json").read_bytes() == SHIPPED["testbed"].read_bytes()
    assert f"{out} exists already; choose another" in mistake("testbed", "cases", "--out", out)


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


def test_the_shipped_twins_are_as_their_cards_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["testbed", "info", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert {card["name"] for card in cards} >= {"testbed/anchored", "testbed/control"}
    assert {card["file"] for card in cards} == {"matches its card"}
