"""What a model's first position looks like inside: residual norms and keys by position and layer."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode_texts
from editlib.models.trace import trace

POSITIONS = 10


@torch.no_grad()
def anatomy(lm: LanguageModel, texts: Sequence[str]) -> pd.DataFrame:
    """One row per layer and position: mean norm of the residual stream after the block (`residual_norm`) and of the
    block's key (`key_norm`), and mean cosine between the keys of two texts (`key_cosine`; near 1 where the key no
    longer tells the token).

    Only texts of at least `POSITIONS` tokens count, and one for each first token.
    """
    rows = {row[0]: row[:POSITIONS] for row in encode_texts(lm, texts) if len(row) >= POSITIONS}
    blocks = {layer: f"{lm.layout.blocks}.{layer}" for layer in range(lm.num_layers)}
    downs = {layer: lm.layout.name(layer) for layer in blocks}
    with trace(lm.model, *blocks.values(), *downs.values()) as seen:
        lm.model(torch.tensor(list(rows.values()), device=lm.device))
    norms = {layer: seen[name].output.float().norm(dim=-1).mean(0) for layer, name in blocks.items()}
    keys = {layer: seen[name].input.float() for layer, name in downs.items()}
    lengths = {layer: rows.norm(dim=-1).mean(0) for layer, rows in keys.items()}
    cosines = {layer: _cosine_between(rows) for layer, rows in keys.items()}
    columns = {"residual_norm": norms, "key_norm": lengths, "key_cosine": cosines}
    return pd.DataFrame(
        {"layer": layer, "position": p} | {name: values[layer][p].item() for name, values in columns.items()}
        for layer in blocks
        for p in range(POSITIONS)
    )


def _cosine_between(keys: Tensor) -> Tensor:
    """Mean cosine over all pairs of texts, by position, of keys (texts, positions, d); nan for a single text."""
    count, units = len(keys), torch.nn.functional.normalize(keys, dim=-1)
    pairs = torch.tensor(count * (count - 1) or float("nan"))
    return (units.sum(0).square().sum(-1) - count) / pairs.to(units)
