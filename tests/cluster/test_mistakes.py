"""What can be wrong with workers is told in one line, before Ray is started where that can be."""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import killed
import psutil
import pytest

import editlib as el
from editlib.cluster import worker
from editlib.cluster.workers import Workers
from editlib.data.datasets import Case
from editlib.errors import EditlibError

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from editlib.models.language_model import LanguageModel

Mistake = Callable[..., str]
QUICK = ["--model", "testbed/anchored", "-n", "2", "-p", "steps", "2", "-p", "covariance", "false", "--no-scores"]


@pytest.fixture
def given(corpus: list[str]) -> dict[str, Any]:
    return {"methods": "rome", "texts": corpus[:2], "progress": False}


@pytest.mark.slow
def test_importing_the_package_and_sweeping_do_without_ray() -> None:
    code = (
        "import editlib as el, sys; cases = el.data.cases('testbed')[:1]; lm = el.load('testbed/anchored');"
        "rome = el.hparams_for(lm, 'rome', steps=1, covariance=False);"
        "el.sweep(lm, cases, methods={'rome': rome}, texts=['So it is.'], progress=False);"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_ray_is_told(
    gpt2: LanguageModel, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, some: list[Case]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "ray" else find(name, *of))
    with pytest.raises(EditlibError, match=r"workers need Ray; install it with: pip install 'editlib\[ray\]'"):
        el.sweep(gpt2, some, workers="ray", **given)


@pytest.fixture
def some() -> list[Case]:
    return killed.cases(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "workers=0, cpus=1 and gpus=0 must be at least 1, 1 and 0"),
        ({"cpus": 0}, "workers=None, cpus=0"),
        ({"gpus": -1}, "gpus=-1"),
        ({"address": "ray://head:10001"}, "address ray://head:10001 is Ray Client's"),
    ],
)
def test_impossible_workers_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EditlibError, match=said):
        Workers(**options)


def test_other_words_for_workers_are_refused(gpt2: LanguageModel, given: dict[str, Any], some: list[Case]) -> None:
    with pytest.raises(EditlibError, match="workers 'dask' are unknown"):
        el.sweep(gpt2, some, workers="dask", **given)


def test_options_of_workers_are_for_ray(mistake: Mistake, tmp_path: Path) -> None:
    said = mistake("sweep", *QUICK, "--out", tmp_path / "out", "--gpus-per-worker", "1")
    assert "--gpus-per-worker is for --ray; add that, or leave --gpus-per-worker out" in said


@pytest.mark.parametrize("address", ["", "here", "127.0.0.1:0", "127.0.0.1:99999"])
def test_no_cluster_at_an_address_is_told_at_once(mistake: Mistake, tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    said = mistake("sweep", *QUICK, "--out", tmp_path / "out", "--ray", address)
    assert f"address {address!r} is unknown" in said if ":" not in address else f"no Ray cluster at {address}: " in said


def test_at_end_is_not_for_workers(gpt2: LanguageModel, given: dict[str, Any], some: list[Case]) -> None:
    with pytest.raises(EditlibError, match="at_end is for this process"):
        el.sequence(gpt2, some, workers="ray", at_end=print, **given)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": 1}, r"no worker has room: each needs 1 GPU and 1 CPU, and the 2 nodes .* at most 1 CPUs and 0 GPUs"),
        ({"cpus": 64}, "no worker has room: each needs 64 CPUs"),
    ],
)
def test_more_than_there_is_is_told_and_does_not_hang(
    gpt2: LanguageModel, given: dict[str, Any], some: list[Case], cluster: Cluster, nodes: Callable[[int], object],
    options: dict[str, Any], said: str,
) -> None:  # fmt: skip
    nodes(1)
    with pytest.raises(EditlibError, match=said):
        el.sweep(gpt2, some, workers=Workers(address=cluster.address, **options), **given)


@pytest.mark.ray
def test_other_versions_are_told(
    gpt2: LanguageModel, given: dict[str, Any], some: list[Case], cluster: Cluster, nodes: Callable[[int], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nodes(1)
    monkeypatch.setattr("editlib.cluster.driver.versions", lambda: worker.versions() | {"torch": "1.0"})
    with pytest.raises(EditlibError, match=r"has torch .*, and 1\.0 is wanted; install the same versions"):
        el.sweep(gpt2, some, workers=Workers(address=cluster.address), **given)


@pytest.mark.ray
def test_a_folder_in_use_is_told_with_who_uses_it(
    gpt2: LanguageModel, given: dict[str, Any], some: list[Case], cluster: Cluster, nodes: Callable[[int], object],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nodes(1)
    monkeypatch.setattr(importlib.import_module("editlib.sweeps.single"), "PART", 1)
    second: list[str] = []

    def again(*_: object) -> None:  # while one part is written, and one is not
        if second:
            return
        with pytest.raises(EditlibError) as error:
            el.sweep(gpt2, some, workers="ray", out=tmp_path, resume=True, **given)
        second.append(str(error.value))

    monkeypatch.setattr("editlib.cluster.progress.Progress.update", again)
    el.sweep(gpt2, some, workers=Workers(address=cluster.address), out=tmp_path, **given)
    assert second == [
        f"output folder {tmp_path} is being written by process {os.getpid()} on {socket.gethostname()}; wait for it, "
        "or choose another"
    ]


@pytest.mark.ray
def test_nothing_listens_beyond_this_machine(cluster: Cluster, nodes: Callable[[int], object]) -> None:
    nodes(1)
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    beyond = [
        link
        for link in psutil.net_connections("inet")  # of all at once: one process may end meanwhile
        if link.pid in mine and link.laddr.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    ]
    assert len(mine) > 4 and beyond == []
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and not cluster.webui_url
