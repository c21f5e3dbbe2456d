"""What the playground ships: edits that its script computes, weights that are all but the model's own."""

import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from places import ROOT
from sphinx.errors import ExtensionError

import editlib as el

EDITS = json.loads((ROOT / "book/playground_edits.json").read_text("utf-8"))


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "book/_ext")
    return importlib.import_module("playground")


def unpacked(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("playground_edits", ROOT / "tools/playground_edits.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_cases_are_the_first_of_each_kind() -> None:
    drawn = script().draw(el.load("testbed/anchored"))
    assert [case.case_id for case in drawn] == [case["id"] for case in EDITS["cases"]]
    assert EDITS["texts"] == el.data.texts("testbed-ppl-50")[:10]


def test_the_page_says_what_the_edits_do() -> None:
    """Of all twins, cases and methods, only ROME's of one-token subjects at the start collapse one, the anchored."""
    full, kinds = EDITS["strengths"].index(1), {case["id"]: case["kind"] for case in EDITS["cases"]}
    collapsed = {
        (name, kinds[int(case)], method, case)
        for name, made in EDITS["twins"].items()
        for case, edit in made["edits"].items()
        for method, found in edit["methods"].items()
        if found["curve"][full] >= 5 * found["curve"][0]
    }
    assert {each[:3] for each in collapsed} == {("anchored", "one token, first", "rome")}
    assert len(collapsed) == list(kinds.values()).count("one token, first")


@pytest.mark.slow  # second moments, and a search for v*
def test_edits_are_those_that_the_script_computes() -> None:
    case = next(case for case in el.data.cases("testbed") if case.case_id == EDITS["cases"][0]["id"])
    made = script().compute("anchored", [case], EDITS["texts"])["edits"][case.case_id]
    kept = EDITS["twins"]["anchored"]["edits"][str(case.case_id)]
    assert torch.allclose(unpacked(made["right"]), unpacked(kept["right"]), atol=1e-4)
    for method, found in kept["methods"].items():
        assert made["methods"][method]["curve"] == pytest.approx(found["curve"], rel=0.02)
        left = unpacked(found["left"])
        assert (unpacked(made["methods"][method]["left"]) - left).norm() < 0.01 * left.norm()


def test_edits_of_other_twins_are_refused(extension: ModuleType, tmp_path: Path) -> None:
    other = json.loads(json.dumps(EDITS))
    other["twins"]["control"]["sha256"] = "0" * 64
    (tmp_path / "playground_edits.json").write_text(json.dumps(other))
    with pytest.raises(ExtensionError, match="another control twin"):
        extension.scripts(tmp_path / "playground_edits.json")


def test_shortened_weights_are_within_their_error(extension: ModuleType) -> None:
    values = torch.cat([weight.flatten() for weight in el.load("testbed/anchored").model.parameters()]).detach().numpy()
    short = np.frombuffer(base64.b64decode(extension.shortened(values)), "u1").reshape(-1, 3)
    full = np.zeros((len(short), 4), "u1")
    full[:, 1:] = short
    back = full.reshape(-1).view("<f4")
    assert np.abs(back / values - 1).max() <= 2**-16 and np.sign(back).tolist() == np.sign(values).tolist()
