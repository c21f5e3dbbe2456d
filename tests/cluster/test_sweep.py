"""A sweep by workers on a Ray cluster is the sweep of one process, whatever is lost on the way."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import killed
import pandas as pd
import pytest
from disks import full_disk

import editlib as el
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.data.datasets import Case
from editlib.editing.method import Variant
from editlib.editing.session import Session
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.ray
single = importlib.import_module("editlib.sweeps.single")
Nodes = Callable[[int], list[Any]]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return killed.cases(12)


@pytest.fixture(scope="module")
def texts(corpus: list[str]) -> list[str]:
    return corpus[:4]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "PART", 3)


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    """A folder where a test says which subject is to be which fault."""
    (tmp_path / "trouble").mkdir()
    return tmp_path / "trouble"


@pytest.fixture
def options(texts: Sequence[str], trouble: Path) -> dict[str, Any]:
    methods = {"rome": Variant(faults.Fragile(trouble), faults.SEARCH)}
    return {"texts": texts, "methods": methods, "progress": False}


@pytest.fixture
def alone(gpt2: LanguageModel, cases: list[Case], options: dict[str, Any]) -> bytes:
    """The table of one process, with no trouble."""
    return bytes_of(el.sweep(gpt2, cases, **options))


def bytes_of(table: pd.DataFrame) -> bytes:
    """A table as parquet, but for the time it took."""
    file = io.BytesIO()
    table.sort_values(["case_id", "method"], ignore_index=True).drop(columns="seconds").to_parquet(file)
    return file.getvalue()


def subject(cases: Sequence[Case], number: int) -> str:
    return cases[number].request.subject


def parts(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


def held_up(trouble: Path, cases: Sequence[Case]) -> Callable[[], None]:
    """Have the edits of cases wait; returns what lets them go on."""
    files = [trouble / case.request.subject for case in cases]
    for file in files:
        file.write_text("waits")

    def release() -> None:
        for file in files:
            file.unlink(missing_ok=True)

    return release


@pytest.fixture
def after_one(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have something done as soon as one part is written, while workers are at others."""

    def hook(action: Callable[[], object]) -> None:
        update, calls = Progress.update, list[int]()

        def updated(told: Progress, count: int) -> None:
            update(told, count)
            calls.append(count)
            if len(calls) == 1:
                action()

        monkeypatch.setattr(Progress, "update", updated)

    return hook


def test_workers_make_the_table_of_one_process(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], alone: bytes, cluster: Cluster, nodes: Nodes,
    tmp_path: Path,
) -> None:  # fmt: skip
    nodes(2)
    asked = Workers(address=cluster.address)
    assert bytes_of(el.sweep(gpt2, cases, workers=asked, out=tmp_path / "out", **options)) == alone
    assert bytes_of(pd.read_parquet(tmp_path / "out")) == alone


def test_workers_that_are_killed_hang_or_raise_are_made_good(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], alone: bytes, cluster: Cluster, nodes: Nodes,
    trouble: Path,
) -> None:  # fmt: skip
    nodes(2)
    for number, fault in ((1, "killed once"), (5, "hangs once"), (7, "raises once"), (9, "exits once")):
        (trouble / subject(cases, number)).write_text(fault)
    found = el.sweep(gpt2, cases, workers=Workers(address=cluster.address, timeout=8), **options)
    assert not list(trouble.iterdir())  # all of it happened
    assert bytes_of(found) == alone


def test_a_case_that_ends_its_process_is_a_row_with_its_error(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], cluster: Cluster, nodes: Nodes, trouble: Path
) -> None:
    nodes(2)
    session = Session(gpt2)
    plan = single.plan_sweep(session, cases, methods=options["methods"], texts=options["texts"])
    make = single.rows_by(session, plan)
    whole = [make(number, [0, 2] if number == 1 else [0, 1, 2]) for number in range(4)]
    (trouble / subject(cases, 4)).write_text("exits")
    found = el.sweep(gpt2, cases, workers=Workers(address=cluster.address), **options)
    assert found["case_id"].tolist() == list(range(12))
    assert found["error"].dropna().to_dict() == {4: "two workers were lost over this case: its process ended"}
    assert bytes_of(found[found["error"].isna()]) == bytes_of(pd.concat(whole))


