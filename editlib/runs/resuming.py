"""Long sweeps of a notebook keep their parts until its run is whole, so that one that was interrupted goes on."""

import os
from pathlib import Path
from typing import Any

VARIABLE = "EDITLIB_PARTS"  # set by `editlib run` to a folder of the run's spec


def resumed(name: str) -> dict[str, Any]:
    """Options of `sweep` and `sequence` that keep parts under a name of the notebook's own, and go on with those that
    are there and follow from the same code; none where no run is being made."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return {}
    from editlib.sweeps.plan import code_hash

    return {"out": Path(folder) / code_hash()[:12] / name, "resume": True}
