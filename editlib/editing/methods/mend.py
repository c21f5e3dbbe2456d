"""MEND: a trained editor turns the gradient of a request's loss into the weight change.

    ΔW = -α Σ_t δ̃_t ũ_tᵀ   with (ũ_t, δ̃_t) = g(u_t, δ_t) and ∇W = Σ_t δ_t u_tᵀ

over the MLP weights of the last layers; with this sign an untrained editor takes a step down the gradient. The factors
are one column a token and are never multiplied out. Source: Mitchell et al. 2022, Fast Model Editing at Scale, section
3. Deviation from the released code: several requests change the weights by the sum of what each would change alone.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Factors
from editlib.editing.methods.editor import Editor, gradients, load_editor
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import Encoded, encode

if TYPE_CHECKING:
    from editlib.editing.session import Session

SHIPPED = "mend.safetensors"  # the editor's name in its model's folder
BATCH = 16  # requests whose gradients are taken in one pass


@dataclass(frozen=True, kw_only=True)
class MendParams:
    """Hyper-parameters of MEND; those of the training are in the editor's file."""

    editor: str = ""  # its file; empty: `mend.safetensors` in the model's folder
    scale: float = 1.0  # of the change; 1 is as trained


def mend(space: "Session", requests: Sequence[EditRequest], params: MendParams) -> tuple[Factors, dict[str, Any]]:
    """Factors of Δ for every edited weight, and diagnostics: the mean NLL before the edit and the editor's sha256.

    Raises `EditlibError` if the editor is missing, damaged or another model's, or a request cannot be encoded.
    """
    lm, path = space.lm, editor_file(space.lm, params)
    editor, digest = space.once(("editor", path), lambda: _load(path, lm))
    rows = [encode(lm.tokenizer, r.prompt, r.subject, target=r.target_new, separator=r.separator) for r in requests]
    parts = [_changes(lm, editor, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    factors = {
        f"{name}.weight": (params.scale * _columns(parts, name, 0), _columns(parts, name, 1)) for name in editor.names
    }
    loss = torch.cat([losses for _, losses in parts]).mean().item()
    return factors, {"steps": 1, "losses": [loss], "editor_sha256": digest}


def editor_file(lm: LanguageModel, params: MendParams) -> Path:
    """The file that hyper-parameters stand for."""
    return Path(params.editor) if params.editor else (lm.folder or Path()) / SHIPPED


def _load(path: Path, lm: LanguageModel) -> tuple[Editor, str]:
    return load_editor(path, lm)[0], hashlib.sha256(path.read_bytes()).hexdigest()


def _changes(lm: LanguageModel, editor: Editor, rows: Sequence[Encoded]) -> tuple[Factors, Tensor]:
    """Factors of the sum of all rows' changes by module, one column a token that has a gradient; and each row's NLL."""
    found, losses = gradients(lm, editor.names, rows)
    kept = {name: (left != 0).any(-1) for name, (left, _) in found.items()}
    return {name: (left[kept[name]].T, right[kept[name]].T) for name, (left, right) in editor(found).items()}, losses


def _columns(parts: Sequence[tuple[Factors, Tensor]], name: str, side: int) -> Tensor:
    return torch.cat([factors[name][side] for factors, _ in parts], dim=1)
