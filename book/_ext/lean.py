"""Keep pages light: of what the theme loads with each, only what a page uses.

- Icons come from the theme's font, not from the script of 1.5 MB that would draw the same ones.
- The search's index: the page that searches has it, and the others lead there.
- Pictures are loaded when a reader comes near. Their place is kept free, so that a page does not move under its reader.
- A picture of more than `HEAVY` bytes is shown as WebP; the PNG stays beside it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx

PICTURE = re.compile(r'<img (?=[^>]*loading="lazy")(?![^>]*\b(?:width|height)=)(?=[^>]*src="([^"]+\.png)")')
ICONS = re.compile(r"\s*<(?:script|link)[^>]*\bfontawesome\.js[^>]*>(?:</script>)?")
SEARCH = re.compile(r'\s*<script src="[^"]*\b(?:searchtools|language_data|searchindex)\.js[^"]*"></script>')
HEAVY, QUALITY = 500_000, 80
VIEWPORT = re.compile(r'\s*<meta (?=[^>]*name="viewport")[^>]*>')  # said by three templates


def sized(page: str, folder: Path) -> str:
    """A page in `folder` whose pictures tell their size in pixels, and are light."""
    lighter = dict[str, str]()

    def told(picture: re.Match[str]) -> str:
        path = folder / picture[1]
        with Image.open(path) as image:
            if path.stat().st_size > HEAVY:
                image.convert("RGB").save(path.with_suffix(".webp"), quality=QUALITY)
                lighter[f'src="{picture[1]}"'] = f'src="{picture[1].removesuffix("png")}webp"'
            return f'{picture[0]}width="{image.width}" height="{image.height}" '

    page = PICTURE.sub(told, page)
    for png, webp in lighter.items():
        page = page.replace(png, webp)
    return page


def lighten(app: Sphinx, problem: Exception | None) -> None:
    """Take out of the built site what it does not use."""
    if problem is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for page in site.rglob("*.html"):
        text = ICONS.sub("", sized(page.read_text("utf-8"), page.parent))
        first, *others = VIEWPORT.split(text, maxsplit=1)
        text = "".join([first, *VIEWPORT.findall(text)[:1], *(VIEWPORT.sub("", rest) for rest in others)])
        page.write_text(text if page.name == "search.html" else SEARCH.sub("", text), "utf-8")


def delay_pictures(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for image in doctree.findall(nodes.image):
        image["loading"] = "lazy"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", delay_pictures)
    app.connect("build-finished", lighten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
