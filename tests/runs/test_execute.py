"""An analysis is executed into a run folder, of which the manifest tells the whole."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pandas as pd
import pytest
from folders import HOSTILE, NOTEBOOK, make_project
from places import ROOT

from editlib import machine
from editlib.errors import EditlibError
from editlib.files import TESTBED
from editlib.runs.execute import execute, execute_all
from editlib.runs.folders import find_runs
from editlib.runs.manifest import Manifest, read_manifest
from editlib.runs.notebook import RunFailed
from editlib.runs.publishing import publish
from editlib.runs.recording import take
from editlib.runs.resuming import resumed

needs_testbed = pytest.mark.skipif(
    not (TESTBED / "anchored" / "card.json").is_file(), reason="the twins are not trained yet"
)
WRITES_ITS_MODEL = """
import pandas as pd

pd.DataFrame({"model": [model, f"{model}/x", None]}).to_parquet("data/cases.parquet")
Path("metrics.json").write_text(json.dumps({"model": model}))
"""


def test_a_run_is_a_folder_named_after_its_id(project: Path, done: Manifest) -> None:
    assert done.folder == project / "book" / "runs" / "toy" / f"local-{done.run}"
    assert re.fullmatch("[0-9a-f]{12}", done.run) and re.fullmatch("[0-9a-f]{12}", done.spec)
    assert [path.name for path in done.folder.parent.iterdir()] == [done.folder.name]  # no staging folder is left
    assert sorted(done.outputs) == ["data/numbers.txt", "index.ipynb", "ro-crate-metadata.json"]


def test_the_manifest_says_what_was_asked_and_what_came_out(done: Manifest) -> None:
    record = json.loads((done.folder / "manifest.json").read_text())
    assert {**record, "folder": done.folder} == asdict(done)
    assert (done.schema, done.analysis, done.title, done.profile) == (3, "toy", "A toy", "quick")
    assert done.parameters == {"n": 3, "seed": 0, "rate": 0.5, "strict": False, "label": "a", "model": None}
    assert done.metrics == {"n": 3, "worst": "inf", "rest": "nan", "transport": "ipc"}
    assert done.inputs.models == done.inputs.files == {} and len(done.inputs.code) == 64
    assert done.environment.packages["papermill"] and done.environment.python
    assert done.hardware.cores >= 1 and done.hardware.memory_gib > 0
    assert done.project.authors == ["The authors", "Ada Lovelace"]
    assert len(done.cells) == 3  # seconds of: defaults, this run's parameters, the work
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", done.started) and done.started <= done.finished


def test_the_run_id_vouches_for_manifest_and_outputs(empty: Path) -> None:
    done = execute("toy", root=empty)
    assert done.difference() is None
    (done.folder / "data" / "numbers.txt").write_text("changed")
    assert done.difference() == "data/numbers.txt"
    (done.folder / "data" / "added.txt").touch()
    assert done.difference() == "data/added.txt"
    manifest = done.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"A toy"', '"Another"'))
    assert read_manifest(done.folder).difference() == "manifest.json"


def test_the_notebook_shows_this_runs_values_and_no_path_of_this_machine(project: Path, done: Manifest) -> None:
    text = (done.folder / "index.ipynb").read_text()
    for place in (str(project), str(Path.home()) + "/", sys.prefix, sys.base_prefix, "_build/staging"):
        assert place not in text
    notebook = json.loads(text)
    assert notebook["metadata"]["papermill"].keys() <= {
        "parameters", "start_time", "end_time", "duration", "exception"
    }  # fmt: skip
    assert notebook["cells"][0]["source"] == ["# Toy · quick"]
    defaults, injected = notebook["cells"][1:3]
    assert defaults["metadata"]["tags"] == ["parameters", "remove-cell"]
    assert injected["metadata"]["tags"] == ["injected-parameters"] and "n = 3\n" in injected["source"]
    assert notebook["cells"][3]["outputs"][0]["text"] == [". ~ <python> ./figures\n"]


def test_a_second_execution_returns_the_run_there_is(project: Path, done: Manifest) -> None:
    assert execute("toy", root=project) == done
    assert execute("toy", root=project, profile="full", parameters={"n": "3"}) == done  # profiles are values only


def test_of_a_model_outside_the_project_only_the_folders_name_is_told(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = type("module", (), {"fingerprint": staticmethod(lambda name: "a" * 64)})
    monkeypatch.setitem(sys.modules, "editlib.models.names", fake)
    (mine := tmp_path / "somebody" / "mine").mkdir(parents=True)
    (mine / "card.json").write_text("{}")
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write(
            f'{WRITES_ITS_MODEL}\nassert model == "mine" and Path(model, "card.json").is_file()  # in a picture, say\n'
        )
    done = execute("toy", root=empty, parameters={"model": str(mine)})
    assert done.parameters["model"] == done.metrics["model"] == "mine" and done.inputs.models == {"mine": "a" * 64}
    assert pd.read_parquet(done.folder / "data/cases.parquet")["model"].dropna().tolist() == ["mine", "mine/x"]
    assert not any(b"somebody" in path.read_bytes() for path in done.folder.rglob("*") if path.is_file())


def test_a_mistake_the_notebook_finds_comes_out_as_such(project: Path, done: Manifest) -> None:
    with pytest.raises(EditlibError, match=r"^n=0 is out of range; choose 1 to 9$"):
        execute("toy", root=project, parameters={"n": 0})
    assert [path.name for path in done.folder.parent.iterdir()] == [done.folder.name]


def test_a_failed_notebook_is_kept_aside_and_leaves_no_run(empty: Path) -> None:
    with pytest.raises(RunFailed, match=r"ZeroDivisionError: division by zero\); see _build/failed/toy.ipynb$"):
        execute("toy", root=empty, parameters={"n": 7})
    assert "ZeroDivisionError" in (empty / "_build" / "failed" / "toy.ipynb").read_text()
    assert not (empty / "book" / "runs").exists()
    assert [path.name for path in (empty / "_build" / "staging").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("printed", "reason"), [("a", "timed out"), ("\\ud800", "half a surrogate pair")], ids=["text", "no text"]
)
def test_a_cell_that_takes_too_long_is_stopped(empty: Path, printed: str, reason: str) -> None:
    """A kernel that cannot send what a cell printed may take long for that."""
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write(f"\nimport time\n\nprint('{printed}')\ntime.sleep(60)\n")
    with pytest.raises(RunFailed, match=f"{reason}.*see _build/failed/toy.ipynb"):
        execute("toy", root=empty, timeout=2)


def test_an_output_folder_that_cannot_be_written_is_named(empty: Path) -> None:
    (empty / "book" / "runs").touch()  # a file where the folder should be: root may not be stopped by permissions
    with pytest.raises(EditlibError, match=r"output folder .*book/runs/toy cannot be written") as caught:
        execute("toy", root=empty)
    assert "\n" not in str(caught.value)


def test_executed_again_spec_and_numbers_are_equal_and_the_run_is_another(project: Path, done: Manifest) -> None:
    again = execute("toy", root=project, force=True)
    assert_repeated(done, again)
    shutil.rmtree(again.folder)  # other tests count the runs


@pytest.mark.slow  # the toy's repetition above is looked at alike
@needs_testbed
def test_a_real_analysis_executed_again_gives_the_same_bits(tmp_path: Path, short: dict[str, str]) -> None:
    for place in ("_config.yml", "CITATION.cff"):
        shutil.copy(ROOT / place, tmp_path)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "anatomy.py", tmp_path / "notebooks")
    assert_repeated(*(execute("anatomy", root=tmp_path, parameters=short, force=True) for _ in range(2)))


def assert_repeated(first: Manifest, second: Manifest) -> None:
    assert first.spec == second.spec and first.run != second.run
    assert first.metrics == second.metrics
    for name in first.outputs.keys() | second.outputs.keys():
        if name not in ("index.ipynb", "ro-crate-metadata.json"):  # these say when it was
            assert first.outputs[name] == second.outputs[name], name
    assert any(name.startswith("data/") for name in first.outputs)


@pytest.mark.parametrize("text", ["\n".join(HOSTILE[:-1]), HOSTILE[-1]], ids=["all", "long"])
def test_text_that_means_harm_goes_through_a_run_as_it_is(empty: Path, text: str) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("\nPath('metrics.json').write_text(json.dumps({'label': label}))\n")
    done = execute("toy", root=empty, parameters={"label": text})
    assert done.parameters["label"] == done.metrics["label"] == text
    assert done.difference() is None and publish(done.run, empty, authors=["Ada Lovelace"]).is_dir()


def test_a_hash_of_what_was_asked_can_be_made_anew(done: Manifest) -> None:
    """As the book's page on run folders says."""
    told = json.loads((done.folder / "manifest.json").read_text("utf-8"))
    asked = {key: told[key] for key in ("schema", "analysis", "parameters")} | told["inputs"]
    assert digest(asked) == told["spec"]
    assert digest({key: value for key, value in told.items() if key != "run"}) == told["run"]


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def test_paths_are_taken_out_of_text_but_not_out_of_images() -> None:
    home, place = str(Path.home()), Path("/somewhere/project")
    told = machine.without_paths(
        {"text": [f"{home}/x", f"{place}/y", f"{place}s"], "image/png": f"{place}/z"}, folders=[place]
    )
    assert told == {"text": ["~/x", "./y", f"{place}s"], "image/png": f"{place}/z"}


