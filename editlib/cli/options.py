"""Options that several commands have, checked as they are read: before anything heavy is imported or loaded."""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from editlib.cli.output import note
from editlib.cluster.workers import Workers
from editlib.data.sources import own
from editlib.editing.names import FILTERS, FLAVOURS, METHODS, parts
from editlib.errors import EditlibError, unknown
from editlib.models.names import DTYPES, PACKAGED, gguf_file, hub_id, locate

if TYPE_CHECKING:
    from editlib.data.datasets import Case, Reading
    from editlib.editing.edit import Edit
    from editlib.models.language_model import LanguageModel


# -- checks of single values -------------------------------------------------------------------------------


def one_of(kind: str, known: Sequence[str]) -> Callable[[Any], Any]:
    """A check that an option's value, or each of its values, is a known name."""

    def check(given: Any) -> Any:
        for name in [given] if isinstance(given, str) else given or []:
            if name not in known:
                raise unknown(kind, name, known)
        return given

    return check


def _methods(given: Any) -> Any:
    """A check that an option's value, or each of its values, is a method, with or without filters."""
    for name in [given] if isinstance(given, str) else given or []:
        parts(name)
    return given


def _model(context: typer.Context, name: str) -> str:
    revision = context.params.get("revision")  # an eager option, so it is known by now
    if locate(name) is None and gguf_file(name) is None:
        hub_id(f"{name}@{revision}" if revision else name)
    return name


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise EditlibError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    return name


def known_data(name: Any) -> Any:
    """A check that an option names a file or data that is here."""
    from editlib.data import datasets as data

    if name is not None:
        data.locate(name)
    return name


def _ratio(ratio: float) -> float:
    if not 0 < ratio < math.inf:
        raise EditlibError(f"collapse ratio {ratio:g} is out of range; give a finite number above 0, such as 5")
    return ratio


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MODEL = f"testbed/anchored, testbed/control, {', '.join(PACKAGED)}, a folder, a GGUF file, or a hub id."
ModelOption = Annotated[str, typer.Option(callback=_model, help=MODEL)]
ModelArgument = Annotated[str, typer.Argument(callback=_model, help=MODEL)]
DtypeOption = Annotated[str, typer.Option(callback=one_of("dtype", DTYPES), help=f"{', '.join(DTYPES)}.")]
DtypeOfEditOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", callback=one_of("dtype", DTYPES), help=f"{', '.join(DTYPES)}.  [default: the edit's, or float32]"
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(callback=_device, envvar="EDITLIB_DEVICE", help="cpu, cuda, cuda:N, or auto: cuda where it is there."),
]
RevisionOption = Annotated[str | None, typer.Option(is_eager=True, help="Commit of a hub model, 40 digits.")]
LayoutOption = Annotated[
    str | None,
    typer.Option(metavar="BLOCKS,DOWN", help="Where the memories are, as dotted names of modules.  [default: found]"),
]
FlavourOption = Annotated[
    str | None,
    typer.Option(
        callback=one_of("flavour", FLAVOURS),
        help=f"Settings of one lineage: {' or '.join(FLAVOURS)}.  [default: the equation's]",
    ),
]
METHOD = f"{', '.join(METHODS)}; with filters on its update as in rome+rect: {', '.join(FILTERS)}"
MethodOption = Annotated[str, typer.Option(callback=_methods, help=f"{METHOD}.")]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option("--method", callback=_methods, help=f"{METHOD}; repeat for more.  [default: rome]"),
]
HparamsOption = Annotated[
    list[str] | None,
    typer.Option("-p", "--hparam", metavar="NAME VALUE, NAME=VALUE", help="Set any hyper-parameter; repeat."),
]
PresetOption = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help='Hyper-parameters by method, as JSON: {"rome": {"layer": 5}}.'),
]
StatsOption = Annotated[Path | None, typer.Option(help="File with second moments made for this model.")]
CorpusOption = Annotated[
    str | None,
    typer.Option(
        callback=known_data,
        help="Texts for the second moments: a name, or a JSON list.  "
        "[default: the testbed's prose for its models, text that the model writes itself for others]",
    ),
]
MomentTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of the corpus to take.  [default: ten a key dimension, and 64,000 at least]"),
]
MomentWindowOption = Annotated[int, typer.Option(min=2, help="Tokens of a window that second moments are read from.")]
FirstPositionOption = Annotated[
    Literal["keep", "drop"],
    typer.Option(
        help="Whether second moments keep or drop the first position of each window.",
    ),
]
TextsOption = Annotated[
    str | None,
    typer.Option(callback=known_data, help="Texts to measure perplexity on: a name, or a JSON list of strings or "
                 "ME-PPL records.  [default: testbed-ppl-50 for testbed models, else prose-50]"),
]  # fmt: skip
CasesOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        callback=known_data,
        help="Edit cases: a name or a path.  [default: testbed for testbed models, else facts]",
    ),
]
SplitOption = Annotated[
    str | None, typer.Option(help="Take the cases of this split: of facts, tune or test.  [default: all]")
]
CollapseRatioOption = Annotated[
    float, typer.Option(callback=_ratio, help="Collapsed from this many times unedited on.")
]
RayOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: local for one on this machine, auto for the one it is "
                 "part of, or HOST:PORT."),
]  # fmt: skip
CountOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="With --ray: how many.  [default: as many as have room]")
]
CpusOption = Annotated[
    int | None, typer.Option("--cpus-per-worker", min=1, help="With --ray: cores, and threads, of each.  [default: 1]")
]
GpusOption = Annotated[
    float | None, typer.Option("--gpus-per-worker", min=0, help="With --ray: GPUs of each.  [default: 0]")
]


