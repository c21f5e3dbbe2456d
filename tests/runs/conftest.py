"""Runs of a throw-away project whose notebook needs no torch."""

import json
from pathlib import Path

import pytest
from folders import make_project

from editlib.runs.execute import execute
from editlib.runs.manifest import Manifest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project {with} braces"))


@pytest.fixture(scope="module")
def done(project: Path) -> Manifest:
    return execute("toy", root=project)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A project nothing was executed in."""
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Fewer texts than those an analysis measures perplexity on, and as few for the second moments as are accepted."""
    import editlib as el
    from editlib.data import for_models

    folder, lm = tmp_path_factory.mktemp("texts"), el.load("testbed/anchored")
    texts = {"texts": el.data.texts("testbed-ppl-50")[:12], "corpus": for_models.corpus(lm, 10 * 640)}
    for name, found in texts.items():
        (folder / f"{name}.json").write_text(json.dumps(found), "utf-8")
    return {name: str(folder / f"{name}.json") for name in texts}
