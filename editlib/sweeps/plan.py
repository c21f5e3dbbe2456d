"""What the rows of a table follow from, as JSON: whoever has the same plan gets the same rows."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from editlib.data import datasets as data
from editlib.data.datasets import Case
from editlib.editing.method import Variant
from editlib.editing.methods import Methods, variants_of
from editlib.editing.session import Session
from editlib.errors import EditlibError

ROOMS = ("models", "data", "engine", "editing", "measuring", "sweeps", "testbed")  # whose code rows follow from


def checked(
    session: Session, cases: Any, methods: Methods, texts: Sequence[str]
) -> tuple[tuple[Case, ...], dict[str, Variant], tuple[str, ...]]:
    """Cases, methods and texts, seen through before any work; raises `EditlibError` for none, or what `check` finds."""
    chosen = data.cases(cases)
    if not chosen:
        raise EditlibError("no cases to edit; give at least one")
    variants = variants_of(session.lm, methods)
    session.check(variants.values(), texts=texts)
    return tuple(chosen), variants, tuple(texts)


def described(
    session: Session, cases: Sequence[Case], variants: Mapping[str, Variant], texts: Sequence[str]
) -> dict[str, Any]:
    """The plan's part that all tables have. Samples the model's prefix contexts if that was never done."""
    lm = session.lm
    return {
        "model": lm.fingerprint, "dtype": str(lm.model.dtype), "code": rows_hash(), "cases": _hash(map(asdict, cases)),
        "methods": [[name, _variant(session, variant)] for name, variant in variants.items()],
        "texts": _hash(texts), "moments": session.moment_source,
    }  # fmt: skip


def _variant(session: Session, variant: Variant) -> dict[str, Any]:
    """A method with its hyper-parameters and the contents of the files in use."""
    method, params = variant.method, variant.params
    flavours = dict.fromkeys(search.contexts for _, search in method.searches(session.lm, params))
    return {
        "method": method.name, "kind": type(params).__name__, **asdict(params), **method.check(session.lm, params),
        "prefix_contexts": [_hash(session.contexts(flavour)) for flavour in flavours],
    }  # fmt: skip


def _hash(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


@cache
def rows_hash() -> str:
    """sha256 over the sources that rows follow from, by relative path."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
