"""The command line: one function a command, heavy imports inside, mistakes told in one line."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from editlib.errors import EditlibError
from editlib.text import table, to_json

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # click's ClickException, wherever typer keeps click
TESTBED = Path(__file__).parent / "testbed"
BOOK_EXTRA = ("papermill", "jupytext", "nbclient", "ipykernel")

app = typer.Typer(
    name="editlib",
    help="Edit facts in language models, see when one edit breaks them, and run the book's analyses.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
testbed_app = typer.Typer(help="The small models shipped with editlib.", rich_markup_mode=None)
app.add_typer(testbed_app, name="testbed")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Root = Annotated[Path | None, typer.Option(help="The project's folder.  [default: the one you are in]")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 the user's mistake (one line on stderr)."""
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        status = app(_joined(arguments or ["--help"]), prog_name="editlib", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USAGE_ERROR as error:
        return _complain(_usage(error), 2)
    except EditlibError as error:
        return _complain(error, 2)
    except ModuleNotFoundError as error:
        if error.name not in BOOK_EXTRA:
            raise
        return _complain(f"this needs {error.name}; install it with: pip install 'editlib[book]'", 2)
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
    return _complain("interrupted", 130) if status == 130 else int(status or 0)


def _usage(error: Any) -> str:
    """A usage error with the help that belongs to it."""
    command = error.ctx.command_path if getattr(error, "ctx", None) else "editlib"
    return f"{error.format_message().rstrip('.')}; see {command} --help"


def _joined(arguments: Sequence[str]) -> list[str]:
    """`-p name value` as `-p name=value`: typer has no option that takes two values and may be repeated."""
    joined: list[str] = []
    for argument in arguments:
        waiting = len(joined) > 1 and joined[-2] in ("-p", "--parameter") and "=" not in joined[-1]
        joined[-1:] = [f"{joined[-1]}={argument}"] if waiting else [*joined[-1:], argument]
    return joined


def _pairs(parameters: Sequence[str]) -> dict[str, str]:
    """Names and values of `-p` options; raises `EditlibError` for a name without a value."""
    lonely = next((text for text in parameters if "=" not in text), None)
    if lonely is not None:
        raise EditlibError(f"-p {lonely} has no value; write -p {lonely} VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in parameters)}


def _complain(message: object, status: int) -> int:
    lines = [line.strip() for line in str(message).splitlines()]
    typer.echo(f"editlib: {' '.join(line for line in lines if line)}", err=True)
    return status


# -- edit ----------------------------------------------------------------------------------------------


@app.command()
def edit(
    model: Annotated[str, typer.Option(help="testbed/anchored, testbed/control, a folder, or a hub id.")],
    prompt: Annotated[str, typer.Option(help="Template with {} where the subject goes.")],
    subject: Annotated[str, typer.Option(help="What the prompt is about.")],
    target: Annotated[str, typer.Option(help="What should follow the prompt after the edit.")],
    method: Annotated[str, typer.Option(help="rome, c-rome or p-rome.")] = "rome",
    layer: Annotated[int | None, typer.Option(help="Layer to edit.  [default: the model's preset]")] = None,
    covariance: Annotated[bool, typer.Option(help="Use the second moment of the keys.")] = True,
    stats: Annotated[Path | None, typer.Option(help="File with second moments made for this model.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Texts (JSON list) for the second moments.")] = None,
    texts: Annotated[
        str | None,
        typer.Option(help="Texts to measure perplexity on: testbed-ppl-50, testbed-ppl-1k, or a JSON list of "
                          "strings or ME-PPL records.  [default: testbed-ppl-50 for testbed models]"),
    ] = None,
    collapse_ratio: Annotated[float, typer.Option(help="Collapsed from this many times unedited on.")] = 5.0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of torch's random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New folder to save the edit in.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Edit one fact and show the model before and after.

    Prints the greedy continuation, the target's probability, perplexity, the denominator that foretells a
    collapse, and a verdict.

    Example: editlib edit --model testbed/anchored --prompt "{} is located in" --subject Jaklon --target Hifru
    """
    import huggingface_hub
    import torch
    import transformers

    from editlib import data, methods
    from editlib import stats as moments
    from editlib.edit import EditRequest
    from editlib.model import load
    from editlib.report import before_after

    request = EditRequest(prompt=prompt, subject=subject, target_new=target)
    _check_new(out)
    given = moments.load(stats) if stats else None
    torch.manual_seed(seed)
    huggingface_hub.utils.logging.set_verbosity_error()  # an unreachable hub is one line, not one for each try
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lm = load(model, dtype=dtype, device=_device(device), revision=revision)
    measured = _texts(texts, model)
    options: dict[str, Any] = {"covariance": covariance} | ({} if layer is None else {"layer": layer})
    hparams = methods.hparams_for(lm, method, **options)
    if given and covariance:
        given.require(lm, hparams.layer)  # before any work is done
    source = data.texts(corpus) if corpus else None
    change = methods.compute(lm, [request], method=method, hparams=hparams, stats=given, corpus=source)
    report = before_after(lm, change, texts=measured, collapse_ratio=collapse_ratio)
    if out:
        change.save(out)
    typer.echo(to_json(report.record()) if as_json else report.table())


def _texts(name: str | None, model: str) -> list[str] | None:
    from editlib import data

    name = name or ("testbed-ppl-50" if model.startswith("testbed/") else None)
    return data.texts(name) if name else None


def _device(name: str) -> str:
    """The device's name, after checking that it is there."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise EditlibError(f"device {name!r} is not available here; use cpu") from error
    return name


def _check_new(folder: Path | None) -> None:
    """Refuse, before any work is done, an output folder that exists or cannot be made."""
    if folder is None:
        return
    if folder.exists():
        raise EditlibError(f"output folder {folder} exists already; choose another")
    parent = next(place for place in folder.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EditlibError(f"output folder {folder} cannot be written: {parent} is no writable folder")


# -- analyses and runs ---------------------------------------------------------------------------------


@app.command()
def run(
    analysis: Annotated[
        str | None, typer.Argument(metavar="ANALYSIS", help="A notebook in notebooks/.", show_default=False)
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter; repeat for more."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Set of parameter values the notebook declares: quick, full.")] = "quick",
    every: Annotated[bool, typer.Option("--all", help="Run every analysis that has no run for its spec yet.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Execute even if that was done before.")] = False,
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds a cell may take.  [default: no limit]")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List analyses and parameters, run nothing.")] = False,
    root: Root = None,
    as_json: Json = False,
) -> None:
    """Execute an analysis into book/runs/ANALYSIS/local-RUN/, unless that was done before.

    The same notebook, parameters, code, models and data are the same spec; its run is reused.

    Example: editlib run pilot --profile quick -p n 20 -p method c-rome
    """
    from editlib import analyses, runs

    place = analyses.find_root(root)
    if not (every or listed) and analysis is None:
        raise EditlibError(f"name an analysis ({', '.join(analyses.names(place))}) or give --all")
    if every and (analysis or parameter):
        raise EditlibError("--all takes neither an analysis nor -p; leave one of them out")
    names = analyses.names(place) if analysis is None else [analysis]
    if listed:
        return typer.echo("\n\n".join(_describe(analyses.read(name, place)) for name in names))
    options: dict[str, Any] = {
        "profile": profile,
        "force": force,
        "timeout": timeout,
        "progress": sys.stderr.isatty(),
    }
    given = _pairs(parameter or [])
    try:
        done = [runs.execute(name, root=place, parameters=given, **options) for name in names]
    except runs.RunFailed as error:
        raise typer.Exit(_complain(error, 1)) from error
    found = [{"analysis": m.analysis, "run": m.run, "spec": m.spec, "path": _relative(m.folder)} for m in done]
    typer.echo(to_json(found) if as_json else "\n".join(f"{item['analysis']}: {item['path']}" for item in found))


def _describe(analysis: Any) -> str:
    """Title, profiles and parameters of an analysis."""
    rows = [[f"  {p.name}", p.type, json.dumps(p.default), p.help] for p in analysis.parameters.values()]
    head = f"{analysis.name}: {analysis.title} (profiles: {', '.join(analysis.profiles)})"
    return "\n".join([head, *([table(rows)] if rows else [])])


def _relative(path: Path) -> str:
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@app.command("runs")
def list_runs(root: Root = None, as_json: Json = False) -> None:
    """List the project's runs, oldest first.

    Example: editlib runs --json
    """
    from editlib import analyses, runs

    frame = runs.runs_frame(analyses.find_root(root))
    if as_json:
        return typer.echo(frame.to_json(orient="records", indent=1, force_ascii=False))
    columns = ["analysis", "profile", "model", "n", "seed", "started", "seconds", "run", "published"]
    rows = [["" if value != value else value for value in row] for row in frame[columns].itertuples(index=False)]
    typer.echo(table([columns, *rows]) if rows else "no runs yet; execute one with: editlib run --all --profile quick")


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="Id of a local run, as `editlib runs` shows it.")],
    root: Root = None,
) -> None:
    """Check a local run and give it its final name, so that git and the book keep it.

    Example: editlib publish 0123456789ab
    """
    from editlib import analyses, runs

    typer.echo(_relative(runs.publish(run, analyses.find_root(root))))


