"""Text that a model writes itself, in windows: what second moments are read from where there is no corpus."""

import logging

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
    shipped = lm.folder / SHIPPED if lm.folder else None
    if shipped and shipped.is_file():
        windows = load_file(shipped)["windows"].long()
        if windows.shape[1] == width and len(windows) >= count:
            return windows[:count]
    numbers = range(-(-count // ROWS))
    return torch.cat([_file_of_windows(lm, start, number, width, len(numbers)) for number in numbers])[:count]


def _file_of_windows(lm: LanguageModel, start: int, number: int, width: int, files: int) -> Tensor:
    path = cache_folder("samples") / f"{lm.fingerprint[:16]}-{width}-rule-{RULE}-{number:04}.safetensors"
    if not path.is_file():
        lm.require_untouched("text of its own")
        log.info("no corpus: the model writes its own, %d of %d windows done", number * ROWS, files * ROWS)
        with torch.no_grad():
            written = continued(Passes.of(lm), [[start]] * ROWS, width, None, torch.Generator().manual_seed(number))
        said = {"model": lm.fingerprint, "rule": str(RULE), "seed": str(number)}
        write_tensors(path, {"windows": torch.tensor(written)}, said)
    return load_file(path)["windows"]
