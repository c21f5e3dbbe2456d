"""What takes long in a notebook keeps its parts until its run is whole, so that one that was interrupted goes on."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

VARIABLE = "EDITLIB_PARTS"  # set by `editlib run` to a folder of the run's spec


def resumed(name: str) -> dict[str, Any]:
    """Options of `sweep` and `sequence` that keep parts under a name of the notebook's own, and go on with those that
    are there and follow from the same code; none where no run is being made."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return {}
    from editlib.sweeps.plan import rows_hash

    return {"out": Path(folder) / rows_hash()[:12] / name, "resume": True}


def kept(name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table that takes long to make, under a name of the notebook's own: made once for the same run and code.

    Where no run is being made it is made each time. One that cannot be read is made again.
    """
    given = resumed(name)
    if not given:
        return make()
    from editlib.files import aside

    path: Path = given["out"].with_name(f"{name}.parquet")
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except Exception:  # not there; or damaged, of which the reader raises almost anything
        table = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as writing:
        table.to_parquet(writing, write_page_checksum=True)
    return table
