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
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.editor import gradients, load_editor, read_header
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode

if TYPE_CHECKING:
    from editlib.editing.session import Session

SHIPPED = "mend.safetensors"  # the editor's name in its model's folder
BATCH = 16  # requests whose gradients are taken in one pass


@dataclass(frozen=True, kw_only=True)
class MendParams:
    """Hyper-parameters of MEND; those of the training are in the editor's file."""

    # its file, of any name; empty: `mend.safetensors` in the model's folder
    editor: Annotated[str, Field(coerce_numbers_to_str=True)] = ""
    scale: float = 1.0  # of the change; 1 is as trained


class Mend(Method):
    """MEND."""

    name, hparams, several = "mend", MendParams, True
    paper, equation = "Mitchell et al. 2022, Fast Model Editing at Scale", "section 3"

    def check(self, lm: LanguageModel, params: MendParams) -> dict[str, str]:
        """Raise `EditlibError` if the editor is missing, damaged or another model's; its sha256."""
        path = _path(lm, params)
        read_header(path, lm)
        return {"editor_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: MendParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of every edited weight; diagnostics have the mean NLL before the edit and the editor's sha256.

        Raises `EditlibError` if the editor is missing, damaged or another model's, or a request cannot be encoded.
        """
        lm, path = session.lm, _path(session.lm, params)
        editor, digest = session.file(path, lambda: (load_editor(path, lm)[0], self.check(lm, params)["editor_sha256"]))
        rows = [encode(lm.tokenizer, r.prompt, r.subject, target=r.target_new, separator=r.separator) for r in requests]
        columns: dict[str, list[LowRank]] = {name: [] for name in editor.names}  # one a token that has a gradient
        losses = list[Tensor]()
        for start in range(0, len(rows), BATCH):
            factors, nll = gradients(lm, editor.names, rows[start : start + BATCH])
            losses.append(nll)
            for name, (left, right) in editor(factors).items():
                kept = (factors[name][0] != 0).any(-1)
                columns[name].append(LowRank(params.scale * left[kept].T, right[kept].T))
        changes = {f"{name}.weight": sum(parts[1:], start=parts[0]) for name, parts in columns.items()}
        numbers = {"steps": 1, "losses": [torch.cat(losses).mean().item()], "editor_sha256": digest}
        return session.edit(self, requests, params, changes, numbers), state


def _path(lm: LanguageModel, params: MendParams) -> Path:
    return Path(params.editor) if params.editor else (lm.folder or Path()) / SHIPPED
