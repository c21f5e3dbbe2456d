"""What a model says after a prompt, and the three scores by three protocols, checked one prompt and token at a time."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editlib import scores
from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.errors import EditlibError
from editlib.measuring.scores import (
    AnswerIds,
    Prompts,
    Question,
    Replies,
    Reply,
    continuation,
    read,
    score,
    target_probability,
)
from editlib.models.language_model import LanguageModel

PREFIXES = ["{}", "Because the winter. {}", "I, Marend, the river. {}"]
NAMES = [f"{name}_{protocol}" for name in scores.SCORES for protocol in scores.PROTOCOLS]


@pytest.fixture(scope="module")
def case(ask: EditRequest) -> Case:
    """Prompts of many lengths, targets of several tokens, one answer that is not the true target."""
    return Case(
        case_id=7,
        request=replace(ask, target_new="Ostrel zone", target_true="Quint"),
        paraphrase_prompts=("Brast Nolva lies in", "The river turns, and is known. Brast Nolva is near"),
        neighborhood_prompts=("Zen is located in", "The town of Triskel, since the long winter, is in", "Uvo, in"),
        neighborhood_answers=("Quint", "Daslo where bells", "Quint"),
    )


def fitted(lm: LanguageModel, *texts: str) -> LanguageModel:
    """A copy of a model that has learned some texts by heart."""
    model = copy.deepcopy(lm.model).requires_grad_(True)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for ids in [torch.tensor([lm.tokenizer(text)["input_ids"]]) for text in texts] * 40:
        loss = model(ids, labels=ids).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    return LanguageModel(model, lm.tokenizer)


KNOWN = "Uvo, in Quint", "The town of Triskel, since the long winter, is in Daslo near the sea today, near the sea"


@pytest.fixture(scope="module")
def unedited(lm: LanguageModel) -> LanguageModel:
    return fitted(lm, *KNOWN)


@pytest.fixture(scope="module")
def edited(unedited: LanguageModel, case: Case) -> LanguageModel:
    """The new target learned, in part elsewhere too, a neighbor dragged along, what was known kept."""
    new = f"{case.request.text} Ostrel zone", "Brast Nolva lies in Ostrel, X", "Zen is located in Ostrel"
    return fitted(unedited, *KNOWN, *new)


@torch.no_grad()
def token_by_token(lm: LanguageModel, text: str, target: str) -> tuple[float, list[int], list[int], list[int]]:
    """Mean log-probability, picks, continuation and ids of a target, one row and one pass for every token."""
    fed = lm.tokenizer(text)["input_ids"]
    tokens, spoken = lm.tokenizer(f" {target}", add_special_tokens=False)["input_ids"], list(fed)
    losses, picks = [], []
    for token in tokens:
        logits = lm.model(torch.tensor([fed])).logits[0, -1]
        losses.append(logits.log_softmax(-1)[token].item())
        picks.append(int(logits.argmax()))
        fed = [*fed, token]
        spoken = [*spoken, int(lm.model(torch.tensor([spoken])).logits[0, -1].argmax())]
    return sum(losses) / len(tokens), picks, spoken[-len(tokens) :], tokens


def slow_scores(
    before: LanguageModel, after: LanguageModel, case: Case, prefixes: Sequence[str], prefixed: str
) -> dict[str, float]:
    """The definitions, one prompt at a time."""

    def behind(name: str, text: str) -> list[str]:
        return [prefix.replace("{}", text) for prefix in (prefixes if prefixed in ("all", name) else ["{}"])]

    def told(text: str) -> list[float]:
        new, picks, said, tokens = token_by_token(after, text, case.request.target_new)
        true = token_by_token(after, text, str(case.request.target_true))[0]
        hits = [pick == token for pick, token in zip(picks, tokens, strict=True)]
        return [new > true, sum(hits) / len(hits), said == tokens]

    def kept(text: str, answer: str) -> list[float]:
        _, old_picks, old_said, _ = token_by_token(before, text, answer)
        true, picks, said, _ = token_by_token(after, text, answer)
        hits = [pick == old for pick, old in zip(picks, old_picks, strict=True)]
        return [
            true > token_by_token(after, text, case.request.target_new)[0],
            sum(hits) / len(hits),
            said == old_said,
        ]

    near = zip(case.neighborhood_prompts, case.neighborhood_answers, strict=True)
    values = {
        "efficacy": [told(text) for text in behind("efficacy", case.request.text)],
        "generalization": [told(text) for p in case.paraphrase_prompts for text in behind("generalization", p)],
        "locality": [kept(text, answer) for p, answer in near for text in behind("locality", p)],
    }
    return {
        f"{name}_{protocol}": sum(row[i] for row in rows) / len(rows)
        for name, rows in values.items()
        for i, protocol in enumerate(scores.PROTOCOLS)
    }


@pytest.mark.parametrize("prefixes", [["{}"], PREFIXES], ids=["bare", "three"])
@pytest.mark.parametrize("prefixed", ["efficacy", "all"])
def test_scores_are_their_definitions_token_by_token(
    unedited: LanguageModel, edited: LanguageModel, case: Case, prefixes: list[str], prefixed: scores.Prefixed
) -> None:
    before, after = (read(model, case, prefixes=prefixes, prefixed=prefixed) for model in (unedited, edited))
    found = score(case, before, after)
    assert found == pytest.approx(slow_scores(unedited, edited, case, prefixes, prefixed))
    assert list(found) == NAMES
    assert 0 < found["locality_em_tf"] < 1 and 0 < found["locality_em_ar"] < 1  # some kept, some not


def test_likelihoods_and_continuations_are_those_of_single_rows(
    unedited: LanguageModel, edited: LanguageModel, case: Case
) -> None:
    for model in (unedited, edited):
        replies = read(model, case).replies
        texts = [case.request.text, *case.paraphrase_prompts, *case.neighborhood_prompts]
        answers = [case.request.target_new] * 3 + list(case.neighborhood_answers)
        rivals = [str(case.request.target_true)] * 3 + [case.request.target_new] * 3
        for i, (text, answer, rival) in enumerate(zip(texts, answers, rivals, strict=True)):
            likelihood, picks, said, _ = token_by_token(model, text, answer)
            assert replies[i].answer == pytest.approx(likelihood, abs=1e-4)
            assert replies[i].rival == pytest.approx(token_by_token(model, text, rival)[0], abs=1e-4)
            assert list(replies[i].picks) == picks
            assert list(replies[i].said) == said[: len(replies[i].said)]
            assert len(replies[i].said) == len(said) or i < 3


def test_prompts_in_many_passes_or_one_are_read_alike(
    lm: LanguageModel, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(lm, case, prefixes=PREFIXES, prefixed="all")
    monkeypatch.setattr(scores, "PASS_ROWS", 3)
    for one, other in zip(whole.replies, read(lm, whole.prompts).replies, strict=True):
        assert (one.picks, one.said) == (other.picks, other.said)
        assert (one.answer, one.rival) == pytest.approx((other.answer, other.rival), abs=1e-4)


def test_prompts_made_once_serve_all_readings(lm: LanguageModel, edited: LanguageModel, case: Case) -> None:
    prompts = scores.prompts(lm, case, prefixes=PREFIXES)
    for model in (lm, edited):
        assert read(model, prompts) == read(model, case, prefixes=PREFIXES)


def test_an_unedited_model_keeps_everything(lm: LanguageModel, case: Case) -> None:
    same = score(case, read(lm, case), read(lm, case))
    assert same["locality_em_tf"] == same["locality_em_ar"] == 1


def test_prefixes_go_before_the_efficacy_prompt_or_all(lm: LanguageModel, case: Case) -> None:
    def texts(prefixed: scores.Prefixed) -> list[str]:
        questions = scores.prompts(lm, case, prefixes=PREFIXES[1:], prefixed=prefixed).questions
        return [lm.tokenizer.decode(question.answer.prompt, skip_special_tokens=True) for question in questions]

    def behind(text: str) -> list[str]:
        return [f"Because the winter. {text}", f"I, Marend, the river. {text}"]

    others = [*case.paraphrase_prompts, *case.neighborhood_prompts]
    assert texts("efficacy") == [*behind(case.request.text), *others]
    assert texts("all") == [text for prompt in [case.request.text, *others] for text in behind(prompt)]


def test_neighborhood_answers_default_to_the_true_target(lm: LanguageModel, case: Case) -> None:
    plain, spelled = replace(case, neighborhood_answers=()), replace(case, neighborhood_answers=("Quint",) * 3)
    assert scores.prompts(lm, plain).questions == scores.prompts(lm, spelled).questions


def test_without_a_true_target_there_is_nothing_to_compare_with(
    lm: LanguageModel, edited: LanguageModel, case: Case
) -> None:
    open_ended = replace(case, request=replace(case.request, target_true=None), neighborhood_answers=())
    found = score(open_ended, read(lm, open_ended), read(edited, open_ended))
    full = score(case, read(lm, case), read(edited, case))
    missing = ["efficacy_es", "generalization_es", *(name for name in NAMES if name.startswith("locality"))]
    assert [name for name, value in found.items() if math.isnan(value)] == missing
    assert all(found[name] == full[name] for name in NAMES if name not in missing)


def test_scores_without_prompts_are_nan(lm: LanguageModel, ask: EditRequest) -> None:
    bare = Case(case_id=0, request=ask)
    found = score(bare, read(lm, bare), read(lm, bare))
    assert [name for name, value in found.items() if not math.isnan(value)] == NAMES[:3]


def test_neighborhood_answers_that_do_not_match_the_prompts_are_refused(lm: LanguageModel, case: Case) -> None:
    with pytest.raises(EditlibError, match="^case 7 has 3 neighborhood prompts, 1 answers; give one each$"):
        read(lm, replace(case, neighborhood_answers=("Quint",)))


@pytest.mark.parametrize("prefixes", [[], ["Indeed."], ["{} {}"], ["{}", ""], "{}"])
def test_bad_prefixes_are_refused(lm: LanguageModel, case: Case, prefixes: list[str]) -> None:
    with pytest.raises(EditlibError, match="prefixes must be a list of templates with one {} each"):
        read(lm, case, prefixes=prefixes)


def test_unknown_place_of_prefixes_is_refused(lm: LanguageModel, case: Case) -> None:
    with pytest.raises(EditlibError, match="prefixed='locality' is unknown; use 'efficacy' or 'all'"):
        read(lm, case, prefixed="locality")  # type: ignore[arg-type]


def test_prompt_longer_than_the_context_is_refused(lm: LanguageModel, case: Case) -> None:
    with pytest.raises(EditlibError, match="has 1[0-9]* tokens with prefix and target, the model takes at most 128"):
        read(lm, case, prefixes=["Zen " * 130 + "{}"])


def test_readings_of_different_prompts_are_refused(lm: LanguageModel, case: Case) -> None:
    bare, prefixed = read(lm, case), read(lm, case, prefixes=PREFIXES)
    with pytest.raises(EditlibError, match="the readings are not of case 7 with the same prefixes"):
        score(case, bare, prefixed)
    with pytest.raises(EditlibError, match="the readings are not of case 8"):
        score(replace(case, case_id=8), bare, bare)


def readings(case: Case, *rows: tuple[Question, Reply, Reply]) -> tuple[Case, Replies, Replies]:
    """A case with its questions and the replies before and after an edit."""
    prompts = Prompts(case, tuple(question for question, _, _ in rows))
    return case, Replies(prompts, tuple(old for _, old, _ in rows)), Replies(prompts, tuple(new for *_, new in rows))


def about(name: scores.Score, *tokens: int) -> Question:
    return Question(name, AnswerIds((1,), tokens), AnswerIds((1,), (9,)))


SILENT = Reply((0, 0), (0, 0), -9.0, -1.0)


def test_counting_of_a_target(case: Case) -> None:
    question = about("efficacy", 5, 6)
    half = Reply(picks=(5, 7), said=(5, 7), answer=-1.0, rival=-2.0)
    all_ = Reply(picks=(5, 6), said=(5, 6), answer=-2.0, rival=-2.0)
    found = score(*readings(case, (question, SILENT, half), (question, SILENT, all_)))
    assert [found[name] for name in NAMES[:3]] == [0.5, 0.75, 0.5]


def test_counting_of_what_stays(case: Case) -> None:
    question = about("locality", 5, 6)
    before = Reply(picks=(5, 8), said=(5, 8), answer=-1.0, rival=-2.0)
    after = Reply(picks=(5, 6), said=(5, 6), answer=-1.0, rival=-0.5)
    found = score(*readings(case, (question, before, after), (question, before, before)))
    assert [found[name] for name in NAMES[6:]] == [0.5, 0.75, 0.5]


def test_locality_is_against_the_unedited_model_not_the_truth(case: Case) -> None:
    wrong = Reply(picks=(3, 4), said=(3, 4), answer=-5.0, rival=-9.0)
    found = score(*readings(case, (about("locality", 5, 6), wrong, wrong)))
    assert [found[name] for name in NAMES[6:]] == [1, 1, 1]


def test_a_later_token_right_by_forcing_is_no_autoregressive_match(case: Case) -> None:
    forced = Reply(picks=(4, 6), said=(4,), answer=-1.0, rival=-2.0)
    found = score(*readings(case, (about("generalization", 5, 6), SILENT, forced)))
    assert [found[name] for name in NAMES[3:6]] == [1, 0.5, 0]


ODDS = st.floats(-50, 0) | st.sampled_from([-math.inf, math.nan])


@st.composite
def replies(draw: st.DrawFn, tokens: tuple[int, ...]) -> Reply:
    """A reply a model may give: what it says greedily follows from its picks."""
    picks = draw(st.tuples(*(st.sampled_from([scores.NONE, 5, 6]) for _ in tokens)))
    said = picks[: next((i for i, pick in enumerate(picks) if pick != tokens[i]), len(picks)) + 1]
    return Reply(picks, said, draw(ODDS), draw(ODDS))


@st.composite
def rows(draw: st.DrawFn) -> tuple[Question, Reply, Reply]:
    tokens = tuple(draw(st.lists(st.sampled_from([5, 6]), min_size=1, max_size=3)))
    question = about(draw(st.sampled_from(scores.SCORES)), *tokens)
    return question, draw(replies(tokens)), draw(replies(tokens))


@given(table=st.lists(rows(), max_size=6))
def test_scores_are_shares_and_the_whole_target_is_the_harder_test(case: Case, table: list[object]) -> None:
    found = score(*readings(case, *table))  # type: ignore[arg-type]
    for name, value in found.items():
        asked = any(name.startswith(question.score) for question, *_ in table)  # type: ignore[misc]
        assert 0 <= value <= 1 if asked else math.isnan(value)
    assert not found["efficacy_em_ar"] > found["efficacy_em_tf"]
    assert (found["efficacy_em_ar"] == 1) == (found["efficacy_em_tf"] == 1)


@given(table=st.lists(rows(), min_size=1, max_size=4))
def test_order_of_prompts_does_not_matter(case: Case, table: list[tuple[Question, Reply, Reply]]) -> None:
    assert score(*readings(case, *table)) == pytest.approx(score(*readings(case, *table[::-1])), nan_ok=True)


@pytest.fixture(params=[math.nan, math.inf, -math.inf])
def broken(request: pytest.FixtureRequest, own: LanguageModel) -> Iterator[LanguageModel]:
    """A model whose last norm yields nothing finite."""
    norm = [module for name, module in own.model.named_modules() if name.endswith(("ln_f", "model.norm"))]
    norm[-1].weight.fill_(request.param)  # type: ignore[operator]
    yield own


def test_a_broken_model_scores_nothing(lm: LanguageModel, broken: LanguageModel, case: Case) -> None:
    intact = read(lm, case)
    assert set(score(case, intact, read(broken, case)).values()) == {0}
    assert score(case, read(broken, case), read(broken, case))["locality_em_tf"] == 0


def test_nan_at_the_target_itself_is_no_hit(llama: LanguageModel, ask: EditRequest) -> None:
    lm = LanguageModel(copy.deepcopy(llama.model), llama.tokenizer)
    case = Case(case_id=0, request=ask)
    (question,) = scores.prompts(lm, case).questions
    lm.model.lm_head.weight[question.answer.tokens[0]] = math.nan  # argmax names the first nan
    found = score(case, read(lm, case), read(lm, case))
    assert [found[name] for name in NAMES[:3]] == [0, 0, 0]


def test_tokens_ruled_out_by_minus_infinity_leave_the_rest_to_choose_from(llama: LanguageModel, case: Case) -> None:
    expected = [reply.picks for reply in read(llama, case).replies]
    lm = LanguageModel(copy.deepcopy(llama.model), llama.tokenizer)
    never = next(i for i in range(len(lm.tokenizer)) if not any(i in picks for picks in expected))
    handle = lm.model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor([never]), -math.inf)
    )
    assert [reply.picks for reply in read(lm, case).replies] == expected
    handle.remove()


def test_a_continuation_ends_at_the_end_of_text(gpt2: LanguageModel, case: Case) -> None:
    said = read(gpt2, case).replies[4].said  # after the prompt whose answer is the longest
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said[0])
    assert read(LanguageModel(gpt2.model, tokenizer), case).replies[4].said == said[:1] != said


@torch.no_grad()
def by_hand(lm: LanguageModel, text: str, target: str) -> float:
    """Product over the target's tokens, one pass for each."""
    ids, probability = lm.tokenizer(text)["input_ids"], 1.0
    for token in lm.tokenizer(f" {target}", add_special_tokens=False)["input_ids"]:
        probability *= lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item()
        ids = [*ids, token]
    return probability


