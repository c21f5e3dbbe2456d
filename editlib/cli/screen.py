"""`editlib screen`: which edits of a data set would break a model, told without making them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.cli.options import (
    CasesOption,
    CollapseRatioOption,
    CorpusOption,
    CountOption,
    CpusOption,
    DeviceOption,
    DtypeOption,
    FlavourOption,
    GpusOption,
    HparamsOption,
    JsonOption,
    LayoutOption,
    MethodOption,
    ModelOption,
    PresetOption,
    RayOption,
    RevisionOption,
    SplitOption,
    StatsOption,
    TextsOption,
    cases_for,
    check_new,
    load_model,
    texts_for,
    texts_of,
    values,
    workers_of,
)
from editlib.cli.output import Stop, alive, emit
from editlib.cli.sweep import resumable
from editlib.text import percent, table

if TYPE_CHECKING:
    from pandas import DataFrame


def screen(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="New folder for the table, or with --resume the one to go on with.")],
    cases: CasesOption = None,
    split: SplitOption = None,
    method: MethodOption = "rome",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same screening was interrupted.")] = False,
    verify: Annotated[
        int | None, typer.Option(min=1, help="Edit the so many riskiest cases, and as many others, and see.")
    ] = None,
    texts: TextsOption = None,
    flavour: FlavourOption = None,
    hparam: HparamsOption = None,
    preset: PresetOption = None,
    stats: StatsOption = None,
    corpus: CorpusOption = None,
    collapse_ratio: CollapseRatioOption = 5.0,
    ray: RayOption = None,
    workers: CountOption = None,
    cpus: CpusOption = None,
    gpus: GpusOption = None,
    seed: Annotated[int, typer.Option(help="With --verify: seed of the others.")] = 0,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which edits of a data set would break a model, without making them.

    Only keys are read, so that a case takes milliseconds. The folder is one parquet table, with the reason for each
    case; what would break the model is in its _hard.json in EasyEdit's form. After an interruption the same command
    with --resume goes on. With --verify some edits are made, to see whether it is so. With --ray workers of a cluster
    read and edit, and the table is the same.

    Example: editlib screen --model testbed/anchored --out screened --verify 10
    """
    crew = workers_of(ray, workers, cpus, gpus, as_json=as_json)
    check_new(None if out.exists() else out)
    pool, source, measured = cases_for(model, cases, split=split), texts_of(corpus), texts_for(model, texts)

    from editlib.editing import methods
    from editlib.editing import stats as moments
    from editlib.editing.session import Session
    from editlib.sweeps import screen as screening
    from editlib.sweeps.parts import sweep_folder

    sweep_folder(out).check(resume=resume)
    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    params = methods.hparams_for(lm, method, flavour=flavour, preset=preset, **values(hparam))
    if verify is not None:
        Session(lm).check((), texts=measured)
    bar = sys.stderr.isatty()
    known = moments.load(stats) if stats else None
    given = {"method": method, "hparams": params, "stats": known, "corpus": source, "workers": crew}
    with resumable(out), alive(f"{len(pool)} cases to screen {model} with", quiet=bar or as_json):
        screened = screening.screen(lm, pool, out=out, resume=resume, progress=bar, **given)
        seen = {}
        if verify is not None:
            options = given | {"texts": measured, "out": out, "seed": seed, "progress": bar}
            seen = screening.verify(lm, pool, screened, k=verify, **options).record(collapse_ratio)
    rejected, hard = screened[screened["error"].notna()], screened[screened["collapse"]]
    if as_json:
        counts = {"cases": len(screened), "hard": len(hard), "rejected": len(rejected), "verified": seen or None}
        emit({"model": model, "method": method, "folder": str(out), **counts})
    else:
        emit(_told(screened, seen, f"{method} at layer {params.layer}", out / screening.HARD))
    if len(rejected) == len(screened):
        raise Stop("no case could be screened; the table says why of each", 1)


def _told(screened: "DataFrame", seen: dict[str, Any], what: str, file: Path) -> str:
    """The worst cases, and what was found in all, for people."""
    rejected, hard = screened[screened["error"].notna()], screened[screened["collapse"]]
    lines = [
        ("screened", f"{len(screened):,} cases, {what}"),
        ("would break the model", f"{len(hard):,} ({percent(len(hard) / len(screened))}), in {file}"),
    ]
    if len(rejected):
        first = rejected.iloc[0]
        lines.append(("left out", f"{len(rejected):,}, the first is case {first['case_id']}: {first['error']}"))
    for name, of in seen.items():
        said = "{edits}: {foretold} foretold to break the model, {collapse} do, {both} both"
        lines.append((f"edited, {name}", said.format(**of)))
    if hard.empty:
        return table(lines)
    rows = hard.nlargest(10, "severity")[["case_id", "subject", "severity", "reason"]].to_numpy().tolist()
    return f"{table([['case', 'subject', 'severity', 'reason'], *rows])}\n\n{table(lines)}"
