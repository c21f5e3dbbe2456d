"""Commands about analyses: execute them; list, show, check, cite, compare and publish their runs."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.cli.options import (
    CountOption,
    CpusOption,
    DeviceOption,
    GpusOption,
    JsonOption,
    RayOption,
    pairs,
    workers_of,
)
from editlib.cli.output import Stop, emit, note
from editlib.errors import EditlibError, unknown
from editlib.text import flat, short, table, with_interval

if TYPE_CHECKING:
    from editlib.runs.analyses import Analysis
    from editlib.runs.compare import Comparison
    from editlib.runs.manifest import Manifest

WIDEST = 80  # characters of a table's cell
NO_RUNS = "no runs yet; execute one with: editlib run --all --profile quick"
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.")]
Root = Annotated[Path | None, typer.Option(help="The project's folder.  [default: the one you are in]")]


def run(
    analysis: Annotated[
        str | None, typer.Argument(metavar="ANALYSIS", help="A notebook in notebooks/.", show_default=False)
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE, NAME=VALUE", help="Set a parameter; repeat for more."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Set of parameter values the notebook declares: quick, full.")] = "quick",
    every: Annotated[bool, typer.Option("--all", help="Run every analysis that has no run for its spec yet.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Analyses at a time; they share the cores.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Execute even if that was done before.")] = False,
    ray: RayOption = None,
    workers: CountOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    device: DeviceOption = "cpu",
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds a cell may take.  [default: no limit]")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List analyses and parameters, run nothing.")] = False,
    root: Root = None,
    as_json: JsonOption = False,
) -> None:
    """Execute an analysis into book/runs/ANALYSIS/local-RUN/, unless that was done before.

    The same notebook, parameters, code, models and data are the same spec; its run is reused, whatever device it was
    on. With --ray workers of a cluster execute analyses side by side; its machines share the project's folder.

    Example: editlib run pilot --profile quick -p n 20 -p method c-rome
    """
    from editlib.cluster.connection import workers_for
    from editlib.runs import analyses
    from editlib.runs.execute import execute_all

    project, crew = analyses.find_root(root), workers_of(ray, workers, cpus, gpus, as_json=as_json)
    if not (every or listed) and analysis is None:
        raise EditlibError(f"name an analysis ({', '.join(analyses.names(project))}) or give --all")
    if every and (analysis or parameter):
        raise EditlibError("--all takes neither an analysis nor -p; leave one of them out")
    names = analyses.names(project) if analysis is None else [analysis]
    if listed:
        known = [analyses.read(name, project) for name in names]
        return emit([_about(one) for one in known] if as_json else "\n\n".join(map(_described, known)))
    given = pairs(parameter or [])
    outcomes = execute_all(
        names, jobs=jobs, root=project, workers=workers_for(crew), parameters=given, profile=profile, force=force,
        timeout=timeout, device="cuda" if gpus else device,
    )  # fmt: skip
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors and not every:
        raise Stop(str(errors[0]), 2 if isinstance(errors[0], EditlibError) else 1) from errors[0]
    done = [outcome.run for outcome in outcomes if outcome.run]
    if as_json:
        emit([{"analysis": m.analysis, "run": m.run, "spec": m.spec, "path": _relative(m.folder)} for m in done])
    elif done:
        lines = [f"{manifest.analysis}: {_relative(manifest.folder)}" for manifest in done]
        emit("\n".join([*lines, pages(project)]))
    for error in errors:
        note(str(error))
    if errors:
        raise Stop(f"{len(errors)} of {len(outcomes)} analyses failed, which are named above", 1)


def runs(
    analysis: Annotated[
        str | None, typer.Argument(metavar="ANALYSIS", help="Only its runs.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model.")] = None,
    profile: Annotated[str | None, typer.Option(help="Only runs of this profile.")] = None,
    published: Annotated[
        bool | None, typer.Option("--published/--local", help="Only published ones, or only those not.")
    ] = None,
    spec: Annotated[str | None, typer.Option(help="Only runs of this spec, or of one that begins so.")] = None,
    sort: Annotated[str, typer.Option(metavar="COLUMN", help="Column to sort by; -COLUMN for descending.")] = "started",
    root: Root = None,
    as_json: JsonOption = False,
) -> None:
    """List the project's runs, oldest first.

    Example: editlib runs pilot --profile full --sort -seconds
    """
    from editlib.runs import analyses
    from editlib.runs import folders as runs

    project = analyses.find_root(root)
    frame = runs.runs_frame(project)
    if analysis is not None and analysis not in (known := sorted({*analyses.names(project), *frame["analysis"]})):
        raise unknown("analysis", analysis[:WIDEST], known)
    wanted = {"analysis": analysis, "model": model, "profile": profile, "published": published}
    for column, value in wanted.items():
        frame = frame if value is None else frame[frame[column] == value]
    frame = frame[frame["spec"].str.startswith(spec or "")] if len(frame) else frame
    if (column := sort.removeprefix("-")) not in runs.COLUMNS:
        raise unknown("column", column[:WIDEST], runs.COLUMNS)
    frame = frame.sort_values(column, ascending=not sort.startswith("-"), kind="stable")
    if as_json:
        return emit(json.loads(frame.to_json(orient="records")))
    columns = ["analysis", "profile", "model", "n", "seed", "started", "seconds", "run", "published"]
    rows = [["" if v != v else _cell(v) for v in row] for row in frame[columns].itertuples(index=False)]
    filtered = spec is not None or any(value is not None for value in wanted.values())
    nothing = "no such runs; `editlib runs` lists all" if filtered else NO_RUNS
    typer.echo(table([columns, *rows]) if rows else nothing)


def show(run: RunId, root: Root = None, as_json: JsonOption = False) -> None:
    """Show what a run's manifest says: what was asked, where it was executed, what came out.

    Example: editlib show 0123456789ab
    """
    from editlib.runs import analyses, manifest
    from editlib.runs import folders as runs

    shown = runs.find(run, analyses.find_root(root))
    emit(json.loads(manifest.as_text(shown.record)) if as_json else "\n\n".join(_sections(shown)))


def verify(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Id of a run, or the beginning of one.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every run.")] = False,
    root: Root = None,
) -> None:
    """Hash a run's files again and name the first that is not as the run's id says; then the status is 1.

    Example: editlib verify --all
    """
    from editlib.runs import analyses, manifest
    from editlib.runs import folders as runs

    if every == (run is not None):
        raise EditlibError("name one run to check, or give --all")
    project = analyses.find_root(root)
    folders = runs.run_folders(project) if run is None else [runs.find_folder(run, project)]
    changed = 0
    for folder in folders:
        try:
            name = manifest.read_manifest(folder).difference()
            reason = name and f"{name} is not as the run's id says"
        except EditlibError as error:
            reason = f"{manifest.NAME} is damaged: {error}"
        if reason:
            changed += 1
            emit(f"{_relative(folder)}: {reason}")
    count = f"{len(folders)} run{'' if len(folders) == 1 else 's'}"
    if changed:
        raise Stop(f"{changed} of {count} changed; restore the files, or execute it again", 1)
    emit(f"{count} checked: every file is as the ids say" if folders else NO_RUNS)


def cite(
    run: RunId,
    form: Annotated[str, typer.Option("--format", help="bibtex, apa or cff.")] = "bibtex",
    root: Root = None,
) -> None:
    """Print how to cite a run: with its page's address and today's date, and the project's DOI and SWHID, where
    CITATION.cff tells them.

    Example: editlib cite 0123456789ab --format apa
    """
    from editlib.runs import analyses, citation
    from editlib.runs import folders as runs

    root = analyses.find_root(root)
    if form not in citation.FORMATS:
        raise unknown("format", form[:WIDEST], citation.FORMATS)
    cited = runs.find(run, root)
    if (name := cited.difference()) is not None:
        raise EditlibError(f"run {cited.run} cannot be cited: {name} was changed; restore it")
    if not cited.published:
        note(f"run {cited.run} is local: only this machine has it until it is published")
    where = analyses.where(root)
    if where.site and cited.published:
        where = replace(where, accessed=datetime.now(UTC).date().isoformat())
    emit(citation.FORMATS[form](cited, where).rstrip())


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Id of a run, or the beginning of one.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Id of another.")],
    root: Root = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: what was asked, where they were executed, and the numbers side by side.

    Example: editlib compare 0123456789ab ba9876543210
    """
    from editlib.runs import analyses
    from editlib.runs import folders as runs
    from editlib.runs.compare import compare

    project = analyses.find_root(root)
    first, second = runs.find(a, project), runs.find(b, project)
    comparison = compare(first, second)
    emit(comparison.record if as_json else "\n\n".join(_compared(first, second, comparison)))


