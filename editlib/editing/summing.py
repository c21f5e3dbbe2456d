"""Sums of outer products of keys over many windows, by chunks: in one process or by workers, in the same order."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editlib.cluster.driver import Assignment, distribute
from editlib.cluster.progress import Progress
from editlib.cluster.workers import Workers
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.reference import Reference
from editlib.models.trace import trace

log = logging.getLogger(__name__)

BATCH = 16  # windows a forward pass
CHUNK = 32 * BATCH  # windows summed by themselves: what a worker is sent
By = dict[int, Tensor]  # layer -> sum, (d_in, d_in) in float64


@torch.no_grad()
def chunk_sum(lm: LanguageModel, layers: Sequence[int], first: int, windows: Tensor) -> By:
    """Sum of k kᵀ over the keys at the positions from `first` on of some windows."""
    names = {layer: lm.layout.name(layer) for layer in layers if lm.down(layer) is not None}
    sums = {layer: torch.zeros(d, d, dtype=torch.float64) for layer in names for d in [lm.weight(layer).shape[1]]}
    for number, batch in enumerate(windows.split(BATCH)):
        log.info("second moments: %d of %d tokens read", number * BATCH * windows.shape[1], windows.numel())
        with trace(lm.model, *names.values(), stop=True) as seen:
            lm.model(batch.to(lm.device))
        for layer, name in names.items():
            keys = seen[name].input[:, first:].flatten(0, 1).double()
            sums[layer] += (keys.T @ keys).cpu()
    return sums


def summed(lm: LanguageModel, layers: Sequence[int], first: int, windows: Tensor, workers: Workers | None = None) -> By:
    """The sum over all windows: chunks' sums added in their order, so that it is the same to the last bit whoever
    makes them."""
    chunks, total = windows.split(CHUNK), Total()
    if workers is None:
        for number, chunk in enumerate(chunks):
            total.done((number, chunk), chunk_sum(lm, layers, first, chunk))
        return total.sums
    lm.require_untouched("its second moments")
    job = Summing(Reference.of(lm, gpus=workers.gpus, threads=workers.cpus), tuple(layers), first)
    total.progress = Progress(len(windows), workers, unit="window", name="second moments")
    distribute(job, [Assignment(each) for each in enumerate(chunks)], total, workers, total.progress)
    return total.sums


class Total:
    """A ledger of chunks' sums, which are added in the order of their numbers."""

    def __init__(self) -> None:
        self.sums: By = {}
        self.early: dict[int, By] = {}
        self.number = 0  # of the next to be added
        self.progress: Progress | None = None

    def done(self, what: tuple[int, Tensor], result: By) -> Sequence[Assignment]:
        """Add what can be added."""
        self.early[what[0]] = result
        while self.number in self.early:
            for layer, part in self.early.pop(self.number).items():
                self.sums[layer] = self.sums[layer].add_(part) if layer in self.sums else part.clone()
            self.number += 1
        if self.progress:
            self.progress.update(len(what[1]))
        return []

    def lost(self, what: tuple[int, Tensor], why: str) -> Sequence[Assignment]:
        """There is no mean without every window."""
        raise EditlibError(f"second moments: workers were lost over chunk {what[0]} of the corpus: {why}")


@dataclass(frozen=True)
class Summing:
    """What workers do for second moments."""

    model: Reference
    layers: tuple[int, ...]
    first: int

    def begin(self) -> Callable[[tuple[int, Tensor]], By]:
        """Load the model."""
        lm = self.model.load()
        return lambda what: chunk_sum(lm, self.layers, self.first, what[1])
