"""Commands that make many edits: keep a table of them, build a set of hard cases, measure what an edit costs."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from editlib.cli.options import (
    CasesOption,
    CollapseRatioOption,
    CorpusOption,
    CountOption,
    CpusOption,
    DeviceOption,
    DtypeOption,
    FirstPositionOption,
    FlavourOption,
    GpusOption,
    HparamsOption,
    JsonOption,
    LayoutOption,
    MethodsOption,
    ModelOption,
    MomentTokensOption,
    MomentWindowOption,
    PresetOption,
    RayOption,
    RevisionOption,
    SplitOption,
    StatsOption,
    TextsOption,
    cases_for,
    check_new,
    check_resumed,
    hush,
    load_model,
    one_of,
    texts_for,
    texts_of,
    values,
    workers_of,
)
from editlib.cli.output import Stop, alive, emit, note
from editlib.editing.names import SequenceGuard
from editlib.errors import EditlibError
from editlib.models.names import of_testbed
from editlib.text import table

AUTHORS = ("world", "facts", "openai")


def sweep(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="New folder for the table, or with --resume the one to go on with.")],
    cases: CasesOption = None,
    split: SplitOption = None,
    method: MethodsOption = None,
    texts: TextsOption = None,
    n: Annotated[int | None, typer.Option("-n", "--n", min=1, help="Cases to draw.  [default: all]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same sweep was interrupted.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: make the rows that failed again.")
    ] = False,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Edit on top of the edits before, instead of undoing each.")
    ] = False,
    every: Annotated[
        int | None, typer.Option(min=1, help="With --sequential: edits from one measurement to the next.  [default: 1]")
    ] = None,
    retest: Annotated[
        bool, typer.Option("--retest", help="With --sequential: score each edit when it is made, and all at the end.")
    ] = False,
    guard: Annotated[
        SequenceGuard | None,
        typer.Option(help="With --sequential: about an edit that may break the model.  [default: off]"),
    ] = None,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="Leave the scores out, which is faster.")] = False,
    per_sentence: Annotated[bool, typer.Option("--per-sentence", help="Keep each text's perplexity too.")] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Keep what the model says to each prompt, and the log-probability of each token of the target, too.",
        ),
    ] = False,
    flavour: FlavourOption = None,
    hparam: HparamsOption = None,
    preset: PresetOption = None,
    stats: StatsOption = None,
    corpus: CorpusOption = None,
    moment_tokens: MomentTokensOption = None,
    moment_window: MomentWindowOption = 128,
    first_position: FirstPositionOption = "keep",
    collapse_ratio: CollapseRatioOption = 5.0,
    ray: RayOption = None,
    workers: CountOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Edit many cases, and keep a table of what each edit does: perplexity, scores, diagnostics.

    Each edit is undone before the next one, or with --sequential made on top of it. The folder is one parquet table;
    after an interruption the same command with --resume goes on. With --ray workers of a cluster make the edits, and
    the table is the same; with --json too, progress is told on stderr in lines of JSON.

    Example: editlib sweep --model testbed/anchored --method rome --method c-rome -n 100 --out rome
    """
    if (every or retest or guard) and not sequential:
        name = "--every" if every else "--retest" if retest else "--guard"
        raise EditlibError(f"{name} is for --sequential; add that, or leave {name} out")
    if retry_failed and not resume:
        raise EditlibError("--retry-failed is for --resume; add that, or leave --retry-failed out")
    if sequential and (no_scores or per_sentence):
        raise EditlibError("--sequential keeps no scores and no sentences; leave --no-scores and --per-sentence out")
    crew = workers_of(ray, workers, cpus, gpus, as_json=as_json)
    check_new(None if out.exists() else out)
    check_resumed(out, resume=resume)
    pool, measured = (
        cases_for(model, cases, split=split),
        texts_for(model, texts),
    )
    source, hparams = texts_of(corpus), {"flavour": flavour, "preset": preset} | values(hparam)

    from editlib.data import datasets as data
    from editlib.editing import methods
    from editlib.editing import stats as moments
    from editlib.sweeps import sequential as sequences
    from editlib.sweeps import single
    from editlib.sweeps.parts import sweep_folder

    sweep_folder(out).check(resume=resume)
    chosen = pool if n is None else data.draw(pool, n, seed=seed)
    bar = sys.stderr.isatty()
    read = moments.MomentOptions(tokens=moment_tokens, window=moment_window, first_position=first_position)
    options: dict[str, Any] = {
        "texts": measured, "out": out, "resume": resume, "retry_failed": retry_failed, "answers": answers,
        "stats": moments.load(stats) if stats else None, "corpus": source, "moment_options": read,
        "workers": crew, "progress": bar,
    }  # fmt: skip
    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    variants = {name: methods.hparams_for(lm, name, **hparams) for name in method or ["rome"]}
    with resumable(out), alive(f"{len(chosen)} cases to edit {model} with", quiet=bar or as_json):
        if sequential:
            done = sequences.sequence(
                lm, chosen, methods=variants, every=every or 1, retest=retest, guard=guard or "off", **options
            )
        else:
            done = single.sweep(
                lm, chosen, methods=variants, scores=not no_scores, per_sentence=per_sentence, **options
            )
    summary = (sequences if sequential else single).summary(done, collapse_ratio=collapse_ratio)
    rows = summary.astype(object).where(summary.notna(), None).to_dict("records")
    head = [name.replace("_", " ") for name in summary.columns]
    text = f"{table([head, *(list(row.values()) for row in rows)])}\n\ntable: {out}"
    emit({"model": model, "cases": len(chosen), "folder": str(out), "methods": rows} if as_json else text)
    for label, errors in done[done["case_id"].notna()].groupby("method", sort=False)["error"]:
        if errors.notna().all():
            raise Stop(f"every edit by {label} failed, the first so: {errors.iloc[0]}", 1)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Say after an interruption how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        said = f"interrupted; {out} keeps what is done: give the same command with --resume"
        raise Stop(said, 130) from None


