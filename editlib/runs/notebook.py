"""Execute a notebook, look at what it wrote, and take this machine's paths out of it."""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from editlib.errors import EditlibError
from editlib.machine import without_paths
from editlib.runs.manifest import symbolic_link
from editlib.runs.plan import RunPlan
from editlib.runs.recording import take
from editlib.runs.resuming import VARIABLE

# What the book can show. LaTeX and JavaScript are not among it: they would load, or be, a script.
SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg", "image/svg+xml", "image/gif"}
SCRIPT = re.compile(r"<\s*/?script\b|<[^>]*\son\w+\s*=|javascript:", re.IGNORECASE)
REFERENCE = re.compile(r"\{[a-z][\w:-]*\}`|\]\((?!https?:)")  # of MyST: a role, a link to a page
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
Seen = Callable[[int, int], object]  # called with a cell's number from 1, and how many there are


class RunFailed(RuntimeError):
    """A notebook failed, not through a user's mistake; the message is one line naming the kept notebook."""


def parts_of(asked: RunPlan, root: Path) -> Path:
    """Where sweeps of a run keep their parts until it is whole."""
    return root.resolve() / "_build" / "parts" / f"{asked.analysis.name}-{asked.spec}"


def run_notebook(asked: RunPlan, stage: Path, *, root: Path, timeout: int | None, device: str, seen: Seen) -> None:
    """Execute in `stage`; raises `EditlibError` for a mistake that the notebook finds, `RunFailed` for other errors.

    The kernel talks over sockets in a private folder, never over TCP.
    """
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        given = {VARIABLE: str(parts_of(asked, root)), "EDITLIB_DEVICE": device}
        _execute(asked, stage, given, timeout, seen)
        if (problem := _unfit(stage)) is not None:
            raise RunFailed(problem)
    except PapermillExecutionError as error:
        if error.ename == EditlibError.__name__:
            raise EditlibError(error.evalue) from error
        reason = f"{error.ename}: {error.evalue}".splitlines()[0].rstrip(": ")
        raise RunFailed(_failure(asked, stage, root, reason)) from error
    except (CellControlSignal, DeadKernelError, RunFailed, OSError, UnicodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunFailed(_failure(asked, stage, root, reason)) from error


def _execute(asked: RunPlan, stage: Path, given: dict[str, str], timeout: int | None, seen: Seen) -> None:
    """`given` are variables of the kernel's process."""
    import papermill
    from nbclient.exceptions import CellTimeoutError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines
    from traitlets.config import Config

    class Told(Engine):
        """Says which cell begins, and keeps what the kernel's process says of itself."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
            start = nb_man.cell_start

            def begin(cell: Any, cell_index: int | None = None, **more: Any) -> None:
                seen((cell_index or 0) + 1, len(nb_man.nb.cells))
                start(cell, cell_index, **more)

            nb_man.cell_start = begin
            client = PapermillNotebookClient(
                nb_man, kernel_name=kernel_name, timeout=timeout,
                config=Config(KernelManager={"transport": "ipc", "ip": f"{private}/kernel"}),
                extra_arguments=["--log-level=CRITICAL"],  # an interrupted kernel tells its life story
            )  # fmt: skip
            reuse = {"EDITLIB_REUSE": "1"}  # analyses of the same cases search v* once
            return client.execute(stderr=kernel, env=reuse | os.environ | given)

    papermill_engines.register("editlib", Told)
    output = str(stage / "index.ipynb").replace("{", "{{").replace("}", "}}")  # papermill fills braces in paths
    for name in ("papermill", "traitlets"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they have to say, an exception says too
    with tempfile.TemporaryDirectory(prefix="editlib-") as private, (Path(private) / "stderr").open("w+b") as kernel:
        timeout_error = None
        try:
            with _by_shown_names(asked, stage) as parameters:
                papermill.execute_notebook(
                    _prepared(asked), output, parameters, cwd=stage,
                    engine_name="editlib", kernel_name="python3", progress_bar=False,
                )  # fmt: skip
        except CellTimeoutError as error:
            timeout_error = error
        kernel.seek(0)
        if b"surrogates not allowed" in kernel.read():  # the kernel loses that output, and at times the cell's end
            raise RunFailed("it printed half a surrogate pair, which is no text; leave it out") from timeout_error
        if timeout_error is not None:
            raise timeout_error


@contextmanager
def _by_shown_names(asked: RunPlan, stage: Path) -> Iterator[dict[str, Any]]:
    """The parameters with local models and data under the names that others see, links in the stage inside the block:
    a path in a picture could not be taken out."""
    given, links = dict(asked.parameters), list[Path]()
    for name in (*asked.analysis.models, *asked.analysis.data):
        path, link = given[name], stage / str(asked.shown[name])
        if path != asked.shown[name] and (link in links or not link.exists()):
            if link not in links:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(str(path))
                links.append(link)
            given[name] = str(link.relative_to(stage))
    try:
        yield given
    finally:
        for link in links:
            link.unlink()
            for folder in takewhile(lambda folder: folder != stage and not any(folder.iterdir()), link.parents):
                folder.rmdir()


def _prepared(asked: RunPlan) -> Any:
    """The notebook to execute: its heading tells runs apart, this run's parameters replace the defaults."""
    notebook = deepcopy(asked.analysis.notebook)
    notebook.metadata["kernelspec"] = KERNEL  # whatever environment its author had
    model = [str(asked.shown[name]) for name in asked.analysis.models[:1] if asked.shown[name]]
    suffix = " · ".join(["", asked.profile, *model])
    first = next((cell for cell in notebook.cells if cell.cell_type == "markdown"), None)
    if first is not None:
        first.source = re.sub(r"(?m)^# .*$", lambda heading: heading[0] + suffix, first.source, count=1)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.metadata.tags.append("remove-cell")
    return notebook


def _failure(asked: RunPlan, stage: Path, root: Path, reason: str) -> str:
    """Keep what was executed and say where it is."""
    told = f"analysis {asked.analysis.name} failed ({reason})"
    if not (stage / "index.ipynb").is_file():
        return told
    kept = root / "_build" / "failed" / f"{asked.analysis.name}.ipynb"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stage / "index.ipynb", kept)
    return f"{told}; see {kept.relative_to(root)}"


