"""The command line: one function a command, heavy imports inside, mistakes told in one line."""

import hashlib
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
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
data_app = typer.Typer(help="Edit cases and texts: what is here, and where to get the rest.", rich_markup_mode=None)
app.add_typer(data_app, name="data")
mend_app = typer.Typer(help="Editors for the method mend, one for each model.", rich_markup_mode=None)
app.add_typer(mend_app, name="mend")
testbed_app = typer.Typer(help="The small models shipped with editlib.", rich_markup_mode=None)
app.add_typer(testbed_app, name="testbed")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Root = Annotated[Path | None, typer.Option(help="The project's folder.  [default: the one you are in]")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]


class Interrupted(Exception):
    """Ctrl-C, with what to do next."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 the user's mistake (one line on stderr)."""
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        status = app(_joined(arguments or ["--help"]), prog_name="editlib", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except Interrupted as error:
        return _complain(error, 130)
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
        waiting = len(joined) > 1 and joined[-2] in ("-p", "--parameter", "--hparam") and "=" not in joined[-1]
        joined[-1:] = [f"{joined[-1]}={argument}"] if waiting else [*joined[-1:], argument]
    return joined


def _pairs(parameters: Sequence[str]) -> dict[str, str]:
    """Names and values of `-p` options; raises `EditlibError` for a name without a value."""
    lonely = next((text for text in parameters if "=" not in text), None)
    if lonely is not None:
        raise EditlibError(f"-p {lonely} has no value; write -p {lonely} VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in parameters)}


def _values(parameters: Sequence[str]) -> dict[str, Any]:
    """Values of `-p` options as JSON where they are, so that `-p layers [1,2]` is a list; else as text."""
    return {name: _json(value) for name, value in _pairs(parameters).items()}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


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
    method: Annotated[
        str, typer.Option(help="ft, ft-l, mend, rome, c-rome, p-rome, r-rome, memit or emmet.")
    ] = "rome",
    flavour: Annotated[
        str | None, typer.Option(help="Settings of one lineage: meng-2022 or yang-2024.  [default: the equation's]")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer to edit.  [default: the model's preset]")] = None,
    covariance: Annotated[
        bool | None, typer.Option("--covariance/--no-covariance", help="Use the second moment of the keys.")
    ] = None,
    hparam: Annotated[
        list[str] | None,
        typer.Option("-p", "--hparam", metavar="NAME VALUE", help="Set any hyper-parameter; repeat for more."),
    ] = None,
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
    import torch

    from editlib import data, methods
    from editlib import stats as moments
    from editlib.edit import EditRequest
    from editlib.report import before_after

    request = EditRequest(prompt=prompt, subject=subject, target_new=target)
    _check_new(out)
    given = moments.load(stats) if stats else None
    torch.manual_seed(seed)
    lm = _load(model, dtype=dtype, device=device, revision=revision)
    measured = _texts(texts, model)
    named = {"layer": layer, "covariance": covariance}
    options = {name: value for name, value in named.items() if value is not None} | _values(hparam or [])
    hparams = methods.hparams_for(lm, method, flavour=flavour, **options)
    if given and methods.needs_moments(hparams):
        for needed in methods.layers_of(hparams):
            given.require(lm, needed)  # before any work is done
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


def _cases(name: str | None, model: str, *, lacking: str) -> list[Any]:
    """Edit cases by name, for testbed models their own if none is given; `lacking` says what is missing without."""
    from editlib import data

    name = name or ("testbed" if model.startswith("testbed/") else None)
    if name is None:
        raise EditlibError(f"{lacking}; give --data NAME or PATH")
    return data.cases(name)


def _load(model: str, *, dtype: str, device: str, revision: str | None) -> Any:
    """The model, quietly."""
    from editlib.model import load

    _hush()
    return load(model, dtype=dtype, device=device, revision=revision)


def _hush() -> None:
    """Do without the libraries' bars and warnings: an unreachable hub is one line, not one for each try."""
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _check_new(path: Path | None) -> None:
    """Refuse, before any work is done, an output that exists or cannot be made."""
    if path is None:
        return
    if path.exists():
        raise EditlibError(f"output {path} exists already; choose another")
    parent = next(place for place in path.absolute().parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EditlibError(f"output {path} cannot be written: {parent} is no writable folder")


# -- layers --------------------------------------------------------------------------------------------


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="testbed/anchored, testbed/control, a folder, or a hub id.")],
    cases: Annotated[
        str | None,
        typer.Option("--data", help="Facts in COUNTERFACT's form: a name or a path.  [default: testbed for testbed "
                                    "models]"),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Facts to trace, of those the model knows.")] = 50,
    window: Annotated[
        int | None, typer.Option(help="Layers restored at once, odd.  [default: about a fifth of them]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the facts drawn and of the noise.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")] = None,
    out: Annotated[Path | None, typer.Option(help="New file for the heat map: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Propose the layer to edit, by causal tracing on facts the model knows.

    Noise hides the subject; then the MLPs around each layer are restored, and the table shows how much of the true
    target's probability that brings back. The proposal has the largest effect at the subject's last token: a place
    to start from, to be checked by edits.

    Example: editlib layers testbed/anchored --out layers.png
    """
    from random import Random

    from editlib.causal import causal_trace

    _check_figure(out)
    pool = [case.request for case in _cases(cases, model, lacking=f"no facts to trace {model} on")]
    Random(seed).shuffle(pool)
    lm = _load(model, dtype=dtype, device=device, revision=revision)
    found = causal_trace(lm, pool, n=n, window=window, seed=seed, progress=sys.stderr.isatty())
    if out:
        _draw(found, out)
    typer.echo(to_json({"model": model, **found.record()}) if as_json else _layers_table(found))


def _check_figure(path: Path | None) -> None:
    _check_new(path)
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise EditlibError(f"output {path} is no figure's name; end it in .png, .svg or .pdf")


def _draw(found: Any, path: Path) -> None:
    """Write the heat map aside, then rename it."""
    import matplotlib

    from editlib import plot
    from editlib.store import aside

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(), aside(path) as place:
        plot.theme()
        plot.layers(found.effects, proposed=found.proposed).savefig(place, format=path.suffix[1:])


def _layers_table(found: Any) -> str:
    """Effects by layer and group, and what they say, for people."""
    cells = found.effects.map("{:z.3f}".format).replace("nan", "–").reset_index()
    effects = table([list(cells), *cells.to_numpy().tolist()])
    facts = [
        ("proposed", f"layer {found.proposed}"),
        ("facts", f"{found.facts} known, {found.window} layer{'s' if found.window > 1 else ''} restored at once"),
        ("P(true target)", f"{found.clean:.3g} clean, {found.corrupted:.3g} with the subject hidden"),
    ]
    return f"{effects}\n\n{table(facts)}"


# -- sweep ---------------------------------------------------------------------------------------------


@app.command()
def sweep(
    model: Annotated[str, typer.Option(help="testbed/anchored, testbed/control, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="New folder for the table, or with --resume the one to go on with.")],
    cases: Annotated[
        str | None,
        typer.Option("--data", help="Edit cases: a name or a path.  [default: testbed for testbed models]"),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="ft, ft-l, mend, rome, c-rome, p-rome, r-rome, memit or emmet; repeat for more.  "
                          "[default: rome]"),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(help="Texts to measure perplexity on: testbed-ppl-50, testbed-ppl-1k, or a JSON list of "
                          "strings or ME-PPL records.  [default: testbed-ppl-50 for testbed models]"),
    ] = None,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Cases to draw.  [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same sweep was interrupted.")] = False,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Edit on top of the edits before, instead of undoing each.")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="With --sequential: edits from one measurement to the next.  [default: 1]")
    ] = None,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="Leave the scores out, which is faster.")] = False,
    per_sentence: Annotated[bool, typer.Option("--per-sentence", help="Keep each text's perplexity too.")] = False,
    flavour: Annotated[
        str | None, typer.Option(help="Settings of one lineage: meng-2022 or yang-2024.  [default: the equation's]")
    ] = None,
    hparam: Annotated[
        list[str] | None,
        typer.Option("-p", "--hparam", metavar="NAME VALUE", help="Set a hyper-parameter of all methods; repeat."),
    ] = None,
    stats: Annotated[Path | None, typer.Option(help="File with second moments made for this model.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Texts (JSON list) for the second moments.")] = None,
    collapse_ratio: Annotated[float, typer.Option(help="Collapsed from this many times unedited on.")] = 5.0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Edit many cases, and keep a table of what each edit does: perplexity, scores, diagnostics.

    Each edit is undone before the next one, or with --sequential made on top of it. The folder is one parquet table;
    after an interruption the same command with --resume goes on.

    Example: editlib sweep --model testbed/anchored --method rome --method c-rome -n 100 --out rome
    """
    from editlib import data, methods
    from editlib import stats as moments
    from editlib.parts import check_folder
    from editlib.sequence import sequence
    from editlib.sequence import summary as of_sequences
    from editlib.sweep import summary as of_edits
    from editlib.sweep import sweep as single_edits

    if every and not sequential:
        raise EditlibError("--every is for --sequential; add that, or leave --every out")
    if sequential and (no_scores or per_sentence):
        raise EditlibError("--sequential keeps no scores and no sentences; leave --no-scores and --per-sentence out")
    _check_new(None if out.exists() else out)
    check_folder(out, resume=resume)
    pool, measured = _cases(cases, model, lacking=f"no cases to edit {model} with"), _texts(texts, model)
    if measured is None:
        raise EditlibError(f"no texts to measure the perplexity of {model} on; give --texts NAME or FILE")
    chosen = pool if n is None else data.draw(pool, n, seed=seed)
    options: dict[str, Any] = {
        "texts": measured, "out": out, "resume": resume, "progress": sys.stderr.isatty(),
        "stats": moments.load(stats) if stats else None, "corpus": data.texts(corpus) if corpus else None,
    }  # fmt: skip
    lm = _load(model, dtype=dtype, device=device, revision=revision)
    given = {"flavour": flavour} | _values(hparam or [])
    variants = {one: methods.hparams_for(lm, one, **given) for one in method or ["rome"]}
    try:
        if sequential:
            done = sequence(lm, chosen, methods=variants, every=every or 1, **options)
        else:
            options |= {"scores": not no_scores, "per_sentence": per_sentence}
            done = single_edits(lm, chosen, methods=variants, **options)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {out} keeps what is done: give the same command with --resume") from None
    found = (of_sequences if sequential else of_edits)(done, collapse_ratio=collapse_ratio)
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    if as_json:
        return typer.echo(to_json({"model": model, "cases": len(chosen), "folder": str(out), "methods": rows}))
    head = [name.replace("_", " ") for name in found.columns]
    typer.echo(f"{table([head, *(list(row.values()) for row in rows)])}\n\ntable: {out}")


# -- hardedit ------------------------------------------------------------------------------------------


@app.command()
def hardedit(
    model: Annotated[str, typer.Option(help="testbed/anchored, testbed/control, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="New folder for the set, or with --resume the one to go on with.")],
    author: Annotated[
        str, typer.Option(help="world: the testbed's, offline. openai: a model behind an OpenAI-compatible endpoint.")
    ] = "world",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Cases that should collapse the model.")] = 100,
    calls: Annotated[
        int | None, typer.Option(min=1, help="Calls at most, of ten records each.  [default: half as many as cases]")
    ] = None,
    author_model: Annotated[str | None, typer.Option(help="With openai: the model that writes.")] = None,
    base_url: Annotated[str | None, typer.Option(help="With openai: the endpoint.  [default: OpenAI's]")] = None,
    price_in: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens sent.")] = None,
    price_out: Annotated[float | None, typer.Option(min=0, help="Price of a million tokens received.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before calls that may cost money.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same set was interrupted.")] = False,
    texts: Annotated[
        str | None,
        typer.Option(help="Texts to measure perplexity on.  [default: testbed-ppl-50 for testbed models]"),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Texts (JSON list) for the second moments.")] = None,
    collapse_ratio: Annotated[float, typer.Option(help="Collapsed from this many times unedited on.")] = 5.0,
    seed: Annotated[int, typer.Option(help="With world: seed of its records.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Build a set of cases that collapse a model with one ROME edit each, as HardEdit was built.

    An author writes records, ten a call; those that do not collapse the model are set aside with the reason. The key
    of an endpoint is read from OPENAI_API_KEY. Every reply is kept at once: after an interruption the same command
    with --resume goes on, and asks for nothing twice.

    Example: editlib hardedit --model testbed/anchored --author world -n 20 --out hard
    """
    from editlib import data
    from editlib import hardedit as making

    if author not in ("world", "openai"):
        raise EditlibError(f"author {author!r} is unknown; use world or openai")
    making.check_folder(out, resume=resume)
    measured = _texts(texts, model)
    if measured is None:
        raise EditlibError(f"no texts to measure the perplexity of {model} on; give --texts NAME or FILE")
    writer: making.Author = making.WorldAuthor(seed)
    most = calls or making.most_calls(n)
    if author == "openai":
        if author_model is None:
            raise EditlibError("no model to write records; give --author-model NAME")
        writer = making.OpenAIAuthor(author_model, base_url)
        writer.client  # noqa: B018  raises without a key
        typer.echo(f"cost: {making.estimate(most, price_in=price_in, price_out=price_out)}", err=True)
        if not yes:
            typer.confirm("go on?", abort=True, err=True)
    lm = _load(model, dtype=dtype, device=device, revision=revision)
    try:
        done = making.build(
            lm, writer, n=n, out=out, texts=measured, collapse_ratio=collapse_ratio, calls=most, resume=resume,
            corpus=data.texts(corpus) if corpus else None,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {out} keeps what is done: give the same command with --resume") from None
    reasons = Counter(line["reason"] for line in done.rejected)
    if as_json:
        report = {"file": str(done.path), "accepted": len(done.accepted), "calls": done.calls, "rejected": reasons}
        return typer.echo(to_json(report))
    rows = [["accepted", len(done.accepted)], ["rejected", len(done.rejected)], ["calls now", done.calls]]
    most_common = [f"  {count} of the rejected: {reason}" for reason, count in reasons.most_common(5)]
    typer.echo("\n".join([table(rows), *most_common, f"set: {done.path}"]))


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


# -- data ----------------------------------------------------------------------------------------------


@data_app.command("list")
def list_data(as_json: Json = False) -> None:
    """List the known files of edit cases and texts: what is here, how to get the rest, and their licences.

    Example: editlib data list
    """
    from editlib.sources import SHIPPED, SOURCES

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "path": str(path),
            "records": None,
            "licence": "MIT",
            "about": "shipped with editlib",
            "how": None,
        }
        for name, path in SHIPPED.items()
    ]
    for source in SOURCES.values():
        found = {key: getattr(source, key) for key in rows[0]}
        rows.append(found | {"path": str(source.path) if source.here else None})
    if as_json:
        return typer.echo(to_json(rows))
    columns = ["name", "records", "licence", "about"]
    shown = [["here" if row["path"] else "absent", *(row[column] for column in columns)] for row in rows]
    missing = [f"{row['name']}: {row['how']}" for row in rows if not row["path"]]
    typer.echo("\n".join([table([["file", *columns], *shown]), *missing]))


@data_app.command("get")
def get_data(
    name: Annotated[str, typer.Argument(help="A name that `editlib data list` shows.")], as_json: Json = False
) -> None:
    """Download a file from where its authors put it, check it, and keep it in the user's cache.

    A transfer that broke off goes on where it stopped. EDITLIB_CACHE names another cache folder.

    Example: editlib data get me-ppl-50
    """
    from editlib import data

    report = _data_report(name, data.get(name, progress=sys.stderr.isatty()))
    typer.echo(to_json(report) if as_json else _data_text(report, limit=10))


@data_app.command("import")
def import_data(
    name: Annotated[str, typer.Argument(help="A name that `editlib data list` shows.")],
    file: Annotated[Path, typer.Argument(help="The file you have: a JSON list, or JSON lines.")],
    as_json: Json = False,
) -> None:
    """Check a file you have, copy it into the user's cache under a name, and list its rejected records.

    Example: editlib data import hardcf HardCF.json
    """
    from editlib import data

    report = _data_report(name, data.import_file(name, file))
    typer.echo(to_json(report) if as_json else _data_text(report))


@data_app.command("check")
def check_data(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="What to check.  [default: all that is here]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read files again and show their form, number of records and sha256, and the first rejected records.

    Example: editlib data check testbed
    """
    from editlib import data

    reports = [_data_report(one, data.check(one)) for one in ([name] if name else data.present())]
    typer.echo(to_json(reports) if as_json else "\n".join(_data_text(report, limit=10) for report in reports))


def _data_report(name: str, reading: Any) -> dict[str, Any]:
    """What was read, as JSON; `published` is the number of records the authors' file has."""
    from editlib import data
    from editlib.sources import SOURCES

    return {
        "name": name, "path": str(data.locate(name)), "sha256": data.fingerprint(name), "form": reading.form,
        "records": reading.records, "published": SOURCES[name].records if name in SOURCES else None,
        "rejected": [asdict(item) for item in reading.rejected],
    }  # fmt: skip


def _data_text(report: dict[str, Any], *, limit: int | None = None) -> str:
    """A report with its first `limit` rejected records."""
    name, records, published, rejected = (report[key] for key in ("name", "records", "published", "rejected"))
    count = f"{records} records" if published in (None, records) else f"{records} of {published} records"
    head = f"{name}: {count} in form {report['form']}, {len(rejected)} rejected, sha256 {report['sha256'][:12]}"
    lines = [f"  record {item['position']} (line {item['line']}): {item['reason']}" for item in rejected[:limit]]
    more = len(rejected) - len(lines)
    return "\n".join(
        [f"{head}, {report['path']}", *lines, *([f"  and {more} more; --json lists them"] if more else [])]
    )


# -- tasks ---------------------------------------------------------------------------------------------


@app.command()
def tasks(
    model: Annotated[str, typer.Option(help="testbed/anchored, testbed/control, a folder, or a hub id.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="testbed-choice, testbed-cloze, testbed-qa, piqa, hellaswag, lambada_standard, nq_open, "
                          "squadv2 or mmlu; repeat for more.  [default for testbed models: the first three]"),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=PATH", help="Questions of a task in a local file; repeat for more."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.  [default: all]")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Score a model on downstream tasks, by lm-evaluation-harness.

    Example: editlib tasks --model testbed/anchored --limit 50
    """
    from editlib import tasks as downstream

    files = _files(file or [])
    names = task or list(files) or (downstream.TESTBED_TASKS if model.startswith("testbed/") else ())
    downstream.check(names, limit=limit, files=files)  # before the model is loaded
    lm = _load(model, dtype=dtype, device=device, revision=revision)
    rows = downstream.evaluate(lm, names, limit=limit, files=files).to_dict(orient="records")
    typer.echo(to_json(rows) if as_json else table([downstream.COLUMNS, *(list(row.values()) for row in rows)]))


def _files(entries: Sequence[str]) -> dict[str, str]:
    """Paths by task, of `--file` options."""
    lonely = next((entry for entry in entries if "=" not in entry), None)
    if lonely is not None:
        raise EditlibError(f"--file {lonely} names no task or no path; write --file TASK=PATH")
    return {task: path for task, _, path in (entry.partition("=") for entry in entries)}


# -- mend ----------------------------------------------------------------------------------------------


@mend_app.command("train")
def train_editor(
    model: Annotated[str, typer.Option(help="testbed/anchored, testbed/control, a folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="New file for the editor; a checkpoint lies beside it meanwhile.")],
    data: Annotated[
        str | None,
        typer.Option(help="Edit cases to train on: a name or a path.  [default, for testbed models: cases about "
                          "facts that the testbed's own cases leave alone]"),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="How many of the last layers it edits.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of its networks.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Most training steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Edits a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Of its networks.")] = None,
    step_size: Annotated[float | None, typer.Option(help="What its changes are multiplied by at first.")] = None,
    edit_weight: Annotated[float | None, typer.Option(min=0, help="Of the edits' loss; locality has 1.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Steps to go on without a better held-out loss.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of networks, batches and held-out subjects.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    revision: Annotated[str | None, typer.Option(help="Commit of a hub model, 40 digits.")] = None,
) -> None:  # fmt: skip
    """Train the editor that the method mend needs; call it again after an interruption and it goes on.

    Options left out are the recipe's. Cases of a tenth of the subjects are held out: they make the curve that is
    printed and kept in the file, and end the training when it stops falling.

    Example: editlib mend train --model testbed/anchored --out editor.safetensors
    """
    from editlib.methods.editor import load_editor
    from editlib.methods.training import MendRecipe, train

    _check_new(out)
    options = {
        "layers": layers, "rank": rank, "steps": steps, "batch": batch, "learning_rate": learning_rate,
        "step_size": step_size, "edit_weight": edit_weight, "patience": patience, "seed": seed,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    cases = _training_cases(data, model)
    lm = _load(model, dtype=dtype, device=device, revision=revision)
    said = {"model": model, "data": data, "dtype": None if dtype == "float32" else dtype, "revision": revision} | given
    command = ["editlib", "mend", "train", *_options(said | {"out": out.name})]
    train(lm, cases, replace(MendRecipe(), **given), out, command=shlex.join(command))
    curve = load_editor(out, lm)[1].curve
    typer.echo(table([list(curve[0]), *(list(entry.values()) for entry in curve)]))
    typer.echo(f"editor: {out}; use it with method mend, hyper-parameter editor={out}")


def _training_cases(data: str | None, model: str) -> list[Any]:
    from editlib.data import cases
    from editlib.testbed.cases import training_cases
    from editlib.testbed.world import build

    if data is None and not model.startswith("testbed/"):
        raise EditlibError(f"no cases to train an editor of {model} on; give some with --data NAME or --data FILE")
    return training_cases(build()) if data is None else cases(data)


def _options(values: Mapping[str, object]) -> list[str]:
    """Options of a command line, without those that have no value."""
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None]
    return [part for pair in pairs for part in pair]


# -- bench ---------------------------------------------------------------------------------------------


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Option(help="testbed, or gpt2, gpt2-xl, gpt-j-6b, llama-2-7b in their true shapes with random weights "
                          "(nothing is downloaded)."),
    ] = "testbed",
    edits: Annotated[int, typer.Option(min=1, help="Edits the engine makes side by side.")] = 16,
    plain_edits: Annotated[int, typer.Option(min=1, help="Edits made the plain way, one at a time.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="How often both are done in turn; seconds are medians.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each search.  [default: the preset's]")] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts that perplexity is measured on.")] = 50,
    longest: Annotated[int, typer.Option(min=12, help="Tokens of the longest of them; the mean is 0.45 of it.")] = 59,
    before: Annotated[int, typer.Option(min=0, help="Tokens of prose put before each prompt.")] = 0,
    profiled: Annotated[
        bool, typer.Option("--profile", help="Also show the engine's ten most expensive operators.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure what a ROME edit costs: the plain way, as the released codes go it, beside the engine.

    Both ways search v* for the same requests, edit, and measure perplexity on the same texts. Shown per edit: seconds
    and operations of each stage, the least operations an exact method needs, peak memory, and how far the results are
    apart.

    Example: editlib bench --model gpt2 --edits 16
    """
    from editlib import bench

    _hush()
    work = bench.work(
        bench.model(model, dtype=dtype, device=device),
        edits=edits, steps=steps, texts=texts, longest=longest, before=before,
    )  # fmt: skip
    report = bench.bench(work, plain_edits=plain_edits, rounds=rounds, progress=sys.stderr.isatty())
    operators = bench.profile(work) if profiled else []
    if as_json:
        return typer.echo(to_json(report.record() | ({"profile": operators} if profiled else {})))
    rows = [list(operator.values()) for operator in operators]
    shown = table([["operator", "calls", "seconds", "share"], *rows]) if rows else ""
    typer.echo("\n\n".join(filter(None, [report.table(), shown])))


# -- testbed -------------------------------------------------------------------------------------------


@testbed_app.command("train")
def train_twin(
    name: Annotated[str, typer.Argument(help="anchored, control, rotary or encdec.")],
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
    from editlib.model import require_device
    from editlib.testbed.train import RECIPES, train

    if name not in RECIPES:
        raise EditlibError(f"testbed model {name!r} is unknown; use one of {', '.join(RECIPES)}")
    out = out or Path("models") / name
    _check_new(out)
    recipe = replace(RECIPES[name], seed=seed)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    typer.echo(str(train(recipe, out.absolute(), name=f"testbed/{name}", device=require_device(device))))


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
