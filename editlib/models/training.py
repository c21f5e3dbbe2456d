"""What every training here shares: a learning rate that rises and falls, and checkpoints to go on from."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from editlib.errors import EditlibError
from editlib.files import write_tensors


def warmup_cosine(step: int, *, steps: int, warmup: int) -> float:
    """Share of the learning rate in use: linear warm-up, then a cosine from one to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


@dataclass(frozen=True)
class Checkpoint:
    """A training's state, its tensors by kind and name, and its optimizer's, by parameter and name."""

    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    optimizer: dict[int, dict[str, Tensor]]

    def restore(self, optimizer: Optimizer) -> None:
        """Put an optimizer back to where it was; its hyper-parameters are the training's own."""
        optimizer.load_state_dict(optimizer.state_dict() | {"state": self.optimizer})


def write_checkpoint(
    path: Path,
    about: Mapping[str, Any],
    state: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimizer: Optimizer,
) -> None:
    """Write one file, aside and then renamed; `about` says which training it is of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {f"{kind}.{name}": tensor for kind, named in tensors.items() for name, tensor in named.items()}
    for number, values in optimizer.state_dict()["state"].items():
        flat |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    write_tensors(path, flat, {"state": json.dumps({"about": about, "state": state})})


def read_checkpoint(path: Path, about: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint at `path`, None if there is none; `EditlibError` if it is damaged or of another training."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            said = json.loads(file.metadata()["state"])
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        before, state = said["about"], said["state"]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise EditlibError(f"checkpoint {path} is damaged ({error}); remove it") from error
    if before != json.loads(json.dumps(about)):
        raise EditlibError(f"{path} holds a checkpoint of another training; remove it or choose another --out")
    tensors, optimizer = dict[str, dict[str, Tensor]](), dict[int, dict[str, Tensor]]()
    for key, tensor in flat.items():
        kind, _, name = key.partition(".")
        if kind == "optimizer":
            number, _, name = name.partition(".")
            optimizer.setdefault(int(number), {})[name] = tensor
        else:
            tensors.setdefault(kind, {})[name] = tensor
    return Checkpoint(state, tensors, optimizer)
