"""A companion of one's own: a project outside the checkout, of the same notebooks, and a book around their runs."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from editlib.errors import EditlibError
from editlib.files import new_folder

SHIPPED = Path(__file__).parents[1] / "companion"  # in the package as it is installed
FOLDERS = ("notebooks", "book/_ext", "book/_static")
FILES = ("_config.yml", *(f"book/{name}" for name in ("runs.md", "compare.md", "references.md", "results.yaml")),
         "book/references.bib")  # fmt: skip
LICENSE = r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*"  # an SPDX expression without parentheses
CHAPTERS = ("runs", "compare", "references")
INDEX = """# {title}

Analyses of the package `editlib`, executed by {authors}. What there is so far: [all runs](runs.md).

```bash
editlib run --list                    # analyses, and what can be set in each
editlib run pilot --profile quick     # execute one: a new page of this book
jupyter-book build book/ --all        # make the pages: _build/html/index.html
```

Pages like this one quote a run's numbers by name: `pilot_cases`, in double braces, is the pilot's number of cases.
"""


def start(folder: Path, *, title: str, authors: Sequence[str], license: str) -> Path:
    """Write the sources of a companion into a new folder; raises `EditlibError` if it cannot be, or nobody is named."""
    if not authors or not all(name.strip() for name in authors):
        raise EditlibError("nobody is named who executes the analyses; give --author NAME, once for each")
    if not title.strip():
        raise EditlibError("the title is empty; give --title TEXT, or leave it out")
    if not re.fullmatch(LICENSE, license):
        raise EditlibError(f"license {license!r} is no SPDX identifier; give one such as CC-BY-4.0 or MIT")
    source = SHIPPED if SHIPPED.is_dir() else Path(__file__).parents[2]  # a checkout
    with new_folder(folder) as writing:
        for name in FOLDERS:
            shutil.copytree(source / name, writing / name, ignore=shutil.ignore_patterns("__pycache__", "pilot.png"))
        for name in FILES:
            shutil.copy(source / name, writing / name)
        (writing / "book/runs").mkdir()
        for name, text in _own(writing, title, authors, license).items():
            (writing / name).write_text(text, "utf-8")
    return folder


def _own(folder: Path, title: str, authors: Sequence[str], license: str) -> dict[str, str]:
    """The files that are the companion's own, by path; its configuration is that in the folder under its title."""
    config = yaml.safe_load((folder / "_config.yml").read_text("utf-8"))
    config |= {"title": title, "author": ", ".join(authors), "copyright": ""}
    config["sphinx"]["config"]["html_theme_options"]["logo"]["text"] = title
    toc = {"format": "jb-book", "root": "index", "chapters": [{"file": name} for name in CHAPTERS]}
    cited = {
        "cff-version": "1.2.0", "message": "To cite one result, cite its run.", "title": title, "type": "software",
        "version": "0.1.0", "license": license, "authors": [{"name": name} for name in authors],
    }  # fmt: skip
    return {
        "_config.yml": yaml.safe_dump(config, allow_unicode=True, sort_keys=False),
        "book/_toc.yml": yaml.safe_dump(toc, sort_keys=False),
        "book/index.md": INDEX.format(title=" ".join(title.split()), authors=" and ".join(authors)),
        "book/claims.yaml": "[]\n",
        "CITATION.cff": yaml.safe_dump(cited, allow_unicode=True, sort_keys=False),
        ".gitignore": "_build/\nbook/runs/*/local-*/\n__pycache__/\n",
    }
