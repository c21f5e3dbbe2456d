"""Give a local run its final name, if it is fit to be cited."""

import importlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from editlib.errors import EditlibError
from editlib.runs import crate
from editlib.runs.analyses import read
from editlib.runs.execute import staging
from editlib.runs.folders import find
from editlib.runs.manifest import CITATION, NAME, Manifest, write
from editlib.runs.notebook import unshowable

LARGEST = 5 * 2**20  # bytes of a published file
COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


def publish(run: str, root: Path, *, authors: Sequence[str] = (), sources: Mapping[str, str] | None = None) -> Path:
    """Give a local run its final name, told who executed it and where its models are from.

    What is told goes into the manifest, so that the run gets another id. Raises `EditlibError` with the reason if the
    run is not fit to be cited, or nobody tells who executed it, or where a model is from that was a local folder.
    """
    manifest = find(run, root)
    if (reason := _unfit(manifest, root)) is not None:
        raise EditlibError(f"run {manifest.run} cannot be published: {reason}")
    if manifest.published:
        if authors or sources:
            raise EditlibError(f"run {manifest.run} is published already; what it says does not change any more")
        return manifest.folder
    if manifest.schema == 2:
        raise EditlibError(f"run {manifest.run} has a manifest of an older form; execute the analysis again")
    if not (named := authors or manifest.authors) or not all(name.strip() for name in named):
        raise EditlibError(
            f"run {manifest.run} cannot be published: nobody says who executed it; give --author NAME, once for each"
        )
    models, packaged = manifest.inputs.models.items(), importlib.import_module("editlib.models.names").PACKAGED
    own = {name: f"package {packaged[name].requirement}" for name, _ in models if name in packaged}
    told = {**own, **manifest.sources, **(sources or {})}
    local = [name for name, code in models if SHA256.fullmatch(code) and not name.startswith("testbed/")]
    if stray := sorted(told.keys() - set(local)):
        raise EditlibError(f"--source {stray[0]!r} is no local model of the run; it has {', '.join(local) or 'none'}")
    if unsaid := [name for name in local if not told.get(name, "").strip()]:
        raise EditlibError(
            f"run {manifest.run} cannot be published: nobody knows what model {unsaid[0]!r} is; "
            f"tell where it is from: --source {unsaid[0]}=ADDRESS, for example id@commit of a hub"
        )
    if list(named) != list(manifest.authors) or told != manifest.sources:
        manifest = _told(manifest, root, named, told)
    target = manifest.folder.with_name(manifest.run)
    os.replace(manifest.folder, target)
    return target


def _told(run: Manifest, root: Path, authors: Sequence[str], sources: Mapping[str, str]) -> Manifest:
    """The run with a manifest that says more, in a folder of its new name; the old folder is gone."""
    with staging(root) as stage:
        shutil.copytree(run.folder, stage, dirs_exist_ok=True)
        for name in (NAME, CITATION):
            (stage / name).unlink()
        record = {key: value for key, value in run.record.items() if key != "run"}
        told = {"authors": list(authors), "sources": dict(sources)}
        folder = run.folder.with_name(f"local-{write(crate.add(record | told, stage), stage).run}")
        os.replace(stage, folder)
    shutil.rmtree(run.folder)
    return find(folder.name, root)


def _unfit(run: Manifest, root: Path) -> str | None:
    """Why a run should not be cited, or None."""
    if (name := run.difference()) is not None:
        return f"{name} was changed; execute the analysis again"
    notebook = json.loads((run.folder / "index.ipynb").read_text("utf-8"))
    if notebook["metadata"]["papermill"].get("exception"):
        return "its notebook failed; execute it again"
    if (shown := unshowable(run.folder / "index.ipynb")) is not None:
        return shown
    if unknown := run.parameters.keys() - read(run.analysis, root).parameters.keys():
        return f"{run.analysis} has no parameter {min(unknown)!r}; execute it again"
    if run.profile == "full" and run.git.dirty is None:
        return "no commit holds what it was executed with; make the project a git repository, commit, execute it again"
    if run.profile == "full" and run.git.dirty:
        return "it was executed with changes that no commit holds; commit them, then execute it again"
    known = run.inputs.models.items()
    if loose := [name for name, code in known if not (COMMIT.fullmatch(code) or SHA256.fullmatch(code))]:
        return f"the revision of model {loose[0]!r} is not known; name it as id@commit"
    large = [name for name in run.outputs if (run.folder / name).stat().st_size > LARGEST]
    return f"{large[0]} is larger than {LARGEST / 2**20:.0f} MiB; let the notebook write less" if large else None
