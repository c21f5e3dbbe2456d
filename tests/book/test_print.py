"""The book on paper."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.book.conftest import CHROMIUM, ROOT, missing

pytestmark = pytest.mark.site  # a book and a browser of its own

PAGE = """<!doctype html><title>A book</title>
<h1>One</h1><a href="other.html">another file</a> <a href="#two">inside</a> <a href="https://example.org">outside</a>
<h1 id="two" style="break-before: page">Two</h1>"""


@pytest.fixture
def printed(tmp_path: Path) -> bytes:
    if not CHROMIUM.exists():
        missing("no Chromium: the browser tests need /usr/bin/chromium")
    (tmp_path / "index.html").write_text(PAGE)
    command = [sys.executable, ROOT / "book/print.py", "index.html", "book.pdf"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "CHROMIUM": str(CHROMIUM)}, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.pdf", "index.html"]
    return (tmp_path / "book.pdf").read_bytes()


def test_the_book_becomes_a_pdf_with_its_pages(printed: bytes) -> None:
    assert printed.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", printed)) == 2


def test_a_link_to_a_file_does_not_tell_where_it_was_printed(printed: bytes) -> None:
    assert b"https://example.org" in printed
    assert b"file:" not in printed and b"other.html" not in printed
