"""What the README tells a reader to type, typed: in one process, as torch is imported once."""

import re
import shlex

import pytest
from places import ROOT

from editlib.cli import run_app

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    words
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]
MAKE = [words[1] for words in COMMANDS if words[0] == "make"]
EDITLIB = [words[1:] for words in COMMANDS if words[0] == ".venv/bin/editlib"]
GUIDE = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "book" / "rerun.md").read_text("utf-8"), flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("editlib ")
]
SNIPPETS = [block for language, block in BLOCKS if language == "python"]
REAL, EDIT = (words for words in EDITLIB if words[0] == "edit")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")


def test_every_command_is_of_a_known_kind() -> None:
    assert len(MAKE) + len(EDITLIB) == len(COMMANDS)
    assert len(MAKE) == 2 and len(EDITLIB) == 7 and SNIPPETS


@pytest.mark.parametrize("words", GUIDE, ids=shlex.join)
def test_options_of_the_guide_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = words[:2] if words[0] == "data" else words[:1]
    assert run_app([*command, "--help"]) == 0
    known = capsys.readouterr().out
    assert [word for word in words if word.startswith("-") and not re.search(rf"(?<!\S){word}\b", known)] == []


@pytest.mark.parametrize("target", [*MAKE, "book-all", "site"])
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("words", [words for words in EDITLIB if words[0] not in ("edit", "run")], ids=shlex.join)
def test_command_runs(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(words) == 0
    assert capsys.readouterr().out.strip()


def test_the_analysis_to_run_has_the_parameter_that_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes minutes; executing one is tested on a small analysis elsewhere."""
    _, analysis, *options = next(words for words in EDITLIB if words[0] == "run")
    assert run_app(["run", analysis, "--list"]) == 0
    assert re.search(rf"(?m)^{options[options.index('-p') + 1]} +int", capsys.readouterr().out)
    assert options[:2] == ["--profile", "quick"]


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ([], r"collapsed \(perplexity ×20\.6\)"),
        (["--method", "c-rome"], r"intact \(perplexity ×1\.00\), but the edit does not hold"),
        (["--method", "c-rome", "--no-covariance"], r"intact \(perplexity ×1\.0\d\)"),
    ],
)
def test_the_edit_ends_as_the_text_says(more: list[str], verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert more == [] or f"`{shlex.join(more)}`" in README
    assert run_app([*EDIT, *more]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"(?m)^verdict +{verdict}$", printed)
    assert re.search(rf"(?m)^edit holds +no +{'no' if 'not hold' in verdict else 'yes'}$", printed)


@pytest.mark.slow
def test_an_edit_of_a_real_model_tells_whether_it_holds_and_what_it_broke(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(REAL) == 0
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^verdict +\w+ \(perplexity ×[\d.,]+\)", printed)
    assert re.search(r"(?m)^edit holds +no +(yes|no)$", printed)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_snippet_prints_what_its_comments_say(snippet: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippet, "README.md", "exec"), {})
    said = re.findall(r"print\(.*\)  # (.*)$", snippet, re.M)
    assert said and capsys.readouterr().out.splitlines() == said


def test_example_edits_a_city_of_the_testbed() -> None:
    from editlib.testbed.world import build_world

    names = build_world().names
    assert EDIT[EDIT.index("--subject") + 1] in names["city"]
    assert EDIT[EDIT.index("--target") + 1] in names["country"]


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^):]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
