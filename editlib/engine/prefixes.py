"""Prefix contexts: the short texts put before a request while a key or value is read. Stored data, never
resampled silently."""

import json
import logging
import re
import unicodedata
from pathlib import Path
from random import Random
from typing import Literal, get_args

import torch

from editlib.engine.passes import Passes, Tokens
from editlib.errors import EditlibError
from editlib.files import cache_folder, write_json
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import prompt_ids, text_start

log = logging.getLogger(__name__)

Flavour = Literal["yang-2024", "meng-2022", "text-start"]
Source = Literal["held-out", "editing"]
OPENERS: dict[Flavour, tuple[str, ...]] = {  # what the released codes let the model continue
    "yang-2024": ("The", "Therefore", "Because", "I", "You"),  # both papers
    "meng-2022": ("",),  # ROME: from end-of-text alone
}
OPENERS["text-start"] = OPENERS["yang-2024"]  # behind the token that begins a text: position 0 may not tell its word
LENGTHS = (5, 10)  # tokens with the opener, as in the released codes; ten contexts of each
SAMPLED = 10 * len(LENGTHS)
RULE = 2  # how contexts are sampled: 1 added as many tokens to the opener, and kept line breaks and ligatures


def prefix_contexts(lm: LanguageModel, *, flavour: Flavour = "yang-2024") -> list[str]:
    """The prefix contexts in use, as templates with one `{}`, the empty one first.

    Read from the model folder's `prefixes.json`, else from the user's cache; sampled from the model with seed 0
    and stored there the first time a model needs them.
    """
    return _stored(lm, _place(lm, flavour), seed=0, flavour=flavour)


def are_stored(lm: LanguageModel, flavour: Flavour) -> bool:
    """Whether the prefix contexts in use can be had without running the model."""
    return _place(lm, flavour).is_file()


def _place(lm: LanguageModel, flavour: Flavour) -> Path:
    suffix = "" if flavour == "yang-2024" else f"-{flavour}"
    shipped = lm.folder / f"prefixes{suffix}.json" if lm.folder else None
    return shipped if shipped and shipped.is_file() else _cached(lm, flavour, "editing")


def test_prefixes(lm: LanguageModel, source: Source, *, n: int, seed: int, flavour: Flavour = "yang-2024") -> list[str]:
    """Draw `n` different prefixes to test an edit behind, as templates with one `{}`.

    From `editing`, the contexts that edits are made with (so the released code of Fall of ROME), or from `held-out`,
    others of the same making: sampled from the unedited model with seed 1 and stored the first time. Raises
    `EditlibError` if there are fewer than `n`.
    """
    if source not in get_args(Source):
        raise EditlibError(f"prefix source {source!r} is unknown; use 'held-out' or 'editing'")

    def require(most: int) -> None:
        if not 1 <= n <= most:
            raise EditlibError(f"n={n} is out of range; there are {most} {source} prefixes, so choose 1 to {most}")

    if source == "held-out" or not are_stored(lm, flavour):
        require(SAMPLED)  # told before any is sampled
    editing = prefix_contexts(lm, flavour=flavour)
    if source == "editing":
        pool = editing[1:]
    else:
        others = _stored(lm, _cached(lm, flavour, "held-out"), seed=1, flavour=flavour)
        pool = [context for context in others if context not in editing]
    require(len(pool))
    return Random(seed).sample(pool, n)


def _cached(lm: LanguageModel, flavour: Flavour, source: Source) -> Path:
    return cache_folder("prefixes") / f"{lm.fingerprint[:16]}-{flavour}-{source}-rule-{RULE}.json"


def _stored(lm: LanguageModel, path: Path, *, seed: int, flavour: Flavour) -> list[str]:
    """The contexts of a file, which is made first where it is missing."""
    if not path.is_file():
        lm.require_untouched("its prefixes")
        contexts = ["{}", *sample(lm, seed=seed, flavour=flavour)]
        said = {"model": lm.fingerprint, "rule": RULE, "seed": seed, "flavour": flavour, "contexts": contexts}
        write_json(path, said)
    wanted = f"{path} must list templates with one {{}} each, the empty one first"
    try:
        found: list[str] = json.loads(path.read_text(encoding="utf-8"))["contexts"]
    except (ValueError, KeyError, TypeError) as error:
        raise EditlibError(f"{wanted} ({error!r})") from error
    bad = next((context for context in found if context.count("{}") != 1), None)
    if bad is not None or not found or found[0] != "{}":
        raise EditlibError(f"{wanted} (found {bad!r})")
    return found


@torch.no_grad()
def sample(lm: LanguageModel, *, seed: int, top_k: int = 5, flavour: Flavour = "yang-2024") -> list[str]:
    """Twenty contexts `<opener> <tokens>. {}` sampled from the model with top-k, a function of model and seed.

    Ten of each length are sampled side by side. As in the released codes, a length counts the opener and what the
    tokenizer puts before it (but not the token that begins a text, in `text-start`), texts are in normal form NFKD, an
    empty line becomes a space and braces are left out. Raises `EditlibError` for a model that cannot continue text, or
    has no end-of-text token to continue.
    """
    lm.require_causal()
    begun = {"meng-2022": lm.tokenizer.eos_token_id, "text-start": text_start(lm.tokenizer)}
    if flavour in begun and begun[flavour] is None:
        raise EditlibError(f"the tokenizer of {lm.label} has no end-of-text token, which {flavour} prefixes continue")
    before, uncounted = [begun[flavour]] if flavour in begun else [], int(flavour == "text-start")
    generator, passes, texts = torch.Generator().manual_seed(seed), Passes.of(lm), list[str]()
    openers = [opener for opener in OPENERS[flavour] for _ in range(10 // len(OPENERS[flavour]))]
    for length in LENGTHS:
        log.info("sampling prefix contexts of %d tokens", length)
        rows = [[*before, *prompt_ids(lm.tokenizer, opener)] if opener else before for opener in openers]
        for row in continued(passes, rows, length + uncounted, top_k, generator):
            text = unicodedata.normalize("NFKD", lm.tokenizer.decode(row, skip_special_tokens=True))
            texts.append(re.sub("[{}]", "", text.replace("\n\n", " ")) + ". {}")
    return texts


def continued(
    passes: Passes, rows: list[list[int]], length: int, top_k: int | None, generator: torch.Generator
) -> list[list[int]]:
    """Rows of ids with sampled ones behind them, `length` in all where they are not as long already.

    Each is drawn from the `top_k` likeliest, or from all.
    """
    device, starts = passes.lm.device, [len(row) for row in rows]
    tokens, past = Tokens.of(passes.lm, rows), passes.nothing(len(rows))
    while min(map(len, rows)) < length:
        at = torch.arange(len(rows), device=device), tokens.mask.sum(1) - 1
        run = passes.run(tokens, past, at=at)
        logits = run.logits.float()
        if logits.isnan().any():
            raise EditlibError(
                f"{passes.lm.label} gives nan for what comes next; its weights are damaged, get it again"
            )
        values, indices = logits.topk(top_k) if top_k else (logits, None)
        new = torch.multinomial(values.softmax(-1).cpu(), 1, generator=generator).to(device)
        new = new if indices is None else indices.gather(1, new)
        rows = [[*row, *ids] for row, ids in zip(rows, new.tolist(), strict=True)]
        if past.past_key_values:
            tokens, past = Tokens(new, torch.ones_like(new)), past.with_new(run.new)
        else:
            tokens = Tokens.of(passes.lm, rows)
    return [row[: max(length, start)] for row, start in zip(rows, starts, strict=True)]
