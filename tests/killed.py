"""Sweeps in processes of their own, to be killed: they must be importable by name."""

import importlib
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from threading import RLock

from tqdm import tqdm

import editlib as el
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods.rome import RomeParams
from editlib.models.language_model import LanguageModel

PROCESSES = multiprocessing.get_context("forkserver")  # its server imports torch once, and computes nothing
PROCESSES.set_forkserver_preload(["transformers.models.gpt2", "editlib.sweeps.sequential"])
SEARCH = RomeParams(layer=1, steps=2, covariance=False)


def cases(n: int) -> list[Case]:
    """Cases whose subjects are of many lengths."""
    subjects = [f"{'Zen Brast Nolva Uvo'.split()[i % 4]}{i * i}" for i in range(n)]
    requests = [EditRequest(prompt="{} is located in", subject=name, target_new="Ostrel") for name in subjects]
    return [Case(i, request) for i, request in enumerate(requests)]


def single_edits(model: Path, out: Path, begin: Callable[[], LanguageModel]) -> None:
    """200 cases in parts of eight."""
    importlib.import_module("editlib.sweeps.single").PART = 8
    options = {"texts": texts(model), "out": out, "resume": True, "scores": False, "progress": False}
    el.sweep(begin(), cases(200), methods={"rome": SEARCH}, **options)


def sequential_edits(model: Path, out: Path, begin: Callable[[], LanguageModel]) -> None:
    """Two sequences of 16 cases in parts of four."""
    importlib.import_module("editlib.sweeps.sequential").PART = 4
    methods = {"rome": SEARCH, "c-rome": replace(SEARCH, keys="prefixed")}
    options = {"texts": texts(model), "out": out, "resume": True, "every": 3, "progress": False}
    el.sequence(begin(), cases(16), methods=methods, **options)


Work = Callable[[Path, Path, Callable[[], LanguageModel]], None]


def texts(model: Path) -> list[str]:
    """What perplexity is measured on, from the model's folder."""
    found: list[str] = json.loads((model / "texts.json").read_text())
    return found


def run_whole_and_killed(work: Work, model: Path, folder: Path, *, kills: int) -> int:
    """Do some work in `folder/whole`, and again in `folder/killed`, killed so many times at random moments before it
    may end; how many of them came before its end."""
    whole, _ = _run(work, model, folder / "whole")
    moments, most = Random(kills), 1.5 * whole / kills
    hits = sum(_run(work, model, folder / "killed", seconds=moments.uniform(0, most))[1] for _ in range(kills))
    _run(work, model, folder / "killed")
    return hits


def _run(work: Work, model: Path, out: Path, *, seconds: float | None = None) -> tuple[float, bool]:
    """Do some work in a process that is killed so many seconds after it began; how long it took, and whether it was."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_work, args=(work, model, out, sender))
    process.start()
    assert receiver.poll(120) and receiver.recv()
    begun = time.perf_counter()
    process.join(seconds)
    process.kill()  # SIGKILL
    process.join()
    assert process.exitcode in ((0,) if seconds is None else (0, -9))
    return time.perf_counter() - begun, process.exitcode != 0


def _work(work: Work, model: Path, out: Path, sender: Connection) -> None:
    tqdm.set_lock(RLock())  # its own is shared by processes, and killed ones would never give it back

    def begin() -> LanguageModel:
        lm = el.load(str(model))
        sender.send(True)
        return lm

    work(model, out, begin)
