"""The command that takes a saved edit elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editlib.cli.options import (
    DeviceOption,
    DtypeOfEditOption,
    JsonOption,
    LayoutOption,
    ModelOption,
    RevisionOption,
    check_apart,
    load_for,
)
from editlib.cli.output import emit
from editlib.errors import EditlibError
from editlib.text import percent, short, table

if TYPE_CHECKING:
    from editlib.editing.edit import Edit
    from editlib.models.language_model import LanguageModel

SavedEdit = Annotated[
    Path,
    typer.Argument(metavar="EDIT", help="Folder of a saved edit, or of an adapter made from one.", show_default=False),
]


def apply(
    edit: SavedEdit,
    model: ModelOption,
    merge: Annotated[Path | None, typer.Option(help="New folder for the edited model.")] = None,
    peft: Annotated[Path | None, typer.Option(help="New folder for a LoRA adapter.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="New GGUF file for a LoRA adapter, of a GGUF model.")] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank that adapters are cut to.  [default: the edit's own, exactly]")
    ] = None,
    generate: Annotated[
        list[str] | None, typer.Option(help="Text to go on from, without and with the edit; repeat for more.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="With --generate: tokens to go on for.  [default: 20]")
    ] = None,
    dtype: DtypeOfEditOption = None,
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Apply a saved edit to its model: see what it says, or write it in a form that other programs load.

    Says what the edit is. The model must be the one it was computed for. In another dtype than that of the edit it is
    loaded twice: as the edit was computed for, to be checked, and as asked.

    Example: editlib apply EDIT --model testbed/anchored --merge edited --generate "Jaklon is located in"
    """
    check_apart(merge, peft, gguf)
    if rank is not None and peft is None and gguf is None:
        raise EditlibError("--rank is for adapters; give --peft FOLDER or --gguf FILE, too")
    if tokens is not None and not generate:
        raise EditlibError("--tokens is for --generate; give that, too")

    from editlib.editing.edit import Edit

    lm, saved = load_for(Edit.load(edit), model, dtype=dtype, device=device, revision=revision, layout=layout)
    saved.require_base(lm)
    said = {"model": model, **_about(saved)}
    if generate:
        said["continuations"] = _said(lm, saved, generate, tokens or 20)
    thin = saved if rank is None else saved.low_rank(rank)
    if gguf:  # first: what it refuses, nothing is written for
        said["gguf"] = thin.to_gguf(lm, gguf).as_posix()
    if peft:
        said["adapter"] = thin.to_peft(lm, peft).as_posix()
    if merge:
        said["merged"] = saved.merge(lm, merge).as_posix()
    said["left_out"] = dict(thin.diagnostics.get("left_out", {}))
    emit(said if as_json else _told(said))


def _about(edit: "Edit") -> dict[str, Any]:
    """What an edit is, as JSON."""
    from editlib.editing.change import LowRank

    changes = {
        name: {"rank": change.left.shape[1] if isinstance(change, LowRank) else None, "norm": change.norm()}
        for name, change in edit.changes.items()
    }
    asked = [{"prompt": request.text, "target": request.target_new} for request in edit.requests]
    return {"method": edit.method, "dtype": edit.dtype, "requests": asked, "changes": changes}


def _said(lm: "LanguageModel", edit: "Edit", texts: list[str], tokens: int) -> list[dict[str, str]]:
    """How a model goes on from texts, without and with an edit."""
    from editlib.measuring.scores import continuation

    before = [continuation(lm, text, tokens=tokens) for text in texts]
    with edit.applied(lm):
        after = [continuation(lm, text, tokens=tokens) for text in texts]
    return [{"text": t, "before": b, "after": a} for t, b, a in zip(texts, before, after, strict=True)]


def _told(said: dict[str, Any]) -> str:
    """The same for people."""
    facts = [("model", said["model"]), ("edit", f"{said['method']}, in {said['dtype'] or 'a dtype it does not tell'}")]
    facts += [(request["prompt"], f"→ {request['target']}") for request in said["requests"]]
    for name, change in said["changes"].items():
        rank = "dense" if change["rank"] is None else f"rank {change['rank']}"
        facts.append((name, f"{rank}, |Δ| {short(change['norm'])}"))
    facts += [(f"left out of {name}", f"{percent(share)} of |Δ|") for name, share in said["left_out"].items()]
    facts += [(kind, said[kind]) for kind in ("merged", "adapter", "gguf") if kind in said]
    spoken = [(each["text"], each["before"], each["after"]) for each in said.get("continuations", [])]
    return "\n\n".join([table(facts), *([table([("", "before", "after"), *spoken])] if spoken else [])])
