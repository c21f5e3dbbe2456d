"""What is left of a model after an edit, position by position: its losses, how sure it is, its first position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from editlib.engine.memory import most_logits
from editlib.measuring import anatomy
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import encode_texts, pad

BATCH = 16  # texts a forward pass


@torch.no_grad()
def by_position(lm: LanguageModel, texts: Sequence[str]) -> pd.DataFrame:
    """One row per position that a token is predicted from: mean loss and mean entropy of the prediction, both in nats,
    and how many texts reach there (`texts`). Errors are those of `perplexity`."""
    lm.require_causal()
    rows = encode_texts(lm, texts)
    longest = max(map(len, rows))
    totals = np.zeros((longest - 1, 3))
    together = max(1, min(BATCH, most_logits(lm.device) // (longest * lm.model.config.vocab_size)))
    for start in range(0, len(rows), together):
        ids, mask = pad(rows[start : start + together], lm.device)
        logs = widened(lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits[:, :-1]).log_softmax(-1)
        real = mask[:, 1:].double()
        loss = -logs.gather(-1, ids[:, 1:, None])[..., 0].double() * real
        entropy = -(logs.exp() * logs).nan_to_num(0.0).sum(-1).double() * real  # 0 times -inf
        totals[: real.shape[1]] += torch.stack([loss.sum(0), entropy.sum(0), real.sum(0)], 1).cpu().numpy()
    counts = totals[:, 2]
    means = {"loss": totals[:, 0] / counts, "entropy": totals[:, 1] / counts, "texts": counts.astype(int)}
    return pd.DataFrame({"position": range(len(counts))} | means)


@dataclass(frozen=True)
class State:
    """A look at a model. Per layer, of position 0: length of the residual stream, its spike, and the share of heads
    that look at it; per position, losses and entropies."""

    layers: pd.DataFrame
    positions: pd.DataFrame

    @property
    def entropy(self) -> float:
        """Mean over all predicted tokens, in nats."""
        return float(np.average(self.positions["entropy"], weights=self.positions["texts"]))

    @property
    def sink(self) -> float:
        """Share of heads that look at position 0, mean over the layers."""
        return float(self.layers["sink"].mean())


def look(lm: LanguageModel, texts: Sequence[str]) -> State:
    """Look at a model as it is now, inside `edit.applied(lm)` at the edited one; errors are those of `anatomy`."""
    table = anatomy.profile(lm, texts)
    return State(table[["residual_norm", "spike", "key_norm", "sink", "attention"]], by_position(lm, texts))