# -- hardedit ------------------------------------------------------------------------------------------


def hardedit(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="New folder for the set, or with --resume the one to go on with.")],
    author: Annotated[
        str | None,
        typer.Option(callback=one_of("author", AUTHORS), help="Offline: world, the testbed's, or facts, about the real "
                     "one. openai: a model behind an OpenAI-compatible endpoint.  [default: world for testbed models, "
                     "else facts]"),
    ] = None,
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
    texts: TextsOption = None,
    corpus: CorpusOption = None,
    collapse_ratio: CollapseRatioOption = 5.0,
    seed: Annotated[int, typer.Option(help="Of an offline author: seed of its records.")] = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Build a set of cases that collapse a model with one ROME edit each, as HardEdit was built.

    An author writes records, ten a call; those that do not collapse the model are set aside with the reason. The key
    of an endpoint is read from OPENAI_API_KEY. Every reply is kept at once: after an interruption the same command
    with --resume goes on, and asks for nothing twice.

    Example: editlib hardedit --model testbed/anchored --author world -n 20 --out hard
    """
    author = author or ("world" if of_testbed(model) else "facts")
    priced = {"--author-model": author_model, "--base-url": base_url, "--price-in": price_in, "--price-out": price_out}
    if author != "openai" and (idle := next((name for name, value in priced.items() if value is not None), None)):
        raise EditlibError(f"{idle} is for --author openai; add that, or leave {idle} out")
    check_resumed(out, resume=resume)
    measured, source = texts_for(model, texts), texts_of(corpus)

    from editlib.sweeps.hardedit.authors import FactsAuthor, OpenAIAuthor, WorldAuthor, estimate
    from editlib.sweeps.hardedit.build import build, most_calls, set_folder

    set_folder(out).check(resume=resume)
    most = calls or most_calls(n)
    paid = None
    if author == "openai":
        if author_model is None:
            raise EditlibError("no model to write records; give --author-model NAME")
        paid = OpenAIAuthor(author_model, base_url)
        paid.client  # noqa: B018  raises without a key
        note(f"cost: {estimate(most, price_in=price_in, price_out=price_out)}")
        if not yes:
            typer.confirm("go on?", abort=True, err=True)
    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    writer = paid or (WorldAuthor(seed) if author == "world" else FactsAuthor(seed, lm))
    with resumable(out), alive(f"{author} writes cases for {model}", quiet=as_json):
        done = build(
            lm, writer, n=n, out=out, texts=measured, corpus=source, collapse_ratio=collapse_ratio, calls=most,
            resume=resume,
        )  # fmt: skip
    reasons, accepted = Counter(line["reason"] for line in done.rejected), len(done.accepted)
    rows = [["accepted", accepted], ["rejected", len(done.rejected)], ["calls now", done.calls]]
    most_common = [f"  {count} of the rejected: {reason}" for reason, count in reasons.most_common(5)]
    told = {"file": str(done.path), "accepted": accepted, "calls": done.calls, "rejected": reasons}
    emit(told if as_json else "\n".join([table(rows), *most_common, f"set: {done.path}"]))
    if not accepted:
        raise Stop(f"no case collapses {model}; ask for more --calls, or lower --collapse-ratio", 1)


# -- bench ---------------------------------------------------------------------------------------------


def bench(
    model: Annotated[
        str,
        typer.Option(help="testbed; gpt2, gpt2-xl, gpt-j-6b, llama-2-7b in their true shapes with random weights "
                          "(nothing is downloaded); or any other model, as everywhere."),
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
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure what a ROME edit costs: the plain way, as the released codes go it, beside the engine.

    Both ways search v* for the same requests, edit, and measure perplexity on the same texts. Shown per edit: seconds
    and operations of each stage, the least operations an exact method needs, peak memory, and how far the results are
    apart.

    Example: editlib bench --model gpt2 --edits 16
    """
    from editlib.bench import measure
    from editlib.bench import report as both_paths
    from editlib.bench import work as workload

    hush()
    workload.check(model, edits=edits)
    both_paths.check(plain_edits, edits)
    work = workload.work(
        workload.model(model, dtype=dtype, device=device),
        edits=edits, steps=steps, texts=texts, longest=longest, before=before,
    )  # fmt: skip
    report = both_paths.bench(work, plain_edits=plain_edits, rounds=rounds, progress=sys.stderr.isatty())
    operators = measure.profile(work) if profiled else []
    if as_json:
        return emit(report.record() | ({"profile": operators} if profiled else {}))
    rows = [list(operator.values()) for operator in operators]
    shown = table([["operator", "calls", "seconds", "share"], *rows]) if rows else ""
    emit("\n\n".join(filter(None, [report.table(), shown])))
