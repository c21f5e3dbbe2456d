"""Files over HTTP: resumed after a broken transfer, and checked before they take their place."""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
from tqdm import tqdm

from editlib.errors import EditlibError

TIMEOUT = 30.0  # seconds without a byte
BUSY = (429, 502, 503, 504)  # a server that may answer later


class Broken(Exception):
    """A transfer that ended early, or that cannot go on from the part that is here."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], object] | None = None,
    progress: bool = True,
    tries: int = 4,
    pause: float = 1.0,
) -> Path:
    """Download `url` to `path`; until it is whole and checked, it lies beside it as `.part`.

    A transfer that breaks off is taken up again, `tries` times in all, after `pause` seconds, then twice as many
    and so on; a later call goes on from the part that is here. `check` gets the part and raises `EditlibError` to
    refuse it. Raises `EditlibError` for an address that is neither https nor this machine's, an error status or
    page, a transfer broken for good, and a refused file, of which nothing is kept.
    """
    part = path.with_name(f"{path.name}.part")
    _download(url, part, progress=progress, tries=tries, pause=pause)
    try:
        _check(part, url, sha256, check)
    except EditlibError:
        _forget(part)
        raise
    os.replace(part, path)
    _forget(part)
    return path


def _download(url: str, part: Path, *, progress: bool, tries: int, pause: float) -> None:
    options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "event_hooks": {"request": [_check_address]}}
    with httpx2.Client(follow_redirects=True, timeout=TIMEOUT, **options) as client:
        for number in range(1, tries + 1):
            try:
                return _transfer(client, url, part, progress=progress)
            except (httpx2.HTTPError, Broken) as error:
                if number == tries:
                    reason, here = str(error) or type(error).__name__, f"{_size(part)} bytes are here"
                    raise EditlibError(
                        f"{url} cannot be downloaded: {reason}; {here}, run the same command to go on"
                    ) from error
                time.sleep(pause * 2 ** (number - 1))


def _transfer(client: httpx2.Client, url: str, part: Path, *, progress: bool) -> None:
    """Append to `part` what is missing; raises `Broken` or an HTTP error if it is not whole after that."""
    with client.stream("GET", url, headers=_resume(part)) as response:
        if response.status_code == 416:
            raise _useless(part, "the part that was here is no beginning of the file")
        _check_answer(response, url)
        start, total = _span(response, part)
        bar = tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, disable=not progress)
        with part.open("ab" if start else "wb") as file, bar:
            if start == 0:
                _tag(part).write_text(response.headers.get("etag", ""))
            for chunk in response.iter_raw():
                bar.update(file.write(chunk))
    if total not in (None, _size(part)):
        raise _useless(part, f"{_size(part)} bytes came, {total} were announced")


def _resume(part: Path) -> dict[str, str]:
    """Headers that ask for the rest of `part`, if the file is still the one it is part of."""
    etag = _tag(part).read_text(encoding="utf-8") if part.exists() and _tag(part).exists() else ""
    if not etag.startswith('"'):  # none, or a weak one, which does not promise the same bytes
        return {}
    return {"Range": f"bytes={_size(part)}-", "If-Range": etag}


def _span(response: httpx2.Response, part: Path) -> tuple[int, int | None]:
    """The byte the answer starts at, and the size of the whole file where it is told."""
    if response.status_code == 200:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("content-range", ""))
    if not told or int(told[1]) != _size(part):
        raise _useless(part, "the server sent another range than the one asked for")
    return int(told[1]), int(told[2])


def _check_address(request: httpx2.Request) -> None:
    """Refuse what is not https, also where a redirect leads."""
    if request.url.scheme != "https" and request.url.host not in ("127.0.0.1", "localhost"):
        raise EditlibError(f"address {request.url} is refused: it is not https")


def _check_answer(response: httpx2.Response, url: str) -> None:
    if response.status_code in BUSY:
        raise Broken(f"it answered {response.status_code} {response.reason_phrase}")
    if response.status_code not in (200, 206):
        raise EditlibError(f"{url} answered {response.status_code} {response.reason_phrase}; nothing was downloaded")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise EditlibError(f"{url} answered with a web page, not with a file; nothing was downloaded")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise EditlibError(f"{url} answered with compressed data nobody asked for; nothing was downloaded")


def _check(part: Path, url: str, sha256: str | None, check: Callable[[Path], object] | None) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 not in (None, digest):
        raise EditlibError(f"{url} gave another file: its sha256 is {digest}, not {sha256}; nothing was kept")
    try:
        if check:
            check(part)
    except EditlibError as error:
        raise EditlibError(f"{url} gave a file that is refused: {error}") from error


def _tag(part: Path) -> Path:
    """Where the ETag of the file that `part` belongs to is kept."""
    return part.with_name(f"{part.name}.etag")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _useless(part: Path, reason: str) -> Broken:
    _forget(part)
    return Broken(reason)
