"""What the book tells a reader to type, typed."""

import importlib
import re
import shlex

import pytest
from books import published
from places import ROOT

from editlib import cli
from editlib.editing.methods import METHODS, PRESETS

BOOK = ROOT / "book"
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(BOOK.glob("*.md"))}
EXAMPLES = {name: blocks for name, text in PAGES.items() if (blocks := re.findall(r"```python\n(.*?)```", text, re.S))}
COMMANDS = sorted(
    {
        " ".join(words[1:])
        for text in PAGES.values()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True)) and words[0].endswith("editlib")
    }
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "methods")) for n in EXAMPLES])
def test_examples_of_a_page_run_in_order_and_print_what_their_comments_say(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(published()[0].folder)  # some read a run's files
    source = "\n".join(EXAMPLES[name])
    exec(compile(source, f"{name}.md", "exec"), {})
    said = re.findall(r"print\(.*\)  # (.*)$", source, re.M)
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("command", COMMANDS)
def test_command_and_its_options_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    path = words[:2] if words[0] in ("data", "mend", "testbed") else words[:1]
    assert cli.run_app([*path, "--help"]) == 0
    usage = capsys.readouterr().out
    assert [word for word in words if word.startswith("-") and word not in usage] == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_of_the_page_are_those_in_use(name: str) -> None:
    preset = PRESETS[name]["any"]
    layers = ", ".join(map(str, preset["memit"]["layers"]))
    cells = [f"`{name}`", preset["rome"]["layer"], layers, preset["ft"]["layer"], preset["ft-l"]["layer"]]
    assert f"| {' | '.join(map(str, cells))} |" in PAGES["methods"]


def test_every_method_in_the_table_has_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BOOK / "_ext")
    editors = importlib.import_module("editors")
    known = re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text("utf-8"), re.M)
    assert set(editors.CITED) == set(METHODS) - {"fc-rome"} and set(editors.CITED.values()) <= set(known)  # ours
    rows = {method.name: editors.row(method) for method in METHODS.values()}
    assert rows["wise"][3:] == rows["grace"][3:] == ("several", "remembers", "nothing")
    assert rows["rome"][3:] == ("one", "each on the last", "weights")
