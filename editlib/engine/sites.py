"""Where a change of a model enters its passes, so that nothing below is run again."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from editlib.engine.passes import Passes, Start, Tokens
from editlib.models.language_model import LanguageModel, widened

Replace = dict[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Site:
    """Where a change enters: what block `below - 1` puts out, or the module `changed` of a block that is run again.

    The latter is for blocks that do more than add their MLP's output, such as those with a norm behind it.
    """

    below: int  # blocks skipped
    changed: str | None = None

    @property
    def above(self) -> int:
        """The first block that is changed by its input alone."""
        return self.below + (self.changed is not None)

    def kept(self, lm: LanguageModel) -> list[str]:
        """The module whose output a pass from here starts with; none where no block is skipped."""
        return [f"{lm.layout.blocks}.{self.below - 1}"] if self.below else []

    def enter(self, base: Tensor | None, change: Tensor) -> tuple[Start | None, Replace]:
        """How to start from kept outputs (rows, tokens, width) with a change of the first tokens (rows, n, width)."""

        def add(output: Tensor) -> Tensor:
            n = change.shape[1]
            return torch.cat([output[:, :n] + change.to(output.dtype), output[:, n:]], 1)

        if base is None:
            return None, {self.changed: add} if self.changed else {}
        if self.changed is None:
            return Start(self.below, add(base)), {}
        return Start(self.below, base), {self.changed: add}


def layer_of(lm: LanguageModel, name: str) -> int:
    """The layer that a block, or a module or weight in one, belongs to."""
    return int(name.removeprefix(f"{lm.layout.blocks}.").split(".")[0])


def run_below(passes: Passes, site: Site, tokens: Tokens, *, layer: int | None) -> tuple[Tensor | None, Tensor | None]:
    """What the blocks below a site make of tokens, and the keys of a layer; None for what is not there or asked for."""
    kept, down = site.kept(passes.lm), [] if layer is None else [passes.lm.layout.name(layer)]
    if not kept and not down:
        return None, None
    seen = passes.run(tokens, names=[*kept, *down], stop=True).seen
    return seen[kept[0]].output if kept else None, widened(seen[down[0]].input) if down else None


@torch.no_grad()
def site_of(passes: Passes, name: str) -> Site:
    """Where a change of the output of a block or a down-projection enters.

    Whether the latter is what its block puts out is found by making two changes and looking behind the block.
    """
    lm, tokens, layer = passes.lm, Tokens.of(passes.lm, [[0, 0]]), layer_of(passes.lm, name)
    block = f"{lm.layout.blocks}.{layer}"

    def behind(change: float) -> Tensor:
        run = passes.run(tokens, names=[block], changed={name: lambda output: output + change})
        return widened(run.seen[block].output)

    if name == block:
        return Site(layer + 1)
    plain = behind(0.0)
    size = float(plain.abs().max()) + 1
    adds = all(torch.allclose(behind(n * size) - plain, torch.tensor(n * size).to(plain), rtol=0.05) for n in (1, 3))
    return Site(layer + 1) if adds else Site(layer, name)
