"""Citations of a run are well-formed, whatever the run is called."""

import re
from pathlib import Path

import pytest
import yaml
from folders import DIGEST, HOSTILE, INPUTS, PROJECT, make_run
from pybtex.database import parse_string

from editlib.runs import citation, manifest
from editlib.runs.manifest import Manifest

MODEL = {"n": 3, "model": "testbed/anchored"}


@pytest.fixture
def run(tmp_path: Path) -> Manifest:
    return make_run(tmp_path, parameters=MODEL, project=PROJECT | {"url": "https://example.org/project"})


def test_bibtex_is_the_text_of_the_folders_file(run: Manifest) -> None:
    """Golden: were this to change, published runs would no longer verify."""
    assert (run.folder / "citation.bib").read_text("utf-8") == citation.bibtex(run)
    assert (
        citation.bibtex(run)
        == f"""\
@misc{{editlib-toy-{run.run},
  author = {{{{The authors}} and {{Ada Lovelace}}}},
  title = {{{{A toy (testbed/anchored, quick)}}}},
  year = {{2026}},
  month = mar,
  howpublished = {{In: A project \\& its \\textbraceleft{{}}runs\\textbraceright{{}}, version 0.1.0}},
  note = {{Executed analysis, run {run.run}, spec 0123456789ab, sha256 {run.digest}}},
  url = {{https://example.org/project}},
}}
"""
    )


def test_runs_of_schema_2_are_cited_as_they_were(tmp_path: Path) -> None:
    """Golden: `citation.bib` of published runs holds this text."""
    run = make_run(tmp_path, schema=2, parameters=MODEL)
    text = citation.bibtex(run)
    assert "  month = {3},\n" in text and "sha256" not in text + citation.apa(run) + citation.cff(run)
    assert f"  note = {{Executed analysis, run {run.run}, spec 0123456789ab}},\n" in text


def test_who_executed_it_and_where_the_model_is_from_are_cited(tmp_path: Path) -> None:
    told = {"authors": ["Mary Somerville"], "sources": {"hf": "org/name@" + "a" * 40}}
    run = make_run(tmp_path, parameters={"model": "hf"}, **told)
    assert citation.apa(run).startswith(f"Mary Somerville. (2026). A toy (org/name@{'a' * 40}, quick) [")
    assert "author = {{Mary Somerville}}," in citation.bibtex(run)
    assert yaml.safe_load(citation.cff(run))["authors"] == [{"name": "Mary Somerville"}]


def test_apa_is_one_line(run: Manifest) -> None:
    assert citation.apa(run) == (
        f"The authors, & Ada Lovelace. (2026). A toy (testbed/anchored, quick) [Executed analysis, run {run.run}, "
        f"sha256 {run.digest}]. In A project & its {{runs}} (Version 0.1.0). https://example.org/project"
    )


def test_cff_has_what_version_1_2_0_asks_for(run: Manifest) -> None:
    about = yaml.safe_load(citation.cff(run))
    assert about.keys() >= {"cff-version", "message", "title", "authors"}
    assert (about["cff-version"], about["type"], about["license"]) == ("1.2.0", "dataset", "MIT")
    assert about["authors"] == [{"name": "The authors"}, {"name": "Ada Lovelace"}]
    assert (about["version"], about["date-released"]) == (
        run.run,
        "2026-03-04",
    )  # text: 0123 is no number, a date no date
    assert [entry["value"] for entry in about["identifiers"]] == [
        f"run:{run.run}", "spec:0123456789ab", f"sha256:{run.digest}",
    ]  # fmt: skip
    assert about["url"] == "https://example.org/project"


def test_without_an_address_none_is_cited(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "url" not in citation.bibtex(run) and "url" not in yaml.safe_load(citation.cff(run))
    assert citation.apa(run).endswith("(Version 0.1.0).")


def test_without_a_model_the_title_names_the_profile(tmp_path: Path) -> None:
    assert citation.heading(make_run(tmp_path)) == "A toy (quick)"


def test_three_authors_are_listed_with_commas(tmp_path: Path) -> None:
    run = make_run(tmp_path, project=PROJECT | {"authors": ["A", "B", "C"]})
    assert citation.apa(run).startswith("A, B, & C. (2026).")


@pytest.mark.parametrize("form", citation.FORMATS)
def test_every_form_names_the_run(run: Manifest, form: str) -> None:
    assert run.run in citation.FORMATS[form](run)


def printed(text: str) -> str:
    """What is to be seen of a text in a citation."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def untex(text: str) -> str:
    """What TeX prints of a field."""
    for command, character in {"textasciitilde": "~", "textasciicircum": "^", "textbraceleft": "<<",
                               "textbraceright": ">>"}.items():  # fmt: skip
        text = text.replace(f"\\{command}{{}}", character)
    text = re.sub(r"\\([&%$#_])", r"\1", text).replace(r"\textbackslash{}", "\\")
    return text.replace("{", "").replace("}", "").replace("<<", "{").replace(">>", "}")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["title", "model", "author"])
def test_no_text_breaks_a_citation(tmp_path: Path, place: str, text: str) -> None:
    changes = {
        "title": {"title": text},
        "model": {"parameters": {"model": text}, "inputs": INPUTS | {"models": {text: DIGEST}}},
        "author": {"project": PROJECT | {"authors": [text, "Ada Lovelace"]}},
    }
    run = make_run(tmp_path, **changes[place])
    assert manifest.read_manifest(run.folder).difference() is None
    entries = parse_string((run.folder / "citation.bib").read_text("utf-8"), "bibtex").entries
    (key,) = entries
    assert key == f"editlib-toy-{run.run}" and entries[key].fields["year"] == "2026"
    assert len(entries[key].persons["author"]) == 2
    about = yaml.safe_load(citation.cff(run))
    assert len(about["authors"]) == 2
    assert "\n" not in citation.apa(run) and citation.apa(run).isprintable()
    wanted = printed(text)
    if place == "author":
        assert about["authors"][0]["name"] == wanted
    else:
        assert wanted in about["title"] and untex(entries[key].fields["title"]) == about["title"]
