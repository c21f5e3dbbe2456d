"""A companion of one's own: started outside the checkout, by whom, and its book built."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from books import build, run_of, text_of
from places import ROOT

from editlib.cli import run_app
from editlib.runs import analyses
from editlib.runs.companion import FILES, FOLDERS

Mistake = Callable[..., str]
TITLE = 'Ours: "edits" & {more}'


@pytest.fixture
def own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = tmp_path / "mine"
    assert run_app(["init", str(folder), "--author", "Ada Lovelace", "--author", "N. N.", "--title", TITLE]) == 0
    assert f"{folder} is ready" in capsys.readouterr().out
    return folder


def test_it_is_a_project_with_every_analysis_and_no_run(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyses.find_root(own / "book") == own
    assert analyses.names(own) == analyses.names(ROOT) and list((own / "book/runs").iterdir()) == []
    about = analyses.project(own)
    assert (about["title"], about["authors"], about["license"]) == (TITLE, ["Ada Lovelace", "N. N."], "CC-BY-4.0")
    assert yaml.safe_load((own / "_config.yml").read_text("utf-8"))["title"] == TITLE
    assert run_app(["run", "pilot", "--list", "--root", str(own)]) == 0
    assert "collapse_ratio" in capsys.readouterr().out


def test_nobody_and_a_folder_that_is_there_are_refused(tmp_path: Path, mistake: Mistake) -> None:
    assert "give --author NAME" in mistake("init", tmp_path / "new")
    assert "give --author NAME" in mistake("init", tmp_path / "new", "--author", " ")
    assert "exists already; choose another" in mistake("init", tmp_path, "--author", "Ada Lovelace")
    named = ("init", tmp_path / "new", "--author", "Ada Lovelace")
    assert "the title is empty; give --title TEXT" in mistake(*named, "--title", " ")
    assert "license 'free for all' is no SPDX identifier" in mistake(*named, "--license", "free for all")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full)
    assert "cannot be written: No space left" in mistake("init", tmp_path / "new", "--author", "Ada Lovelace")
    assert list(tmp_path.iterdir()) == []


def test_the_package_ships_what_it_begins_with() -> None:
    import tomllib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {name: f"editlib/companion/{name}" for name in (*FOLDERS, *FILES)}
    assert all((ROOT / name).exists() for name in build["force-include"])


@pytest.mark.slow
def test_its_book_is_built_without_a_warning(own: Path) -> None:
    run = run_of("pilot", "testbed/anchored")
    shutil.copytree(run.folder, own / "book/runs/pilot" / run.run)
    site = build(own)
    assert "Ada Lovelace and N. N." in text_of(site / "index.html")
    assert (site / f"runs/pilot/{run.run}/index.html").is_file() and run.run in text_of(site / "runs.html")
