"""On a GPU: what the processor finds, but for rounding. Skipped where there is none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import editlib as el
from editlib.editing.methods import METHODS
from editlib.runs.execute import execute
from editlib.sweeps.screen import screen
from tests.places import ROOT

GPU = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
CLOSE = {"rel": 5e-3, "abs": 1e-4}  # AlphaEdit cuts the spectrum of C at a value, which rounding can cross
STEPS = {"ft": 3, "ft-l": 3, "locft-bf": 3, "lora": 3, "coachhook": 3, "grace": 5, "memoir": 5, "wise": 5, "serac": 3}
COLUMNS = ["perplexity_mean", "denominator", "delta_norm", "efficacy_em_tf", "locality_em_tf"]

Models = dict[str, el.LanguageModel]


@pytest.fixture(scope="module")
def models() -> Models:
    return {device: el.load("testbed/anchored", device=device) for device in ("cpu", GPU)}


@pytest.fixture(scope="module")
def cases() -> list[el.Case]:
    known = {case.request.subject: case for case in el.data.cases("testbed")}
    return [known[min(known, key=len)], *list(known.values())[:3]]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(el.data.texts("testbed-ppl-50"))[:12]


def weights(lm: el.LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def compared(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> None:
    """Columns of two tables are equal but for rounding."""
    for column in columns:
        here, there = (table[column].to_numpy(float) for table in tables)
        np.testing.assert_allclose(there, here, rtol=CLOSE["rel"], atol=CLOSE["abs"], err_msg=column)


def test_perplexity_is_the_same(models: Models, texts: list[str]) -> None:
    found = [el.perplexity(lm, texts).mean for lm in models.values()]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_edits_there_as_here(
    models: Models, cases: list[el.Case], texts: list[str], method: str, tmp_path: Path
) -> None:
    requests = [case.request for case in cases[2 : 4 if METHODS[method].several else 3]]
    found: dict[str, Any] = {}
    for device, lm in models.items():
        few = {"steps": STEPS[method]} if method in STEPS else {}
        edit = el.compute(lm, requests, method=method, hparams=el.hparams_for(lm, method, **few))
        before, saved = weights(lm), el.Edit.load(edit.save(tmp_path / device))
        with edit.applied(lm):
            found[device] = el.perplexity(lm, texts).mean, edit.norm()
        assert all(torch.equal(value, before[name]) for name, value in weights(lm).items())
        with saved.applied(lm):
            assert el.perplexity(lm, texts).mean == pytest.approx(found[device][0], rel=1e-5)
    assert found[GPU] == pytest.approx(found["cpu"], **CLOSE)


def test_an_edit_made_there_is_applied_here(models: Models, cases: list[el.Case], texts: list[str]) -> None:
    edit = el.compute(models[GPU], cases[2].request, method="c-rome")
    found = []
    for lm in models.values():
        with edit.applied(lm):
            found.append(el.perplexity(lm, texts).mean)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_sweeps_and_sequences_are_the_same(models: Models, cases: list[el.Case], texts: list[str]) -> None:
    options: dict[str, Any] = {"texts": texts, "progress": False}
    names = ["rome", "c-rome", "memit", "ft"]
    tables = [el.sweep(lm, cases, methods=names, **options) for lm in models.values()]
    assert not any(table["error"].notna().any() for table in tables)
    compared(tables, COLUMNS)
    tables = [el.sequence(lm, cases[2:], methods=["c-rome", "alphaedit"], **options) for lm in models.values()]
    compared(tables, ["perplexity_mean", "delta_norm"])


def test_what_measures_keys_and_facts_is_the_same(models: Models, cases: list[el.Case], texts: list[str]) -> None:
    requests = [case.request for case in cases]
    compared([el.risk(lm, requests) for lm in models.values()], ["denominator_ratio", "severity"])
    compared([screen(lm, cases, progress=False) for lm in models.values()], ["denominator_ratio", "severity"])
    compared([el.anatomy.anatomy(lm, texts) for lm in models.values()], ["residual_norm", "key_norm"])
    traces = [el.causal_trace(lm, requests, n=2, samples=2) for lm in models.values()]
    assert traces[0].facts == traces[1].facts


def test_bfloat16_edits_are_undone_there_bit_for_bit(cases: list[el.Case]) -> None:
    lm = el.load("testbed/anchored", dtype="bfloat16", device=GPU)
    before, edit = weights(lm), el.compute(lm, cases[0].request, method="rome")
    with edit.applied(lm):
        assert not all(torch.equal(value, before[name]) for name, value in weights(lm).items())
    assert all(torch.equal(value, before[name]) for name, value in weights(lm).items())


def test_a_run_says_which_gpu_it_was_on(tmp_path: Path) -> None:
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    for name in ("CITATION.cff", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    given = {"n": 2, "top": 1, "limit": 5, "control": None}
    assert execute("pilot", root=tmp_path, parameters=given, device=GPU).hardware.gpus
