"""Commands about the small models shipped with editlib."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from editlib.cli.options import DeviceOption, JsonOption, check_new
from editlib.cli.output import emit
from editlib.errors import EditlibError, unknown
from editlib.files import TESTBED, new_folder
from editlib.text import table

app = typer.Typer(help="The small models shipped with editlib.", rich_markup_mode=None)


@app.command("train")
def train_twin(
    name: Annotated[str, typer.Argument(help="anchored, control, sighted, rotary, encdec or belief.")],
    out: Annotated[
        Path | None, typer.Option(help="New folder; a checkpoint lies beside it meanwhile.  [default: models/NAME]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of world, prose, weights and batches.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.  [default: the recipe's]")] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a testbed model from scratch; call it again after an interruption and it goes on.

    Example: editlib testbed train anchored
    """
    from editlib.models.loading import require_device
    from editlib.testbed.train import RECIPES, train

    if name not in RECIPES:
        raise unknown("testbed model", name, RECIPES)
    out = out or Path("models") / name
    check_new(out)
    recipe = replace(RECIPES[name], seed=seed)
    recipe = recipe if steps is None else replace(recipe, steps=steps)
    typer.echo(str(train(recipe, out.absolute(), name=f"testbed/{name}", device=require_device(device))))


@app.command("cases")
def cases_of_a_world(
    out: Annotated[Path | None, typer.Option(help="New folder.  [default: worlds/SEED]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
) -> None:
    """Write the edit cases and texts of a world, for the models trained on its prose.

    Example: editlib testbed cases --seed 1
    """
    from editlib.testbed.cases import write_assets

    with new_folder(out := out or Path("worlds") / str(seed)) as folder:
        write_assets(folder, seed=seed)
    typer.echo(f"{len(list(out.iterdir()))} files in {out}: edit cases, and texts to measure perplexity on")


@app.command("info")
def testbed_info(as_json: JsonOption = False) -> None:
    """Show how the shipped testbed models were trained, and check their files against their cards.

    Example: editlib testbed info
    """
    cards = [_card(path) for path in sorted(TESTBED.glob("*/card.json"))]
    if not cards:
        raise EditlibError(f"{TESTBED} holds no model; install editlib again")
    if as_json:
        return emit(cards)
    names = list(dict.fromkeys(key for card in cards for key in card if not isinstance(card[key], Mapping)))
    emit(table([[name, *(card.get(name) for card in cards)] for name in names]))


def _card(path: Path) -> dict[str, Any]:
    """One model's card, and whether its weights are the ones it was written for."""
    card: dict[str, Any] = json.loads(path.read_text("utf-8"))
    digest = hashlib.sha256((path.parent / "model.safetensors").read_bytes()).hexdigest()
    verdict = "matches its card" if card.get("sha256") == digest else f"DIFFERS from its card: {digest}"
    return card | {"held_out_loss": card["losses"]["held_out"], "file": verdict}