@pytest.mark.slow  # the command that runs all does so with two jobs
@pytest.mark.parametrize("jobs", [1, 2])
def test_several_analyses_are_executed_whatever_becomes_of_one(
    tmp_path: Path, jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_project(tmp_path)
    for name, bad in {"mistaken": "n < 9", "broken": "n == 7", "last": "n < 1"}.items():
        (root / "notebooks" / f"{name}.py").write_text(NOTEBOOK.replace("if n < 1:", f"if {bad}:"))
    (root / "notebooks" / "broken.py").write_text(NOTEBOOK.replace("if n == 7:", "if n == 3:"))
    names = ["toy", "mistaken", "broken", "last"]
    outcomes = execute_all(names, jobs=jobs, root=root)
    assert [outcome.analysis for outcome in outcomes] == names
    assert [type(outcome.error) for outcome in outcomes] == [type(None), EditlibError, RunFailed, type(None)]
    assert [outcome.run and outcome.run.difference() for outcome in outcomes] == [None] * 4
    assert sorted(run.analysis for run in find_runs(root)) == ["last", "toy"]
    lines = [line for line in capsys.readouterr().err.splitlines() if ": cell " not in line]  # those tell of a slow one
    assert sorted(line.split(": ")[1].split(",")[0] for line in lines) == ["done", "done", "failed", "failed"]
    assert execute_all(["toy"], jobs=jobs, root=root)[0].run == outcomes[0].run


# -- staging -------------------------------------------------------------------------------------------

SLEEPS = """
import sys
from pathlib import Path

from editlib.runs.execute import staging

with staging(Path(sys.argv[1])) as stage:
    (stage / "index.ipynb").write_text("half")
    print(stage, flush=True)
    sys.stdin.read()
"""


def begin(root: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that works in a folder of its own until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPS, root], stdin=PIPE, stdout=PIPE, text=True)
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_a_killed_run_leaves_nothing_in_the_book_and_goes_with_the_next(empty: Path) -> None:
    (killed, dead), (working, alive) = begin(empty), begin(empty)
    assert dead.is_dir() and alive.is_dir() and not dead.is_relative_to(empty / "book")
    killed.kill()  # SIGKILL
    killed.communicate()
    assert dead.is_dir() and not list((empty / "book").rglob("*"))
    execute("toy", root=empty)
    assert not dead.exists() and (alive / "index.ipynb").read_text() == "half"
    working.communicate("")
    assert working.returncode == 0 and not alive.exists()
    assert [path.name for path in alive.parent.iterdir()] == [".lock"]


