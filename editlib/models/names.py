"""What a model can be called: a shipped twin, a folder, or a commit of the hub. Known without torch."""

import re
from difflib import get_close_matches
from pathlib import Path

from editlib.errors import EditlibError
from editlib.files import TESTBED

DTYPES = ("float32", "bfloat16", "float16", "float64")


def testbed_names() -> list[str]:
    """Names of the shipped twins."""
    return sorted(f"testbed/{path.parent.name}" for path in TESTBED.glob("*/model.safetensors"))


def locate(name: str) -> Path | None:
    """The folder of a testbed twin or of a local model, or None for anything else."""
    if name in testbed_names():
        return TESTBED / name.removeprefix("testbed/")
    return Path(name) if name and Path(name).is_dir() else None


def hub_id(name: str) -> tuple[str, str]:
    """Repository and commit of `id@commit`; raises `EditlibError` for anything else."""
    matched = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)@([0-9a-f]{40})", name)
    if matched is None:
        near = "".join(f"; did you mean {one}?" for one in get_close_matches(name, testbed_names(), n=1))
        raise EditlibError(
            f"model {name!r} is no testbed twin ({', '.join(testbed_names())}) and no local folder; "
            f"for a hub model give its 40-digit commit: revision= or id@commit{near}"
        )
    return matched[1], matched[2]
