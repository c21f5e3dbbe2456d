"""Edits: exact low-rank weight changes that can be applied, undone, saved and loaded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.files import new_folder, write_json, write_tensors
from editlib.models.language_model import LanguageModel
from editlib.models.layout import oriented
from editlib.text import finite

Factors = dict[str, tuple[Tensor, Tensor]]  # by name of the weight: left (d_out, r) and right (d_in, r)


@dataclass(frozen=True)
class Edit:
    """A low-rank weight change: `factors` maps a weight's name to `left` (d_out, r) and `right` (d_in, r), Δ =
    left rightᵀ.

    `fingerprint` is that of the unedited model it was computed for; applying it to another model is refused.
    """

    method: str
    requests: tuple[EditRequest, ...]
    factors: Mapping[str, tuple[Tensor, Tensor]]
    hparams: Mapping[str, Any]
    fingerprint: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Add the change to the model's weights inside the block; restore them bit for bit after it, also on error."""
        self._check(lm)
        weights = {name: lm.model.get_submodule(name.removesuffix(".weight")) for name in self.factors}
        kept = {name: module.weight.detach().clone() for name, module in weights.items()}
        try:
            with torch.no_grad():
                for name, module in weights.items():
                    oriented(module).add_(self.delta(name).to(lm.device, oriented(module).dtype))
            yield lm
        finally:
            with torch.no_grad():
                for name, module in weights.items():
                    module.weight.copy_(kept[name])

    def __add__(self, other: "Edit") -> "Edit":
        """Both changes in one, for edits of the same unedited model; raises `EditlibError` for different ones."""
        if self.fingerprint != other.fingerprint:
            raise EditlibError(
                f"edits of different models ({self.fingerprint[:12]} and {other.fingerprint[:12]}) cannot be added"
            )
        factors = dict(self.factors)
        for name, pair in other.factors.items():
            factors[name] = _beside(factors[name], pair) if name in factors else pair
        method = self.method if self.method == other.method else f"{self.method} + {other.method}"
        return Edit(
            method, self.requests + other.requests, factors, _parts(self.hparams, other.hparams), self.fingerprint,
            _parts(self.diagnostics, other.diagnostics),
        )  # fmt: skip

    def norm(self) -> float:
        """Frobenius norm of the whole change, over all weights, worked out from the factors."""
        squares = [((left.T @ left) * (right.T @ right)).sum() for left, right in self._wide()]
        return float(torch.stack(squares).sum().clamp(min=0).sqrt())

    def _wide(self) -> list[tuple[Tensor, Tensor]]:
        return [(left.double(), right.double()) for left, right in self.factors.values()]

    def delta(self, name: str) -> Tensor:
        """The dense change of one weight, shape (d_out, d_in)."""
        left, right = self.factors[name]
        return left @ right.T

    def _check(self, lm: LanguageModel) -> None:
        if self.fingerprint != lm.fingerprint:
            raise EditlibError(
                f"this edit was computed for model {self.fingerprint[:12]}, not for {lm.name or 'this model'} "
                f"({lm.fingerprint[:12]}); compute it again"
            )

    def save(self, folder: str | Path) -> Path:
        """Write `edit.safetensors` and `edit.json` into a new folder, aside first; raises `EditlibError` if it
        cannot be."""
        tensors = {
            f"{name}|{side}": tensor
            for name, pair in self.factors.items()
            for side, tensor in zip("LR", pair, strict=True)
        }
        record = {
            "method": self.method, "requests": [asdict(r) for r in self.requests], "hparams": finite(self.hparams),
            "fingerprint": self.fingerprint, "diagnostics": finite(self.diagnostics),
        }  # fmt: skip
        with new_folder(Path(folder)) as writing:
            write_tensors(writing / "edit.safetensors", tensors, {})
            write_json(writing / "edit.json", record)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Edit":
        """Read a folder written by `save`; raises `EditlibError` if a file is missing or damaged."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "edit.json").read_text("utf-8"))
            tensors = load_file(folder / "edit.safetensors")
            names = sorted({key.rsplit("|", 1)[0] for key in tensors})
            factors = {name: (tensors[f"{name}|L"], tensors[f"{name}|R"]) for name in names}
            requests = tuple(EditRequest(**r) for r in record.pop("requests"))
            return cls(requests=requests, factors=factors, **record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise EditlibError(f"edit {folder} cannot be read: {error}") from error


def _beside(mine: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Factors of the sum of two changes."""
    return torch.cat([mine[0], other[0]], 1), torch.cat([mine[1], other[1]], 1)


def _parts(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What several edits say of themselves, as a list under `parts`."""
    return {"parts": [part for said in (mine, other) for part in said.get("parts", [dict(said)])]}
