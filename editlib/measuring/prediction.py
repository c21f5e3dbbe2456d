"""What keys alone tell of a rank-one edit before its v* is searched: its denominator, and how far it will move other
text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from editlib.data.request import EditRequest
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.engine.memory import alike
from editlib.engine.passes import Tokens
from editlib.engine.prefixes import Flavour
from editlib.engine.values import Keys, encode_contexts
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import pad
from editlib.models.trace import trace

TOKENS = 4096  # of a batch
ROWS = 32  # batches have a multiple of them: oneDNN keeps buffers for every shape that it has multiplied


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
            keys = Keys(widened(seen[name].input[at]), widened(seen[name].output[at]))
            (bare, bare_value), (mean, mean_value) = keys.bare, keys.mean(empty=empty)
            rows[layer].append((bare, mean, bare_value, mean_value))
    return {
        layer: KeyPairs(*(torch.stack(c).double().cpu() for c in zip(*of, strict=True))) for layer, of in rows.items()
    }


@torch.no_grad()
def key_pairs(
    session: Session, layer: int, requests: Sequence[EditRequest], flavour: Flavour, *, empty: bool = True
) -> KeyPairs:
    """Keys and values of one layer for many requests: prefix contexts run once, what requests have in common up to the
    subject's end once, and nothing above the layer. Errors are those of `keys_by_layer`."""
    lm, prefixes, past = session.lm, session.prefixes(flavour), session.past(flavour)
    name = lm.layout.name(layer)
    encoded = ([row.ids[: row.last + 1] for row in encode_contexts(lm, r, prefixes.contexts)] for r in requests)
    heads = [tuple(rows) for rows in encoded]
    unique = {head: i for i, head in enumerate(dict.fromkeys(heads))}
    rows = []  # what is left to run, and the prefix that it stands behind
    for head in unique:
        for i, ids in enumerate(head, start=1):
            skipped = len(prefixes.ids[i])
            fits = ids[:skipped] == prefixes.ids[i] and skipped < len(ids)
            rows.append((ids[skipped:], i) if fits else (ids, 0))
    gathered = torch.empty(len(rows), lm.weight(layer).shape[1]), torch.empty(len(rows), lm.weight(layer).shape[0])
    for batch in alike([len(ids) for ids, _ in rows], waste=0.2, most=TOKENS):
        fed = [rows[i] for i in batch]
        fed += fed[-1:] * (-len(fed) % ROWS)
        tokens = Tokens.of(lm, [ids for ids, _ in fed])
        behind = past.take(torch.tensor([prefix for _, prefix in fed], device=lm.device))
        seen = session.passes.run(tokens, behind, names=[name], stop=True).seen[name]
        at = torch.arange(len(batch), device=lm.device), tokens.mask.sum(1)[: len(batch)] - 1
        for kept, values in zip(gathered, (seen.input, seen.output), strict=True):
            kept[batch] = widened(values[at]).float().cpu()
    shape = len(unique), len(prefixes.contexts), -1
    each = map(Keys, *(values.view(shape) for values in gathered))
    means = [(keys.bare, keys.mean(empty=empty)) for keys in each]
    columns = zip(*((bare[0], mean[0], bare[1], mean[1]) for bare, mean in means), strict=True)
    asked = torch.tensor([unique[head] for head in heads])
    return KeyPairs(*(torch.stack(column).double()[asked] for column in columns))


def foretell(
    pairs: KeyPairs,
    params: RomeParams,
    *,
    whiten: Callable[[Tensor], Tensor] | None,
    later: Tensor,
    first: Tensor,
    residual: Mapping[str, float],
) -> pd.DataFrame:
    """One row per request: what a method of the ROME family with these keys would do, if its δ were as long as the
    value that it is added to.

    `denominator_ratio` is the size of the denominator over what it would be with k_in in both places. `spill` is how
    far the edit moves the output of an ordinary key over how far it moves that of k_out: at 1, all words get as much of
    it as the subject. `reach` is how far it moves that output over the `residual` stream's length there (`later`),
    `leak` how far the output at position 0 over that length (`first`). `severity` is the larger of spill and reach.
    `whiten` applies C⁻¹ of the update to keys, a row each, None where it is left out; `later` is the second moment of
    ordinary keys, those behind position 0; `first` the mean key at position 0.

    With u = C⁻¹k_in the edit moves the output of a key k by R (uᵀk) / (uᵀk_out), where R = v* - W k_out.
    """
    k_in = pairs.bare if params.keys == "unprefixed" else pairs.mean
    behind = params.keys == "prefixed"
    k_out, current = (pairs.mean, pairs.mean_value) if behind else (pairs.bare, pairs.bare_value)
    start = {"unprefixed": pairs.bare_value, "mean": pairs.mean_value, "current": current}[params.anchor]
    u = whiten(k_in) if whiten else k_in
    size = (start - current).norm(dim=1) + start.norm(dim=1)
    denominator = (u * k_out).sum(1).abs()
    spill, first_spill = ((u @ later) * u).sum(1).sqrt() / denominator, (u @ first).abs() / denominator
    table = pd.DataFrame(
        {
            "denominator_ratio": (denominator / (u * k_in).sum(1).abs()).tolist(),
            "spill": spill.tolist(),
            "reach": (size * spill / residual["later"]).tolist(),
            "leak": (size * first_spill / residual["first"]).tolist(),
        }
    )
    return table.assign(severity=table[["spill", "reach"]].max(axis=1))
