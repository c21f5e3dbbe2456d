"""Execute analyses into run folders, `book/runs/<analysis>/local-<run>/`.

A notebook works in a folder outside the book, which is moved there when it is whole: it writes `data/*.parquet`,
`figures/*.png`, and calls `recording.record`, whose two files end up in the manifest.
"""

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

from filelock import FileLock, Timeout

from editlib.cluster.workers import Workers
from editlib.errors import EditlibError
from editlib.machine import environment, git_state, hardware
from editlib.runs import crate
from editlib.runs.analyses import project
from editlib.runs.elsewhere import executed
from editlib.runs.folders import find_runs
from editlib.runs.manifest import SCHEMA, Manifest, hash_files, write
from editlib.runs.notebook import RunFailed, clean, parts_of, run_notebook
from editlib.runs.plan import RunPlan, plan
from editlib.runs.progress import Event, RunProgress, Tell


@dataclass(frozen=True)
class Outcome:
    """What became of one of several analyses: its run, or why there is none."""

    analysis: str
    run: Manifest | None = None
    error: EditlibError | RunFailed | None = None


def execute(
    name: str,
    *,
    root: Path,
    profile: str = "quick",
    parameters: Mapping[str, object] | None = None,
    force: bool = False,
    timeout: int | None = None,
    device: str = "cpu",
    tell: Tell = lambda event: None,
) -> Manifest:
    """Execute an analysis into `book/runs/<name>/local-<run>/`, or return the run that has the same spec.

    `timeout` is in seconds for each cell; models are on `device`, as for `load`, which counts for nothing in the spec;
    `tell` is called when a cell begins, and at the end. Raises `EditlibError` for a user's mistake, also one that the
    notebook finds, and `RunFailed` for any other error in it.
    """
    if device != "cpu":
        from editlib.models.loading import require_device  # torch takes seconds to import

        device = require_device(device)
    asked = plan(name, root=root, profile=profile, parameters=parameters)
    existing = [run for run in find_runs(root) if (run.analysis, run.spec) == (name, asked.spec)]
    if existing and not force:
        tell(Event(name, ended="done before"))
        return existing[-1]
    if force:  # rows of edits that failed, too, are made again
        shutil.rmtree(parts_of(asked, root), ignore_errors=True)
    with staging(root) as stage:
        began = {"started": _now(), "git": git_state(root)}  # as the code is when it starts, whatever happens later
        clock = time.monotonic()
        run_notebook(
            asked, stage, root=root, timeout=timeout, device=device, seen=lambda cell, of: tell(Event(name, cell, of))
        )
        seconds = round(time.monotonic() - clock, 1)
        done = {"finished": _now(), "seconds": seconds} | clean(asked, stage, root)
        record = crate.add(_record(asked, stage, root, device) | began | done, stage)
        manifest = write(record, stage)
        folder = root / "book" / "runs" / name / f"local-{manifest.run}"
        with _writable(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage, folder)
        shutil.rmtree(parts_of(asked, root), ignore_errors=True)
    tell(Event(name, ended="done"))
    return replace(manifest, folder=folder)


def execute_all(
    names: Sequence[str], *, root: Path, jobs: int = 1, workers: Workers | None = None, **options: Any
) -> list[Outcome]:
    """Execute several analyses, `jobs` at a time in processes that share the cores, or by workers of a cluster, whose
    machines share the project's folder; options as for `execute`.

    Goes on after one that fails; outcomes are in the order of the names. What is going on is told on stderr.
    """
    if workers:
        results = executed(_attempt, names, root=root, workers=workers, options=options)
        return [results[name] if isinstance(results[name], Outcome) else _lost(name, results[name]) for name in names]
    same = [run for run in find_runs(root) if run.profile == options.get("profile", "quick")]
    expected = {run.analysis: run.seconds for run in same}  # of the newest
    if jobs == 1:
        queue = Queue[Event | None]()
        with RunProgress(queue, names, jobs=1, expected=expected):
            return [_attempt(name, root=root, tell=queue.put, **options) for name in names]
    threads, context = max(1, (os.cpu_count() or 1) // jobs), get_context("spawn")
    with (
        context.Manager() as manager,
        RunProgress(events := manager.Queue(), names, jobs=jobs, expected=expected),
        ProcessPoolExecutor(jobs, context, initializer=_limit_threads, initargs=(threads,)) as pool,
    ):
        return list(pool.map(partial(_attempt, root=root, tell=events.put, **options), names))


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the notebooks' kernels when they start


def _lost(name: str, why: str) -> Outcome:
    return Outcome(name, error=RunFailed(f"{name}: two workers were lost over it: {why}"))


def _attempt(name: str, *, tell: Tell, **options: Any) -> Outcome:
    try:
        return Outcome(name, execute(name, tell=tell, **options))
    except (EditlibError, RunFailed) as error:
        tell(Event(name, ended="failed"))
        return Outcome(name, error=error)


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A folder outside the book that is gone after the block, unless it was renamed.

    What processes left that were killed is removed: the system gave their locks free.
    """
    above = root / "_build" / "staging"
    with _writable(above):
        above.mkdir(parents=True, exist_ok=True)
        (root / "book").mkdir(exist_ok=True)
        if os.stat(above).st_dev != os.stat(root / "book").st_dev:  # a folder is not moved between these in one step
            raise EditlibError(f"{above} and {root / 'book'} are on two file systems; keep the project on one")
        with FileLock(above / ".lock"):  # so that no folder is new, and its lock not yet held
            for left in above.glob("*.lock"):
                with suppress(Timeout), FileLock(left, blocking=False):
                    shutil.rmtree(left.with_suffix(""), ignore_errors=True)
                    left.unlink(missing_ok=True)
            stage = above / secrets.token_hex(4)
            lock = FileLock(stage.with_name(f"{stage.name}.lock"))
            lock.acquire()
        for part in ("data", "figures"):
            (stage / part).mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"output folder {folder} cannot be written: {error.strerror}; make it writable"
        raise EditlibError(reason) from error


def _record(asked: RunPlan, stage: Path, root: Path, device: str) -> dict[str, Any]:
    """The manifest but for what is measured, and the run's id."""
    cells = json.loads((stage / "index.ipynb").read_text("utf-8"))["cells"]
    times = [cell["metadata"].get("papermill", {}).get("duration") for cell in cells if cell["cell_type"] == "code"]
    return {
        "schema": SCHEMA,
        "analysis": asked.analysis.name,
        "title": asked.analysis.title,
        "profile": asked.profile,
        "parameters": dict(asked.shown),
        "spec": asked.spec,
        "inputs": dict(asked.inputs),
        "environment": environment(root / "constraints.txt"),
        "hardware": hardware() | ({"gpus": []} if device == "cpu" else {}),
        "project": project(root),
        "cells": [round(time, 2) for time in times if time is not None],
        "outputs": hash_files(stage),
        "sources": {},
        "authors": [],
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
