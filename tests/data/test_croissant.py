"""The description of the shipped data is true, and a loader that knows nothing of this project reads the data by it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlcroissant as mlc
import pytest
from places import ROOT

SHIPPED = ROOT / "editlib/data/shipped"


@pytest.fixture
def described() -> Iterator[dict[str, Any]]:
    yield json.loads((SHIPPED / "croissant.json").read_text("utf-8"))


def test_every_shipped_file_is_described_as_it_is(described: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from croissant import file_object

    files = {entry["name"]: entry for entry in described["distribution"]}
    assert sorted(files) == sorted(path.name for path in SHIPPED.glob("*.jsonl"))
    for name, entry in files.items():
        now = file_object(Path(name).stem)
        assert (entry["sha256"], entry["contentSize"]) == (now.sha256, now.content_size), "run tools/croissant.py"


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph:DeprecationWarning")  # rdflib's, of the loader
@pytest.mark.parametrize("name", ["facts", "facts-choice", "facts-cloze", "facts-qa"])
def test_a_loader_reads_every_record(name: str) -> None:
    told = list(mlc.Dataset(jsonld=str(SHIPPED / "croissant.json")).records(name))
    rows = [json.loads(line) for line in (SHIPPED / f"{name}.jsonl").read_text("utf-8").splitlines()]
    assert len(told) == len(rows)

    def plain(value: Any) -> Any:
        return (
            [plain(each) for each in value]
            if isinstance(value, list)
            else value.decode()
            if isinstance(value, bytes)
            else value
        )

    for record, row in zip(told, rows, strict=True):
        flat = row | row.get("requested_rewrite", {})
        for key, value in record.items():
            wanted = flat[key.split("/")[1]]
            assert plain(value) == (wanted["str"] if isinstance(wanted, dict) else wanted)
