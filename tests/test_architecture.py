"""ARCHITECTURE.md says what the code is: its table and diagram are current, what it names exists, and imports go round
nowhere."""

import importlib
import importlib.util
import re
from graphlib import TopologicalSorter

import grimp
import pytest
from places import ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`((?:[a-z_]+\.)+[A-Za-z_]+)`", PAGE.partition("## ")[2])))


def test_table_and_diagram_are_current() -> None:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "tools/architecture.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert made.current(PAGE) == PAGE, "run: make architecture"


@pytest.mark.parametrize("name", NAMED)
def test_what_it_names_exists(name: str) -> None:
    parts = name.split(".")
    for i in range(len(parts), 0, -1):  # the longest beginning that is a module, then attributes
        try:
            thing: object = importlib.import_module(".".join(["editlib", *parts[:i]]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            thing = getattr(thing, part)
        return
    pytest.fail(f"there is no editlib.{name}")


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("editlib", exclude_type_checking_imports=True, cache_dir=None)
    edges = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    order = list(TopologicalSorter(edges).static_order())  # a CycleError names the modules
    assert len(order) == len(graph.modules)
