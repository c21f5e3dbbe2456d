"""Run folders made by hand: whole, with every kind of input and output, in no time."""

import hashlib
import json
from pathlib import Path
from typing import Any

from editlib.runs import crate, manifest

DIGEST = "ab" * 32
PROJECT = {
    "title": "A project & its {runs}",
    "version": "0.1.0",
    "authors": ["The authors", "Ada Lovelace"],
    "license": "MIT",
    "url": "",
}
INPUTS = {
    "notebook": DIGEST,
    "code": DIGEST,
    "models": {"testbed/anchored": DIGEST},
    "data": {"testbed": DIGEST},
    "files": {"quiz": DIGEST},
    "presets": None,
}
MOMENTS = {"tokens": 64_000, "window": 128, "first_position": "keep", "source": "corpus"}
HPARAMS = {"testbed/anchored": {"rome": {"layer": 2, "clamp": 12.0, "keys": "mixed", "layers": [1, 2]}}}
HOSTILE = (
    "../../etc/passwd",
    "it's \"quoted\" 'twice'",
    "<script>alert(1)</script>",
    "}{ {{ }} \\} % $x$ #1 & ~^_ @misc{a,",
    "two\nlines\r\n: - yaml\t\u2028end",
    "\u202eright to left, Ünïcödé 日本 🦜 \x7f\x1b[31m\x85",
    "long " * 2000,
)
FILES = {
    "index.ipynb": json.dumps({"cells": [], "metadata": {"papermill": {"exception": None}}}),
    "data/cases.parquet": "PAR1 not really",
    "figures/ratios.png": "no picture",
}
NOTEBOOK = """\
# ---
# jupyter:
#   editlib:
#     title: A toy
#     profiles:
#       quick: {n: 3}
#       full: {n: 9}
#     models: [model]
#   jupytext:
#     cell_metadata_filter: tags,-all
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Toy

# %% tags=["parameters"]
n: int = 5  # cases drawn, all above 0
seed: int = 0
rate: float = 0.5
strict: bool = False
label: str = "a"
model: str | None = None  # a model's name

# %%
import json
import os
import sys
from pathlib import Path

from ipykernel import get_connection_info

print(Path.cwd(), Path.home(), sys.prefix, os.getcwd() + "/figures")
if n < 1:
    from editlib.errors import EditlibError
    raise EditlibError(f"n={n} is out of range; choose 1 to 9")
if n == 7:
    1 / 0
Path("data/numbers.txt").write_text("x" * n)
transport = json.loads(get_connection_info())["transport"]
metrics = {"n": n, "worst": float("inf"), "rest": float("nan"), "transport": transport}
Path("metrics.json").write_text(json.dumps(metrics))
"""
CITATION = """\
title: "A project & its {runs}"
version: 0.1.0
license: MIT
authors:
  - name: The authors
  - {given-names: Ada, family-names: Lovelace}
"""


def make_project(root: Path) -> Path:
    """A project with one analysis, that the runs below are of, and that can be executed without torch."""
    (root / "notebooks").mkdir(parents=True)
    (root / "book").mkdir()
    (root / "_config.yml").touch()
    (root / "CITATION.cff").write_text(CITATION, "utf-8")
    (root / "notebooks" / "toy.py").write_text(NOTEBOOK, "utf-8")
    return root


def record(**changes: Any) -> dict[str, Any]:
    """A manifest without `run`, `outputs` and crate."""
    return {
        "schema": 3,
        "analysis": "toy",
        "title": "A toy",
        "profile": "quick",
        "parameters": {"n": 3, "rate": 0.5, "strict": True, "label": "a", "model": None},
        "spec": "0123456789ab",
        "inputs": INPUTS,
        "environment": {"python": "3.11.9", "platform": "Linux-x86_64", "packages": {"numpy": "2.4.6"}, "lock": None},
        "hardware": {"cpu": "A processor", "cores": 2, "threads": None, "memory_gib": 7.6, "gpus": []},
        "git": {"commit": "c" * 40, "dirty": False},
        "project": PROJECT,
        "started": "2026-03-04T05:06:07Z",
        "finished": "2026-03-04T05:07:08Z",
        "seconds": 61.0,
        "cells": [0.5, 60.25],
        "metrics": {"n": 3, "worst": "inf"},
        "hparams": HPARAMS,
        "moments": {
            "testbed/anchored": {"tokens": 64_000, "window": 128, "first_position": "keep", "source": "corpus"}
        },
        "sources": {},
        "authors": [],
    } | changes


def record_of_two(**changes: Any) -> dict[str, Any]:
    """The same as manifests of schema 2 tell it."""
    told = record(schema=2, inputs={name: value for name, value in INPUTS.items() if name != "presets"}, **changes)
    return {key: value for key, value in told.items() if key not in ("hparams", "moments", "sources", "authors")}


def make_run(root: Path, *, files: dict[str, str] | None = None, schema: int = 3, **changes: Any) -> manifest.Manifest:
    """A local run below `root`; `files` are added to those that every run has."""
    content = FILES | (files or {})
    told = record(**changes) if schema == 3 else record_of_two(**changes)
    stage = root / "book" / "runs" / told["analysis"] / "stage"
    for path, text in content.items():
        (stage / path).parent.mkdir(parents=True, exist_ok=True)
        (stage / path).write_text(text, "utf-8")
    told["outputs"] = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in content.items()}
    folder = stage.with_name(f"local-{manifest.write(crate.add(told, stage), stage).run}")
    stage.rename(folder)
    return manifest.read_manifest(folder)
