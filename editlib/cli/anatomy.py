"""`editlib anatomy`: what the first position of a text is inside a model, layer by layer."""

from typing import Annotated

import typer

from editlib.cli.options import (
    CorpusOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LayoutOption,
    ModelArgument,
    MomentTokensOption,
    MomentWindowOption,
    RevisionOption,
    TextsOption,
    load_model,
    texts_for,
    texts_of,
)
from editlib.cli.output import alive, emit
from editlib.text import number, table

COLUMNS = {
    "residual_norm": "residual", "residual_norm_later": "later", "spike": "spike", "key_norm": "key",
    "key_norm_later": "later", "key_cosine": "cosine", "key_cosine_later": "later", "attention": "attention",
    "sink": "sink", "trace_share": "of trace C", "top_cosine": "to top of C", "damping": "damping",
}  # fmt: skip


def anatomy(
    model: ModelArgument,
    texts: TextsOption = None,
    bos: Annotated[bool, typer.Option("--bos", help="Put the tokenizer's BOS token before every text.")] = False,
    covariance: Annotated[
        bool, typer.Option("--covariance/--no-covariance", help="What position 0 is of the keys' second moment C, too.")
    ] = True,
    corpus: CorpusOption = None,
    moment_tokens: MomentTokensOption = None,
    moment_window: MomentWindowOption = 128,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    revision: RevisionOption = None,
    layout: LayoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what sets position 0 apart inside a model, layer by layer.

    Norms of the residual stream and of the keys at position 0 and later, the spike (largest entry of the residual
    stream over the median one), how alike texts' keys are, the attention that position 0 gets, the share of heads in
    which that is more than .3 (sink), and position 0's share in C. Where the key is short, an edit of a first-token
    subject divides by next to nothing whatever C is; where it is long, C decides.

    Example: editlib anatomy testbed/anchored
    """
    measured, source = texts_for(model, texts), texts_of(corpus)

    from editlib.editing.stats import MomentOptions, needed_moments
    from editlib.measuring import anatomy as inside

    lm = load_model(model, dtype=dtype, device=device, revision=revision, layout=layout)
    options = MomentOptions(tokens=moment_tokens, window=moment_window)
    layers = range(lm.num_layers)
    needed = needed_moments(lm, layers, corpus=source, options=options) if covariance else None
    with alive(f"reading {model}", quiet=as_json):
        profile = inside.profile(lm, measured, windows=needed.read() if needed else None, bos=bos)
    begun = inside.onset(profile)
    if as_json:
        rows = profile.reset_index().to_dict(orient="records")
        emit({"model": model, "texts": len(measured), "onset": begun, "layers": rows})
        return
    shown = [column for column in COLUMNS if column in profile]
    lines = [[layer, *row] for layer, row in zip(profile.index, profile[shown].to_numpy().tolist(), strict=True)]
    ratio = profile["key_norm_ratio"]
    facts = [
        ("massive activation", "none" if begun is None else f"from layer {begun} on"),
        ("shortest key at 0", f"{number(ratio.min())} times later ones, layer {ratio.idxmin()}"),
        ("longest key at 0", f"{number(ratio.max())} times later ones, layer {ratio.idxmax()}"),
    ]
    emit(f"{table([['layer', *(COLUMNS[column] for column in shown)], *lines])}\n\n{table(facts)}")
