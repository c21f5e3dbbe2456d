"""What a model says after a prompt, and how likely it finds a target there."""

import torch

from editlib.edit import EditRequest
from editlib.model import LanguageModel, widened
from editlib.spans import encode


@torch.no_grad()
def continuation(lm: LanguageModel, text: str, *, tokens: int = 8) -> str:
    """Greedy continuation of a text, at most `tokens` tokens, stopped at end-of-text."""
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"].to(lm.device)
    start = ids.shape[1]
    for _ in range(tokens):
        best = lm.model(ids).logits[0, -1].argmax()
        if best == lm.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, best[None, None]], dim=1)
    return str(lm.tokenizer.decode(ids[0, start:]))


@torch.no_grad()
def target_probability(lm: LanguageModel, request: EditRequest, target: str) -> float:
    """Probability of all tokens of `target` after the request's prompt, teacher forced."""
    row = encode(lm.tokenizer, request.prompt, request.subject, target=target)
    scores = widened(lm.model(torch.tensor([row.ids], device=lm.device)).logits[0]).log_softmax(-1)
    picked = [scores[i - 1, row.ids[i]] for i in range(row.target, len(row.ids))]
    return float(torch.stack(picked).sum().exp())
