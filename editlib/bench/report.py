"""Both paths run and counted, and what that says: seconds, operations, peaks and the floor under them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch
from tqdm import tqdm

from editlib.bench.measure import STAGES, T, Timed, counted, engine, floor_of, matmul_rate, plain, timed
from editlib.bench.work import Work
from editlib.errors import EditlibError
from editlib.machine import hardware
from editlib.text import short, table


@dataclass(frozen=True)
class BenchReport:
    """Both paths side by side; seconds and operations are per edit, seconds medians over all goes."""

    work: Work
    plain: list[Timed]  # one edit each
    engine: list[Timed]  # all edits each
    plain_operations: dict[str, float]
    engine_operations: dict[str, float]
    floor_operations: dict[str, float]
    rate: float  # operations per second of one large product

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        plain, fast = (median(go.seconds for go in goes) for goes in (self.plain, self.engine))
        spent, least = sum(self.engine_operations.values()), sum(self.floor_operations.values())
        return {
            **_about(self.work),
            "rounds": len(self.engine),
            "plain_edits": len(self.plain) // len(self.engine),
            "plain_seconds_per_edit": plain,
            "engine_seconds_per_edit": fast,
            "ratio": plain / fast,
            "plain_flops_per_edit": sum(self.plain_operations.values()),
            "flops_per_edit": spent,
            "floor_flops_per_edit": least,
            "flops_over_floor": spent / least,
            "matmul_flops_per_second": self.rate,
            "floor_seconds_per_edit": least / self.rate,
            "time_over_floor": fast * self.rate / least,
            "plain_peak_memory_bytes": _most(self.plain),
            "peak_memory_bytes": _most(self.engine),
            **self._differences(),
            "stages": self.stages(),
        }

    def stages(self) -> dict[str, dict[str, float | None]]:
        """Seconds and operations of both paths by stage, None where a path has no such stage."""
        columns = {
            "plain_seconds": _by_stage(self.plain), "engine_seconds": _by_stage(self.engine),
            "plain_flops": self.plain_operations, "engine_flops": self.engine_operations,
            "floor_flops": self.floor_operations,
        }  # fmt: skip
        return {stage: {name: column.get(stage) for name, column in columns.items()} for stage in STAGES}

    def _differences(self) -> dict[str, float]:
        """How far the paths' results are apart at most: rounding, if both do the same."""
        fast = {outcome.edit.requests: outcome for outcome in self.engine[0].outcomes}
        pairs = [(slow, fast[slow.edit.requests]) for go in self.plain for slow in go.outcomes]
        values = [(a.target.value - b.target.value).norm() / a.target.value.norm() for a, b in pairs]
        ratios = [b.perplexity.mean / a.perplexity.mean for a, b in pairs]
        return {
            "value_difference": float(torch.stack(values).max()),
            "perplexity_difference": max(abs(ratio - 1) for ratio in ratios),
        }

    def table(self) -> str:
        """The main things, for people."""
        head = ["per edit", "plain, s", "engine, s", "plain, GFLOP", "engine, GFLOP", "floor, GFLOP"]
        rows = [[STAGES[stage], *row.values()] for stage, row in self.stages().items()]
        sums = [sum(value for value in column if value) for column in list(zip(*rows, strict=True))[1:]]
        units = (1, 1, 1e9, 1e9, 1e9)
        cells = [
            [name, *(value and value / unit for value, unit in zip(numbers, units, strict=True))]
            for name, *numbers in [*rows, ["together", *sums]]
        ]
        return f"{table([head, *cells])}\n\n{table(_facts(self.record()))}"


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What a record says beside its stages, in words."""
    rate = record["matmul_flops_per_second"] / 1e9
    memory = [short(peak and peak / 2**30) for peak in (record["plain_peak_memory_bytes"], record["peak_memory_bytes"])]
    return [
        ("model", "{model}, {parameters:,} parameters, {dtype} on {device}, threads: {threads}".format(**record)),
        ("searches", "{edits} at layer {layer}, {steps} steps, {contexts} contexts".format(**record)),
        ("their tokens", "{row_tokens:.1f} a row, {live_tokens:.1f} from the subject's last on".format(**record)),
        ("texts", "{texts} of {text_tokens:,} tokens, longest {longest_text}".format(**record)),
        ("rounds",
         "{rounds}, each {plain_edits} plain and {edits} by the engine; seconds are medians".format(**record)),
        ("ratio", "{ratio:.1f} times faster than plain".format(**record)),
        ("arithmetic", "{flops_over_floor:.2f} times the floor".format(**record)),
        ("time", "{:.2f} times the floor's at {:,.0f} GFLOP/s".format(record["time_over_floor"], rate)),
        ("peak memory", "plain {} GiB, engine {} GiB".format(*memory)),
        ("apart at most", "v* {value_difference:.1e}, perplexity {perplexity_difference:.1e}".format(**record)),
    ]  # fmt: skip


def check(plain_edits: int, edits: int) -> None:
    """Raise `EditlibError` for more plain edits than edits."""
    if not 1 <= plain_edits <= edits:
        raise EditlibError(f"plain_edits={plain_edits} is out of range; there are {edits} edits")


def bench(work: Work, *, plain_edits: int = 2, rounds: int = 1, progress: bool = False) -> BenchReport:
    """Go along both paths in turn, `rounds` times: some edits alone, then all side by side; before that, once along
    each to count operations (plain: those of an edit of median length), which also warms up.

    Raises `EditlibError` for more plain edits than edits.
    """
    check(plain_edits, len(work.requests))
    alone = work.alone(plain_edits)
    with tqdm(total=(1 + rounds) + 1 + rounds * plain_edits, disable=not progress, unit="part") as bar:

        def done(result: T) -> T:
            bar.update()
            return result

        operations = done(counted(plain, *work.alone(1))), done(counted(engine, work))
        slow, fast = list[Timed](), list[Timed]()
        for _ in range(rounds):
            slow += [done(timed(plain, part)) for part in alone]
            fast += [done(timed(engine, work))]
    return BenchReport(work, slow, fast, *operations, floor_of(work), matmul_rate(work))


def _about(work: Work) -> dict[str, Any]:
    """What was measured, and on what."""
    lm, rows = work.lm, [span for search in work.searches for span in search]
    return {
        "model": lm.name,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hardware": hardware(),
        "parameters": lm.model.num_parameters(),
        "layer": work.params.layer,
        "steps": work.params.steps,
        "contexts": len(work.contexts),
        "edits": len(work.requests),
        "row_tokens": fmean(span.end for span in rows),
        "live_tokens": fmean(span.end - span.last for span in rows),
        "texts": len(work.texts),
        "text_tokens": sum(work.lengths),
        "longest_text": max(work.lengths),
    }


def _by_stage(goes: Sequence[Timed]) -> dict[str, float]:
    return {stage: median(go.stages[stage] for go in goes) for stage in goes[0].stages}


def _most(goes: Sequence[Timed]) -> int | None:
    return max((go.peak for go in goes if go.peak is not None), default=None)
