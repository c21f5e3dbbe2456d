"""The least arithmetic an edit takes: operations of an exact method that does nothing twice."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from editlib.data.request import EditRequest
from editlib.engine.values import encode_contexts
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode


@dataclass(frozen=True)
class Shape:
    """A model as far as arithmetic goes; a multiplication and an addition are two operations."""

    blocks: int
    linear: int  # weights in the linear maps of a block
    mlp: int  # those of its MLP
    attention: int  # width of all heads of a block together
    head: int  # weights of the head

    @classmethod
    def of(cls, lm: LanguageModel) -> "Shape":
        """Read off a model."""
        block: Any = lm.model.get_submodule(lm.layout.blocks)[0]
        linear = _weights(m for m in block.modules() if isinstance(m, nn.Linear | Conv1D))
        mlp = _weights(lm.mlp(0).values())
        config = lm.model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        head: Any = lm.model.get_output_embeddings()
        return cls(lm.num_layers, linear, mlp, width * config.num_attention_heads, head.weight.numel())

    def run(self, blocks: int, first: int, end: int, *, scored: int | None = None) -> int:
        """Blocks on the tokens `first` to `end` - 1 of a text, each of which looks at itself and all before it.

        If they are the model's last ones and not all tokens are `scored`, the MLP of the last runs on those only.
        """
        tokens = end - first
        block = 2 * self.linear * tokens + 4 * self.attention * tokens * (first + end + 1) // 2
        spared = 0 if scored is None or not blocks else tokens - scored
        return blocks * block - 2 * self.mlp * spared


def _weights(modules: Iterable[nn.Module]) -> int:
    return sum(module.get_parameter("weight").numel() for module in modules)


@dataclass(frozen=True)
class SearchText:
    """A text of a search: tokens known from its prefix, index of the subject's last, tokens run, positions scored."""

    known: int
    last: int
    end: int
    scored: int


def spans(lm: LanguageModel, request: EditRequest, contexts: Sequence[str]) -> list[SearchText]:
    """The texts of a request's search: behind every context, then "{subject} is a"."""
    rows = encode_contexts(lm, request, contexts, target=request.target_new)
    drift = encode(lm.tokenizer, "{} is a", request.subject)
    known = [_common(row.ids[: row.last], ids) for row, ids in zip(rows, beginnings(lm, contexts), strict=True)]
    in_contexts = [
        SearchText(n, row.last, len(row.ids) - 1, len(row.ids) - row.target) for n, row in zip(known, rows, strict=True)
    ]
    return [*in_contexts, SearchText(0, drift.last, len(drift.ids), 1)]


def beginnings(lm: LanguageModel, contexts: Sequence[str]) -> list[list[int]]:
    """Token ids of what stands before the `{}` of each context."""
    return [lm.tokenizer(context[: context.index("{}")].rstrip())["input_ids"] for context in contexts]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def floor(
    shape: Shape,
    layer: int,
    *,
    searches: Sequence[Sequence[SearchText]],
    contexts: Sequence[int],
    texts: Sequence[int],
    steps: int,
) -> dict[str, float]:
    """Operations per edit, by stage, of an exact method that shares what edits have in common.

    It runs whole blocks, but the MLP of the last one only where the head reads it. Shared among edits: all blocks on
    the `contexts` (their lengths), blocks up to the edited one on the `texts`. A search: all blocks on what stands
    between its prefix and the subject's last token, blocks up to the edited one from there on; then `steps` forward and
    one fewer backward passes, which cost the same since no weight has a gradient, of the blocks above from the
    subject's last token on, and of the head where it is read. Perplexity: the blocks above and the head at every token
    but the last of each text. Norms, activations and the weight's change are not counted.
    """
    above, below, run = shape.blocks - layer - 1, layer + 1, shape.run
    shared = sum(run(shape.blocks, 0, n, scored=0) for n in contexts) + sum(run(below, 0, n - 1) for n in texts)
    values = 0
    for span in (span for search in searches for span in search):
        values += run(shape.blocks, span.known, span.last, scored=0) + run(below, span.last, span.end)
        step = run(above, span.last, span.end, scored=span.scored) + 2 * shape.head * span.scored
        values += (2 * steps - 1) * step
    scored = sum(run(above, 0, n - 1) + 2 * shape.head * (n - 1) for n in texts)
    return {"shared": shared / len(searches), "values": values / len(searches), "perplexity": scored}
