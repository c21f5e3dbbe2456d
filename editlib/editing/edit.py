"""Edits: exact changes of weights, or what lies over a model's passes, to be applied, undone, saved and loaded."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.overlays import PREFIX, made_of, parts_of, prefixed
from editlib.editing.overlays.overlay import Overlay, over
from editlib.errors import EditlibError
from editlib.files import new_folder, write_json, write_tensors
from editlib.models.language_model import LanguageModel, oriented
from editlib.text import finite

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LowRank:
    """Δ = left rightᵀ, with left (d_out, r) and right (d_in, r)."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """Δ itself, shape (d_out, d_in)."""
        return self.left @ self.right.T

    def norm(self) -> float:
        """Frobenius norm of Δ, worked out from the factors in float64."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt())

    def output(self, keys: Tensor) -> Tensor:
        """What Δ adds to the weight's output for keys (..., d_in), in their precision.  # (..., d_out)"""
        return (keys @ self.right.to(keys)) @ self.left.to(keys).T

    def scaled(self, factor: float) -> "LowRank":
        """Δ times a number."""
        return LowRank(factor * self.left, self.right)

    def mapped(self, *, out: Map | None = None, into: Map | None = None) -> "LowRank":
        """Δ with linear maps, in float64, on its output side (d_out, n) and its input side (d_in, n)."""
        left, right = self.left.double(), self.right.double()
        return LowRank(out(left) if out else left, into(right) if into else right)

    def to(self, like: Tensor) -> "LowRank":
        """Δ in the precision and on the device of a tensor."""
        return LowRank(self.left.to(like), self.right.to(like))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is kept of it in files."""
        return {"L": self.left, "R": self.right}

    def __add__(self, other: "Change") -> "Change":
        if isinstance(other, LowRank):
            return LowRank(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1))
        return Dense(self.dense() + other.delta)


@dataclass(frozen=True)
class Dense:
    """Δ itself, shape (d_out, d_in)."""

    delta: Tensor

    def dense(self) -> Tensor:
        """Δ itself."""
        return self.delta

    def norm(self) -> float:
        """Frobenius norm of Δ in float64."""
        return float(self.delta.double().norm())

    def output(self, keys: Tensor) -> Tensor:
        """What Δ adds to the weight's output for keys (..., d_in), in their precision.  # (..., d_out)"""
        return keys @ self.delta.to(keys).T

    def scaled(self, factor: float) -> "Dense":
        """Δ times a number."""
        return Dense(factor * self.delta)

    def mapped(self, *, out: Map | None = None, into: Map | None = None) -> "Dense":
        """Δ with linear maps, in float64, on its output side (d_out, n) and its input side (d_in, n)."""
        delta = self.delta.double()
        delta = out(delta) if out else delta
        return Dense(into(delta.T).T if into else delta)

    def to(self, like: Tensor) -> "Dense":
        """Δ in the precision and on the device of a tensor."""
        return Dense(self.delta.to(like))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is kept of it in files."""
        return {"D": self.delta}

    def __add__(self, other: "Change") -> "Change":
        return Dense(self.delta + other.dense())


Change = LowRank | Dense


class Intervention(Protocol):
    """What a method makes of requests, whether it changes weights or not; all that measuring needs of it."""

    @property
    def requests(self) -> Sequence[EditRequest]:
        """What was asked for."""

    @property
    def method(self) -> str:
        """The name of the method that made it."""

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """Numbers about its making."""

    def applied(self, lm: LanguageModel) -> AbstractContextManager[LanguageModel]:
        """Let the model be the edited one inside the block, and exactly as it was after it."""


@contextmanager
def restored(lm: LanguageModel, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Weights by name, each (d_out, d_in), to be written inside the block; after it they are bit for bit as before."""
    modules = {name: lm.model.get_submodule(name.removesuffix(".weight")) for name in names}
    kept = {name: module.weight.detach().clone() for name, module in modules.items()}
    try:
        yield {name: oriented(module).detach() for name, module in modules.items()}
    finally:
        with torch.no_grad():
            for name, module in modules.items():
                module.weight.copy_(kept[name])


