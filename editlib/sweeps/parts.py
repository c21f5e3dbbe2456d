"""A table kept in a folder: numbered parquet parts beside the plan that its rows follow from."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from editlib.errors import EditlibError
from editlib.files import LOCK, aside, locked, write_json
from editlib.text import finite

PLAN = "_sweep.json"  # whoever reads a folder of parquet files passes over names that begin so, or with a dot
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
        parts = cls(
            None if out is None else Path(out), json.loads(json.dumps(finite(plan))), kinds
        )  # tuples as lists, as read back
        if parts.folder and check_folder(parts.folder, resume=resume):
            parts._compare(parts.folder)
        return parts

    def file(self, number: int) -> Path | None:
        """Where a part is kept."""
        return self.folder / f"part-{number:05d}.parquet" if self.folder else None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the folder and its plan inside the block; raises `EditlibError` if somebody else does.

        What an interrupted write left there is removed.
        """
        if self.folder is None:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            if (self.folder / PLAN).is_file():
                self._compare(self.folder)  # again: only now nobody else can put it there
            else:
                write_json(self.folder / PLAN, self.plan)
            for leftover in self.folder.glob(".*.writing"):
                leftover.unlink(missing_ok=True)
            yield

    def _compare(self, folder: Path) -> None:
        """Raise `EditlibError` if a folder's plan is another one."""
        try:
            before = dict(json.loads((folder / PLAN).read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise EditlibError(f"{folder / PLAN} is damaged ({error}); choose another output folder") from error
        differs = next((key for key in self.plan if before.get(key) != self.plan[key]), None)
        if differs:
            raise EditlibError(f"output folder {folder} holds a sweep that differs in its {differs}; choose another")

    def read(self, wanted: Sequence[Mapping[str, Sequence[object]]]) -> dict[int, pd.DataFrame]:
        """The parts that are there and whole, by number; `wanted` has the values of some columns of every part."""
        found = ((number, self._whole(number, rows)) for number, rows in enumerate(wanted))
        return {number: frame for number, frame in found if frame is not None}

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

    def write(self, number: int, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """A part made of rows, also written, aside and then renamed; what a row lacks is missing there."""
        made = list(rows)
        frame = pd.DataFrame(
            {name: pd.Series([row.get(name) for row in made], dtype=kind) for name, kind in self.kinds.items()}
        )
        path = self.file(number)
        if path is not None:
            schema = pa.schema([(name, ARROW[kind]) for name, kind in self.kinds.items()])
            with aside(path) as place:
                frame.to_parquet(place, schema=schema, write_page_checksum=True)
        return frame


def check_folder(folder: Path, *, resume: bool) -> bool:
    """Whether a folder holds a sweep to go on with; raises `EditlibError` if it cannot be used."""
    if (folder / PLAN).is_file():
        if not resume:
            raise EditlibError(
                f"output folder {folder} holds a sweep already; resume it (resume=True, --resume) or choose another"
            )
        return True
    if folder.exists() and not folder.is_dir():
        raise EditlibError(f"output {folder} is a file, not a folder; choose another")
    if folder.exists() and any(path.suffix != ".writing" and path.name != LOCK for path in folder.iterdir()):
        raise EditlibError(f"output folder {folder} is not empty and holds no sweep; choose another")
    return False
