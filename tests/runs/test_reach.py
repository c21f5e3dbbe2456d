"""A spec covers the code that its notebook computes with: all of it, and nothing else."""

from pathlib import Path

import pytest
from places import ROOT

from editlib.runs.reach import PACKAGE, code_hash, files_of

FILES = {
    "__init__.py": "import lazy_loader\n",
    "__init__.pyi": "from . import draw as draw\nfrom .core import rules as rules\n"
    "from .core.work import solve as solve\n",
    "errors.py": "class Mistake(ValueError): ...\n",
    "draw/__init__.py": "import lazy_loader\n",
    "draw/__init__.pyi": "from .lines import line as line\nfrom .points import point as point\n",
    "draw/lines.py": "COLOR = 'red'\n",
    "draw/points.py": "COLOR = 'red'\n",
    "core/__init__.py": "",
    "core/work.py": "from typing import TYPE_CHECKING\nfrom pkg.errors import Mistake\n"
    "if TYPE_CHECKING:\n    from pkg.core.typed import Only\n"
    "def solve():\n    from pkg.core import late\n    return (FOLDER / 'table.json')\n",
    "core/typed.py": "Only = int\n",
    "core/late.py": "import importlib\nimportlib.import_module('pkg.core.by_name')\n",
    "core/by_name.py": "x = 1\n",
    "core/rules.py": "x = 1\n",
    "core/table.json": "{}",
    "core/other.json": "{}",
    "core/questions.jsonl": "{}",
    "models/small/config.json": "{}",
    "models/small/table.json": "{}",
}
SOLVES = {"core/__init__.py", "core/work.py", "errors.py", "core/late.py", "core/by_name.py", "core/table.json"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / "pkg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pkg" / name).write_text(text, "utf-8")
    return tmp_path / "pkg"


@pytest.mark.parametrize(
    ("notebook", "expected"),
    [
        ("import json\n1 + 1", set()),
        ("import pkg as p\np.solve()", SOLVES),
        ("import pkg\npkg.solve()", SOLVES),
        ("from pkg import solve", SOLVES),
        ("from pkg import solve as s\ndef f(): return s", SOLVES),
        ("from pkg.core.work import solve", SOLVES),
        ("import pkg.core.work", SOLVES),
        ("from pkg import errors", {"errors.py"}),
        ("from pkg import rules\nrules.x", {"core/__init__.py", "core/rules.py"}),
        ("import pkg as p\np.rules.x.y", {"core/__init__.py", "core/rules.py"}),
        ("from pkg import draw\ndraw.line()", {"draw/__init__.py", "draw/lines.py"}),
        ("import pkg as p\np.draw.point()", {"draw/__init__.py", "draw/points.py"}),
        ("from pkg import draw\ngetattr(draw, name)()", {"draw/__init__.py", "draw/lines.py", "draw/points.py"}),
        ("from pkg.draw import *", {"draw/__init__.py", "draw/lines.py", "draw/points.py"}),
        ("from pkg import errors\nask('questions')", {"errors.py"}),  # a notebook's own strings name its own files
    ],
)
def test_a_notebook_reaches_what_it_uses(package: Path, notebook: str, expected: set[str]) -> None:
    assert {path.relative_to(package).as_posix() for path in files_of(notebook, package)} == expected


@pytest.mark.parametrize("name", FILES)
def test_only_a_touched_file_that_is_reached_changes_the_hash(package: Path, name: str) -> None:
    notebook = "import pkg as p\np.solve()\np.draw.point()"
    before = code_hash(notebook, package)
    assert code_hash(notebook, package) == before
    with (package / name).open("a") as file:
        file.write("\n" if name.endswith(".json") else "\n# touched\n")
    reached = name in SOLVES | {"draw/__init__.py", "draw/points.py"}
    assert (code_hash(notebook, package) != before) == reached


def test_the_projects_notebooks_reach_what_they_are_about() -> None:
    reached = {
        path.stem: {file.relative_to(PACKAGE).as_posix() for file in files_of(path.read_text("utf-8"))}
        for path in (ROOT / "notebooks").glob("*.py")
    }
    assert not any(name.startswith("cli/") for files in reached.values() for name in files)
    assert all("models/language_model.py" in files for files in reached.values())
    assert "editing/session.py" in reached["denominator"] and "editing/session.py" not in reached["anatomy"]
    assert "testbed/tasks/testbed-qa.jsonl" in reached["pilot"] and "bench/measure.py" not in reached["pilot"]
    assert "editing/methods/presets.json" in reached["pilot"]
