"""Prefix contexts: the short texts put before a request while a key or value is read. Stored data, never
resampled silently."""

import json
from pathlib import Path

import torch

from editlib.errors import EditlibError
from editlib.model import LanguageModel
from editlib.store import cache_folder, write_json

OPENERS = ("The", "Therefore", "Because", "I", "You")  # as in the released code of both papers
LENGTHS = (5, 10)  # tokens after the opener; two samples of each opener and length give 20


def prefix_contexts(lm: LanguageModel) -> list[str]:
    """The prefix contexts in use, as templates with one `{}`, the empty one first.

    Read from the model folder's `prefixes.json`, else from the user's cache; sampled from the model with seed 0
    and stored there the first time a model needs them.
    """
    shipped = lm.folder / "prefixes.json" if lm.folder else None
    path = shipped if shipped and shipped.is_file() else cache_folder("prefixes") / f"{lm.fingerprint[:16]}.json"
    if not path.is_file():
        write_json(path, {"model": lm.fingerprint, "seed": 0, "contexts": ["{}", *sample(lm, seed=0)]})
    return _read(path)


def _read(path: Path) -> list[str]:
    try:
        contexts: list[str] = json.loads(path.read_text())["contexts"]
    except (ValueError, KeyError, TypeError) as error:
        raise EditlibError(f"{path} must list templates with one {{}} each, the empty one first ({error!r})") from error
    bad = next((c for c in contexts if c.count("{}") != 1), None)
    if bad is not None or not contexts or contexts[0] != "{}":
        raise EditlibError(f"{path} must list templates with one {{}} each, the empty one first (found {bad!r})")
    return contexts


@torch.no_grad()
def sample(lm: LanguageModel, *, seed: int, top_k: int = 5) -> list[str]:
    """Twenty contexts `<opener> <tokens>. {}` sampled from the model with top-k, a function of model and seed."""
    generator = torch.Generator().manual_seed(seed)
    contexts = []
    for length in LENGTHS:
        for opener in (o for o in OPENERS for _ in range(2)):
            ids = lm.tokenizer(opener, return_tensors="pt")["input_ids"].to(lm.device)
            for _ in range(length):
                top = lm.model(ids).logits[0, -1].float().topk(top_k)
                pick = torch.multinomial(top.values.softmax(-1).cpu(), 1, generator=generator)
                ids = torch.cat([ids, top.indices[pick.to(lm.device)][None]], dim=1)
            text = lm.tokenizer.decode(ids[0], skip_special_tokens=True)
            contexts.append(text.replace("{", " ").replace("}", " ") + ". {}")
    return contexts
