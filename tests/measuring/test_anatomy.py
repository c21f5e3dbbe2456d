"""Norms, keys, attention and second moments of the first position, against one text at a time."""

import pandas as pd
import pytest
import torch
from torch import Tensor

from editlib.editing.stats import corpus_windows, second_moments
from editlib.errors import EditlibError
from editlib.measuring import anatomy as measured
from editlib.measuring.anatomy import LENGTH, POSITIONS, ROWS, SPIKE, anatomy, first_position, sinks
from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace


def test_numbers_equal_a_plain_computation(gpt2: LanguageModel, corpus: list[str]) -> None:
    firsts = {gpt2.tokenizer(text)["input_ids"][0]: text for text in corpus}
    layer, position = 1, 3
    keys, norms = [], []
    for text in firsts.values():
        ids = torch.tensor([gpt2.tokenizer(text)["input_ids"][:POSITIONS]])
        names = gpt2.layout.name(layer), f"{gpt2.layout.blocks}.{layer}"
        with torch.no_grad(), trace(gpt2.model, *names) as seen:
            gpt2.model(ids)
        keys.append(seen[names[0]].input[0, position])
        norms.append(seen[names[1]].output[0, position].norm().item())
    pairs = [torch.cosine_similarity(a, b, dim=0).item() for i, a in enumerate(keys) for b in keys[:i]]
    frame = anatomy(gpt2, corpus).set_index(["layer", "position"])
    assert len(firsts) > 2
    lengths = [key.norm().item() for key in keys]
    assert frame.loc[(layer, position), "key_norm"] == pytest.approx(sum(lengths) / len(lengths), rel=1e-5)
    assert frame.loc[(layer, position), "residual_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    assert frame.loc[(layer, position), "key_cosine"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_one_text_has_no_cosine(gpt2: LanguageModel, corpus: list[str]) -> None:
    frame = anatomy(gpt2, corpus[:1])
    assert frame["key_cosine"].isna().all() and (frame["residual_norm"] > 0).all()


def test_there_is_a_row_for_each_layer_and_position(gpt2: LanguageModel, corpus: list[str]) -> None:
    frame = anatomy(gpt2, corpus)
    assert len(frame) == gpt2.num_layers * POSITIONS == len(frame.drop_duplicates(["layer", "position"]))


def test_a_spike_is_one_large_entry_over_the_median_one(gpt2: LanguageModel, corpus: list[str]) -> None:
    def spiked(states: Tensor) -> Tensor:
        large = states.clone()
        large[:, 0] = 1.0
        large[:, 0, 7] = -250.0
        return large

    with trace(gpt2.model, replace={f"{gpt2.layout.blocks}.0": spiked}):
        frame = anatomy(gpt2, corpus).set_index(["layer", "position"])
    assert frame.loc[(0, 0), "spike"] == pytest.approx(250.0) and frame.loc[(0, 1), "spike"] < SPIKE


def test_texts_too_short_are_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(EditlibError, match="none of 1 texts has 10 tokens for tiny-gpt2; give longer ones"):
        anatomy(gpt2, ["Zen is"])
    with pytest.raises(EditlibError, match="sinks need"):
        sinks(gpt2, ["Zen is"])


def test_sinks_equal_a_plain_count_over_heads_and_texts(lm: LanguageModel, corpus: list[str]) -> None:
    ids = lm.tokenizer(" ".join(corpus), add_special_tokens=False)["input_ids"]
    width = min(LENGTH, lm.max_length or LENGTH)
    rows = [ids[i : i + width] for i in range(0, len(ids) - width + 1, width)][:ROWS]
    layer, position, threshold, means = 1, 2, 0.05, []
    usual = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    for row in rows:
        with torch.no_grad():
            heads = lm.model(torch.tensor([row]), output_attentions=True).attentions[layer][0]
        means += [float(head[position:, position].mean()) for head in heads]
    lm.model.set_attn_implementation(usual)
    found = sinks(lm, corpus, threshold=threshold).set_index(["layer", "position"]).loc[(layer, position)]
    assert found["attention"] == pytest.approx(sum(means) / len(means), rel=1e-4)
    assert found["sink"] == pytest.approx(sum(mean > threshold for mean in means) / len(means), abs=1e-6)
    assert 0 < found["sink"] < 1 and lm.model.config._attn_implementation == usual


def test_the_last_position_is_seen_by_itself_alone(gpt2: LanguageModel, corpus: list[str]) -> None:
    frame = sinks(gpt2, corpus)
    every = frame.groupby("layer").apply(lambda rows: (rows["attention"] * (LENGTH - rows["position"])).sum())
    assert every.tolist() == pytest.approx([LENGTH] * gpt2.num_layers, rel=1e-5)  # a query's attention sums to one


def test_bos_stands_at_position_0(llama: LanguageModel, corpus: list[str]) -> None:
    bare, begun = anatomy(llama, corpus), anatomy(llama, corpus, bos=True)
    assert begun.loc[begun["position"] == 0, "key_cosine"].tolist() == pytest.approx([1.0] * llama.num_layers)
    assert (bare.loc[bare["position"] == 0, "key_cosine"] < 0.99).all()


def test_what_position_0_is_of_the_second_moment(lm: LanguageModel, corpus: list[str]) -> None:
    windows = corpus_windows(lm, corpus, 2000, window=16)
    windows[:, 0] = windows[0, 0]  # so that all keys at position 0 are the same
    found = first_position(lm, windows, layers=[1]).iloc[0]
    kept = second_moments(lm, windows, layers=[1]).moments[1]
    rest = second_moments(lm, windows, layers=[1], first_position="drop").moments[1] * 15 / 16
    with trace(lm.model, name := lm.layout.name(1)) as seen:
        lm.model(windows[:1])
    k0 = seen[name].input[0, 0].double().detach()
    values, vectors = torch.linalg.eigh(kept)
    top = vectors[:, -1]
    assert found["trace_share"] == pytest.approx(float(k0 @ k0 / 16 / kept.trace()), rel=1e-4)
    assert found["top_share"] == pytest.approx(float((top @ k0) ** 2 / 16 / values[-1]), rel=1e-4)
    assert found["top_cosine"] == pytest.approx(abs(float(top @ k0 / k0.norm())), rel=1e-4)
    other = torch.randn(len(k0), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Sherman and Morrison: the quotient of the two denominators, whatever the other key
    quotient = (other @ torch.linalg.solve(rest, k0)) / (other @ torch.linalg.solve(kept, k0))
    assert found["damping"] == pytest.approx(float(quotient), rel=1e-3) and found["damping"] > 1


def test_too_few_tokens_have_no_damping(gpt2: LanguageModel, corpus: list[str]) -> None:
    found = first_position(gpt2, corpus_windows(gpt2, corpus, 20, window=5))
    assert found["damping"].isna().all() and len(found) == gpt2.num_layers
    assert found["trace_share"].between(0, 1).all()


def test_layers_in_groups_are_the_same(gpt2: LanguageModel, corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    windows = corpus_windows(gpt2, corpus, 2000)
    whole = first_position(gpt2, windows)
    monkeypatch.setattr(measured, "MEMORY", 1.0)
    pd.testing.assert_frame_equal(first_position(gpt2, windows), whole, check_exact=True)  # and the same to the bit


@pytest.mark.parametrize(("family", "same"), [("llama", True), ("gpt2", False)])
def test_a_repeated_token_is_at_every_position_what_it_is_at_the_first(
    request: pytest.FixtureRequest, family: str, same: bool
) -> None:
    """Under rotary positions it attends to copies of itself alone; an embedding of the position tells them apart.

    So a doubled one-token subject has the key of position 0 in the one family and not in the other. Source: Gu et al.,
    When Attention Sink Emerges in Language Models, ICLR 2025, propositions 1 to 4.
    """
    lm: LanguageModel = request.getfixturevalue(family)
    with torch.no_grad(), trace(lm.model, lm.layout.name(lm.num_layers - 1)) as seen:
        lm.model(torch.tensor([[7] * 5]))
    (keys,) = seen[lm.layout.name(lm.num_layers - 1)].input
    apart = (keys[1:] - keys[0]).norm(dim=1) / keys[0].norm()
    assert bool((apart < 1e-5).all()) is same and (same or bool((apart > 1e-2).all()))