def test_nodes_are_lost_and_come_late(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], alone: bytes, cluster: Cluster, nodes: Nodes,
    trouble: Path, tmp_path: Path, after_one: Callable[..., None],
) -> None:  # fmt: skip
    """One of two nodes goes, while its worker is at a part, then the other, and only then another one comes."""
    release = held_up(trouble, cases[3:])
    first, second = nodes(2)
    out, lost = tmp_path / "out", list[int]()

    def lose() -> None:
        cluster.remove_node(first, allow_graceful=False)
        cluster.remove_node(second, allow_graceful=False)
        lost.append(parts(out))
        release()
        cluster.add_node(num_cpus=1)

    after_one(lose)
    found = el.sweep(gpt2, cases, workers=Workers(address=cluster.address), out=out, **options)
    assert lost == [1] and bytes_of(found) == alone


def test_a_node_that_comes_late_gets_work(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], alone: bytes, cluster: Cluster, nodes: Nodes,
    trouble: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    after_one: Callable[..., None],
) -> None:  # fmt: skip
    """All parts but the first wait until the second worker is ready."""
    monkeypatch.setattr("editlib.cluster.driver.LOOK", 0.5)
    release, at = held_up(trouble, cases[3:]), Progress.at

    def looked(told: Progress, workers: int) -> None:
        at(told, workers)
        if workers == 2:
            release()

    monkeypatch.setattr(Progress, "at", looked)
    nodes(1)
    after_one(lambda: cluster.add_node(num_cpus=1))
    found = el.sweep(gpt2, cases, workers=Workers(address=cluster.address, json=True), **options)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert bytes_of(found) == alone
    assert (lines[-1]["done"], lines[-1]["of"], lines[-1]["ended"], lines[-1]["workers"]) == (12, 12, True, 2)


def drive(model: str, folder: str, address: str) -> None:
    """A sweep in a process of its own."""
    single.PART = 3
    folders, cases = Path(folder), killed.cases(12)
    methods = {"rome": Variant(faults.Fragile(folders / "trouble"), faults.SEARCH)}
    given = {"texts": killed.texts(Path(model)), "methods": methods, "progress": False}
    asked = Workers(address=address, workers=1)
    el.sweep(el.load(model), cases, workers=asked, out=folders / "out", resume=True, **given)


def test_a_killed_driver_goes_on_where_it_was(
    gpt2_folder: Path, cases: list[Case], options: dict[str, Any], cluster: Cluster, nodes: Nodes, trouble: Path,
    tmp_path: Path, texts: list[str],
) -> None:  # fmt: skip
    (gpt2_folder / "texts.json").write_text(json.dumps(texts))
    lm = el.load(str(gpt2_folder))
    alone = bytes_of(el.sweep(lm, cases, **options))
    release = held_up(trouble, cases[6:])
    nodes(2)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    code = f"import test_sweep; test_sweep.drive({str(gpt2_folder)!r}, {str(tmp_path)!r}, {cluster.address!r})"
    driver = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
    end = time.monotonic() + 120
    while parts(tmp_path / "out") < 2 and driver.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL and parts(tmp_path / "out") == 2
    release()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    asked = Workers(address=cluster.address, workers=1)
    found = el.sweep(lm, cases, workers=asked, out=tmp_path / "out", resume=True, **options)
    assert bytes_of(found) == alone
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == written for name, written in before.items())


def test_a_full_disk_leaves_whole_parts_only(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], alone: bytes, cluster: Cluster, nodes: Nodes,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nodes(2)
    asked, out, write = Workers(address=cluster.address, workers=1), tmp_path / "out", single.SweepTable.write

    def full(table: Any, *rows: Any) -> int:
        with full_disk() if parts(out) else nullcontext():
            return int(write(table, *rows))

    with monkeypatch.context() as patch, pytest.raises(EditlibError, match=r"part-0000\d.parquet cannot be written"):
        patch.setattr(single.SweepTable, "write", full)
        el.sweep(gpt2, cases, workers=asked, out=out, **options)
    assert parts(out) == 1 and not list(out.glob(".*.writing"))
    assert bytes_of(el.sweep(gpt2, cases, out=out, resume=True, **options)) == alone  # by this process


def test_an_interrupted_sweep_can_be_resumed(
    gpt2: LanguageModel, cases: list[Case], options: dict[str, Any], alone: bytes, cluster: Cluster, nodes: Nodes,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nodes(2)
    asked, out = Workers(address=cluster.address), tmp_path / "out"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "update", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        el.sweep(gpt2, cases, workers=asked, out=out, **options)
    assert parts(out) == 1 and not (out / ".lock").exists()
    assert bytes_of(el.sweep(gpt2, cases, workers=asked, out=out, resume=True, **options)) == alone
