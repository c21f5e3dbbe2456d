"""Books for tests: small sources with a run or two, built, and served on this machine."""

import functools
import http.server
import io
import json
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from places import ROOT
from playwright.sync_api import Page

from editlib.runs.manifest import Manifest, hash_files, read_manifest, write

SERIOUS = ("serious", "critical")
PAGES = ("runs.md", "compare.md", "references.md", "references.bib", "results.yaml")


def published(analysis: str = "*", root: Path = ROOT) -> list[Manifest]:
    """The published runs of a checkout."""
    folders = sorted(path.parent for path in (root / "book/runs").glob(f"{analysis}/[0-9a-f]*/manifest.json"))
    return [read_manifest(folder) for folder in folders]


def run_of(analysis: str, model: str, **parameters: object) -> Manifest:
    """The one published run of an analysis on a model, with parameters where several differ in them."""
    wanted = {"model": model, **parameters}.items()
    runs = [run for run in published(analysis) if wanted <= run.parameters.items()]
    assert len(runs) <= 1, f"say which run of {analysis} on {model}: {[run.run for run in runs]}"
    return runs[0] if runs else pytest.skip(f"no published run of {analysis} on {model}")


def table(run: Manifest, name: str = "cases") -> pd.DataFrame:
    """One of the tables of a run."""
    return pd.read_parquet(run.folder / f"data/{name}.parquet")


def table_cells(text: str, heading: str) -> list[list[str]]:
    """The cells of a table in Markdown, by the beginning of its first line."""
    lines = text[text.index(heading) :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def small(folder: Path) -> Path:
    """Sources of a book of one pilot run, the twins', and the pages about runs; returns the run's folder."""
    run = run_of("pilot", "testbed/anchored")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PAGES:
        shutil.copy(ROOT / "book" / name, folder / "book")
    (folder / "book/claims.yaml").write_text("[]\n")
    chapters = [{"file": "runs"}, {"file": "compare"}, {"file": "references"}]
    (folder / "book/_toc.yml").write_text(json.dumps({"format": "jb-book", "root": "index", "chapters": chapters}))
    (folder / "book/index.md").write_text("# Start\n")
    return Path(shutil.copytree(run.folder, folder / "book/runs/pilot" / run.run))


def rewritten(folder: Path, *, local: bool = False, **changes: object) -> Manifest:
    """The run of a folder with changes to its manifest, under the id that it then has."""
    record = json.loads((folder / "manifest.json").read_text("utf-8")) | changes
    run = write(record | {"outputs": hash_files(folder)}, folder).run
    return read_manifest(folder.rename(folder.with_name("local-" * local + run)))


def warned(folder: Path) -> str:
    """Build the book in a folder, in this process; what it warns of."""
    from jupyter_book.sphinx import build_sphinx

    said, suffixes = io.StringIO(), {".rst": "restructuredtext"}  # Sphinx would add to those of later builds too
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(said):
        warnings.simplefilter("ignore")  # of the libraries' own code
        result = build_sphinx(
            folder / "book", folder / "_build/html", noconfig=True, path_config=folder / "_config.yml", keep_going=True,
            confoverrides={"nitpicky": True, "latex_individualpages": False, "source_suffix": suffixes},
        )  # fmt: skip
    return said.getvalue() + (str(result) if result else "")


def build(folder: Path) -> Path:
    """The HTML of the book in a folder, built without a warning."""
    assert (problems := warned(folder)) == "", problems[-3000:]
    return folder / "_build/html"


def text_of(page: Path) -> str:
    """What a page says, without its markup."""
    return re.sub("<[^>]+>", "", page.read_text("utf-8"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address at which a folder is served while the block lasts."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def violations(page: Page) -> list[str]:
    """Each serious or critical violation that axe-core finds on a page, with the elements it is about."""
    options = {"resultTypes": ["violations"], "preload": False}  # it would look for style sheets where there are none
    found = Axe().run(page, options=options).response["violations"]
    serious = [violation for violation in found if violation["impact"] in SERIOUS]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in serious]


def eventually(read: Callable[[], object], wanted: object) -> None:
    """Wait until a page, which answers a key or a click in its own time, reads as wanted; then say what it reads."""
    end = time.monotonic() + 30
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    assert found == wanted
