"""Commands about one model: edit facts, propose the layer to edit, score it on tasks."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from editlib.cli.options import (
    CasesOption,
    CollapseRatioOption,
    CorpusOption,
    DeviceOption,
    DtypeOfEditOption,
    DtypeOption,
    FirstPositionOption,
    FlavourOption,
    HparamsOption,
    JsonOption,
    LayoutOption,
    MethodOption,
    ModelArgument,
    ModelOption,
    MomentTokensOption,
    MomentWindowOption,
    PresetOption,
    RevisionOption,
    SplitOption,
    StatsOption,
    TextsOption,
    cases_for,
    check_new,
    known_data,
    load_for,
    load_model,
    texts_for,
    texts_of,
    values,
)
from editlib.cli.output import alive, emit, note
from editlib.data.sources import own
from editlib.editing.names import Guard
from editlib.errors import EditlibError
from editlib.text import duration, table

if TYPE_CHECKING:
    from editlib.data.request import EditRequest
    from editlib.measuring.causal import CausalTrace

PATIENCE = 20.0  # seconds; work that takes longer is foretold


def edit(
    model: ModelOption,
    prompt: Annotated[list[str] | None, typer.Option(help="Template with {} where the subject goes.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="What the prompt is about.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="What should follow the prompt after the edit.")] = None,
    separator: Annotated[
        str | None, typer.Option(help="Between prompt and target.  [default: a space, where one is written]")
    ] = None,
    requests: Annotated[
        str | None, typer.Option(callback=known_data, help="Edit cases to make in one edit: a name or a path.")
    ] = None,
    method: MethodOption = "rome",
    flavour: FlavourOption = None,
    layer: Annotated[int | None, typer.Option(help="Layer to edit.  [default: the model's preset]")] = None,
    covariance: Annotated[
        bool | None, typer.Option("--covariance/--no-covariance", help="Use the second moment of the keys.")
    ] = None,
    hparam: HparamsOption = None,
    preset: PresetOption = None,
    stats: StatsOption = None,
    corpus: CorpusOption = None,
    moment_tokens: MomentTokensOption = None,
    moment_window: MomentWindowOption = 128,
    first_position: FirstPositionOption = "keep",
    texts: TextsOption = None,
    bos: Annotated[bool, typer.Option("--bos", help="Put the tokenizer's BOS token before every text.")] = False,
    guard: Annotated[Guard, typer.Option(help="What to do about an edit that may break the model.")] = "warn",
    collapse_ratio: CollapseRatioOption = 5.0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    out: Annotated[Path | None, typer.Option(help="New folder to save the edit in.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Edit a fact and show the model before and after.

    Prints the greedy continuation, the target's probability, perplexity, the denominator that foretells a
    collapse, whether the edit holds, and a verdict. For several facts in one edit, repeat --prompt, --subject and
    --target, or give --requests; all methods but rome and its variants take them.

    Example: editlib edit --model testbed/anchored --prompt "{} is located in" --subject Jaklon --target Hifru
    """
    asked = _asked(prompt or [], subject or [], target or [], requests, separator)
    check_new(out)
    measured, source = texts_for(model, texts), texts_of(corpus)
    named = {"layer": layer, "covariance": covariance}
    options = {name: value for name, value in named.items() if value is not None}
    by_name = values(hparam)
    if twice := options.keys() & by_name.keys():
        name = min(twice)
        raise EditlibError(f"{name} is given twice, by --{name} and by -p {name}; leave one of them out")
    options |= by_name

    from editlib.editing import methods
    from editlib.editing import stats as moments
    from editlib.measuring.report import before_after
    from editlib.models.tokens import encode_texts

    given = moments.load(stats) if stats else None
    read = moments.MomentOptions(tokens=moment_tokens, window=moment_window, first_position=first_position)
    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    hparams = methods.hparams_for(lm, method, flavour=flavour, preset=preset, **options)
    if measured:
        encode_texts(lm, measured, bos=bos)  # what compute does not look at
    with alive(f"{method} edits {model}", quiet=as_json):
        change = methods.compute(
            lm, asked, method=method, hparams=hparams, stats=given, corpus=source, moment_options=read, guard=guard
        )
        report = before_after(lm, change, texts=measured, bos=bos, collapse_ratio=collapse_ratio)
    emit(report.record() if as_json else report.table())
    if out:
        change.save(out)  # last: what was printed is not lost with it
        note(f"the edit is saved in {out}")


def _asked(
    prompts: Sequence[str], subjects: Sequence[str], targets: Sequence[str], file: str | None, separator: str | None
) -> list["EditRequest"]:
    """What is asked of the edit, by options or by a file of cases."""
    from editlib.data.request import EditRequest

    counts = (len(prompts), len(subjects), len(targets))
    if file is not None and (any(counts) or separator is not None):
        said = "--prompt, --subject, --target and --separator"
        raise EditlibError(f"--requests holds prompts, subjects and targets; leave {said} out")
    if file is not None:
        return [case.request for case in cases_for("", file)]
    if not any(counts):
        raise EditlibError("no fact to edit; give --prompt, --subject and --target, or --requests FILE")
    if len(set(counts)) > 1:
        said = "{} --prompt, {} --subject and {} --target".format(*counts)
        raise EditlibError(f"{said} do not go together; give as many of each")
    return [
        EditRequest(prompt=prompt, subject=subject, target_new=target, separator=separator)
        for prompt, subject, target in zip(prompts, subjects, targets, strict=True)
    ]


