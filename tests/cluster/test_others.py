"""Sequences, screening, second moments and analyses by workers: as by one process, with workers lost on the way."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import killed
import pandas as pd
import pytest
import torch
from folders import make_project

import editlib as el
from editlib.cluster.workers import Workers
from editlib.editing import summing
from editlib.editing.method import Variant
from editlib.editing.stats import corpus_windows, second_moments
from editlib.errors import EditlibError
from editlib.runs.execute import execute_all
from editlib.sweeps.screen import screen

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from editlib.models.language_model import LanguageModel

pytestmark = pytest.mark.ray
Nodes = Callable[[int], list[Any]]


def same(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """Whether two tables are equal to the last bit but for the time they took."""
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    return True


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    (tmp_path / "trouble").mkdir()
    return tmp_path / "trouble"


@pytest.fixture
def sequences(corpus: list[str], trouble: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two sequences of seven edits in parts of two steps."""
    monkeypatch.setattr(importlib.import_module("editlib.sweeps.sequential"), "PART", 2)
    methods = {
        name: Variant(faults.Fragile(trouble / name), search)
        for name, search in (("rome", faults.SEARCH), ("c-rome", replace(faults.SEARCH, keys="prefixed")))
    }
    for name in methods:
        (trouble / name).mkdir()
    return {"methods": methods, "texts": corpus[:4], "every": 2, "retest": True, "progress": False}


def test_sequences_are_taken_over_where_their_worker_is_lost(
    gpt2: LanguageModel, sequences: dict[str, Any], cluster: Cluster, nodes: Nodes, trouble: Path, tmp_path: Path
) -> None:
    nodes(2)
    cases, asked = killed.cases(7), Workers(address=cluster.address)
    alone = el.sequence(gpt2, cases, **sequences)
    (trouble / "rome" / cases[3].request.subject).write_text("killed once")
    assert same(el.sequence(gpt2, cases, workers=asked, out=tmp_path / "out", **sequences), alone)
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json"] + [".parquet"] * 10


def test_a_sequence_that_cannot_go_on_ends_and_the_other_does_not(
    gpt2: LanguageModel, sequences: dict[str, Any], cluster: Cluster, nodes: Nodes, trouble: Path, tmp_path: Path
) -> None:
    nodes(2)
    cases, asked, out = killed.cases(7), Workers(address=cluster.address), tmp_path / "out"
    alone = el.sequence(gpt2, cases, **sequences)
    file = trouble / "rome" / cases[3].request.subject
    file.write_text("exits")
    with pytest.raises(EditlibError, match="rome: two workers were lost over steps 4 to 5: its process ended"):
        el.sequence(gpt2, cases, workers=asked, out=out, **sequences)
    kept = pd.read_parquet(out)
    assert kept["method"].value_counts().to_dict() == {"rome": 4, "c-rome": 8 + 7}
    file.unlink()
    assert same(el.sequence(gpt2, cases, out=out, resume=True, **sequences), alone)  # here, from the weights kept


def test_a_screening_is_that_of_one_process(
    cluster: Cluster, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("editlib.sweeps.screen"), "PART", 8)
    nodes(2)
    lm, cases = el.load("testbed/anchored"), el.data.cases("testbed")[:24]
    alone = screen(lm, cases, out=tmp_path / "alone", progress=False)
    found = screen(lm, cases, out=tmp_path / "out", workers=Workers(address=cluster.address), progress=False)
    pd.testing.assert_frame_equal(found, alone, check_exact=True)
    assert (tmp_path / "out/_hard.json").read_bytes() == (tmp_path / "alone/_hard.json").read_bytes()


def test_second_moments_are_the_same_to_the_last_bit(
    gpt2: LanguageModel, corpus: list[str], cluster: Cluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added in another order they are others, so that the order is what makes them the same."""
    nodes(2)
    monkeypatch.setattr(summing, "CHUNK", 2)
    windows = corpus_windows(gpt2, corpus, 2000)
    alone = second_moments(gpt2, windows)
    found = second_moments(gpt2, windows, workers=Workers(address=cluster.address))
    assert found.header == alone.header and list(found.moments) == list(alone.moments)
    assert all(torch.equal(found.moments[layer], moment) for layer, moment in alone.moments.items())
    backwards = sum(
        (summing.chunk_sum(gpt2, [1], 0, chunk)[1] for chunk in reversed(windows.split(2))),
        torch.zeros(24, 24, dtype=torch.float64),
    )
    assert len(windows) > 8 and not torch.equal(backwards / windows.numel(), alone.moments[1])


def test_analyses_are_executed_side_by_side(cluster: Cluster, nodes: Nodes, tmp_path: Path) -> None:
    nodes(2)
    project = make_project(tmp_path / "project")
    (project / "notebooks/broken.py").write_text(
        (project / "notebooks/toy.py").read_text().replace("seed: int = 0", "seed: int = 0 / 0")
    )
    toy, broken = execute_all(["toy", "broken"], root=project, workers=Workers(address=cluster.address))
    assert toy.run and toy.run.folder.is_dir() and toy.run.metrics["n"] == 3
    assert broken.run is None and broken.error
    again, _ = execute_all(["toy", "broken"], root=project, workers=Workers(address=cluster.address, workers=1))
    assert again.run and again.run.run == toy.run.run


def test_the_command_line_tells_progress_in_lines_and_prints_the_table(
    cluster: Cluster, nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from editlib.cli import run_app

    nodes(2)
    words = "-n 3 -p steps 2 -p covariance false --no-scores --workers 2 --cpus-per-worker 1 --json".split()
    where = ["--out", str(tmp_path / "out"), "--ray", cluster.address]
    assert run_app(["sweep", "--model", "testbed/anchored", *words, *where]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["methods"][0]["edits"] == 3
    lines = [json.loads(line) for line in printed.err.splitlines()]
    assert lines[-1]["ended"] and lines[-1]["done"] == lines[-1]["of"] == 3
