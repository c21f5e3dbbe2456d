"""The command that takes a model of one's own from data to pages: checks, estimates, and one analysis after another."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.cli.options import (
    DeviceOption,
    JsonOption,
    ModelArgument,
    cases_for,
    load_model,
    pairs,
    texts_for,
    texts_of,
)
from editlib.cli.output import Stop, alive, emit, note
from editlib.cli.runs import Root, pages
from editlib.errors import EditlibError
from editlib.text import duration, table

if TYPE_CHECKING:
    from editlib.runs.manifest import Manifest
    from editlib.runs.plan import RunPlan
    from editlib.sweeps.trial import CostTrial

MAIN = (  # the experiments of both papers
    "pilot", "single-edits", "weight-change", "surrogate", "sequential", "hardedit", "denominator", "key-geometry",
    "consistent-keys", "first-token", "prefix-at-test", "why-first-token", "settings",
)  # fmt: skip
ALIKE, BEHIND_THE_START, OWN = 0.9, "text-start", "editlib.json"


@dataclass(frozen=True)
class Step:
    """One step: its name, what it is about, its seconds (None where nothing tells), and what is left to do."""

    name: str
    about: str
    seconds: float | None = 0.0
    done: bool = False

    @property
    def row(self) -> tuple[str, str, str]:
        """For people."""
        about = "unknown" if self.seconds is None else f"about {duration(self.seconds)}"
        return self.name, "done" if self.done else about, self.about


def rerun(
    model: ModelArgument,
    analyses: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=f"Analyses, with commas between.  [default: {', '.join(MAIN)}]"),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE, NAME=VALUE",
                     help="Set a parameter of the analyses that have it: "
                     "cases, texts, corpus, layer, n; repeat for more."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Set of parameter values: quick, full.")] = "quick",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and estimate, and execute nothing.")] = False,
    device: DeviceOption = "cpu",
    root: Root = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Execute the papers' experiments on a model of your own, from data to pages.

    First everything is checked, a unit of each kind of work is timed, and every step is listed with how long it will
    take. Then analyses run one after another; one that fails does not stop the others. After an interruption the same
    command goes on: what was executed is not repeated.

    Example: editlib rerun smollm2-135m --analyses denominator --dry-run
    """
    from editlib.runs.analyses import find_root

    project, given = find_root(root), pairs(parameter or [])
    if "model" in given:
        raise EditlibError(
            f"-p model={given['model']} beside the argument {model}; give the model once, as the argument"
        )
    names = [name.strip() for name in analyses.split(",") if name.strip()] if analyses is not None else [*MAIN]
    if not names:
        raise EditlibError(f"--analyses {analyses!r} names none; give some of {', '.join(MAIN)}, or leave it out")
    chosen = _parameters(names, project, {"model": model} | given)
    plans, done = _plans(chosen, project, profile)
    asked = {name: value for plan in plans.values() for name, value in plan.parameters.items() if name in given}
    trial = _trial(model, asked, device, quiet=as_json)
    if trial.alike >= ALIKE and trial.contexts != BEHIND_THE_START:
        note(
            f"at position 0 {model} hardly sees its word (keys of different words at layer {trial.layer}: cosine "
            f"{trial.alike:.2f}), so that what it writes behind single words is odd; contexts sampled behind the "
            f'token that begins a text are got by {OWN} beside it: {{"rome": {{"contexts": "{BEHIND_THE_START}"}}, '
            f'"memit": {{"contexts": "{BEHIND_THE_START}"}}}}'
        )
    steps = _steps(model, plans, done, trial, project)
    if not as_json:
        emit(_listed(steps))
    outcomes = [] if dry_run else [_execute(*each, project, profile, device) for each in chosen.items()]
    failed = {outcome.analysis: str(outcome.error) for outcome in outcomes if outcome.error}
    runs = {outcome.analysis: outcome.run.run for outcome in outcomes if outcome.run}
    if as_json:
        told = [{"step": s.name, "about": s.about, "seconds": s.seconds, "done": s.done} for s in steps]
        emit({"model": model, "profile": profile, "steps": told, "runs": runs, "failed": failed})
    elif runs:
        emit("\n".join([*(f"{name}: run {run}" for name, run in runs.items()), pages(project)]))
    for name, error in failed.items():
        note(f"{name}: {error}")
    if failed:
        raise Stop(f"{len(failed)} of {len(outcomes)} analyses failed, which are named above", 1)


