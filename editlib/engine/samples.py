"""Text that a model writes itself, in windows: what second moments are read from where there is no corpus."""

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from editlib.engine.passes import Passes
from editlib.engine.prefixes import continued
from editlib.errors import EditlibError
from editlib.files import cache_folder, write_tensors
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import text_start

log = logging.getLogger(__name__)

ROWS = 64  # windows sampled side by side and kept in one file: its number is the seed
SHIPPED = "own-text.safetensors"  # in a model's folder, so that all machines read the same
RULE = 1  # how windows are sampled; another rule is another file


def check_sampling(lm: LanguageModel) -> int:
    """The token that a text begins with; raises `EditlibError` for a model that cannot write text."""
    lm.require_causal()
    start = text_start(lm.tokenizer)
    if start is None:
        raise EditlibError(
            f"no corpus for the second moments of {lm.label}, whose tokenizer has no token that begins a text, so it "
            "cannot write one itself; give one (corpus=, --corpus FILE) or leave C out (covariance=False, "
            "--no-covariance)"
        )
    return start


def unwritten(lm: LanguageModel, tokens: int, *, window: int) -> int:
    """How many files of `ROWS` windows each `own_windows` would have to sample."""
    width = min(window, lm.max_length or window)
    count = max(1, tokens // width)
    if _shipped(lm, count, width) is not None:
        return 0
    return sum(not _place(lm, number, width).is_file() for number in range(-(-count // ROWS)))


def own_windows(lm: LanguageModel, tokens: int, *, window: int) -> Tensor:
    """The first `tokens` tokens that a model writes, in whole windows of at most its context.  # (windows, width)

    Every window begins with the token that begins a text and goes on with tokens drawn from all the model's
    probabilities, past any end of text. They are a function of the model and the width alone: read from
    the model's folder where they were shipped, else sampled once and kept in the user's cache. Raises `EditlibError` as
    `check_sampling` does, and if the model is edited where they must be sampled.
    """
    start = check_sampling(lm)
    width = min(window, lm.max_length or window)
    count = max(1, tokens // width)
    if (shipped := _shipped(lm, count, width)) is not None:
        return shipped
    numbers = range(-(-count // ROWS))
    return torch.cat([_file_of_windows(lm, start, number, width, len(numbers)) for number in numbers])[:count]


def _shipped(lm: LanguageModel, count: int, width: int) -> Tensor | None:
    """So many windows of a width from a model's folder; None if it does not have them."""
    path = lm.folder / SHIPPED if lm.folder else None
    windows = load_file(path)["windows"].long() if path and path.is_file() else torch.empty(0, 0)
    return windows[:count] if windows.shape[1] == width and len(windows) >= count else None


def _place(lm: LanguageModel, number: int, width: int) -> Path:
    return cache_folder("samples") / f"{lm.fingerprint[:16]}-{width}-rule-{RULE}-{number:04}.safetensors"


def _file_of_windows(lm: LanguageModel, start: int, number: int, width: int, files: int) -> Tensor:
    path = _place(lm, number, width)
    if not path.is_file():
        lm.require_untouched("text of its own")
        log.info("no corpus: the model writes its own, %d of %d windows done", number * ROWS, files * ROWS)
        with torch.no_grad():
            written = continued(Passes.of(lm), [[start]] * ROWS, width, None, torch.Generator().manual_seed(number))
        said = {"model": lm.fingerprint, "rule": str(RULE), "seed": str(number)}
        write_tensors(path, {"windows": torch.tensor(written)}, said)
    return load_file(path)["windows"]