# -- what values stand for ---------------------------------------------------------------------------------


def pairs(parameters: Sequence[str]) -> dict[str, str]:
    """Names and values of `-p` options; raises `EditlibError` for a name without a value."""
    lonely = next((text for text in parameters if "=" not in text), None)
    if lonely is not None:
        raise EditlibError(f"-p {lonely} has no value; write -p {lonely} VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in parameters)}


def values(parameters: Sequence[str] | None) -> dict[str, Any]:
    """Values of `-p` options as JSON where they are, so that `-p layers [1,2]` is a list; else as text."""
    given: dict[str, Any] = dict(pairs(parameters or []))
    options = {"lm": "--model", "method": "--method", "flavour": "--flavour", "preset": "--preset"}
    if taken := next((name for name in given if name in options), None):
        raise EditlibError(f"-p {taken} is no hyper-parameter; give {options[taken]}")
    for name, text in given.items():
        with suppress(ValueError):
            given[name] = json.loads(text)
    return given


def workers_of(
    ray: str | None, workers: int | None, cpus: int | None, gpus: float | None, *, as_json: bool
) -> Workers | None:
    """The workers that are asked for; raises `EditlibError` for options of theirs without --ray."""
    given = {"--workers": workers, "--cpus-per-worker": cpus, "--gpus-per-worker": gpus}
    lonely = next((name for name, value in given.items() if value is not None), None)
    if ray is not None:
        return Workers(address=ray, workers=workers, cpus=cpus or 1, gpus=gpus or 0, json=as_json)
    if lonely:
        raise EditlibError(f"{lonely} is for --ray; add that, or leave {lonely} out")
    return None


def texts_for(model: str, name: str | None) -> list[str]:
    """Texts by name, or a model's default ones."""
    texts = texts_of(name or own(model, "testbed-ppl-50"))
    assert texts is not None  # by name, or refused
    return texts


def cases_for(model: str, name: str | None, *, split: str | None = None) -> list["Case"]:
    """Edit cases by name, or a model's default ones."""
    from editlib.data import datasets as data

    name = name or str(own(model, "testbed"))
    return data.of_split(_told(name, data.read_cases(name)).cases, split)


def texts_of(name: str | None) -> list[str] | None:
    """Texts by name."""
    from editlib.data import datasets as data

    return list(_told(name, data.read_texts(name)).texts) if name else None


def _told(name: str, reading: "Reading") -> "Reading":
    """What a file held, after a word on stderr about the records that were left out."""
    if reading.rejected:
        left, first = len(reading.rejected), reading.rejected[0]
        note(f"data {name}: {left} of {reading.records} records left out, the first is {first}; "
             f"`editlib data check {name}` lists them")  # fmt: skip
    return reading


def load_model(model: str, *, dtype: str, device: str, revision: str | None, layout: str | None) -> "LanguageModel":
    """The model, quietly."""
    from editlib.models.loading import load

    hush()
    return load(model, dtype=dtype, device=device, revision=revision, layout=layout)


def load_for(
    edit: "Edit", model: str, *, dtype: str | None, device: str, revision: str | None, layout: str | None
) -> tuple["LanguageModel", "Edit"]:
    """A model in a dtype, and a saved edit for it.

    In another dtype than that of the edit, it is first loaded as the edit was computed for, and checked.
    """
    own = edit.dtype or "float32"
    lm = load_model(model, dtype=own, device=device, revision=revision, layout=layout)
    if dtype is not None and dtype != own:
        edit = edit.cast(lm, dtype)
        note(f"the edit was computed in {own} and is applied in {dtype}")
        lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    return lm, edit


def hush() -> None:
    """Do without the libraries' bars and warnings: an unreachable hub is one line, not one for each try."""
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def check_apart(*outputs: Path | None) -> None:
    """Refuse outputs that exist or cannot be made, or of which one would be another or lie in it."""
    given = [path for path in outputs if path is not None]
    for path in given:
        check_new(path)
    for path, other in permutations(given, 2):
        if other.resolve() in (path.resolve(), *path.resolve().parents):
            raise EditlibError(f"output {path} is, or is in, another output; give each a place of its own")


def check_resumed(out: Path, *, resume: bool) -> None:
    """Refuse to go on with what was not begun."""
    if resume and not out.exists():
        raise EditlibError(f"{out} is not there, so that there is nothing to go on with; leave --resume out")


def check_new(path: Path | None) -> None:
    """Refuse, before any work is done, an output that exists or cannot be made."""
    if path is None:
        return
    if path.exists():
        raise EditlibError(f"output {path} exists already; choose another")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EditlibError(f"output {path} cannot be written: {parent} is no writable folder")
