"""Runs of a throw-away project whose notebook needs no torch."""

import hashlib
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from folders import DIGEST, HOSTILE, INPUTS, make_run
from places import ROOT

from editlib import machine
from editlib.errors import EditlibError
from editlib.files import TESTBED
from editlib.runs import analyses
from editlib.runs import execute as runs

needs_testbed = pytest.mark.skipif(
    not (TESTBED / "anchored" / "card.json").is_file(), reason="the twins are not trained yet"
)
NOTEBOOK = """\
# ---
# jupyter:
#   editlib:
#     title: A toy
#     profiles:
#       quick: {n: 3}
#       full: {n: 9}
#     models: [model]
#   jupytext:
#     cell_metadata_filter: tags,-all
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy

# %% tags=["parameters"]
n: int = 5  # cases drawn, all above 0
seed: int = 0
rate: float = 0.5
strict: bool = False
label: str = "a"
model: str | None = None  # a model's name

# %%
import json
import os
import sys
from pathlib import Path

from ipykernel import get_connection_info

print(Path.cwd(), Path.home(), sys.prefix, os.getcwd() + "/figures")
if n < 1:
    from editlib.errors import EditlibError
    raise EditlibError(f"n={n} is out of range; choose 1 to 9")
if n == 7:
    1 / 0
Path("data/numbers.txt").write_text("x" * n)
transport = json.loads(get_connection_info())["transport"]
metrics = {"n": n, "worst": float("inf"), "rest": float("nan"), "transport": transport}
Path("metrics.json").write_text(json.dumps(metrics))
"""


WRITES_ITS_MODEL = """
import pandas as pd

pd.DataFrame({"model": [model, f"{model}/x", None]}).to_parquet("data/cases.parquet")
Path("metrics.json").write_text(json.dumps({"model": model}))
"""
CITATION = """\
title: "A project & its {runs}"
version: 0.1.0
license: MIT
authors:
  - name: The authors
  - {given-names: Ada, family-names: Lovelace}
"""


def make_project(root: Path) -> Path:
    (root / "notebooks").mkdir(parents=True)
    (root / "book").mkdir()
    (root / "_config.yml").touch()
    (root / "CITATION.cff").write_text(CITATION)
    (root / "notebooks" / "toy.py").write_text(NOTEBOOK)
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project {with} braces"))


