"""What a device has room for, and what to do where it turned out to have none."""

from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

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
