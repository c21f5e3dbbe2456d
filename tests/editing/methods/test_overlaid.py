"""Methods that write no weight: every measuring function sees their edits, and what they remember is one memory."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from editlib.cli import run_app
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.edit import Edit
from editlib.editing.methods import METHODS, compute, hparams_for, serac
from editlib.editing.methods.serac import SeracParams, scope
from editlib.editing.methods.skeme import read_triples
from editlib.editing.overlays import packed, unpacked
from editlib.editing.overlays.fronts import Fronts, embedded_texts
from editlib.editing.overlays.validated import Validated
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions, Stats
from editlib.engine.perplexity import perplexity
from editlib.errors import EditlibError
from editlib.measuring import scores
from editlib.measuring.report import before_after
from editlib.models.language_model import LanguageModel
from editlib.sweeps.parts import Parts
from editlib.sweeps.sequential import sequence
from editlib.sweeps.single import sweep

BESIDE = [name for name, method in METHODS.items() if not method.weights]
IN_CONTEXT = ["serac", "skeme", "ike"]
FEW: dict[str, dict[str, Any]] = {
    "coachhook": {"steps": 3, "layers": [0, 1], "moment_weight": 1}, "grace": {"steps": 5}, "memoir": {"steps": 5},
    "wise": {"steps": 5}, "serac": {"steps": 3}, "ike": {"demonstrations": 1},
}  # fmt: skip
TEXTS = ["Zen is located in Daslo, near the sea.", "Today.", "Uvo is known for its bells."]
CASES = [
    Case(10 + i, EditRequest(prompt="{} is located in", subject=s, target_new=t, target_true="Quint"),
         (f"The town of {s} is in",), ("Marend is located in",), ("Parvo",))
    for i, (s, t) in enumerate([("Zen", "Ostrel"), ("Brast Nolva", "Daslo"), ("Uvo", "Parvo")])
]  # fmt: skip
REQUESTS = [case.request for case in CASES]


@pytest.fixture(scope="module", autouse=True)
def own_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases that SERAC and IKE learn from, of subjects of their own."""
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    answers = {"target_new": {"str": "Daslo"}, "target_true": {"str": "Quint"}}
    records = [
        {"case_id": i, "requested_rewrite": {"prompt": "{} lies in", "subject": subject, **answers},
         "paraphrase_prompts": [f"Where is {subject}? In"], "neighborhood_prompts": ["Triskel lies in"]}
        for i, subject in enumerate(["Marend", "Triskel Uvo", "Ostrel"])
    ]  # fmt: skip
    path.write_text(json.dumps(records))
    for name in ("serac", "ike"):
        FEW[name]["cases"] = str(path)
    return path


@pytest.fixture(scope="module")
def stats(lm: LanguageModel, moments: Stats) -> dict[str, Stats]:
    return {"stats": moments}


Made = Callable[..., Edit]


@pytest.fixture
def made(lm: LanguageModel, moments: Stats) -> Made:
    """An edit by a method, with few steps."""

    def make(method: str, requests: Sequence[EditRequest] = REQUESTS[:1], model: LanguageModel = lm) -> Edit:
        params = hparams_for(model, method, **FEW.get(method, {}))
        return compute(model, requests, method=method, hparams=params, stats=moments)

    return make


def logits(lm: LanguageModel, text: str) -> torch.Tensor:
    found: torch.Tensor = lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]])).logits
    return found


def state_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


# What holds for all of them


@pytest.mark.parametrize("method", BESIDE)
def test_an_edit_is_seen_and_no_weight_is_written(lm: LanguageModel, made: Made, method: str) -> None:
    before, plain = state_of(lm), logits(lm, REQUESTS[0].text)
    edit = made(method)
    assert not edit.changes and edit.norm() == 0 == edit.diagnostics["delta_norm"]
    with edit.applied(lm):
        assert not torch.equal(logits(lm, REQUESTS[0].text), plain)
        assert all(torch.equal(value, before[name]) for name, value in state_of(lm).items())
    assert torch.equal(logits(lm, REQUESTS[0].text), plain)
    assert not lm.hooked() and "forward" not in vars(lm.model.get_decoder())


