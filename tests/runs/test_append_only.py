"""From the first release on, what is published stays: no file of a run that a release holds changes or goes."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

RUNS = "book/runs"
FILE = f"{RUNS}/toy/0123456789ab/index.ipynb"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def altered(root: Path) -> list[str]:
    """Files of runs that a release (a tag `v*`) holds, and that HEAD or the working tree changed, moved or removed."""
    found: set[str] = set()
    for tag in git(root, "tag", "--list", "v*").split():
        for now in (["HEAD"], []):  # without it: the working tree
            changes = git(root, "diff", "--no-renames", "--diff-filter=MDT", "--name-only", "-z", tag, *now, "--", RUNS)
            found |= {name for name in changes.split("\0") if name}
    return sorted(found)


def test_no_release_was_rewritten() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    assert altered(ROOT) == []


# -- the rule itself -----------------------------------------------------------------------------------


def commit(root: Path) -> None:
    git(root, "add", "-A")
    git(root, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "--no-gpg-sign", "-m", "x")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One run, committed; no release yet."""
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text("a run\n" * 20)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def add_another(root: Path) -> None:
    path = root / FILE.replace("0123456789ab", "ba9876543210")
    path.parent.mkdir()
    path.write_text("another run\n")


def change(root: Path) -> None:
    (root / FILE).write_text("changed\n")


def remove(root: Path) -> None:
    (root / FILE).unlink()


def move(root: Path) -> None:
    (root / FILE).rename(root / FILE.replace("index", "moved"))


CHANGES = [change, remove, move]


@pytest.mark.parametrize("act", CHANGES)
@pytest.mark.parametrize("committed", [True, False])
def test_a_change_of_a_released_file_is_found(repository: Path, act: Callable[[Path], None], committed: bool) -> None:
    git(repository, "tag", "v0.1.0")
    act(repository)
    if committed:
        commit(repository)
    assert altered(repository) == [FILE]


@pytest.mark.parametrize("act", CHANGES)
def test_before_a_release_anything_goes(repository: Path, act: Callable[[Path], None]) -> None:
    git(repository, "tag", "draft")
    act(repository)
    commit(repository)
    assert altered(repository) == []


def test_a_change_that_only_the_working_tree_takes_back_is_found(repository: Path) -> None:
    git(repository, "tag", "v0.1.0")
    before = (repository / FILE).read_text()
    change(repository)
    commit(repository)
    (repository / FILE).write_text(before)
    assert altered(repository) == [FILE]


def test_new_runs_and_other_files_are_free(repository: Path) -> None:
    (repository / "README.md").write_text("one")
    commit(repository)
    git(repository, "tag", "v0.1.0")
    add_another(repository)
    (repository / "README.md").write_text("two")
    commit(repository)
    assert altered(repository) == []


def test_a_file_of_a_later_release_is_held_too(repository: Path) -> None:
    git(repository, "tag", "v0.1.0")
    add_another(repository)
    commit(repository)
    git(repository, "tag", "v0.2.0")
    shutil.rmtree(repository / FILE.replace("0123456789ab", "ba9876543210").rsplit("/", 1)[0])
    commit(repository)
    assert altered(repository) == [FILE.replace("0123456789ab", "ba9876543210")]


def test_a_clone_without_tags_has_nothing_to_hold(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    git(repository, "tag", "v0.1.0")
    shallow = tmp_path_factory.mktemp("clone") / "shallow"
    git(repository, "clone", "-q", "--depth", "1", "--no-tags", repository.as_uri(), str(shallow))
    change(shallow)
    assert altered(shallow) == []