def test_a_notebook_that_is_killed_is_a_failure(empty: Path) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("\nimport signal\n\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(RunFailed, match=r"^analysis toy failed \(Kernel died\)"):
        execute("toy", root=empty)
    assert not (empty / "book" / "runs").exists()


STOPS_ONCE = """
from editlib.runs.resuming import resumed

kept = resumed("search")
assert kept["resume"]
kept["out"].mkdir(parents=True, exist_ok=True)
again = (kept["out"] / "part").exists()
(kept["out"] / "part").touch()
if not again:
    raise ValueError("a cable was pulled")
"""


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_with_the_parts_it_has(empty: Path) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write(STOPS_ONCE)
    for parameters in ({"n": 3}, {"n": 4}):  # of another spec are other parts
        with pytest.raises(RunFailed, match="a cable was pulled"):
            execute("toy", root=empty, parameters=parameters)
    done = execute("toy", root=empty, parameters={"n": 3})
    left = [path.name for path in (empty / "_build/parts").iterdir()]
    assert len(left) == 1 and f"toy-{done.spec}" not in left  # gone with the run that is whole
    assert resumed("search") == {}  # outside a run


# -- what notebooks do ---------------------------------------------------------------------------------

SHOWS = "from IPython.display import HTML, JSON, Markdown, display\n"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("raise ValueError", r"\(ValueError\)"),
        ("raise ValueError('one\\ntwo')", r"\(ValueError: one\)"),
        ("raise SystemExit(0)", "ended with SystemExit before its last cell"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import shutil; shutil.rmtree(os.getcwd())", "No such file"),
        ("print('half a pair: \\ud800')", "half a surrogate pair"),
        ("Path('metrics.json').write_text('[1, 2]')", "metrics.json that is no JSON object"),
        ("Path('data/x.parquet').write_text('no')", "data/x.parquet is no Parquet"),
        ("os.symlink('/etc/hostname', 'data/link')", "data/link is a symbolic link"),
        (SHOWS + "display(JSON({}))", "shows application/json, which the book cannot"),
        (SHOWS + "display(HTML('<b>x</b><script>y</script>'))", "holds a script"),
    ],
)
def test_what_no_run_can_have_is_one_line(empty: Path, cell: str, reason: str) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write(f"\n# %%\n{cell}\n\n# %%\nprint(1)\n")
    with pytest.raises(RunFailed, match=rf"^analysis toy failed .*{reason}") as caught:
        execute("toy", root=empty)
    assert len(str(caught.value).splitlines()) == 1 and str(empty) not in str(caught.value)
    assert not (empty / "book" / "runs").exists()


