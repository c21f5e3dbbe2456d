"""Runs that are there, `book/runs/<analysis>/<run>/`: find them all, or one by its id."""

import logging
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editlib.errors import EditlibError
from editlib.runs.manifest import Manifest, read_manifest

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


def find_runs(root: Path) -> list[Manifest]:
    """Every run of the project, oldest first; one with a damaged manifest is named in a notice and passed over."""
    runs = []
    for path in root.glob("book/runs/*/[!.]*/manifest.json"):
        try:
            runs.append(read_manifest(path.parent))
        except EditlibError as error:
            logging.getLogger(__name__).warning("editlib: passed over: %s", error)
    return sorted(runs, key=lambda run: (run.started, run.run))


def runs_frame(root: Path) -> "pd.DataFrame":
    """One row per run, oldest first."""
    import pandas as pd

    return pd.DataFrame([_columns(run, root) for run in find_runs(root)], columns=list(COLUMNS))


def _columns(m: Manifest, root: Path) -> dict[str, Any]:
    asked = {name: m.parameters.get(name) for name in ("model", "n", "seed")}
    done = {name: getattr(m, name) for name in COLUMNS if hasattr(m, name)}
    return asked | done | {"path": m.folder.relative_to(root).as_posix()}


def run_folders(root: Path) -> list[Path]:
    """Every folder of a run, also of one whose manifest is damaged or gone; local ones first."""
    folders = (path for path in root.glob("book/runs/*/[!.]*") if path.is_dir())
    return sorted(folders, key=lambda path: (not path.name.startswith("local-"), path))


def find_folder(run: str, root: Path) -> Path:
    """The folder of a run's id or of the beginning of one; raises `EditlibError` if there is none, or are several.

    Of a run that is here both local and published, the published folder.
    """
    wanted = run.removeprefix("local-")
    folders = {path.name.removeprefix("local-"): path for path in run_folders(root)}
    fitting = sorted(name for name in folders if wanted and name.startswith(wanted))
    if len(fitting) != 1:
        problem = f"may be any of {', '.join(fitting[:5])}" if fitting else "is unknown"
        raise EditlibError(f"run {reprlib.repr(run)} {problem}; list the runs with `editlib runs`")
    return folders[fitting[0]]


def find(run: str, root: Path) -> Manifest:
    """The run of an id or of the beginning of one, as `find_folder`; no other run's manifest is read."""
    return read_manifest(find_folder(run, root))
