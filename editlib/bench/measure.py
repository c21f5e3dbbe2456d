"""What an edit costs: the plain path, as the released codes go it, beside the engine, and beside a floor of arithmetic.

Both paths do the same ROME edits of the same requests on the same model, and measure perplexity on the same texts.
"""

import ctypes
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from editlib.bench import plain as plainpath
from editlib.bench.floor import Shape, beginnings, floor
from editlib.bench.work import Work
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import solve
from editlib.editing.session import Session
from editlib.engine.passes import PRODUCT
from editlib.engine.perplexity import Perplexity
from editlib.engine.values import Target

BATCH = 10  # texts at once on the plain path, as in the released code of both papers
STAGES = {
    "shared": "prefix contexts, lower layers of the texts",
    "keys": "keys",
    "values": "v* (engine: and keys)",
    "solve": "the weight's change",
    "perplexity": "perplexity",
}
PROCESS = Path("/proc/self")


# -- the two paths --------------------------------------------------------------------------------------


class Meter:
    """What stages take of something that only grows, such as time."""

    def __init__(self, read: Callable[[], float]) -> None:
        self.read = read
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure a block and add it to a stage."""
        before = self.read()
        yield
        self.spent[stage] = self.spent.get(stage, 0) + self.read() - before


@dataclass(frozen=True)
class PathResult:
    """What a path gives for one request."""

    target: Target
    edit: Edit
    perplexity: Perplexity


T = TypeVar("T")
Route = Callable[[Work, Meter], list[PathResult]]


def engine(work: Work, meter: Meter) -> list[PathResult]:
    """All requests at once, by a session that knows nothing yet."""
    space, params = Session(work.lm, reuse=False), work.params
    with meter("shared"):
        space.past(params.contexts)
        space.prepare_texts(params.layer, work.texts)
    with meter("values"):
        space.prepare(work.name, work.requests, params)
    with meter("solve"):
        edits = [solve(space, "rome", [request], params) for request in work.requests]
    with meter("perplexity"):
        perplexities = space.perplexities(edits, work.texts)
    targets = space.targets(work.name, work.requests, params)
    return [PathResult(*each) for each in zip(targets, edits, perplexities, strict=True)]


def plain(work: Work, meter: Meter) -> list[PathResult]:
    """One request after the other, the weight written and restored."""
    return [_plain_edit(work, request, meter) for request in work.requests]


def _plain_edit(work: Work, request: EditRequest, meter: Meter) -> PathResult:
    lm, params = work.lm, work.params
    with meter("keys"):
        keys = plainpath.keys(lm, params.layer, request, work.contexts)
    with meter("values"):
        target = plainpath.target(lm, work.name, request, work.contexts, params)
    with meter("solve"):
        space = Session(lm)
        space.know(work.name, request, params, keys, target)
        edit = solve(space, "rome", [request], params)
    with meter("perplexity"), edit.applied(lm):
        perplexity = plainpath.perplexity(lm, work.texts)
    return PathResult(target, edit, perplexity)


def floor_of(work: Work) -> dict[str, float]:
    """The floor of some work."""
    contexts = [len(ids) for ids in beginnings(work.lm, work.contexts)]
    return floor(
        Shape.of(work.lm), work.params.layer,
        searches=work.searches, contexts=contexts, texts=work.lengths, steps=work.params.steps,
    )  # fmt: skip


def matmul_rate(work: Work, *, seconds: float = 1.0) -> float:
    """Operations per second of a product of the shape the searches make: live tokens in flight x width x d_in."""
    right = work.lm.weight(work.params.layer).contiguous()
    live = sum(span.end - span.last for search in work.searches for span in search)
    left = torch.randn(live, len(right)).to(right)
    clock = _clock(work.lm.device)
    times = [clock()]
    while times[-1] < times[0] + seconds:
        torch.mm(left, right)
        times.append(clock())
    return 2 * left.numel() * right.shape[1] / median(after - before for before, after in pairwise(times))


# -- measuring ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """One go along a path: seconds per edit by stage, the most memory held, what came out."""

    stages: dict[str, float]
    peak: int | None  # bytes; None where the system does not tell
    outcomes: list[PathResult]

    @property
    def seconds(self) -> float:
        """Seconds per edit."""
        return sum(self.stages.values())


def timed(route: Route, work: Work) -> Timed:
    """Go along a path once."""
    work.lm.fingerprint  # noqa: B018  taken once for a model, not for an edit
    meter, peak = Meter(_clock(work.lm.device)), _peak_from_now(work.lm.device)
    outcomes = route(work, meter)
    return Timed(_per_edit(meter, work), peak(), outcomes)


def counted(route: Route, work: Work) -> dict[str, float]:
    """Operations per edit by stage, as torch counts them: matrix products and attention, the latter not as causal."""
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    if PRODUCT is not None:
        on_cpu[PRODUCT] = lambda inputs, weight, *_, **__: 2 * math.prod(inputs) * weight[0]
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        meter = Meter(counter.get_total_flops)
        route(work, meter)
    return _per_edit(meter, work)


def profile(work: Work, *, rows: int = 10) -> list[dict[str, Any]]:
    """The engine's most expensive operators: calls, seconds spent in them alone, share of all."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells that it starts and stops
    cuda = work.lm.device.type == "cuda"
    with torch.profiler.profile() as profiler:
        engine(work, Meter(_clock(work.lm.device)))
    spent = {
        event.key: (event.count, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6)
        for event in profiler.key_averages()
    }
    whole = sum(seconds for _, seconds in spent.values())
    top = sorted(spent.items(), key=lambda item: item[1][1], reverse=True)[:rows]
    return [{"operator": n, "calls": calls, "seconds": s, "share": s / whole} for n, (calls, s) in top]


def _per_edit(meter: Meter, work: Work) -> dict[str, float]:
    return {stage: spent / len(work.requests) for stage, spent in meter.spent.items()}


def _clock(device: torch.device) -> Callable[[], float]:
    """The time, once the device has done what it was asked for."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter()

    return read


def _peak_from_now(device: torch.device) -> Callable[[], int | None]:
    """The most bytes held from now on: of a GPU what torch's tensors take, else all that the process has."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # give back what was freed, or it counts as held
    try:
        PROCESS.joinpath("clear_refs").write_text("5")
    except OSError:  # no Linux
        return lambda: None
    return lambda: int(re.findall(r"VmHWM:\s*(\d+) kB", PROCESS.joinpath("status").read_text())[0]) * 1024
