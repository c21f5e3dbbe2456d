"""Norms and key cosines by position, against one text at a time."""

import pytest
import torch

from editlib.models.language_model import LanguageModel
from editlib.models.trace import trace
from editlib.testbed.anatomy import POSITIONS, anatomy


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
