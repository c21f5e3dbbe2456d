"""Prefix contexts: the short texts put before a request while a key or value is read. Stored data, never
resampled silently."""

import json
import logging
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor

from editlib.errors import EditlibError
from editlib.files import cache_folder, write_json
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import prompt_ids

log = logging.getLogger(__name__)

Flavour = Literal["yang-2024", "meng-2022"]
Source = Literal["held-out", "editing"]
OPENERS: dict[Flavour, tuple[str, ...]] = {  # what the released codes let the model continue
    "yang-2024": ("The", "Therefore", "Because", "I", "You"),  # both papers
    "meng-2022": ("",),  # ROME: from end-of-text alone
}
LENGTHS = (5, 10)  # tokens after the opener; ten contexts of each


def prefix_contexts(lm: LanguageModel, *, flavour: Flavour = "yang-2024") -> list[str]:
    """The prefix contexts in use, as templates with one `{}`, the empty one first.

    Read from the model folder's `prefixes.json`, else from the user's cache; sampled from the model with seed 0
    and stored there the first time a model needs them.
    """
    suffix = "" if flavour == "yang-2024" else f"-{flavour}"
    shipped = lm.folder / f"prefixes{suffix}.json" if lm.folder else None
    cached = cache_folder("prefixes") / f"{lm.fingerprint[:16]}{suffix}.json"
    return _stored(lm, shipped if shipped and shipped.is_file() else cached, seed=0, flavour=flavour)


def test_prefixes(lm: LanguageModel, source: Source, *, n: int, seed: int, flavour: Flavour = "yang-2024") -> list[str]:
    """Draw `n` different prefixes to test an edit behind, as templates with one `{}`.

    From `editing`, the contexts that edits are made with (so the released code of Fall of ROME), or from `held-out`,
    others of the same making: sampled from the unedited model with seed 1 and stored the first time. Raises
    `EditlibError` if there are fewer than `n`.
    """
    editing = prefix_contexts(lm, flavour=flavour)
    if source == "editing":
        pool = editing[1:]
    elif source == "held-out":
        path = cache_folder("prefixes") / f"{lm.fingerprint[:16]}-{flavour}-held-out.json"
        pool = [context for context in _stored(lm, path, seed=1, flavour=flavour) if context not in editing]
    else:
        raise EditlibError(f"prefix source {source!r} is unknown; use 'held-out' or 'editing'")
    if not 1 <= n <= len(pool):
        raise EditlibError(
            f"n={n} is out of range; there are {len(pool)} {source} prefixes, so choose 1 to {len(pool)}"
        )
    return Random(seed).sample(pool, n)


def _stored(lm: LanguageModel, path: Path, *, seed: int, flavour: Flavour) -> list[str]:
    """The contexts of a file, which is made first where it is missing."""
    if not path.is_file():
        lm.require_untouched("its prefixes")
        contexts = ["{}", *sample(lm, seed=seed, flavour=flavour)]
        write_json(path, {"model": lm.fingerprint, "seed": seed, "flavour": flavour, "contexts": contexts})
    return _read(path)


def _read(path: Path) -> list[str]:
    try:
        contexts: list[str] = json.loads(path.read_text(encoding="utf-8"))["contexts"]
    except (ValueError, KeyError, TypeError) as error:
        raise EditlibError(f"{path} must list templates with one {{}} each, the empty one first ({error!r})") from error
    bad = next((c for c in contexts if c.count("{}") != 1), None)
    if bad is not None or not contexts or contexts[0] != "{}":
        raise EditlibError(f"{path} must list templates with one {{}} each, the empty one first (found {bad!r})")
    return contexts


@torch.no_grad()
def sample(lm: LanguageModel, *, seed: int, top_k: int = 5, flavour: Flavour = "yang-2024") -> list[str]:
    """Twenty contexts `<opener> <tokens>. {}` sampled from the model with top-k, a function of model and seed."""
    generator = torch.Generator().manual_seed(seed)
    contexts: list[str] = []
    for length in LENGTHS:
        for opener in (o for o in OPENERS[flavour] for _ in range(10 // len(OPENERS[flavour]))):
            log.info("sampling prefix contexts, %d so far", len(contexts))
            ids = _start(lm, opener)
            for _ in range(length):
                top = lm.model(ids).logits[0, -1].float().topk(top_k)
                pick = torch.multinomial(top.values.softmax(-1).cpu(), 1, generator=generator)
                ids = torch.cat([ids, top.indices[pick.to(lm.device)][None]], dim=1)
            text = lm.tokenizer.decode(ids[0], skip_special_tokens=True)
            contexts.append(text.replace("{", " ").replace("}", " ") + ". {}")
    return contexts


def _start(lm: LanguageModel, opener: str) -> Tensor:
    """Ids of an opener, or of end-of-text alone.  # (1, tokens)"""
    ids = list(prompt_ids(lm.tokenizer, opener)) if opener else [lm.tokenizer.eos_token_id]
    return torch.tensor([ids], device=lm.device)
