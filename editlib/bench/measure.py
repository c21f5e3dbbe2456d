"""What an edit costs: the plain path, as the released codes go it, beside the engine, and beside a floor of arithmetic.

Both paths do the same ROME edits of the same requests on the same model, and measure perplexity on the same texts.
"""

import ctypes
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from statistics import fmean, median
from time import perf_counter
from typing import Any, TypeVar

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedConfig

from editlib.bench import plain as plainpath
from editlib.bench.floor import Shape, Span, beginnings, floor, spans
from editlib.data import datasets as data
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import hparams_for, solve
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.engine import products
from editlib.engine.perplexity import Perplexity
from editlib.engine.prefixes import prefix_contexts
from editlib.engine.values import Target
from editlib.errors import EditlibError, unknown
from editlib.machine import hardware
from editlib.models.language_model import LanguageModel
from editlib.models.loading import load, require_device
from editlib.models.names import DTYPES
from editlib.models.tokens import encode_texts
from editlib.text import short, table

TESTBED = "testbed/anchored"  # lends random models its tokenizer, prefix contexts, cases and prose
SHAPES: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(n_layer=12, n_embd=768, n_head=12, n_positions=1024, vocab_size=50257),
    "gpt2-xl": GPT2Config(n_layer=48, n_embd=1600, n_head=25, n_positions=1024, vocab_size=50257),
    "gpt-j-6b": GPTJConfig(n_layer=28, n_embd=4096, n_head=16, rotary_dim=64, n_positions=2048, vocab_size=50400),
    "llama-2-7b": LlamaConfig(
        num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
        max_position_embeddings=4096, vocab_size=32000,
    ),
}  # fmt: skip
MODELS = ("testbed", *SHAPES)
BATCH = 10  # texts at once on the plain path, as in the released code of both papers
STAGES = {
    "shared": "prefix contexts, lower layers of the texts",
    "keys": "keys",
    "values": "v* (engine: and keys)",
    "solve": "the weight's change",
    "perplexity": "perplexity",
}
PROCESS = Path("/proc/self")


# -- what is measured -----------------------------------------------------------------------------------


def model(name: str, *, dtype: str = "float32", device: str = "cpu") -> LanguageModel:
    """The testbed's anchored twin, or a model of true shape with random weights, which needs no download.

    Raises `EditlibError` for an unknown name or device, or before a model larger than the free memory is made.
    """
    if name not in MODELS:
        raise unknown("bench model", name, MODELS)
    if name not in SHAPES:
        return load(TESTBED, dtype=dtype, device=device)
    lender, config = load(TESTBED), SHAPES[name]
    _require_memory(name, config, dtype, require_device(device))
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return LanguageModel(made, lender.tokenizer, name=name, folder=lender.folder)


def _require_memory(name: str, config: PreTrainedConfig, dtype: str, device: str) -> None:
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    needed = made.num_parameters() * made.dtype.itemsize
    cuda = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else psutil.virtual_memory().available
    if needed > free:
        raise EditlibError(
            f"model {name} has {needed / 2**30:.1f} GiB of weights in {dtype}, and {free / 2**30:.1f} GiB of memory "
            "are free; choose a smaller model or --dtype bfloat16"
        )


