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
}
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
#       quick: {}
# ---

# %% tags=["parameters"]
n: int = 5
rate: float = 0.5
strict: bool = False
label: str = "a"
model: str | None = None
"""


def make_project(root: Path) -> Path:
    """A project with the one analysis that the runs below are of."""
    (root / "notebooks").mkdir(parents=True)
    (root / "_config.yml").touch()
    (root / "notebooks" / "toy.py").write_text(NOTEBOOK)
    return root


def record(**changes: Any) -> dict[str, Any]:
    """A manifest without `run`, `outputs` and crate."""
    return {
        "schema": 2,
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
    } | changes


def make_run(root: Path, *, files: dict[str, str] | None = None, **changes: Any) -> manifest.Manifest:
    """A local run below `root`; `files` are added to those that every run has."""
    content = FILES | (files or {})
    told = record(**changes)
    stage = root / "book" / "runs" / told["analysis"] / "stage"
    for path, text in content.items():
        (stage / path).parent.mkdir(parents=True, exist_ok=True)
        (stage / path).write_text(text, "utf-8")
    told["outputs"] = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in content.items()}
    text = json.dumps(crate.describe(told), indent=1, ensure_ascii=False) + "\n"
    (stage / crate.NAME).write_text(text, "utf-8")
    told["outputs"][crate.NAME] = hashlib.sha256(text.encode()).hexdigest()
    folder = stage.with_name(f"local-{manifest.write(told, stage).run}")
    stage.rename(folder)
    return manifest.read_manifest(folder)
