"""LoRA adapters in the form of the library peft, which programs that serve models read too: Δ = (α / r) B A, α = r."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from editlib.editing.change import Change
from editlib.errors import EditlibError
from editlib.files import write_json, write_tensors
from editlib.models.language_model import LanguageModel, is_linear, oriented

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FRONT, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # around a module's name


def check(lm: LanguageModel, changes: Mapping[str, Change]) -> None:
    """Raise `EditlibError` unless changes in thin factors are all of weights of linear maps."""
    modules = dict(lm.model.named_modules())
    for name, change in changes.items():
        module, shape = modules.get(name.removesuffix(".weight")), [len(change.tensors[side]) for side in "LR"]
        if module is None or not is_linear(module) or list(oriented(module).shape) != shape:
            raise EditlibError(
                f"{name} of {lm.label} is no linear map of the change's shape, and a LoRA adapter has no others; merge "
                "the edit"
            )


def write(folder: Path, lm: LanguageModel, changes: Mapping[str, Change]) -> None:
    """Configuration and factors of changes in thin factors, L and R, into a folder: B is L and A is Rᵀ."""
    factors = {name.removesuffix(".weight"): change.tensors for name, change in changes.items()}
    ranks = {module: both["L"].shape[1] for module, both in factors.items()}
    most, (source, _, commit) = max(ranks.values()), lm.name.partition("@")
    fewer = {module: rank for module, rank in ranks.items() if rank < most}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": source, "revision": commit or None,
        "inference_mode": True, "target_modules": sorted(ranks), "r": most, "lora_alpha": most, "rank_pattern": fewer,
        "alpha_pattern": fewer, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": any(isinstance(lm.model.get_submodule(module), Conv1D) for module in ranks),
    }  # fmt: skip
    parts = {f"{FRONT}{module}{A}": both["R"].T for module, both in factors.items()}
    parts |= {f"{FRONT}{module}{B}": both["L"].clone() for module, both in factors.items()}  # some have one in common
    write_tensors(folder / WEIGHTS, parts, {"format": "pt"})
    write_json(folder / CONFIG, config)


def read(folder: Path) -> dict[str, Tensor]:
    """The factors that `write` wrote, named as in the file of a saved edit."""
    kept = {name.removeprefix(FRONT): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    into = {f"{name.removesuffix(A)}.weight|R": tensor.T for name, tensor in kept.items() if name.endswith(A)}
    return into | {f"{name.removesuffix(B)}.weight|L": tensor for name, tensor in kept.items() if name.endswith(B)}
