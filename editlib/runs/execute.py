"""Runs of analyses, `book/runs/<analysis>/<run>/`: execute, find, check, publish.

A notebook works in its run's folder: it writes `data/*.parquet`, `figures/*.png` and `metrics.json` (flat,
name -> number or string), which ends up in the manifest.
"""

import hashlib
import json
import logging
import os
import re
import reprlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlib.errors import EditlibError
from editlib.machine import environment, git_state, hardware, without_paths
from editlib.runs.analyses import SCHEMA, Plan, plan, project, read
from editlib.runs.manifest import Manifest, hash_files, read_manifest, write

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = (
    "analysis",
    "profile",
    "model",
    "n",
    "seed",
    "started",
    "seconds",
    "spec",
    "run",
    "published",
    "path",
)
LARGEST = 5 * 2**20  # bytes of a published file
PINNED = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # a commit, or the sha256 of weight files


class RunFailed(RuntimeError):
    """A notebook failed, not through a user's mistake; the message is one line naming the kept notebook."""


def find_runs(root: Path) -> list[Manifest]:
    """Every run of the project, oldest first; raises `EditlibError` at a damaged manifest."""
    folders = [path.parent for path in root.glob("book/runs/*/[!.]*/manifest.json")]
    return sorted(map(read_manifest, folders), key=lambda run: (run.started, run.run))


def runs_frame(root: Path) -> "pd.DataFrame":
    """One row per run, oldest first."""
    import pandas as pd

    return pd.DataFrame([_row(run, root) for run in find_runs(root)], columns=list(COLUMNS))


def _row(m: Manifest, root: Path) -> dict[str, Any]:
    asked = {name: m.parameters.get(name) for name in ("model", "n", "seed")}
    done = {name: getattr(m, name) for name in COLUMNS if hasattr(m, name)}
    return asked | done | {"path": m.folder.relative_to(root).as_posix()}


def run_folders(root: Path) -> list[Path]:
    """Every folder of a run, also of one whose manifest is damaged or gone; local ones first."""
    found = (path for path in root.glob("book/runs/*/[!.]*") if path.is_dir())
    return sorted(found, key=lambda path: (not path.name.startswith("local-"), path))


def find_folder(run: str, root: Path) -> Path:
    """The folder of a run's id or of the beginning of one; raises `EditlibError` if there is none, or are several.

    Of a run that is here both local and published, the published folder.
    """
    wanted = run.removeprefix("local-")
    folders = {path.name.removeprefix("local-"): path for path in run_folders(root)}
    found = sorted(name for name in folders if wanted and name.startswith(wanted))
    if len(found) != 1:
        problem = f"may be any of {', '.join(found[:5])}" if found else "is unknown"
        raise EditlibError(f"run {reprlib.repr(run)} {problem}; list the runs with `editlib runs`")
    return folders[found[0]]


def find(run: str, root: Path) -> Manifest:
    """The run of an id or of the beginning of one, as `find_folder`; no other run's manifest is read."""
    return read_manifest(find_folder(run, root))


def publish(run: str, root: Path) -> Path:
    """Give a local run its final name; raises `EditlibError` with the reason if it is not fit for that."""
    found = find(run, root)
    if (reason := _unfit(found, root)) is not None:
        raise EditlibError(f"run {found.run} cannot be published: {reason}")
    target = found.folder.with_name(found.run)
    os.replace(found.folder, target)
    return target


def _unfit(run: Manifest, root: Path) -> str | None:
    """Why a run should not be cited, or None."""
    if (name := run.difference()) is not None:
        return f"{name} was changed; execute the analysis again"
    notebook = json.loads((run.folder / "index.ipynb").read_text("utf-8"))
    if notebook["metadata"]["papermill"].get("exception"):
        return "its notebook failed; execute it again"
    if unknown := run.parameters.keys() - read(run.analysis, root).parameters.keys():
        return f"{run.analysis} has no parameter {min(unknown)!r}; execute it again"
    if run.profile == "full" and run.git.dirty is not False:
        return "it was executed with changes that no commit holds; commit them, then execute it again"
    if loose := [name for name, code in run.inputs.models.items() if not PINNED.fullmatch(code)]:
        return f"the revision of model {loose[0]!r} is not known; name it as id@commit"
    large = [name for name in run.outputs if (run.folder / name).stat().st_size > LARGEST]
    return f"{large[0]} is larger than {LARGEST / 2**20:.0f} MiB; let the notebook write less" if large else None


