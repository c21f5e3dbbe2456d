"""The manifest's form, and that a run's id vouches for every byte of its folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from folders import DIGEST, make_run, record, record_of_two
from places import ROOT

from editlib.errors import EditlibError
from editlib.runs import manifest
from editlib.runs.manifest import Manifest

SCHEMA = ROOT / "book" / "_static" / "manifest.schema.json"
FILES = ["citation.bib", "data/cases.parquet", "figures/ratios.png", "index.ipynb", "manifest.json",
         "ro-crate-metadata.json"]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Manifest:
    return make_run(tmp_path)


def test_the_run_above_has_every_kind_of_file(run: Manifest) -> None:
    assert sorted(p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()) == FILES


# -- form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made_of", "run"), [(record_of_two, "23ebfcd35b7a"), (record, "139bc9c39572")])
def test_the_text_of_a_manifest_stays_as_it_is(tmp_path: Path, made_of: Callable[..., Any], run: str) -> None:
    """Golden: were any of this to change, published runs would no longer verify."""
    (tmp_path / "run").mkdir()
    small = made_of(
        outputs={"index.ipynb": DIGEST}, parameters={"n": 3, "name": "é", "rate": 0.5}, cells=[0.5], metrics={"x": 1.0}
    )
    made = manifest.write(small, tmp_path / "run")
    assert made.run == run and made.digest.startswith(run) and len(made.digest) == 64
    text = (tmp_path / "run" / "manifest.json").read_text("utf-8")
    assert text == json.dumps(small | {"run": made.run}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert text.splitlines()[:2] == ["{", ' "analysis": "toy",'] and '\n "cells": [\n  0.5\n ],\n' in text
    assert ' "name": "é",' in text and '  "x": 1.0' in text


def test_the_shipped_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text("utf-8")) == manifest.json_schema()


def test_every_field_says_what_it_is() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    for part in schema["$defs"].values():
        assert part["description"]
        assert [name for name, told in part["properties"].items() if not told.keys() & {"description", "$ref"}] == []


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def edited(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(record))
    *places, last = path.split("/")
    here = changed
    for place in places:
        here = here[place]
    here[last] = value
    return changed


def test_a_manifest_is_of_the_schema(run: Manifest, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(json.loads((run.folder / "manifest.json").read_text("utf-8")))


@pytest.mark.parametrize("schema", [2, 3])
def test_manifests_of_both_schemas_are_read_and_verified(
    tmp_path: Path, validator: jsonschema.Draft202012Validator, schema: int
) -> None:
    run = make_run(tmp_path, schema=schema)
    validator.validate(run.record)
    assert run.schema == schema and run.difference() is None
    assert ("hparams" in run.record) == ("presets" in run.record["inputs"]) == (schema == 3)
    assert run.record.keys() == json.loads((run.folder / "manifest.json").read_text("utf-8")).keys()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 1),
        ("schema", 2),  # with what only schema 3 has
        ("schema", 4),
        ("hparams/rome", 1),
        ("moments/m", "many"),
        ("run", "0123456789aB"),
        ("run", "0123456789abc"),
        ("spec", ""),
        ("analysis", "../toy"),
        ("started", "2026-03-04 05:06:07"),
        ("finished", "2026-03-04T05:06:07+00:00"),
        ("extra", 1),
        ("inputs/extra", 1),
        ("environment/extra", 1),
        ("hardware/extra", 1),
        ("git/extra", 1),
        ("project/extra", 1),
        ("inputs/code", "ab"),
        ("outputs/index.ipynb", "ab"),
        ("parameters/n", [3]),
        ("metrics/n", None),
        ("cells", "none"),
    ],
)
def test_what_is_not_of_the_schema_is_refused_by_it_and_by_the_reader(
    run: Manifest, validator: jsonschema.Draft202012Validator, path: str, value: Any
) -> None:
    told = edited(run.record, path, value)
    assert not validator.is_valid(told)
    (run.folder / "manifest.json").write_text(manifest.as_text(told), "utf-8")
    with pytest.raises(EditlibError, match="has no valid manifest") as caught:
        manifest.read_manifest(run.folder)
    assert "\n" not in str(caught.value) and path.split("/")[0] in str(caught.value)


@pytest.mark.parametrize("field", sorted(record()))
def test_no_field_may_be_missing(run: Manifest, validator: jsonschema.Draft202012Validator, field: str) -> None:
    told = {key: value for key, value in run.record.items() if key != field}
    assert not validator.is_valid(told)
    (run.folder / "manifest.json").write_text(manifest.as_text(told), "utf-8")
    with pytest.raises(EditlibError, match=rf"has no valid manifest \({field}: "):
        manifest.read_manifest(run.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": NaN}', "\ud800"])
def test_what_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(EditlibError, match=r"has no (valid|readable) manifest"):
        manifest.read_manifest(tmp_path)


# -- every byte ----------------------------------------------------------------------------------------


def first_difference(folder: Path) -> str | None:
    """As `editlib verify`: a manifest that cannot be read is the file that differs."""
    try:
        return manifest.read_manifest(folder).difference()
    except EditlibError:
        return "manifest.json"


@pytest.mark.parametrize("flip", [1, 32, 128], ids="bit {:d}".format)
@pytest.mark.parametrize("where", [0, 0.5, 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_found_and_its_file_named(run: Manifest, name: str, where: float, flip: int) -> None:
    path = run.folder / name
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= flip
    path.write_bytes(content)
    assert first_difference(run.folder) == name
    assert run.difference() == name  # also for who read the manifest before


@pytest.mark.parametrize("name", FILES)
def test_a_removed_or_lengthened_file_is_named(run: Manifest, name: str) -> None:
    path = run.folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    assert first_difference(run.folder) == name
    path.unlink()
    assert first_difference(run.folder) == name


@pytest.mark.parametrize("name", ["added.txt", "data/added.parquet", "data/deep/.hidden", "manifest.json.bak"])
def test_an_added_file_is_named(run: Manifest, name: str) -> None:
    (run.folder / name).parent.mkdir(exist_ok=True)
    (run.folder / name).touch()
    assert first_difference(run.folder) == name


def test_every_byte_of_the_manifest_counts(run: Manifest) -> None:
    path = run.folder / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert first_difference(run.folder) == "manifest.json", place


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: json.dumps(json.loads(text)),
        lambda text: text.replace('"n": 3', '"n": 3.0'),
        lambda text: text.replace('{\n "analysis"', '{\n "analysis": "other",\n "analysis"', 1),
    ],
    ids=["line endings", "spaces", "an integer as float", "a key twice"],
)
def test_the_same_content_in_other_bytes_is_a_change(run: Manifest, rewrite: Callable[[str], str]) -> None:
    path = run.folder / "manifest.json"
    path.write_bytes(rewrite(path.read_text("utf-8")).encode())
    assert first_difference(run.folder) == "manifest.json"


@pytest.mark.parametrize("target", ["/etc/hostname", "manifest.json", "nowhere"])
def test_a_symbolic_link_is_named(run: Manifest, target: str) -> None:
    """No hash of the run vouches for what lies elsewhere."""
    link = run.folder / "data" / "link"
    link.symlink_to(target)
    assert first_difference(run.folder) == "data/link"
    cases = run.folder / "data" / "cases.parquet"
    cases.rename(run.folder.parent / "cases.parquet")
    link.unlink()
    cases.symlink_to(run.folder.parent / "cases.parquet")  # the same bytes, but not the run's
    assert first_difference(run.folder) == "data/cases.parquet"


def test_a_folder_of_another_name_is_not_the_run(run: Manifest) -> None:
    assert first_difference(run.folder.rename(run.folder.with_name("0123456789ab"))) == "manifest.json"


def test_a_run_moved_to_another_project_still_verifies(run: Manifest, tmp_path: Path) -> None:
    moved = shutil.move(run.folder, tmp_path / "elsewhere" / "book" / "runs" / "toy" / run.run)
    assert first_difference(Path(moved)) is None
    assert manifest.read_manifest(Path(moved)).run == run.run
