"""Downloads, from a local server that behaves badly."""

import hashlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from editlib.data.download import fetch
from editlib.errors import EditlibError

BODY = bytes(range(256)) * 4000  # about a megabyte: more than one buffer
SHA256 = hashlib.sha256(BODY).hexdigest()

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server that gives `answers` in turn, the last one for ever, and keeps the headers it was `asked` with."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[dict[str, str]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append({key.lower(): value for key, value in self.headers.items()})
                site.answers[min(len(site.asked), len(site.answers)) - 1](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.json"

    @property
    def ranges(self) -> list[str | None]:
        """The range every request asked for."""
        return [headers.get("range") for headers in self.asked]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()
    thread = Thread(target=site.server.serve_forever, args=(0.01,))
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def answer(
    body: bytes = BODY, *, status: int = 200, sent: int | None = None, announced: int | None = None, **headers: str
) -> Answer:
    """Answer with `body`, of which only `sent` bytes are sent before the connection is closed."""

    def give(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        given = {"content-type": "application/json", "etag": '"1"', "connection": "close"}
        given["content-length"] = str(len(body) if announced is None else announced)
        given |= {key.replace("_", "-"): value for key, value in headers.items()}
        for key, value in given.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body[:sent])
        handler.close_connection = True

    return give


def rest(*, of: bytes = BODY, **headers: str) -> Answer:
    """Answer with the range asked for."""

    def give(handler: BaseHTTPRequestHandler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        told = {"content_range": f"bytes {start}-{len(of) - 1}/{len(of)}"} | headers
        answer(of[start:], status=206, **told)(handler)

    return give


def get(site: Site, path: Path, **options: object) -> Path:
    return fetch(site.url, path, progress=False, pause=0, **options)  # type: ignore[arg-type]


def refused(site: Site, path: Path, **options: object) -> str:
    """The message of a download that must be refused, and leave an older file as it was."""
    path.write_bytes(b"old")
    with pytest.raises(EditlibError) as caught:
        get(site, path, **options)
    assert path.read_bytes() == b"old"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.json"


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_a_file_is_downloaded_and_nothing_lies_beside_it(site: Site, path: Path) -> None:
    site.answers = [answer()]
    assert get(site, path, sha256=SHA256) == path
    assert path.read_bytes() == BODY
    assert names(path) == ["file.json"]


def test_a_size_that_is_not_announced_is_no_obstacle(site: Site, path: Path) -> None:
    def close(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY)
        handler.close_connection = True

    site.answers = [close]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY


def test_progress_is_shown(site: Site, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.answers = [answer()]
    fetch(site.url, path)
    assert "file.json: 100%" in capsys.readouterr().err


# Broken transfers


def test_a_broken_transfer_goes_on_where_it_stopped(site: Site, path: Path) -> None:
    site.answers = [answer(sent=300_000), rest()]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY
    assert site.ranges == [None, "bytes=300000-"]
    assert site.asked[1]["if-range"] == '"1"'


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(site: Site, path: Path) -> None:
    site.answers = [answer(sent=300_000)]
    message = refused(site, path, tries=1)
    assert message.endswith("; 300000 bytes are here, run the same command to go on")
    site.answers = [rest()]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY
    assert site.ranges == [None, "bytes=300000-"]
    assert names(path) == ["file.json"]


@pytest.mark.parametrize(("body", "etag"), [(BODY, '"1"'), (b"new" * 1000, '"2"')])
def test_a_server_that_sends_all_again_is_followed(site: Site, path: Path, body: bytes, etag: str) -> None:
    site.answers = [answer(sent=300_000), answer(body, etag=etag)]
    assert get(site, path).read_bytes() == body
    assert site.ranges == [None, "bytes=300000-"]


@pytest.mark.parametrize("etag", ["", 'W/"1"'])
def test_without_a_strong_etag_nothing_is_resumed(site: Site, path: Path, etag: str) -> None:
    site.answers = [answer(sent=300_000, etag=etag), answer()]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY
    assert site.ranges == [None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        rest(content_range=f"bytes 5-9/{len(BODY)}"),
        rest(content_range=""),
        answer(b"<html>", status=416, content_type="text/html"),
    ],
)
def test_a_wrong_range_is_dropped_and_all_is_asked_for(site: Site, path: Path, wrong: Answer) -> None:
    site.answers = [answer(sent=300_000), wrong, answer()]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY
    assert site.ranges == [None, "bytes=300000-", None]


def test_a_server_that_keeps_breaking_off_is_given_up(site: Site, path: Path) -> None:
    site.answers = [answer(sent=10)]
    assert "cannot be downloaded" in refused(site, path, tries=3)
    assert len(site.asked) == 3


def test_a_server_that_is_not_there_is_one_line(path: Path) -> None:
    site = Site()
    site.server.server_close()
    assert refused(site, path, tries=2).startswith(f"{site.url} cannot be downloaded: ")


# Lies


def test_more_bytes_announced_than_sent_are_refused(site: Site, path: Path) -> None:
    site.answers = [answer(announced=len(BODY) + 7), answer(b"<html>", status=416, content_type="text/html")]
    assert "cannot be downloaded" in refused(site, path, tries=2)


def test_fewer_bytes_announced_than_sent_are_refused(site: Site, path: Path) -> None:
    site.answers = [answer(announced=1000)]
    assert "its sha256 is" in refused(site, path, sha256=SHA256)


def test_a_range_shorter_than_announced_is_refused(site: Site, path: Path) -> None:
    site.answers = [answer(sent=300_000), rest(content_range=f"bytes 300000-{len(BODY)}/{len(BODY) + 1}")]
    assert "were announced" in refused(site, path, tries=2)


def test_another_file_is_refused_and_not_kept(site: Site, path: Path) -> None:
    site.answers = [answer(b"{}"), answer()]
    found = hashlib.sha256(b"{}").hexdigest()
    assert refused(site, path, sha256=SHA256) == (
        f"{site.url} gave another file: its sha256 is {found}, not {SHA256}; nothing was kept"
    )
    assert names(path) == ["file.json"]
    get(site, path, sha256=SHA256)
    assert site.ranges == [None, None]


def test_a_file_that_fails_its_check_is_not_kept(site: Site, path: Path) -> None:
    def check(part: Path) -> None:
        assert part.read_bytes() == BODY
        raise EditlibError("no good record")

    site.answers = [answer()]
    assert refused(site, path, check=check) == f"{site.url} gave a file that is refused: no good record"
    assert names(path) == ["file.json"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(site: Site, path: Path, status: int) -> None:
    site.answers = [answer(b"", status=status), answer()]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY
    site.answers = [answer(b"", status=status)] * 4
    assert f"cannot be downloaded: it answered {status} " in refused(site, path)


@pytest.mark.parametrize("status", [204, 403, 404, 500])
def test_an_error_status_is_refused(site: Site, path: Path, status: int) -> None:
    site.answers = [answer(b"", status=status)]
    assert f"answered {status} " in refused(site, path)
    assert len(site.asked) == 1


def test_a_web_page_with_a_good_status_is_refused(site: Site, path: Path) -> None:
    site.answers = [answer(b"<html>come back later</html>", content_type="text/html; charset=utf-8")]
    assert "answered with a web page" in refused(site, path)


def test_compressed_data_are_refused(site: Site, path: Path) -> None:
    site.answers = [answer(content_encoding="gzip")]
    assert "compressed" in refused(site, path)
    assert site.asked[0]["accept-encoding"] == "identity"


# Addresses


def test_an_address_that_is_not_https_is_refused(path: Path) -> None:
    with pytest.raises(EditlibError, match="^address http://example.org/file is refused: it is not https$"):
        fetch("http://example.org/file", path, progress=False)


def test_a_redirect_away_from_https_is_not_followed(site: Site, path: Path) -> None:
    site.answers = [answer(b"", status=302, location="http://example.org/file")]
    assert refused(site, path) == "address http://example.org/file is refused: it is not https"


def test_a_redirect_is_followed(site: Site, path: Path) -> None:
    site.answers = [answer(b"", status=302, location=f"{site.url}?again"), answer()]
    assert get(site, path, sha256=SHA256).read_bytes() == BODY
