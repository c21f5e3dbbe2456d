"""A method whose edits end or hold up the process that makes them, as files of a folder say."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from editlib.data.request import EditRequest
from editlib.editing.edit import Intervention
from editlib.editing.method import Method, State
from editlib.editing.methods import METHODS
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.models.language_model import LanguageModel

SEARCH = RomeParams(layer=1, steps=2, covariance=False)


class Fragile(Method):
    """ROME, but for subjects that a file is named after: `once`, it is gone before the fault; `waits`, until it is."""

    name, hparams = "rome", RomeParams

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def searches(self, lm: LanguageModel, params: Any) -> list[Any]:
        return METHODS["rome"].searches(lm, params)

    def layers(self, params: Any) -> tuple[int, ...]:
        return METHODS["rome"].layers(params)

    def solve(
        self, session: Session, requests: Sequence[EditRequest], params: Any, state: State | None = None
    ) -> tuple[Intervention, State | None]:
        file = self.folder / requests[0].subject
        fault = file.read_text("utf-8") if file.is_file() else ""
        if "once" in fault:
            file.unlink()
        if "killed" in fault:
            os.kill(os.getpid(), signal.SIGKILL)
        if "exits" in fault:
            os._exit(1)
        if "raises" in fault:
            raise MemoryError("no room")
        time.sleep(600 if "hangs" in fault else 0)
        while "waits" in fault and file.is_file():
            time.sleep(0.05)
        return METHODS["rome"].solve(session, requests, params, state)
