"""What an analysis costs, told by earlier runs in edits, whatever machine and model they were executed with."""

from collections.abc import Sequence
from pathlib import Path

from editlib.runs.manifest import Manifest
from editlib.runs.plan import RunPlan


def edits_worth(asked: RunPlan, runs: Sequence[Manifest]) -> float | None:
    """How many edits take as long as an analysis: those of its newest run that tells what one took, scaled by how many
    cases are drawn; None if no run tells."""
    for run in reversed([run for run in runs if run.analysis == asked.analysis.name]):
        each = _seconds_of_an_edit(run.folder)
        if each:
            return run.seconds / each * _scale(asked, run)
    return None


def _seconds_of_an_edit(folder: Path) -> float | None:
    """The median of what edits of a run's first model took."""
    import pandas as pd

    path = folder / "data" / "cases.parquet"
    if not path.is_file():
        return None
    table = pd.read_parquet(path)
    if "seconds" not in table or table["seconds"].isna().all():
        return None
    return float(table["seconds"].median())


def _scale(asked: RunPlan, run: Manifest) -> float:
    """The first whole number but for the seed that differs, over what it was: notebooks declare how many cases are
    drawn before what is done with them."""
    pairs = [(value, run.parameters.get(name)) for name, value in asked.parameters.items() if name != "seed"]
    ratios = (a / b for a, b in pairs if type(a) is int and type(b) is int and b > 0 and a != b)
    return next(ratios, 1.0)
