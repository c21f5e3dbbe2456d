"""The plain path, as the released codes go it, for the bench to compare the engine with.

Whole forward passes over padded rows, scores over the whole vocabulary at every position in each step, texts padded to
the longest. Left out is what only slows them down: waiting for the device in each step, slow tokenizers, reading keys
twice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from editlib.data.request import EditRequest
from editlib.engine.perplexity import Perplexity
from editlib.engine.values import Keys, Target, ValueParams, encode_contexts
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import Encoded, encode, encode_texts, pad
from editlib.models.trace import trace

BATCH = 10  # texts at once, as in the released code of both papers


@torch.no_grad()
def keys(lm: LanguageModel, layer: int, request: EditRequest, contexts: Sequence[str]) -> Keys:
    """Keys and values behind every context, read from whole forward passes."""
    rows, name = encode_contexts(lm, request, contexts), lm.layout.name(layer)
    ids, mask = pad([row.ids for row in rows], lm.device)
    with trace(lm.model, name) as seen:
        lm.model(input_ids=ids, attention_mask=lm.attended(mask), use_cache=False)
    at = _last(rows, lm.device)
    return Keys(widened(seen[name].input[at]), widened(seen[name].output[at]))


def target(lm: LanguageModel, name: str, request: EditRequest, contexts: Sequence[str], params: ValueParams) -> Target:
    """v* by whole forward passes and `log_softmax` at every position of every row in each step.

    Loss: mean NLL of the target, plus KL(edited || unedited) of what follows "{subject} is a" or its subject, plus
    decay of δ, which is added at the subject's last token of every row. Source: ROME, equation 4. With `stop_loss` 0
    every step is taken, and the device is not waited for.
    """
    rows = encode_contexts(lm, request, contexts, target=request.target_new)
    drift = encode(lm.tokenizer, "{} is a", request.subject)
    ids, mask = pad([*(row.ids[:-1] for row in rows), drift.ids], lm.device)
    wanted, share = _wanted(rows, ids)
    at = _last([*rows, drift], lm.device)
    end = drift.last if params.kl_position == "subject" else len(drift.ids) - 1
    delta = widened(torch.zeros_like(lm.weight(0)[:, 0])).requires_grad_()
    adam, losses = torch.optim.Adam([delta], lr=params.learning_rate), list[Tensor]()
    v0 = reference = delta.detach()

    def add(output: Tensor) -> Tensor:
        return output.index_put(at, delta.to(output.dtype), accumulate=True)

    for step in range(params.steps):
        with trace(lm.model, replace={name: add}) as seen:
            logits = lm.model(input_ids=ids, attention_mask=lm.attended(mask), use_cache=False).logits
        scores = widened(logits).log_softmax(-1)
        if not step:
            v0, reference = widened(seen[name].output[0, at[1][0]]).detach(), scores[-1, end].detach()
        nll = -(share.to(scores) * scores.gather(2, wanted[:, :, None])[:, :, 0]).sum()
        kl = kl_div(reference, scores[-1, end], log_target=True, reduction="sum")
        loss = nll + params.kl_weight * kl + params.weight_decay * delta.norm() / v0.norm() ** 2
        losses.append(loss.detach())
        if step == params.steps - 1 or (params.stop_loss > 0 and loss.item() < params.stop_loss):
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta.mul_((params.clamp * v0.norm() / delta.norm()).clamp(max=1))
    return Target(v0, delta.detach(), tuple(torch.stack(losses).tolist()))


def _last(rows: Sequence[Encoded], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and position of every subject's last token."""
    return torch.arange(len(rows), device=device), torch.tensor([row.last for row in rows], device=device)


def _wanted(rows: Sequence[Encoded], ids: Tensor) -> tuple[Tensor, Tensor]:
    """The target token to predict at each position, and its weight in the loss.  # both the shape of `ids`"""
    wanted, share = torch.zeros_like(ids), torch.zeros(ids.shape, device=ids.device, dtype=torch.float64)
    for r, row in enumerate(rows):
        wanted[r, row.predicting] = torch.tensor(row.wanted, device=ids.device)
        share[r, row.predicting] = 1 / (len(row.wanted) * len(rows))
    return wanted, share


@torch.no_grad()
def perplexity(lm: LanguageModel, texts: Sequence[str]) -> Perplexity:
    """Perplexity with all texts padded to the longest, ten at a time, all their logits kept and scored."""
    rows = encode_texts(lm, texts)
    ids, mask = pad(rows, lm.device)
    losses = []
    for some, real in zip(ids.split(BATCH), mask.split(BATCH), strict=True):
        logits = widened(lm.model(input_ids=some, attention_mask=lm.attended(real), use_cache=False).logits[:, :-1])
        each = cross_entropy(logits.flatten(0, 1), some[:, 1:].flatten(), reduction="none").view(len(some), -1)
        losses.append(each.where(real[:, 1:].bool(), 0).double().sum(1))
    return Perplexity(torch.cat(losses).cpu().numpy(), mask[:, 1:].sum(1).cpu().numpy())
