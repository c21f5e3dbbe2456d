"""Nothing in the site or in runs tells of the machine: no home, host, user, checkout or environment."""

import getpass
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from books import ROOT

SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|COOKIE|AUTH)", re.I)
TEXTS = {".html", ".json", ".ipynb", ".js", ".mjs", ".bib", ".css", ".svg", ".txt", ".xml"}
COMMON = {"root", "user", "runner", "admin", "localhost", "ubuntu"}  # say nothing about anybody


def private(environment: Mapping[str, str], home: Path, host: str, user: str, root: Path) -> set[str]:
    """Texts that would give this machine away."""
    own = {f"{home}/" if home != Path("/") else "", str(root), *({host, user} - COMMON)}
    told = {
        value for name, value in environment.items() if len(value) > 8 and (SECRET.search(name) or value[0] in "/~")
    }
    parts = {part for value in told for part in value.split(os.pathsep) if len(part) > 8}
    return {text for text in own | parts if len(text) > 2} - system_folders()


def system_folders() -> set[str]:
    """Where every machine has its programs; saying so tells nothing."""
    return {f"{place}{part}" for place in ("/usr", "/usr/local", "") for part in ("/bin", "/sbin", "/lib")} | {
        "/bin/bash"
    }


def leaks(files: Iterable[Path], texts: Iterable[str]) -> Iterator[str]:
    """`file: text` for each private text in a file, also as JSON and HTML write it; and any home folder."""
    known = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w/.-])(?:{known})(?![\w-])|(?<![\w.])/(?:home|Users)/\w+|(?<![\w.~-])/root/")
    for path in files:
        found = pattern.search(path.read_text("utf-8", errors="replace"))
        if found:
            yield f"{path}: {found[0]}"


def here() -> set[str]:
    return private(os.environ, Path.home(), socket.gethostname(), getpass.getuser(), ROOT)


def texts_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in TEXTS and path.is_file())


def test_site_tells_nothing_of_this_machine(site: Path) -> None:
    assert list(leaks(texts_of(site), here())) == []


def test_runs_tell_nothing_of_this_machine(site: Path) -> None:
    runs = [path for path in texts_of(ROOT / "book/runs") if "local-" not in str(path)]
    assert runs and list(leaks(runs, here())) == []


@pytest.mark.parametrize(
    "text",
    [
        "/root/notes",
        "see /home/ada/x",
        '"/Users/ada"',
        "on darkstar.",
        "by ada,",
        "/srv/clone/book",
        "s3cret-token-value",
    ],
)
def test_search_finds_what_is_planted(tmp_path: Path, text: str) -> None:
    environment = {"API_TOKEN": "s3cret-token-value", "PATH": "/usr/bin:/bin", "LANG": "en_GB.UTF-8"}
    texts = private(environment, Path("/root"), "darkstar", "ada", Path("/srv/clone"))
    (tmp_path / "page.html").write_text(f"<p>{text}</p>")
    assert len(list(leaks(texts_of(tmp_path), texts))) == 1


@pytest.mark.parametrize(
    "text", ["the root of C", "adagio", "/usr/bin/env", "~/x", "homes/adam", "https://x.org/home/y"]
)
def test_search_leaves_ordinary_words_alone(tmp_path: Path, text: str) -> None:
    texts = private({"PATH": "/usr/bin:/bin"}, Path("/root"), "darkstar", "ada", Path("/srv/clone"))
    (tmp_path / "page.html").write_text(f"<p>{text}</p>")
    assert list(leaks(texts_of(tmp_path), texts)) == []
