"""What a device has room for, and what to do where it turned out to have none."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch

from editlib.engine.sites import Site
from editlib.engine.values import Row
from editlib.models.language_model import LanguageModel

T = TypeVar("T")

LOGITS = {"cpu": 2**24, "cuda": 2**29}  # numbers held at once when texts are scored
ROWS = {"cpu": 500, "cuda": 20_000}  # rows of a search at once, where memory allows
REFUSALS = ("out of memory", "not enough memory", "allocate memory", "alloc_failed", "bad_alloc")


def most_logits(device: torch.device) -> int:
    """Logits to be held at once on a device; one of another kind is taken to be small."""
    return LOGITS.get(device.type, LOGITS["cpu"])


def most_rows(device: torch.device) -> int:
    """Rows of a search to be run at once on a device."""
    return ROWS.get(device.type, ROWS["cpu"])


def budget(device: torch.device) -> int:
    """An eighth of the machine's memory in bytes: what is free changes, and with it the last bits of results."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory // 8)
    return int(psutil.virtual_memory().total // 8)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is too small: torch has a type for that of GPUs, and words for that of CPUs."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in REFUSALS)


def halving(batch: list[int], work: Callable[[list[int]], list[T]]) -> list[T]:
    """Work on a batch, or on its halves where memory is too small for the whole."""
    try:
        return work(batch)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or len(batch) == 1:
            raise
    half = len(batch) // 2
    return [*halving(batch[:half], work), *halving(batch[half:], work)]


def batches(lm: LanguageModel, requests: Sequence[Sequence[Row]], site: Site) -> list[list[int]]:
    """Indices of requests in batches of like length, as large as memory allows."""
    groups = alike([max(row.live for row in rows) for rows in requests], waste=0.15)
    fitting = budget(lm.device) // max((_bytes(lm, rows, site) for rows in requests), default=1)
    size = max(1, min(most_rows(lm.device) // max(map(len, requests), default=1), fitting))
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def alike(lengths: Sequence[int], *, waste: float, most: int | None = None) -> list[list[int]]:
    """Indices of like lengths together, shortest first, with at most this share of padding.

    A group of several has at most `most` tokens, padding included.
    """
    groups: list[list[int]] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        whole = lengths[i] * (len(groups[-1]) + 1) if groups else 0
        if not groups or real + lengths[i] < (1 - waste) * whole or (most is not None and whole > most):
            groups, real = [*groups, []], 0
        groups[-1].append(i)
        real += lengths[i]
    return groups


def _bytes(lm: LanguageModel, rows: Sequence[Row], site: Site) -> int:
    """What a search of one request holds: the past twice, activations and their gradients, logits."""
    out, into = lm.weight(0).shape
    live, past = max(row.live for row in rows), max(row.encoded.last for row in rows)
    vocabulary: int = lm.model.config.get_text_config().vocab_size
    numbers = (lm.num_layers - site.below + 1) * (4 * past * out + live * (24 * out + 4 * into)) + 4 * vocabulary
    return numbers * len(rows) * max(4, lm.weight(0).element_size())