def publish(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a local run, or the beginning of one.")],
    author: Annotated[
        list[str] | None,
        typer.Option(help="Who executed it; repeat for more. Needed.", show_default=False),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=ADDRESS", help="Where a local model is from, id@commit say; repeat for more."),
    ] = None,
    root: Root = None,
) -> None:
    """Check a local run and give it its final name, so that git and the book keep it.

    What --author and --source tell becomes part of the manifest, so that the run gets another id.

    Example: editlib publish 0123456789ab --author "Ada Lovelace" --source my-model=org/name@COMMIT
    """
    from editlib.runs import analyses, publishing

    entries = [entry.partition("=") for entry in source or []]
    if lonely := [name for name, _, address in entries if not address]:
        raise EditlibError(f"--source {lonely[0]} tells no address; write --source MODEL=ADDRESS")
    sources = {name: address for name, _, address in entries}
    emit(_relative(publishing.publish(run, analyses.find_root(root), authors=author or (), sources=sources)))


def pages(root: Path) -> str:
    """How the pages of a project's runs are made: a companion has no Makefile."""
    command = "make site" if (root / "Makefile").is_file() else "jupyter-book build book/ --all"
    return f"their pages: {command}, then open _build/html/runs.html"


def _sections(run: "Manifest") -> Iterator[str]:
    """The parts of what `show` prints."""
    git = (run.git.commit or "unknown") + (" and changes" if run.git.dirty else "")
    inputs = asdict(run.inputs)
    named = {f"{kind} {name}": digest for kind in ("models", "data", "files") for name, digest in inputs[kind].items()}
    software = asdict(run.environment) | {"packages": f"{len(run.environment.packages)}, listed by --json"}
    yield f"{run.title}\n" + _listed(
        run=run.run,
        spec=run.spec,
        analysis=run.analysis,
        profile=run.profile,
        state="published" if run.published else "local",
        folder=_relative(run.folder),
        executed=f"{run.started} to {run.finished}, {run.seconds:g} s",
    )
    yield "Parameters\n" + _listed(**run.parameters)
    yield "Inputs\n" + _listed(notebook=run.inputs.notebook, code=run.inputs.code, **named)
    if run.hparams:
        yield "Hyper-parameters\n" + _listed(**flat(run.hparams), **flat({"second moments": run.moments}))
    yield "Environment\n" + _listed(**software, commit=git)
    yield "Hardware\n" + _listed(**asdict(run.hardware) | {"gpus": ", ".join(run.hardware.gpus) or "none"})
    yield "Numbers\n" + _listed(**run.metrics)
    yield "Files\n" + _listed(**run.outputs)


