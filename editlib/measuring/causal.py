"""Causal tracing: which layer's MLP brings back a fact the model can no longer see the subject of.

Source: ROME (Meng et al. 2022), section 2 and appendix B; as in its released code, a fact's probability is that of the
first token of its true target. Differs from it in one thing: the tokens of a group are restored together, not one at a
time, so that the work does not grow with a subject's length. The group that decides, the subject's last token, is one
token, so there it is the same.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from editlib.data import datasets as data
from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, check_length, encode, pad
from editlib.models.trace import trace

log = logging.getLogger(__name__)

GROUPS = ("first subject token", "middle subject tokens", "last subject token", "further tokens", "last token")
DECIDING = GROUPS[2]
BATCH_TOKENS = 1024  # a forward pass; what goes in and out of every layer's down-projection is held meanwhile
PROMPTS = 32  # a forward pass, when looking for known facts
NOISE = 3.0  # standard deviations of the subjects' embeddings


@dataclass(frozen=True)
class CausalTrace:
    """What restoring the MLPs around each layer brings back, averaged over facts and noise samples.

    `effects` has one row a layer and one column a group of tokens: P(first token of the true target), restored minus
    corrupted. `clean` and `corrupted` are that probability without noise, and with noise and nothing restored.
    """

    effects: pd.DataFrame
    facts: int
    window: int
    clean: float
    corrupted: float

    @property
    def total_effect(self) -> float:
        """What the noise takes away."""
        return self.clean - self.corrupted

    @property
    def proposed(self) -> int:
        """The layer to edit: the one with the largest effect at the subject's last token."""
        return int(self.effects[DECIDING].argmax())

    def record(self) -> dict[str, Any]:
        """Everything, for JSON; the effect on a group that no fact has is null."""
        rows = self.effects.astype(object).where(self.effects.notna(), None)
        numbers = {name: getattr(self, name) for name in ("facts", "window", "clean", "corrupted", "total_effect")}
        return {"proposed": self.proposed, **numbers, "effects": rows.reset_index().to_dict("records")}


