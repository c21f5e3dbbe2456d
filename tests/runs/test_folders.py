"""Runs that are there are found, whatever lies beside them."""

from pathlib import Path

import pytest
from folders import HOSTILE, make_run
from places import ROOT

from editlib.errors import EditlibError
from editlib.runs import analyses, folders
from editlib.runs.execute import execute
from editlib.runs.folders import find, find_runs, run_folders, runs_frame
from editlib.runs.manifest import Manifest, read_manifest


def test_a_run_is_found_by_the_beginning_of_its_id(empty: Path) -> None:
    done = make_run(empty)
    assert find(done.run[:1], empty) == find(f"local-{done.run[:7]}", empty) == done
    for wrong in (*HOSTILE, "", "local-", "*", "..", f"{done.run}0", f"toy/{done.run}"):
        with pytest.raises(EditlibError, match="is unknown; list the runs") as caught:
            find(wrong, empty)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 150


def test_every_published_run_is_as_its_id_says() -> None:
    folders = [path for path in run_folders(ROOT) if not path.name.startswith("local-")]
    if not folders:
        pytest.skip("nothing is published yet")
    assert {path.name: read_manifest(path).difference() for path in folders} == {path.name: None for path in folders}


def test_the_table_of_runs_has_one_row_each(project: Path, done: Manifest) -> None:
    frame = runs_frame(project)
    assert list(frame.columns) == list(folders.COLUMNS)
    row = frame.set_index("run").loc[done.run]
    assert (row.analysis, row.profile, row.n, row.published) == ("toy", "quick", 3, False)
    assert row.path == f"book/runs/toy/local-{done.run}"


def test_a_project_without_runs_has_an_empty_table(empty: Path) -> None:
    assert runs_frame(empty).empty


def test_a_damaged_manifest_is_named_and_passed_over(empty: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = make_run(empty)
    (folder := empty / "book" / "runs" / "toy" / "0123456789ab").mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    assert find_runs(empty) == [whole]
    assert list(runs_frame(empty)["run"]) == [whole.run]
    assert "0123456789ab has no readable manifest" in caplog.text and len(caplog.messages[0].splitlines()) == 1
    with pytest.raises(EditlibError, match="has no readable manifest"):
        find("0123456789ab", empty)
    assert execute("toy", root=empty).difference() is None


def test_the_project_is_found_from_any_folder_in_it(empty: Path, tmp_path: Path) -> None:
    assert analyses.find_root(empty / "notebooks") == empty.resolve()
    with pytest.raises(EditlibError, match="run this inside a clone of the project"):
        analyses.find_root(tmp_path)