def _compared(a: "Manifest", b: "Manifest", both: "Comparison") -> Iterator[str]:
    """The parts of what `compare` prints."""
    asked = f"One spec, {a.spec}: the same was asked." if both.same_spec else f"Two specs, {a.spec} and {b.spec}."
    other = "" if both.same_analysis else f" Two analyses, {a.analysis} and {b.analysis}."
    named = (f"{name} {run.run}  {run.analysis} {run.profile}  {run.started}" for name, run in (("A", a), ("B", b)))
    yield "\n".join([asked + other, *named])
    for name in ("parameters", "inputs", "environment", "hardware"):
        rows = [(difference.name, difference.a, difference.b) for difference in getattr(both, name)]
        yield f"{name.capitalize()}\n" + (_indented(["", "A", "B"], *rows) if rows else "  no difference")
    numbers = [
        (n.name, _measured(n.a, n.a_interval), _measured(n.b, n.b_interval), n.difference, n.ratio)
        for n in both.numbers
    ]
    yield "Numbers\n" + (_indented(["", "A", "B", "B - A", "B / A"], *numbers) if numbers else "  none")
    yield "Figures of both\n" + ("\n".join(f"  {name}" for name in both.figures) or "  none")


def _measured(value: object, interval: "tuple[object, object] | None") -> str:
    return with_interval(short(value), (short(interval[0]), short(interval[1])) if interval else None)


def _listed(**entries: object) -> str:
    return _indented(*entries.items()) if entries else "  none"


def _indented(*rows: Sequence[object]) -> str:
    return "\n".join(f"  {line}".rstrip() for line in table([list(map(_cell, row)) for row in rows]).splitlines())


def _cell(value: object) -> object:
    """Text that cannot do harm on a terminal, neither by its length nor by control characters; hashes in short."""
    if not isinstance(value, str):
        return value
    if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", value):
        return value[:12]
    text = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}…"


def _about(analysis: "Analysis") -> dict[str, Any]:
    """An analysis with its profiles and parameters, for JSON."""
    parameters = [
        {"name": p.name, "type": p.type, "default": p.default, "help": p.help} for p in analysis.parameters.values()
    ]
    about = {"analysis": analysis.name, "title": analysis.title, "profiles": analysis.profiles}
    return about | {"parameters": parameters}


def _described(analysis: "Analysis") -> str:
    """The same for people."""
    rows = [[p.name, p.type, json.dumps(p.default), p.help] for p in analysis.parameters.values()]
    head = f"{analysis.name}: {analysis.title} (profiles: {', '.join(analysis.profiles)})"
    return "\n".join([head, *([table(rows)] if rows else [])])


def _relative(path: Path) -> str:
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
