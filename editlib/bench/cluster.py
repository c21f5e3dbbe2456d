"""What a cluster comes to: what its driver bears, how much faster two workers are, what edits of large models cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM

from editlib.bench.measure import Meter, engine, floor_of
from editlib.bench.work import SHAPES, TESTBED, Work, work
from editlib.cluster.driver import Assignment, distribute
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.data import datasets as data
from editlib.editing.methods.rome import RomeParams
from editlib.models.language_model import LanguageModel, Layout
from editlib.models.loading import load
from editlib.sweeps.filling import Filling
from editlib.sweeps.parts import Parts
from editlib.sweeps.rows import SINGLE, about, frame
from editlib.sweeps.single import PART, sweep

LAYOUTS = {
    "gpt2": "transformer.h,mlp.c_proj",
    "gptj": "transformer.h,mlp.fc_out",
    "llama": "model.layers,mlp.down_proj",
}


# -- the driver ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """What a driver bore: parts taken from workers and written, seconds, its processor's seconds, bytes of a part."""

    parts: int
    seconds: float
    cpu_seconds: float
    part_bytes: int

    @property
    def parts_a_minute(self) -> float:
        """That this process could write if workers never kept it waiting: by the time its processor took."""
        return 60 * self.parts / self.cpu_seconds


@dataclass(frozen=True)
class Echo:
    """Workers that answer everything with the same rows, at once."""

    rows: pd.DataFrame

    def begin(self) -> Callable[[Any], pd.DataFrame]:
        """Nothing is loaded."""
        return lambda what: self.rows


class Discarding:
    """A sweep's folder; its rows are not kept in memory."""

    def __init__(self, folder: Path) -> None:
        self.parts = Parts.of(folder, {"sweep": "synthetic", "parts": 0}, SINGLE, resume=False)

    def write(self, number: int, cases: Sequence[int], rows: pd.DataFrame) -> int:
        """Keep a part in the folder."""
        self.parts.write(number, rows)
        return len(cases)

    def dead(self, number: int, case: int, reason: str) -> pd.DataFrame:
        """No case is."""
        raise AssertionError(reason)


def driver_load(parts: int, folder: Path, workers: Workers) -> Load:
    """Have so many parts of synthetic rows made by workers that do nothing for them, and write them as a sweep does."""
    rows, into = synthetic(), Discarding(folder)
    told = Progress(parts * PART, workers, shown=False)
    tasks = [Assignment((number, tuple(range(PART)))) for number in range(parts)]
    with into.parts.working():
        ready = Ready(Filling(into, told))
        distribute(Echo(rows), tasks, ready, workers, told)
        ended, cpu = time.perf_counter(), time.process_time()
    size = sum(path.stat().st_size for path in folder.glob("part-*.parquet"))
    return Load(parts - 1, ended - ready.began, cpu - ready.cpu, size // parts)


class Ready:
    """A ledger that knows when its first result came: what was before is Ray's start."""

    def __init__(self, filling: Filling) -> None:
        self.filling, self.lost = filling, filling.lost
        self.began = self.cpu = 0.0

    def done(self, what: tuple[int, tuple[int, ...]], result: pd.DataFrame) -> list[Assignment]:
        """Take a result."""
        following = self.filling.done(what, result)
        if not self.began:
            self.began, self.cpu = time.perf_counter(), time.process_time()
        return following


def synthetic() -> pd.DataFrame:
    """A part's rows: requests of the testbed, and numbers drawn, since what repeats takes no room in a file."""
    draw = np.random.default_rng(0)
    numbers = [name for name, kind in SINGLE.items() if kind == "float64"]
    rows = [about(case) | dict(zip(numbers, draw.random(len(numbers)), strict=True)) for case in data.cases("testbed")]
    return frame([row | {"method": "rome"} for row in rows[:PART]], SINGLE)


# -- workers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speedup:
    """Seconds of one process of one thread, and of workers of one thread each, for the same cases."""

    cases: int
    alone: float
    together: float
    start: float  # of these: what workers take for a single case, which is Ray's start and theirs
    same: bool  # whether the rows are the same to the last bit, but for their seconds

    @property
    def ratio(self) -> float:
        """How many times faster workers are, Ray's start and theirs included."""
        return self.alone / self.together

    @property
    def working_ratio(self) -> float:
        """How many times faster they are once they are there."""
        return self.alone / (self.together - self.start)


def speedup(cases: int, workers: Workers) -> Speedup:
    """A ROME sweep of testbed cases by one process of one thread, then by workers, on the texts of the testbed."""
    lm, chosen, texts = load(TESTBED), data.cases("testbed")[:cases], data.texts("testbed-ppl-50")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sweep(lm, chosen[:1], methods="rome", texts=texts, progress=False)  # second moments are kept from then on
        times, tables, each = [time.perf_counter()], [], replace(workers, cpus=1)
        for some, asked in ((chosen, None), (chosen, each), (chosen[:1], each)):
            tables.append(sweep(lm, some, methods="rome", texts=texts, workers=asked, progress=False))
            times.append(time.perf_counter())
    finally:
        torch.set_num_threads(before)
    one, other = (table.drop(columns="seconds") for table in tables[:2])
    alone, together, start = (after - before for before, after in pairwise(times))
    return Speedup(len(chosen), alone, together, start, one.equals(other))


# -- models --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one ROME edit of a model and its perplexity take, and what its second moments weigh."""

    model: str
    parameters: int
    operations: float  # of an exact method that does nothing twice, on 50 texts
    params: RomeParams
    key_width: int
    seconds: float | None = None  # that a processor here took for one; None for a projection

    @property
    def moment_bytes(self) -> int:
        """Of one layer's second moments, in float64."""
        return 8 * self.key_width**2


def projected(name: str, *, edits: int = PART) -> Cost:
    """The cost of a model's true shape by counting alone: no weight of it is made."""
    config, lender = SHAPES[name], load(TESTBED)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    layout = Layout.of(LAYOUTS[config.model_type])
    return _counted(work(LanguageModel(made, lender.tokenizer, layout, name, lender.folder), edits=edits))


def measured(lm: LanguageModel, *, edits: int = PART) -> Cost:
    """The cost of a model that is here on the CPU, with the seconds of one thread's processor that the engine takes.

    These are not the clock's: other work on the machine, as there may be, changes them little.
    """
    asked, before = work(lm, edits=edits), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        meter = Meter(time.process_time)
        engine(asked, meter)
    finally:
        torch.set_num_threads(before)
    return replace(_counted(asked), seconds=sum(meter.spent.values()) / edits)


def _counted(asked: Work) -> Cost:
    lm = asked.lm
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    width = lm.weight(asked.params.layer).shape[1]
    return Cost(lm.name, parameters, sum(floor_of(asked).values()), asked.params, width)
