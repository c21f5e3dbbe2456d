"""Commands about one model: edit a fact, propose the layer to edit, score it on tasks."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from editlib.cli.options import (
    CollapseRatio,
    Corpus,
    Device,
    Dtype,
    Flavour,
    Json,
    Model,
    Revision,
    Stats,
    Texts,
    cases_for,
    check_new,
    load_model,
    texts_for,
    values,
)
from editlib.errors import EditlibError
from editlib.text import table, to_json

if TYPE_CHECKING:
    from editlib.measuring.causal import CausalTrace


def edit(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Template with {} where the subject goes.")],
    subject: Annotated[str, typer.Option(help="What the prompt is about.")],
    target: Annotated[str, typer.Option(help="What should follow the prompt after the edit.")],
    method: Annotated[str, typer.Option(help="ft, ft-l, mend, rome, c-rome, p-rome, r-rome, memit or emmet.")] = "rome",
    flavour: Flavour = None,
    layer: Annotated[int | None, typer.Option(help="Layer to edit.  [default: the model's preset]")] = None,
    covariance: Annotated[
        bool | None, typer.Option("--covariance/--no-covariance", help="Use the second moment of the keys.")
    ] = None,
    hparam: Annotated[
        list[str] | None,
        typer.Option("-p", "--hparam", metavar="NAME VALUE", help="Set any hyper-parameter; repeat for more."),
    ] = None,
    stats: Stats = None,
    corpus: Corpus = None,
    texts: Texts = None,
    collapse_ratio: CollapseRatio = 5.0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    seed: Annotated[int, typer.Option(help="Seed of torch's random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New folder to save the edit in.")] = None,
    as_json: Json = False,
) -> None:
    """Edit one fact and show the model before and after.

    Prints the greedy continuation, the target's probability, perplexity, the denominator that foretells a
    collapse, and a verdict.

    Example: editlib edit --model testbed/anchored --prompt "{} is located in" --subject Jaklon --target Hifru
    """
    import torch

    from editlib.data import datasets as data
    from editlib.data.request import EditRequest
    from editlib.editing import methods
    from editlib.editing import stats as moments
    from editlib.measuring.report import before_after

    request = EditRequest(prompt=prompt, subject=subject, target_new=target)
    check_new(out)
    given = moments.load(stats) if stats else None
    torch.manual_seed(seed)
    lm = load_model(model, dtype=dtype, device=device, revision=revision)
    measured = texts_for(model, texts)
    named = {"layer": layer, "covariance": covariance}
    options = {name: value for name, value in named.items() if value is not None} | values(hparam or [])
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


# -- layers --------------------------------------------------------------------------------------------


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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
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

    from editlib.measuring.causal import causal_trace

    _check_figure(out)
    pool = [case.request for case in cases_for(model, cases, lacking=f"no facts to trace {model} on")]
    Random(seed).shuffle(pool)
    lm = load_model(model, dtype=dtype, device=device, revision=revision)
    found = causal_trace(lm, pool, n=n, window=window, seed=seed, progress=sys.stderr.isatty())
    if out:
        _draw(found, out)
    typer.echo(to_json({"model": model, **found.record()}) if as_json else _layers_table(found))


def _check_figure(path: Path | None) -> None:
    check_new(path)
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise EditlibError(f"output {path} is no figure's name; end it in .png, .svg or .pdf")


def _draw(found: "CausalTrace", path: Path) -> None:
    """Write the heat map aside, then rename it."""
    import matplotlib

    from editlib import plot
    from editlib.files import aside

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(), aside(path) as place:
        plot.theme()
        plot.layers(found.effects, proposed=found.proposed).savefig(place, format=path.suffix[1:])


def _layers_table(found: "CausalTrace") -> str:
    """Effects by layer and group, and what they say, for people."""
    cells = found.effects.map("{:z.3f}".format).replace("nan", "–").reset_index()
    effects = table([list(cells), *cells.to_numpy().tolist()])
    facts = [
        ("proposed", f"layer {found.proposed}"),
        ("facts", f"{found.facts} known, {found.window} layer{'s' if found.window > 1 else ''} restored at once"),
        (
            "P(first token of the true target)",
            f"{found.clean:.3g} clean, {found.corrupted:.3g} with the subject hidden",
        ),
    ]
    return f"{effects}\n\n{table(facts)}"


# -- tasks ---------------------------------------------------------------------------------------------


def tasks(
    model: Model,
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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Score a model on downstream tasks, by lm-evaluation-harness.

    Example: editlib tasks --model testbed/anchored --limit 50
    """
    from editlib.measuring import tasks as downstream

    files = _files(file or [])
    names = task or list(files) or (downstream.TESTBED_TASKS if model.startswith("testbed/") else ())
    downstream.check_tasks(names, limit=limit, files=files)  # before the model is loaded
    lm = load_model(model, dtype=dtype, device=device, revision=revision)
    rows = downstream.evaluate(lm, names, limit=limit, files=files).to_dict(orient="records")
    typer.echo(to_json(rows) if as_json else table([downstream.COLUMNS, *(list(row.values()) for row in rows)]))


def _files(entries: Sequence[str]) -> dict[str, str]:
    """Paths by task, of `--file` options."""
    lonely = next((entry for entry in entries if "=" not in entry), None)
    if lonely is not None:
        raise EditlibError(f"--file {lonely} names no task or no path; write --file TASK=PATH")
    return {task: path for task, _, path in (entry.partition("=") for entry in entries)}
