"""Run a model with its tokens at other positions than they stand at, without touching a weight."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel

Place = Callable[[Tensor], Tensor]  # from positions to positions


def second_for_first(positions: Tensor) -> Tensor:
    """The first token stands where the second does (The Fall of ROME, authors' slides p. 40: Second2First)."""
    return positions.clamp(min=1)


def later_by_one(positions: Tensor) -> Tensor:
    """Every token stands one position later."""
    return positions + 1


def takes_positions(lm: LanguageModel) -> bool:
    """Whether the model can be told where its tokens stand."""
    return "position_ids" in inspect.signature(lm.model.forward).parameters


@contextmanager
def placed(lm: LanguageModel, place: Place) -> Iterator[LanguageModel]:
    """Move tokens by `place` in every pass of the model inside the block.

    With learned positions, the embedding of the new position is added; with rotary ones, attention turns by it. The
    weights, and so the fingerprint, are as before: give what is kept for a model, such as second moments, from outside.
    Raises `EditlibError` for a model that takes no positions, such as T5.
    """
    if not takes_positions(lm):
        raise EditlibError(f"{lm.name or type(lm.model).__name__} takes no positions, so that no token can be moved")

    def moved(_module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        positions = options.get("position_ids")
        if positions is None:
            ids, past = inputs[0] if inputs else options["input_ids"], options.get("past_key_values")
            start = 0 if past is None else past.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        return inputs, options | {"position_ids": place(positions)}

    handle = lm.model.register_forward_pre_hook(moved, with_kwargs=True)
    try:
        yield lm
    finally:
        handle.remove()
