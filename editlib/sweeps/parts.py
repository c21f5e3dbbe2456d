"""A table kept in a folder: numbered parquet parts beside the plan that its rows follow from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from editlib.errors import EditlibError
from editlib.files import LOCK, aside, locked, write_json
from editlib.text import finite


@dataclass(frozen=True)
class PlannedFolder:
    """Where results of some kind ("sweep") are kept, and the name of the file that has their plan."""

    path: Path
    plan_name: str
    kind: str

    def check(self, *, resume: bool) -> bool:
        """Whether there are results to go on with; raises `EditlibError` if the folder cannot be used."""
        path, kind = self.path, self.kind
        if (path / self.plan_name).is_file():
            if not resume:
                raise EditlibError(
                    f"output folder {path} holds a {kind} already; resume it (resume=True, --resume) or choose another"
                )
            return True
        if path.exists() and not path.is_dir():
            raise EditlibError(f"output {path} is a file, not a folder; choose another")
        if path.exists() and any(file.suffix != ".writing" and file.name != LOCK for file in path.iterdir()):
            raise EditlibError(f"output folder {path} is not empty and holds no {kind}; choose another")
        return False

    def compare(self, plan: Mapping[str, Any]) -> None:
        """Raise `EditlibError` if the folder's plan is another one."""
        file = self.path / self.plan_name
        try:
            before = dict(json.loads(file.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise EditlibError(f"{file} is damaged ({error}); choose another output folder") from error
        differs = next((key for key in plan if before.get(key) != plan[key]), None)
        if differs:
            raise EditlibError(
                f"output folder {self.path} holds a {self.kind} that differs in its {differs}; choose another"
            )

    @contextmanager
    def working(self, plan: Mapping[str, Any]) -> Iterator[None]:
        """Hold the folder and its plan inside the block; raises `EditlibError` if somebody else does.

        What an interrupted write left there is removed.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            if (self.path / self.plan_name).is_file():
                self.compare(plan)  # again: only now nobody else can put it there
            else:
                write_json(self.path / self.plan_name, plan)
            for leftover in self.path.glob(".*.writing"):
                leftover.unlink(missing_ok=True)
            yield


PLAN = "_sweep.json"  # whoever reads a folder of parquet files passes over names that begin so, or with a dot
NAME = "part-{:05d}.parquet"
ARROW = {
    "int64": pa.int64(), "Int64": pa.int64(), "float64": pa.float64(), "str": pa.large_string(), "bool": pa.bool_(),
    "object": pa.list_(pa.float64()),
}  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """The parts of a table whose columns have these kinds; without a folder, nothing is found and nothing is kept."""

    folder: Path | None
    plan: Mapping[str, Any]
    kinds: Mapping[str, str]

    @classmethod
    def of(cls, out: str | Path | None, plan: Mapping[str, Any], kinds: Mapping[str, str], *, resume: bool) -> "Parts":
        """Parts in a new folder, or with `resume` in one that has the same plan; raises `EditlibError` otherwise."""
        kept = json.loads(json.dumps(finite(plan)))  # tuples as lists, as they are read back
        if out is not None and sweep_folder(out).check(resume=resume):
            sweep_folder(out).compare(kept)
        return cls(None if out is None else Path(out), kept, kinds)

    def file(self, number: int) -> Path | None:
        """Where a part is kept."""
        return self.folder / NAME.format(number) if self.folder else None

    def working(self) -> AbstractContextManager[None]:
        """Hold the folder and its plan inside the block; raises `EditlibError` if somebody else does."""
        return sweep_folder(self.folder).working(self.plan) if self.folder else nullcontext()

    def read(self, wanted: Sequence[Mapping[str, Sequence[object]]]) -> dict[int, pd.DataFrame]:
        """The parts that are there and whole, by number; `wanted` has the values of some columns of every part."""
        frames = ((number, self._whole(number, rows)) for number, rows in enumerate(wanted))
        return {number: frame for number, frame in frames if frame is not None}

    def _whole(self, number: int, rows: Mapping[str, Sequence[object]]) -> pd.DataFrame | None:
        path = self.file(number)
        if path is None or not path.is_file():
            return None
        try:
            frame = pd.read_parquet(path, page_checksum_verification=True)
            known = [(name, str(kind)) for name, kind in frame.dtypes.items()] == list(self.kinds.items())
            return frame if known and all(frame[name].tolist() == list(rows[name]) for name in rows) else None
        except Exception:  # the reader raises almost anything, by what is damaged
            return None

    def write(self, number: int, frame: pd.DataFrame) -> pd.DataFrame:
        """Keep a part, aside and then renamed."""
        path = self.file(number)
        if path is not None:
            schema = pa.schema([(name, ARROW[kind]) for name, kind in self.kinds.items()])
            with aside(path) as writing:
                frame.to_parquet(writing, schema=schema, write_page_checksum=True)
        return frame


def sweep_folder(path: str | Path) -> PlannedFolder:
    """The folder that the parts of a sweep are kept in."""
    return PlannedFolder(Path(path), PLAN, "sweep")


def require_usable(out: str | Path | None, *, resume: bool) -> None:
    """Raise `EditlibError` for a folder that no plan could be kept in, before one is made."""
    if out is not None:
        sweep_folder(out).check(resume=resume)


def collect(folder: str | Path) -> pd.DataFrame:
    """The table of a folder all of whose parts are there, whoever made them; raises `EditlibError` otherwise."""
    folder = Path(folder)
    try:
        count = json.loads((folder / PLAN).read_text("utf-8"))["parts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EditlibError(f"{folder} holds no sweep ({error}); give the folder of one") from error
    paths = [folder / NAME.format(number) for number in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise EditlibError(f"{folder} lacks {len(missing)} of {count} parts, such as {missing[0]}; resume the sweep")
    return pd.concat(map(pd.read_parquet, paths), ignore_index=True)
