"""Every analysis runs from end to end on the testbed, small."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from places import ROOT

from editlib.runs import execute as runs
from editlib.runs.crate import NAME as CRATE

SMALL = {
    "pilot": {"n": 3, "texts": "testbed-ppl-50", "top": 2, "limit": 10},
    "anatomy": {},
    "single-edits": {"n": 3, "limit": 5},
    "weight-change": {"n": 6},
    "hardedit": {"n": 2},
    "sequential": {"n": 2, "pool": 12, "every": 1, "limit": 5},
    "denominator": {"first": 2, "others": 2},
    "consistent-keys": {"first": 2, "others": 2},
    "first-token": {"first": 3, "others": 3, "built": 1},
    "prefix-at-test": {"first": 2, "others": 2, "draws": 1},
    "key-geometry": {"first": 3, "others": 3},
    "surrogate": {"n": 4, "graded": 2, "sources": 1, "limit": 10},
    "why-first-token": {"first": 3, "later": 3},
    "methods": {"n": 3, "timed": 1, "traced": 2},
    "precision": {"n": 3},
    "performance": {"edits": 2, "plain_edits": 1, "longest": 60, "before": 8, "n": 3, "reference": 100},
    "twins": {"first": 2, "others": 2, "dosed": 1, "doses": 2},
    "settings": {"first": 1, "others": 1},
}
CASE_COLUMNS = {
    "case_id", "method", "subject", "prompt", "target_new", "subject_tokens", "subject_position", "perplexity_mean",
    "perplexity_corpus", "perplexity_ratio", "numerator", "denominator", "denominator_consistent", "delta_norm",
    "weight_norm", "seconds", "error",
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what an analysis needs of the project, so that its runs are not kept."""
    root = tmp_path_factory.mktemp("project")
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    return root


def test_every_analysis_is_here() -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.py")} == SMALL.keys()


SLOW = {"single-edits", "precision", "performance", "twins"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SMALL])
def test_analysis_runs_and_leaves_figures_data_and_metrics(name: str, project: Path) -> None:
    run = runs.execute(name, root=project, parameters=SMALL[name])
    assert run.metrics and run.difference() is None
    assert run.hparams.keys() == run.moment_tokens.keys() or name == "performance"
    assert run.hparams or name == "anatomy"
    assert {Path(output).parts[0] for output in run.outputs} == {"index.ipynb", "data", "figures", CRATE}


@pytest.mark.parametrize("name", ["pilot"])
def test_there_is_a_row_for_each_case_and_arm(name: str, project: Path) -> None:
    run = runs.execute(name, root=project, parameters=SMALL[name])  # the run of the test above
    frame = pd.read_parquet(run.folder / "data/cases.parquet")
    assert CASE_COLUMNS <= set(frame.columns)
    assert len(frame) == 3 * 4 and frame["error"].isna().all()
    assert run.metrics["cases"] == 3
