"""What keys alone tell of a rank-one edit before its v* is searched: its denominator, and how far it will move other
text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.methods.rome import RomeParams
from editlib.engine.values import Keys, encode_contexts
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import pad
from editlib.models.trace import trace


@dataclass(frozen=True)
class KeyPairs:
    """Keys and values of requests at one layer, a row each in float64: of the bare prompt, and means over contexts."""

    bare: Tensor
    mean: Tensor
    bare_value: Tensor
    mean_value: Tensor


@torch.no_grad()
def keys_by_layer(
    lm: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str], *, empty: bool = True
) -> dict[int, KeyPairs]:
    """Keys and values of every layer, in one pass a request; the mean counts the bare prompt if `empty`.

    Raises `EditlibError` for a request whose subject cannot be located, or that is too long behind a context.
    """
    names = {layer: lm.layout.name(layer) for layer in range(lm.num_layers)}
    rows: dict[int, list[tuple[Tensor, ...]]] = {layer: [] for layer in names}
    for request in requests:
        encoded = encode_contexts(lm, request, contexts)
        ids, mask = pad([row.ids for row in encoded], lm.device)
        with trace(lm.model, *names.values(), stop=True) as seen:
            lm.model(input_ids=ids, attention_mask=lm.attended(mask))
        at = torch.arange(len(encoded), device=lm.device), torch.tensor([row.last for row in encoded], device=lm.device)
        for layer, name in names.items():
            found = Keys(widened(seen[name].input[at]), widened(seen[name].output[at]))
            (bare, bare_value), (mean, mean_value) = found.bare, found.mean(empty=empty)
            rows[layer].append((bare, mean, bare_value, mean_value))
    return {
        layer: KeyPairs(*(torch.stack(c).double().cpu() for c in zip(*of, strict=True))) for layer, of in rows.items()
    }


def foretell(
    pairs: KeyPairs,
    params: RomeParams,
    *,
    moment: Tensor | None,
    later: Tensor,
    first: Tensor,
    residual: Mapping[str, float],
) -> pd.DataFrame:
    """One row per request: what a method of the ROME family with these keys would do, if its δ were as long as the
    value that it is added to.

    `denominator_ratio` is |denominator| over what it would be with k_in in both places. `reach` is how far the edit
    moves the output of an ordinary key, `leak` how far that of position 0, each over the `residual` stream's length
    there (`later`, `first`). `moment` is the C of the update, None where it is left out; `later` the second moment of
    ordinary keys, those behind position 0; `first` the mean key at position 0.

    With u = C⁻¹k_in the edit moves the output of a key k by R (uᵀk) / (uᵀk_out), where R = v* - W k_out.
    """
    k_in = pairs.bare if params.keys == "unprefixed" else pairs.mean
    behind = params.keys == "prefixed"
    k_out, current = (pairs.mean, pairs.mean_value) if behind else (pairs.bare, pairs.bare_value)
    start = {"unprefixed": pairs.bare_value, "mean": pairs.mean_value, "current": current}[params.anchor]
    u = k_in if moment is None else torch.linalg.solve(moment, k_in.T).T
    size = (start - current).norm(dim=1) + start.norm(dim=1)
    denominator = (u * k_out).sum(1).abs()
    moved = ((u @ later) * u).sum(1).sqrt(), (u @ first).abs()
    reach, leak = (size * by / denominator for by in moved)
    return pd.DataFrame(
        {
            "denominator_ratio": (denominator / (u * k_in).sum(1).abs()).tolist(),
            "reach": (reach / residual["later"]).tolist(),
            "leak": (leak / residual["first"]).tolist(),
        }
    )
