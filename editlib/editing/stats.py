"""Second moments C = E[k kᵀ] of the keys of each layer, streamed in float64 and kept in self-describing files."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from editlib.cluster.connection import workers_for
from editlib.cluster.workers import Workers
from editlib.data.for_models import corpus as prose
from editlib.data.for_models import has_prose
from editlib.editing.summing import summed
from editlib.engine.samples import RULE as SAMPLING_RULE
from editlib.engine.samples import check_sampling, own_windows
from editlib.errors import EditlibError, unknown
from editlib.files import cache_folder, write_tensors
from editlib.models.language_model import LanguageModel
from editlib.text import is_text

log = logging.getLogger(__name__)

FirstPosition = Literal["keep", "drop"]
FIRST_POSITIONS: tuple[FirstPosition, ...] = get_args(FirstPosition)
WINDOW = 128  # tokens; every window starts at position 0, which large models treat unlike the others
TOKENS_PER_DIMENSION = 10  # enough for large models (Minimal Precomputation, ACL Findings 2025)
LEAST_TOKENS = 64_000  # on the testbed, ten a dimension made collapses three times as deep as a hundred


@dataclass(frozen=True, kw_only=True)
class MomentOptions:
    """How second moments are read: from how many `tokens` (ten a key dimension and at least 64,000 if not given), in
    windows of how many, and whether the first position of each window, whose key large models make unlike all others,
    is kept or dropped.
    """

    tokens: int | None = None
    window: int = WINDOW
    first_position: FirstPosition = "keep"

    def __post_init__(self) -> None:
        if self.first_position not in FIRST_POSITIONS:
            raise unknown("first_position", self.first_position, FIRST_POSITIONS)
        if self.window < 2 or (self.tokens is not None and self.tokens < 1):
            raise EditlibError(f"window {self.window} must be at least 2 and tokens {self.tokens} at least 1")


@dataclass(frozen=True)
class StatsHeader:
    """What a statistics file says of itself."""

    model: str  # fingerprint of the unedited model
    corpus: str  # sha256 of the token ids
    tokens: int  # of the windows, whether their first positions are kept or dropped
    window: int
    first_position: str = "keep"
    source: str = "corpus"  # or "own text", which the model wrote


@dataclass(frozen=True)
class Stats:
    """Second moments by layer, each (d_in, d_in) in float64, with their provenance."""

    header: StatsHeader
    moments: dict[int, Tensor]

    @property
    def tokens_per_dimension(self) -> float:
        """Tokens they are means of, for each of a key's entries."""
        return self.header.tokens / max(len(moment) for moment in self.moments.values())

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, aside and then renamed; raises `EditlibError` if it cannot be written."""
        tensors = {str(layer): moment for layer, moment in self.moments.items()}
        return write_tensors(Path(path), tensors, {"header": json.dumps(asdict(self.header))})

    def require(self, lm: LanguageModel, layer: int) -> Tensor:
        """The moment of one layer, refused with `EditlibError` if it was made for another model or lacks the layer."""
        if self.header.model != lm.fingerprint:
            raise EditlibError(
                f"these statistics were made for model {self.header.model[:12]}, not for {lm.name or 'this model'} "
                f"({lm.fingerprint[:12]}); compute them again"
            )
        if layer not in self.moments:
            raise EditlibError(
                f"these statistics have no layer {layer}, only {sorted(self.moments)}; compute them again"
            )
        return self.moments[layer]


def load(path: str | Path) -> Stats:
    """Read a file written by `Stats.save`; raises `EditlibError` if it is missing, damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            header = StatsHeader(**json.loads(file.metadata()["header"]))
            return Stats(header, {int(key): file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = "a folder" if Path(path).is_dir() else error
        raise EditlibError(f"{path} is no readable statistics file ({reason}); compute it again") from error


def corpus_windows(lm: LanguageModel, texts: Sequence[str], tokens: int, *, window: int = WINDOW) -> Tensor:
    """The first `tokens` tokens of the texts, end-of-text between them, cut into whole windows of `window` tokens, or
    of the model's context if that is shorter.  # (windows, tokens of a window)

    Raises `EditlibError` if the texts do not fill one window.
    """
    bad = texts if isinstance(texts, str) else next((text for text in texts if not is_text(text)), None)
    if bad is not None:
        said = f"the corpus is one string, {bad[:40]!r}" if bad is texts else f"{bad!r} in the corpus is no text"
        raise EditlibError(f"{said}; give a list of texts, as el.data.texts(NAME) does")
    end, row, width = lm.tokenizer.eos_token_id, list[int](), min(window, lm.max_length or window)
    for text in texts:
        row += [*lm.tokenizer(text, add_special_tokens=False)["input_ids"], *([] if end is None else [end])]
        if len(row) >= tokens:
            break
    count = min(len(row), tokens) // width
    if not count:
        found = f"the corpus has {len(row)} tokens" if len(row) < tokens else f"{tokens} tokens are too few"
        raise EditlibError(f"{found}; second moments need at least {width}")
    return torch.tensor(row[: count * width]).view(count, width)


def second_moments(
    lm: LanguageModel,
    windows: Tensor,
    *,
    layers: Sequence[int] | None = None,
    first_position: FirstPosition = "keep",
    source: str = "corpus",
    workers: Workers | None = None,
) -> Stats:
    """Mean outer product of the keys at every position of every window, or every one but the first, in one pass.

    With `workers` chunks of windows are theirs, and the result is the same. Source: ROME, equation 2 (C = E[k kᵀ], not
    centred).
    """
    wanted = range(lm.num_layers) if layers is None else layers
    first = int(first_position == "drop")
    sums, read = summed(lm, wanted, first, windows, workers), windows[:, first:].numel()
    header = StatsHeader(lm.fingerprint, _hash(windows), windows.numel(), windows.shape[1], first_position, source)
    return Stats(header, {layer: total / read for layer, total in sums.items()})


def _hash(windows: Tensor) -> str:
    return hashlib.sha256(windows.to(torch.int64).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Needed:
    """Second moments that can be had: what they are means of, and where those of each layer are kept."""

    lm: LanguageModel
    options: MomentOptions  # with the number of tokens filled in
    windows: Tensor | None  # of a corpus; None for text that the model writes itself
    paths: dict[int, Path]

    def read(self) -> Tensor:
        """The windows; text that the model writes itself is written now, where it is not kept."""
        if self.windows is not None:
            return self.windows
        return own_windows(self.lm, self.options.tokens or 0, window=self.options.window)

    def get(self, workers: Workers | None = None) -> Stats:
        """Read them; compute those whose files are missing, in one pass, by workers if there are any, and put them
        there.

        Raises `EditlibError` if the model is not as it was loaded where they must be computed, or a file is not what
        its name says.
        """
        first_position, windows = self.options.first_position, self.windows
        source = "own text" if windows is None else "corpus"
        missing = [layer for layer, path in self.paths.items() if not path.is_file()]
        if missing:
            self.lm.require_untouched("its second moments")
            windows = self.read()
            fresh = second_moments(
                self.lm, windows, layers=missing, first_position=first_position, source=source, workers=workers
            )
            for layer in missing:
                Stats(fresh.header, {layer: fresh.moments[layer]}).save(self.paths[layer])
        parts = {layer: load(path) for layer, path in self.paths.items()}
        known = next(iter(parts.values())).header
        corpus = known.corpus if windows is None else _hash(windows)
        tokens, window = (known.tokens, known.window) if windows is None else (windows.numel(), windows.shape[1])
        header = StatsHeader(self.lm.fingerprint, corpus, tokens, window, first_position, source)
        bad = next((self.paths[layer] for layer, part in parts.items() if part.header != header), None)
        if bad:
            raise EditlibError(f"statistics file {bad} was made from something else; remove it")
        return Stats(header, {layer: part.require(self.lm, layer) for layer, part in parts.items()})


def needed_moments(
    lm: LanguageModel,
    layers: Sequence[int],
    *,
    corpus: Sequence[str] | None = None,
    options: MomentOptions | None = None,
) -> Needed:
    """See without running the model that `second_moments_of` has what it needs; raises `EditlibError` as it does."""
    options = options or MomentOptions()
    width, window = max(lm.weight(layer).shape[1] for layer in layers), options.window
    least = TOKENS_PER_DIMENSION * width
    wanted = options.tokens or -(-max(least, LEAST_TOKENS) // window) * window
    windows = None
    if corpus is None and not has_prose(lm):
        check_sampling(lm)
        stem = f"{lm.fingerprint[:16]}-own-text-{SAMPLING_RULE}-{wanted}-{window}"
    else:
        windows = corpus_windows(lm, prose(lm, wanted) if corpus is None else corpus, wanted, window=window)
        count = windows.numel()
        if count < least and (not options.tokens or count + window <= wanted):
            raise EditlibError(
                f"the corpus has {count:,} tokens for second moments, {count / width:.1f} a key dimension, which makes "
                f"edits noise; give one of {least:,} or more, or ask for few by number (MomentOptions(tokens=), "
                "--moment-tokens)"
            )
        stem = f"{lm.fingerprint[:16]}-{_hash(windows)[:16]}"
    stem += "" if options.first_position == "keep" else "-less-first"
    paths = {layer: cache_folder("stats") / f"{stem}-{layer}.safetensors" for layer in layers}
    if not all(path.is_file() for path in paths.values()):
        lm.require_untouched("its second moments")
    return Needed(lm, replace(options, tokens=wanted), windows, paths)


def second_moments_of(
    lm: LanguageModel,
    layers: Sequence[int],
    *,
    corpus: Sequence[str] | None = None,
    tokens: int | None = None,
    window: int = WINDOW,
    first_position: FirstPosition = "keep",
    workers: Workers | str | None = None,
) -> Stats:
    """Second moments of some layers from the user's cache; what is missing is computed in one pass and put there.

    Options are those of `MomentOptions`; every `window` tokens are a text of their own. Without a corpus, testbed
    models have their own prose, and others write text themselves. `workers` are those of `sweep`. Raises
    `EditlibError` for a corpus that has less than ten tokens a key dimension unless `tokens` asks for so few, for a
    model that can write no text where it must, if the model is edited or hooked where they must be computed, or if a
    cached file is not what its name says.
    """
    options = MomentOptions(tokens=tokens, window=window, first_position=first_position)
    return needed_moments(lm, layers, corpus=corpus, options=options).get(workers_for(workers))


def second_moment(lm: LanguageModel, layer: int, **options: Any) -> Tensor:
    """C of one layer, shape (d_in, d_in), float64; options as for `second_moments_of`."""
    return second_moments_of(lm, [layer], **options).moments[layer]
