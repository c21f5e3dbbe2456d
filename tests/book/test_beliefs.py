"""What the page on open problems says that edits do to beliefs is what the table of the run says."""

import numpy as np
import pandas as pd
import pytest
from books import published, table_cells
from places import ROOT

from editlib.measuring import statistics

TEXT = (
    (ROOT / "book/open-problems.md").read_text("utf-8").partition("(edits-and-beliefs)=\n## ")[2].partition("\n## ")[0]
)


@pytest.fixture(scope="module")
def edits() -> pd.DataFrame:
    if not (runs := published("belief")):
        pytest.skip("no published run of belief")
    return pd.read_parquet(runs[0].folder / "data/edits.parquet")


def mean(values: pd.Series) -> str:
    return f"{statistics.bootstrap(np.mean, values.astype(float), seed=0):.2f}"


def test_what_every_editor_leaves_right(edits: pd.DataFrame) -> None:
    rows = table_cells(TEXT, "| Editor")
    assert len(rows) == 11
    for name, *cells in rows:
        mine = edits[edits["method"] == name.strip("`")]
        child, parent = (mine.loc[mine["group"] == group, "right_dependent_believed"] for group in ("root", "child"))
        others = [mine[f"right_{kind}_believed"] for kind in ("request", "unrelated", "other_subject")]
        request, unrelated, other = map(mean, others)
        assert cells == [request, mean(child), mean(parent), unrelated, other, mean(mine["said_and_true"])]
        assert len(mine) == 100 and len(child) == len(parent) == 50


def test_no_editor_but_two_breaks_the_model(edits: pd.DataFrame) -> None:
    over = edits[statistics.collapsed(edits["perplexity_ratio"])]["method"].value_counts()
    assert over.to_dict() == {"rome × 16": 13, "rome+revive": 3}
    assert "13 of 100 edits of `rome × 16` and 3 of `rome+revive`, no other" in TEXT
    broken = edits[edits["method"].eq("rome × 16") & statistics.collapsed(edits["perplexity_ratio"])]
    right = [f"{int(broken[f'right_{kind}_believed'].sum())} of 13" for kind in ("request", "other_subject")]
    assert f"{right[0]} still say what was requested, {right[1]} the right thing about another subject" in TEXT
