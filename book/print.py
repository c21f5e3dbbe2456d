"""Print the book, built as one page, to a PDF: `python book/print.py PAGE.html BOOK.pdf`."""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

# Links to other files would name places on this machine; those inside the book stay.
UNLINK = """() => document.querySelectorAll('a[href]').forEach((link) => {
  const target = link.getAttribute('href');
  if (!target.startsWith('#') && !/^https?:/.test(target)) link.removeAttribute('href');
})"""
FOOTER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'
MARGINS = {"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"}


def print_book(source: Path, target: Path) -> None:
    """Load the page in an installed Chromium and write the PDF aside, then rename it."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium found; install one, or name it: make pdf CHROMIUM=/path/to/chrome")
    aside = target.with_suffix(".part")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="light")
        page.goto(source.resolve().as_uri(), wait_until="load", timeout=120_000)
        page.evaluate(UNLINK)
        page.pdf(
            path=aside, format="A4", margin=MARGINS, display_header_footer=True, header_template="<span></span>",
            footer_template=FOOTER, tagged=True, outline=True,
        )  # fmt: skip
        browser.close()
    os.replace(aside, target)


if __name__ == "__main__":
    print_book(Path(sys.argv[1]), Path(sys.argv[2]))
