"""Every mistake that can be known before a model is run is told before it is run once."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from editlib.data.datasets import Case
from editlib.data.request import EditRequest
from editlib.editing.methods import compute, hparams_for, variants_of
from editlib.editing.methods.rome import RomeParams
from editlib.editing.session import Session
from editlib.editing.stats import MomentOptions, Stats
from editlib.engine.perplexity import perplexity
from editlib.engine.prefixes import prefix_contexts
from editlib.engine.prefixes import test_prefixes as drawn
from editlib.errors import EditlibError
from editlib.measuring.risk import risk
from editlib.measuring.scores import continuation, target_probability
from editlib.models.language_model import LanguageModel
from editlib.sweeps.sequential import sequence
from editlib.sweeps.single import sweep

TEXTS = ["Zen is located in Daslo, near the sea."]
BARE = RomeParams(layer=1, covariance=False)
LONG = EditRequest(prompt=f"{'the town ' * 45}of {{}} is located in", subject="Zen", target_new="Ostrel")


@pytest.fixture
def passes(gpt2: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[int]]:
    """One entry a forward pass of the model, none of whose prefix contexts or second moments is known yet."""
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path / "cache"))
    seen, forward = list[int](), type(gpt2.model).forward
    monkeypatch.setattr(type(gpt2.model), "forward", lambda *a, **k: (seen.append(1), forward(*a, **k))[1])
    yield seen


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"method": "rom"}, r"^method 'rom' is unknown; did you mean rome\?"),
    "unknown hyper-parameter": (
        {"hparams": {"clmp": 3}},
        r"^rome's hyper-parameter 'clmp' is unknown; did you",
    ),
    "unknown flavour": ({"flavour": "meng"}, "^flavour 'meng' is unknown"),
    "wrong kind": ({"hparams": {"steps": "many"}}, "^hyper-parameter steps='many' of rome"),
    "not finite": ({"hparams": {"clamp": math.inf}}, "^hyper-parameter clamp=inf of rome: input should be a finite"),
    "not a number": ({"hparams": {"stop_loss": math.nan}}, "^hyper-parameter stop_loss=nan of rome: input should be"),
    "layer out of range": ({"hparams": {"layer": 3}}, "^layer 3 is out of range"),
    "other keys than its name's": (
        {"method": "c-rome", "hparams": {"keys": "mixed"}},
        "^c-rome stands for keys='prefixed', so it cannot be 'mixed'; leave it out$",
    ),
    "last layer": (
        {"hparams": {"layer": 2, "covariance": False}},
        "^layer 2 is the last one: what is written at subject 'Zen' reaches no later token; edit a lower layer",
    ),
    "corpus too short for a window": ({"corpus": ["Zen is located in Daslo"]}, r"^the corpus has \d+ tokens; second"),
    "corpus too short": (
        {"corpus": ["Zen is located in Daslo today"] * 18},
        r"tokens for second moments, \d\.\d a",
    ),
    "hyper-parameters that are none": ({"given": "layer=1"}, "^hparams 'layer=1' is no mapping; give {'layer': 5}"),
    "an option among them": ({"given": {"method": "ft"}}, "^method is no hyper-parameter; leave it out of hparams$"),
    "moments that are none": ({"stats": "c.safetensors"}, "^stats 'c.safetensors' are no second moments; read a file"),
    "a corpus with no text": ({"corpus": ["Zen", 3]}, "^3 in the corpus is no text; give a list of texts"),
    "no editor": ({"method": "mend"}, "^there is no MEND editor"),
    "prompt too long": ({"request": LONG, "hparams": {"covariance": False}}, "takes at most 128; shorten it$"),
}


def options_of(lm: LanguageModel, wrong: dict[str, Any]) -> dict[str, Any]:
    """Options of `compute`, with the hyper-parameters made first."""
    wrong = dict(wrong)
    method, flavour = wrong.pop("method", "rome"), wrong.pop("flavour", None)
    if "given" in wrong:
        return {"method": method, "hparams": wrong["given"]}
    params = hparams_for(lm, method, flavour=flavour, **wrong.pop("hparams", {}))
    return {"method": method, "hparams": params} | wrong


@pytest.mark.parametrize("mistake", MISTAKES)
def test_compute_runs_nothing_before_a_mistake_is_told(gpt2: LanguageModel, passes: list[int], mistake: str) -> None:
    wrong, said = MISTAKES[mistake]
    request = EditRequest(prompt="The town of {} is located in", subject="Zen", target_new="Ostrel")
    with pytest.raises(EditlibError, match=said) as caught:
        options = options_of(gpt2, wrong)
        compute(gpt2, [options.pop("request", request)], **options)
    assert not passes and "\n" not in str(caught.value)


@pytest.mark.parametrize("requests", [[], [LONG, LONG]])
def test_none_and_too_many_requests_are_told_at_once(
    gpt2: LanguageModel, passes: list[int], requests: list[EditRequest]
) -> None:
    with pytest.raises(EditlibError, match=r"^no request to edit|^rome edits one request at a time, not 2"):
        compute(gpt2, requests, method="rome", hparams=BARE)
    assert not passes


OF_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "no cases": ({"cases": []}, "^no cases to edit; give at least one$"),
    "no methods": ({"methods": []}, "^no methods to edit with; give at least one$"),
    "unknown method": ({"methods": ["rom"]}, r"^method 'rom' is unknown; did you mean rome\?"),
    "no hyper-parameters": ({"methods": {"mine": 3}}, "^3 is no hyper-parameters of a method"),
    "not finite": ({"methods": {"mine": RomeParams(layer=1, clamp=math.nan)}}, "^hyper-parameter clamp=nan of rome"),
    "a truth value": ({"methods": {"mine": RomeParams(layer=True)}}, "^hyper-parameter layer=True of rome"),
    "layer out of range": ({"methods": {"mine": RomeParams(layer=7)}}, "^layer 7 is out of range"),
    "no editor": ({"methods": ["mend"]}, "^there is no MEND editor"),
    "no texts": ({"texts": []}, "^no texts to measure perplexity on"),
    "one text": ({"texts": "Zen is located in Daslo"}, "^texts"),
    "a text too short": ({"texts": [*TEXTS, "."]}, "has fewer than two tokens"),
    "a text too long": ({"texts": [*TEXTS, "Zen is located in Daslo " * 60]}, "takes at most 128; shorten it$"),
    "corpus too short": ({"methods": ["rome"], "corpus": ["Zen"]}, r"^the corpus has \d+ tokens"),
    "corpus of one string": (
        {"methods": ["rome"], "corpus": "Zen is located in Daslo"},
        "^the corpus is one string, 'Zen is located in Daslo'; give a list of texts",
    ),
    "corpus shorter than asked for": (
        {
            "methods": ["rome"],
            "corpus": ["Zen is located in Daslo today"] * 18,
            "moment_options": MomentOptions(tokens=100_000),
        },
        r"tokens for second moments, \d+\.\d a key dimension, which makes edits noise",
    ),
}


@pytest.mark.parametrize("table", [sweep, sequence])
@pytest.mark.parametrize("mistake", OF_TABLES)
def test_tables_run_nothing_before_a_mistake_is_told(
    gpt2: LanguageModel, passes: list[int], table: Callable[..., object], mistake: str, tmp_path: Path
) -> None:
    wrong, said = OF_TABLES[mistake]
    request = EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")
    options = {"cases": [Case(0, request)], "methods": {"rome": BARE}, "texts": TEXTS, "progress": False} | wrong
    with pytest.raises(EditlibError, match=said) as caught:
        table(gpt2, options.pop("cases"), out=tmp_path / "out", **options)
    assert not passes and "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("table", [sweep, sequence])
def test_a_folder_that_cannot_be_used_is_told_at_once(
    gpt2: LanguageModel, passes: list[int], table: Callable[..., object], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    case = {"prompt": "{} is located in", "subject": "Zen", "target_new": "Ostrel"}
    with pytest.raises(EditlibError, match="is not empty and holds no sweep; choose another$"):
        table(gpt2, case, methods={"rome": BARE}, texts=TEXTS, out=tmp_path, progress=False)
    assert not passes


@pytest.mark.parametrize("prefixes", [[], ["no place"], "{}", [3], 3])
def test_a_bad_prefix_is_told_at_once(gpt2: LanguageModel, passes: list[int], prefixes: Any) -> None:
    case = {"prompt": "{} is located in", "subject": "Zen", "target_new": "Ostrel"}
    with pytest.raises(EditlibError, match=r"^prefixes must be a list of templates with one \{\} each"):
        sweep(gpt2, case, methods={"rome": BARE}, texts=TEXTS, prefixes=prefixes, progress=False)
    assert not passes


def test_hyperparameters_under_a_methods_name_are_what_it_stands_for(gpt2: LanguageModel) -> None:
    """As in `compute`: a default gives way, another value is refused; a name of one's own is free."""
    variants = variants_of(gpt2, {"c-rome": RomeParams(layer=1), "mine": RomeParams(layer=1)})
    assert [(v.method.name, v.params.keys) for v in variants.values()] == [("c-rome", "prefixed"), ("rome", "mixed")]
    with pytest.raises(
        EditlibError, match="^p-rome stands for keys='unprefixed', so it cannot be 'prefixed'; leave it out"
    ):
        variants_of(gpt2, {"p-rome": RomeParams(layer=1, keys="prefixed")})


