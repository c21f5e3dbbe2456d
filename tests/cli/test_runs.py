"""Commands about runs there are: list, show, verify, cite, compare, publish."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
import yaml
from folders import DIGEST, HOSTILE, INPUTS, make_project, make_run, record

from editlib.cli import run_app
from editlib.runs import citation, manifest
from editlib.runs.manifest import Manifest

Mistake = Callable[..., str]
ABOUT_ONE = ("show", "verify", "cite", "publish")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_project(tmp_path)


@pytest.fixture
def run(project: Path) -> Manifest:
    return make_run(project, authors=["Ada Lovelace"])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must do without a word on stderr, and return what it prints."""

    def done(*arguments: str) -> str:
        capsys.readouterr()
        status = run_app(arguments)
        printed = capsys.readouterr()
        assert (status, printed.err) == (0, "")
        return printed.out

    return done


# -- runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def four(project: Path) -> dict[str, str]:
    """Ids of four runs by what is special about them."""
    parameters = record()["parameters"]
    plain = make_run(project, started="2026-03-04T00:00:01Z", seconds=3.0)
    model = make_run(project, started="2026-03-04T00:00:02Z", seconds=9.0, spec="a" * 12,
                     parameters=parameters | {"model": "testbed/control", "n": 20})  # fmt: skip
    other = make_run(project, started="2026-03-04T00:00:03Z", seconds=1.0, analysis="other", profile="full")
    done = make_run(project, started="2026-03-04T00:00:04Z", seconds=7.0)
    done.folder.rename(done.folder.with_name(done.run))
    return {"plain": plain.run, "model": model.run, "other": other.run, "published": done.run}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "plain model other published"),
        ("toy", "plain model published"),
        ("other", "other"),
        ("--model testbed/control", "model"),
        ("--profile full", "other"),
        ("--profile none", ""),
        ("--published", "published"),
        ("--local", "plain model other"),
        ("--spec aaaaaaaaaaaa", "model"),
        ("--spec 01234", "plain other published"),
        ("toy --local --profile quick --spec 0", "plain"),
        ("--sort seconds", "other plain published model"),
        ("--sort -seconds", "model published plain other"),
        ("--sort=-started", "published other model plain"),
        ("toy --sort -n", "model plain published"),
        ("--sort model --spec a", "model"),
    ],
)
def test_runs_are_filtered_and_sorted(
    command: Callable[..., str], four: dict[str, str], options: str, expected: str
) -> None:
    names = {run: name for name, run in four.items()}
    rows = json.loads(command("runs", *options.split(), "--json"))
    assert " ".join(names[row["run"]] for row in rows) == expected
    text = command("runs", *options.split())
    assert [names[word] for word in text.split() if word in names] == expected.split()
    assert expected or text == "no such runs; `editlib runs` lists all\n"


def test_without_runs_that_is_said(project: Path, command: Callable[..., str]) -> None:
    assert command("runs") == "no runs yet; execute one with: editlib run --all --profile quick\n"
    assert json.loads(command("runs", "--json")) == json.loads(command("runs", "--spec", "ab", "--json")) == []


def test_an_unknown_column_or_analysis_is_named(run: Manifest, mistake: Mistake) -> None:
    assert "column 'wrong' is unknown; use one of analysis, profile" in mistake("runs", "--sort", "-wrong")
    assert "column '' is unknown" in mistake("runs", "--sort", "")
    assert "analysis 'toi' is unknown; did you mean toy? use one of toy" in mistake("runs", "toi")


# -- show ----------------------------------------------------------------------------------------------


def test_show_says_what_the_manifest_says(run: Manifest, command: Callable[..., str]) -> None:
    text = command("show", run.run)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:3] == ["A toy", f"run {run.run}", "spec 0123456789ab"]
    for line in ("state local", "n 3", "model –", "code abababababab", "models testbed/anchored abababababab",
                 "python 3.11.9", "commit cccccccccccc", "cores 2", "worst inf",
                 f"folder book/runs/toy/local-{run.run}",
                 "executed 2026-03-04T05:06:07Z to 2026-03-04T05:07:08Z, 61 s"):  # fmt: skip
        assert line in lines
    assert all(f"  {name}" in text for name in run.outputs)
    assert command("show", f"local-{run.run[:5]}") == text  # the beginning of an id will do


