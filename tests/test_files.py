"""Files are there whole or not at all, under names of their own, and a folder has one writer."""

import json
import os
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import pytest
import torch
from disks import full_disk

from editlib.errors import EditlibError
from editlib.files import LOCK, OLD, aside, cache_folder, locked, new_folder, write_json, write_tensors
from editlib.models.language_model import LanguageModel
from editlib.models.saving import write_model


def json_file(path: Path) -> None:
    write_json(path, "x" * 10_000)


def tensors_file(path: Path) -> None:
    write_tensors(path, {"x": torch.zeros(100, 100)}, {})


def parquet_file(path: Path) -> None:
    with aside(path) as writing:
        pd.DataFrame({"x": torch.rand(10_000).numpy()}).to_parquet(writing)


def folder(path: Path) -> None:
    with new_folder(path) as writing:
        json_file(writing / "a.json")


@pytest.mark.parametrize("write", [json_file, tensors_file, parquet_file, folder])
def test_a_full_disk_leaves_what_was_there_and_is_one_line_with_the_name(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "out"
    with pytest.raises(EditlibError) as caught, full_disk():
        write(path)
    assert not list(tmp_path.iterdir())
    said = str(caught.value)
    assert str(path) in said and ".writing" not in said and "\n" not in said
    assert said.endswith("; free some space there, or choose another place")
    write(path)
    assert path.exists()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"ü": [1, 2]}
    with new_folder(tmp_path / "new" / "folder") as writing:
        write_json(writing / "b.json", 3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
    assert (tmp_path / "new" / "folder" / "b.json").read_text() == "3"


def test_tensors_may_be_read_by_whom_other_files_may(tmp_path: Path, gpt2: LanguageModel) -> None:
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "kept", {"a": torch.zeros(2)}, {})
    write_model(gpt2.model, gpt2.tokenizer, tmp_path / "model")
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_an_error_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), aside(tmp_path / "file") as writing:
        writing.write_text("half")
        raise KeyError
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder") as writing:
        (writing / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out.writing").mkdir()  # somebody else's
    with pytest.raises(EditlibError, match="out exists already; choose another$"), new_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.writing"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    started, path = threading.Barrier(2), tmp_path / "file"
    names = list[str]()

    def write(text: str) -> None:
        with aside(path) as writing:
            names.append(writing.name)
            writing.write_text(text)
            started.wait()

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2 and path.read_text() in ("one", "two") and list(tmp_path.iterdir()) == [path]


def test_old_leftovers_of_the_cache_go_and_young_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITLIB_CACHE", str(tmp_path))
    place = cache_folder("stats")
    for name in (".a.safetensors.12ab.writing", ".b.safetensors.12ab.writing", "c.safetensors"):
        (place / name).touch()
    past = time.time() - OLD - 60
    os.utime(place / ".a.safetensors.12ab.writing", (past, past))
    os.utime(place / "c.safetensors", (past, past))
    cache_folder("stats")
    assert sorted(path.name for path in place.iterdir()) == [".b.safetensors.12ab.writing", "c.safetensors"]


def hold(place: Path, sender: Connection) -> None:
    """Hold a folder until killed."""
    with locked(place):
        sender.send(True)
        time.sleep(60)


def test_a_folder_has_one_writer_and_is_free_again_when_it_dies(tmp_path: Path) -> None:
    processes = get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=hold, args=(tmp_path, sender))
    process.start()
    assert receiver.poll(60) and receiver.recv()
    with pytest.raises(EditlibError) as caught, locked(tmp_path):
        pass
    said = f"output folder {tmp_path} is being written by process {process.pid} on {os.uname().nodename}; wait"
    assert str(caught.value).startswith(said)
    process.kill()
    process.join()
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")
        with pytest.raises(EditlibError, match="is being written by process"), locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