@pytest.fixture(scope="module")
def done(project: Path) -> runs.Manifest:
    return runs.execute("toy", root=project)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A project nothing was executed in."""
    return make_project(tmp_path / "project")


def test_a_run_is_a_folder_named_after_its_id(project: Path, done: runs.Manifest) -> None:
    assert done.folder == project / "book" / "runs" / "toy" / f"local-{done.run}"
    assert re.fullmatch("[0-9a-f]{12}", done.run) and re.fullmatch("[0-9a-f]{12}", done.spec)
    assert [path.name for path in done.folder.parent.iterdir()] == [done.folder.name]  # no staging folder is left
    assert sorted(done.outputs) == ["data/numbers.txt", "index.ipynb", "ro-crate-metadata.json"]


def test_the_manifest_says_what_was_asked_and_what_came_out(done: runs.Manifest) -> None:
    record = json.loads((done.folder / "manifest.json").read_text())
    assert {**record, "folder": done.folder} == asdict(done)
    assert (done.schema, done.analysis, done.title, done.profile) == (2, "toy", "A toy", "quick")
    assert done.parameters == {"n": 3, "seed": 0, "rate": 0.5, "strict": False, "label": "a", "model": None}
    assert done.metrics == {"n": 3, "worst": "inf", "rest": "nan", "transport": "ipc"}
    assert done.inputs.models == done.inputs.files == {} and len(done.inputs.code) == 64
    assert done.environment.packages["papermill"] and done.environment.python
    assert done.hardware.cores >= 1 and done.hardware.memory_gib > 0
    assert done.project.authors == ["The authors", "Ada Lovelace"]
    assert len(done.cells) == 3  # seconds of: defaults, this run's parameters, the work
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", done.started) and done.started <= done.finished


def test_the_run_id_vouches_for_manifest_and_outputs(empty: Path) -> None:
    done = runs.execute("toy", root=empty)
    assert done.difference() is None
    (done.folder / "data" / "numbers.txt").write_text("changed")
    assert done.difference() == "data/numbers.txt"
    (done.folder / "data" / "added.txt").touch()
    assert done.difference() == "data/added.txt"
    manifest = done.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"A toy"', '"Another"'))
    assert runs.read_manifest(done.folder).difference() == "manifest.json"


def test_the_notebook_shows_this_runs_values_and_no_path_of_this_machine(project: Path, done: runs.Manifest) -> None:
    text = (done.folder / "index.ipynb").read_text()
    for place in (str(project), str(Path.home()) + "/", sys.prefix, sys.base_prefix, ".staging-"):
        assert place not in text
    notebook = json.loads(text)
    assert notebook["metadata"]["papermill"].keys() <= {
        "parameters", "start_time", "end_time", "duration", "exception"
    }  # fmt: skip
    assert notebook["cells"][0]["source"] == ["# Toy · quick"]
    defaults, injected = notebook["cells"][1:3]
    assert defaults["metadata"]["tags"] == ["parameters", "remove-cell"]
    assert injected["metadata"]["tags"] == ["injected-parameters"] and "n = 3\n" in injected["source"]
    assert notebook["cells"][3]["outputs"][0]["text"] == [". ~ <python> ./figures\n"]


def test_a_second_execution_returns_the_run_there_is(project: Path, done: runs.Manifest) -> None:
    assert runs.execute("toy", root=project) == done
    assert runs.execute("toy", root=project, profile="full", parameters={"n": "3"}) == done  # profiles are values only


def test_spec_changes_with_parameters_notebook_and_code(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(**parameters: object) -> str:
        return analyses.plan("toy", root=empty, parameters=parameters).spec

    first = spec()
    assert spec() == first == spec(n="3")
    assert spec(n=4) != first
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("# a thought\n")
    second = spec()
    assert second != first
    (package := empty / "package").mkdir()
    (package / "module.py").write_text("x = 1")
    monkeypatch.setattr(analyses, "PACKAGE", package)
    third = spec()
    (package / "module.py").write_text("x = 2")
    assert len({first, second, third, spec()}) == 4


def test_spec_and_title_name_the_model_that_is_used(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type("module", (), {"fingerprint": staticmethod(lambda name: f"sha of {name}")})
    monkeypatch.setitem(sys.modules, "editlib.models.folders", fake)
    asked = analyses.plan("toy", root=empty, parameters={"model": "testbed/control"})
    assert asked.inputs["models"] == {"testbed/control": "sha of testbed/control"}
    assert runs._prepared(asked).cells[0].source == "# Toy · quick · testbed/control"


def test_a_local_models_path_works_in_the_run_but_is_not_told(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type("module", (), {"fingerprint": staticmethod(lambda name: "sha")})
    monkeypatch.setitem(sys.modules, "editlib.models.folders", fake)
    (empty / "mine").mkdir()
    monkeypatch.chdir(empty)
    asked = analyses.plan("toy", root=empty, parameters={"model": "mine"})
    assert asked.parameters["model"] == str(empty / "mine")
    assert asked.shown["model"] == "./mine" and asked.inputs["models"] == {"./mine": "sha"}


def test_of_a_model_outside_the_project_only_the_folders_name_is_told(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = type("module", (), {"fingerprint": staticmethod(lambda name: "a" * 64)})
    monkeypatch.setitem(sys.modules, "editlib.models.folders", fake)
    (mine := tmp_path / "somebody" / "mine").mkdir(parents=True)
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write(WRITES_ITS_MODEL)
    done = runs.execute("toy", root=empty, parameters={"model": str(mine)})
    assert done.parameters["model"] == done.metrics["model"] == "mine" and done.inputs.models == {"mine": "a" * 64}
    assert pd.read_parquet(done.folder / "data/cases.parquet")["model"].dropna().tolist() == ["mine", "mine/x"]
    assert not any(b"somebody" in path.read_bytes() for path in done.folder.rglob("*") if path.is_file())


def test_paths_outside_the_project_keep_different_names() -> None:
    paths = [Path("/a/model"), Path("/b/model"), Path("/project/model")]
    called = analyses._names_of_paths(paths, Path("/project"))
    assert called == {"/a/model": "model", "/b/model": "b/model"}


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"cases": 3}, r"'cases' is unknown; toy has n \(int\).*model \(str \| None\)"),
        ({"n": "many"}, r"n='many' is no int"),
        ({"n": 2.5}, r"n=2.5 is no int"),
        ({"n": True}, r"n=True is no int"),
        ({"rate": "nan"}, r"rate='nan' is no float"),
        ({"strict": "maybe"}, r"strict='maybe' is no bool"),
        ({"label": 3}, r"label=3 is no str"),
    ],
)
def test_wrong_parameters_are_named(empty: Path, parameters: dict[str, object], named: str) -> None:
    with pytest.raises(EditlibError, match=named):
        runs.execute("toy", root=empty, parameters=parameters)
    assert not (empty / "book" / "runs").exists()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n", "12", 12),
        ("rate", "1e-3", 0.001),
        ("rate", "2", 2.0),
        ("strict", "True", True),
        ("label", "none", "none"),
        ("model", "none", None),
        ("model", "gpt2", "gpt2"),
    ],
)
def test_text_from_the_command_line_becomes_the_annotated_type(empty: Path, name: str, text: str, value: Any) -> None:
    parsed = analyses.read("toy", empty).resolve("quick", {name: text})[name]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize("name", ["unknown", "", ".", "../toy", "toy/../toy", "/etc/passwd", "Toy", "toy.py", "toy\n"])
def test_names_that_are_no_analysis_are_refused(empty: Path, name: str) -> None:
    with pytest.raises(EditlibError, match="is unknown; use one of toy"):
        runs.execute(name, root=empty)


def test_an_unknown_profile_is_named(empty: Path) -> None:
    with pytest.raises(EditlibError, match="profile 'huge' is unknown; toy has quick, full"):
        runs.execute("toy", root=empty, profile="huge")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("n = 5", "write each parameter as"),
        ("n: complex = 5", "has type complex"),
        ("m: int = 5", "'n' is unknown"),
    ],
)
def test_a_parameters_cell_that_cannot_be_read_is_named(empty: Path, line: str, named: str) -> None:
    notebook = empty / "notebooks" / "toy.py"
    notebook.write_text(NOTEBOOK.replace("n: int = 5  # cases drawn, all above 0", line))
    with pytest.raises(EditlibError, match=named):
        runs.execute("toy", root=empty)


def test_a_mistake_the_notebook_finds_comes_out_as_such(project: Path, done: runs.Manifest) -> None:
    with pytest.raises(EditlibError, match=r"^n=0 is out of range; choose 1 to 9$"):
        runs.execute("toy", root=project, parameters={"n": 0})
    assert [path.name for path in done.folder.parent.iterdir()] == [done.folder.name]


def test_a_failed_notebook_is_kept_aside_and_leaves_no_run(empty: Path) -> None:
    with pytest.raises(runs.RunFailed, match=r"ZeroDivisionError: division by zero\); see _build/failed/toy.ipynb$"):
        runs.execute("toy", root=empty, parameters={"n": 7})
    assert "ZeroDivisionError" in (empty / "_build" / "failed" / "toy.ipynb").read_text()
    assert not any((empty / "book" / "runs" / "toy").iterdir())


def test_a_cell_that_takes_too_long_is_stopped(empty: Path) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("\nimport time\n\ntime.sleep(60)\n")
    with pytest.raises(runs.RunFailed, match="see _build/failed/toy.ipynb"):
        runs.execute("toy", root=empty, timeout=1)


def test_an_output_folder_that_cannot_be_written_is_named(empty: Path) -> None:
    (empty / "book" / "runs").touch()  # a file where the folder should be: root may not be stopped by permissions
    with pytest.raises(EditlibError, match=r"output folder .*book/runs/toy cannot be written") as caught:
        runs.execute("toy", root=empty)
    assert "\n" not in str(caught.value)


def test_publishing_renames_a_checked_run(empty: Path) -> None:
    done = runs.execute("toy", root=empty)
    folder = runs.publish(done.run, empty)
    assert folder == done.folder.with_name(done.run) and not done.folder.exists()
    (published,) = runs.find_runs(empty)
    assert published.published and published.difference() is None
    assert runs.publish(f"local-{done.run}", empty) == folder  # once more changes nothing
    assert runs.execute("toy", root=empty) == published


def test_a_changed_or_unknown_run_is_not_published(empty: Path) -> None:
    done = runs.execute("toy", root=empty)
    (done.folder / "data" / "numbers.txt").write_text("changed")
    with pytest.raises(EditlibError, match=r"data/numbers.txt was changed"):
        runs.publish(done.run, empty)
    for name in ("0123456789ab", "../toy"):
        with pytest.raises(EditlibError, match="is unknown; list the runs"):
            runs.publish(name, empty)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_whole_run_is_published(empty: Path, profile: str) -> None:
    dirty = {"commit": "c" * 40, "dirty": profile == "quick"}  # which a quick run may be
    large = {"data/large.bin": "x" * runs.LARGEST}
    done = make_run(empty, profile=profile, git=dirty, files=large)
    assert runs.publish(done.run, empty).name == done.run


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"files": {"index.ipynb": '{"metadata": {"papermill": {"exception": true}}}'}}, "its notebook failed"),
        ({"parameters": {"n": 3, "old": 1}}, "toy has no parameter 'old'"),
        ({"profile": "full", "git": {"commit": "c" * 40, "dirty": True}}, "changes that no commit holds"),
        ({"profile": "full", "git": {"commit": None, "dirty": None}}, "changes that no commit holds"),
        ({"inputs": INPUTS | {"models": {"a": DIGEST, "b": "main"}}}, "the revision of model 'b' is not known"),
        ({"inputs": INPUTS | {"models": {"b": ""}}}, "the revision of model 'b' is not known"),
        ({"files": {"data/large.bin": "x" * (runs.LARGEST + 1)}}, "data/large.bin is larger than 5 MiB"),
    ],
)
def test_what_should_not_be_cited_is_not_published(empty: Path, changes: dict[str, Any], reason: str) -> None:
    done = make_run(empty, **changes)
    assert done.difference() is None  # so that it is not refused for that
    with pytest.raises(EditlibError, match=f"run {done.run} cannot be published: .*{reason}"):
        runs.publish(done.run, empty)
    assert done.folder.is_dir() and not done.folder.with_name(done.run).exists()


def test_a_run_of_an_analysis_that_is_gone_is_not_published(empty: Path) -> None:
    done = make_run(empty, analysis="gone")
    with pytest.raises(EditlibError, match="analysis 'gone' is unknown"):
        runs.publish(done.run, empty)


def test_a_run_is_found_by_the_beginning_of_its_id(empty: Path) -> None:
    done = make_run(empty)
    assert runs.find(done.run[:1], empty) == runs.find(f"local-{done.run[:7]}", empty) == done
    for wrong in (*HOSTILE, "", "local-", "*", "..", f"{done.run}0", f"toy/{done.run}"):
        with pytest.raises(EditlibError, match="is unknown; list the runs") as caught:
            runs.find(wrong, empty)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 150


def test_executed_again_spec_and_numbers_are_equal_and_the_run_is_another(project: Path, done: runs.Manifest) -> None:
    again = runs.execute("toy", root=project, force=True)
    assert_repeated(done, again)
    shutil.rmtree(again.folder)  # other tests count the runs


@needs_testbed
def test_a_real_analysis_executed_again_gives_the_same_bits(tmp_path: Path) -> None:
    for place in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / place, tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "anatomy.py", tmp_path / "notebooks")
    assert_repeated(*(runs.execute("anatomy", root=tmp_path, force=True) for _ in range(2)))


def assert_repeated(first: runs.Manifest, second: runs.Manifest) -> None:
    assert first.spec == second.spec and first.run != second.run
    assert first.metrics == second.metrics
    for name in first.outputs.keys() | second.outputs.keys():
        if name not in ("index.ipynb", "ro-crate-metadata.json"):  # these say when it was
            assert first.outputs[name] == second.outputs[name], name
    assert any(name.startswith("data/") for name in first.outputs)


@pytest.mark.parametrize("text", ["\n".join(HOSTILE[:-1]), HOSTILE[-1]], ids=["all", "long"])
def test_text_that_means_harm_goes_through_a_run_as_it_is(empty: Path, text: str) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("\nPath('metrics.json').write_text(json.dumps({'label': label}))\n")
    done = runs.execute("toy", root=empty, parameters={"label": text})
    assert done.parameters["label"] == done.metrics["label"] == text
    assert done.difference() is None and runs.publish(done.run, empty).name == done.run


def test_every_published_run_is_as_its_id_says() -> None:
    folders = [path for path in runs.run_folders(ROOT) if not path.name.startswith("local-")]
    if not folders:
        pytest.skip("nothing is published yet")
    assert {path.name: runs.read_manifest(path).difference() for path in folders} == {
        path.name: None for path in folders
    }


def test_a_hash_of_what_was_asked_can_be_made_anew(done: runs.Manifest) -> None:
    """As the book's page on run folders says."""
    told = json.loads((done.folder / "manifest.json").read_text("utf-8"))
    asked = {key: told[key] for key in ("schema", "analysis", "parameters")} | told["inputs"]
    assert digest(asked) == told["spec"]
    assert digest({key: value for key, value in told.items() if key != "run"}) == told["run"]


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def test_the_table_of_runs_has_one_row_each(project: Path, done: runs.Manifest) -> None:
    frame = runs.runs_frame(project)
    assert list(frame.columns) == list(runs.COLUMNS)
    row = frame.set_index("run").loc[done.run]
    assert (row.analysis, row.profile, row.n, row.published) == ("toy", "quick", 3, False)
    assert row.path == f"book/runs/toy/local-{done.run}"


