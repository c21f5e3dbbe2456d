"""Commands about analyses: execute them, list their runs, publish one."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.cli_options import Json, Stop, pairs
from editlib.errors import EditlibError
from editlib.text import table, to_json

if TYPE_CHECKING:
    from editlib.analyses import Analysis

Root = Annotated[Path | None, typer.Option(help="The project's folder.  [default: the one you are in]")]


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
    jobs: Annotated[int, typer.Option(min=1, help="Analyses at a time; they share the cores.")] = 1,
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
    options: dict[str, Any] = {"profile": profile, "force": force, "timeout": timeout, "progress": sys.stderr.isatty()}
    given = pairs(parameter or [])
    try:
        done = runs.execute_all(names, jobs=jobs, root=place, parameters=given, **options)
    except runs.RunFailed as error:
        raise Stop(str(error), 1) from error
    found = [{"analysis": m.analysis, "run": m.run, "spec": m.spec, "path": _relative(m.folder)} for m in done]
    typer.echo(to_json(found) if as_json else "\n".join(f"{item['analysis']}: {item['path']}" for item in found))


def runs(root: Root = None, as_json: Json = False) -> None:
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


def publish(
    run: Annotated[str, typer.Argument(help="Id of a local run, as `editlib runs` shows it.")],
    root: Root = None,
) -> None:
    """Check a local run and give it its final name, so that git and the book keep it.

    Example: editlib publish 0123456789ab
    """
    from editlib import analyses, runs

    typer.echo(_relative(runs.publish(run, analyses.find_root(root))))


def _describe(analysis: "Analysis") -> str:
    """Title, profiles and parameters of an analysis."""
    rows = [[f"  {p.name}", p.type, json.dumps(p.default), p.help] for p in analysis.parameters.values()]
    head = f"{analysis.name}: {analysis.title} (profiles: {', '.join(analysis.profiles)})"
    return "\n".join([head, *([table(rows)] if rows else [])])


def _relative(path: Path) -> str:
    here = Path.cwd().resolve()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
