"""LoRA adapters as GGUF files, in the form that llama.cpp loads beside the GGUF file of a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from editlib.editing.change import Change
from editlib.errors import EditlibError
from editlib.files import aside
from editlib.models.language_model import LanguageModel, named_weight
from editlib.models.names import gguf_file

SAID = "editlib.edit"  # the key that an edit's record is under


def write(file: Path, lm: LanguageModel, changes: Mapping[str, Change], record: Mapping[str, Any]) -> Path:
    """Changes in thin factors as float32 beside a model's GGUF file, whose own tensors stay quantised as they are.

    llama.cpp adds (α / r) B A with one α for all, so that factors of a lower rank have zeros behind. Raises
    `EditlibError` for a model from no GGUF file, one that keeps a changed weight in another order, and a file that
    exists or cannot be written.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    if file.exists():
        raise EditlibError(f"output {file} exists already; choose another")
    architecture, tensors = _read(lm, list(changes))
    most = max(change.tensors["L"].shape[1] for change in changes.values())
    with aside(file) as writing:
        writer = GGUFWriter(writing, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        writer.add_float32(Keys.Adapter.LORA_ALPHA, most)
        writer.add_string(SAID, json.dumps(record, ensure_ascii=False))
        for name, change in changes.items():
            left, right = (_wide(change.tensors[side], most) for side in "LR")
            writer.add_tensor(f"{tensors[name]}.lora_a", right.T.contiguous().numpy())
            writer.add_tensor(f"{tensors[name]}.lora_b", left.numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return file


def _wide(factor: Tensor, rank: int) -> Tensor:
    """A factor (d, r) in float32 with zeros behind, so that it has a rank."""
    return pad(factor.float().cpu(), (0, rank - factor.shape[1])).contiguous()


def _read(lm: LanguageModel, names: list[str]) -> tuple[str, dict[str, str]]:
    """The architecture of a model's GGUF file, and what that calls some of its weights."""
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
    from gguf.quants import dequantize

    base = gguf_file(lm.name)
    if base is None:
        raise EditlibError(
            f"{lm.label} was not read from a GGUF file; write an adapter for peft, which convert_lora_to_gguf.py of "
            "llama.cpp converts"
        )
    reader, gguf_names = GGUFReader(base), dict[str, str]()
    architecture = str(reader.fields["general.architecture"].contents())
    known = get_tensor_name_map({name: arch for arch, name in MODEL_ARCH_NAMES.items()}[architecture], lm.num_layers)
    for name in names:
        gguf_names[name] = str(known.get_name(name, try_suffixes=(".weight",)))
        tensor = next((tensor for tensor in reader.tensors if tensor.name == gguf_names[name]), None)
        plain = None if tensor is None else torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        weight = named_weight(lm, name)
        if plain is None or plain.shape != weight.shape or not torch.equal(plain.to(weight), weight):
            raise EditlibError(f"{base.name} does not keep {name} of {lm.label} as it is; merge the edit")
    return architecture, gguf_names
