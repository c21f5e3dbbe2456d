"""Model folders: whether their files are whole, and what tells their content. Known without torch."""

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from editlib.errors import EditlibError
from editlib.models.names import file_sha256, gguf_file, hub_id, locate

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")  # it needs one of them
INDEX = "model.safetensors.index.json"
UNREAD = (  # what says nothing about the model, what training left, and weights in forms that are not read
    ".*", "readme*", "license*", "*.md", "optimizer*", "scheduler*", "rng_state*", "trainer_state.json",
    "training_args.*", "events.out.*", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.ot",
    "*.gguf", "*.part", "*.writing",
)  # fmt: skip


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, those its index names if it has one."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / "model.safetensors"]
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / file for file in sorted(set(names))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EditlibError(f"{index} is truncated or damaged ({error!r}); copy it again") from error


def check_folder(folder: Path) -> None:
    """Raise `EditlibError` naming the first file of a model folder that is missing or cannot be read whole."""
    tokenizer = next((folder / file for file in TOKENIZERS if (folder / file).is_file()), folder / TOKENIZERS[0])
    for path in (folder / "config.json", tokenizer, *weight_files(folder)):
        if not path.is_file():
            raise EditlibError(f"{folder} has no {path.name}; {_instead(folder, path)}")
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, "np"):  # reads the header and compares the sizes it names with the file's
                    pass
        except (ValueError, SafetensorError) as error:
            raise EditlibError(f"{path} is truncated or damaged ({error}); copy it again") from error


def _instead(folder: Path, missing: Path) -> str:
    """What to do about a missing file."""
    if missing.suffix == ".safetensors":
        parts = sorted(folder.glob("model-*-of-*.safetensors"))
        if parts and not (folder / INDEX).is_file():
            return f"it has {parts[0].name}, but no {INDEX} that lists the parts; copy that too"
        if old := sorted(folder.glob("*.bin")):
            return (
                f"{old[0].name} is pickle, which is not read: load it once with transformers where you trust it, and "
                "save_pretrained() writes safetensors"
            )
    return "copy the whole model folder (config, tokenizer, safetensors)"


def fingerprint(name: str) -> str:
    """What a model's content is told by: sha256 over the files of a testbed twin or local folder, or the commit of a
    hub model given as `id@commit`; of a GGUF file (packaged or local) sha256 of the file.

    Every file counts that a run could depend on, by name and content: configuration, tokenizer, weights, prefix
    contexts, editors. Subfolders, notes, what training left and weights that are not read (`UNREAD`) do not.
    """
    if file := gguf_file(name):
        return file_sha256(file)
    folder = locate(name)
    if folder is None:
        return hub_id(name)[1]
    check_folder(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if not any(fnmatch(path.name.lower(), pattern) for pattern in UNREAD):
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
