"""What `import editlib as el` offers, name by name, and that the import itself costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

import editlib as el

NAMES = """
    Case Edit EditRequest EditlibError LanguageModel Layout METHODS Perplexity Workers anatomy causal_trace compute data
    errors hparams_for load methods perplexity plot prefix_contexts risk scores second_moment sequence stats sweep
    test_prefixes testbed trace
""".split()
PLOT = """
    COLORS KINDS MARKERS METHOD_MARKS SCORE_MARKS anatomy changes comparison denominators doses
    drawable findings foretold layers maps pairs profile regimes scatter scores sequences single_edits spectra strips
    theme thresholds weight_changes
""".split()
HEAVY = ("ray", "torch", "transformers", "pandas", "matplotlib", "scipy")


@pytest.mark.parametrize("name", NAMES)
def test_package_has(name: str) -> None:
    assert getattr(el, name) is not None and name in dir(el)


@pytest.mark.parametrize("name", PLOT)
def test_plot_has(name: str) -> None:
    assert getattr(el.plot, name) is not None and name in dir(el.plot)


def test_a_name_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="plots"):
        el.plots  # noqa: B018


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_notebook_uses_is_there(path: Path) -> None:
    tree = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names: dict[str, object] = {}
    for node in tree:
        if isinstance(node, ast.Import | ast.ImportFrom) and "editlib" in ast.unparse(node):
            exec(ast.unparse(node), names)  # an ImportError names what is gone
    reads = [(node.value, node.attr) for node in tree if isinstance(node, ast.Attribute)]
    used = {(of.id, name) for of, name in reads if isinstance(of, ast.Name)}
    asked = {(of, name) for of, name in used if isinstance(names.get(of), ModuleType)}
    assert asked and [f"{of}.{name}" for of, name in sorted(asked) if not hasattr(names[of], name)] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import editlib as el; el.plot, el.data, el.errors, el.testbed; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())
