"""Parts of sequences: how their rows are made, and what is kept of them."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from editlib.files import write_tensors
from editlib.sweeps.chain import Chain
from editlib.sweeps.parts import Parts
from editlib.sweeps.rows import about, about_perplexity, attempt, frame

if TYPE_CHECKING:
    from editlib.sweeps.sequential import SequencePlan, Span

log = logging.getLogger(__name__)


def part_of(
    chain: Chain, span: "Span", unedited: float, done: Callable[[int], object] = lambda steps: None
) -> pd.DataFrame:
    """Go on with a sequence for the steps of a part."""
    rows = list[dict[str, Any]]()
    for step in span.steps:
        rows.append(_retested(chain, step) if span.retest else _row(chain, step, unedited))
        done(not span.retest and step > 0)
        doing = "retest" if span.retest else "edit"
        log.info("%s: %s %d of %d done", chain.name, doing, step, len(chain.plan.cases))
    return frame(rows, chain.plan.columns)


def _row(chain: Chain, step: int, unedited: float) -> dict[str, Any]:
    started, plan = time.perf_counter(), chain.plan
    row: dict[str, Any] = {"step": step, "method": chain.name, "measured": False, "retest": False}
    if step:
        case = plan.cases[step - 1]
        said = attempt(chain.add, case)
        row |= about(case) | ({"error": said} if isinstance(said, str) else said)
    if step % plan.every == 0 or step == len(plan.cases):
        measured = attempt(chain.perplexity)
        if isinstance(measured, str):
            row["error"] = measured
        else:
            row |= about_perplexity(measured, unedited) | {"measured": True}
    return row | {"seconds": time.perf_counter() - started}


def _retested(chain: Chain, step: int) -> dict[str, Any]:
    started, case = time.perf_counter(), chain.plan.cases[step - 1]
    said = attempt(chain.ask, case)
    row = {"step": step, "method": chain.name, "measured": False, "retest": True} | about(case)
    row |= {"error": said} if isinstance(said, str) else said
    return row | {"seconds": time.perf_counter() - started}


@dataclass
class Checkpoints:
    """The parts of sequences that there are, and beside each sequence that is not done the weights it goes on with."""

    parts: Parts
    frames: dict[int, pd.DataFrame]

    def file(self, number: int) -> Path:
        """Where the weights are that a part begins with."""
        return (self.parts.folder or Path()) / f"_weights-{number:05d}.safetensors"

    def begins(self, number: int) -> dict[str, Tensor] | None:
        """The weights that a part begins with; None for those of the model itself."""
        return load_file(self.file(number)) if self.file(number).is_file() else None

    def end(self, number: int) -> Path:
        """Where the weights are that a sequence ends with, by its last part."""
        return (self.parts.folder or Path()) / f"_end-{number:05d}.safetensors"

    def finish(self, number: int, tensors: Mapping[str, Tensor] | None) -> None:
        """Keep the weights that a sequence ends with, for what is asked then, now and whenever it is gone on with."""
        if tensors is not None and self.parts.folder:
            write_tensors(self.end(number), tensors, {})

    def write(self, number: int, made: pd.DataFrame, after: Mapping[str, Tensor] | None) -> None:
        """Keep a part, and before it the weights after it, which take the place of those it began with."""
        if after is not None and self.parts.folder:
            write_tensors(self.file(number + 1), after, {})
        self.frames[number] = self.parts.write(number, made)
        self.forget(number)

    def forget(self, number: int) -> None:
        """Remove the weights a part begins with."""
        if self.parts.folder:
            self.file(number).unlink(missing_ok=True)

    def drop(self, numbers: Sequence[int]) -> None:
        """Remove the parts of a sequence that will be made, and the weights it ended with, so that an interruption
        leaves none that follow from other edits."""
        for number in numbers:
            if path := self.parts.file(number):
                path.unlink(missing_ok=True)
                self.end(number).unlink(missing_ok=True)  # only the last part has one

    def missing(self, plan: "SequencePlan", name: str, *, end: bool = False) -> list[int]:
        """The numbers of the parts to be made: from the first missing one on if the weights it begins with are kept,
        else all; none of a whole sequence, unless its `end` is needed and was not kept."""
        numbers = plan.numbers(name)
        first = next((number for number in numbers if number not in self.frames), None)
        if first is None and not end:
            return []
        try:
            with safe_open(self.end(numbers[-1]) if first is None else self.file(first), "pt"):  # compares sizes
                return [] if first is None else [number for number in numbers if number >= first]
        except (OSError, SafetensorError):
            return numbers
