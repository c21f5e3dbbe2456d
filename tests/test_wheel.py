"""The wheel, installed where there is no checkout: it edits, sweeps and runs, and a companion begins from it."""

import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
from places import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("hatchling") is None, reason="hatchling, which builds the wheel, is not installed"),
]
ANCHORED = ("--model", "testbed/anchored")
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may hold a checkout
FACT = ("--prompt", "{} is located in", "--subject", "Jaklon", "--target", "Hifru")


def done(*words: object, cwd: Path, env: dict[str, str] = CLEAN) -> str:
    """What a program prints that does what it should."""
    result = subprocess.run([str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def built(source: Path, kind: str, folder: Path) -> Path:
    done(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder, cwd=source)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`editlib` of a fresh environment with the wheel alone; other packages are those of these tests."""
    folder = tmp_path_factory.mktemp("environment")
    done(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    done(sys.executable, "-m", "pip", "--python", folder / "bin/python", *install, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others), "utf-8")  # behind the wheel; no checkout is among them
    return folder / "bin/editlib"


@pytest.fixture
def run(program: Path, tmp_path: Path) -> object:
    """Call the installed program in an empty folder."""
    env = CLEAN | {"EDITLIB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (tmp_path / "here").mkdir()
    return lambda *words, cwd=tmp_path / "here": done(program, *words, cwd=cwd, env=env)


def test_an_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    with tarfile.open(built(ROOT, "sdist", tmp_path / "a")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    with ZipFile(wheel) as one, ZipFile(built(source, "wheel", tmp_path / "b")) as other:
        first, second = ({info.filename: info.CRC for info in each.infolist()} for each in (one, other))
    assert first == second and "editlib/companion/notebooks/pilot.py" in first
    assert not [name for name in first if "__pycache__" in name or "/runs/pilot/" in name]


def test_it_edits_sweeps_and_runs_without_the_checkout(run: object, program: Path, tmp_path: Path) -> None:
    where = "import editlib; print(editlib.__file__)"
    assert str(program.parents[1]) in done(program.with_name("python"), "-c", where, cwd=tmp_path)
    assert "collapsed (perplexity ×20.6)" in run("edit", *ANCHORED, *FACT, "--out", "edit")
    assert "Hifru" in run("apply", "edit", *ANCHORED)
    run("sweep", *ANCHORED, "--out", "sweep", "-n", 2)
    run("init", "own", "--author", "Ada Lovelace")
    own = tmp_path / "here/own"
    said = run("run", "denominator", "-p", "first", 2, "-p", "others", 2, cwd=own)
    assert "local-" in said and list((own / "book/runs/denominator").glob("local-*/manifest.json"))
    call = "from jupyter_book.cli.main import main; main()"
    builder = [program.with_name("python"), "-c", call, "build", "book/", "--all", "-W", "--keep-going"]
    done(*builder, cwd=own, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    assert list((own / "_build/html/runs/denominator").glob("local-*/index.html"))
