"""One built book, one browser, for all tests of the site."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from books import build, published, rewritten, served
from filelock import FileLock
from places import ROOT
from playwright.sync_api import Browser, Error, Page, sync_playwright

from editlib.runs.manifest import Manifest

CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
FLAGS = (  # the first two for containers, the rest keep the browser itself off the network
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
DONE = "built"  # beside a site that is whole


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what looks at the built site or drives the browser, so that a command line can leave it out."""
    for item in items:
        if {"site", "browser"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.site)


def missing(what: str) -> None:
    """Skip where a developer lacks something; fail where nothing may be lacking."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The HTML of the book, built once for all workers."""
    if not published():
        missing("no published run under book/runs")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers of this session
    folder = shared / "site"
    with FileLock(shared / "site.lock"):
        if not (folder / DONE).exists():
            shutil.rmtree(folder, ignore_errors=True)  # what another worker could not finish
            write_sources(folder)
            build(folder)
            (folder / DONE).touch()
    return folder / "_build/html"


def write_sources(folder: Path) -> None:
    """The book with its published runs only, so that local runs cannot decide a test, and with an older run of one of
    their specs: one number is another, and where its interval is one can be told by the middle of a name only."""
    folder.mkdir()
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")  # run pages compare with them
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("local-*", "__pycache__"))
    run = next(run for run in published("key-geometry", folder) if "auc_control" in run.metrics)
    older = shutil.copytree(run.folder, run.folder.with_name("older"))
    metrics = {**run.metrics, "auc_control": 0.5, "auc_low_control": 0.25, "auc_high_control": 0.75}
    rewritten(older, metrics=metrics, started="2026-01-01T00:00:00Z", finished="2026-01-01T00:01:00Z")


@pytest.fixture(scope="session")
def sources(site: Path) -> Path:
    """What the site was built from."""
    return site.parents[1]


@pytest.fixture(scope="session")
def runs(sources: Path) -> list[Manifest]:
    """The runs of the site."""
    return published(root=sources)


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    with served(site) as place:
        yield place


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        missing("no Chromium: the browser tests need /usr/bin/chromium")
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Error as error:
            missing(f"{CHROMIUM} does not start: {error}")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def tab(browser: Browser, address: str) -> Iterator[Page]:
    """One tab for the tests of a file: a process of its own and an empty cache cost more than most of them."""
    with browser.new_context(base_url=address) as context:
        context.set_default_timeout(120_000)  # a busy machine is no failure
        yield context.new_page()


@pytest.fixture
def page(tab: Page, address: str) -> Iterator[Page]:
    """The tab, as if it were new, failing the test on console errors, failed requests, and those that leave here."""
    tab.set_viewport_size({"width": 1280, "height": 800})
    tab.emulate_media(media="null", color_scheme="light", reduced_motion="null")
    wrong: list[str] = []
    heard: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: wrong.append(message.text) if message.type == "error" else None,
        "pageerror": lambda error: wrong.append(str(error)),
        "request": lambda r: None if r.url.startswith((address, "data:")) else wrong.append(r.url),
        "response": lambda r: wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
    }
    for event, hear in heard.items():
        tab.on(event, hear)
    yield tab
    if tab.url.startswith(address):
        tab.evaluate("localStorage.clear(); sessionStorage.clear()")
    tab.context.clear_permissions()
    tab.goto("about:blank")
    for event, hear in heard.items():
        tab.remove_listener(event, hear)
    assert not [what for what in wrong if what != "about:blank"]
