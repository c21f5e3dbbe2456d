"""Where editlib keeps what it computed, and how it writes: aside first, then renamed."""

import json
import os
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path


def cache_folder(kind: str) -> Path:
    """The user's cache folder for one kind of file; `EDITLIB_CACHE` overrides its place."""
    root = os.environ.get("EDITLIB_CACHE")
    folder = (Path(root) if root else user_cache_path("editlib")) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, value: Any) -> None:
    """Write JSON without nan, aside and then renamed."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.writing")
    aside.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))
    os.replace(aside, path)
