"""Both paths give the same; operations are counted and bounded below as worked out by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import CONTEXTS, random_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from editlib.bench import measure
from editlib.bench import plain as plainpath
from editlib.bench import report as both_paths
from editlib.bench import work as workload
from editlib.bench.floor import SearchText, Shape, floor, spans
from editlib.bench.work import Work
from editlib.data import datasets as data
from editlib.data.request import EditRequest
from editlib.editing.change import LowRank
from editlib.editing.edit import Edit
from editlib.editing.methods import hparams_for
from editlib.editing.methods.rome import RomeParams
from editlib.engine.perplexity import perplexity
from editlib.engine.values import read_keys
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel, Layout

PARAMS = RomeParams(layer=1, steps=6, learning_rate=0.1, kl_weight=0.5, stop_loss=0.0, clamp=0.8, covariance=False)
REQUESTS = (
    EditRequest(prompt="{} is located in", subject="Zen", target_new="Ostrel"),
    EditRequest(prompt="The town of {} is located in", subject="Brast Nolva", target_new="Daslo and Quint"),
    EditRequest(prompt="Near the sea, since the long winter, lies {}", subject="Uvo", target_new="Parvo"),
)
TEXTS = ("Zen is located in Daslo, near the sea.", "Today.", "The town of Brast Nolva is known for its bells.")
TINY = {"n_layer": 3, "n_embd": 16, "n_head": 2}


def folder(place: Path, contexts: list[str]) -> Path:
    """A model's folder with nothing in it but prefix contexts."""
    (place / "prefixes.json").write_text(json.dumps({"contexts": contexts}))
    return place


@pytest.fixture(params=["gpt2", "llama"])
def work(request: pytest.FixtureRequest, tmp_path: Path, start_tokenizer: PreTrainedTokenizerFast) -> Work:
    """Three edits of a tiny random model."""
    lm = LanguageModel(random_model(request.param), start_tokenizer, folder=folder(tmp_path, CONTEXTS))
    return Work(lm, REQUESTS, TEXTS, PARAMS)


