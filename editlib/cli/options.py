"""Options that several commands have, what their values stand for, and how a command stops early."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.errors import EditlibError

if TYPE_CHECKING:
    from editlib.data.datasets import Case
    from editlib.models.language_model import LanguageModel

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[str, typer.Option(help="testbed/anchored, testbed/control, a folder, or a hub id.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Revision = Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")]
Flavour = Annotated[
    str | None, typer.Option(help="Settings of one lineage: meng-2022 or yang-2024.  [default: the equation's]")
]
Stats = Annotated[Path | None, typer.Option(help="File with second moments made for this model.")]
Corpus = Annotated[Path | None, typer.Option(help="Texts (JSON list) for the second moments.")]
Texts = Annotated[
    str | None,
    typer.Option(help="Texts to measure perplexity on: testbed-ppl-50, testbed-ppl-1k, or a JSON list of strings or "
                      "ME-PPL records.  [default: testbed-ppl-50 for testbed models]"),
]  # fmt: skip
CollapseRatio = Annotated[float, typer.Option(help="Collapsed from this many times unedited on.")]


class Stop(Exception):
    """An end before the command is done: what to say in one line, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def pairs(parameters: Sequence[str]) -> dict[str, str]:
    """Names and values of `-p` options; raises `EditlibError` for a name without a value."""
    lonely = next((text for text in parameters if "=" not in text), None)
    if lonely is not None:
        raise EditlibError(f"-p {lonely} has no value; write -p {lonely} VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in parameters)}


def values(parameters: Sequence[str]) -> dict[str, Any]:
    """Values of `-p` options as JSON where they are, so that `-p layers [1,2]` is a list; else as text."""
    return {name: _json(value) for name, value in pairs(parameters).items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def texts_for(model: str, name: str | None) -> list[str] | None:
    """Texts by name, for testbed models their own if none is given."""
    from editlib.data import datasets as data

    name = name or ("testbed-ppl-50" if model.startswith("testbed/") else None)
    return data.texts(name) if name else None


def cases_for(model: str, name: str | None, *, lacking: str) -> list["Case"]:
    """Edit cases by name, for testbed models their own if none is given; `lacking` says what is missing without."""
    from editlib.data import datasets as data

    name = name or ("testbed" if model.startswith("testbed/") else None)
    if name is None:
        raise EditlibError(f"{lacking}; give --data NAME or PATH")
    return data.cases(name)


def load_model(model: str, *, dtype: str, device: str, revision: str | None) -> "LanguageModel":
    """The model, quietly."""
    from editlib.models.loading import load

    hush()
    return load(model, dtype=dtype, device=device, revision=revision)


def hush() -> None:
    """Do without the libraries' bars and warnings: an unreachable hub is one line, not one for each try."""
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def check_new(path: Path | None) -> None:
    """Refuse, before any work is done, an output that exists or cannot be made."""
    if path is None:
        return
    if path.exists():
        raise EditlibError(f"output {path} exists already; choose another")
    parent = next(place for place in path.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EditlibError(f"output {path} cannot be written: {parent} is no writable folder")