@pytest.mark.parametrize("method", BESIDE)
def test_a_saved_edit_does_what_it_did(lm: LanguageModel, made: Made, method: str, tmp_path: Path) -> None:
    edit = made(method, REQUESTS)
    loaded = Edit.load(edit.save(tmp_path / "edit"))
    assert type(loaded.overlay) is type(edit.overlay) and loaded.requests == edit.requests
    with edit.applied(lm):
        expected = logits(lm, REQUESTS[1].text)
    with loaded.applied(lm):
        assert torch.equal(logits(lm, REQUESTS[1].text), expected)


@pytest.mark.parametrize("method", BESIDE)
def test_the_engine_batches_none_and_a_sweep_has_the_plain_paths_numbers(
    lm: LanguageModel, moments: Stats, made: Made, method: str
) -> None:
    params = hparams_for(lm, method, **FEW.get(method, {}))
    session = Session(lm, stats=moments)
    edits = [made(method, [request]) for request in REQUESTS]
    assert all(session.logits(edit) is None for edit in edits)
    together = session.perplexities(edits, TEXTS)
    table = sweep(lm, CASES, methods={method: params}, texts=TEXTS, stats=moments, progress=False)
    assert table["error"].isna().all(), table["error"].tolist()
    for case, edit, measured, (_, row) in zip(CASES, edits, together, table.iterrows(), strict=True):
        unedited = scores.read(lm, case)
        with edit.applied(lm):
            plain, said = perplexity(lm, TEXTS), scores.score(case, unedited, scores.read(lm, case))
            probability = scores.target_probability(lm, case.request, case.request.target_new)
        assert measured.per_sentence == pytest.approx(plain.per_sentence, rel=1e-5)
        assert row["perplexity_mean"] == pytest.approx(plain.mean, rel=1e-5)
        assert row["target_probability"] == pytest.approx(probability, rel=1e-4)
        assert {name: row[name] for name in said} == pytest.approx(said, nan_ok=True)


@pytest.mark.parametrize("method", BESIDE)
def test_teacher_forcing_and_greedy_decoding_agree(lm: LanguageModel, made: Made, method: str) -> None:
    """What `scores.read` takes for granted: up to the first wrong token both are the same."""
    with made(method).applied(lm):
        ids = lm.tokenizer(REQUESTS[0].text)["input_ids"]
        row = list(ids)
        for _ in range(5):
            row.append(int(lm.model(torch.tensor([row])).logits[0, -1].argmax()))
        picks = lm.model(torch.tensor([row])).logits[0].argmax(-1)
    assert picks[len(ids) - 1 : -1].tolist() == row[len(ids) :]


@pytest.mark.parametrize("method", BESIDE)
def test_a_report_is_made_of_it(lm: LanguageModel, made: Made, method: str) -> None:
    for requests in (REQUESTS[:1], REQUESTS):
        report = before_after(lm, made(method, requests), texts=TEXTS)
        assert "|Δ| / |W|" in report.table() and report.record()["method"] == method


# One after another


