"""What a notebook leaves in its folder for the manifest."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editlib.editing.stats import Stats

METRICS, EDITS = "metrics.json", "edits.json"
READ = ("tokens", "window", "first_position", "source")  # how second moments were read


def record(
    metrics: Mapping[str, float | str],
    *,
    hparams: Mapping[str, Mapping[str, Any]] | None = None,
    moments: Mapping[str, "Stats | None"] | None = None,
) -> None:
    """Write headline numbers by name and, of the models that were edited, with what hyper-parameters that was done.

    `hparams` are those of methods, as `hparams_for` gives them, by model and name of the method; `moments` the second
    moments by model, None where C was left out.
    """
    Path(METRICS).write_text(json.dumps(metrics), "utf-8")
    resolved = {
        model: {method: asdict(params) for method, params in methods.items()}
        for model, methods in (hparams or {}).items()
    }
    read = {
        model: {name: getattr(stats.header, name) for name in READ}
        | {"tokens_per_dimension": stats.tokens_per_dimension}
        for model, stats in (moments or {}).items()
        if stats is not None
    }
    told = {"hparams": resolved, "moments": read}
    Path(EDITS).write_text(json.dumps(told), "utf-8")


def take(folder: Path) -> dict[str, Any]:
    """Remove these files and return what they say: `metrics`, `hparams` and `moments`.

    JSON has no inf or nan, so these become "inf", "-inf" and "nan". Raises `ValueError` for files that say something
    else.
    """
    metrics, edits = (_read(folder / name) for name in (METRICS, EDITS))
    wrong = next((name for name, value in metrics.items() if not isinstance(value, int | float | str)), None)
    if wrong is not None:
        raise ValueError(f"the notebook wrote metric {wrong!r} as {metrics[wrong]!r}; write a number or a string")
    return {"metrics": metrics, "hparams": {}, "moments": {}} | edits


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, whose file is removed; empty without one."""
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text("utf-8"), parse_constant=lambda text: str(float(text)))
    except ValueError as error:
        raise ValueError(f"the notebook wrote a {path.name} that is no JSON ({error})") from error
    if not isinstance(said, dict):
        raise ValueError(f"the notebook wrote a {path.name} that is no JSON object; write values by name")
    path.unlink()
    return said
