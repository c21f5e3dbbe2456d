"""A table kept in a folder: numbered parquet parts beside the plan that its rows follow from."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from editlib.errors import EditlibError
from editlib.files import aside
from editlib.sweeps.folder import PlannedFolder
from editlib.text import finite

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
