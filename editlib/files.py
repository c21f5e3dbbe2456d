"""Where editlib keeps what it computed, and how it writes: aside first, then renamed."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

if TYPE_CHECKING:
    from torch import Tensor


def cache_folder(kind: str) -> Path:
    """The user's cache folder for one kind of file; `EDITLIB_CACHE` overrides its place."""
    root = os.environ.get("EDITLIB_CACHE")
    folder = (Path(root) if root else user_cache_path("editlib")) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A hidden place beside `path` to write a file to; it takes the path's place when the block ends well."""
    place = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield place
        os.replace(place, path)
    finally:
        place.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON without nan, aside and then renamed."""
    with aside(path) as place:
        place.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> Path:
    """Write a safetensors file, aside and then renamed."""
    from safetensors.torch import save_file

    with aside(path) as place:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, place, metadata=metadata)
    return path
