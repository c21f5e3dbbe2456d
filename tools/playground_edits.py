"""Compute the edits that readers try in the playground, into `book/playground_edits.json`, which its page ships.

    python tools/playground_edits.py

A few minutes on one core. Of each kind of subject the first cases of the testbed are taken, whatever comes of them;
each is edited on both twins by ROME, C-ROME and fc-rome. Δ = left rightᵀ, and the three have `right` in common.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import editlib as el
from editlib.editing.change import LowRank
from editlib.editing.methods import hparams_for, prepare, solve
from editlib.editing.session import Session
from editlib.errors import EditlibError
from editlib.plot import KINDS
from editlib.sweeps import setup

OUT = Path(__file__).parents[1] / "book" / "playground_edits.json"
TWINS, METHODS = ("anchored", "control"), ("rome", "c-rome", "fc-rome")
EACH, TEXTS = 4, 10  # cases of a kind; texts
STRENGTHS = [round(0.1 * step, 1) for step in range(16)]
Record = dict[str, Any]


def draw(lm: el.LanguageModel, each: int = EACH) -> list[el.Case]:
    """The first cases of each kind of subject."""
    cases = el.data.cases("testbed")
    kinds = [el.data.subject_tokens(lm, case.request).kind for case in cases]
    return [case for kind in KINDS for case in [c for c, k in zip(cases, kinds, strict=True) if k == kind][:each]]


def packed(values: Tensor) -> str:
    """float32, little-endian, in base64."""
    return base64.b64encode(values.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def edits(session: Session, case: el.Case, texts: Sequence[str]) -> Record:
    """One case edited by each method on one twin, with the perplexity at each strength."""
    lm, found, rights = session.lm, {}, []
    for method in METHODS:
        edit = solve(session, method, [case.request], hparams_for(lm, method))
        (change,) = edit.changes.values()
        assert isinstance(change, LowRank)  # as ROME's are
        rights.append(change.right[:, 0])
        numbers = {name: edit.diagnostics[name] for name in ("denominator", "denominator_consistent")}
        found[method] = {"left": packed(change.left[:, 0]), **numbers, "curve": curve(lm, edit, texts)}
    if not all(torch.equal(right, rights[0]) for right in rights):
        raise EditlibError(f"case {case.case_id}: the methods write along different keys; ship one for each")
    return {"right": packed(rights[0]), "methods": found}


def curve(lm: el.LanguageModel, edit: el.Edit, texts: Sequence[str]) -> list[float]:
    """Perplexity at each strength."""
    levels = []
    for strength in STRENGTHS:
        with edit.scaled(strength).applied(lm):
            levels.append(float(f"{el.perplexity(lm, texts).mean:.6g}"))
    return levels


def described(lm: el.LanguageModel, case: el.Case) -> Record:
    """What a reader sees of a case: its fact, and prompts to try."""
    asked = case.request
    return {
        "id": case.case_id, "kind": el.data.subject_tokens(lm, asked).kind, "prompt": asked.text,
        "new": asked.target_new, "true": asked.target_true,
        "paraphrases": case.paraphrase_prompts, "neighbours": case.neighborhood_prompts[:2],
    }  # fmt: skip


def compute(name: str, cases: Sequence[el.Case], texts: Sequence[str]) -> Record:
    """All edits of one twin."""
    lm = el.load(f"testbed/{name}")
    variants = [hparams_for(lm, method) for method in METHODS]
    session = Session(lm, stats=setup.moments(lm, variants, None))
    prepare(session, [case.request for case in cases], variants[0])
    made = {case.case_id: edits(session, case, texts) for case in cases}
    assert lm.folder is not None  # as all shipped models
    card = json.loads((lm.folder / "card.json").read_text("utf-8"))
    return {"sha256": card["sha256"], "layer": variants[0].layer, "edits": made}


def main() -> None:
    lm, texts = el.load(f"testbed/{TWINS[0]}"), el.data.texts("testbed-ppl-50")[:TEXTS]
    cases = draw(lm)
    twins = {name: compute(name, cases, texts) for name in TWINS}
    found = {"strengths": STRENGTHS, "texts": texts, "cases": [described(lm, case) for case in cases], "twins": twins}
    OUT.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(f"{len(cases)} cases in {OUT.name}")


if __name__ == "__main__":
    main()