def causal_trace(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    n: int = 50,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CausalTrace:
    """Trace the first `n` facts that the model knows, each with `samples` draws of noise.

    `window` is how many layers around each are restored at once.
    Raises `EditlibError` if the model knows none of the facts, is no causal one, or for a number out of range, an even
    window, or a fact longer than the model's context.
    """
    check_trace(lm, n=n, samples=samples, window=window)
    window = default_window(lm.num_layers) if window is None else window
    asked = data.requests(requests)
    facts = known(lm, asked, n=n)
    if not facts:
        raise EditlibError(
            f"{lm.name or 'the model'} knows none of the {len(asked)} facts (it never continues a prompt with its "
            "target_true); give facts it knows"
        )
    scale, generator = NOISE * embedding_std(lm, facts), torch.Generator().manual_seed(seed)
    width, traced = lm.model.get_input_embeddings().weight.shape[1], []
    for fact in tqdm(facts, unit="fact", disable=not progress):
        noise = torch.randn(samples, fact.subject[1] - fact.subject[0], width, generator=generator)
        traced.append(_trace_fact(lm, fact, scale * noise, window))
        log.info("traced %d of %d facts", len(traced), len(facts))
    clean, corrupted, effects = zip(*traced, strict=True)
    table = pd.DataFrame([row for rows in effects for row in rows], columns=["layer", "group", "effect"])
    means = table.groupby(["layer", "group"])["effect"].mean().unstack()  # over the facts that have such a token
    return CausalTrace(
        means.reindex(columns=list(GROUPS)), len(facts), window, float(np.mean(clean)), float(np.mean(corrupted))
    )


def check_trace(lm: LanguageModel, *, n: int, samples: int = 10, window: int | None = None) -> None:
    """Raise `EditlibError` for what cannot be traced, before the model is run."""
    lm.require_causal()
    if n < 1 or samples < 1:
        raise EditlibError(f"n={n} and samples={samples} are out of range; trace 1 fact or more, with 1 sample or more")
    if window is not None and (window < 1 or window % 2 == 0):
        raise EditlibError(f"window {window} is not odd; restore 1, 3, 5 ... layers at once")
    if window is not None and window > lm.num_layers:
        raise EditlibError(f"window {window} is out of range; {lm.label} has {lm.num_layers} layers")


def default_window(layers: int) -> int:
    """An odd number, about a fifth of the layers; ROME takes 10 of 48."""
    return 2 * (layers // 10) + 1


@torch.no_grad()
def seconds_to_trace(lm: LanguageModel, facts: Sequence[Encoded], *, samples: int = 10) -> float:
    """About how long tracing these facts will take, from one pass like all others."""
    rows = [samples * (1 + lm.num_layers * len(token_groups(fact))) for fact in facts]
    ids = torch.tensor([facts[0].ids[: facts[0].target]], device=lm.device)
    batch = ids.expand(max(1, BATCH_TOKENS // ids.shape[1]), -1)
    for _ in range(2):  # the first one also warms up
        started = time.perf_counter()
        _probabilities(lm, batch, 0).sum().item()
    each = (time.perf_counter() - started) / batch.numel()
    return each * sum(count * fact.target for count, fact in zip(rows, facts, strict=True))


@torch.no_grad()
def known(lm: LanguageModel, requests: Sequence[EditRequest], *, n: int) -> list[Encoded]:
    """The first `n` requests, encoded, whose true target is the model's greedy continuation of the prompt.

    Requests whose subject or target cannot be located are not known. Raises `EditlibError` if one is longer than the
    model's context.
    """
    rows, facts = list[Encoded](), list[Encoded]()
    for request in requests:
        if request.target_true:
            with suppress(EditlibError):
                rows.append(
                    encode(
                        lm.tokenizer,
                        request.prompt,
                        request.subject,
                        target=request.target_true,
                        separator=request.separator,
                    )
                )
    check_length(lm, [lm.tokenizer.decode(row.ids) for row in rows], [row.ids for row in rows])
    for start in range(0, len(rows), PROMPTS):
        batch = rows[start : start + PROMPTS]
        ids, mask = pad([row.ids for row in batch], lm.device)
        best = lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits.argmax(-1).tolist()
        facts += [row for row, guess in zip(batch, best, strict=True) if tuple(guess[row.predicting]) == row.wanted]
        if len(facts) >= n:
            break
    return facts[:n]


def embedding_std(lm: LanguageModel, facts: Sequence[Encoded]) -> float:
    """Standard deviation of all entries of the embeddings of the facts' subject tokens."""
    ids = [i for fact in facts for i in fact.ids[slice(*fact.subject)]]
    embedding = lm.model.get_input_embeddings()
    return float(widened(embedding(torch.tensor(ids, device=lm.device)).detach()).std())


def token_groups(fact: Encoded) -> dict[str, list[int]]:
    """Positions of each group in the prompt from the subject on; groups without a token are left out.

    A subject of one token is its own last one, and so is a prompt's last token that belongs to the subject.
    """
    (start, end), last = fact.subject, fact.target - 1
    positions = (
        range(start, min(start + 1, end - 1)),
        range(start + 1, end - 1),
        range(end - 1, end),
        range(end, last),
        range(max(last, end), last + 1),
    )
    return {group: list(at) for group, at in zip(GROUPS, positions, strict=True) if at}


@torch.no_grad()
def _trace_fact(
    lm: LanguageModel, fact: Encoded, noise: Tensor, window: int
) -> tuple[float, float, list[tuple[int, str, float]]]:
    """P(first target token) clean, corrupted, and brought back by each layer and group; means over the noise."""
    ids = torch.tensor([fact.ids[: fact.target]], device=lm.device)
    names = [lm.layout.name(layer) for layer in range(lm.num_layers)]
    with trace(lm.model, *names) as seen:
        clean = _probabilities(lm, ids, fact.ids[fact.target]).item()
    values = {name: seen[name].output for name in names}
    trials = [(layer, group, at) for group, at in token_groups(fact).items() for layer in range(lm.num_layers)]
    restored = torch.zeros(1 + len(trials), len(names), ids.shape[1], dtype=torch.bool)  # nothing in the first row
    for row, (layer, _, at) in enumerate(trials, start=1):
        restored[row, max(0, layer - window // 2) : layer + window // 2 + 1, at] = True
    corrupted, *others = _corrupted(lm, fact, noise, values, restored.to(lm.device)).tolist()
    effects = [(layer, group, p - corrupted) for (layer, group, _), p in zip(trials, others, strict=True)]
    return clean, corrupted, effects


def _corrupted(
    lm: LanguageModel, fact: Encoded, noise: Tensor, values: Mapping[str, Tensor], restored: Tensor
) -> Tensor:
    """P(first target token) with noise on the subject and the values of some layers and tokens put back, mean over the
    noise.

    `restored` has the shape (rows, layers, tokens); the result (rows,).
    """
    start, end = fact.subject
    whole = nn.functional.pad(noise, (0, 0, start, fact.target - end))  # (samples, tokens, width)
    pairs = torch.cartesian_prod(torch.arange(len(noise)), torch.arange(len(restored)))
    probabilities = []
    for sample, row in (batch.T for batch in pairs.split(max(1, BATCH_TOKENS // fact.target))):
        changes = {name: partial(_put_back, value, restored[row, i]) for i, (name, value) in enumerate(values.items())}
        changes[embedding_name(lm)] = partial(_add, whole[sample])
        ids = torch.tensor([fact.ids[: fact.target]], device=lm.device).expand(len(row), -1)
        with trace(lm.model, replace=changes):
            probabilities.append(_probabilities(lm, ids, fact.ids[fact.target]))
    return torch.cat(probabilities).view(len(noise), len(restored)).mean(0)


def _add(change: Tensor, values: Tensor) -> Tensor:
    return values + change.to(values)


def _put_back(clean: Tensor, where: Tensor, values: Tensor) -> Tensor:
    """Clean values at some rows and tokens.  # clean: (1, tokens, width); where: (rows, tokens)"""
    return torch.where(where[:, :, None], clean, values)


def _probabilities(lm: LanguageModel, ids: Tensor, answer: int) -> Tensor:
    """P(answer) after each row.  # (rows,), float64"""
    return widened(lm.model(input_ids=ids, logits_to_keep=1).logits[:, -1]).double().softmax(-1)[:, answer]


def embedding_name(lm: LanguageModel) -> str:
    """Dotted name of the token embeddings."""
    wanted = lm.model.get_input_embeddings()
    return next(str(name) for name, module in lm.model.named_modules() if module is wanted)