def test_a_project_without_runs_has_an_empty_table(empty: Path) -> None:
    assert runs.runs_frame(empty).empty


def test_a_damaged_manifest_is_named(empty: Path) -> None:
    (folder := empty / "book" / "runs" / "toy" / "0123456789ab").mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EditlibError, match="0123456789ab has no readable manifest"):
        runs.find_runs(empty)


def test_the_project_is_found_from_any_folder_in_it(empty: Path, tmp_path: Path) -> None:
    assert analyses.find_root(empty / "notebooks") == empty.resolve()
    with pytest.raises(EditlibError, match="run this inside a clone of the project"):
        analyses.find_root(tmp_path)


def test_paths_are_taken_out_of_text_but_not_out_of_images() -> None:
    home, place = str(Path.home()), Path("/somewhere/project")
    told = machine.without_paths(
        {"text": [f"{home}/x", f"{place}/y", f"{place}s"], "image/png": f"{place}/z"}, folders=[place]
    )
    assert told == {"text": ["~/x", "./y", f"{place}s"], "image/png": f"{place}/z"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_several_analyses_are_executed_in_their_order(tmp_path: Path, jobs: int) -> None:
    root = make_project(tmp_path)
    (root / "notebooks" / "also.py").write_text(NOTEBOOK)
    made = runs.execute_all(["toy", "also"], jobs=jobs, root=root)
    assert [run.analysis for run in made] == ["toy", "also"]
    assert all(run.difference() is None for run in made)


def test_a_mistake_in_one_of_several_analyses_is_told_as_its_own(tmp_path: Path) -> None:
    root = make_project(tmp_path)
    with pytest.raises(EditlibError, match="n=0 is out of range"):
        runs.execute_all(["toy"], jobs=2, root=root, parameters={"n": 0})
