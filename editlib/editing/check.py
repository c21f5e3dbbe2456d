"""What can be known to go wrong before a model is run, told before it is."""

from collections.abc import Iterable, Sequence

from editlib.data.request import EditRequest
from editlib.editing.method import Variant, moments_of
from editlib.editing.session import Session
from editlib.engine.prefixes import LENGTHS, are_stored
from editlib.engine.sites import layer_of
from editlib.engine.values import encode_contexts
from editlib.errors import EditlibError
from editlib.models.tokens import encode_texts


def check(
    session: Session,
    variants: Iterable[Variant],
    *,
    requests: Sequence[EditRequest] | None = None,
    texts: Sequence[str] | None = None,
) -> None:
    """Raise `EditlibError` for what a user can mend, without running the model: layers and files of the methods, each
    request in its prompt, texts, and where second moments come from.

    Hyper-parameters are `hparams_for`'s to check. What is not given is not looked at.
    """
    chosen, lm = list(variants), session.lm
    lm.require_causal()
    if requests is not None and not requests:
        raise EditlibError("no request to edit; give at least one")
    single = next((v.method.name for v in chosen if not v.method.several), None)
    if requests is not None and len(requests) > 1 and single:
        raise EditlibError(f"{single} edits one request at a time, not {len(requests)}; call it once for each")
    for variant in chosen:
        for layer in variant.method.layers(variant.params):
            lm.down(layer)  # raises if out of range
        variant.method.check(lm, variant.params)
    for request in requests or ():
        check_request(session, chosen, request)
    if texts is not None:
        encode_texts(lm, texts)
    session.find_moments(moments_of(chosen))


def check_request(session: Session, variants: Iterable[Variant], request: EditRequest) -> None:
    """Raise `EditlibError` if subject or target cannot be located, the prompt is too long with target and prefix
    contexts, or a value would be written at the last layer before the prompt's end, where nothing reads it."""
    lm = session.lm
    (row,) = encode_contexts(lm, request, ["{}"], target=request.target_new)
    for variant in variants:
        for name, search in variant.method.searches(lm, variant.params):
            layer = layer_of(lm, name)
            if layer == lm.num_layers - 1 and row.last < row.target - 1:
                raise EditlibError(
                    f"layer {layer} is the last one: what is written at subject {request.subject!r} reaches no later "
                    "token; edit a lower layer, or a prompt that ends in its subject"
                )
            if are_stored(lm, search.contexts):
                session.rows(request, search.contexts)  # raises for what does not fit behind them
            elif lm.max_length is not None and len(row.ids) + max(LENGTHS) > lm.max_length:
                raise EditlibError(
                    f"prompt {request.text[:40]!r}... has {len(row.ids)} tokens with its target, and {max(LENGTHS)} or "
                    f"more stand before it while an edit is made, {lm.label} takes at most {lm.max_length}; shorten it"
                )
