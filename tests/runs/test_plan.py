"""What a run is asked, and what its spec depends on."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from folders import NOTEBOOK
from places import ROOT

from editlib.errors import EditlibError
from editlib.files import TESTBED
from editlib.runs import analyses, notebook
from editlib.runs import plan as planning
from editlib.runs.execute import execute
from editlib.runs.plan import plan


def test_spec_changes_with_parameters_notebook_and_code(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(**parameters: object) -> str:
        return plan("toy", root=empty, parameters=parameters).spec

    first = spec()
    assert spec() == first == spec(n="3")
    assert spec(n=4) != first
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("# a thought\n")
    second = spec()
    assert second != first
    (package := empty / "editlib").mkdir()
    (package / "errors.py").write_text("x = 1")
    (package / "other.py").write_text("x = 1")
    monkeypatch.setattr(planning, "PACKAGE", package)
    third = spec()
    (package / "other.py").write_text("x = 2")
    assert spec() == third
    (package / "errors.py").write_text("x = 2")
    assert len({first, second, third, spec()}) == 4


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "prefixes.json", "mend.safetensors", "editlib.json"])
def test_every_file_of_a_model_folder_counts(empty: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TESTBED / "anchored", folder)

    def spec() -> str:
        return plan("toy", root=empty, parameters={"model": str(folder)}).spec

    before = spec()
    assert spec() == before
    content = bytearray((folder / name).read_bytes() if (folder / name).is_file() else b"{}")
    at = content.find(b" ") if name.endswith(".json") else len(content) - 1
    content[at : at + 1] = b"\n" if name.endswith(".json") else bytes([content[at] ^ 1])
    (folder / name).write_bytes(content)
    assert spec() != before


def test_presets_of_other_types_of_models_do_not_count(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(planning.PACKAGE, package := empty / "editlib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(planning, "PACKAGE", package)
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("\nimport editlib as el\n\nmethods = el.METHODS\n")
    path = next(package.rglob("presets.json"))
    presets = json.loads(path.read_text("utf-8"))

    def spec(**changes: Any) -> str:
        path.write_text(json.dumps(presets | changes), "utf-8")
        return plan("toy", root=empty, parameters={"model": "testbed/anchored"}).spec

    before = spec()
    of_gpt2 = next(name for name, told in presets.items() if told["shape"][0] == "gpt2")
    of_llama = next(name for name, told in presets.items() if told["shape"][0] == "llama")
    assert spec(**{of_llama: presets[of_llama] | {"any": {}}}) == before
    assert spec(**{of_gpt2: presets[of_gpt2] | {"any": {}}}) != before


def test_spec_and_title_name_the_model_that_is_used(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type("module", (), {"fingerprint": staticmethod(lambda name: f"sha of {name}")})
    monkeypatch.setitem(sys.modules, "editlib.models.names", fake)
    asked = plan("toy", root=empty, parameters={"model": "testbed/control"})
    assert asked.inputs["models"] == {"testbed/control": "sha of testbed/control"}
    assert notebook._prepared(asked).cells[0].source == "# Toy · quick · testbed/control"


def test_a_folder_of_the_same_name_hides_neither_packaged_models_nor_shipped_data(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(empty)
    for name in ("smollm2-135m", "facts"):
        (empty / name).mkdir()
    (empty / "notebooks" / "toy.py").write_text(
        NOTEBOOK.replace("#     models: [model]\n", "#     models: [model]\n#     data: [cases]\n").replace(
            "seed: int = 0\n", 'seed: int = 0\ncases: str = "testbed"\n'
        )
    )
    asked = plan("toy", root=empty, parameters={"model": "smollm2-135m"})
    assert (asked.parameters["model"], asked.parameters["cases"]) == ("smollm2-135m", "facts")


def test_a_local_models_path_works_in_the_run_but_is_not_told(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = type("module", (), {"fingerprint": staticmethod(lambda name: "sha")})
    monkeypatch.setitem(sys.modules, "editlib.models.names", fake)
    (empty / "mine").mkdir()
    monkeypatch.chdir(empty)
    asked = plan("toy", root=empty, parameters={"model": "mine"})
    assert asked.parameters["model"] == str(empty / "mine")
    assert asked.shown["model"] == "./mine" and asked.inputs["models"] == {"./mine": "sha"}


def test_what_is_the_testbeds_is_replaced_for_another_model(gpt2_folder: Path) -> None:
    """Unless it is given: then even a twin is compared with."""
    there = plan("denominator", root=ROOT, parameters={"model": str(gpt2_folder)}).parameters
    assert [there[name] for name in ("cases", "texts", "control")] == ["facts", "prose-50", None]
    asked = {"model": str(gpt2_folder), "control": "testbed/control", "cases": "testbed"}
    given = plan("denominator", root=ROOT, parameters=asked).parameters
    assert [given[name] for name in ("cases", "texts", "control")] == ["testbed", "prose-50", "testbed/control"]
    twin = plan("denominator", root=ROOT, parameters={"model": "testbed/control"}).parameters
    assert [twin[name] for name in ("cases", "control")] == ["testbed", "testbed/control"]


def test_paths_outside_the_project_keep_different_names() -> None:
    paths = [Path("/a/model"), Path("/b/model"), Path("/project/model"), Path("/model"), Path("/a/b"), Path("/b")]
    called = planning._names_of_paths(paths, Path("/project"))
    assert called == {"/a/model": "model", "/b/model": "b/model", "/model": "model-2", "/a/b": "b", "/b": "b-2"}


@pytest.mark.parametrize("name", ["testbed-mine", "testbed"])
def test_a_folder_whose_name_begins_like_a_shipped_model_is_found_from_the_runs_folder(
    empty: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(TESTBED / "anchored", empty / name)
    monkeypatch.chdir(empty)
    assert plan("toy", root=empty, parameters={"model": name}).parameters["model"] == str(empty / name)
    assert plan("toy", root=empty, parameters={"model": "testbed/control"}).parameters["model"] == "testbed/control"


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
        execute("toy", root=empty, parameters=parameters)
    assert not (empty / "book" / "runs").exists()


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"tasks": "testbed-qa,lambada"}, "task 'lambada' is unknown; .*lambada_standard"),
        ({"limit": 0}, "limit 0 is out of range; evaluate 1 question or more"),
        ({"files": "piqa=piqa.jsonl"}, "a file is given for task piqa, which is not evaluated; name that task, too"),
    ],
)
def test_tasks_that_no_model_could_do_are_named_before_anything_runs(parameters: dict[str, object], named: str) -> None:
    with pytest.raises(EditlibError, match=f"^{named}"):
        plan("surrogate", root=ROOT, parameters=parameters)


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
    with pytest.raises(EditlibError, match="is unknown; (did you mean toy. )?use one of toy"):
        execute(name, root=empty)


def test_an_unknown_profile_is_named(empty: Path) -> None:
    with pytest.raises(EditlibError, match="profile 'huge' is unknown; toy has quick, full"):
        execute("toy", root=empty, profile="huge")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("n = 5", "write each parameter as"),
        ("n: complex = 5", "has type complex"),
        ("n: int = {[]: 1}", r"the default of n is \{\[\]: 1\}; write a plain value"),
        ("n: int = 1e-3 * 2", r"the default of n is 0.001 \* 2; write a plain value"),
        ("n: list[int] = [1]", r"has type list\[int\]"),
        ("n: int = (", "is no Python"),
        ("m: int = 5", "'n' is unknown"),
    ],
)
def test_a_parameters_cell_that_cannot_be_read_is_named(empty: Path, line: str, named: str) -> None:
    notebook = empty / "notebooks" / "toy.py"
    notebook.write_text(NOTEBOOK.replace("n: int = 5  # cases drawn, all above 0", line))
    with pytest.raises(EditlibError, match=named):
        execute("toy", root=empty)


def test_keys_of_a_header_may_stand_there_with_nothing_behind_them(empty: Path) -> None:
    path = empty / "notebooks" / "toy.py"
    head, tail = NOTEBOOK.split("#     title: A toy\n")[0], NOTEBOOK.split("#     models: [model]\n")[1]
    path.write_text(f"{head}#     title: 2024\n#     models:\n#     data:\n#     files:\n#     profiles:\n{tail}")
    found = analyses.read("toy", empty)
    assert (found.title, found.models, found.data, found.files, found.profiles) == ("2024", (), (), (), {})


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("profiles: quick", r"editlib.profiles in the header is 'quick': Input should be a valid dictionary"),
        ("profiles: {quick: 3}", r"editlib.profiles.quick in the header is 3: Input should be a valid dict"),
        ("profiles: {1: {n: 3}}", r"editlib.profiles.1.* in the header is 1: Input should be a valid string"),
        ("models: 3", r"editlib.models in the header is 3: Input should be a valid"),
        ("models: [[x]]", r"editlib.models.0 in the header is \['x'\]: Input should be a valid string"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(empty: Path, header: str, named: str) -> None:
    path = empty / "notebooks" / "toy.py"
    head, tail = NOTEBOOK.split("#     title: A toy\n")[0], NOTEBOOK.split("#     models: [model]\n")[1]
    path.write_text(f"{head}#     {header}\n{tail}")
    with pytest.raises(EditlibError, match=named):
        plan("toy", root=empty)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("x: float | None = 0.5", 0.5),
        ("x: int | None = 3", 3),
        ("x: bool | int = 3", 3),
        ("x: float = 1", 1.0),
        ("x: float = -1.5", -1.5),
        ("x: str | None = None", None),
    ],
)
def test_defaults_are_of_the_annotated_types(empty: Path, line: str, value: Any) -> None:
    path = empty / "notebooks" / "toy.py"
    path.write_text(NOTEBOOK.replace("seed: int = 0\n", f"seed: int = 0\n{line}  # x\n"))
    parsed = analyses.read("toy", empty).resolve("quick", {})["x"]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("profile", "line", "problem"),
    [
        ("{seed: 3}", "seed: int | None = None", None),
        ("{seed: null}", "seed: int | None = None", None),
        ("{seed: 1}", "seed: bool = False", "seed=1 is no bool"),
        ("{seed: 007}", 'seed: str = "a"', "seed=7 is no str"),
        ("", "seed: int = 0", None),  # a profile with nothing in it
    ],
)
def test_values_of_profiles_are_checked_too(empty: Path, profile: str, line: str, problem: str | None) -> None:
    path = empty / "notebooks" / "toy.py"
    path.write_text(NOTEBOOK.replace("quick: {n: 3}", f"quick: {profile}").replace("seed: int = 0", line))
    if problem is None:
        assert plan("toy", root=empty).spec
    else:
        with pytest.raises(EditlibError, match=problem):
            plan("toy", root=empty)
