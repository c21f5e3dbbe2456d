"""The slow, obvious way to numbers the package works out faster: one row at a time, dense, in float64."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.models.language_model import LanguageModel

Array = NDArray[np.float64]


def reads(lm: LanguageModel, module: str, request: EditRequest, contexts: Sequence[str]) -> tuple[Array, Array]:
    """Inputs and outputs of a module at the subject's last token, one context at a time."""
    kept: list[tuple[Tensor, Tensor]] = []

    def hook(_: object, inputs: tuple[Tensor], output: Tensor | tuple[Tensor]) -> None:
        kept.append((inputs[0][0], (output[0] if isinstance(output, tuple) else output)[0]))

    handle = lm.model.get_submodule(module).register_forward_hook(hook)
    for context in contexts:
        text = context.replace("{}", request.text)
        ids = lm.tokenizer(text)["input_ids"]
        spelled = [lm.tokenizer.decode(ids[: i + 1], skip_special_tokens=True) for i in range(len(ids))]
        until = text[: text.index(request.text) + request.text.index(request.subject) + len(request.subject)]
        at = next(i for i, decoded in enumerate(spelled) if decoded.startswith(until))
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
        kept[-1] = (kept[-1][0][at], kept[-1][1][at])
    handle.remove()
    return np.stack([k.double().numpy() for k, _ in kept]), np.stack([v.double().numpy() for _, v in kept])


def dense(edit: Edit, name: str) -> Array:
    """One weight's change, (d_out, d_in)."""
    tensors = [tensor.double().numpy() for tensor in edit.changes[name].tensors.values()]
    return tensors[0] @ tensors[1].T if len(tensors) == 2 else tensors[0]


def distance(found: Array, expected: Array) -> float:
    """Relative Frobenius distance."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def least_change(moment: Array, key: Array, residual: Array) -> Array:
    """min ‖Δ C^½‖ with Δ k = r: the Karush-Kuhn-Tucker system of every row of Δ, solved whole."""
    d = len(key)
    system = np.block([[2 * moment, key[:, None]], [key[None, :], np.zeros((1, 1))]])
    right = np.concatenate([np.zeros((d, len(residual))), residual[None, :]])
    return np.linalg.solve(system, right)[:d].T


def ridge_change(moment: Array, weight: float, keys: Array, residual: Array) -> Array:
    """min weight ‖Δ C^½‖² + ‖Δ K - R‖², keys and residuals as columns: ordinary least squares over stacked rows."""
    half = np.sqrt(weight) * np.linalg.cholesky(moment).T
    left = np.concatenate([half, keys.T])
    right = np.concatenate([np.zeros((len(moment), len(residual))), residual.T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T