@pytest.mark.parametrize("target", ["Quint", "xyz Daslo today"])
def test_probability_of_a_target_is_the_product_over_its_tokens(
    lm: LanguageModel, ask: EditRequest, target: str
) -> None:
    assert target_probability(lm, ask, target) == pytest.approx(by_hand(lm, ask.text, target), rel=1e-4)


def test_probabilities_of_all_single_tokens_stay_below_one(lm: LanguageModel, ask: EditRequest) -> None:
    words = ["Daslo", "Quint", "Parvo", "Ostrel"]
    assert 0 < sum(target_probability(lm, ask, word) for word in words) < 1


def test_target_after_a_subject_at_the_end(lm: LanguageModel, ask: EditRequest) -> None:
    request = replace(ask, prompt="Here is {}")
    assert target_probability(lm, request, "Quint") == pytest.approx(by_hand(lm, request.text, "Quint"), rel=1e-4)


@torch.no_grad()
def test_continuation_is_greedy(lm: LanguageModel) -> None:
    ids = lm.tokenizer("Zen is located in")["input_ids"]
    start = len(ids)
    for _ in range(5):
        ids = [*ids, int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert continuation(lm, "Zen is located in", tokens=5) == lm.tokenizer.decode(ids[start:])


def test_continuation_stops_at_the_end_of_text(gpt2: LanguageModel) -> None:
    tokenizer = copy.deepcopy(gpt2.tokenizer)
    first = gpt2.model(torch.tensor([tokenizer("Zen")["input_ids"]])).logits[0, -1].argmax()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(first))
    assert continuation(LanguageModel(gpt2.model, tokenizer), "Zen") == ""


def test_a_text_longer_than_the_context_is_refused_and_a_full_context_ends_the_continuation(lm: LanguageModel) -> None:
    passes = list[int]()
    hook = lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    long = EditRequest(prompt="{} is located in " + "a" * 128, subject="Zen", target_new="Quint")
    for asked in (lambda: continuation(lm, long.text), lambda: target_probability(lm, long, "Quint")):
        with pytest.raises(EditlibError, match=r"tokens, .* takes at most 128; shorten it"):
            asked()
    assert not passes
    opening = len(lm.tokenizer("a")["input_ids"]) - 1  # special tokens
    for length, most in ((128, 1), (126, 3), (100, 9)):
        continuation(lm, "a" * (length - opening), tokens=9)
        assert len(passes) == most
        passes.clear()
    hook.remove()
