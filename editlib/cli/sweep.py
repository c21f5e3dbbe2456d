"""Commands that make many edits: keep a table of them, build a set of hard cases, measure what an edit costs."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Stop,
    Texts,
    cases_for,
    check_new,
    hush,
    load_model,
    texts_for,
    values,
)
from editlib.errors import EditlibError
from editlib.text import table, to_json

if TYPE_CHECKING:
    from editlib.sweeps.hardedit.authors import OpenAIAuthor
    from editlib.sweeps.hardedit.build import Built


def sweep(
    model: Model,
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
    texts: Texts = None,
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
    flavour: Flavour = None,
    hparam: Annotated[
        list[str] | None,
        typer.Option("-p", "--hparam", metavar="NAME VALUE", help="Set a hyper-parameter of all methods; repeat."),
    ] = None,
    stats: Stats = None,
    corpus: Corpus = None,
    collapse_ratio: CollapseRatio = 5.0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Edit many cases, and keep a table of what each edit does: perplexity, scores, diagnostics.

    Each edit is undone before the next one, or with --sequential made on top of it. The folder is one parquet table;
    after an interruption the same command with --resume goes on.

    Example: editlib sweep --model testbed/anchored --method rome --method c-rome -n 100 --out rome
    """
    from editlib.data import datasets as data
    from editlib.editing import methods
    from editlib.editing import stats as moments
    from editlib.sweeps.sequential import sequence
    from editlib.sweeps.sequential import summary as of_sequence
    from editlib.sweeps.single import summary as of_edits
    from editlib.sweeps.single import sweep as single_edits

    _check_sequential(sequential, every=every, no_scores=no_scores, per_sentence=per_sentence)
    _check_table(out, resume=resume)
    pool, measured = cases_for(model, cases, lacking=f"no cases to edit {model} with"), _needed_texts(model, texts)
    chosen = pool if n is None else data.draw(pool, n, seed=seed)
    options: dict[str, Any] = {
        "texts": measured, "out": out, "resume": resume, "progress": sys.stderr.isatty(),
        "stats": moments.load(stats) if stats else None, "corpus": data.texts(corpus) if corpus else None,
    }  # fmt: skip
    lm = load_model(model, dtype=dtype, device=device, revision=revision)
    given = {"flavour": flavour} | values(hparam or [])
    variants = {one: methods.hparams_for(lm, one, **given) for one in method or ["rome"]}
    together = partial(sequence, every=every or 1)
    singly = partial(single_edits, scores=not no_scores, per_sentence=per_sentence)
    with _resumable(out):
        done = (together if sequential else singly)(lm, chosen, methods=variants, **options)
    found = (of_sequence if sequential else of_edits)(done, collapse_ratio=collapse_ratio)
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    if as_json:
        return typer.echo(to_json({"model": model, "cases": len(chosen), "folder": str(out), "methods": rows}))
    head = [name.replace("_", " ") for name in found.columns]
    typer.echo(f"{table([head, *(list(row.values()) for row in rows)])}\n\ntable: {out}")


def _check_sequential(sequential: bool, *, every: int | None, no_scores: bool, per_sentence: bool) -> None:
    if every and not sequential:
        raise EditlibError("--every is for --sequential; add that, or leave --every out")
    if sequential and (no_scores or per_sentence):
        raise EditlibError("--sequential keeps no scores and no sentences; leave --no-scores and --per-sentence out")


def _check_table(out: Path, *, resume: bool) -> None:
    from editlib.sweeps.parts import sweep_folder

    check_new(None if out.exists() else out)
    sweep_folder(out).check(resume=resume)


def _needed_texts(model: str, name: str | None) -> list[str]:
    texts = texts_for(model, name)
    if texts is None:
        raise EditlibError(f"no texts to measure the perplexity of {model} on; give --texts NAME or FILE")
    return texts


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say after an interruption how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        said = f"interrupted; {out} keeps what is done: give the same command with --resume"
        raise Stop(said, 130) from None


# -- hardedit ------------------------------------------------------------------------------------------


def hardedit(
    model: Model,
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
    corpus: Corpus = None,
    collapse_ratio: CollapseRatio = 5.0,
    seed: Annotated[int, typer.Option(help="With world: seed of its records.")] = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Build a set of cases that collapse a model with one ROME edit each, as HardEdit was built.

    An author writes records, ten a call; those that do not collapse the model are set aside with the reason. The key
    of an endpoint is read from OPENAI_API_KEY. Every reply is kept at once: after an interruption the same command
    with --resume goes on, and asks for nothing twice.

    Example: editlib hardedit --model testbed/anchored --author world -n 20 --out hard
    """
    from editlib.data import datasets as data
    from editlib.sweeps.hardedit.authors import WorldAuthor, estimate
    from editlib.sweeps.hardedit.build import build, most_calls, set_folder

    if author not in ("world", "openai"):
        raise EditlibError(f"author {author!r} is unknown; use world or openai")
    set_folder(out).check(resume=resume)
    measured = _needed_texts(model, texts)
    writer = WorldAuthor(seed) if author == "world" else _endpoint(author_model, base_url)
    most = calls or most_calls(n)
    if author == "openai":
        typer.echo(f"cost: {estimate(most, price_in=price_in, price_out=price_out)}", err=True)
        if not yes:
            typer.confirm("go on?", abort=True, err=True)
    lm = load_model(model, dtype=dtype, device=device, revision=revision)
    source = data.texts(corpus) if corpus else None
    with _resumable(out):
        done = build(
            lm, writer, n=n, out=out, texts=measured, corpus=source, collapse_ratio=collapse_ratio, calls=most,
            resume=resume,
        )  # fmt: skip
    typer.echo(_built(done, as_json=as_json))


def _endpoint(model: str | None, base_url: str | None) -> "OpenAIAuthor":
    """A model that writes records; raises `EditlibError` without its name or a key."""
    from editlib.sweeps.hardedit.authors import OpenAIAuthor

    if model is None:
        raise EditlibError("no model to write records; give --author-model NAME")
    author = OpenAIAuthor(model, base_url)
    author.client  # noqa: B018  raises without a key
    return author


def _built(done: "Built", *, as_json: bool) -> str:
    """How many records were accepted and rejected, and why."""
    reasons = Counter(line["reason"] for line in done.rejected)
    accepted = len(done.accepted)
    if as_json:
        return to_json({"file": str(done.path), "accepted": accepted, "calls": done.calls, "rejected": reasons})
    rows = [["accepted", accepted], ["rejected", len(done.rejected)], ["calls now", done.calls]]
    most_common = [f"  {count} of the rejected: {reason}" for reason, count in reasons.most_common(5)]
    return "\n".join([table(rows), *most_common, f"set: {done.path}"])


# -- bench ---------------------------------------------------------------------------------------------


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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure what a ROME edit costs: the plain way, as the released codes go it, beside the engine.

    Both ways search v* for the same requests, edit, and measure perplexity on the same texts. Shown per edit: seconds
    and operations of each stage, the least operations an exact method needs, peak memory, and how far the results are
    apart.

    Example: editlib bench --model gpt2 --edits 16
    """
    from editlib.bench import measure as bench

    hush()
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
