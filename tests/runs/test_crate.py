"""A run folder is a Process Run Crate, by the checker that the profile's authors maintain."""

import io
import json
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.response import addinfourl

import pytest
import requests
import rocrate
from folders import DIGEST, HOSTILE, INPUTS, PROJECT, make_run
from rocrate_validator import services
from rocrate_validator.models import Severity
from rocrate_validator.utils.http import HttpRequester

from editlib.runs.manifest import Manifest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the checker's own
CONTEXT = (Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld").read_bytes()
ADDRESS = "https://w3id.org/ro/crate/1.1/context"
NO_ADDRESS = {  # what a project without an address cannot have
    "The Application SHOULD have a url",
    "The SoftwareApplication id SHOULD be an absolute URI",
    "The organization SHOULD have a URL.",
}


class Local(urllib.request.BaseHandler):
    """Answers for the context's address, and for no other."""

    handler_order = 1

    def https_open(self, request: urllib.request.Request) -> addinfourl:
        assert request.full_url == ADDRESS
        headers = Message()
        headers["Content-Type"] = "application/ld+json"
        answer = addinfourl(io.BytesIO(CONTEXT), headers, ADDRESS, 200)
        answer.msg = "OK"  # type: ignore[attr-defined]
        return answer

    http_open = https_open


def get(requester: object, address: str, **options: Any) -> requests.Response:
    assert address == ADDRESS
    answer = requests.Response()
    answer.status_code, answer._content = 200, CONTEXT
    answer.headers["Content-Type"] = "application/ld+json"
    return answer


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker asks for the context that the crate names; `rocrate` ships it."""
    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(Local))


def findings(folder: Path, severity: Severity = Severity.REQUIRED) -> set[str]:
    settings = services.ValidationSettings(
        rocrate_uri=str(folder), profile_identifier="process-run-crate", requirement_severity=severity
    )
    return {str(issue.message) for issue in services.validate(settings).get_issues()}


def change(run: Manifest, edit: Any) -> Path:
    path = run.folder / "ro-crate-metadata.json"
    content = json.loads(path.read_text("utf-8"))
    edit({entity["@id"]: entity for entity in content["@graph"]})
    path.write_text(json.dumps(content), "utf-8")
    return run.folder


def test_a_run_folder_is_a_process_run_crate(tmp_path: Path) -> None:
    assert findings(make_run(tmp_path).folder) == set()


def test_what_is_recommended_is_there_but_for_an_address_nobody_knows(tmp_path: Path) -> None:
    assert findings(make_run(tmp_path).folder, Severity.RECOMMENDED) == NO_ADDRESS
    known = make_run(tmp_path, project=PROJECT | {"url": "https://example.org/project"})
    assert findings(known.folder, Severity.RECOMMENDED) == set()


def entities(run: Manifest) -> dict[str, Any]:
    content = json.loads((run.folder / "ro-crate-metadata.json").read_text("utf-8"))
    return {entity["@id"]: entity for entity in content["@graph"]}


def test_the_crate_says_what_was_executed_with_what(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    told = entities(run)
    action = told["#execution"]
    assert (action["startTime"], action["endTime"]) == ("2026-03-04T05:06:07+00:00", "2026-03-04T05:07:08+00:00")
    given = [told[entity["@id"]] for entity in action["object"]]
    assert {e["name"]: e["value"] for e in given if e["@type"] == "PropertyValue"} == {
        name: str(value) for name, value in run.parameters.items()
    }
    assert {e["name"] for e in given if e["@type"] == "CreativeWork"} == {"testbed/anchored", "testbed", "quiz"}
    assert told[action["instrument"]["@id"]]["identifier"] == f"swh:1:rev:{run.git.commit}"


def test_the_crate_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    run = make_run(tmp_path, files={"data/a b%#é.txt": "x"})
    files = {entity["name"]: entity.get("sha256") for entity in entities(run).values() if entity["@type"] == "File"}
    assert files.keys() == run.outputs.keys() - {"ro-crate-metadata.json"} | {"manifest.json", "citation.bib"}
    assert {name: digest for name, digest in files.items() if digest} == {
        name: digest for name, digest in run.outputs.items() if name != "ro-crate-metadata.json"
    }
    assert findings(run.folder) == set()


@pytest.mark.parametrize("text", HOSTILE[:2])  # the checker below takes all of them
def test_text_that_means_harm_stays_text(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path, title=text, parameters={"label": text}, inputs=INPUTS | {"models": {text: DIGEST}})
    told = entities(run)
    assert told["./"]["name"] == f"{text} (quick)" and told["#parameter-label"]["value"] == text


def test_the_checker_takes_text_that_means_harm(tmp_path: Path) -> None:
    labels = {f"label{i}": text for i, text in enumerate(HOSTILE)}
    inputs = INPUTS | {"models": dict.fromkeys(HOSTILE, DIGEST)}
    assert findings(make_run(tmp_path, title=HOSTILE[0], parameters=labels, inputs=inputs).folder) == set()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("./", "datePublished", None), ("#execution", "instrument", None), ("./", "hasPart", [{"@id": "data/none.txt"}])],
)
def test_the_checker_finds_what_is_wrong(tmp_path: Path, name: str, key: str, value: Any) -> None:
    def damage(told: dict[str, Any]) -> None:
        told[name] |= {key: value} if value else {}
        if not value:
            del told[name][key]

    assert findings(change(make_run(tmp_path), damage))
