"""A worker: what it holds, and how it is told apart from one that would give other numbers."""

import importlib.metadata
import platform
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from editlib.errors import EditlibError

TOLD = ("editlib", "torch", "transformers", "tokenizers", "numpy")  # packages whose versions numbers depend on


class Job(Protocol):
    """What workers are for; it is sent to each of them."""

    def begin(self) -> Callable[[Any], Any]:
        """Load what all tasks need, and return what does a task; runs in the worker."""


def versions() -> dict[str, str]:
    """Of Python and of packages that numbers depend on, as installed here."""
    known = {d.name.lower(): d.version for d in importlib.metadata.distributions() if d.name}
    return {"python": platform.python_version()} | {name: known[name] for name in TOLD if name in known}


class Worker:
    """Holds a job's model and caches, and does one task after another."""

    def begin(self, job: Job, wanted: Mapping[str, str]) -> str:
        """Get ready, and say where this is; raises `EditlibError` where other versions are installed."""
        installed, host = versions(), socket.gethostname()
        name = next((name for name in wanted if installed.get(name) != wanted[name]), None)
        if name:
            raise EditlibError(
                f"{host} has {name} {installed.get(name) or 'not at all'}, and {wanted[name]} is wanted; install the "
                "same versions on all machines"
            )
        self._work = job.begin()
        return host

    def do(self, task: Any) -> Any:
        """Do a task."""
        return self._work(task)