@pytest.mark.parametrize("method", BESIDE)
def test_a_sequence_has_one_memory_of_all_its_edits(
    own: LanguageModel, moments: Stats, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last row is what edits one by one, each handed the state of the last, leave; interrupted, it goes on."""
    monkeypatch.setattr("editlib.sweeps.sequential.PART", 1)
    params, before = hparams_for(own, method, **FEW.get(method, {})), state_of(own)
    options: dict[str, Any] = {"methods": {method: params}, "texts": TEXTS, "stats": moments, "progress": False}
    whole = sequence(own, CASES, retest=True, **options)
    assert whole["error"].isna().all(), whole["error"].tolist()
    session, state = Session(own, stats=moments), None
    for request in REQUESTS:
        session.forget()
        edit, state = METHODS[method].solve(session, [request], params, state)
    assert isinstance(edit, Edit)
    with edit.applied(own):
        assert whole["perplexity_mean"].dropna().iloc[-1] == pytest.approx(perplexity(own, TEXTS).mean, rel=1e-4)
        for case, found in zip(CASES, whole[whole["retest"]]["target_probability"], strict=True):
            expected = scores.target_probability(own, case.request, case.request.target_new)
            assert found == pytest.approx(expected, rel=1e-3)
    write = Parts.write

    def stopping(parts: Parts, number: int, frame: pd.DataFrame) -> pd.DataFrame:
        if number == 2:
            raise KeyboardInterrupt
        return write(parts, number, frame)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Parts, "write", stopping)
        sequence(own, CASES, retest=True, out=tmp_path / "out", **options)
    assert all(torch.equal(value, before[name]) for name, value in state_of(own).items())
    again = sequence(own, CASES, retest=True, out=tmp_path / "out", resume=True, **options)
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"), rtol=1e-4)
    assert not own.hooked() and "forward" not in vars(own.model.get_decoder())


@pytest.fixture(scope="module")
def exact(lm: LanguageModel, corpus: list[str]) -> Session:
    """The model in 64 bits, which knows v* of all requests."""
    double = LanguageModel(deepcopy(lm.model).double(), lm.tokenizer, name=lm.name, folder=lm.folder)
    return Session(double, corpus=corpus, moment_options=MomentOptions(tokens=1500))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("split", [[1, 1, 1], [2, 1], [1, 2]])
def test_coachhook_one_by_one_is_one_batch(exact: Session, order: list[int], split: list[int]) -> None:
    """With keys and targets of the unedited model, shadow weights are one solution for all."""
    params = hparams_for(exact.lm, "coachhook", layers=[1], steps=3, frozen=True)
    left, state = [REQUESTS[i] for i in order], None
    for count in split:
        edit, state = METHODS["coachhook"].solve(exact, left[:count], params, state)
        left = left[count:]
    batch, _ = METHODS["coachhook"].solve(exact, REQUESTS, params)
    one, all_at_once = (each.overlay.left[0] @ each.overlay.right[0].T for each in (edit, batch))  # type: ignore[union-attr]
    assert (one - all_at_once).norm() < 1e-8 * all_at_once.norm()


def test_coachhook_says_what_massive_activations_do_to_its_z_score(lm: LanguageModel, made: Made) -> None:
    edit = made("coachhook")
    assert isinstance(edit.overlay, Validated)
    said = edit.diagnostics
    assert all(len(said[name]) == 2 for name in ("threshold", "subject_z", "first_z", "first_size"))
    assert max(said["threshold"]) <= 2.2 and min(said["first_size"]) > 0 and said["shadow_delta_norm"] > 0


@pytest.mark.parametrize("method", IN_CONTEXT)
def test_a_later_edit_of_the_same_fact_takes_the_place_of_the_earlier(
    lm: LanguageModel, made: Made, method: str
) -> None:
    later = replace(REQUESTS[0], target_new="Parvo")
    overlay = made(method, [REQUESTS[0], REQUESTS[1], later]).overlay
    assert isinstance(overlay, Fronts)
    assert [note[2] for note in overlay.notes] == ["Daslo", "Parvo"] and len(overlay.fronts) == 2 == len(overlay.keys)


# The memories


@pytest.mark.parametrize("method", IN_CONTEXT)
def test_with_an_empty_memory_serac_skeme_and_ike_are_the_base_model_bit_for_bit(
    lm: LanguageModel, moments: Stats, method: str, ask: EditRequest
) -> None:
    params = hparams_for(lm, method, **FEW.get(method, {}))
    empty = METHODS[method].begin(Session(lm), params)  # type: ignore[attr-defined]
    before, measured = logits(lm, ask.text), perplexity(lm, TEXTS)
    with Edit(method, (ask,), {}, {}, lm.fingerprint, overlay=empty).applied(lm):
        assert torch.equal(logits(lm, ask.text), before)
        assert (perplexity(lm, TEXTS).losses == measured.losses).all()


def test_serac_learns_what_is_in_scope() -> None:
    """On the testbed: half of its cases teach, the other half are asked."""
    import editlib as el

    lm, cases = el.load("testbed/anchored"), el.data.cases("testbed")[:400]
    taught, asked = cases[::2], cases[1::2]
    fired = {}
    for steps, params in ((0, SeracParams(steps=1, learning_rate=1e-9)), (100, SeracParams(steps=100))):
        metric = scope(lm, taught, params)
        edits = embedded_texts(lm, [case.request.text for case in asked]) @ metric
        for kind in ("paraphrase_prompts", "neighborhood_prompts"):
            texts = [getattr(case, kind)[0] for case in asked]
            distance = (edits - embedded_texts(lm, texts) @ metric).square().sum(1)
            fired[steps, kind] = float(((-distance).exp() > 0.5).double().mean())
    gap = {steps: fired[steps, "paraphrase_prompts"] - fired[steps, "neighborhood_prompts"] for steps in (0, 100)}
    assert gap[100] > 0.4 and gap[100] > gap[0] + 0.2


def test_serac_is_not_taught_by_cases_about_what_is_edited(
    lm: LanguageModel, own_cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor goes on with what it learnt from them before."""
    taught = list[set[str]]()
    monkeypatch.setattr(serac, "scope", lambda lm, cases, params: (taught.append({c.request.subject for c in cases}),
                                                                    scope(lm, cases, params))[1])  # fmt: skip
    session, params = Session(lm), hparams_for(lm, "serac", **FEW["serac"])
    asked = [REQUESTS[0], *(replace(REQUESTS[0], subject=subject) for subject in ("Marend", "Ostrel"))]
    state, metrics = None, list[torch.Tensor]()
    for request in asked:
        edit, state = METHODS["serac"].solve(session, [request], params, state)
        assert isinstance(edit.overlay, Fronts) and edit.overlay.metric is not None
        metrics.append(edit.overlay.metric)
    assert taught == [{"Marend", "Triskel Uvo", "Ostrel"}, {"Triskel Uvo", "Ostrel"}, {"Triskel Uvo"}]
    fresh = METHODS["serac"].solve(Session(lm), asked, params)[0].overlay
    assert isinstance(fresh, Fronts) and fresh.metric is not None and torch.equal(fresh.metric, metrics[-1])
    assert not torch.equal(metrics[0], metrics[1])


def test_skeme_looks_up_its_store(lm: LanguageModel, tmp_path: Path) -> None:
    store = tmp_path / "triples.tsv"
    store.write_text("Zen\tis located in\tDaslo\n\nZen\tis known for\tbells\nUvo\tis located in\tQuint\n", "utf-8")
    assert read_triples(store)[1] == ("Zen", "is known for", "bells")
    for most, expected in ((1, ["Zen is known for bells.\n"]), (9, None)):
        params = hparams_for(lm, "skeme", store=str(store), most=most)
        edit = compute(lm, REQUESTS[1], method="skeme", hparams=params)
        overlay = edit.overlay
        assert isinstance(overlay, Fronts) and len(overlay.fronts) == 4
        ids = torch.tensor([lm.tokenizer("Zen is known for")["input_ids"]])
        chosen = [overlay.fronts[i] for i in overlay.choose(lm, ids, torch.ones_like(ids))[0, -1] if i >= 0]
        assert chosen == (expected or ["Zen is located in Daslo.\n", "Zen is known for bells.\n"])
    triple = compute(lm, REQUESTS[1], method="skeme", hparams=hparams_for(lm, "skeme", form="triple")).overlay
    assert isinstance(triple, Fronts) and triple.fronts == ("(Brast Nolva, is located in, Daslo)\n",)


def test_ike_shows_copies_updates_and_what_stays(gpt2: LanguageModel, own_cases: Path) -> None:
    params = hparams_for(gpt2, "ike", demonstrations=0)
    (alone,) = compute(gpt2, REQUESTS[0], method="ike", hparams=params).overlay.fronts  # type: ignore[union-attr]
    assert alone == "New Fact:\nZen is located in Ostrel.\nPrompt:\n"
    wide = LanguageModel(gpt2.model, gpt2.tokenizer)
    wide.model.config.n_positions, before = 2000, wide.model.config.n_positions
    try:
        from editlib.editing.methods.ike import Ike

        front = Ike().front(Session(wide), REQUESTS[0], hparams_for(wide, "ike", cases=str(own_cases)))
    finally:
        wide.model.config.n_positions = before
    assert front.endswith(alone) and front.count("New Fact:") == 4
    asked = [part.partition("Prompt:\n")[2].strip() for part in front.split("New Fact:")[1:4]]
    assert sum("Where is" in text for text in asked) == 2 and sum("lies in Daslo" in text for text in asked) == 1


@pytest.mark.parametrize("method", BESIDE)
def test_an_overlay_is_the_same_from_its_tensors(made: Made, method: str) -> None:
    overlay = made(method, REQUESTS).overlay
    assert overlay is not None
    again = unpacked(packed(overlay))
    assert again.record == overlay.record
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in overlay.tensors.items())


