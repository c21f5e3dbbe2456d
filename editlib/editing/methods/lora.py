"""LoRA: low-rank adapters trained on the requests, and merged (Hu et al. 2022), by the `peft` library.

    Δ = (α / r) B A

Adapters are beside the down-projections of some layers. Deviation: EasyEdit puts them beside queries and values of all
layers; its rank, α, learning rate and number of steps are the defaults here, its dropout is not taken over.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from editlib.data.request import EditRequest
from editlib.editing.change import Change, LowRank
from editlib.editing.edit import Edit
from editlib.editing.method import Method, State
from editlib.editing.methods.editor import target_scores
from editlib.editing.methods.ft import descent
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import encode, pad

if TYPE_CHECKING:
    from editlib.editing.session import Session


@dataclass(frozen=True, kw_only=True)
class LoraParams:
    """Hyper-parameters of LoRA."""

    layers: tuple[int, ...]
    rank: PositiveInt = 8
    alpha: PositiveFloat = 32.0
    steps: PositiveInt = 70
    learning_rate: PositiveFloat = 5e-3  # Adam
    stop_loss: float = 1e-2
    seed: int = 0  # of A; B begins at zero


class Lora(Method):
    """LoRA."""

    name, hparams, several = "lora", LoraParams, True
    paper, equation = "Hu et al. 2022, LoRA", "equation 3"

    def layers(self, params: LoraParams) -> tuple[int, ...]:
        """Those with an adapter."""
        return params.layers

    def check(self, lm: LanguageModel, params: LoraParams) -> dict[str, str]:
        """Raise `EditlibError` if peft is not installed."""
        if find_spec("peft") is None:
            raise EditlibError("lora needs the library peft; install it with: pip install 'editlib[peft]'")
        return {}

    def solve(
        self, session: "Session", requests: Sequence[EditRequest], params: LoraParams, state: State | None = None
    ) -> tuple[Edit, State | None]:
        """Δ of every layer, of rank `rank`; raises `EditlibError` if peft is missing or a target cannot be located."""
        lm = session.lm
        self.check(lm, params)
        rows = [encode(lm.tokenizer, r.prompt, r.subject, target=r.target_new, separator=r.separator) for r in requests]
        ids, mask = pad([row.ids for row in rows], lm.device)

        def loss() -> Tensor:
            nll, _ = target_scores(lm.model(input_ids=ids, attention_mask=lm.attended(mask)).logits, rows)
            return nll.mean()

        with _adapted(lm, params) as adapters:
            weights = [part for a, b, _ in adapters.values() for part in (a, b)]
            losses = list(descent(weights, loss, params))
            changes: dict[str, Change] = {
                f"{name}.weight": LowRank(scale * b.detach().clone(), a.detach().T.clone())
                for name, (a, b, scale) in adapters.items()
            }
        return session.edit(self, requests, params, changes, {"steps": len(losses), "losses": losses}), state


@contextmanager
def _adapted(lm: LanguageModel, params: LoraParams) -> Iterator[dict[str, tuple[Any, Any, float]]]:
    """A (r, d_in), B (d_out, r) and α / r of every adapter by its module's name; the modules are put back after it."""
    from peft import LoraConfig, inject_adapter_in_model

    modules = {lm.layout.name(layer): lm.down(layer) for layer in params.layers}
    transposed = any(isinstance(module, Conv1D) for module in modules.values())
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=list(modules), fan_in_fan_out=transposed)  # type: ignore[arg-type]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(params.seed)
            inject_adapter_in_model(config, lm.model)
        adapters = {name: lm.model.get_submodule(name) for name in modules}
        yield {
            name: (each.lora_A.default.float().weight, each.lora_B.default.float().weight, each.scaling["default"])
            for name, each in adapters.items()
        }
    finally:
        for name, module in modules.items():
            parent, _, child = name.rpartition(".")
            setattr(lm.model.get_submodule(parent), child, module)
        vars(lm.model).pop("peft_config", None)
