"""Two runs side by side: what was asked, where it was executed, and the numbers that came out."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from editlib.runs.manifest import Manifest
from editlib.text import flat, metric, with_interval

Metric = bool | int | float | str


@dataclass(frozen=True)
class Difference:
    """A named entry that two manifests do not have in common; None also where one lacks it."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Number:
    """A headline number of two runs: None where one lacks it; intervals are (low, high)."""

    name: str
    a: Metric | None
    b: Metric | None
    a_interval: tuple[Metric, Metric] | None
    b_interval: tuple[Metric, Metric] | None

    @property
    def difference(self) -> float | None:
        """b - a, where both are finite numbers."""
        a, b = _finite(self.a), _finite(self.b)
        return None if a is None or b is None else b - a

    @property
    def ratio(self) -> float | None:
        """b / a, where both are finite numbers and a is not 0."""
        a, b = _finite(self.a), _finite(self.b)
        return None if a is None or b is None or a == 0 else b / a


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common and what not; entries are sorted by name."""

    a: str  # run ids
    b: str
    same_analysis: bool
    same_spec: bool
    parameters: tuple[Difference, ...]
    inputs: tuple[Difference, ...]
    environment: tuple[Difference, ...]  # packages, commit and version of the project among them
    hardware: tuple[Difference, ...]
    numbers: tuple[Number, ...]
    figures: tuple[str, ...]  # that both have

    @property
    def record(self) -> dict[str, Any]:
        """As JSON values, with each number's difference and ratio."""
        numbers = [asdict(n) | {"difference": n.difference, "ratio": n.ratio} for n in self.numbers]
        return asdict(self) | {"numbers": numbers}


def compare(a: Manifest, b: Manifest) -> Comparison:
    """Compare two runs, of one analysis or of two."""
    return Comparison(
        a=a.run,
        b=b.run,
        same_analysis=a.analysis == b.analysis,
        same_spec=a.spec == b.spec,
        parameters=_differences(a.parameters, b.parameters),
        inputs=_differences(flat(asdict(a.inputs)), flat(asdict(b.inputs))),
        environment=_differences(_software(a), _software(b)),
        hardware=_differences(_machine(a), _machine(b)),
        numbers=tuple(_numbers(a.metrics, b.metrics)),
        figures=tuple(sorted(name for name in a.outputs.keys() & b.outputs if name.startswith("figures/"))),
    )


def intervals(metrics: Mapping[str, Metric]) -> dict[str, tuple[str, str]]:
    """Names of the lower and upper bound by the metric they belong to: of `auc_ft`, `auc_low_ft` and `auc_high_ft`."""
    bounds = {}
    for low in metrics:
        words = low.split("_")
        for position in (position for position, word in enumerate(words) if position and word == "low"):
            before, after = words[:position], words[position + 1 :]
            name, high = "_".join(before + after), "_".join([*before, "high", *after])
            if name in metrics and high in metrics:
                bounds[name] = low, high
    return bounds


def headline(metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """Every number that is no bound of another: `name`, `value`, its interval `low` and `high` if it has one, and as
    `text` how a reader wants it."""
    bounds = intervals(metrics)
    others = {bound for pair in bounds.values() for bound in pair}
    told = []
    for name, value in metrics.items():
        if name not in others:
            ends = _ends(metrics, bounds.get(name))
            spoken = ends and (metric(name, ends[0]), metric(name, ends[1]))
            entry = {"name": name, "value": value, "text": with_interval(metric(name, value), spoken)}
            told.append(entry | (dict(zip(("low", "high"), ends, strict=True)) if ends else {}))
    return told


def _numbers(a: Mapping[str, Metric], b: Mapping[str, Metric]) -> Iterable[Number]:
    bounds_a, bounds_b = intervals(a), intervals(b)
    bounds = {bound for pair in (*bounds_a.values(), *bounds_b.values()) for bound in pair}
    for name in sorted((a.keys() | b.keys()) - bounds):
        yield Number(name, a.get(name), b.get(name), _ends(a, bounds_a.get(name)), _ends(b, bounds_b.get(name)))


def _ends(metrics: Mapping[str, Metric], names: tuple[str, str] | None) -> tuple[Metric, Metric] | None:
    ends = (metrics[names[0]], metrics[names[1]]) if names else None
    return None if ends == ("nan", "nan") else ends  # of too few cases


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    names = sorted(a.keys() | b.keys())
    return tuple(Difference(n, a.get(n), b.get(n)) for n in names if not _same(a.get(n), b.get(n)))


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)  # 1, 1.0 and true are three values


def _software(run: Manifest) -> dict[str, Any]:
    return flat(asdict(run.environment) | {"git": asdict(run.git), "project": {"version": run.project.version}})


def _machine(run: Manifest) -> dict[str, Any]:
    return asdict(run.hardware) | {"gpus": ", ".join(run.hardware.gpus)}


def _finite(value: Metric | None) -> float | None:
    """A number that can be subtracted: not true or false, not "inf" or "nan"."""
    if isinstance(value, str | bool) or value is None:
        return None
    return float(value) if math.isfinite(value) else None