def execute(
    name: str,
    *,
    root: Path,
    profile: str = "quick",
    parameters: Mapping[str, object] | None = None,
    force: bool = False,
    timeout: int | None = None,
    progress: bool = False,
) -> Manifest:
    """Execute an analysis into `book/runs/<name>/local-<run>/`, or return the run that has the same spec.

    `timeout` is in seconds for each cell. Raises `EditlibError` for a user's mistake, also one that the
    notebook finds, and `RunFailed` for any other error in it.
    """
    asked = plan(name, root=root, profile=profile, parameters=parameters)
    existing = [m for m in find_runs(root) if (m.analysis, m.spec) == (name, asked.spec)]
    if existing and not force:
        return existing[-1]
    with _staging(root / "book" / "runs" / name) as stage:
        began = {"started": _now(), "git": git_state(root)}  # as the code is when it starts, whatever happens later
        clock = time.monotonic()
        _run_notebook(asked, stage, root=root, timeout=timeout, progress=progress)
        seconds = round(time.monotonic() - clock, 1)
        done = {"finished": _now(), "seconds": seconds, "metrics": _clean(asked, stage, root)}
        record = _record(asked, stage, root) | began | done
        record["outputs"] |= _add_crate(record, stage)
        folder = stage.with_name(f"local-{write(record, stage).run}")
        os.replace(stage, folder)
    return read_manifest(folder)


def execute_all(names: Sequence[str], *, jobs: int = 1, **options: Any) -> list[Manifest]:
    """Execute several analyses, `jobs` at a time in processes that share the cores; options as for `execute`."""
    if jobs == 1:
        return [execute(name, **options) for name in names]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_limit_threads, initargs=(threads,)) as pool:
        return list(pool.map(partial(execute, **options), names))


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the notebooks' kernels when they start


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the runs that is gone after the block, unless it was renamed."""
    stage = folder / f".staging-{secrets.token_hex(4)}"
    try:
        for part in ("data", "figures"):
            (stage / part).mkdir(parents=True)
    except OSError as error:
        reason = f"output folder {folder} cannot be written: {error.strerror}; make it writable"
        raise EditlibError(reason) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _run_notebook(asked: Plan, stage: Path, *, root: Path, timeout: int | None, progress: bool) -> None:
    """Execute with papermill; the kernel talks over sockets in a private folder, never over TCP."""
    import papermill
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)  # calls a `str | None` parameter unknown
    with tempfile.TemporaryDirectory(prefix="editlib-") as sockets:
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        try:
            papermill.execute_notebook(
                _prepared(asked), _unformatted(stage / "index.ipynb"), dict(asked.parameters), cwd=stage,
                kernel_name="python3", execution_timeout=timeout, config=config,
                extra_arguments=["--log-level=CRITICAL"],  # an interrupted kernel tells its life story
                progress_bar={"desc": asked.analysis.name, "leave": False, "disable": not progress},
            )  # fmt: skip
        except PapermillExecutionError as error:
            if error.ename == EditlibError.__name__:
                raise EditlibError(error.evalue) from error
            reason = f"{error.ename}: {error.evalue}".splitlines()[0]
            raise RunFailed(_failure(asked, stage, root, reason)) from error
        except (CellControlSignal, DeadKernelError) as error:
            raise RunFailed(_failure(asked, stage, root, str(error).splitlines()[0])) from error


def _unformatted(path: Path) -> str:
    """A path that papermill, which fills braces in paths, leaves as it is."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _prepared(asked: Plan) -> Any:
    """The notebook to execute: its heading tells runs apart, this run's parameters replace the defaults."""
    notebook = deepcopy(asked.analysis.notebook)
    model = [str(asked.shown[name]) for name in asked.analysis.models[:1] if asked.shown[name]]
    suffix = " · ".join(["", asked.profile, *model])
    first = next((cell for cell in notebook.cells if cell.cell_type == "markdown"), None)
    if first is not None:
        first.source = re.sub(r"(?m)^# .*$", lambda heading: heading[0] + suffix, first.source, count=1)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
    return notebook