# -- testbed -------------------------------------------------------------------------------------------


@testbed_app.command("train")
def train_twin(
    name: Annotated[str, typer.Argument(help="anchored or control.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder; a checkpoint lies beside it meanwhile.  [default: models/NAME]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of world, prose, weights and batches.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.  [default: the recipe's]")] = None,
    device: Device = "cpu",
) -> None:
    """Train a testbed model from scratch; call it again after an interruption and it goes on.

    Example: editlib testbed train anchored
    """
    from editlib.testbed.train import RECIPES, train

    if name not in RECIPES:
        raise EditlibError(f"testbed model {name!r} is unknown; use one of {', '.join(RECIPES)}")
    out = out or Path("models") / name
    _check_new(out)
    recipe = replace(RECIPES[name], seed=seed)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    typer.echo(str(train(recipe, out.absolute(), name=f"testbed/{name}", device=_device(device))))


@testbed_app.command("info")
def testbed_info(as_json: Json = False) -> None:
    """Show how the shipped testbed models were trained, and check their files against their cards.

    Example: editlib testbed info
    """
    cards = [_card(path) for path in sorted(TESTBED.glob("*/card.json"))]
    if not cards:
        raise EditlibError(f"{TESTBED} holds no model; install editlib again")
    if as_json:
        return typer.echo(to_json(cards))
    names = list(dict.fromkeys(key for card in cards for key in card if not isinstance(card[key], Mapping)))
    typer.echo(table([[name, *(card.get(name) for card in cards)] for name in names]))


def _card(path: Path) -> dict[str, Any]:
    """One model's card, and whether its weights are the ones it was written for."""
    card: dict[str, Any] = json.loads(path.read_text("utf-8"))
    digest = hashlib.sha256((path.parent / "model.safetensors").read_bytes()).hexdigest()
    verdict = "matches its card" if card.get("sha256") == digest else f"DIFFERS from its card: {digest}"
    return card | {"held_out_loss": card["losses"]["held_out"], "file": verdict}
