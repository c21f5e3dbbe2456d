"""`editlib rerun`: checked and estimated first, resumed, and not stopped by an analysis that fails."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from folders import make_project

import editlib as el
from editlib.cli import run_app
from editlib.data.request import EditRequest
from editlib.models.language_model import LanguageModel
from editlib.runs.cost import edits_worth
from editlib.runs.folders import find_runs
from editlib.runs.plan import plan
from editlib.sweeps import trial

command = import_module("editlib.cli.rerun")  # not the function of that name
Mistake = Callable[..., str]
TINY = """\
# ---
# jupyter:
#   editlib:
#     title: Tiny
#     models: [model]
#     data: [cases, texts, corpus]
#     profiles:
#       quick: {n: 2}
#       full: {n: 20}
#   jupytext:
#     cell_metadata_filter: tags,-all
# ---

# %% tags=["parameters"]
model: str = "testbed/anchored"  # the model to edit
cases: str = "testbed"  # edit cases
texts: str = "testbed-ppl-50"  # texts
corpus: str | None = None  # texts for the second moments
n: int = 2  # cases
seed: int = 0  # of the draw

# %%
import json
from pathlib import Path

import pandas as pd

if NAME == "broken":
    raise EditlibError("it does not work")
pd.DataFrame({"seconds": [0.5] * n}).to_parquet("data/cases.parquet")
Path("metrics.json").write_text(json.dumps({"n": n}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two analyses of a model, the first of which fails, and nothing worked out yet."""
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path / "cache"))
    root = make_project(tmp_path / "project")
    for name in ("broken", "tiny"):
        opening = f"from editlib.errors import EditlibError\n\nNAME = {name!r}\nimport json\n"
        (root / "notebooks" / f"{name}.py").write_text(TINY.replace("import json\n", opening, 1), "utf-8")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def data(tmp_path: Path, corpus: Sequence[str], ask: EditRequest) -> dict[str, Path]:
    """Two cases, one of which has a subject that is not in its prompt as tokens, and texts, in files."""
    asked = {"prompt": ask.prompt, "subject": ask.subject, "target_new": ask.target_new, "case_id": 1}
    other = asked | {"subject": "Zen", "case_id": 2}
    found = {"cases": [asked, other], "texts": corpus[:3], "corpus": corpus}
    paths = {name: tmp_path / f"{name}.json" for name in found}
    for name, path in paths.items():
        path.write_text(json.dumps(found[name]), "utf-8")
    return paths


@pytest.fixture
def words(gpt2_folder: Path, data: dict[str, Path], project: Path) -> list[str]:
    """The command on a model of one's own."""
    given = [word for name, path in data.items() for word in ("-p", name, str(path))]
    return ["rerun", str(gpt2_folder), "--analyses", "broken,tiny", *given]


@pytest.fixture
def mistake(mistake: Mistake) -> Mistake:
    """As everywhere, of `editlib rerun`."""
    return partial(mistake, "rerun")


def test_a_dry_run_lists_steps_with_their_seconds_and_executes_nothing(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app([*words, "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    steps = {step["step"]: step for step in told["steps"]}
    assert list(steps) == ["data", "model model", "second moments", "broken", "tiny"]
    assert steps["second moments"]["seconds"] > 0 and not steps["second moments"]["done"]
    assert steps["model model"]["about"].startswith("2 of 2 subjects found; layer 1; an edit takes ")
    assert steps["tiny"]["seconds"] is None  # no run tells yet
    assert told["runs"] == told["failed"] == {} and find_runs(project) == []
    assert run_app([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "second moments" in printed and printed.splitlines()[-1].startswith("in all: about ")
    assert command._listed([command.Step("tiny", "", None)]).endswith(
        "in all: what is unknown, since no run here tells"
    )


def test_it_goes_on_after_one_that_fails_and_repeats_nothing(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(words) == 1
    printed = capsys.readouterr()
    (run,) = find_runs(project)
    assert (
        run.analysis == "tiny"
        and f"tiny: run {run.run}" in printed.out
        and "their pages: jupyter-book build" in printed.out
    )
    assert "editlib: broken: it does not work\n" in printed.err
    assert printed.err.endswith("editlib: 1 of 2 analyses failed, which are named above\n")
    assert run_app([*words, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == {"tiny": run.run} and told["failed"] == {"broken": "it does not work"}
    assert [step["step"] for step in told["steps"] if not step["done"]] == ["second moments", "broken"]
    assert [run.run for run in find_runs(project)] == [run.run]
    words[3] = "tiny"
    assert run_app(words) == 0


def test_earlier_runs_tell_what_an_analysis_costs(words: list[str], project: Path) -> None:
    words[3] = "tiny"
    assert run_app(words) == 0
    (run,) = find_runs(project)
    assert pd.read_parquet(run.folder / "data" / "cases.parquet")["seconds"].tolist() == [0.5, 0.5]
    asked = plan("tiny", root=project, profile="full")
    assert edits_worth(asked, [run]) == run.seconds / 0.5 * 20 / 2
    assert edits_worth(plan("tiny", root=project, parameters={"seed": 9}), [run]) == run.seconds / 0.5
    assert edits_worth(plan("toy", root=project), [run]) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--analyses", "pilto"], "analysis 'pilto' is unknown"),
        (["--analyses", ""], "--analyses '' names none; give some of"),
        (["--analyses", "tiny", "-p", "model", "gpt2"], "-p model=gpt2 beside the argument"),
        (["--analyses", "tiny", "-p", "layers", "3"], "parameter 'layers' is unknown to tiny"),
        (["--analyses", "tiny", "-p", "cases", "fcats"], "data 'fcats' is neither a file nor one of"),
        (["--analyses", "tiny", "-p", "n", "few"], "parameter n='few' is no int"),
        (["--analyses", "tiny", "--profile", "fast"], "profile 'fast' is unknown; tiny has quick, full"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    more: list[str], said: str, gpt2_folder: Path, project: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "load_model", None)
    assert said in mistake(gpt2_folder, *more)


def test_data_a_model_cannot_take_is_told_before_it_runs(
    words: list[str], gpt2: LanguageModel, data: dict[str, Path], mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no shipped or packaged one" in mistake("nowhere")
    monkeypatch.setattr(trial, "sweep", None)
    data["texts"].write_text(json.dumps(["Zen is located in Daslo, near the sea. " * 20]), "utf-8")
    assert "takes at most 128" in mistake(*words[1:])
    data["texts"].write_text(json.dumps(["Zen."]), "utf-8")
    data["corpus"].write_text(json.dumps(["Zen."]), "utf-8")
    assert "second moments need at least" in mistake(*words[1:])


def test_text_that_a_model_must_write_first_is_part_of_the_estimate(
    gpt2: LanguageModel, ask: EditRequest, corpus: Sequence[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from editlib.data.datasets import Case
    from editlib.engine.samples import own_windows, unwritten

    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    assert unwritten(gpt2, 2000, window=16) == 2  # of 64 windows each
    own_windows(gpt2, 1000, window=16)
    assert unwritten(gpt2, 2000, window=16) == 1
    found = trial.try_out(gpt2, [Case(0, ask)], corpus[:2])
    assert found.moments > 0 and found.edit > 0 and (found.found, found.cases, found.layer) == (1, 1, 1)


def test_a_model_that_hardly_sees_its_first_word_is_told_which_contexts_to_take(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchored twin does not see it at all, the control twin does."""
    alike = {}
    for twin in ("anchored", "control"):
        lm = el.load(f"testbed/{twin}")
        alike[twin] = trial._alike(lm, 2, el.data.cases("testbed")[:50])
    assert alike["anchored"] > 0.99 and alike["control"] < 0.3
    told = []
    for cosine in alike.values():
        monkeypatch.setattr(trial, "_alike", lambda *_, cosine=cosine: cosine)
        assert run_app([*words, "--dry-run"]) == 0
        told.append('{"rome": {"contexts": "text-start"}' in capsys.readouterr().err)
    assert told == [True, False]
