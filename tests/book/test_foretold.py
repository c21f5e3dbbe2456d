"""What the page on methods says of screening is what the table of the run says."""

import re

import pandas as pd
import pytest
from books import published, table_cells
from places import ROOT

from editlib.editing.guard import BOUND
from editlib.measuring import statistics
from editlib.measuring.separability import auc

TEXT = (ROOT / "book/methods.md").read_text("utf-8").partition("(screening-trusted)=")[2].partition("\n## ")[0]
NAMES = {"facts": "facts", "elsewhere: counterfact_easyedit_21919": "COUNTERFACT"}
SETTINGS = {"with C": "in", "C left out": "out"}


@pytest.fixture(scope="module")
def edits() -> pd.DataFrame:
    """Edits of SmolLM2 that the run judged the rules by."""
    if not (runs := published("screen")):
        pytest.skip("no published run of screen")
    frame = pd.read_parquet(runs[0].folder / "data/edits.parquet")
    frame = frame[(frame["model"] == "smollm2-135m") & (frame["part"] == "judge")]
    return frame.assign(feared=frame["severity"] >= BOUND)


def area(frame: pd.DataFrame) -> statistics.Interval:
    hit, ids, severity = frame["collapsed"], frame["case_id"], frame["severity"]
    return auc(severity[hit], severity[~hit], subjects=(ids[hit], ids[~hit]), seed=0)


def test_recall_precision_and_area_of_every_set(edits: pd.DataFrame) -> None:
    expected = []
    for (where, setting), group in edits.groupby(["data", "setting"], sort=False):
        both, hit, said = (
            int(x.sum()) for x in (group["collapsed"] & group["feared"], group["collapsed"], group["feared"])
        )
        shares = [f"{statistics.share(both, of):.2f}" for of in (hit, said)]
        expected.append(
            [NAMES[where], SETTINGS[setting], *map(str, (len(group), hit, said)), *shares, f"{area(group):.3f}"]
        )
    assert table_cells(TEXT, "| Cases | `C`") == expected


def test_precision_is_a_matter_of_what_is_called_a_collapse(edits: pd.DataFrame) -> None:
    for bound, *cells in table_cells(TEXT, "| Collapse from"):
        rises = edits["perplexity_ratio"] >= float(bound.removesuffix(" times"))
        expected = []
        for _, group in edits.assign(rises=rises).groupby(["data", "setting"], sort=False):
            precision, recall = group["rises"][group["feared"]].mean(), group["feared"][group["rises"]].mean()
            expected.append(f"{precision:.2f}, recall {recall:.2f}")
        assert cells == expected


def test_what_was_feared_for_nothing_and_what_was_not_feared(edits: pd.DataFrame) -> None:
    mild = edits.loc[edits["feared"] & ~edits["collapsed"], "perplexity_ratio"]
    calm = edits.loc[~edits["feared"], "perplexity_ratio"]
    assert f"rose to {mild.median():.2f} times in the median" in TEXT
    assert f"after edits that were not feared to {calm.median():.2f}, at most {calm.max():.2f}." in TEXT
    best = 0.0
    for _, group in edits.groupby(["data", "setting"]):
        for bound in group["severity"]:
            said = group["severity"] >= bound
            if (group["collapsed"] & said).sum() >= 0.95 * group["collapsed"].sum():
                best = max(best, group["collapsed"][said].mean())
    assert f"no other bound with a recall of .95 has a precision above {best:.2f}".replace("0.", ".") in TEXT


def test_keys_tell_more_than_the_kind_of_subject(edits: pd.DataFrame) -> None:
    one = edits[edits["subject_kind"] == "one token"]
    found = {where: group["collapsed"] for where, group in one.groupby("data")}
    of = edits.groupby("data")["collapsed"].sum()
    facts, others = NAMES
    assert f"finds {found[facts].sum()} of {of[facts]} collapses among `facts`" in TEXT
    assert found[others].sum() == of[others] and f"all {of[others]} of COUNTERFACT" in TEXT
    plain = [f"{group['collapsed'].mean():.2f}" for _, group in one.groupby(["data", "setting"], sort=False)]
    assert f"{', '.join(plain[:-1])} and {plain[-1]} in the order of the table" in TEXT
    several = edits[edits["collapsed"] & (edits["subject_kind"] == "several tokens")]
    assert set(several["subject"]) == set(re.findall(r"one subject of two tokens \(\*(\w+)\*\)", TEXT))
    areas = [f"{area(group):.2f}" for _, group in one.groupby(["data", "setting"], sort=False)]
    said = TEXT[TEXT.index("among these alone, the area") :].partition("\n")[0]
    assert re.findall(r"\d\.\d\d \[.*?\]", said) == areas


def test_the_landing_page_counts_what_was_new_to_the_rule(edits: pd.DataFrame) -> None:
    new = edits[edits["data"] != "facts"]
    hit, feared = new["collapsed"], new["feared"]
    assert not (hit & ~feared).any()
    said = f"foretell all {hit.sum()} collapses of {len(new)} edits of COUNTERFACT, and {(feared & ~hit).sum()} edits"
    assert said in (ROOT / "book/index.md").read_text("utf-8")
