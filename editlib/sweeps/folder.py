"""A folder of results beside the plan that they follow from: one writer, and gone on with only by the same plan."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editlib.errors import EditlibError
from editlib.files import LOCK, locked, write_json


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
