"""What edits that write no weight lay over a model, by kind: read back from files and from a sequence's state."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from editlib.editing.overlays.codebook import Codebook
from editlib.editing.overlays.fronts import Fronts
from editlib.editing.overlays.overlay import Overlay
from editlib.editing.overlays.residual import Residual
from editlib.editing.overlays.side import Side
from editlib.editing.overlays.validated import Validated

PREFIX = "overlay|"  # before the names of an overlay's tensors, where they stand beside others
KINDS: dict[str, type[Overlay]] = {
    kind.__name__.lower(): kind for kind in (Codebook, Fronts, Residual, Side, Validated)
}


def made_of(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Overlay:
    """The overlay whose `record` and `tensors` these are; raises `KeyError` or `TypeError` for those of none."""
    given = {name: _tuples(value) for name, value in record.items()}
    return KINDS[given.pop("kind")](**given | dict(tensors))


def prefixed(overlay: Overlay) -> dict[str, Tensor]:
    """An overlay's tensors under names that tell them from others."""
    return {PREFIX + name: tensor for name, tensor in overlay.tensors.items()}


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `prefixed` named, under their own names."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def tensor_of(text: str) -> Tensor:
    """A text as a tensor of its bytes."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def text_of(tensor: Tensor) -> str:
    """The text that `tensor_of` made a tensor of."""
    return bytes(tensor.tolist()).decode()


def packed(overlay: Overlay) -> dict[str, Tensor]:
    """An overlay as tensors alone, for the state of a sequence."""
    said = json.dumps(overlay.record, ensure_ascii=False)
    return {"overlay": tensor_of(said)} | prefixed(overlay)


def unpacked(state: Mapping[str, Tensor]) -> Overlay:
    """The overlay that `packed` made tensors of; `KeyError` where there is none."""
    return made_of(json.loads(text_of(state["overlay"])), parts_of(state))


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
