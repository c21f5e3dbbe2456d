"""What a model's first position looks like inside: residual norms and keys by position and layer."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from editlib.model import LanguageModel
from editlib.perplexity import encode_texts
from editlib.trace import trace

POSITIONS = 10


@torch.no_grad()
def anatomy(lm: LanguageModel, texts: Sequence[str]) -> pd.DataFrame:
    """One row per layer and position: mean norm of the residual stream after the block, and mean cosine between the key
    there and the layer's mean key over positions 1 and later. Texts shorter than `POSITIONS` tokens are left out.
    """
    ids = torch.tensor([row[:POSITIONS] for row in encode_texts(lm, texts) if len(row) >= POSITIONS], device=lm.device)
    blocks = {layer: f"{lm.layout.blocks}.{layer}" for layer in range(lm.layers)}
    downs = {layer: lm.layout.name(layer) for layer in blocks}
    with trace(lm.model, *blocks.values(), *downs.values()) as seen:
        lm.model(ids)
    rows = []
    for layer in blocks:
        norms = seen[blocks[layer]].output.float().norm(dim=-1).mean(0)
        cosines = _cosine_to_later(seen[downs[layer]].input.float())
        rows += [
            {"layer": layer, "position": p, "residual_norm": norms[p].item(), "key_cosine": cosines[p].item()}
            for p in range(POSITIONS)
        ]
    return pd.DataFrame(rows)


def _cosine_to_later(keys: Tensor) -> Tensor:
    """Mean cosine by position between keys (texts, positions, d) and their mean over positions 1 and later."""
    reference = keys[:, 1:].mean((0, 1))
    return torch.nn.functional.cosine_similarity(keys, reference, dim=-1).mean(0)
