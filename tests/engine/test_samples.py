"""Text that a model writes itself, token by token as its probabilities have it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from editlib.engine import samples
from editlib.engine.passes import Passes
from editlib.engine.prefixes import continued
from editlib.engine.samples import own_windows
from editlib.errors import EditlibError
from editlib.models.language_model import LanguageModel
from editlib.models.tokens import text_start


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(samples, "ROWS", 4)
    return tmp_path / "cache" / "samples"


def test_windows_begin_a_text_and_more_of_them_begin_with_fewer(lm: LanguageModel, fresh_cache: Path) -> None:
    few, many = own_windows(lm, 50, window=10), own_windows(lm, 99, window=10)
    assert few.shape == (5, 10) and many.shape == (9, 10)  # 99 tokens have nine whole windows
    assert torch.equal(many[:5], few)
    assert set(few[:, 0].tolist()) == {text_start(lm.tokenizer)}
    assert len({tuple(row) for row in many.tolist()}) == 9
    assert len(list(fresh_cache.iterdir())) == 3


def test_every_token_is_drawn_from_the_whole_distribution(lm: LanguageModel) -> None:
    """The same numbers drawn by whole passes, one text longer every time."""
    start, generator = text_start(lm.tokenizer), torch.Generator().manual_seed(3)
    written = continued(Passes.of(lm), [[start]] * 6, 8, None, torch.Generator().manual_seed(3))
    rows = torch.full((6, 1), start)
    with torch.no_grad():
        while rows.shape[1] < 8:
            chances = lm.model(rows).logits[:, -1].softmax(-1)
            rows = torch.cat([rows, torch.multinomial(chances, 1, generator=generator)], 1)
    assert written == rows.tolist()


def test_they_are_sampled_once_and_say_how(gpt2: LanguageModel, fresh_cache: Path) -> None:
    first = own_windows(gpt2, 40, window=10)
    (file,) = fresh_cache.iterdir()
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"model": gpt2.fingerprint, "rule": "1", "seed": "0"}
    made = file.stat().st_mtime_ns
    assert torch.equal(own_windows(gpt2, 40, window=10), first) and file.stat().st_mtime_ns == made


def test_windows_are_as_short_as_the_context(gpt2: LanguageModel) -> None:
    assert own_windows(gpt2, 1000, window=500).shape == (7, 128)
    assert own_windows(gpt2, 3, window=10).shape == (1, 10)


def test_what_a_models_folder_has_is_read_before_any_is_sampled(gpt2: LanguageModel, tmp_path: Path) -> None:
    lm = LanguageModel(gpt2.model, gpt2.tokenizer, folder=tmp_path)
    shipped = torch.arange(60).view(6, 10)
    save_file({"windows": shipped.to(torch.uint16)}, tmp_path / samples.SHIPPED)
    assert torch.equal(own_windows(lm, 50, window=10), shipped[:5])
    assert len(own_windows(lm, 70, window=10)) == 7  # more than there are, and so sampled
    assert own_windows(lm, 40, window=8).shape == (5, 8)


def test_an_edited_model_writes_none(own: LanguageModel) -> None:
    assert own.fingerprint
    own.weight(0)[0, 0] += 1
    with pytest.raises(EditlibError, match="is edited; ask for text of its own before the edit$"):
        own_windows(own, 40, window=10)
