"""What a model's first position looks like inside: residual stream, keys and attention by layer and position, and what
that position is of the second moments."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pandas as pd
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from editlib.editing.stats import Stats, second_moments
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode_texts
from editlib.models.trace import trace

POSITIONS = 10
SPIKE = 100.0  # largest entry over the median one: from here on massive. One of the bounds of Sun et al., COLM 2024
SINK = 0.3  # mean attention from which on a head has a sink: Gu et al., ICLR 2025
LENGTH, ROWS = 64, 100  # tokens and texts that sinks are counted on, as there
BATCH = 16  # texts a forward pass whose attention is kept
MEMORY = 2e9  # bytes that second moments may take at once


@torch.no_grad()
def anatomy(lm: LanguageModel, texts: Sequence[str], *, bos: bool = False) -> pd.DataFrame:
    """One row per layer and position: mean norm of the residual stream after the block (`residual_norm`), its largest
    entry over the median one (`spike`, both by size; median over texts), mean norm of the block's key (`key_norm`), and
    mean cosine between the keys of two texts (`key_cosine`; near 1 where the key no longer tells the token).

    Only texts of at least `POSITIONS` tokens count, and one for each first token. With `bos` each begins with the
    tokenizer's BOS token. Raises `EditlibError` if no text is that long. Source of `spike`: Sun et al., Massive
    Activations in Large Language Models, COLM 2024.
    """
    lm.require_causal()
    long = [row[:POSITIONS] for row in encode_texts(lm, texts, bos=bos, whole=False) if len(row) >= POSITIONS]
    if not long:
        raise EditlibError(f"none of {len(texts)} texts has {POSITIONS} tokens for {lm.label}; give longer ones")
    rows = {row[int(bos)]: row for row in long}
    blocks = {layer: f"{lm.layout.blocks}.{layer}" for layer in range(lm.num_layers)}
    downs = {layer: lm.layout.name(layer) for layer in blocks}
    parts: dict[int, list[tuple[Tensor, ...]]] = {layer: [] for layer in blocks}
    for batch in torch.tensor(list(rows.values())).split(BATCH):
        with trace(lm.model, *blocks.values(), *downs.values()) as seen:
            lm.model(batch.to(lm.device))
        for layer, name in blocks.items():
            states, keys = seen[name].output.float(), seen[downs[layer]].input.float()
            sizes, units = states.abs(), torch.nn.functional.normalize(keys, dim=-1)
            spikes = sizes.amax(-1) / sizes.median(-1).values
            parts[layer].append((states.norm(dim=-1), spikes, keys.norm(dim=-1), units.sum(0, keepdim=True)))
    table = []
    for layer in blocks:
        lengths, spikes, key_lengths, units = map(torch.cat, zip(*parts[layer], strict=True))
        columns = {
            "residual_norm": lengths.mean(0),
            "spike": spikes.median(0).values,
            "key_norm": key_lengths.mean(0),
            "key_cosine": _cosine_between(units.sum(0), len(rows)),
        }
        values = pd.DataFrame({column: of.tolist() for column, of in columns.items()})
        table.append(values.rename_axis("position").reset_index().assign(layer=layer))
    return pd.concat(table, ignore_index=True)[["layer", "position", *columns]]


def _cosine_between(total: Tensor, count: int) -> Tensor:
    """Mean cosine over all pairs of texts, by position, from the sum of their unit keys (positions, d); nan for a
    single text."""
    pairs = torch.tensor(count * (count - 1) or math.nan)
    return (total.square().sum(-1) - count) / pairs.to(total)


@torch.no_grad()
def sinks(lm: LanguageModel, texts: Sequence[str], *, bos: bool = False, threshold: float = SINK) -> pd.DataFrame:
    """One row per layer and position: mean attention that a position gets from itself and all later ones
    (`attention`), and the share of heads and texts in which that is more than `threshold` (`sink`).

    The texts are joined and cut into rows of `LENGTH` tokens, or of the model's context, of which at most `ROWS` are
    read. With `bos` each row begins with the tokenizer's BOS token. Raises `EditlibError` for fewer tokens than a row
    has, and for a model that shows no attention weights. Source: Gu et al., When Attention Sink Emerges in Language
    Models, ICLR 2025.
    """
    lm.require_causal()
    (tokens,) = encode_texts(lm, [" ".join(texts)], bos=bos, whole=False)
    begin, tokens = tokens[: int(bos)], tokens[int(bos) :]
    width = min(LENGTH, lm.max_length or LENGTH)
    step = width - len(begin)
    rows = [[*begin, *tokens[i : i + step]] for i in range(0, len(tokens) - step + 1, step)][:ROWS]
    if not rows:
        raise EditlibError(f"the texts have {len(tokens)} tokens for {lm.label}, and sinks need {step}; give more")
    totals: list[tuple[Tensor, Tensor]] = []
    later = torch.arange(width, 0, -1)  # queries that may look at a position
    with _attention_kept(lm):
        for batch in torch.tensor(rows).split(BATCH):
            weights = lm.model(batch.to(lm.device), output_attentions=True).attentions
            if not weights or len(weights) != lm.num_layers or any(layer is None for layer in weights):
                raise EditlibError(f"{lm.label} shows no attention weights in each of its {lm.num_layers} blocks")
            shares = torch.stack([layer.float().sum(-2).cpu() / later for layer in weights])
            totals.append((shares.mean(2).sum(1), (shares > threshold).float().mean(2).sum(1)))  # over heads, texts
    attention, sink = (sum(parts[1:], parts[0]) / len(rows) for parts in zip(*totals, strict=True))
    return pd.DataFrame(
        {"layer": layer, "position": position, "attention": float(attention[layer, position])}
        | {"sink": float(sink[layer, position])}
        for layer in range(lm.num_layers)
        for position in range(width)
    )


@contextmanager
def _attention_kept(lm: LanguageModel) -> Iterator[None]:
    """The model with the one implementation of attention that returns its weights."""
    usual = lm.model.config._attn_implementation
    try:
        lm.model.set_attn_implementation("eager")
        yield
    finally:
        lm.model.set_attn_implementation(usual)


def profile(
    lm: LanguageModel, texts: Sequence[str], *, windows: Tensor | None = None, bos: bool = False
) -> pd.DataFrame:
    """One row per layer: position 0 beside the mean of the next ones.

    Of `anatomy`: `residual_norm` and `key_norm` at position 0, each with its `_later` and its quotient `_ratio`,
    `key_cosine` with its `_later`, and `spike`; of `sinks`, `attention` and `sink`; of `first_position`, all its
    columns, if there are `windows`. Options and errors are theirs.
    """
    places = anatomy(lm, texts, bos=bos)
    first = places[places["position"] == 0].set_index("layer").drop(columns="position")
    later = places[places["position"] > 0].groupby("layer").mean()
    for column in ("residual_norm", "key_norm"):
        first[f"{column}_ratio"] = first[column] / later[column]
    table = first.join(later[["residual_norm", "key_norm", "key_cosine"]].add_suffix("_later"))
    seen = sinks(lm, texts, bos=bos)
    table = table.join(seen[seen["position"] == 0].set_index("layer")[["attention", "sink"]])
    return table if windows is None else table.join(first_position(lm, windows).set_index("layer"))


def onset(table: pd.DataFrame) -> int | None:
    """The first layer of a profile after which position 0 has a massive activation, if any."""
    massive = table.index[table["spike"] > SPIKE]
    return int(massive[0]) if len(massive) else None


@dataclass(frozen=True)
class Split:
    """Second moments of the keys with position 0 of every window in them and without, and the mean key there by layer;
    `share` is that of position 0 among all positions."""

    whole: Stats
    rest: Stats
    first: Mapping[int, Tensor]
    share: float


@torch.no_grad()
def split_moments(lm: LanguageModel, windows: Tensor, *, layers: Sequence[int] | None = None) -> Split:
    """Read second moments apart, in one pass over windows of token ids and one over their first tokens."""
    rest, share = second_moments(lm, windows, layers=layers, first_position="drop"), 1 / windows.shape[1]
    names = {layer: lm.layout.name(layer) for layer in rest.moments}
    with trace(lm.model, *names.values(), stop=True) as seen:
        lm.model(windows[:, :1].to(lm.device))  # nothing before position 0 changes it
    keys = {layer: seen[name].input[:, 0].double().cpu() for layer, name in names.items()}
    whole = {
        layer: (1 - share) * moment + share * keys[layer].T @ keys[layer] / len(windows)
        for layer, moment in rest.moments.items()
    }
    header = replace(rest.header, first_position="keep")
    return Split(Stats(header, whole), rest, {layer: rows.mean(0) for layer, rows in keys.items()}, share)


def first_position(lm: LanguageModel, windows: Tensor, *, layers: Sequence[int] | None = None) -> pd.DataFrame:
    """One row per layer: what position 0 of the windows is of C, the second moment of the keys.

    `trace_share` and `top_share` are its share of C's trace and of C's largest eigenvalue, `top_cosine` the size of the
    cosine of that eigenvalue's vector and k₀, the mean key at position 0. `damping` is 1 + p k₀ᵀC₀⁻¹k₀, with p the
    share of position 0 among all and p k₀k₀ᵀ + C₀ = C: were all keys at position 0 the same, C would make a denominator
    with k₀ so many times smaller than C₀ does; nan where C₀ is singular.

    `windows` are token ids (windows, tokens of a window), as `editing.stats.corpus_windows` makes them.
    """
    table, wanted = [], list(range(lm.num_layers) if layers is None else layers)
    at_once = max(1, int(MEMORY / 16 / max(lm.weight(layer).shape[1] for layer in wanted) ** 2))
    for some in (wanted[i : i + at_once] for i in range(0, len(wanted), at_once)):
        split = split_moments(lm, windows, layers=some)
        for layer, mean in split.first.items():
            whole, later = split.whole.moments[layer], (1 - split.share) * split.rest.moments[layer]
            largest, vectors = eigsh(whole.numpy(), k=1, v0=whole.diagonal().numpy())  # by itself it begins at random
            top = torch.from_numpy(vectors[:, 0])
            factor, failed = torch.linalg.cholesky_ex(later)
            solved = torch.cholesky_solve(mean[:, None], factor)[:, 0]
            table.append(
                {
                    "layer": layer,
                    "trace_share": float(1 - later.trace() / whole.trace()),
                    "top_share": float(1 - top @ later @ top / largest[0]),
                    "top_cosine": float((top @ mean).abs() / mean.norm()),
                    "damping": math.nan if failed else float(1 + split.share * mean @ solved),
                }
            )
    return pd.DataFrame(table)
