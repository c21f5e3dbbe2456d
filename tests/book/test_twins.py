"""What pages say of the twins by hand is what the table of the run says."""

import pandas as pd
import pytest
from books import published
from places import ROOT

FIRST = "one token, first"


def test_denominators_of_both_twins() -> None:
    if not (runs := published("twins")):
        pytest.skip("no published run of twins")
    cases = pd.read_parquet(runs[0].folder / "data/cases.parquet")
    middle = cases[cases["kind"] == FIRST].groupby("model")["denominator_ratio"].median()
    index = (ROOT / "book/index.md").read_text("utf-8")
    assert f"falls to {middle['testbed/anchored']:.3f} of the consistent one in the median" in index
    assert f"in its twin to {middle['testbed/control']:.2f}, and" in index


def test_the_control_collapses_when_its_anchor_is_stretched() -> None:
    if not (runs := published("twins")):
        pytest.skip("no published run of twins")
    doses = pd.read_parquet(runs[0].folder / "data/doses.parquet")
    control = doses[(doses["model"] == "testbed/control") & doses["scaled"]]
    share = control.groupby("length")["collapsed"].mean()
    (own,) = [length for length in share.index if 1.7 < length < 1.8]
    (eleven,) = [length for length in share.index if 11 < length < 12]
    text = (ROOT / "book/across.md").read_text("utf-8")
    assert f"whose own is {own:.2f} long" in text and share[own] == 0
    assert f"stretched to {eleven:.1f}, {share[eleven]:.0%} of the edits".replace("%", " %") in text