NO_TEXT: Any = None
REQUEST = EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel")
READINGS: dict[str, tuple[Callable[[LanguageModel], object], str]] = {
    "no texts": (lambda lm: perplexity(lm, []), "^no texts to measure perplexity on"),
    "texts that are none": (lambda lm: perplexity(lm, NO_TEXT), "^texts None is no list; give a list of texts"),
    "texts read but once": (lambda lm: perplexity(lm, iter(TEXTS)), "is no list; give a list of texts"),  # type: ignore[arg-type]
    "nothing to go on from": (lambda lm: continuation(lm, NO_TEXT), "^text None is no text; give a string"),
    "no target": (lambda lm: target_probability(lm, REQUEST, NO_TEXT), "^target None is no text with a token"),
    "an empty target": (lambda lm: target_probability(lm, REQUEST, " "), "^target ' ' is no text with a token"),
    "no requests": (lambda lm: risk(lm, []), "^no requests to look at; give at least one"),
    "a text too short": (lambda lm: perplexity(lm, [*TEXTS, "Zen"]), "^text 'Zen' has fewer than two tokens"),
    "a text too long": (lambda lm: perplexity(lm, ["Zen is located in Daslo " * 60]), "takes at most 128; shorten it$"),
    "windows with gaps": (lambda lm: perplexity(lm, TEXTS, stride=0), "^stride=0 is out of range"),
    "a source that is none": (lambda lm: drawn(lm, "train", n=1, seed=0), "^prefix source 'train' is unknown"),  # type: ignore[arg-type]
    "no prefix": (lambda lm: drawn(lm, "held-out", n=0, seed=0), "^n=0 is out of range; there are 20 held-out"),
    "too many prefixes": (lambda lm: drawn(lm, "editing", n=21, seed=0), "^n=21 is out of range; there are 20 editing"),
}