def _parameters(names: Sequence[str], root: Path, given: dict[str, str]) -> dict[str, dict[str, object]]:
    """Of what is given, each analysis' own; raises `EditlibError` for an analysis that takes no model, or what no
    analysis has."""
    from editlib.runs.analyses import read

    known = {name: read(name, root).parameters.keys() for name in names}
    fixed = next((name for name, has in known.items() if "model" not in has), None)
    if fixed:
        raise EditlibError(f"analysis {fixed!r} takes no model; leave it out of --analyses")
    stray = next((name for name in given if not any(name in has for has in known.values())), None)
    if stray:
        raise EditlibError(f"parameter {stray!r} is unknown to {', '.join(names)}; see editlib run NAME --list")
    return {name: {key: value for key, value in given.items() if key in has} for name, has in known.items()}


def _plans(
    chosen: dict[str, dict[str, object]], root: Path, profile: str
) -> tuple[dict[str, "RunPlan"], dict[str, "Manifest"]]:
    """What each analysis is asked, checked; and the runs that were asked the same."""
    from editlib.runs.folders import find_runs
    from editlib.runs.plan import plan

    plans = {name: plan(name, root=root, profile=profile, parameters=given) for name, given in chosen.items()}
    runs = {(run.analysis, run.spec): run for run in find_runs(root)}
    return plans, {name: runs[name, asked.spec] for name, asked in plans.items() if (name, asked.spec) in runs}


def _trial(model: str, asked: dict[str, Any], device: str, *, quiet: bool) -> "CostTrial":
    """The model, seen to work with its data, and what that takes."""
    cases, texts = cases_for(model, asked.get("cases")), texts_for(model, asked.get("texts"))
    corpus = texts_of(asked.get("corpus"))

    from editlib.sweeps.trial import try_out

    lm = load_model(model, dtype="float32", device=device, revision=None, layout=None)
    with alive(f"an edit of {model} is timed", quiet=quiet):
        return try_out(lm, cases, texts, layer=asked.get("layer"), corpus=corpus)


def _steps(
    model: str, plans: dict[str, "RunPlan"], done: dict[str, "Manifest"], trial: "CostTrial", root: Path
) -> list[Step]:
    """Every step with its seconds on this machine."""
    from editlib.runs.cost import edits_worth
    from editlib.runs.folders import find_runs

    first, runs = next(iter(plans.values())), find_runs(root)
    data = ", ".join(f"{name} {first.shown[name]}" for name in first.analysis.data if first.shown[name])
    about = f"{trial.found} of {trial.cases} subjects found; layer {trial.layer}; an edit takes {duration(trial.edit)}"
    steps = [Step("data", data, done=True), Step(f"model {Path(model).name}", about, done=True)]
    source = f"of {first.shown['corpus']}" if first.shown.get("corpus") else "of the model's own text, or its world's"
    steps.append(Step("second moments", source, trial.moments, done=not trial.moments))
    for name, asked in plans.items():
        if name in done:
            steps.append(Step(name, f"run {done[name].run}", done=True))
            continue
        worth = edits_worth(asked, runs)
        steps.append(Step(name, asked.analysis.title, None if worth is None else worth * trial.edit))
    return steps


def _listed(steps: Sequence[Step]) -> str:
    """The steps, and what they take together."""
    left = [step.seconds for step in steps if not step.done]
    told = [seconds for seconds in left if seconds is not None]
    about = [f"about {duration(sum(told))}"] if told else []
    if len(told) < len(left):
        about.append("what is unknown, since no run here tells")
    whole = f"in all: {', and '.join(about)}" if left else "nothing is left to execute"
    return f"{table([step.row for step in steps])}\n{whole}"


def _execute(name: str, given: dict[str, object], root: Path, profile: str, device: str) -> Any:
    from editlib.runs.execute import execute_all

    began = time.monotonic()
    (outcome,) = execute_all([name], root=root, profile=profile, parameters=given, device=device)
    how = "failed" if outcome.error else "done"
    note(f"{name}: {how}, {duration(time.monotonic() - began)}")
    return outcome
