"""What work with a model will take on this machine: a unit of each kind, timed before the work begins."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from editlib.data.datasets import Case
from editlib.editing.method import Variant
from editlib.editing.methods import method_of
from editlib.editing.session import Session
from editlib.editing.stats import needed_moments, second_moments
from editlib.editing.summing import BATCH
from editlib.engine.passes import Passes
from editlib.engine.prefixes import continued
from editlib.engine.samples import ROWS, check_sampling, unwritten
from editlib.errors import EditlibError
from editlib.measuring.contrast import subject_kinds
from editlib.models.language_model import LanguageModel, widened
from editlib.models.tokens import prompt_ids
from editlib.models.trace import trace
from editlib.sweeps import setup
from editlib.sweeps.single import sweep

FEW, MANY, QUICK = 2, 16, 10.0  # edits made to be timed: many where few take less than so many seconds
TOKENS = 8  # written to be timed
WORDS = 32  # whose keys are compared


@dataclass(frozen=True)
class CostTrial:
    """Cases whose subject was found, of all; the layer that ROME edits; seconds of one edit with all that is measured
    of it, and of the second moments of that layer, 0 where they are kept already; the mean cosine there of the keys of
    different words at position 0, and the prefix contexts that are in use."""

    found: int
    cases: int
    layer: int
    edit: float
    moments: float
    alike: float
    contexts: str


def try_out(
    lm: LanguageModel,
    cases: Sequence[Case],
    texts: Sequence[str],
    *,
    layer: int | None = None,
    corpus: Sequence[str] | None = None,
) -> CostTrial:
    """See that ROME can edit a model with these cases and texts, and time what it takes.

    Raises `EditlibError` before it runs the model for what would fail later: an architecture that is not understood,
    no case whose subject is found, texts that are too long, second moments that cannot be had; and if an edit fails.
    """
    params = setup.hparams(lm, "rome", layer)
    Session(lm, corpus=corpus).check([Variant(method_of(params), params)], texts=texts)
    kinds = subject_kinds(lm, cases)
    able = [case for case in cases if case.case_id in kinds]
    if not able:
        raise EditlibError(f"{lm.label} finds the subject of none of the {len(cases)} cases in its tokens; give others")
    bare = setup.hparams(lm, "rome", layer, covariance=False)
    made = sweep(lm, able[:FEW], methods={"rome": bare}, texts=texts, progress=False)
    if made["error"].notna().any():
        raise EditlibError(f"{lm.label} cannot be edited: {made['error'].dropna().iloc[0]}")
    if made["seconds"].sum() < QUICK:  # what edits share is most of it
        made = sweep(lm, able[:MANY], methods={"rome": bare}, texts=texts, progress=False)
    seconds = float(made["seconds"].mean())
    reading = _seconds_to_moments(lm, params.layer, corpus)
    return CostTrial(
        len(able), len(cases), params.layer, seconds, reading, _alike(lm, params.layer, able), params.contexts
    )


@torch.no_grad()
def _alike(lm: LanguageModel, layer: int, cases: Sequence[Case]) -> float:
    """Mean cosine of the keys of the first words of prompts, each alone; nan of fewer than two words."""
    words = sorted({prompt_ids(lm.tokenizer, case.request.text)[0] for case in cases})[:WORDS]
    name = lm.layout.name(layer)
    with trace(lm.model, name, stop=True) as seen:
        lm.model(torch.tensor(words, device=lm.device)[:, None])
    keys = normalize(widened(seen[name].input)[:, 0].double(), dim=-1)
    pairs = (keys @ keys.T).triu(1)
    return float(pairs.sum() / (len(words) * (len(words) - 1) / 2)) if len(words) > 1 else math.nan


@torch.no_grad()
def _seconds_to_moments(lm: LanguageModel, layer: int, corpus: Sequence[str] | None) -> float:
    needed = needed_moments(lm, [layer], corpus=corpus)
    if all(path.is_file() for path in needed.paths.values()):
        return 0.0
    windows, writing = needed.windows, 0.0
    if windows is None:
        start, tokens, window = check_sampling(lm), needed.options.tokens or 0, needed.options.window
        width = min(window, lm.max_length or window)
        began = time.perf_counter()
        continued(Passes.of(lm), [[start]] * ROWS, 1 + TOKENS, None, torch.Generator().manual_seed(0))
        files = unwritten(lm, tokens, window=window)
        writing = files * width / TOKENS * (time.perf_counter() - began)
        windows = torch.full((tokens // width, width), start)
    began = time.perf_counter()
    second_moments(lm, windows[:BATCH], layers=[layer])
    return writing + len(windows) / min(BATCH, len(windows)) * (time.perf_counter() - began)