def _failure(asked: Plan, stage: Path, root: Path, reason: str) -> str:
    """Keep what was executed and say where it is."""
    kept = root / "_build" / "failed" / f"{asked.analysis.name}.ipynb"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stage / "index.ipynb", kept)
    return f"analysis {asked.analysis.name} failed ({reason}); see {kept.relative_to(root)}"


def _clean(asked: Plan, stage: Path, root: Path) -> dict[str, float | str]:
    """Take this machine's paths out of all that the notebook wrote; returns its metrics, whose file is removed."""
    clean = partial(without_paths, folders=(stage, root), called=asked.called)
    _clean_notebook(stage / "index.ipynb", clean)
    _clean_tables(stage / "data", clean)
    return clean(_take_metrics(stage / "metrics.json"))  # type: ignore[no-any-return]


def _clean_notebook(path: Path, clean: Callable[[Any], Any]) -> None:
    """The notebook without paths, and without what papermill adds but times, parameters and failure."""
    notebook = json.loads(path.read_text("utf-8"))
    about = notebook["metadata"]["papermill"]
    kept = ("parameters", "start_time", "end_time", "duration", "exception")
    notebook["metadata"]["papermill"] = {key: about[key] for key in kept if key in about}
    path.write_text(json.dumps(clean(notebook), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _clean_tables(folder: Path, clean: Callable[[Any], Any]) -> None:
    """Tables without paths in their texts."""
    import pandas as pd

    for path in folder.glob("*.parquet"):
        frame = pd.read_parquet(path)
        texts = {name: {text: clean(text) for text in frame[name].dropna().unique()} for name in _texts(frame)}
        changed = {name: frame[name].map(told) for name, told in texts.items() if any(t != c for t, c in told.items())}
        if changed:
            frame.assign(**changed).to_parquet(path)


def _texts(frame: "pd.DataFrame") -> list[str]:
    return list(map(str, frame.select_dtypes("str").columns))


def _record(asked: Plan, stage: Path, root: Path) -> dict[str, Any]:
    """The manifest but for metrics, times, commit, crate and run id."""
    return {
        "schema": SCHEMA,
        "analysis": asked.analysis.name,
        "title": asked.analysis.title,
        "profile": asked.profile,
        "parameters": dict(asked.shown),
        "spec": asked.spec,
        "inputs": dict(asked.inputs),
        "environment": environment(root / "constraints.txt"),
        "hardware": hardware(),
        "project": project(root),
        "cells": _cell_seconds(stage / "index.ipynb"),
        "outputs": hash_files(stage),
    }


def _cell_seconds(notebook: Path) -> list[float]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    times = [cell["metadata"].get("papermill", {}).get("duration") for cell in cells if cell["cell_type"] == "code"]
    return [round(time, 2) for time in times if time is not None]


def _add_crate(record: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Describe the folder for readers who do not know this project; returns the new file's hash."""
    from editlib.runs.crate import NAME, describe

    text = json.dumps(describe(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / NAME).write_bytes(text.encode())
    return {NAME: hashlib.sha256(text.encode()).hexdigest()}


def _take_metrics(path: Path) -> dict[str, float | str]:
    """Numbers and strings by name; JSON has no inf or nan, so these become "inf", "-inf" and "nan"."""
    if not path.is_file():
        return {}
    try:
        metrics = json.loads(path.read_text("utf-8"), parse_constant=lambda text: str(float(text)))
    except ValueError as error:
        raise RunFailed(f"the notebook wrote a metrics.json that is no JSON ({error})") from error
    wrong = next((name for name, value in metrics.items() if not isinstance(value, int | float | str)), None)
    if wrong is not None:
        raise RunFailed(f"the notebook wrote metric {wrong!r} as {metrics[wrong]!r}; write a number or a string")
    path.unlink()
    return dict(metrics)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
