"""Every analysis runs from end to end on the testbed, small."""

import ast
import json
import shutil
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from places import ROOT

from editlib.editing.methods import PRESETS
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.runs import analyses
from editlib.runs import execute as runs
from editlib.runs.crate import NAME as CRATE

SMALL = {
    "pilot": {"n": 3, "texts": "testbed-ppl-50", "top": 1, "limit": 5, "tasks": "testbed-choice"},
    "anatomy": {},
    "single-edits": {"n": 2, "first": 1, "limit": 5},
    "weight-change": {"first": 2, "others": 2},
    "hardedit": {"n": 2},
    "sequential": {"n": 2, "pool": 12, "every": 2, "limit": 5, "tasks": "testbed-choice"},
    "denominator": {"first": 2, "others": 2},
    "consistent-keys": {"first": 2, "others": 2},
    "first-token": {"first": 3, "others": 3, "built": 1},
    "prefix-at-test": {"first": 2, "others": 2, "draws": 1},
    "key-geometry": {"first": 3, "others": 3},
    "surrogate": {"n": 4, "first": 2, "graded": 2, "sources": 1, "limit": 10},
    "why-first-token": {"first": 2, "later": 2},
    "remedies": {
        "methods": "rome,rome+rect,memit,grace",
        "n": 2,
        "alone": 2,
        "pool": 12,
        "limit": 5,
        "tasks": "testbed-choice",
        "hooked": "1",
    },
    "methods": {"n": 3, "timed": 1, "traced": 2},
    "strengths": {"n": 2},
    "presets": {"n": 2, "first": 1, "layers": "1,2"},
    "aftermath": {"first": 2, "others": 1},
    "screen": {"first": 3, "others": 3, "elsewhere": "testbed"},
    "sink": {"first": 1, "others": 1},
    "belief": {"n": 2, "asked": 2, "methods": "rome,ike"},
    "efficacy": {"first": 2, "others": 2, "layers": "1,2", "draws": 1, "sentences": 5},
    "layers": {"keyed": 2, "edited": 1, "every": 4, "sentences": 5},
    "own-text": {
        "model": "testbed/anchored",
        "cases": "testbed",
        "split": None,
        "texts": "testbed-ppl-50",
        "first": 1,
        "others": 1,
        "tokens": "4096,8192",
    },
    "precision": {"n": 3},
    "performance": {
        "edits": 2,
        "plain_edits": 1,
        "screened": 10,
        "longest": 60,
        "before": 8,
        "points": 2,
        "n": 1,
        "reference": 20,
    },
    "cluster": {"edits": 2, "parts": 4},
    "twins": {"first": 2, "others": 2, "dosed": 1, "doses": 2},
    "settings": {"first": 1, "others": 1, "windows": "32,512", "layers": "1"},
}
CASE_COLUMNS = {
    "case_id", "method", "subject", "prompt", "target_new", "subject_tokens", "subject_position", "perplexity_mean",
    "perplexity_corpus", "perplexity_ratio", "numerator", "denominator", "denominator_consistent", "delta_norm",
    "weight_norm", "seconds", "error",
}  # fmt: skip


def project(root: Path) -> Path:
    """The analyses in a project of their own."""
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for file in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / file, root)
    return root


QUICK = "key-geometry"  # the others are executed by `make book-all` and `make test-all`
EACH = [pytest.param(name, marks=[] if name == QUICK else pytest.mark.slow) for name in SMALL]


def test_every_analysis_is_here() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.py")} == SMALL.keys()


@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"anatomy", "belief", "cluster", "performance"}))
def test_corpus_and_layer_are_parameters_of_every_analysis_that_edits(name: str) -> None:
    """`belief` has the prose of its world; some try layers of their own choice."""
    parameters = analyses.read(name, ROOT).parameters
    assert "corpus" in parameters and ({"layer", "layers"} & parameters.keys() or name == "layers")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of v* end after five steps, of 20 to 25: whether a cell runs does not hang on what they find."""
    for presets in PRESETS.values():
        for name in ("rome", "memit"):
            monkeypatch.setitem(presets["any"], name, presets["any"][name] | {"steps": 5})


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", EACH)
def test_cells_run_and_what_they_show_can_be_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: dict[str, str]
) -> None:
    """In this process, which has imported already what each kernel would import again."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "figures"):
        Path(folder).mkdir()
    plt.switch_backend("agg")
    analysis = analyses.read(name, ROOT)
    values = analysis.resolve("quick", {k: v for k, v in short.items() if k in analysis.parameters} | SMALL[name])
    names: dict[str, object] = {"__name__": "__main__"}
    with plt.rc_context():
        for cell in jupytext.read(ROOT / "notebooks" / f"{name}.py").cells:
            if cell.cell_type == "code":
                show(cell.source, names)
                names |= values if "parameters" in cell.metadata.get("tags", []) else {}
    plt.close("all")
    assert json.loads(Path("metrics.json").read_text("utf-8"))
    edits = json.loads(Path("edits.json").read_text("utf-8"))
    assert edits["hparams"].keys() == edits["moments"].keys() or name in ("performance", "cluster")
    assert edits["hparams"] or name == "anatomy"
    assert list(Path("data").glob("*.parquet")) and list(Path("figures").glob("*.png"))
    if name == "pilot":
        frame = pd.read_parquet("data/cases.parquet")
        assert CASE_COLUMNS <= set(frame.columns)
        assert len(frame) == 3 * 5 and frame["error"].isna().all()


@pytest.mark.slow
def test_a_model_of_ones_own_needs_no_corpus_and_no_data(llama: LanguageModel, tmp_path: Path) -> None:
    """It edits facts, is measured on prose, and writes the text for C itself."""
    folder, root = tmp_path / "own", project(tmp_path / "project")
    llama.model.save_pretrained(folder)
    llama.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}), "utf-8")
    run = runs.execute("denominator", root=root, parameters={"model": str(folder), "first": 1, "others": 1})
    assert [run.parameters[name] for name in ("cases", "texts", "control")] == ["facts", "prose-50", None]
    assert [moments["source"] for moments in run.moments.values()] == ["own text"]
    table = pd.read_parquet(run.folder / "data" / "cases.parquet")
    assert set(table["method"]) == {"rome", "rome, C left out"} and table["error"].isna().all()


def show(source: str, names: dict[str, object]) -> None:
    """Execute a cell; if it ends in an expression, make all that a page could show of it."""
    statements = ast.parse(source).body
    last = statements.pop() if isinstance(statements[-1], ast.Expr) else None
    exec(compile(ast.Module(statements, []), source, "exec"), names)
    if isinstance(last, ast.Expr):
        DisplayFormatter().format(eval(compile(ast.Expression(last.value), source, "eval"), names))


@pytest.mark.slow
def test_run_has_figures_data_and_metrics(tmp_path: Path, short: dict[str, str]) -> None:
    """In a kernel; `make book-all` executes all analyses in kernels."""
    run = runs.execute("key-geometry", root=project(tmp_path), parameters=short | SMALL["key-geometry"])
    assert run.metrics and run.difference() is None
    assert run.hparams.keys() == run.moments.keys() != set()
    assert {Path(output).parts[0] for output in run.outputs} == {"index.ipynb", "data", "figures", CRATE}


@pytest.mark.slow  # a kernel
def test_beliefs_of_a_model_that_has_not_read_that_world_are_not_asked(tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="testbed/control has not read the world of dependent facts; give"):
        runs.execute("belief", root=project(tmp_path), parameters={"model": "testbed/control"})
    assert not list(tmp_path.glob("book/runs/belief/*"))
