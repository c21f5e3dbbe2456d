"""Models in one GGUF file: dequantised once into the user's cache, and read from there like any model folder."""

import json
from pathlib import Path

from editlib.errors import EditlibError
from editlib.files import cache_folder, new_folder

KEPT = 16  # hex digits of the file's hash in its folder's name


def dequantised(file: Path, sha256: str) -> Path:
    """The model folder (float32 safetensors, tokenizer, configuration) made from a GGUF file of that sha256, made now
    if it is not there.

    It is written aside and then renamed, so that two processes at once are safe. Raises `EditlibError` if the file is
    of a family that transformers does not read from GGUF, cannot be read, or the folder cannot be written.
    """
    folder = cache_folder("models") / f"{file.stem}-{sha256[:KEPT]}"
    if not folder.is_dir():
        try:
            with new_folder(folder) as writing:
                _convert(file, writing)
                source = {"file": file.name, "sha256": sha256, "dtype": "float32"}
                (writing / "source.json").write_text(json.dumps(source, indent=1), "utf-8")
        except EditlibError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from editlib.models.saving import reason, write_model

    try:
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # whatever is in the file reaches all of transformers
        raise EditlibError(
            f"{file} cannot be read as GGUF: {reason(error)}; give a model folder with safetensors"
        ) from error
    model.hf_quantizer = None  # the weights are plain now, and saved as such
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    write_model(model, tokenizer, folder)
