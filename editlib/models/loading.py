"""Load a model and its tokenizer from a folder or the hub, or say in one line why not."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from editlib.errors import EditlibError, unknown
from editlib.models.gguf import dequantised
from editlib.models.language_model import LanguageModel, Layout
from editlib.models.names import DTYPES, beside, check_folder, gguf_file, gguf_sha256, hub_id, locate

BUFFERS = (".attn.bias", ".masked_bias", ".attention.bias", "inv_freq", "position_ids")  # older files hold constants


def load(
    name: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    revision: str | None = None,
    layout: Layout | str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a testbed twin (`testbed/anchored`), a packaged model (`smollm2-135m`), a local folder or GGUF file, or a
    hub id with a pinned `revision` (or `id@commit`).

    `layout` (also `blocks,down`) says where the memories are, where that cannot be found or should be elsewhere;
    `device` is `cpu`, `cuda`, `cuda:N`, or `auto` for the better that is there; not given, it is what EDITLIB_DEVICE
    says, or `cpu`. Only safetensors weights are read. Raises `EditlibError` for an unknown model, a hub id without a
    40-digit revision, a folder with a missing or truncated file, and weights that are quantised, not finite, or not
    those of the configuration.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    name, device = str(name), require_device(device)
    layout = Layout.of(layout) if isinstance(layout, str) else layout
    file = gguf_file(name)
    folder = dequantised(file, gguf_sha256(name, file)) if file else locate(name)
    if folder is None:
        source, pinned = hub_id(f"{name}@{revision}" if revision else name)
    elif revision:
        raise EditlibError(f"revision {revision!r} is for models of the hub, and {name} is a folder; leave it out")
    else:
        check_folder(folder)
        source, pinned = str(folder), None
    try:
        tokenizer, model, info = _read(source, dtype, revision=pinned, trust_remote_code=trust_remote_code)
        _check_weights(model, info)
    except Exception as error:  # a folder's content reaches all of transformers, and anything may come out
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EditlibError(f"model {name!r} cannot be loaded: {reason}") from error
    return LanguageModel(model.to(device), tokenizer, layout or Layout("", ""), name, beside(name))


def _read(source: str, dtype: str, **options: Any) -> tuple[Any, PreTrainedModel, dict[str, Any]]:
    """Tokenizer, model, and what transformers says about the weights."""
    config = AutoConfig.from_pretrained(source, **options)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = dict(quantised).get("quant_method", "by an unknown method")
        raise EditlibError(f"its weights are quantised ({method}), and edits need plain ones; load the model it is of")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (ImportError, ValueError) as error:  # such as a tokenizer.model alone, which other packages convert
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EditlibError(
            f"its tokenizer cannot be read ({reason}); save it as tokenizer.json where it can"
        ) from error
    loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, info = loader.from_pretrained(
        source, dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    return tokenizer, model, info


def _check_weights(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raise `EditlibError` unless the files' weights are those of the configuration, and finite."""
    wrong = [f"weight {key} is {list(got)}, by its config {list(by)}" for key, got, by in info["mismatched_keys"]]
    missing = [f"its files have no weight {key}" for key in info["missing_keys"]]
    extra = [f"its config has no place for weight {k}" for k in info["unexpected_keys"] if not k.endswith(BUFFERS)]
    nan = [f"weight {key} is not finite" for key, value in model.named_parameters() if not value.isfinite().all()]
    head = model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) and head is not None
    loose = tied and head.weight is not model.get_input_embeddings().weight
    two = ["its config ties the head to the embeddings, and its files have two that differ"] if loose else []
    faults = sorted(wrong) + sorted(missing) + sorted(extra) + two + nan
    if faults:  # transformers would fill in, drop or take these without a word
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise EditlibError(f"{faults[0]}{more}; copy its config and weights again")


def require_device(name: str | torch.device | None) -> str:
    """The device's name, `cuda` or `cpu` for `auto`, for None what EDITLIB_DEVICE says or `cpu`; raises `EditlibError`
    for one that is not here."""
    name = os.environ.get("EDITLIB_DEVICE", "cpu") if name is None else str(name)  # of a torch.device too
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise unknown("device", name, ("cpu", "cuda", "auto"))
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by what it was built with
        raise EditlibError(
            f"device {name!r} is not available: torch finds {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        ) from error
    return name