@dataclass(frozen=True)
class Work:
    """What both paths are given."""

    lm: LanguageModel
    requests: tuple[EditRequest, ...]
    texts: tuple[str, ...]
    params: RomeParams

    @property
    def name(self) -> str:
        """The module whose output v* is."""
        return self.lm.layout.name(self.params.layer)

    @cached_property
    def contexts(self) -> list[str]:
        """The prefix contexts."""
        return prefix_contexts(self.lm, flavour=self.params.contexts)

    @cached_property
    def searches(self) -> list[list["Span"]]:
        """The texts of every request's search."""
        return [spans(self.lm, request, self.contexts) for request in self.requests]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every text."""
        return [len(row) for row in encode_texts(self.lm, self.texts)]

    def first(self, edits: int) -> "Work":
        """The same with the first few requests."""
        return replace(self, requests=self.requests[:edits])

    def alone(self, edits: int) -> list["Work"]:
        """The same with one request, for a few of them, spread evenly over their lengths."""
        order = sorted(range(len(self.requests)), key=lambda i: max(span.end for span in self.searches[i]))
        chosen = [order[(2 * i + 1) * len(order) // (2 * edits)] for i in range(edits)]
        return [replace(self, requests=self.requests[i : i + 1]) for i in chosen]


def work(
    lm: LanguageModel,
    *,
    edits: int = 16,
    texts: int = 50,
    longest: int = 59,
    before: int = 0,
    steps: int | None = None,
) -> Work:
    """Requests and texts of the testbed for any model with its tokenizer; ROME's preset, without second moments.

    They are of the papers' size. Searches have about 17 tokens a row, 20 with padding, 4 from the subject's last on, as
    have COUNTERFACT's requests in GPT-2's tokens behind prefixes of 7 and 12. Texts are pieces of prose whose lengths
    grow as squares from a sixth of `longest` tokens to `longest`, about as in ME-PPL-50 (50 texts, 1,328 tokens,
    longest 59). `before` tokens of prose go before each prompt. Every search takes all its steps.

    Raises `EditlibError` for more edits than there are cases, or a text or prompt longer than the model's context.
    """
    cases = data.cases("testbed")
    if not 1 <= edits <= len(cases):
        raise EditlibError(f"edits={edits} is out of range; the testbed has {len(cases)} cases")
    Random(0).shuffle(cases)
    prose = lm.tokenizer(" ".join(data.texts("testbed-ppl-1k")), add_special_tokens=False)["input_ids"]
    lengths = [before, *(round(longest * (1 + 5 * (i / max(texts - 1, 1)) ** 2) / 6) for i in range(texts))]
    opening, *pieces = (lm.tokenizer.decode(prose[start:end]) for start, end in pairwise((0, *accumulate(lengths))))
    requests = [case.request for case in cases[:edits]]
    if before:
        requests = [replace(request, prompt=f"{opening.strip()} {request.prompt}") for request in requests]
    chosen: dict[str, Any] = {} if steps is None else {"steps": steps}
    made = Work(lm, tuple(requests), tuple(pieces), hparams_for(lm, "rome", covariance=False, stop_loss=0.0, **chosen))
    most = max(*made.lengths, *(span.end for search in made.searches for span in search))
    if lm.max_length is not None and most > lm.max_length:
        raise EditlibError(f"before={before} makes prompts of {most} tokens, the model takes at most {lm.max_length}")
    return made


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
class Outcome:
    """What a path gives for one request."""

    target: Target
    edit: Edit
    perplexity: Perplexity


T = TypeVar("T")
Route = Callable[[Work, Meter], list[Outcome]]


def engine(work: Work, meter: Meter) -> list[Outcome]:
    """All requests at once, by a session that knows nothing yet."""
    space, params = Session(work.lm), work.params
    with meter("shared"):
        space.past(params.contexts)
        space.prepare_texts(params.layer, work.texts)
    with meter("values"):
        space.prepare(work.name, work.requests, params)
    with meter("solve"):
        edits = [solve(space, "rome", [request], params) for request in work.requests]
    with meter("perplexity"):
        found = space.perplexities(edits, work.texts)
    targets = space.targets(work.name, work.requests, params)
    return [Outcome(*each) for each in zip(targets, edits, found, strict=True)]


def plain(work: Work, meter: Meter) -> list[Outcome]:
    """One request after the other, the weight written and restored."""
    return [_plain_edit(work, request, meter) for request in work.requests]


def _plain_edit(work: Work, request: EditRequest, meter: Meter) -> Outcome:
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
        found = plainpath.perplexity(lm, work.texts)
    return Outcome(target, edit, found)


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
    outcomes: list[Outcome]

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
    if products.PRODUCT is not None:
        on_cpu[products.PRODUCT] = lambda inputs, weight, *_, **__: 2 * math.prod(inputs) * weight[0]
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        meter = Meter(counter.get_total_flops)
        route(work, meter)
    return _per_edit(meter, work)


def profile(work: Work, *, rows: int = 10) -> list[dict[str, Any]]:
    """The engine's most expensive operators: calls, seconds spent in them alone, share of all."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler tells that it starts and stops
    cuda = work.lm.device.type == "cuda"
    with torch.profiler.profile() as found:
        engine(work, Meter(_clock(work.lm.device)))
    spent = {
        event.key: (event.count, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6)
        for event in found.key_averages()
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


# -- the report -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
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


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What a record says beside its stages, in words."""
    rate = found["matmul_flops_per_second"] / 1e9
    memory = [short(peak and peak / 2**30) for peak in (found["plain_peak_memory_bytes"], found["peak_memory_bytes"])]
    return [
        ("model", "{model}, {parameters:,} parameters, {dtype} on {device}, threads: {threads}".format(**found)),
        ("searches", "{edits} at layer {layer}, {steps} steps, {contexts} contexts".format(**found)),
        ("their tokens", "{row_tokens:.1f} a row, {live_tokens:.1f} from the subject's last on".format(**found)),
        ("texts", "{texts} of {text_tokens:,} tokens, longest {longest_text}".format(**found)),
        ("rounds", "{rounds}, each {plain_edits} plain and {edits} by the engine; seconds are medians".format(**found)),
        ("ratio", "{ratio:.1f} times faster than plain".format(**found)),
        ("arithmetic", "{flops_over_floor:.2f} times the floor".format(**found)),
        ("time", "{:.2f} times the floor's at {:,.0f} GFLOP/s".format(found["time_over_floor"], rate)),
        ("peak memory", "plain {} GiB, engine {} GiB".format(*memory)),
        ("apart at most", "v* {value_difference:.1e}, perplexity {perplexity_difference:.1e}".format(**found)),
    ]  # fmt: skip


def bench(work: Work, *, plain_edits: int = 2, rounds: int = 1, progress: bool = False) -> Report:
    """Go along both paths in turn, `rounds` times: some edits alone, then all side by side; before that, once along
    each to count operations (plain: those of an edit of median length), which also warms up.

    Raises `EditlibError` for more plain edits than edits.
    """
    if not 1 <= plain_edits <= len(work.requests):
        raise EditlibError(f"plain_edits={plain_edits} is out of range; there are {len(work.requests)} edits")
    alone = work.alone(plain_edits)
    with tqdm(total=(1 + rounds) + 1 + rounds * plain_edits, disable=not progress, unit="part") as bar:

        def done(found: T) -> T:
            bar.update()
            return found

        operations = done(counted(plain, *work.alone(1))), done(counted(engine, work))
        slow, fast = list[Timed](), list[Timed]()
        for _ in range(rounds):
            slow += [done(timed(plain, part)) for part in alone]
            fast += [done(timed(engine, work))]
    return Report(work, slow, fast, *operations, floor_of(work), matmul_rate(work))


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