def test_show_as_json_is_the_manifest(run: Manifest, command: Callable[..., str]) -> None:
    told = command("show", run.run, "--json")
    assert told == (run.folder / "manifest.json").read_text("utf-8")
    jsonschema.validate(json.loads(told), manifest.json_schema())


@pytest.mark.parametrize("text", HOSTILE)
def test_show_and_runs_print_no_control_characters(project: Path, command: Callable[..., str], text: str) -> None:
    run = make_run(project, parameters={"label": text, "model": text})
    for printed in (command("show", run.run), command("runs"), command("compare", run.run, run.run)):
        lines = printed.splitlines()
        assert all(line.isprintable() for line in lines) and max(map(len, lines)) < 200
    assert json.loads(command("show", run.run, "--json"))["parameters"] == {"label": text, "model": text}


# -- verify --------------------------------------------------------------------------------------------


def test_verify_says_how_many_it_checked(project: Path, command: Callable[..., str]) -> None:
    assert command("verify", "--all").startswith("no runs yet")
    first = make_run(project)
    assert command("verify", "--all") == "1 run checked: every file is as the ids say\n"
    make_run(project, seconds=1.0)
    assert command("verify", "--all") == "2 runs checked: every file is as the ids say\n"
    assert command("verify", first.run[:6]) == "1 run checked: every file is as the ids say\n"


