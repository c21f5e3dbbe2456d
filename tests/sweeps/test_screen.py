"""Screening: a table that is the same however it was made, and edits that show whether it is so."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

import editlib as el
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.measuring.risk import risk
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts

screening = importlib.import_module("editlib.sweeps.screen")
screen, verify = screening.screen, screening.verify


@pytest.fixture(scope="module")
def anchored() -> LanguageModel:
    return el.load("testbed/anchored")


@pytest.fixture(scope="module")
def pool() -> list[Case]:
    return el.data.cases("testbed")[:40]


def test_suspects_are_read_behind_all_contexts_and_are_what_risk_says(
    anchored: LanguageModel, pool: list[Case]
) -> None:
    found = screen(anchored, pool, progress=False)
    exact = risk(anchored, [case.request for case in pool])
    assert found["case_id"].tolist() == [case.case_id for case in pool]
    assert found["collapse"].tolist() == exact["collapse"].tolist() and 0 < found["collapse"].sum() < len(pool)
    again = found["contexts"] == len(el.prefix_contexts(anchored))
    assert again[found["collapse"]].all() and set(found["contexts"][~again]) == {screening.FEW} != set()
    for column in ("denominator_ratio", "spill", "reach", "leak", "severity"):
        assert found[column][again].tolist() == pytest.approx(exact[column][again].tolist(), rel=1e-6)
    assert found["reason"][again].tolist() == exact["reason"][again].tolist()


def test_a_screening_that_was_killed_goes_on_to_the_same_table(
    anchored: LanguageModel, pool: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "PART", 16)
    whole, write = screen(anchored, pool, progress=False), Parts.write

    def killed(self: Parts, number: int, frame: pd.DataFrame) -> pd.DataFrame:
        if number == 1:
            raise KeyboardInterrupt
        return write(self, number, frame)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            screen(anchored, pool, out=tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out").glob("part-*"))) == 1
    with pytest.raises(EditlibError, match="holds a sweep already; resume it"):
        screen(anchored, pool, out=tmp_path / "out", progress=False)
    on = screen(anchored, pool, out=tmp_path / "out", resume=True, progress=False)
    pd.testing.assert_frame_equal(on, whole)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out"), whole)


def test_the_hard_set_is_read_back_as_cases_the_worst_first(
    anchored: LanguageModel, pool: list[Case], tmp_path: Path
) -> None:
    found = screen(anchored, pool, out=tmp_path / "out", progress=False)
    kept = el.data.cases(tmp_path / "out" / screening.HARD)
    worst = found[found["collapse"]].sort_values("severity")
    assert [case.case_id for case in kept] == worst["case_id"].tolist()[::-1]
    requests = {case.case_id: case.request for case in pool}
    assert [case.request for case in kept] == [requests[case.case_id] for case in kept]


def test_a_case_that_cannot_be_read_is_a_row_with_its_reason(anchored: LanguageModel, pool: list[Case]) -> None:
    long = Case(900, EditRequest(prompt="so " * 200 + "{} is located in", subject="Jaklon", target_new="Hifru"))
    found = screen(anchored, [pool[0], long, pool[1]], progress=False)
    assert found["error"].notna().tolist() == [False, True, False]
    assert "takes at most" in found["error"][1] and not found["collapse"][1]
    pd.testing.assert_frame_equal(
        found[found["error"].isna()].reset_index(drop=True), screen(anchored, pool[:2], progress=False)
    )


def test_verified_edits_are_the_riskiest_and_others_and_are_kept(
    anchored: LanguageModel, pool: list[Case], tmp_path: Path
) -> None:
    texts: Sequence[str] = el.data.texts("testbed-ppl-50")[:10]
    found = screen(anchored, pool, out=tmp_path / "out", progress=False)
    made = verify(anchored, pool, found, k=3, texts=texts, out=tmp_path / "out", progress=False)
    worst = found.nlargest(3, "severity")["case_id"]
    assert set(made.riskiest["case_id"]) == set(worst) and not set(worst) & set(made.others["case_id"])
    counts = made.record(5.0)
    assert counts["riskiest"] == {"edits": 3, "foretold": 3, "collapse": 3, "both": 3}
    assert counts["others"]["edits"] == 3 and counts["others"]["both"] == counts["others"]["collapse"]
    again = verify(anchored, pool, found, k=3, texts=texts, out=tmp_path / "out", progress=False)
    assert again.riskiest["seconds"].tolist() == made.riskiest["seconds"].tolist()  # read, not made again
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out"), found)


def test_mistakes_are_told_before_work(anchored: LanguageModel, pool: list[Case], tmp_path: Path) -> None:
    with pytest.raises(EditlibError, match="what memit does cannot be told from keys"):
        screen(anchored, pool, method="memit", progress=False)
    with pytest.raises(EditlibError, match="no cases to screen"):
        screen(anchored, [], progress=False)
    (tmp_path / "file").write_text(json.dumps([]))
    with pytest.raises(EditlibError, match="is a file, not a folder"):
        screen(anchored, pool, out=tmp_path / "file", progress=False)