# -- layers --------------------------------------------------------------------------------------------


def layers(
    model: ModelArgument,
    cases: CasesOption = None,
    split: SplitOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Facts to trace, of those the model knows.")] = 5,
    window: Annotated[
        int | None, typer.Option(help="Layers restored at once, odd.  [default: about a fifth of them]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the facts drawn and of the noise.")] = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    out: Annotated[Path | None, typer.Option(help="New file for the heat map: .png, .svg or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Propose the layer to edit, by causal tracing on facts the model knows.

    Noise hides the subject; then the MLPs around each layer are restored, and the table shows how much of the true
    target's probability that brings back. The proposal has the largest effect at the subject's last token: a place
    to start from, to be checked by edits. More facts (-n) say it more surely, and take longer.

    Example: editlib layers testbed/anchored --out layers.png
    """
    check_new(out)
    if out is not None and out.suffix not in (".png", ".svg", ".pdf"):
        raise EditlibError(f"output {out} is no figure's name; end it in .png, .svg or .pdf")
    pool = [case.request for case in cases_for(model, cases, split=split)]

    from random import Random

    from editlib.measuring import causal

    Random(seed).shuffle(pool)
    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    bar = sys.stderr.isatty()
    causal.check_trace(lm, n=n, window=window)
    facts = causal.known(lm, pool, n=n)
    seconds = causal.seconds_to_trace(lm, facts) if facts else 0.0
    if seconds > PATIENCE and not as_json:
        fewer = "; -n 1 is faster" if n > 1 else ""
        note(f"tracing {len(facts)} facts takes about {duration(seconds)}{fewer}")
    with alive(f"tracing facts that {model} knows", quiet=bar or as_json):
        traced = causal.causal_trace(lm, pool, n=n, window=window, seed=seed, progress=bar)
    emit({"model": model, **traced.record()} if as_json else _layers_table(traced))
    if out:
        _draw(traced, out)


def _draw(traced: "CausalTrace", path: Path) -> None:
    """Write the heat map aside, then rename it."""
    import matplotlib

    from editlib import plot
    from editlib.files import aside

    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(), aside(path) as writing:
        plot.theme()
        plot.layers(traced.effects, proposed=traced.proposed, facts=traced.facts).savefig(
            writing, format=path.suffix[1:]
        )


def _layers_table(traced: "CausalTrace") -> str:
    """Effects by layer and group, and what they say, for people."""
    cells = traced.effects.map("{:z.3f}".format).replace("nan", "–").reset_index()
    effects = table([list(cells), *cells.to_numpy().tolist()])
    facts = [
        ("proposed", f"layer {traced.proposed}"),
        ("facts", f"{traced.facts} known, {traced.window} layer{'s' if traced.window > 1 else ''} restored at once"),
        (
            "P(first token of the true target)",
            f"{traced.clean:.3g} clean, {traced.corrupted:.3g} with the subject hidden",
        ),
    ]
    return f"{effects}\n\n{table(facts)}"


# -- tasks ---------------------------------------------------------------------------------------------


def tasks(
    model: ModelOption,
    task: Annotated[
        list[str] | None,
        typer.Option(help="facts-choice, facts-cloze, facts-qa, the same of testbed, piqa, hellaswag, "
                          "lambada_standard, nq_open, squadv2 or mmlu; repeat for more.  "
                          "[default: the three of testbed for its models, else those of facts]"),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=PATH", help="Questions of a task in a local file; repeat for more."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.  [default: all]")] = None,
    edit: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of a saved edit to apply before."),
    ] = None,
    dtype: DtypeOfEditOption = None,
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Score a model on downstream tasks, by lm-evaluation-harness, as it is or with a saved edit applied.

    Example: editlib tasks --model testbed/anchored --limit 50
    """
    lonely = next((entry for entry in file or [] if "=" not in entry), None)
    if lonely is not None:
        raise EditlibError(f"--file {lonely} names no task or no path; write --file TASK=PATH")
    files = {name: path for name, _, path in (entry.partition("=") for entry in file or [])}

    from editlib.editing.edit import Edit
    from editlib.measuring import tasks as downstream

    names = task or list(files) or str(own(model, ",".join(downstream.TESTBED_TASKS))).split(",")
    downstream.check_tasks(names, limit=limit, files=files)  # before the model is loaded
    saved = Edit.load(edit) if edit else None
    if saved is not None:
        lm, saved = load_for(saved, model, dtype=dtype, device=device, revision=revision, layout=layout)
    else:
        lm = load_model(model, dtype=dtype or "float32", device=device, revision=revision, layout=layout)
    with saved.applied(lm) if saved else nullcontext():
        rows = downstream.evaluate(lm, names, limit=limit, files=files).to_dict(orient="records")
    emit(rows if as_json else table([downstream.COLUMNS, *(list(row.values()) for row in rows)]))
