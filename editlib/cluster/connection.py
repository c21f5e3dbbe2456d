"""The way to a Ray cluster, or in one line why there is none."""

import importlib
import importlib.util
import io
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from editlib.cluster.workers import LOCAL, Workers
from editlib.errors import EditlibError

log = logging.getLogger(__name__)

QUIET = {  # read by Ray when it is imported, and by what it starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of what it will do some day
}
ALONE = {  # for a cluster on this machine
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one machine, that is: no port is open to any other
    "RAY_worker_niceness": "0",  # work goes on as it would in this process
}
REACH = 5.0  # seconds to wait for an address


def workers_for(workers: Workers | str | None) -> Workers | None:
    """The workers that are meant: "ray" stands for the usual ones, None for none.

    Raises `EditlibError` for another word, if Ray is not installed, or if nobody listens at the address.
    """
    if workers is None:
        return None
    wanted = Workers() if workers == "ray" else workers
    if not isinstance(wanted, Workers):
        raise EditlibError(f'workers {workers!r} are unknown; give "ray", or Workers(address=...)')
    if importlib.util.find_spec("ray") is None:
        raise EditlibError("workers need Ray; install it with: pip install 'editlib[ray]'")
    if wanted.address not in (LOCAL, "auto"):
        _reach(wanted.address)
    return wanted


@contextmanager
def connected(workers: Workers) -> Iterator[Any]:
    """Ray, connected inside the block; a connection that is there already is used, and stays.

    Raises `EditlibError` if there is no cluster at the address, its versions are others, or it has no node with room
    for a worker.
    """
    ray = _imported(workers)
    here = ray.is_initialized()
    if not here:
        _connect(ray, workers)
    try:
        if not room(ray, workers):
            raise EditlibError(f"no worker has room: each needs {workers.each}, and {_nodes(ray)}; ask for less")
        with redirect_stdout(_Log()):
            yield ray
    finally:
        if not here:
            ray.shutdown()


class _Log(io.TextIOBase):
    """Takes what Ray prints of each worker that dies: standard output is for results."""

    def write(self, text: str) -> int:
        log.debug(text.strip())
        return len(text)


def _imported(workers: Workers) -> Any:
    for name, value in (QUIET | (ALONE if workers.address == LOCAL else {})).items():
        os.environ.setdefault(name, value)
    return importlib.import_module("ray")


def _connect(ray: Any, workers: Workers) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if workers.address == LOCAL:
        options |= {"include_dashboard": workers.dashboard}
    try:
        ray.init(address=workers.address, **options)
    except Exception as error:  # almost anything, by what is wrong
        ray.shutdown()
        reason = " ".join(str(error).split()) or type(error).__name__
        if "ersion mismatch" in reason:
            raise EditlibError(f"the cluster at {workers.address} has other versions: {reason}") from error
        raise EditlibError(
            f"no Ray cluster at {workers.address}: {reason[:200]}; start one with ray start --head, or use local"
        ) from error


def _reach(address: str) -> None:
    """See that somebody listens at an address: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if not host or not port.isdecimal():
            raise EditlibError(f"address {address!r} is unknown; give local, auto or HOST:PORT")
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EditlibError(
            f"no Ray cluster at {address}: {reason}; start one with ray start --head, or use local"
        ) from error


def room(ray: Any, workers: Workers) -> int:
    """How many workers the nodes that are alive have room for, whoever else uses them."""
    count = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        fits = [has.get("CPU", 0) // workers.cpus]
        fits += [has.get("GPU", 0) // workers.gpus] if workers.gpus else []
        count += int(min(fits))
    return count


def _nodes(ray: Any) -> str:
    """What the nodes have, in words."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = {kind: max((has.get(kind, 0) for has in alive), default=0) for kind in ("CPU", "GPU")}
    return f"the {len(alive)} nodes there are have at most {most['CPU']:g} CPUs and {most['GPU']:g} GPUs"
