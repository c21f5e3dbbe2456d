"""What the page on performance says of a GPU is what its files and runs say."""

import json
from typing import Any

import pandas as pd
from books import run_of
from places import ROOT

TEXT = (ROOT / "book/performance.md").read_text("utf-8")


def timed(edits: int) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((ROOT / f"book/benchmarks/h100-gpt2-{edits}.json").read_text("utf-8"))
    return told


def test_times_are_those_of_the_files() -> None:
    many, alone = timed(48), timed(1)
    assert (many["edits"], alone["edits"], many["device"], many["steps"], many["contexts"]) == (48, 1, "cuda:0", 20, 21)
    engine, plain = many["engine_seconds_per_edit"], many["plain_seconds_per_edit"]
    assert many["plain_edits"] == 2 and f"take the engine {engine:.3f} s each and the plain path, of which" in TEXT
    assert f"two edits were timed, {plain:.3f} s, {plain / engine:.1f} times as long" in TEXT
    engine, plain = alone["engine_seconds_per_edit"], alone["plain_seconds_per_edit"]
    assert f"takes the engine {engine:.2f} s and the plain path {plain:.2f} s" in TEXT
    rate = many["flops_per_edit"] / many["engine_seconds_per_edit"]
    assert f"an H100 reached {rate / 1e12:.0f} · 10¹²" in (ROOT / "book/cluster.md").read_text("utf-8")


def test_a_gpu_finds_what_a_processor_finds() -> None:
    tables = {}
    for analysis, method in {"first-token": "rome", "pilot": "rome, C left out"}.items():
        run = run_of(analysis, "smollm2-135m", cases="facts")
        assert bool(run.hardware.gpus) == (analysis == "first-token")
        cases = pd.read_parquet(run.folder / "data/cases.parquet")
        tables[analysis] = cases[cases["method"] == method].set_index("case_id")
    there, here = tables["first-token"], tables["pilot"]
    both = there.index[there.index.isin(here.index) & ~there["built"].astype(bool)]
    there, here = there.loc[both], here.loc[both]
    assert there["subject"].equals(here["subject"])
    off = {name: (there[name] / here[name] - 1).abs() for name in ("perplexity_ratio", "denominator")}
    broken = [table["perplexity_ratio"] >= 5 for table in (there, here)]
    assert broken[0].equals(broken[1])
    said = f"have {len(both)} edits by ROME with `C` left out in common, of which {broken[0].sum()} collapse the model."
    assert said in TEXT
    assert off["perplexity_ratio"].max() < 1e-3 and off["denominator"].max() < 1e-5
    assert round(off["perplexity_ratio"].median() * 1e6) == 2
