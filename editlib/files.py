"""Where editlib keeps what it computed, and how it writes: aside first, then renamed; one writer a folder."""

import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from editlib.errors import EditlibError

if TYPE_CHECKING:
    from torch import Tensor

TESTBED = Path(__file__).parent / "testbed"  # the shipped models, cases and texts
LOCK = ".lock"  # in a folder that somebody writes to; who it is stands in it
OLD = 24 * 3600  # seconds after which something half-written is nobody's any more


def cache_folder(kind: str) -> Path:
    """The user's cache folder for one kind of file; `EDITLIB_CACHE` overrides its place.

    What killed processes left there more than a day ago is removed: one layer's second moments can take 2 GB. Raises
    `EditlibError` if it cannot be made.
    """
    root = os.environ.get("EDITLIB_CACHE")
    folder = (Path(root) if root else user_cache_path("editlib")) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cache folder {folder} cannot be made: {error.strerror}"
        raise EditlibError(f"{reason}; set EDITLIB_CACHE to a folder that can be written") from error
    for leftover in folder.glob(".*.writing"):
        with suppress(OSError):  # somebody else may be faster
            if leftover.stat().st_mtime < time.time() - OLD:
                leftover.unlink()
    return folder


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A hidden place beside `path` to write a file to; it takes the path's place when the block ends well.

    Its name is nobody else's, whatever thread or machine writes the same file. Raises `EditlibError` naming `path` if
    it cannot be written.
    """
    writing = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        writing.touch()
        mode = writing.stat().st_mode
        yield writing
        writing.chmod(mode)  # that of any new file; safetensors are written for their owner alone
        os.replace(writing, path)
    except (EditlibError, OSError) as error:
        raise _unwritable(path, writing, error) from error
    finally:
        with suppress(OSError):
            writing.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` to fill; it becomes `path` when the block ends well, and is gone otherwise.

    Raises `EditlibError` if `path` exists, or cannot be written.
    """
    if path.exists():
        raise EditlibError(f"output folder {path} exists already; choose another")
    writing = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        writing.mkdir(parents=True)
        yield writing
        os.rename(writing, path)
    except (EditlibError, OSError) as error:
        raise _unwritable(path, writing, error) from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _unwritable(path: Path, writing: Path, error: EditlibError | OSError) -> EditlibError:
    """What a failure to write says: the file by the name it was to have, and what to do about it."""
    if isinstance(error, EditlibError):
        return EditlibError(str(error).replace(str(writing), str(path)))
    reason = error.strerror or " ".join(str(error).split())
    return EditlibError(f"{path} cannot be written: {reason}; free some space there, or choose another place")


def write_json(path: Path, value: Any) -> None:
    """Write JSON without nan, aside and then renamed."""
    with aside(path) as writing:
        writing.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False), "utf-8")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str]) -> Path:
    """Write a safetensors file, aside and then renamed."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with aside(path) as writing:
        try:
            save_file(whole, writing, metadata=metadata)
        except SafetensorError as error:  # how this library tells of a full disk
            raise OSError(str(error)) from error
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep everybody else from writing to a folder inside the block; the system gives it free if the process dies.

    Raises `EditlibError` naming the process that has it, if one does.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except (Timeout, RuntimeError) as error:  # another process has it, or this one
        holder = path.read_text("utf-8") if path.is_file() else ""
        raise EditlibError(
            f"output folder {folder} is being written by {holder or 'another process'}; wait for it, or choose another"
        ) from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
