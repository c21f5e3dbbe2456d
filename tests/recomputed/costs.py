"""Numbers about what edits cost: sums and quotients of what was measured, and sizes of models by their shapes."""

import math

from books import table
from recomputed.counting import Numbers, layer_of, short

from editlib.runs.manifest import Manifest

FLOAT64 = 8  # bytes
PART = 64  # rows, of a sweep with workers


def cluster(run: Manifest) -> Numbers:
    asked, told = run.parameters, run.metrics
    costs = table(run, "costs").set_index("model")
    tflop, hourly = costs["TFLOP an edit"], costs.at[asked["model"], "cases an hour, a core like this one"]
    mine, others = tflop[asked["model"]], tflop.drop(asked["model"])
    each_second = asked["gpus"] * asked["assumed"]  # 10¹² operations
    parts = math.ceil(asked["million"] / PART)
    found = Numbers(n=asked["edits"], gpus=asked["gpus"], million=asked["million"], assumed_tflops=asked["assumed"])
    found |= {"parts": asked["parts"] - 1, "million_parts": parts}  # the clock starts when the first has come
    found |= {"million_gb": parts * told["part_kb"] / 1e6, "driver_parts_a_minute": 60e3 / told["driver_ms_a_part"]}
    found |= {"tflop": mine, "useful_gflops": 1000 * mine * hourly / 3600, "cases_an_hour": hourly}
    found["wanted_parts_a_minute"] = 60 * each_second / min(others) / PART
    for name, operations in others.items():
        found[f"tflop_{short(name)}"] = operations
        found[f"core_an_hour_{short(name)}"] = hourly * mine / operations
        found[f"gpu_an_hour_{short(name)}"] = 3600 * asked["assumed"] / operations
        found[f"hours_{short(name)}"] = asked["million"] * operations / each_second / 3600
    for name in tflop.index:
        end = "" if name == asked["model"] else f"_{short(name)}"
        size, width = SHAPES[name]
        found |= {f"parameters{end}": size, f"moment_gb{end}": FLOAT64 * width**2 / 1e9}
    return found


def gpt2(layers: int, width: int, words: int, positions: int) -> int:
    """Weights and biases of a GPT-2, whose last layer reads the embedding."""
    return (words + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width


def gpt_j(layers: int, width: int, words: int) -> int:
    """Weights and biases of a GPT-J: none in attention, one norm a block, positions without weights."""
    return 2 * words * width + words + layers * (12 * width**2 + 7 * width) + 2 * width


def llama(layers: int, width: int, inner: int, words: int, shared: float, *, tied: bool) -> int:
    """Weights of a Llama, which has no bias; `shared` is the part of the heads that have keys and values."""
    attention = int(2 * width**2 + 2 * width * width * shared)
    return (2 - tied) * words * width + layers * (attention + 3 * width * inner + 2 * width) + width


SHAPES = {  # parameters, and entries of a key
    "smollm2-135m": (llama(30, 576, 1536, 49152, 1 / 3, tied=True), 1536),
    "gpt2": (gpt2(12, 768, 50257, 1024), 3072),
    "gpt2-xl": (gpt2(48, 1600, 50257, 1024), 6400),
    "gpt-j-6b": (gpt_j(28, 4096, 50400), 16384),
    "llama-2-7b": (llama(32, 4096, 11008, 32000, 1, tied=False), 11008),
}


def performance(run: Manifest) -> Numbers:
    told, flight, operators = run.metrics, table(run, "in-flight"), table(run, "operators")
    spent = table(run, "stages").set_index("stage").sum()
    # the median of whole edits, which other rows are compared with; medians of stages need not add up to it
    spent["plain_seconds"] = (flight["ratio"] * flight["seconds"]).median()
    found = Numbers(edits=flight["edits"].max(), screened=run.parameters["screened"], layer=layer_of(run))
    found |= {f"{path}_seconds_per_edit": spent[f"{path}_seconds"] for path in ("plain", "engine", "floor")}
    found |= {f"{path}_gflop": spent[f"{path}_flops"] / 1e9 for path in ("plain", "engine", "floor")}
    found["ratio"] = spent["plain_seconds"] / spent["engine_seconds"]
    found["ratio_alone"] = spent["plain_seconds"] / flight.set_index("edits").at[1, "seconds"]
    found["half_ratio"] = spent["plain_seconds"] / told["half_seconds_per_edit"]
    found["half_speedup"] = spent["engine_seconds"] / told["half_seconds_per_edit"]
    found["screen_ratio"] = 1000 * spent["engine_seconds"] / told["screen_ms"]
    found["screen_flops_ratio"] = spent["engine_flops"] / 1e9 / told["screen_gflop"]
    products = operators["operator"].str.endswith("mm") | operators["operator"].str.contains("linear")
    attends = operators["operator"].str.contains("attention|attn")
    for name, chosen in {"products": products, "attention": attends}.items():
        found[f"{name}_share"] = operators["seconds"][chosen].sum() / operators["seconds"].sum()
    (params,) = (given for methods in run.hparams.values() for given in methods.values())
    found |= {"steps": params["steps"], "threads": run.hardware.threads or run.hardware.cores}
    found["flops_over_floor"] = spent["engine_flops"] / spent["floor_flops"]
    found["time_over_floor"] = spent["engine_seconds"] / spent["floor_seconds"]
    found["matmul_gflops"] = spent["floor_flops"] / spent["floor_seconds"] / 1e9
    found["ratio_most"] = spent["plain_seconds"] / flight.set_index("edits")["seconds"].at[found["edits"]]
    found["plain_edits"] = run.parameters["plain_edits"]
    shape = run.parameters["shape"] or run.parameters["model"]
    return found | lengths(run) | moments(run) | {"parameters": SHAPES[shape][0]}


def lengths(run: Manifest) -> Numbers:
    """How many times faster values are searched, by the prose before the prompt."""
    found = Numbers()
    before = table(run, "lengths").dropna(subset="before").sort_values("before")
    for name, row in {"short": before.iloc[0], "long": before.iloc[-1]}.items():
        found[f"search_ratio_{name}"] = row["plain"] / row["engine"]
    return found


def moments(run: Manifest) -> Numbers:
    """What is wrong with an edit whose second moments are of few tokens; of the twins alone."""
    if not (run.folder / "data/moments.parquet").exists():
        return {}
    rows, found = table(run, "moments"), Numbers()
    first = rows[rows["kind"] == "one token, first"]
    for tokens, some in rows.groupby("tokens"):
        found |= {f"{error}_error_{tokens}_share": float(some[error].median()) for error in ("direction", "update")}
        found[f"rise_{tokens}"] = float(first.loc[first["tokens"] == tokens, "rise"].median())
    return found | {"rise_reference": float(first.loc[first["tokens"] == tokens, "rise_reference"].median())}