# Mistakes


@pytest.mark.parametrize("method", BESIDE)
def test_mistakes_with_them_are_one_line(
    lm: LanguageModel, made: Made, moments: Stats, method: str, ask: EditRequest
) -> None:
    first = made(method)
    with pytest.raises(EditlibError, match=f"^{method} changes no weight, so rect has nothing to filter; leave"):
        hparams_for(lm, f"{method}+rect")
    with pytest.raises(EditlibError, match=r"^this edit \(<Edit by .*no weight is written>\) cannot be added"):
        first + first
    with pytest.raises(EditlibError, match="cannot be scaled; scale one that writes weights$"):
        first.scaled(0.5)
    with first.applied(lm):
        with pytest.raises(EditlibError, match=f"^an edit cannot be while a {method} edit is applied to tiny-"):
            made("grace", [ask])
        with pytest.raises(EditlibError, match="is applied already"), first.applied(lm):
            raise AssertionError


@pytest.mark.parametrize("method", BESIDE)
def test_a_state_of_another_model_or_method_is_refused(lm: LanguageModel, moments: Stats, method: str) -> None:
    params, session = hparams_for(lm, method, **FEW.get(method, {})), Session(lm, stats=moments)
    _, state = METHODS[method].solve(session, REQUESTS[:1], params)
    assert state
    other = dict(state) | {"model": state["model"].flip(0)}
    with pytest.raises(EditlibError, match="^this state was left by edits of another model than tiny-"):
        METHODS[method].solve(session, REQUESTS[1:2], params, other)
    with pytest.raises(EditlibError, match="^this state has no '.*': another method or setting left it"):
        METHODS[method].solve(session, REQUESTS[1:2], params, {"model": state["model"]})
    wrong = "grace" if method != "grace" else "skeme"
    _, foreign = METHODS[wrong].solve(session, REQUESTS[:1], hparams_for(lm, wrong, **FEW.get(wrong, {})))
    assert foreign
    with pytest.raises(EditlibError, match=f"^this state was left by {wrong}, not {method}; begin with"):
        METHODS[method].solve(session, REQUESTS[1:2], params, foreign)


