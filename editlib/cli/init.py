"""The command that starts a companion of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from editlib.cli.options import check_new
from editlib.cli.output import emit


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for it.", show_default=False)],
    author: Annotated[
        list[str] | None, typer.Option(help="Who executes its analyses; repeat for more. Needed.", show_default=False)
    ] = None,
    title: Annotated[str, typer.Option(help="Of its book.")] = "When one edit breaks a model: a companion",
    license: Annotated[str, typer.Option(help="Of what it will hold, as an SPDX identifier.")] = "CC-BY-4.0",
) -> None:
    """Start a companion of your own: a folder with the notebooks, and a book that shows their runs.

    It needs nothing of this project's checkout. Write pages beside index.md, and list them in book/_toc.yml.

    Example: editlib init my-companion --author "Ada Lovelace"
    """
    check_new(folder)

    from editlib.runs.companion import start

    start(folder, title=title, authors=author or (), license=license)
    steps = (
        f"cd {folder}",
        "git init && git add -A && git commit -m Begin",
        "editlib run pilot --profile quick",
        "jupyter-book build book/ --all",
    )
    emit("\n".join([f"{folder} is ready. Next:", *(f"  {step}" for step in steps)]))
