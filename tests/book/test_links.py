"""No link, picture, script or style inside the site leads nowhere."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from lxml import html

LINKS = "//@href | //@src"


def broken(site: Path) -> list[str]:
    """`page: target` of each address inside the site that names no file of it, or no place on its page."""
    pages = [page for page in sorted(site.rglob("*.html")) if page.parent.name != "_static"]  # templates of the theme
    trees = {page: html.parse(page).getroot() for page in pages}
    places = {path: {*tree.xpath("//@id"), *tree.xpath("//a/@name")} for path, tree in trees.items()}
    return [
        f"{page.relative_to(site)}: {link}"
        for page, tree in trees.items()
        for link in dict.fromkeys(tree.xpath(LINKS))
        if not leads_somewhere(link, page, places)
    ]


def leads_somewhere(link: str, page: Path, places: dict[Path, set[str]]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme in ("http", "https", "data", "mailto")
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page.resolve()
    known = places.get(target, set())
    return target.is_file() and (not parts.fragment or target not in places or unquote(parts.fragment) in known)


def test_every_link_leads_somewhere(site: Path) -> None:
    assert broken(site) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("<p id='place'>here</p>")
    good = "<a href='there.html#place'>1</a><a href='#'>2</a><a href='https://example.org/'>3</a>"
    bad = "<a href='gone.html'>4</a><a href='there.html#gone'>5</a><img src='gone.png'><a href='javascript:x'>6</a>"
    (tmp_path / "page.html").write_text(good + bad)
    assert broken(tmp_path) == [f"page.html: {x}" for x in ("gone.html", "there.html#gone", "gone.png", "javascript:x")]