def test_a_state_of_other_layers_is_refused(lm: LanguageModel, moments: Stats) -> None:
    session = Session(lm, stats=moments)
    one, several = ({"layer": 0}, {"layer": 1}), ({"layers": [0]}, {"layers": [1]})
    for method, (here, there) in {"grace": one, "memoir": one, "wise": one, "coachhook": several}.items():
        first, second = (hparams_for(lm, method, **FEW[method] | given) for given in (here, there))
        _, state = METHODS[method].solve(session, REQUESTS[:1], first)
        with pytest.raises(EditlibError, match="; begin with state=None$"):
            METHODS[method].solve(session, REQUESTS[1:2], second, state)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: .*No such file"), (b"\xff\xfe", "cannot be read: .*codec can't decode"),
        (b"Zen is in Daslo\n", "line 1 is no triple: 'Zen is in Daslo'; write subject, relation and object with tabs"),
        (b"a\tb\tc\n{}\n", "line 2 is no triple: '{}'"), (b"a\t\tc\n", r"line 1 is no triple: 'a\\t\\tc'"),
    ],
)  # fmt: skip
def test_a_store_that_is_no_triple_file_is_refused(
    gpt2: LanguageModel, tmp_path: Path, text: bytes | None, said: str
) -> None:
    store = tmp_path / "store.tsv"
    if text is not None:
        store.write_bytes(text)
    with pytest.raises(EditlibError, match=rf"^store .*store.tsv,? {said}") as caught:
        compute(gpt2, REQUESTS[0], method="skeme", hparams=hparams_for(gpt2, "skeme", store=str(store)))
    assert "\n" not in str(caught.value)


def test_a_front_that_leaves_no_room_is_refused(gpt2: LanguageModel) -> None:
    long = EditRequest(prompt=f"{'the town ' * 20}of {{}} is located in", subject="Zen", target_new="Ostrel")
    with pytest.raises(EditlibError, match="has .* tokens with its target, behind .* of the edit; .* takes 128 in all"):
        compute(gpt2, long, method="skeme")


def test_the_command_line_edits_saves_and_refuses(
    gpt2_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = [
        "edit",
        "--model",
        str(gpt2_folder),
        "--prompt",
        "{} is located in",
        "--subject",
        "Zen",
        "--target",
        "Quint",
    ]
    out = tmp_path / "edit"
    assert run_app([*asked, "--method", "grace", "-p", "layer=1", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "grace"
    assert Edit.load(out).overlay is not None
    assert run_app([*asked, "--method", "grace+rect"]) == 2
    assert capsys.readouterr().err == (
        "editlib: grace changes no weight, so rect has nothing to filter; leave it out\n"
    )