@dataclass(frozen=True, repr=False)
class Edit:
    """Changes of weights by their names, each `LowRank` or `Dense`; or an overlay, and no weight is written.

    `fingerprint` and `dtype` are those of the unedited model it was computed for; applying it to another model is
    refused.
    """

    method: str
    requests: tuple[EditRequest, ...]
    changes: Mapping[str, Change]
    hparams: Mapping[str, Any]
    fingerprint: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = ""
    overlay: Overlay | None = None
    in_force: list[int] = field(default_factory=list, init=False, compare=False)  # ids of the models it is applied to

    def __repr__(self) -> str:
        first, more = self.requests[0], f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        where = f"in {', '.join(self.changes)}" if self.overlay is None else "no weight is written"
        return f"<Edit by {self.method}: {first.text!r} -> {first.target_new!r}{more}, {where}>"

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Let the model be the edited one inside the block, and bit for bit as it was after it, also on error.

        Raises `EditlibError` for another model, or one this edit is in force in. Other edits may nest, but only one of
        them with an overlay.
        """
        self._check(lm)
        self.in_force.append(id(lm.model))
        try:
            laid = over(lm, self.overlay, self.method) if self.overlay else nullcontext()
            with restored(lm, self.changes) as weights, laid:
                for name, weight in weights.items():
                    weight.add_(self.delta(name).to(weight))
                yield lm
        finally:
            self.in_force.remove(id(lm.model))

    def __add__(self, other: "Edit") -> "Edit":
        """Both changes in one, for edits of the same unedited model; raises `EditlibError` for different ones, and for
        an overlay."""
        for each in (self, other):
            each._require_changes("added to another; give its method all requests at once")
        if self.fingerprint != other.fingerprint:
            raise EditlibError(
                f"edits of different models ({self.fingerprint[:12]} and {other.fingerprint[:12]}) cannot be added"
            )
        changes = dict(self.changes)
        for name, change in other.changes.items():
            changes[name] = changes[name] + change if name in changes else change
        method = self.method if self.method == other.method else f"{self.method} + {other.method}"
        return Edit(
            method, self.requests + other.requests, changes, _parts(self.hparams, other.hparams), self.fingerprint,
            _parts(self.diagnostics, other.diagnostics), self.dtype,
        )  # fmt: skip

    def scaled(self, factor: float) -> "Edit":
        """All changes times a number: a point on the line from the unedited model; `EditlibError` for an overlay."""
        self._require_changes("scaled; scale one that writes weights")
        return replace(self, changes={name: change.scaled(factor) for name, change in self.changes.items()})

    def norm(self) -> float:
        """Frobenius norm of the whole change, over all weights."""
        return math.hypot(*(change.norm() for change in self.changes.values()))

    def delta(self, name: str) -> Tensor:
        """The dense change of one weight, shape (d_out, d_in)."""
        return self.changes[name].dense()

    def _require_changes(self, what: str) -> None:
        if self.overlay is not None:
            raise EditlibError(f"this edit ({self!r}) cannot be {what}")

    def _check(self, lm: LanguageModel) -> None:
        if self.fingerprint != lm.fingerprint:
            dtype, name = str(lm.model.dtype).removeprefix("torch."), lm.name or "this model"
            said = f"this edit was computed for model {self.fingerprint[:12]}, not for {name} ({lm.fingerprint[:12]})"
            if self.dtype in ("", dtype):
                raise EditlibError(f"{said}; compute it again")
            raise EditlibError(
                f"{said}: that was {self.dtype}, this is {dtype}; load it in {self.dtype}, or compute it again"
            )
        if id(lm.model) in self.in_force:
            raise EditlibError(f"this edit ({self!r}) is applied already; leave its block before applying it again")

    def save(self, folder: str | Path) -> Path:
        """Write `edit.safetensors` and `edit.json` into a new folder, aside first; raises `EditlibError` if it
        cannot be."""
        tensors = {
            f"{name}|{kind}": tensor for name, change in self.changes.items() for kind, tensor in change.tensors.items()
        }
        record = {
            "method": self.method, "requests": [asdict(r) for r in self.requests], "hparams": finite(self.hparams),
            "fingerprint": self.fingerprint, "diagnostics": finite(self.diagnostics), "dtype": self.dtype,
        }  # fmt: skip
        if self.overlay is not None:
            record["overlay"] = self.overlay.record
            tensors |= prefixed(self.overlay)
        own = {name: tensor.clone() for name, tensor in tensors.items()}  # weights may have a factor in common
        with new_folder(Path(folder)) as writing:
            write_tensors(writing / "edit.safetensors", own, {})
            write_json(writing / "edit.json", record)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Edit":
        """Read a folder written by `save`; raises `EditlibError` if a file is missing or damaged."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "edit.json").read_text("utf-8"))
            kept = load_file(folder / "edit.safetensors")
            overlay = made_of(record.pop("overlay"), parts_of(kept)) if "overlay" in record else None
            names = sorted({key.rsplit("|", 1)[0] for key in kept if not key.startswith(PREFIX)})
            changes = {
                n: Dense(kept[f"{n}|D"]) if f"{n}|D" in kept else LowRank(kept[f"{n}|L"], kept[f"{n}|R"]) for n in names
            }
            requests = tuple(EditRequest(**r) for r in record.pop("requests"))
            return cls(requests=requests, changes=changes, overlay=overlay, **record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise EditlibError(f"edit {folder} cannot be read: {error}") from error


def _parts(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What several edits say of themselves, as a list under `parts`."""
    return {"parts": [part for said in (mine, other) for part in said.get("parts", [dict(said)])]}