def test_verify_names_the_first_difference_of_each_changed_run(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, changed, damaged, gone = (make_run(project, seconds=float(n)) for n in range(4))
    (changed.folder / "index.ipynb").write_text("changed")
    (changed.folder / "data" / "cases.parquet").write_text("changed")
    (damaged.folder / "manifest.json").write_text("{")
    (gone.folder / "manifest.json").unlink()
    assert run_app(["verify", "--all"]) == 1
    printed = capsys.readouterr()
    place = "book/runs/toy/local-"
    lines = dict(line.removeprefix(place).split(": ", 1) for line in printed.out.splitlines())
    assert lines.keys() == {changed.run, damaged.run, gone.run}
    assert lines[changed.run] == "data/cases.parquet is not as the run's id says"
    assert re.fullmatch(r"manifest.json is damaged: .* has no readable manifest \(.*", lines[damaged.run])
    assert re.fullmatch(r"manifest.json is damaged: .*No such file.*", lines[gone.run])
    assert printed.err == "editlib: 3 of 4 runs changed; restore the files, or execute it again\n"
    assert run_app(["verify", good.run]) == 0
    for run in (changed, damaged, gone):
        assert run_app(["verify", run.run]) == 1
        assert "editlib: 1 of 1 run changed" in capsys.readouterr().err


def test_verify_takes_one_run_or_all(run: Manifest, mistake: Mistake) -> None:
    for arguments in ([], [run.run, "--all"]):
        assert "name one run to check, or give --all" in mistake("verify", *arguments)


# -- cite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", citation.FORMATS)
def test_cite_prints_a_published_run(run: Manifest, command: Callable[..., str], form: str) -> None:
    command("publish", run.run)
    assert command("cite", run.run, "--format", form).rstrip() == citation.FORMATS[form](run).rstrip()


def test_cite_prints_bibtex_unless_asked_otherwise(run: Manifest, command: Callable[..., str]) -> None:
    command("publish", run.run)
    assert command("cite", run.run) == citation.bibtex(run)


@pytest.mark.parametrize("form", citation.FORMATS)
def test_cite_tells_where_the_run_is_once_that_is_known(run: Manifest, command: Callable[..., str], form: str) -> None:
    """`citation.bib` stays what the run's id vouches for."""
    folder, kept = Path(command("publish", run.run).strip()), (run.folder.parent / run.run / "citation.bib")
    project, before = run.folder.parents[3], kept.read_text("utf-8")
    known = "url: https://example.org/book/\nidentifiers:\n  - {type: swh, value: 'swh:1:rev:%s'}\n" % ("a" * 40)
    with (project / "CITATION.cff").open("a", encoding="utf-8") as file:
        file.write(f"doi: 10.5281/zenodo.1\n{known}")
    said = command("cite", run.run, "--format", form)
    assert f"https://example.org/book/runs/toy/{folder.name}/index.html" in said and run.digest in said
    assert "10.5281/zenodo.1" in said and f"swh:1:rev:{'a' * 40}" in said
    today = datetime.now(UTC).date().isoformat()
    assert (form == "cff") or f"{'accessed' if form == 'bibtex' else 'Retrieved'} {today}" in said
    if form == "cff":
        (whole,) = yaml.safe_load(said)["references"]
        assert whole["authors"] and {entry["type"] for entry in whole["identifiers"]} == {"doi", "swh"}
    assert kept.read_text("utf-8") == before and run_app(["verify", run.run]) == 0


def test_a_local_run_is_cited_with_a_notice(run: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(["cite", run.run, "--format", "cff"]) == 0
    printed = capsys.readouterr()
    assert printed.err == f"editlib: run {run.run} is local: only this machine has it until it is published\n"
    assert yaml.safe_load(printed.out)["version"] == run.run


def test_a_changed_run_or_unknown_format_is_not_cited(run: Manifest, mistake: Mistake) -> None:
    assert "format 'ris' is unknown; use one of bibtex, apa, cff" in mistake("cite", run.run, "--format", "ris")
    (run.folder / "data" / "cases.parquet").write_text("changed")
    assert "cannot be cited: data/cases.parquet was changed" in mistake("cite", run.run)


# -- compare -------------------------------------------------------------------------------------------


def test_compare_shows_two_runs_side_by_side(project: Path, command: Callable[..., str]) -> None:
    a = make_run(project, metrics={"auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "same": 1, "worst": "inf"})
    b = make_run(project, metrics={"auc": 0.75, "same": 1, "worst": 3.0}, spec="a" * 12, parameters={"n": 9},
                 hardware=record()["hardware"] | {"cores": 64})  # fmt: skip
    lines = [" ".join(line.split()) for line in command("compare", a.run, b.run).splitlines()]
    assert lines[0] == "Two specs, 0123456789ab and aaaaaaaaaaaa."
    for line in ("n 3 9", "label a –", "cores 2 64", "auc 0.500 [0.400, 0.600] 0.750 0.250 1.50", "same 1 1 0 1.00",
                 "worst inf 3.00 – –", "figures/ratios.png"):  # fmt: skip
        assert line in lines
    assert "auc_low" not in " ".join(lines) and "python" not in " ".join(lines)
    told = json.loads(command("compare", a.run, b.run, "--json"))
    assert (told["a"], told["b"], told["same_spec"], told["figures"]) == (a.run, b.run, False, ["figures/ratios.png"])
    assert told["numbers"][0]["a_interval"] == [0.4, 0.6] and told["numbers"][0]["ratio"] == 1.5


def test_compare_says_first_whether_the_same_was_asked(project: Path, command: Callable[..., str]) -> None:
    a, b, c = make_run(project), make_run(project, seconds=1.0), make_run(project, analysis="other")
    assert command("compare", a.run, b.run).startswith("One spec, 0123456789ab: the same was asked.\n")
    assert "Two analyses, toy and other." in command("compare", a.run, c.run).splitlines()[0]
    assert command("compare", a.run, b.run).count("no difference") == 4


# -- run ids -------------------------------------------------------------------------------------------

NO_IDS = (*HOSTILE, "", ".", "..", "*", "[0-9a-f]*", "local-", "toy", "0" * 12, "a" * 10_000)


@pytest.mark.parametrize("text", NO_IDS)
@pytest.mark.parametrize("name", ABOUT_ONE)
def test_what_is_no_run_is_refused_in_one_short_line(run: Manifest, mistake: Mistake, name: str, text: str) -> None:
    said = mistake(name, "--", text)
    assert "is unknown; list the runs with `editlib runs`" in said
    assert len(said) < 150 and said.rstrip("\n").isprintable()


@pytest.mark.parametrize("text", NO_IDS)
def test_compare_refuses_what_is_no_run(run: Manifest, mistake: Mistake, text: str) -> None:
    for pair in ((run.run, text), (text, run.run)):
        said = mistake("compare", "--", *pair)
        assert "is unknown; list the runs" in said and len(said) < 150


def test_the_beginning_of_several_ids_is_refused(project: Path, mistake: Mistake) -> None:
    seconds = iter(range(100))
    runs: list[str] = []
    while len({run[0] for run in runs}) == len(runs):  # until two begin with the same digit
        runs.append(make_run(project, seconds=float(next(seconds))).run)
    first = runs[-1][0]
    both = sorted(run for run in runs if run[0] == first)
    for name in ABOUT_ONE:
        assert f"run {first!r} may be any of {both[0]}, {both[1]}; list" in mistake(name, first)


def test_a_damaged_run_does_not_hide_others(project: Path, mistake: Mistake, command: Callable[..., str]) -> None:
    damaged, good = make_run(project), make_run(project, seconds=1.0)
    (damaged.folder / "manifest.json").write_text("{")
    assert "A toy" in command("show", good.run)
    assert "has no readable manifest" in mistake("show", damaged.run)


def test_of_a_run_here_twice_the_published_one_counts(run: Manifest, command: Callable[..., str]) -> None:
    published = run.folder.with_name(run.run)
    run.folder.rename(published)
    again = make_run(published.parents[3], authors=["Ada Lovelace"])
    assert again.run == run.run and again.folder != published
    assert f"book/runs/toy/{run.run}\n" in command("show", run.run)
    assert command("publish", run.run) == f"book/runs/toy/{run.run}\n"


def test_a_parameter_that_is_no_text_is_refused(project: Path, mistake: Mistake) -> None:
    assert "-p n has no value" in mistake("run", "toy", "-p", "n", "-p", "seed", "1")


def test_digests_are_short_only_on_the_screen(run: Manifest, command: Callable[..., str]) -> None:
    assert DIGEST not in command("show", run.run) and DIGEST in command("show", run.run, "--json")


# -- run -----------------------------------------------------------------------------------------------


def test_run_all_goes_on_after_a_failure_and_names_it_at_the_end(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = (project / "notebooks" / "toy.py").read_text("utf-8").replace("if n == 7:", "if n == 3:")
    (project / "notebooks" / "broken.py").write_text(broken, "utf-8")
    status = run_app(["run", "--all", "--jobs", "2", "--json"])
    printed = capsys.readouterr()
    assert status == 1 and [run["analysis"] for run in json.loads(printed.out)] == ["toy"]
    lines = printed.err.splitlines()
    assert any(line.startswith("[2/2] ") for line in lines)
    assert re.match(r"editlib: analysis broken failed \(ZeroDivisionError: .*see _build/failed/broken", lines[-2])
    assert lines[-1] == "editlib: 1 of 2 analyses failed, which are named above"


def test_publish_tells_whose_a_run_is(project: Path, command: Callable[..., str], mistake: Mistake) -> None:
    mine = {"parameters": {"n": 3, "model": "hf"}, "inputs": INPUTS | {"models": {"hf": DIGEST}}}
    done = make_run(project, **mine)
    assert "tells no address; write --source MODEL=ADDRESS" in mistake("publish", done.run, "--source", "hf")
    assert "give --author NAME" in mistake("publish", done.run)
    assert "nobody knows what model 'hf' is" in mistake("publish", done.run, "--author", "Ada Lovelace")
    folder = command("publish", done.run, "--author", "Ada Lovelace", "--source", "hf=org/name@" + "a" * 40).strip()
    assert "Ada Lovelace. (2026). A toy (org/name@" in command("cite", Path(folder).name, "--format", "apa")
