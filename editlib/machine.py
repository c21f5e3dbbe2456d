"""What this machine is, as far as a run should tell, and text without what it should not tell."""

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil


def environment(lock: Path) -> dict[str, Any]:
    """Python, platform, every installed distribution with its version, and the sha256 of the lock file."""
    packages = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "packages": dict(sorted(packages.items(), key=lambda pair: pair[0].lower())),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, NVIDIA GPUs with their driver, and threads asked for (null: as many as cores)."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "threads": int(threads) if threads.isdecimal() else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    matched = re.search(r"^model name\s*: (.+)$", info.read_text("utf-8"), re.MULTILINE) if info.is_file() else None
    return matched[1].strip() if matched else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True)
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def git_state(root: Path) -> dict[str, Any]:
    """The commit, and whether any file outside book/runs differs from it; None where git does not know."""
    status = _git(root, "status", "--porcelain", "--", ".", ":(exclude)book/runs")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def without_paths(value: Any, *, folders: Iterable[Path] = (), called: Mapping[str, str] | None = None) -> Any:
    """A JSON value without this machine's paths: `folders` become `.`, home `~`, Python's own `<python>`.

    `called` has names for further paths.
    """
    names = {tempfile.gettempdir(): "<tmp>", str(Path.home()): "~"}
    names |= {sys.base_prefix: "<python>", sys.prefix: "<python>"}
    names |= {str(path): "." for folder in folders for path in (folder, folder.resolve())}
    names |= called or {}
    paths = sorted((p for p in names if len(Path(p).parts) > 1), key=len, reverse=True)  # longest match wins
    pattern = re.compile(rf"(?<![\w.~-])({'|'.join(map(re.escape, paths))})(?![\w-])")
    return _map_text(value, lambda text: pattern.sub(lambda matched: names[matched[1]], text))


def _map_text(value: Any, change: Callable[[str], str]) -> Any:
    """Change every string of a JSON value but those of images."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(k): v if k.startswith("image/") else _map_text(v, change) for k, v in value.items()}
    return [_map_text(item, change) for item in value] if isinstance(value, list | tuple) else value
