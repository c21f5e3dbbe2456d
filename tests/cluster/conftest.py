"""A Ray cluster on this machine, whose nodes tests add and remove; nothing of it listens beyond loopback."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults
import pytest

from editlib.cluster.connection import ALONE, QUIET

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

os.environ |= QUIET | ALONE  # read when Ray is imported
FAST = {f"health_check_{name}": 500 for name in ("initial_delay_ms", "period_ms", "timeout_ms")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))  # Ray's own


@pytest.fixture(scope="package")
def cluster(cache: Path) -> Iterator[Cluster]:
    """A head that has no room for a worker."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": FAST | {"health_check_failure_threshold": 3}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(faults.__file__).parent), os.pathsep)  # where workers find test methods
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.global_state.disconnect()  # or its threads ask a head that is gone, until this process ends
        made.shutdown()


@pytest.fixture
def nodes(cluster: Cluster) -> Callable[[int], list[Any]]:
    """Make it so many nodes of one CPU beside the head."""

    def make(count: int) -> list[Any]:
        while len(cluster.worker_nodes) > count:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        while len(cluster.worker_nodes) < count:
            cluster.add_node(num_cpus=1)
        return [*cluster.worker_nodes]

    return make


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as a worker has."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
