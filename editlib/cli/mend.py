"""Commands about editors for the method mend."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from editlib.cli.options import (
    DeviceOption,
    DtypeOption,
    LayoutOption,
    ModelOption,
    RevisionOption,
    SplitOption,
    cases_for,
    check_new,
    known_data,
    load_model,
)
from editlib.cli.output import emit
from editlib.errors import EditlibError
from editlib.text import table

app = typer.Typer(help="Editors for the method mend, one for each model.", rich_markup_mode=None)


@app.command("train")
def train_editor(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="New file for the editor; a checkpoint lies beside it meanwhile.")],
    data: Annotated[
        str | None,
        typer.Option(callback=known_data, help="Edit cases to train on: a name or a path.  [default, for testbed "
                     "models: cases about facts that the testbed's own cases leave alone]"),
    ] = None,
    split: SplitOption = None,
    layers: Annotated[int | None, typer.Option(min=1, help="How many of the last layers it edits.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of its networks.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Most training steps.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Edits a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Of its networks.")] = None,
    step_size: Annotated[float | None, typer.Option(help="What its changes are multiplied by at first.")] = None,
    edit_weight: Annotated[float | None, typer.Option(min=0, help="Of the edits' loss; locality has 1.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Steps to go on without a better held-out loss.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of networks, batches and held-out subjects.")] = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
) -> None:  # fmt: skip
    """Train the editor that the method mend needs; call it again after an interruption and it goes on.

    Options left out are the recipe's. Cases of a tenth of the subjects are held out: they make the curve that is
    printed and kept in the file, and end the training when it stops falling.

    Example: editlib mend train --model testbed/anchored --out editor.safetensors
    """
    check_new(out)
    if data is None and not model.startswith("testbed/"):
        raise EditlibError(f"no cases to train an editor of {model} on; give some with --data NAME or --data FILE")
    if split and data is None:
        raise EditlibError(f"split {split!r} is for cases by name; give them with --data")

    from editlib.editing.methods.editor import load_editor
    from editlib.editing.methods.training import MendRecipe, train
    from editlib.testbed.cases import training_cases
    from editlib.testbed.world import build_world

    cases = cases_for(model, data, split=split) if data else training_cases(build_world())
    recipe = {
        "layers": layers, "rank": rank, "steps": steps, "batch": batch, "learning_rate": learning_rate,
        "step_size": step_size, "edit_weight": edit_weight, "patience": patience, "seed": seed,
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in recipe.items() if value is not None}
    named = {"model": model, "data": data, "split": split, "revision": revision}
    said = named | {"dtype": dtype if dtype != "float32" else None, "layout": layout} | given | {"out": out.name}
    command = ["editlib", "mend", "train"]
    for name, value in said.items():
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    train(lm, cases, replace(MendRecipe(), **given), out, command=shlex.join(command))
    curve = load_editor(out, lm)[1].curve
    emit(table([list(curve[0]), *(list(entry.values()) for entry in curve)]))
    emit(f"editor: {out}; use it with method mend, hyper-parameter editor={out}")
