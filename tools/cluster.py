"""Measures what a Ray cluster on this machine comes to: two workers beside one process, and what the driver bears.

.venv/bin/python tools/cluster.py --cases 600 --parts 10000
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from editlib.bench.cluster import driver_load, speedup
from editlib.cluster.workers import Workers


def main() -> None:
    """Print both as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=600, help="edited by one process and by workers; 0 for neither")
    parser.add_argument("--parts", type=int, default=10_000, help="synthetic parts for the driver; 0 for none")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    workers = Workers(workers=given.workers)
    if given.cases:
        found = speedup(given.cases, workers)
        print(json.dumps(asdict(found) | {"ratio": found.ratio, "working_ratio": found.working_ratio}))
    if given.parts:
        with TemporaryDirectory() as folder:
            load = driver_load(given.parts, Path(folder) / "parts", workers)
        print(json.dumps(asdict(load) | {"parts_a_minute": load.parts_a_minute}))


if __name__ == "__main__":
    main()
