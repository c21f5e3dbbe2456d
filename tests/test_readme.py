"""What the README tells a reader to type, typed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PROGRAM = str(Path(sys.executable).with_name("editlib"))
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
COMMANDS = [
    words
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if (words := shlex.split(line, comments=True))
]
MAKE = [words[1] for words in COMMANDS if words[0] == "make"]
EDITLIB = [words[1:] for words in COMMANDS if words[0] == ".venv/bin/editlib"]
SNIPPETS = [block for language, block in BLOCKS if language == "python"]


def quick(words: list[str]) -> bool:
    """Whether a command takes seconds; `run` takes minutes and is tested on a small analysis elsewhere."""
    return words[0] != "run"


def execute(arguments: list[str]) -> str:
    wide = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=wide)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_command_is_of_a_known_kind() -> None:
    assert len(MAKE) + len(EDITLIB) == len(COMMANDS)
    assert len(MAKE) == 2 and len(EDITLIB) == 6 and SNIPPETS


@pytest.mark.parametrize("target", MAKE)
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("words", [words for words in EDITLIB if quick(words)], ids=shlex.join)
def test_quick_command_runs(words: list[str]) -> None:
    assert execute([PROGRAM, *words]).strip()


@pytest.mark.parametrize("words", [words for words in EDITLIB if not quick(words)], ids=shlex.join)
def test_slow_command_has_options_that_exist(words: list[str]) -> None:
    usage = execute([PROGRAM, words[0], "--help"])
    assert all(word in usage for word in words if word.startswith("-"))


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_python_snippet_runs(snippet: str) -> None:
    assert re.search(r"perplexity [\d.]+ -> ", execute([sys.executable, "-c", snippet]))


def test_example_edits_a_city_of_the_testbed() -> None:
    from editlib.testbed.world import build_world

    names = build_world().names
    for words in (words for words in EDITLIB if words[0] == "edit"):
        assert words[words.index("--subject") + 1] in names["city"]
        assert words[words.index("--target") + 1] in names["country"]


def test_pictures_and_links_exist() -> None:
    targets = re.findall(r"\]\(([^):]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