def _unfit(stage: Path) -> str | None:
    """What of an executed notebook's files no run can have, or None."""
    import pandas as pd
    from pyarrow import ArrowException

    if (link := symbolic_link(stage)) is not None:
        return f"{link} is a symbolic link; let the notebook write the file itself"
    for path in stage.glob("data/*.parquet"):
        try:
            pd.read_parquet(path)
        except (ArrowException, OSError, ValueError):
            return f"data/{path.name} is no Parquet; write it with DataFrame.to_parquet"
    return unshowable(stage / "index.ipynb")


def unshowable(path: Path) -> str | None:
    """What of a notebook's outputs the book cannot show, or may not, since it is a script or loads one; or None."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":  # papermill lets an exit with status 0 pass
                return f"it ended with {output['ename']} before its last cell; let it run to its end"
            data = output.get("data", {})
            if strange := sorted(data.keys() - SHOWN):
                return f"it shows {strange[0]}, which the book cannot; use text, HTML, Markdown or an image"
            marked = ("".join(data.get(kind, "")) for kind in ("text/html", "text/markdown", "image/svg+xml"))
            if any(map(SCRIPT.search, marked)):
                return "an output holds a script, which the book does not run; show a picture or a table"
            if link := REFERENCE.search("".join(data.get("text/markdown", ""))):
                return f"an output refers to a page or label ({link[0]}), which may not be there; write that as prose"
    return None


def clean(asked: RunPlan, stage: Path, root: Path) -> dict[str, Any]:
    """Take this machine's paths out of all that the notebook wrote; returns what it told for the manifest."""
    shorten = partial(without_paths, folders=(stage, root), called=asked.called)
    _clean_notebook(stage / "index.ipynb", shorten)
    _clean_tables(stage / "data", shorten)
    try:
        told = take(stage)
    except ValueError as error:
        raise RunFailed(_failure(asked, stage, root, str(error))) from error
    return shorten(told)  # type: ignore[no-any-return]


def _clean_notebook(path: Path, shorten: Callable[[Any], Any]) -> None:
    """The notebook without paths, and without what papermill adds but times, parameters and failure."""
    notebook = json.loads(path.read_text("utf-8"))
    about = notebook["metadata"]["papermill"]
    kept = ("parameters", "start_time", "end_time", "duration", "exception")
    notebook["metadata"]["papermill"] = {key: about[key] for key in kept if key in about}
    path.write_text(json.dumps(shorten(notebook), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _clean_tables(folder: Path, shorten: Callable[[Any], Any]) -> None:
    """Tables without paths in their texts."""
    import pandas as pd

    for path in folder.glob("*.parquet"):
        frame = pd.read_parquet(path)
        columns = [str(name) for name, kind in frame.dtypes.items() if kind == "str"]
        texts = {name: {text: shorten(text) for text in frame[name].dropna().unique()} for name in columns}
        changed = {name: frame[name].map(told) for name, told in texts.items() if any(t != c for t, c in told.items())}
        if changed:
            frame.assign(**changed).to_parquet(path)
