"""`editlib mend train`: what it prints and leaves behind, and that every mistake is one line and status 2."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editlib import data
from editlib.cli import run_app
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import solve, training
from editlib.editing.methods.editor import load_editor
from editlib.editing.methods.mend import MendParams
from editlib.editing.session import Session
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load

Mistake = Callable[..., str]


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A file of eight cases in COUNTERFACT's form."""
    places = "Daslo Quint Parvo Ostrel".split()
    records = [
        {
            "case_id": i,
            "requested_rewrite": {
                "prompt": "{} is located in", "subject": subject, "relation_id": "in",
                "target_new": {"str": places[i % 4]}, "target_true": {"str": places[(i + 1) % 4]},
            },
            "paraphrase_prompts": [f"Rain fell. {subject} lies in"],
            "neighborhood_prompts": [f"{subject}ville lies in"],
            "attribute_prompts": [],
            "generation_prompts": [],
        }
        for i, subject in enumerate("Zen Brast Nolva Triskel Uvo Marend Lopra Skiv".split())
    ]  # fmt: skip
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(records))
    return path


def arguments(model: object, cases: object, out: object, *more: object) -> list[str]:
    options = ("--model", model, "--data", cases, "--out", out, "--rank", 2, "--layers", 2, "--batch", 2, *more)
    return [str(part) for part in ("mend", "train", *options)]


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["mend", "train", "--help"]) == 0
    assert "Example: editlib mend train" in " ".join(capsys.readouterr().out.split())


def test_an_editor_is_trained_and_used(
    gpt2_folder: Path, cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "editor.safetensors"
    assert run_app(arguments(gpt2_folder, cases, out, "--steps", 2, "--patience", 50, "--seed", 3)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "loss", "edit_loss", "kl", "efficacy", "generalization", "locality"]
    assert [line.split()[0] for line in lines[1:-1]] == ["0", "2"]
    assert lines[-1] == f"editor: {out}; use it with method mend, hyper-parameter editor={out}"
    lm = load(str(gpt2_folder))
    _, header = load_editor(out, lm)
    chosen = {"rank": 2, "layers": 2, "batch": 2, "steps": 2, "patience": 50, "seed": 3}
    assert {name: header.recipe[name] for name in chosen} == chosen
    request = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo")
    assert solve(Session(lm), "mend", [request], MendParams(editor=str(out))).diagnostics["steps"] == 1


def test_the_command_in_the_file_makes_the_same_editor(
    gpt2_folder: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(arguments(gpt2_folder, cases, "new/a b.safetensors", "--steps", 3, "--learning-rate", 0.01)) == 0
    lm = load(str(gpt2_folder))
    first, header = load_editor("new/a b.safetensors", lm)
    program, *command = shlex.split(header.command)
    assert program == "editlib"
    assert run_app(command) == 0
    second, _ = load_editor("a b.safetensors", lm)
    assert all((tensor == second.state_dict()[name]).all() for name, tensor in first.state_dict().items())


def test_an_interruption_leaves_what_the_same_command_goes_on_from(
    gpt2_folder: Path,
    cases: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran, whole, out = list[int](), training._train_step, tmp_path / "editor.safetensors"

    def step(*given: Any) -> None:
        if given[-1] == 55 and 55 not in ran:
            ran.append(55)
            raise KeyboardInterrupt
        ran.append(given[-1])
        whole(*given)

    monkeypatch.setattr(training, "_train_step", step)
    command = arguments(gpt2_folder, cases, out, "--steps", 60)
    assert run_app(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "editlib: interrupted"
    assert sorted(path.name for path in tmp_path.glob("editor*")) == ["editor.safetensors.partial"]
    assert run_app(command) == 0
    assert ran == [*range(55), 55, *range(50, 60)]
    assert sorted(path.name for path in tmp_path.glob("editor*")) == ["editor.safetensors"]


def test_mistakes_are_one_line(mistake: Mistake, gpt2_folder: Path, cases: Path, tmp_path: Path) -> None:
    out = tmp_path / "editor.safetensors"
    command = ["mend", "train", "--model", gpt2_folder, "--out", out]
    assert "no cases to train an editor of" in mistake(*command)
    assert "neither a file nor one of" in mistake(*command, "--data", "nothing")
    assert "layers=9 is out of range" in mistake(*arguments(gpt2_folder, cases, out, "--layers", 9))
    assert "see editlib mend train --help" in mistake(*arguments(gpt2_folder, cases, out, "--steps", 0))
    long = tmp_path / "long.json"
    asked = {"prompt": f"{'the town ' * 90}of {{}} is in", "target_new": "Ostrel"}
    long.write_text(json.dumps([asked | {"subject": f"Zen{i}"} for i in range(4)]), "utf-8")
    assert "takes at most 128" in mistake(*arguments(gpt2_folder, long, out))
    assert not out.exists()
    out.write_text("taken")
    assert "exists already; choose another" in mistake(*arguments(gpt2_folder, cases, out))


def test_testbed_models_need_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They learn from facts that no case of the testbed's own changes."""
    given: list[Any] = []

    def train(lm: LanguageModel, cases: list[Case], *_: Any, **__: Any) -> None:
        given.extend([lm.name, {(case.request.subject, case.request.target_true) for case in cases}])
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    out = tmp_path / "editor.safetensors"
    assert run_app(["mend", "train", "--model", "testbed/control", "--out", str(out)]) == 130
    name, facts = given
    assert name == "testbed/control"
    assert facts and not facts & {(case.request.subject, case.request.target_true) for case in data.cases("testbed")}
