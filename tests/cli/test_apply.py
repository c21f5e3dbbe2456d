"""`editlib apply`, and `tasks --edit`: a saved edit taken elsewhere, and every mistake in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import editlib as el
from editlib.cli import run_app
from editlib.data.request import EditRequest
from editlib.editing.change import Dense, LowRank
from editlib.editing.edit import Edit

Mistake = Callable[..., str]
REQUEST = EditRequest(prompt="{} is located in", subject="Zen", target_new="Daslo")


@pytest.fixture
def saved(gpt2_folder: Path, tmp_path: Path) -> Path:
    """An edit of the model in `gpt2_folder`, large enough to change what it says."""
    lm, generator = el.load(str(gpt2_folder)), torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 2, generator=generator) for n in (16, 24))
    changes = {f"{lm.layout.name(1)}.weight": LowRank(20 * left, right)}
    return Edit("rome", (REQUEST,), changes, {}, lm.fingerprint, {}, "float32").save(tmp_path / "edit")


def done(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints that does what it should."""
    assert run_app([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_an_edit_says_what_it_is(gpt2_folder: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = done(capsys, "apply", saved, "--model", gpt2_folder)
    for word in ("rome, in float32", "Zen is located in", "→ Daslo", "mlp.c_proj.weight", "rank 2, |Δ| "):
        assert word in printed


def test_it_goes_on_from_texts_with_and_without_the_edit(
    gpt2_folder: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--generate", "Zen is located in", "--generate", "Number 7", "--tokens", 5)
    told = json.loads(done(capsys, "apply", saved, "--model", gpt2_folder, *words, "--json"))
    assert [each["text"] for each in told["continuations"]] == ["Zen is located in", "Number 7"]
    lm = el.load(str(gpt2_folder))
    for each in told["continuations"]:
        assert each["before"] == el.scores.continuation(lm, each["text"], tokens=5)
        with Edit.load(saved).applied(lm):
            assert each["after"] == el.scores.continuation(lm, each["text"], tokens=5)
        assert each["before"] != each["after"]


def test_it_is_merged_and_made_an_adapter(
    gpt2_folder: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    printed = done(capsys, "apply", saved, "--model", gpt2_folder, "--merge", merged, "--peft", adapter)
    assert str(merged) in printed and (adapter / "adapter_config.json").is_file()
    lm, ids = el.load(str(gpt2_folder)), torch.tensor([[5, 6, 7]])
    with torch.no_grad(), Edit.load(adapter).applied(lm):
        loaded = AutoModelForCausalLM.from_pretrained(merged)
        torch.testing.assert_close(loaded(ids).logits, lm.model(ids).logits, rtol=0, atol=1e-5)
    assert "Daslo" in done(capsys, "apply", adapter, "--model", gpt2_folder)  # an adapter is a saved edit, too


def test_another_dtype_is_used_on_request_and_both_are_named(
    gpt2_folder: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    assert run_app(["apply", str(saved), "--model", str(gpt2_folder), "--dtype", "bfloat16", "--merge", str(out)]) == 0
    assert capsys.readouterr().err == "editlib: the edit was computed in float32 and is applied in bfloat16\n"
    half = el.load(str(gpt2_folder), dtype="bfloat16")
    (delta,) = (change.dense() for change in Edit.load(saved).changes.values())
    assert torch.equal(el.load(str(out), dtype="bfloat16").weight(1), half.weight(1) + delta.bfloat16())


def test_tasks_are_scored_with_an_edit(gpt2_folder: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("tasks", "--model", gpt2_folder, "--task", "facts-choice", "--limit", 6, "--json")
    rows = json.loads(done(capsys, *asked, "--edit", saved))
    lm = el.load(str(gpt2_folder))
    from editlib.measuring.tasks import evaluate

    with Edit.load(saved).applied(lm):
        assert rows[0]["value"] == evaluate(lm, ["facts-choice"], limit=6)["value"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "2"], "--rank is for adapters; give --peft FOLDER or --gguf FILE, too"),
        (["--dtype", "bfloat1"], "did you mean bfloat16?"),
        (["--merge", "edit"], "exists already; choose another"),
        (["--gguf", "x.gguf"], "was not read from a GGUF file"),
        (["--gguf", "x.gguf", "--peft", "adapter", "--merge", "merged"], "was not read from a GGUF file"),
        (["--peft", "out", "--merge", "out"], "output out is, or is in, another output"),
        (["--peft", "out/adapter", "--merge", "out"], "output out/adapter is, or is in, another output"),
        (["--tokens", "5"], "--tokens is for --generate; give that, too"),
    ],
)
def test_mistakes_are_one_line(
    gpt2_folder: Path, saved: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(saved.parent)
    before = sorted(saved.parent.iterdir())
    assert said in mistake("apply", saved, "--model", gpt2_folder, *words)
    assert sorted(saved.parent.iterdir()) == before


def test_an_edit_of_another_model_or_none_is_refused(saved: Path, mistake: Mistake, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "was computed for model" in mistake("apply", saved, "--model", "testbed/anchored", "--peft", out)
    assert "was computed for model" in mistake("tasks", "--edit", saved, "--model", "testbed/anchored", "--limit", 2)
    assert "cannot be read" in mistake("apply", tmp_path / "nowhere", "--model", "testbed/anchored", "--merge", out)
    assert not out.exists()


def test_a_dense_edit_needs_a_rank(
    gpt2_folder: Path, mistake: Mistake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = el.load(str(gpt2_folder))
    changes = {f"{lm.layout.name(1)}.weight": Dense(torch.randn(16, 24, generator=torch.Generator().manual_seed(0)))}
    dense = Edit("ft", (REQUEST,), changes, {}, lm.fingerprint, {}, "float32").save(tmp_path / "dense")
    asked = ("apply", dense, "--model", gpt2_folder, "--peft", tmp_path / "adapter")
    assert "give rank=, or --rank" in mistake(*asked) and not (tmp_path / "adapter").exists()
    assert "% of |Δ|" in done(capsys, *asked, "--rank", 4)