@pytest.mark.parametrize("mistake", READINGS)
def test_reading_a_model_runs_nothing_before_a_mistake_is_told(
    gpt2: LanguageModel, passes: list[int], mistake: str
) -> None:
    read, said = READINGS[mistake]
    with pytest.raises(EditlibError, match=said):
        read(gpt2)
    assert not passes


def test_statistics_of_another_model_or_layer_are_told_at_once(
    gpt2: LanguageModel, llama: LanguageModel, passes: list[int], moments: Stats
) -> None:
    other = llama if moments.header.model == gpt2.fingerprint else gpt2
    runs = len(passes)
    with pytest.raises(EditlibError, match="^these statistics were made for model"):
        Session(other, stats=moments).check(variants_of(other, "rome").values())
    few = Stats(moments.header, {0: moments.moments[0]})
    own = gpt2 if other is llama else llama
    with pytest.raises(EditlibError, match=r"have no layer 1, only \[0\]"):
        Session(own, stats=few).check(variants_of(own, "rome").values())
    assert len(passes) == runs


def test_a_prompt_that_fits_alone_but_not_behind_its_contexts_is_told(gpt2: LanguageModel, passes: list[int]) -> None:
    contexts = prefix_contexts(gpt2)
    sampled = len(passes)
    longest = max(len(gpt2.tokenizer(context.replace("{}", ""))["input_ids"]) for context in contexts)
    room = 128 - longest
    prompt = "the " * (room - len(gpt2.tokenizer("Zen is located in Ostrel")["input_ids"]) + 2)
    request = EditRequest(prompt=f"{prompt}{{}} is located in", subject="Zen", target_new="Ostrel")
    with pytest.raises(EditlibError, match="takes at most 128; shorten it$"):
        compute(gpt2, request, method="rome", hparams=BARE)
    assert sampled and len(passes) == sampled


def test_the_last_layer_is_edited_where_the_subject_ends_the_prompt(gpt2: LanguageModel) -> None:
    request = EditRequest(prompt="In Daslo lies {}", subject="Zen", target_new="Ostrel")
    last = RomeParams(layer=2, covariance=False, steps=2)
    assert compute(gpt2, request, method="rome", hparams=last).norm() > 0


def test_a_request_that_cannot_be_edited_is_a_row_of_a_table(gpt2: LanguageModel) -> None:
    cases = [Case(0, LONG), Case(1, EditRequest(prompt="{} is in", subject="Zen", target_new="Ostrel"))]
    table = sweep(gpt2, cases, methods={"rome": BARE}, texts=TEXTS, progress=False)
    assert table["error"].notna().tolist() == [True, False]
    assert table["error"][0].endswith("takes at most 128; shorten it")


def test_rows_do_not_bear_another_methods_name(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="^rome is another method than that of its hyper-parameters, memit; rename"):
        variants_of(gpt2, {"rome": hparams_for(gpt2, "memit")})
    assert variants_of(gpt2, {"mine": hparams_for(gpt2, "memit")})["mine"].method.name == "memit"
