"""Edits: exact changes of weights, or what lies over a model's passes, to be applied, undone, saved and loaded."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import Change, Dense, LowRank
from editlib.editing.exports import cards, gguf, peft
from editlib.editing.overlays import PREFIX, made_of, parts_of, prefixed
from editlib.editing.overlays.overlay import Overlay, over
from editlib.errors import EditlibError, unknown
from editlib.files import new_folder, write_json, write_tensors
from editlib.models.language_model import LanguageModel, oriented
from editlib.models.names import DTYPES
from editlib.models.saving import write_model
from editlib.text import finite

FORMAT, RECORD = 1, "edit.json"  # of saved edits


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


IN_FORCE = "_editlib_in_force"  # of a model: the edits that it is under


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

    def __repr__(self) -> str:
        first, more = self.requests[0], f" and {len(self.requests) - 1} more" if len(self.requests) > 1 else ""
        where = f"in {', '.join(self.changes)}" if self.overlay is None else "no weight is written"
        return f"<Edit by {self.method}: {first.text!r} -> {first.target_new!r}{more}, {where}>"

    @contextmanager
    def applied(self, lm: LanguageModel) -> Iterator[LanguageModel]:
        """Let the model be the edited one inside the block, and bit for bit as it was after it, also on error.

        Raises `EditlibError` for another model, or one this edit is in force in, or the same computed or loaded again.
        Other edits may nest, but only one of them with an overlay.
        """
        self.require_base(lm)
        in_force: list[Edit] = vars(lm.model).setdefault(IN_FORCE, [])
        if any(map(self._is, in_force)):
            raise EditlibError(f"this edit ({self!r}) is applied already; leave its block before applying it again")
        in_force.append(self)
        try:
            laid = over(lm, self.overlay, self.method) if self.overlay else nullcontext()
            with restored(lm, self.changes) as weights, laid:
                for name, weight in weights.items():
                    weight.add_(self.delta(name).to(weight))
                yield lm
        finally:
            in_force[:] = [edit for edit in in_force if edit is not self]

    def _is(self, other: "Edit") -> bool:
        """Whether another edit changes the same weights in the same way; an overlay lets no second one in anyway."""
        same = self.method == other.method and self.requests == other.requests and self.overlay is None
        return self is other or (same and math.isclose(self.norm(), other.norm(), rel_tol=1e-6))

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

    def require_base(self, lm: LanguageModel) -> None:
        """Raise `EditlibError` unless a model is the one that the edit was computed for."""
        if self.fingerprint == lm.fingerprint:
            return
        dtype, name = str(lm.model.dtype).removeprefix("torch."), lm.name or "this model"
        said = f"this edit was computed for model {self.fingerprint[:12]}, not for {name} ({lm.fingerprint[:12]})"
        if self.dtype in ("", dtype):
            raise EditlibError(f"{said}; compute it again")
        raise EditlibError(
            f"{said}: that was {self.dtype}, this is {dtype}; load it in {self.dtype}, or there make the edit one for "
            f'{dtype} by cast(lm, "{dtype}"), or compute it again'
        )

    @property
    def record(self) -> dict[str, Any]:
        """All of it but tensors, as its files have it."""
        said = {
            "format": FORMAT, "method": self.method, "requests": [asdict(r) for r in self.requests],
            "hparams": finite(self.hparams), "fingerprint": self.fingerprint, "diagnostics": finite(self.diagnostics),
            "dtype": self.dtype,
        }  # fmt: skip
        return said if self.overlay is None else said | {"overlay": self.overlay.record}

    def save(self, folder: str | Path) -> Path:
        """Write `edit.safetensors` and `edit.json` into a new folder, aside first; raises `EditlibError` if it
        cannot be."""
        tensors = {
            f"{name}|{kind}": tensor for name, change in self.changes.items() for kind, tensor in change.tensors.items()
        }
        tensors |= prefixed(self.overlay) if self.overlay is not None else {}
        own = {name: tensor.clone() for name, tensor in tensors.items()}  # weights may have a factor in common
        with new_folder(Path(folder)) as writing:
            write_tensors(writing / "edit.safetensors", own, {})
            write_json(writing / RECORD, self.record)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Edit":
        """Read a folder written by `save` or `to_peft`; raises `EditlibError` if a file is missing or damaged, or
        written by a newer editlib."""
        folder = Path(folder)
        try:
            if not (folder / RECORD).is_file():
                raise EditlibError(f"it is no folder of a saved edit, which has an {RECORD}")
            record = json.loads((folder / RECORD).read_text("utf-8"))
            if (form := record.pop("format", FORMAT)) != FORMAT:  # 0.1.0 wrote none
                raise EditlibError(f"it has format {form}, this editlib reads {FORMAT}; install a newer one")
            kept = peft.read(folder) if (folder / peft.WEIGHTS).is_file() else load_file(folder / "edit.safetensors")
            overlay = made_of(record.pop("overlay"), parts_of(kept)) if "overlay" in record else None
            names = sorted({key.rsplit("|", 1)[0] for key in kept if not key.startswith(PREFIX)})
            changes = {
                n: Dense(kept[f"{n}|D"]) if f"{n}|D" in kept else LowRank(kept[f"{n}|L"], kept[f"{n}|R"]) for n in names
            }
            requests = tuple(EditRequest(**r) for r in record.pop("requests"))
            return cls(requests=requests, changes=changes, overlay=overlay, **record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise EditlibError(f"edit {folder} cannot be read: {error}") from error

    # -- elsewhere -----------------------------------------------------------------------------------------

    def cast(self, lm: LanguageModel, dtype: str) -> "Edit":
        """This edit for the same model in another dtype, as rounding its weights makes it; `lm` is the model that it
        was computed for. Raises `EditlibError` for another model, or an unknown dtype."""
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        self.require_base(lm)
        said = {**self.diagnostics, "computed_in": self.diagnostics.get("computed_in", self.dtype)}
        return replace(self, fingerprint=lm.fingerprint_in(getattr(torch, dtype)), dtype=dtype, diagnostics=said)

    def low_rank(self, rank: int | None = None) -> "Edit":
        """This edit with thin factors alone, as adapters have them. Changes that are dense or of more than `rank` are
        cut to it by singular values; what that leaves out is `left_out` in diagnostics, as a share of each change.

        Raises `EditlibError` for an overlay, a rank below 1, and a dense change if no rank is given.
        """
        if rank is not None and rank < 1:
            raise EditlibError(f"rank {rank} is out of range; give 1 or more")
        self._require_changes("written as an adapter: it would have to write weights")
        changes, left_out = dict[str, Change](), dict[str, float]()
        for name, change in self.changes.items():
            if rank is None and isinstance(change, Dense):
                raise EditlibError(
                    f"{self.method} changes {name} densely, and an adapter is of low rank; give rank=, or --rank, to "
                    "write the nearest of that rank and be told what it leaves out, or merge the edit"
                )
            changes[name] = cut = change if rank is None else change.cut(rank)
            if cut is not change:
                left_out[name] = Dense(change.dense().double() - cut.dense().double()).norm() / (change.norm() or 1)
        told = {**self.diagnostics, "left_out": left_out} if left_out else self.diagnostics
        return replace(self, changes=changes, diagnostics=told)

    def merge(self, lm: LanguageModel, folder: str | Path) -> Path:
        """Write the edited model as a new folder that transformers loads: weights, tokenizer, configuration, and a
        model card that says what was edited. Raises `EditlibError` for another model, an edited one, an overlay, or a
        folder that exists or cannot be written."""
        self._require_changes("merged; save it, and apply it where it is used")
        self.require_base(lm)
        lm.require_untouched("a merged model")
        with new_folder(Path(folder)) as writing, self.applied(lm):
            write_model(lm.model, lm.tokenizer, writing)
            (writing / cards.NAME).write_text(cards.merged(lm, self.record), "utf-8")
        return Path(folder)

    def to_peft(self, lm: LanguageModel, folder: str | Path, *, rank: int | None = None) -> Path:
        """Write a LoRA adapter as a new folder that `peft`, and what serves its adapters, loads beside the model that
        the edit was computed for; `load` reads it back. `rank` is `low_rank`'s.

        Raises `EditlibError` for another model, a change that such an adapter cannot have, or a folder that exists or
        cannot be written.
        """
        thin = self._thin(lm, rank)
        with new_folder(Path(folder)) as writing:
            peft.write(writing, lm, thin.changes)
            (writing / cards.NAME).write_text(cards.adapter(lm, thin.record), "utf-8")
            write_json(writing / RECORD, thin.record)
        return Path(folder)

    def to_gguf(self, lm: LanguageModel, file: str | Path, *, rank: int | None = None) -> Path:
        """Write a LoRA adapter as a new GGUF file for the GGUF file that the model was read from, as llama.cpp loads
        them; `rank` is `low_rank`'s. Raises `EditlibError` as `to_peft` does, and for a model from no such file."""
        thin = self._thin(lm, rank)
        return gguf.write(Path(file), lm, thin.changes, thin.record)

    def _thin(self, lm: LanguageModel, rank: int | None) -> "Edit":
        self.require_base(lm)
        thin = self.low_rank(rank)
        if not thin.changes:
            raise EditlibError(f"this edit ({self!r}) changes nothing, so that there is nothing to write")
        peft.check(lm, thin.changes)
        return thin


def _parts(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What several edits say of themselves, as a list under `parts`."""
    return {"parts": [part for said in (own, other) for part in said.get("parts", [dict(said)])]}