@pytest.fixture
def double(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Work:
    """The same of one whose norms keep float64."""
    lm = LanguageModel(random_model("gpt2").double(), tokenizer, folder=folder(tmp_path, CONTEXTS))
    return Work(lm, REQUESTS, TEXTS, PARAMS)


def meter() -> measure.Meter:
    return measure.Meter(lambda: 0.0)


def near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


# Models and work


@pytest.mark.parametrize(
    ("name", "parameters", "layer", "layout"),
    [("gpt2", 124_439_808, 5, "transformer.h,mlp.c_proj"), ("gpt2-xl", 1_557_611_200, 17, "transformer.h,mlp.c_proj"),
     ("gpt-j-6b", 6_050_882_784, 5, "transformer.h,mlp.fc_out"),
     ("llama-2-7b", 6_738_415_616, 5, "model.layers,mlp.down_proj")],
)  # fmt: skip
def test_random_models_have_the_published_shapes(
    name: str, parameters: int, layer: int, layout: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(workload.SHAPES[name])
    lm = LanguageModel(made, tokenizer, layout=Layout.of(layout))
    assert lm.model.num_parameters() == parameters
    assert hparams_for(lm, "rome").layer == layer
    whole = lm.model.get_submodule(lm.layout.blocks).parameters()
    assert Shape.of(lm).blocks * Shape.of(lm).linear == sum(p.numel() for p in whole if p.ndim == 2)


def test_a_random_model_is_always_the_same_and_uses_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = type(workload.SHAPES["gpt2"])(**TINY)
    monkeypatch.setitem(workload.SHAPES, "gpt2", config)
    torch.manual_seed(7)
    one, expected = workload.model("gpt2"), torch.rand(1)
    torch.manual_seed(8)
    assert workload.model("gpt2").fingerprint == one.fingerprint
    torch.manual_seed(7)
    assert torch.rand(1) == expected
    assert workload.model("gpt2", dtype="bfloat16").model.dtype == torch.bfloat16
    assert len(workload.work(one, edits=1).contexts) == 21


def test_a_model_larger_than_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Memory", (), {"available": 2**34})
    monkeypatch.setattr(workload.psutil, "virtual_memory", lambda: free)
    with pytest.raises(EditlibError, match=r"gpt-j-6b has 22.5 GiB of weights in float32, and 16.0 GiB .* bfloat16"):
        workload.model("gpt-j-6b")


def test_unknown_models_and_types_are_named() -> None:
    with pytest.raises(EditlibError, match=r"'gpt3' is unknown; did you mean gpt2\? use one of testbed.* id@commit$"):
        workload.check("gpt3", edits=1)
    with pytest.raises(EditlibError, match="dtype 'int3' is unknown"):
        workload.model("gpt2", dtype="int3")


def test_the_work_is_about_that_of_the_papers() -> None:
    lm = workload.model("testbed")
    made, fewer = workload.work(lm, edits=16), workload.work(lm, edits=3)
    assert len(made.texts) == 50 and max(made.lengths) == 59 and abs(sum(made.lengths) - 1328) < 20
    assert len(set(made.texts)) == 50 and len(set(made.requests)) == 16
    assert fewer.requests == made.requests[:3] and fewer.texts == made.texts
    assert len(made.contexts) == 21 and not made.params.covariance and made.params.stop_loss == 0
    longer = workload.work(lm, edits=3, before=40, steps=2)
    for short, long in zip(fewer.searches, longer.searches, strict=True):
        assert [row.end + 40 for row in short[:-1]] == pytest.approx([row.end for row in long[:-1]], abs=2)
        assert [row.end - row.last for row in short] == [row.end - row.last for row in long]
    assert longer.params.steps == 2


def test_any_model_can_be_measured(gpt2: LanguageModel, gpt2_folder: Path) -> None:
    """One that is not of the testbed edits real facts, and is measured on real prose."""
    workload.check(str(gpt2_folder), edits=2)
    lm = workload.model(str(gpt2_folder))
    assert lm.fingerprint == gpt2.fingerprint
    made = workload.work(lm, edits=2, texts=3, longest=20)
    assert set(made.requests) <= {case.request for case in data.cases("facts")}
    assert made.texts[0].strip() in " ".join(data.texts("prose-500")) and max(made.lengths) == 20


def test_plain_edits_are_spread_over_the_lengths() -> None:
    made = workload.work(workload.model("testbed"), edits=16)
    sizes = sorted(max(span.end for span in search) for search in made.searches)
    two = [max(span.end for span in one.searches[0]) for one in made.alone(2)]
    assert two == [sizes[4], sizes[12]] and len({one.requests for one in made.alone(16)}) == 16
    assert [max(span.end for span in one.searches[0]) for one in made.alone(1)] == [sizes[8]]
    rows = [span for search in made.searches for span in search]
    assert np.mean(sizes) == pytest.approx(20, rel=0.1)
    assert np.mean([span.end for span in rows]) == pytest.approx(17, rel=0.1)
    assert np.mean([span.end - span.last for span in rows]) == pytest.approx(4.1, rel=0.1)


def test_work_a_model_cannot_take_is_refused() -> None:
    lm = workload.model("testbed")
    with pytest.raises(EditlibError, match=r"before=120 or longest=59 is too large: text .* takes at most 128"):
        workload.work(lm, before=120)
    with pytest.raises(EditlibError, match="takes at most 128"):
        workload.work(lm, longest=200)
    with pytest.raises(EditlibError, match="edits=1001 is out of range; testbed has 1000 cases"):
        workload.work(lm, edits=1001)


# Both paths


def test_the_plain_path_reads_keys_and_perplexity_as_the_package_does(double: Work) -> None:
    lm = double.lm
    for request, found in zip(REQUESTS, measure.plain(double, meter()), strict=True):
        keys = plainpath.keys(lm, 1, request, CONTEXTS)
        assert near(keys.inputs, read_keys(lm, 1, request, CONTEXTS).inputs, 1e-12)
        with found.edit.applied(lm):
            expected = perplexity(lm, TEXTS)
        assert found.perplexity.per_sentence == pytest.approx(expected.per_sentence, rel=1e-8)
        assert found.perplexity.counts.tolist() == expected.counts.tolist()


def test_both_paths_give_the_same(double: Work) -> None:
    assert_same(double, 1e-8)


def test_both_paths_give_the_same_in_single_precision(work: Work) -> None:
    assert_same(work, 1e-3)


def assert_same(work: Work, tolerance: float) -> None:
    pairs = zip(REQUESTS, measure.plain(work, meter()), measure.engine(work, meter()), strict=True)
    for request, slow, fast in pairs:
        assert slow.edit.requests == fast.edit.requests == (request,)
        assert near(fast.target.value, slow.target.value, tolerance)
        assert len(fast.target.losses) == len(slow.target.losses) == PARAMS.steps
        assert fast.target.losses == pytest.approx(slow.target.losses, rel=tolerance)
        assert fast.perplexity.per_sentence == pytest.approx(slow.perplexity.per_sentence, rel=tolerance)


def test_the_plain_path_leaves_the_weights_as_they_were(work: Work) -> None:
    measure.plain(work, meter())
    assert replace(work.lm).fingerprint == work.lm.fingerprint


def test_padding_does_not_spoil_the_perplexity_of_an_edit_that_overflows(work: Work) -> None:
    lm = work.lm
    out, into = lm.weight(1).shape
    change = LowRank(torch.full((out, 1), 1e30), torch.ones(into, 1))
    edit = Edit("too large", (REQUESTS[0],), {f"{work.name}.weight": change}, {}, lm.fingerprint)
    with edit.applied(lm):
        found, expected = plainpath.perplexity(lm, TEXTS), perplexity(lm, TEXTS)
    assert found.per_sentence == pytest.approx(expected.per_sentence, rel=1e-2, nan_ok=True)


# Operations


def test_a_block_is_counted_by_hand() -> None:
    shape = Shape(blocks=3, linear=100, mlp=60, attention=10, head=1000)
    assert shape.run(1, 0, 1) == 2 * 100 + 4 * 10
    assert shape.run(1, 2, 4) == 2 * (2 * 100) + 4 * 10 * (3 + 4)  # the third token sees 3, the fourth 4
    assert shape.run(2, 2, 4) == 2 * shape.run(1, 2, 4)
    assert shape.run(2, 2, 4, scored=1) == 2 * shape.run(1, 2, 4) - 2 * 60  # the MLP of the last one is spared once
    assert shape.run(0, 2, 4, scored=1) == 0


def test_the_floor_is_counted_by_hand() -> None:
    shape = Shape(blocks=3, linear=100, mlp=60, attention=0, head=1000)
    searches = [[SearchText(known=2, last=5, end=7, scored=1)], [SearchText(known=0, last=0, end=1, scored=1)]]
    found = floor(shape, 1, searches=searches, contexts=[4], texts=[3, 2], steps=2)
    context = 200 * 3 * 4 - 120 * 4  # three blocks on four tokens; the last MLP serves nothing
    shared = context + 200 * 2 * (2 + 1)  # two blocks on all but the last token of the texts
    first = 200 * 3 * 3 - 120 * 3 + 200 * 2 * (2 + 1)  # three tokens before the subject's last; then two, and one
    passes = 3 * (200 * 2 - 120 + 2000) + 3 * (200 + 2000)  # two forward, one backward; one block above, one head
    assert found == {
        "shared": shared / 2,
        "values": (first + passes) / 2,
        "perplexity": 200 * (2 + 1) + 2000 * (2 + 1),
    }


def test_a_search_is_known_up_to_the_end_of_its_prefix(double: Work) -> None:
    lm = double.lm
    beginning = len(lm.tokenizer("Because the long winter.")["input_ids"])
    prompt, subject, target = (len(lm.tokenizer(text)["input_ids"]) for text in (" The town of", " Brast Nolva", " is"))
    request = EditRequest(prompt="The town of {}", subject="Brast Nolva", target_new="is")
    rows = spans(lm, request, ["{}", "Because the long winter. {}"])
    assert rows[1] == SearchText(beginning, beginning + prompt + subject - 1, beginning + prompt + subject, target)
    assert rows[0].known == rows[2].known == 0 and rows[2].scored == 1 and rows[2].end > rows[2].last


def test_what_torch_counts_is_what_the_shape_says(work: Work, tmp_path: Path) -> None:
    lm = replace(work.lm, folder=folder(tmp_path, ["{}"]))
    found = measure.counted(measure.plain, Work(lm, REQUESTS[:1], TEXTS[:1], PARAMS))
    shape, keys = Shape.of(lm), len(lm.tokenizer(REQUESTS[0].text)["input_ids"])
    pairs = 4 * shape.attention * keys**2  # torch does not leave out what a causal mask hides
    assert found["keys"] == shape.blocks * (2 * shape.linear * keys + pairs) + 2 * shape.head * keys


def test_the_engine_is_between_the_floor_and_the_plain_path(work: Work) -> None:
    least, fast, slow = (
        measure.floor_of(work),
        measure.counted(measure.engine, work),
        measure.counted(measure.plain, work),
    )
    assert all(least[stage] < fast[stage] for stage in least)
    assert fast["values"] + fast["perplexity"] < slow["values"] + slow["perplexity"]


# The report


def test_the_report_says_what_was_measured(work: Work) -> None:
    report = both_paths.bench(work, plain_edits=2, rounds=2)
    found = json.loads(json.dumps(report.record()))
    assert (len(report.plain), len(report.engine)) == (4, 2)
    assert (found["edits"], found["plain_edits"], found["rounds"], found["texts"]) == (3, 2, 2, 3)
    assert found["ratio"] == found["plain_seconds_per_edit"] / found["engine_seconds_per_edit"]
    assert found["plain_seconds_per_edit"] == np.median([go.seconds for go in report.plain])
    assert found["flops_per_edit"] == sum(measure.counted(measure.engine, work).values())
    assert found["floor_flops_per_edit"] == sum(measure.floor_of(work).values())
    assert found["floor_seconds_per_edit"] == found["floor_flops_per_edit"] / found["matmul_flops_per_second"]
    assert found["value_difference"] < 1e-3 and found["perplexity_difference"] < 1e-3
    assert found["stages"]["keys"]["engine_seconds"] is None and found["stages"]["values"]["plain_seconds"] > 0
    text = report.table()
    assert all(name in text for name in measure.STAGES.values())
    assert f"{found['ratio']:.1f} times" in text and f"{found['flops_over_floor']:.2f} times the floor" in text


def test_differences_are_shown(work: Work) -> None:
    report = both_paths.bench(work, plain_edits=1)
    (go,) = report.engine
    off = [replace(one, target=replace(one.target, change=one.target.change * 0)) for one in go.outcomes]
    wrong = replace(report, engine=[replace(go, outcomes=off)])
    assert wrong.record()["value_difference"] > 0.01 > report.record()["value_difference"]


def test_more_plain_edits_than_edits_are_refused(work: Work) -> None:
    with pytest.raises(EditlibError, match="plain_edits=4 is out of range; there are 3 edits"):
        both_paths.bench(work, plain_edits=4)


def test_the_peak_of_memory_is_that_of_one_go(work: Work) -> None:
    if not measure.PROCESS.joinpath("clear_refs").exists():
        pytest.skip("only Linux tells")

    def heavy(_work: Work, _meter: measure.Meter) -> list[measure.PathResult]:
        torch.ones(2**27)  # half a GiB
        return []

    large, small = (measure.timed(route, work).peak for route in (heavy, lambda *_: []))
    assert large is not None and small is not None
    assert large - small > 0.9 * 2**29


def test_where_the_system_does_not_tell_the_peak_it_is_left_open(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PROCESS", tmp_path / "nowhere")
    report = both_paths.bench(work, plain_edits=1)
    assert report.record()["peak_memory_bytes"] is None and "engine – GiB" in report.table()


@pytest.mark.slow  # the command prints one
def test_the_profile_has_the_most_expensive_operators_first(work: Work) -> None:
    rows = measure.profile(work, rows=5)
    seconds = [row["seconds"] for row in rows]
    assert len(rows) == 5 and seconds == sorted(seconds, reverse=True)
    assert 0 < sum(row["share"] for row in rows) <= 1 and all(row["calls"] > 0 for row in rows)
    whole = measure.profile(work, rows=10_000)
    assert math.isclose(sum(row["share"] for row in whole), 1)
    assert {"aten::mm", "aten::addmm"} & {row["operator"] for row in whole}