@pytest.mark.parametrize(
    ("said", "reason"), [("{", "metrics.json that is no JSON"), ('{"a": [1]}', r"metric 'a' as \[1\]")]
)
def test_metrics_that_no_manifest_can_hold_are_named(tmp_path: Path, said: str, reason: str) -> None:
    (tmp_path / "metrics.json").write_text(said)
    with pytest.raises(ValueError, match=f"^the notebook wrote .*{reason}"):
        take(tmp_path)


def test_what_is_unusual_but_right_becomes_a_run(empty: Path) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write(f"""
import numpy as np

# %%
Path("stray.txt").write_text("x")
metrics = {{"a": np.float64(1.5), "b": True, "c": float("-inf")}}
Path("metrics.json").write_text(json.dumps(metrics))
{SHOWS}display(Markdown("**bold** [a](https://example.org)"), HTML("<table></table>"), np.float64(1.5))
print("\\x1b[31mred\\x1b[0m \\x00")
os.chdir("/")
""")
    done = execute("toy", root=empty)
    assert done.metrics == {"a": 1.5, "b": True, "c": "-inf"} and "stray.txt" in done.outputs
    assert done.difference() is None and publish(done.run, empty, authors=["Ada Lovelace"]).is_dir()


@pytest.mark.parametrize("kernel", ["", "python385jvsc74a57bd0"])
def test_a_notebook_with_another_kernel_or_none_is_executed(empty: Path, kernel: str) -> None:
    path = empty / "notebooks" / "toy.py"
    start, end = NOTEBOOK.index("#   kernelspec"), NOTEBOOK.index("# ---\n\n")
    spec = f"#   kernelspec:\n#     display_name: x\n#     name: {kernel}\n" if kernel else ""
    path.write_text(NOTEBOOK[:start] + spec + NOTEBOOK[end:])
    assert execute("toy", root=empty).metrics["n"] == 3


def test_hyper_parameters_and_tokens_are_recorded(empty: Path) -> None:
    with (empty / "notebooks" / "toy.py").open("a") as file:
        file.write("""
from dataclasses import dataclass, field
from types import SimpleNamespace

from editlib.runs.recording import record


@dataclass
class Params:
    layer: int = 2
    clamp: float = float("inf")
    layers: tuple = (1, 2)


@dataclass
class Header:
    tokens: int = 64000
    window: int = 128
    first_position: str = "keep"
    source: str = "corpus"


stats = SimpleNamespace(header=Header(), tokens_per_dimension=12.5)
record({"x": 1}, hparams={"m": {"rome": Params()}}, moments={"m": stats, "other": None})
""")
    done = execute("toy", root=empty)
    read = {"tokens": 64000, "window": 128, "first_position": "keep", "source": "corpus", "tokens_per_dimension": 12.5}
    assert done.metrics == {"x": 1} and done.moments == {"m": read}
    assert done.hparams == {"m": {"rome": {"layer": 2, "clamp": "inf", "layers": [1, 2]}}}
    assert sorted(done.outputs) == ["data/numbers.txt", "index.ipynb", "ro-crate-metadata.json"]
