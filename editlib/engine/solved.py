"""v* of requests kept in the user's cache, so that analyses of the same cases search them once.

Asked for by EDITLIB_REUSE=1, which `editlib run` sets for its notebooks. The name of what is kept says what it follows
from, and a search takes it only where it would begin with the same value and the same loss: a model that was changed
since, or that runs behind hooks, is searched anew. It may have been found in another batch, whose sums differ in their
last digits.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from editlib.engine.values import Row, Target, ValueParams
from editlib.files import cache_folder, write_tensors
from editlib.models.language_model import LanguageModel

VARIABLE = "EDITLIB_REUSE"


def asked() -> bool:
    """Whether the user wants v* kept and taken from the cache."""
    return os.environ.get(VARIABLE) == "1"


def place(lm: LanguageModel, name: str, rows: Sequence[Row], params: ValueParams) -> Path:
    """Where v* of a request, given by its rows, is kept as output of module `name`."""
    follows_from = {
        "model": lm.fingerprint, "dtype": str(lm.model.dtype), "device": lm.device.type, "module": name,
        "rows": [(row.encoded.ids, row.encoded.last, row.encoded.target) for row in rows],
        "search": asdict(params.search), "code": _code(),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(follows_from).encode()).hexdigest()
    return cache_folder("solved") / f"{lm.fingerprint[:16]}-{digest[:32]}.safetensors"


def keep(path: Path, target: Target) -> None:
    """Write v* and the losses of its search."""
    losses = torch.tensor(target.losses, dtype=torch.float64)
    write_tensors(path, {"start": target.start, "change": target.change, "losses": losses}, {})


def kept(path: Path, device: torch.device) -> Target | None:
    """What was kept, on a device; None for nothing, or a file that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            start, change, losses = (file.get_tensor(name) for name in ("start", "change", "losses"))
            return Target(start.to(device), change.to(device), tuple(losses.tolist()))
    except (OSError, SafetensorError):
        return None


@cache
def _code() -> str:
    """The code that a search follows from: this room's, and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
