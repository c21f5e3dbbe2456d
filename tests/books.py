"""Books for tests: small sources with a run or two, built, and served on this machine."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from places import ROOT
from playwright.sync_api import Page

from editlib.runs.manifest import Manifest, read_manifest

SERIOUS = ("serious", "critical")
PAGES = ("runs.md", "compare.md", "references.md", "references.bib")


def published(analysis: str = "*") -> list[Manifest]:
    """The published runs of the checkout."""
    folders = sorted(path.parent for path in (ROOT / "book/runs").glob(f"{analysis}/[0-9a-f]*/manifest.json"))
    return [read_manifest(folder) for folder in folders]


def small(folder: Path) -> Path:
    """Sources of a book of one pilot run and the pages about runs; returns the run's folder."""
    if not (runs := published("pilot")):
        pytest.skip("no published run of the pilot")
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, folder / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PAGES:
        shutil.copy(ROOT / "book" / name, folder / "book")
    chapters = [{"file": "runs", "sections": [{"glob": "runs/*/*/index"}]}, {"file": "compare"}, {"file": "references"}]
    (folder / "book/_toc.yml").write_text(json.dumps({"format": "jb-book", "root": "index", "chapters": chapters}))
    (folder / "book/index.md").write_text("# Start\n")
    return Path(shutil.copytree(runs[0].folder, folder / "book/runs/pilot" / runs[0].run))


def build(folder: Path, **environment: str) -> Path:
    """The HTML of the book in a folder, built with these variables set."""
    command = f"{Path(sys.executable).with_name('jupyter-book')} build book/ -W -n --keep-going".split()
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment})
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    return folder / "_build/html"


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
